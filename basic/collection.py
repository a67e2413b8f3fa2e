"""A collection on disk: where its files lie, its captions, its visual sources.

File names are templates in the config, which are filled in and looked up below ROOTPATH.
"""

import copy
import itertools
from pathlib import Path

from basic.bigfile import BigFile
from basic.caption import CaptionFile, join_captions, read_captions
from basic.config import reads
from basic.errors import DataError, listing
from basic.features import FrameSource, PooledSource
from basic.ids import read_ids
from basic.images import ImageSource
from basic.languages import languages
from basic.thumbnails import Media


class Collection:
    """The files of one collection, its captions and its visual sources.

    It opens the captions of one language, `lang`, at first the first one of `data.lang`.

    Args:
        config: basic.config.Config.
        rootpath: folder that holds the collection's folder.
    Raises:
        DataError: no such folder; the message lists what is there.
    """

    def __init__(self, config, rootpath):
        self.config = config
        name = _folder_name(Path(rootpath), [config.data.collection, *config.data.aliases])
        self.folder = Path(rootpath) / name
        # File names may spell the collection in another way than its folder does.
        self.spellings = list(dict.fromkeys([name, config.data.collection, *config.data.aliases]))
        self.lang = languages(config)[0]
        # Of all splits and languages:
        self._frames = {}  # folder -> FrameSource
        self._sources = []  # features of the others must be as wide as those of the first

    def in_languages(self):
        """dict language -> the Collection that opens its captions, for each of `data.lang`."""
        found = {}
        for lang in languages(self.config):
            found[lang] = copy.copy(self)
            found[lang].lang = lang
        return found

    # ------------------------------------------------------------------------- where files lie

    def paths(self, template, split):
        """The candidate paths of a file-name template, see `config.Data`; {id} is not replaced."""
        data, feature = self.config.data, self.config.visual.feature
        pieces = template.split('{feature}')
        # File names may spell the feature without underscores.
        spellings = dict.fromkeys((feature, feature.replace('_', '')))
        for collection in self.spellings:
            for names in itertools.product(spellings, repeat=len(pieces) - 1):
                text = ''.join(itertools.chain.from_iterable(zip(pieces, (*names, ''))))
                yield self.folder / text.format(
                    c=collection,
                    p=data.train_prefix.get(str(data.task), collection),
                    lang=self.lang,
                    split=split,
                    t=data.suffix.get(f'{data.task}/{self.lang}', ''),
                    id='{id}',
                )

    def find(self, templates, split, what, option):
        """The first path that exists; DataError with all paths if none does."""
        candidates = (path for template in templates for path in self.paths(template, split))
        tried = list(dict.fromkeys(candidates))
        for path in tried:
            if path.exists():
                return path
        folder = next((parent for parent in tried[0].parents if parent.is_dir()), self.folder)
        raise DataError(
            f"no {what} of split '{split}'; tried {', '.join(map(str, tried))}; {folder} has: "
            f'{listing(folder)}. Put the file there, or set {option}'
        )

    def caption_path(self, split, branch):
        """The caption file of a branch (en, tgt, back)."""
        return self.find(
            [self._caption_template(split, branch)],
            split,
            f"captions (branch '{branch}')",
            f'data.captions.{split}.{branch}, data.lang',
        )

    def caption_paths(self, split, branch):
        """The candidate paths of a branch's caption file, one per spelling of the collection."""
        return self.paths(self._caption_template(split, branch), split)

    def visual_files(self, split):
        """The paths that hold a split's visual items.

        Returns:
            dict: frames; or pooled and ids; or, for images, ids if there is a list.
        """
        data, kind = self.config.data, self.config.visual.kind
        if kind == 'frames':
            option = 'visual.feature, data.frames'
            return {'frames': self.find([data.frames], split, 'frame features', option)}
        found = {}
        if data.ids[split]:
            found['ids'] = self.find(list(data.ids[split]), split, 'id list', f'data.ids.{split}')
        if kind == 'pooled':
            templates, option = list(data.pooled[split]), f'visual.feature, data.pooled.{split}'
            found['pooled'] = self.find(templates, split, 'image features', option)
        return found

    def check_files(self, splits):
        """Raise DataError at the first caption, id or feature file that is missing; open none."""
        for split, part in itertools.product(splits, self.in_languages().values()):
            for branch in part.branches(split):
                part.caption_path(split, branch)
            part.visual_files(split)
        if 'train' in splits:
            self.check_english()

    def _caption_template(self, split, branch):
        return 'TextData/' + getattr(getattr(self.config.data.captions, split), branch)

    # ---------------------------------------------------------------------------------- captions

    def branches(self, split, weights=None):
        """The caption branches that a split needs; the first one decides the order of captions.

        Args:
            split: train, val or test.
            weights: values of w with which the split is scored; None: what a training reads, and
                for val and test the weights of validation in training, or `eval.weights`.
        """
        if split == 'train' and weights is None:
            needed = {'en', *reads(self.config.loss.weights)}
            if self.config.train.back_as_en > 0:
                needed.add('back')
            return tuple(branch for branch in ('en', 'tgt', 'back') if branch in needed)
        if weights is None:
            config = self.config
            weights = validation_weights(config) if split == 'val' else config.eval.weights
        return scored_branches(weights)

    def branches_there(self, split):
        """Of en and tgt, the branches that `eval.weights` needs, and those whose file exists."""

        def is_there(branch):
            return any(path.exists() for path in self.caption_paths(split, branch))

        needed = scored_branches(self.config.eval.weights)
        return tuple(branch for branch in ('en', 'tgt') if branch in needed or is_there(branch))

    def captions(self, split, weights=None):
        """The captions of each branch that a split needs, see `branches`.

        Returns:
            dict branch -> CaptionFile, all in the order and with the ids of the first.
        """
        files = {
            branch: read_captions(self.caption_path(split, branch))
            for branch in self.branches(split, weights)
        }
        first = next(iter(files.values()))
        return {branch: _in_order_of(first, file) for branch, file in files.items()}

    def check_english(self):
        """Raise DataError unless the languages have the same English training captions."""
        parts = self.in_languages().values()
        paths = list(dict.fromkeys(part.caption_path('train', 'en') for part in parts))
        if len(paths) > 1:
            raise DataError(
                f'the languages {self.config.data.lang} have different English training captions,'
                f' {paths[0]} and {paths[1]}: one model needs the same ones, translated into each'
                ' language; set data.captions.train.en to one file'
            )

    def translations(self, en):
        """The other branches of the training split, for English captions that languages share.

        Args:
            en: CaptionFile of the English captions, as another language has them.
        Returns:
            dict branch -> CaptionFile, all in the order and with the ids of `en`.
        Raises:
            DataError: this language has English captions of its own, or captions of `en` have no
                translation.
        """
        self.check_english()
        branches = [branch for branch in self.branches('train') if branch != 'en']
        files = {branch: read_captions(self.caption_path('train', branch)) for branch in branches}
        return {branch: _in_order_of(en, file) for branch, file in files.items()}

    # ----------------------------------------------------------------------------- visual sources

    def source(self, split, captions, preprocessing):
        """The visual source of a split.

        Args:
            captions: CaptionFile, which names the images where there is no id list.
            preprocessing: of images, a basic.images.Preprocessing.
        Raises:
            DataError: features of another width than the config says, or than another split has.
        """
        source = self._open_source(split, captions, preprocessing)
        wanted = self.config.visual.feature_dim
        if source.dim and wanted not in (0, source.dim):
            raise DataError(
                f'visual.feature_dim={wanted}, but the features in {source.where} are'
                f' {source.dim} wide; name the right visual.feature, or leave visual.feature_dim'
                ' at 0'
            )
        self._sources.append(source)
        first = self._sources[0]
        if source.dim != first.dim:
            raise DataError(
                f'{source.where} holds features {source.dim} wide, but {first.where} '
                f'{first.dim}: the splits need one feature; fetch or extract both again'
            )
        return source

    def feature_dim(self, split):
        """Width of a split's features, from a look at their size; 0 for images."""
        files = self.visual_files(split)
        if 'frames' in files:
            return BigFile(files['frames']).dim
        if 'pooled' in files:
            return PooledSource(files['pooled'], files['ids']).dim
        return 0

    def _open_source(self, split, captions, preprocessing):
        visual, paths = self.config.visual, self.visual_files(split)
        if visual.kind == 'frames':
            folder = paths['frames']
            if folder not in self._frames:
                self._frames[folder] = FrameSource(folder, max_frames=visual.max_frames)
            return self._frames[folder]
        id_list = paths.get('ids')
        if visual.kind == 'pooled':
            return PooledSource(paths['pooled'], id_list)
        return ImageSource(
            self._item_template(self.config.data.images, split),
            read_ids(id_list) if id_list else captions.visual_ids,
            preprocessing=preprocessing,
            where=id_list or captions.path,
        )

    def media(self, split):
        """What to look at for the visual items of a split: basic.thumbnails.Media, or None."""
        template = self.config.data.media or self.config.data.images
        if '{id}' not in template:
            return None
        path = self._item_template(template, split)
        return Media(path) if Path(path.partition('{id}')[0] + 'x').parent.is_dir() else None

    def _item_template(self, template, split):
        """The path of items, {id} in it: the first whose folder exists, else the first."""
        templates = [str(path) for path in self.paths(template, split)]
        for template in templates:
            if Path(template.partition('{id}')[0] + 'x').parent.is_dir():
                return template
        return templates[0]


