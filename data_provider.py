"""Data: visual sources, the training pairs and the evaluation splits, in batches.

N pairs or items, L tokens, F frames, D width of a feature, S side of an image, V visual items, Q captions.
Masks are (N, L) or (N, F) float32, 1 on real positions.

A visual source has `ids` (list of str), `dim` (0 for images), `where` (its files, for messages), `id in source` and
`batch(ids)` -> (visual, mask or None). A new kind of feature is one such class and a branch of `Collection.source`.
"""
import logging
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Sampler

from basic import runtime
from basic.bigfile import BigFile, read_ids
from basic.caption import PackedTokens, Tokens, clean_english
from basic.collection import CollectionFiles
from basic.errors import DataError, first_five

log = logging.getLogger(__name__)

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)       # of CLIP's own preprocessing
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass
class Batch:
    """N caption pairs with their visual items.

    Attributes:
        visual: frames (N, F, D), features (N, D) or pixels (N, 3, S, S), float32.
        visual_mask: (N, F) float32 for frames, else None.
        en, tgt, back: the branches' tokens, each padded to its own longest caption; `back` is None where no loss
            term needs it.
        index: (N,) int64, the captions' rows in the split's `en` file.
    """
    visual: torch.Tensor
    visual_mask: torch.Tensor | None
    en: Tokens
    tgt: Tokens
    back: Tokens | None
    index: torch.Tensor

    def to(self, device, non_blocking=False):
        """The batch on `device`."""
        return self._each(lambda part: part.to(device, non_blocking=non_blocking))

    def pin_memory(self):
        """The batch in page-locked memory; the loader calls this where the model is on a GPU."""
        return self._each(lambda part: part.pin_memory())

    def _each(self, function):
        parts = (getattr(self, field.name) for field in fields(self))
        return Batch(*(None if part is None else function(part) for part in parts))


class Collection(CollectionFiles):
    """The files of one collection, and the visual sources that they hold."""

    def __init__(self, config, rootpath):
        super().__init__(config, rootpath)
        self._opened = {}                # frame features, which the splits share

    def source(self, split, captions, image_size):
        """The visual source of a split.

        Args:
            captions: CaptionFile, whose visual items are taken where a collection of images has no id list.
            image_size: S.
        """
        data, visual = self.config.data, self.config.visual
        if visual.kind == 'frames':
            folder = self.find([data.frames], split, 'frame features', 'visual.feature, data.frames')
            if folder not in self._opened:
                self._opened[folder] = FrameSource(folder, max_frames=visual.max_frames)
            source = self._opened[folder]
        else:
            lists = list(data.ids[split])
            list_path = self.find(lists, split, 'id list', f'data.ids.{split}') if lists else None
            if visual.kind == 'pooled':
                features = self.find(list(data.pooled[split]), split, 'image features',
                                     f'visual.feature, data.pooled.{split}')
                source = PooledSource(features, list_path)
            else:
                templates = [str(path) for path in self.paths(data.images, split)]
                template = next((t for t in templates if Path(t.partition('{id}')[0] + 'x').parent.is_dir()),
                                templates[0])
                source = ImageSource(template, read_ids(list_path) if list_path else captions.visual_ids,
                                     image_size=image_size, where=list_path or captions.path)
        if source.dim and visual.feature_dim not in (0, source.dim):
            raise DataError(f'visual.feature_dim={visual.feature_dim}, but the features in {source.where} are '
                            f'{source.dim} wide; name the right visual.feature, or leave visual.feature_dim at 0')
        return source


class FeatureSource:
    """What features on disk have in common: they are mapped, never copied to a worker, and checked as they are read."""

    def __init__(self, ids):
        self.ids = ids
        self._row = {name: row for row, name in enumerate(ids)}
        self.features = self._map()      # (rows, D)
        self.dim = self.features.shape[1]

    def __contains__(self, name):
        return name in self._row

    def __getstate__(self):              # a worker that is not forked maps the file again
        return {key: value for key, value in self.__dict__.items() if key != 'features'}

    def __setstate__(self, state):
        self.__dict__.update(state)
        self.features = self._map()

    def _checked(self, visual, ids):
        """`visual` (N, ..., D) itself; DataError if it holds NaN or infinity."""
        with np.errstate(invalid='ignore', over='ignore'):
            suspicious = not np.isfinite(visual.sum(dtype=np.float32))  # far cheaper than looking at each number
        if suspicious:
            bad = [name for name, item in zip(ids, visual) if not np.isfinite(item).all()]
            if bad:
                raise DataError(f'{self.where}: NaN or infinite features: {first_five(bad)}; extract these again '
                                '(python -m util.check_data finds all of them)')
        return torch.from_numpy(visual)


