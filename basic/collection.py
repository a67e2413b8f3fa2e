"""Where a collection's files lie: the config's file-name templates, filled in and looked up below ROOTPATH."""
import itertools
from pathlib import Path

from basic.caption import CaptionFile, join_captions, read_captions
from basic.config import needs_tgt
from basic.errors import DataError, listing


class CollectionFiles:
    """The files of one collection below ROOTPATH: fills in the templates of `config.data`, reads the captions.

    Args:
        config: basic.config.Config.
        rootpath: folder that holds the collection's folder.
    Raises:
        DataError: no such folder; the message lists what is there.
    """

    def __init__(self, config, rootpath):
        self.config = config
        root, spellings = Path(rootpath), [config.data.collection, *config.data.aliases]
        if not root.is_dir():
            raise DataError(f'ROOTPATH {root} is not a folder; {root.parent} has: {listing(root.parent)}')
        found = [name for name in spellings if (root / name).is_dir()] or _in_any_case(root, spellings)
        if not found:
            raise DataError(f"ROOTPATH {root} has no folder {' or '.join(spellings)}; it has: {listing(root)}. "
                            'ROOTPATH is the folder that holds the collections; data.collection names one of them')
        self.folder = root / found[0]
        self.spellings = list(dict.fromkeys([found[0], *spellings]))

    def paths(self, template, split):
        """Candidate paths of a file-name template, as `config.Data` explains it; {id} stays."""
        data, name = self.config.data, self.config.visual.feature
        pieces = template.split('{feature}')
        for c in self.spellings:         # folder and file names may spell collection and feature differently
            for names in itertools.product(dict.fromkeys((name, name.replace('_', ''))), repeat=len(pieces) - 1):
                text = ''.join(itertools.chain.from_iterable(zip(pieces, (*names, ''))))
                yield self.folder / text.format(
                    c=c, p=data.train_prefix.get(str(data.task), c), lang=data.lang, split=split,
                    t=data.suffix.get(f'{data.task}/{data.lang}', ''), id='{id}')

    def find(self, templates, split, what, option):
        """The first path that exists; DataError that lists all of them if none does."""
        tried = list(dict.fromkeys(path for template in templates for path in self.paths(template, split)))
        for path in tried:
            if path.exists():
                return path
        folder = next((parent for parent in tried[0].parents if parent.is_dir()), self.folder)
        raise DataError(f"no {what} of split '{split}'; tried {', '.join(map(str, tried))}; {folder} has: "
                        f'{listing(folder)}. Put the file there, or set {option}')

    def roles(self, split):
        """The caption branches that a split needs."""
        weights = self.config.loss.weights
        needed = {'en': True, 'tgt': split != 'train' or needs_tgt(weights),
                  'back': split == 'train' and weights.triplet_back > 0}
        return tuple(role for role, need in needed.items() if need)

    def caption_path(self, split, role):
        template = 'TextData/' + getattr(getattr(self.config.data.captions, split), role)
        return self.find([template], split, f"captions (branch '{role}')", f'data.captions.{split}.{role}, data.lang')

    def captions(self, split):
        """dict role -> CaptionFile, each in the order of the `en` file and with its ids."""
        files = {role: read_captions(self.caption_path(split, role)) for role in self.roles(split)}
        first = files['en']
        return {role: CaptionFile(file.path, first.ids, [file.texts[row] for row in join_captions(first, file)])
                for role, file in files.items()}


def _in_any_case(root, spellings):
    """The folders of `root` whose names are one of the spellings but for upper and lower case, in order."""
    wanted = [name.casefold() for name in spellings]
    found = [path.name for path in root.iterdir() if path.name.casefold() in wanted and path.is_dir()]
    return sorted(found, key=lambda name: (wanted.index(name.casefold()), name))
