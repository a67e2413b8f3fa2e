"""Where a collection's files lie: the config's file-name templates, filled in and looked up below
ROOTPATH."""

import itertools
from pathlib import Path

from basic.caption import CaptionFile, join_captions, read_captions
from basic.config import reads
from basic.errors import DataError, listing


class CollectionFiles:
    """The files of one collection below ROOTPATH: fills in the templates of `config.data`, reads
    the captions.

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
            raise DataError(
                f'ROOTPATH {root} is not a folder; {root.parent} has: {listing(root.parent)}'
            )
        found = [name for name in spellings if (root / name).is_dir()] or _in_any_case(
            root, spellings
        )
        if not found:
            raise DataError(
                f'ROOTPATH {root} has no folder {" or ".join(spellings)}; it has: {listing(root)}.'
                ' ROOTPATH is the folder that holds the collections; data.collection names one of'
                ' them'
            )
        self.folder = root / found[0]
        self.spellings = list(dict.fromkeys([found[0], *spellings]))

    def paths(self, template, split):
        """Candidate paths of a file-name template, as `config.Data` explains it; {id} stays."""
        data, name = self.config.data, self.config.visual.feature
        pieces = template.split('{feature}')
        # folder and file names may spell collection and feature differently
        for c in self.spellings:
            for names in itertools.product(
                dict.fromkeys((name, name.replace('_', ''))), repeat=len(pieces) - 1
            ):
                text = ''.join(itertools.chain.from_iterable(zip(pieces, (*names, ''))))
                yield self.folder / text.format(
                    c=c,
                    p=data.train_prefix.get(str(data.task), c),
                    lang=data.lang,
                    split=split,
                    t=data.suffix.get(f'{data.task}/{data.lang}', ''),
                    id='{id}',
                )

    def find(self, templates, split, what, option):
        """The first path that exists; DataError that lists all of them if none does."""
        tried = list(
            dict.fromkeys(path for template in templates for path in self.paths(template, split))
        )
        for path in tried:
            if path.exists():
                return path
        folder = next((parent for parent in tried[0].parents if parent.is_dir()), self.folder)
        raise DataError(
            f"no {what} of split '{split}'; tried {', '.join(map(str, tried))}; {folder} has: "
            f'{listing(folder)}. Put the file there, or set {option}'
        )

    def roles(self, split, weights=None):
        """The caption branches that a split needs; the first one's captions give the order.

        Args:
            split: train, val or test.
            weights: shares w of the English branch that val or test is scored with; None: those
                that a training validates with, or `eval.weights`.
        """
        if split != 'train':
            if weights is None:
                config = self.config
                weights = validation_weights(config) if split == 'val' else config.eval.weights
            return scored_branches(weights)
        needed = {'en', *reads(self.config.loss.weights)}
        if self.config.train.back_as_en > 0:
            needed.add('back')
        return tuple(role for role in ('en', 'tgt', 'back') if role in needed)

    def branches_there(self, split):
        """Of en and tgt, the queries that `eval.weights` needs, and those whose file is there."""
        needed = scored_branches(self.config.eval.weights)
        return tuple(
            role
            for role in ('en', 'tgt')
            if role in needed
            or any(path.exists() for path in self.paths(self._caption_template(split, role), split))
        )

    def _caption_template(self, split, role):
        return 'TextData/' + getattr(getattr(self.config.data.captions, split), role)

    def caption_path(self, split, role):
        return self.find(
            [self._caption_template(split, role)],
            split,
            f"captions (branch '{role}')",
            f'data.captions.{split}.{role}, data.lang',
        )

    def check_files(self, splits):
        """Raise DataError at the first caption file, id list or feature file that a split lacks;
        opens none of them."""
        for split in splits:
            for role in self.roles(split):
                self.caption_path(split, role)
            self.visual_files(split)

    def visual_files(self, split):
        """dict of the paths that hold a split's visual items: frames, or pooled and ids, or ids (if
        there is a list)."""
        data, kind = self.config.data, self.config.visual.kind
        if kind == 'frames':
            return {
                'frames': self.find(
                    [data.frames], split, 'frame features', 'visual.feature, data.frames'
                )
            }
        found = {}
        if data.ids[split]:
            found['ids'] = self.find(list(data.ids[split]), split, 'id list', f'data.ids.{split}')
        if kind == 'pooled':
            found['pooled'] = self.find(
                list(data.pooled[split]),
                split,
                'image features',
                f'visual.feature, data.pooled.{split}',
            )
        return found

    def captions(self, split, weights=None):
        """dict role -> CaptionFile, all in the order and with the ids of the first; see `roles`."""
        files = {
            role: read_captions(self.caption_path(split, role))
            for role in self.roles(split, weights)
        }
        first = next(iter(files.values()))
        return {
            role: CaptionFile(
                file.path, first.ids, [file.texts[row] for row in join_captions(first, file)]
            )
            for role, file in files.items()
        }


def _in_any_case(root, spellings):
    """The folders of `root` whose names are one of the spellings but for upper and lower case, in
    order."""
    wanted = [name.casefold() for name in spellings]
    found = [
        path.name for path in root.iterdir() if path.name.casefold() in wanted and path.is_dir()
    ]
    return sorted(found, key=lambda name: (wanted.index(name.casefold()), name))


def scored_branches(weights):
    """The branches read by scores at these shares w of the English one: not en at 0, nor tgt at
    1."""
    needed = {'en': any(w > 0 for w in weights), 'tgt': any(w < 1 for w in weights)}
    return tuple(role for role, need in needed.items() if need)


def validation_weights(config):
    """The shares w of validation, falling: that which chooses the model, those to choose w from."""
    grid = config.eval.weight_grid or config.eval.weights
    return sorted({*map(float, grid), float(config.train.val_weight)}, reverse=True)