class FrameSource(FeatureSource):
    """Frame features in a BigFile folder: batch(ids) -> (N, F, D) zero-padded, (N, F).

    Args:
        folder: BigFile folder, see basic.bigfile.
        max_frames: videos are cut to their first frames.
    Attributes:
        counts: (videos,) int64, frames of each video before cutting.
    Raises:
        DataError: the folder's files are wrong, or name frames that are not there.
    """

    def __init__(self, folder, *, max_frames):
        self.where, self.max_frames, self._file = folder, max_frames, BigFile(folder)
        ids, self.counts, self._rows = self._file.read_videos()
        self._starts = np.cumsum(self.counts) - self.counts
        super().__init__(ids)

    def _map(self):
        return self._file.map()

    def names(self, rows):
        """The frame ids of rows of the features."""
        ids = self._file.read_ids()
        return [ids[row] for row in rows]

    def batch(self, ids):
        videos = np.array([self._row[name] for name in ids])
        counts = np.minimum(self.counts[videos], self.max_frames)
        visual = np.zeros((len(ids), counts.max(), self.dim), dtype=np.float32)
        for out, start, count in zip(visual, self._starts[videos], counts):
            # mode: the rows were checked when the file was opened, and without it `take` copies by way of a buffer
            np.take(self.features, self._rows[start:start + count], axis=0, out=out[:count], mode='clip')
        mask = np.arange(counts.max()) < counts[:, None]
        return self._checked(visual, ids), torch.from_numpy(mask.astype(np.float32))


class PooledSource(FeatureSource):
    """One feature an image, in a .npy file: batch(ids) -> (N, D), None.

    Args:
        path: .npy of (rows, D) floats.
        ids_path: id list, row i of the .npy belonging to line i.
    Raises:
        DataError: not such files, or of different lengths.
    """

    def __init__(self, path, ids_path):
        self.where = path
        super().__init__(read_ids(ids_path))
        if len(self.features) != len(self.ids):
            raise DataError(f'{path} has {len(self.features):,} rows, but {ids_path} {len(self.ids):,} ids; row i of '
                            'the first belongs to line i of the second: fetch or extract both for the same images')

    def _map(self):
        try:
            array = np.load(self.where, mmap_mode='r', allow_pickle=False)
        except (ValueError, EOFError, OSError) as error:
            raise DataError(f'{self.where} is not a .npy file of numbers: {error}') from None
        if array.ndim != 2 or array.dtype.kind != 'f':
            raise DataError(f'{self.where}: expected floats of shape (images, width), found {array.dtype} of shape '
                            f'{array.shape}')
        return np.asarray(array)

    def names(self, rows):
        """The image ids of rows of the features."""
        return [self.ids[row] for row in rows]

    def batch(self, ids):
        rows = [self._row[name] for name in ids]
        return self._checked(self.features[rows].astype(np.float32, copy=False), ids), None