def _folder_name(root, spellings):
    """The name of the collection's folder in ROOTPATH: of these spellings, or in another case."""
    if not root.is_dir():
        raise DataError(
            f'ROOTPATH {root} is not a folder; {root.parent} has: {listing(root.parent)}'
        )
    exact = [name for name in spellings if (root / name).is_dir()]
    found = exact or _in_any_case(root, spellings)
    if not found:
        raise DataError(
            f'ROOTPATH {root} has no folder {" or ".join(spellings)}; it has: {listing(root)}.'
            ' ROOTPATH is the folder that holds the collections; data.collection names one of'
            ' them'
        )
    return found[0]


def _in_any_case(root, spellings):
    """The folders of `root` named as one of the spellings, whatever the case; in their order."""
    wanted = [name.casefold() for name in spellings]
    folders = [path.name for path in root.iterdir() if path.is_dir()]
    found = [name for name in folders if name.casefold() in wanted]
    return sorted(found, key=lambda name: (wanted.index(name.casefold()), name))


def _in_order_of(first, file):
    """A CaptionFile in the order, and with the ids, of the first branch's."""
    texts = [file.texts[row] for row in join_captions(first, file)]
    return CaptionFile(file.path, first.ids, texts)


def scored_branches(weights):
    """The branches that scores at these shares w read: not en at w = 0, not tgt at w = 1."""
    needed = {'en': any(w > 0 for w in weights), 'tgt': any(w < 1 for w in weights)}
    return tuple(branch for branch, need in needed.items() if need)


def validation_weights(config):
    """The shares w of validation, falling: that which selects the model, those to choose w from."""
    grid = config.eval.weight_grid or config.eval.weights
    return sorted({*map(float, grid), float(config.train.val_weight)}, reverse=True)