class ImageSource:
    """Raw images through CLIP's preprocessing: batch(ids) -> (N, 3, S, S), None.

    Args:
        template: path, with {id} for the image's id.
        ids: the split's images, in order.
        image_size: S.
        where: the file that the ids come from, for messages.
    """

    dim = 0

    def __init__(self, template, ids, *, image_size, where):
        runtime.declare_missing_torchvision_ops()
        from torchvision import transforms  # only images need torchvision
        self.template, self.ids, self.where, self._known = template, ids, where, set(ids)
        # CLIP's own order: the resize comes before the conversion to RGB.
        self._shape = transforms.Compose([
            transforms.Resize(image_size, interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(image_size)])
        self._mean, self._std = (torch.tensor(values)[:, None, None] for values in (CLIP_MEAN, CLIP_STD))

    def __contains__(self, name):
        return name in self._known

    def path(self, name):
        """Where an image lies."""
        return Path(self.template.replace('{id}', name))

    def batch(self, ids):
        pixels = torch.stack([self.load(name) for name in ids]).float()       # (N, 3, S, S)
        return pixels.div_(255).sub_(self._mean).div_(self._std), None

    def load(self, name):
        """One image (3, S, S) uint8; DataError if it is missing or cannot be decoded."""
        path = self.path(name)
        try:
            with Image.open(path) as image:
                return torch.from_numpy(np.array(self._shape(image).convert('RGB'))).permute(2, 0, 1)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise DataError(f'{path}: cannot be read as an image ({error}); fetch it again') from None

    def missing(self, ids):
        """The paths of those images that do not exist."""
        paths = [self.path(name) for name in ids]
        # One listing a folder: a look at each of 100,000 files takes minutes on a network disk.
        there = {folder: {path.name for path in folder.iterdir()} if folder.is_dir() else ()
                 for folder in {path.parent for path in paths}}
        return [path for path in paths if path.name not in there[path.parent]]


def check_known(source, captions):
    """Raise DataError if the source lacks visual items that a CaptionFile names."""
    unknown = [name for name in captions.visual_ids if name not in source]
    if unknown:
        raise DataError(f'{len(unknown):,} of the {len(captions.visual_ids):,} visual items of {captions.path} are not '
                        f'in {source.where}, or have no frames there: {first_five(unknown)}; add them, or remove '
                        'their captions from every branch')


def check_images(source, visual_ids):
    """Raise DataError if images of these ids do not exist; features have no images."""
    missing = source.missing(visual_ids) if isinstance(source, ImageSource) else []
    if missing:
        raise DataError(f'{len(missing):,} of the {len(visual_ids):,} images that {source.where} names do not exist: '
                        f'{first_five(missing)}; put them there, or set data.images to where they are')


class PairDataset(Dataset):
    """Training pairs. An index is a whole batch: the rows (N,) of its captions.

    Args:
        source: visual source.
        visual_ids: the visual items; `owner` (captions,) int64 says which one each caption belongs to.
        tokens: dict en, tgt[, back] -> PackedTokens.
    """

    def __init__(self, source, *, visual_ids, owner, tokens):
        self.source, self.visual_ids, self.owner, self.tokens = source, visual_ids, owner, tokens

    def __len__(self):
        return len(self.owner)

    def __getitem__(self, rows):
        rows = np.asarray(rows)
        visual, mask = self.source.batch([self.visual_ids[i] for i in self.owner[rows]])
        tokens = {role: packed.padded(rows) for role, packed in self.tokens.items()}
        return Batch(visual=visual, visual_mask=mask, back=tokens.pop('back', None), index=torch.from_numpy(rows),
                     **tokens)


class EpochBatches(Sampler):
    """The batches of an epoch, each an array of rows, in an order that depends on (seed, epoch) alone.

    The last batch may be short, but never of one pair: batch norm and the triplet loss need two. That pair joins the
    batch before it.
    """

    def __init__(self, size, *, batch_size, seed):
        self.size, self.seed, self.epoch = size, seed, 0
        self.cuts = list(range(batch_size, size - 1, batch_size))

    def __len__(self):
        return len(self.cuts) + 1

    def __iter__(self):
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.size)
        return iter(np.split(order, self.cuts))


class VisualBatches(Dataset):
    """Visual items in their order. An index is the number of a batch."""

    def __init__(self, source, ids, *, batch_size):
        self.source, self.ids, self.batch_size = source, ids, batch_size

    def __len__(self):
        return -(-len(self.ids) // self.batch_size)

    def __getitem__(self, number):
        return self.source.batch(self.ids[number * self.batch_size:(number + 1) * self.batch_size])


class CaptionBatches:
    """(en Tokens, tgt Tokens) of a split, batch by batch in the order of the `en` file; may be iterated repeatedly."""

    def __init__(self, tokens, *, batch_size):
        self.tokens, self.batch_size = tokens, batch_size

    def __len__(self):
        return -(-len(self.tokens['en']) // self.batch_size)

    def __iter__(self):
        for start in range(0, len(self.tokens['en']), self.batch_size):
            rows = np.arange(start, min(start + self.batch_size, len(self.tokens['en'])))
            yield self.tokens['en'].padded(rows), self.tokens['tgt'].padded(rows)


class Loader:
    """Iterates a dataset whose indices are whole batches; the batch is put together in a worker process.

    Args:
        dataset: the dataset.
        sampler: yields its indices; None: 0, 1, 2, ...
        workers: processes; 0: this one. What comes out does not depend on it.
        pin_memory: for a model on a GPU.
        keep_workers: from one iteration to the next.
    Raises:
        DataError: from the iteration, as the dataset raised it.
    """

    def __init__(self, dataset, *, workers, pin_memory, sampler=None, keep_workers=False):
        # The generator is the loader's own: drawing its seed must not move the random numbers of the training.
        self._loader = DataLoader(_Guarded(dataset), batch_size=None, sampler=sampler, collate_fn=_as_it_is,
                                  num_workers=workers, pin_memory=pin_memory, generator=torch.Generator(),
                                  persistent_workers=keep_workers and workers > 0)

    def __len__(self):
        return len(self._loader)

    def __iter__(self):
        for item in self._loader:
            if isinstance(item, DataError):
                raise item
            yield item


class _Guarded(Dataset):
    """Hands a DataError over as an item: raised in a worker, it would arrive as the text of a traceback."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        try:
            return self.dataset[index]
        except DataError as error:
            return error


def _as_it_is(batch):
    return batch


class TrainLoader(Loader):
    """The training batches: an iterable of Batch.

    Attributes:
        dataset_size: caption pairs.
        feature_dim: D, 0 for images.
    """

    def __init__(self, dataset, *, batch_size, seed, workers, pin_memory):
        self.dataset_size, self.feature_dim = len(dataset), dataset.source.dim
        self._batches = EpochBatches(len(dataset), batch_size=batch_size, seed=seed)
        super().__init__(dataset, sampler=self._batches, workers=workers, pin_memory=pin_memory, keep_workers=True)

    def set_epoch(self, epoch):
        """Shuffle as epoch `epoch` (a whole number from 0) does; call it before each epoch's iteration."""
        self._batches.epoch = epoch


@dataclass
class EvalSet:
    """A split to score.

    Attributes:
        split: its name.
        captions: iterable of (en Tokens, tgt Tokens), in the order of the `en` file.
        visuals: iterable of (visual, mask or None), as in Batch, in the order of `visual_ids`.
        owner: (Q,) int64, the visual item (index into `visual_ids`) of each caption.
        caption_ids: '<visual id>#<n>' of each caption.
        visual_ids: videos in order of first appearance in the `en` file; images in the order of the id list, those
            without captions included.
        feature_dim: D, 0 for images.
    """
    split: str
    captions: CaptionBatches
    visuals: Loader
    owner: np.ndarray
    caption_ids: list[str]
    visual_ids: list[str]
    feature_dim: int


def visual_order(config, split, source, captions):
    """The ids of a split's visual items, in the order in which they are encoded and scored; see EvalSet."""
    by_list = split != 'train' and config.visual.kind != 'frames'
    return list(source.ids) if by_list else captions.visual_ids


def pack_branch(config, role, file, tokenizer):
    """Tokenise the captions of a branch (en, tgt, back) as the config says -> PackedTokens."""
    clean = role == 'en' and config.text.clean_en
    return PackedTokens([clean_english(text) for text in file.texts] if clean else file.texts, tokenizer,
                        max_tokens=config.text.positions)


def build_loaders(config, rootpath, tokenizer, splits=('train', 'val'), image_size=224, device=None):
    """Open, join and tokenise the splits.

    Args:
        config: basic.config.Config.
        rootpath: folder that holds the collection's folder.
        tokenizer: from basic.caption.load_tokenizer.
        splits: of train, val, test.
        image_size: S, the side that CLIP's image tower expects.
        device: where the model is; batches are put into pinned memory if that is a GPU.
    Returns:
        dict split -> TrainLoader (train) or EvalSet.
    Raises:
        DataError: something in the data is missing, malformed or does not fit together.
    """
    collection, loaders = Collection(config, rootpath), {}
    pin_memory = device is not None and torch.device(device).type == 'cuda'
    for split in splits:
        files = collection.captions(split)
        first = files['en']
        source = collection.source(split, first, image_size)
        visual_ids = visual_order(config, split, source, first)
        check_known(source, first)
        check_images(source, visual_ids)
        number = {name: i for i, name in enumerate(visual_ids)}
        owner = np.array([number[visual] for visual, _ in first.ids], dtype=np.int64)
        tokens = {role: pack_branch(config, role, file, tokenizer) for role, file in files.items()}
        for role, packed in tokens.items():
            if packed.cut:
                log.warning('%s of %s captions of %s are longer than %d tokens and were cut', f'{packed.cut:,}',
                            f'{len(packed):,}', files[role].path, config.text.positions)
        if split == 'train':
            if len(first) < 2:
                raise DataError(f'{first.path} has one caption; training needs at least two: the other pairs of a '
                                'batch are the negatives')
            dataset = PairDataset(source, visual_ids=visual_ids, owner=owner, tokens=tokens)
            loaders[split] = TrainLoader(dataset, batch_size=config.train.batch_size, seed=config.train.seed,
                                         workers=config.train.workers, pin_memory=pin_memory)
        else:
            batch_size = config.eval.val_batch_size if split == 'val' else config.eval.test_batch_size
            visuals = VisualBatches(source, visual_ids, batch_size=batch_size)
            loaders[split] = EvalSet(
                split=split, captions=CaptionBatches(tokens, batch_size=batch_size), owner=owner,
                visuals=Loader(visuals, workers=config.train.workers, pin_memory=pin_memory),
                caption_ids=[f'{visual}#{n}' for visual, n in first.ids], visual_ids=visual_ids,
                feature_dim=source.dim)
    return loaders
