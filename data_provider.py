"""Data: the training pairs and the evaluation splits, joined, tokenised and put into batches.

N pairs or items, L tokens, F frames, D width of a feature, S side of an image, P width of CLIP's
embeddings, V visual items, Q captions. Masks are (N, L) or (N, F) float32, 1 at real positions.

A visual source has `ids` (list of str), `dim` (0 for images), `where` (its files, for messages),
`id in source` and `batch(ids, own)` -> (visual, mask or None): the items ids[own], padded as a
batch of all `ids` is. A new kind of feature is one such class in basic/features.py and a branch of
`Collection.source`.

Several processes share the work: a training batch is cut into their shares, an evaluation split is
dealt out by whole batches, so that the batches are those of one process.
"""

import hashlib
import logging
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler
from tqdm import tqdm

from basic import distributed
from basic.cache import cached_array
from basic.caption import CaptionFile, Tokens, pack_texts
from basic.collection import Collection
from basic.config import reads
from basic.errors import DataError, first_five
from basic.ids import did_you_mean
from basic.images import CLIP, StoredImages, absent_images, check_images
from basic.languages import languages
from basic.loader import Loader
from basic.pretrained.encoders import lower_layers, weights_fingerprint
from basic.runtime import cpu_count
from basic.thumbnails import Media

log = logging.getLogger(__name__)


# ---------------------------------------------------------------------------------------- training


@dataclass
class Batch:
    """A process's share of a training batch: N caption pairs with their visual items.

    Each tensor is padded as the whole batch is.

    Attributes:
        visual: frames (N, F, D) or features (N, D), float32, pixels (N, 3, S, S) uint8, or CLIP's
            embeddings (N, P).
        visual_mask: (N, F) float32 for frames, else None.
        en, tgt, back: the branches' tokens, each padded to its own longest caption; `tgt` and
            `back` are None where no loss term needs them.
        index: (N,) int64, the pairs' numbers, in the order of the split's `en` file.
        total: pairs of the whole batch, in all processes; None: this is the whole batch, and it
            becomes N.
        visual_of: (N,) int64, the visual item of each pair, as a number; None without
            `loss.mask_same_visual`.
    """

    visual: torch.Tensor
    visual_mask: torch.Tensor | None
    en: Tokens
    tgt: Tokens | None
    back: Tokens | None
    index: torch.Tensor
    total: int | None = None
    visual_of: torch.Tensor | None = None

    def __post_init__(self):
        if self.total is None:
            self.total = len(self.index)

    def to(self, device, non_blocking=False):
        """The batch on `device`."""
        return self.each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self):
        """The batch in page-locked memory; the loader calls this where the model is on a GPU."""
        return self.each(torch.Tensor.pin_memory)

    def split(self, size):
        """Views of at most `size` rows each, padded as before; an empty batch has one, empty."""
        starts = range(0, max(1, len(self.index)), size)
        return [self.each(lambda tensor: tensor[start : start + size]) for start in starts]

    def stand_in(self):
        """One row of ones in the same form, which a model can read, for a process without rows."""
        return self.each(lambda tensor: tensor.new_ones(1, *tensor.shape[1:]))

    def each(self, function):
        """The batch with function(tensor) for each of its tensors."""
        changed = {}
        for field in fields(self):
            part = getattr(self, field.name)
            if isinstance(part, torch.Tensor):
                changed[field.name] = function(part)
            elif isinstance(part, Tokens):
                changed[field.name] = part.each(function)
        return replace(self, **changed)


class PairDataset(Dataset):
    """Training pairs. An index is the rows of a whole batch, an item this process's share of it.

    Row i + captions * (k + languages * b) is pair i in language k. With b = 1 its back-translation
    is in place of its English caption (`train.back_as_en`).

    Args:
        source: visual source.
        visual_ids: the visual items.
        visual_of: (captions,) int64, which of them each caption belongs to.
        tokens: dict en[, tgt][, back] -> PackedTokens. `tgt` and `back` hold the captions of each
            language after those of the one before; `en` the English captions and then, for
            `train.back_as_en`, all back-translations.
        languages: how many there are.
        number, of: this process's number and how many there are.
        with_visual_of: batches have `visual_of`, for a loss that asks.
    """

    def __init__(
        self,
        source,
        *,
        visual_ids,
        visual_of,
        tokens,
        languages=1,
        number=0,
        of=1,
        with_visual_of=False,
    ):
        self.source, self.tokens, self.languages = source, tokens, languages
        self.visual_ids, self.visual_of = visual_ids, visual_of
        self.number, self.of = number, of
        self.with_visual_of = with_visual_of

    def __len__(self):
        return len(self.visual_of)

    def __getitem__(self, rows):
        drawn = np.asarray(rows)  # (N,) of the whole batch
        rows = drawn % len(self)
        translated = drawn % (len(self) * self.languages)
        en_rows = np.where(drawn == translated, rows, len(self) + translated)
        own = distributed.share(len(rows), self.number, self.of)  # slice: this process's part of it
        visual, mask = self.source.batch([self.visual_ids[i] for i in self.visual_of[rows]], own)
        tokens = {
            branch: packed.padded(en_rows if branch == 'en' else translated, own)
            for branch, packed in self.tokens.items()
        }
        return Batch(
            visual=visual,
            visual_mask=mask,
            en=tokens['en'],
            tgt=tokens.get('tgt'),
            back=tokens.get('back'),
            index=torch.from_numpy(rows[own]),
            total=len(rows),
            visual_of=torch.from_numpy(self.visual_of[rows[own]]) if self.with_visual_of else None,
        )


class EpochBatches(Sampler):
    """The batches of an epoch, each an array of rows; their order depends on (seed, epoch) alone.

    The last batch may be short, but never of one pair: batch norm and the triplet loss need two.
    That pair joins the batch before it. For the rows see PairDataset.

    Args:
        back_as_en: share of pairs whose English caption is replaced.
        languages: how many; one of them is drawn for each pair.
        sampling: how, see `data.lang_sampling`.
    """

    def __init__(self, size, *, batch_size, seed, back_as_en=0.0, languages=1, sampling='balanced'):
        self.size, self.seed, self.epoch, self.back_as_en = size, seed, 0, back_as_en
        self.languages, self.sampling = languages, sampling
        self.cuts = list(range(batch_size, size - 1, batch_size))

    def __len__(self):
        return len(self.cuts) + 1

    def __iter__(self):
        random = np.random.default_rng((self.seed, self.epoch))
        order = random.permutation(self.size)
        rows = order.copy()
        if self.back_as_en:
            replaced = random.random(self.size) < self.back_as_en
            rows += self.size * self.languages * replaced
        rows += self.size * self.language_of(order, random)
        return iter(np.split(rows, self.cuts))

    def language_of(self, pairs, random):
        """The number of the language that each of the pairs has in this epoch, like `pairs`.

        Args:
            random: NumPy's generator of the epoch.
        """
        if self.languages == 1:
            return np.zeros_like(pairs)
        if self.sampling == 'random':
            return random.integers(self.languages, size=len(pairs))
        # In as many epochs as there are languages, a pair has each of them once.
        cycle = -(-self.epoch // self.languages)  # epochs count from 1
        first = np.random.default_rng((self.seed, cycle, self.languages)).permutation(
            np.arange(self.size) % self.languages
        )  # (size,), each language equally often
        return (first[pairs] + self.epoch) % self.languages


class TrainLoader(Loader):
    """The training batches: an iterable of Batch, of which several processes get their shares.

    Attributes:
        dataset_size: caption pairs.
        feature_dim: D, 0 for images.
        longest: tokens of the longest caption.
        left_out: LeftOut, or None.
    """

    def __init__(
        self,
        dataset,
        *,
        batch_size,
        seed,
        workers,
        pin_memory,
        left_out=None,
        back_as_en=0.0,
        sampling='balanced',
    ):
        self.left_out = left_out
        self.dataset_size, self.feature_dim = len(dataset), dataset.source.dim
        self.longest = max(packed.longest for packed in dataset.tokens.values())
        super().__init__(
            dataset,
            sampler=EpochBatches(
                len(dataset),
                batch_size=batch_size,
                seed=seed,
                back_as_en=back_as_en,
                languages=dataset.languages,
                sampling=sampling,
            ),
            workers=workers,
            processes=dataset.source.in_processes,
            pin_memory=pin_memory,
            keep_workers=True,
        )

    def set_epoch(self, epoch):
        """Shuffle as epoch `epoch` (a whole number from 0) does; call it before each epoch."""
        self.indices.epoch = epoch


# -------------------------------------------------------------------------------------- evaluation


class VisualBatches(Dataset):
    """Visual items in their order. An index is a batch's number, an item (visual, mask or None)."""

    def __init__(self, source, ids, *, batch_size):
        self.source, self.ids, self.batch_size = source, ids, batch_size

    def __len__(self):
        return -(-len(self.ids) // self.batch_size)

    def __getitem__(self, number):
        start = number * self.batch_size
        return self.source.batch(self.ids[start : start + self.batch_size])


class CaptionBatches(Dataset):
    """Captions of a split. An index is a batch's number, an item (en Tokens, tgt Tokens).

    A branch that is not needed is None.

    Args:
        tokens: dict of en, tgt, or one of them -> PackedTokens.
        order: dict branch -> (Q,) int64, the rows of that branch in the order in which they come;
            one that is not in it comes as it is.
    """

    def __init__(self, tokens, *, order, batch_size):
        self.tokens, self.batch_size = tokens, batch_size
        self.order = {
            branch: order.get(branch, np.arange(len(packed))) for branch, packed in tokens.items()
        }

    def __len__(self):
        return -(-len(next(iter(self.tokens.values()))) // self.batch_size)

    def __getitem__(self, number):
        start = number * self.batch_size
        some = slice(start, start + self.batch_size)
        return tuple(
            self.tokens[branch].padded(self.order[branch][some]) if branch in self.tokens else None
            for branch in ('en', 'tgt')
        )


@dataclass
class EvalSet:
    """A split to score, in one language.

    With several processes, each iterates its own batches, every `of`-th one, the first being its
    own number; `distributed.gather_batches` brings them together.

    Attributes:
        split: its name.
        captions: Loader of (en Tokens, tgt Tokens); one that is not in `branches` is None.
        visuals: Loader of (visual, mask or None), as in Batch. `indices` of both are the batches'
            numbers.
        order: dict visual, en, tgt -> (V,) or (Q,) int64: which item comes in which place. A branch
            is not in it if its captions come in the order of the first branch's file, or the visual
            items in that of `visual_ids`.
        visual_of: (Q,) int64, the visual item (index into `visual_ids`) of each caption.
        caption_ids: '<visual id>#<n>' of each caption.
        visual_ids: videos in order of first appearance in the first branch's file; images in the
            order of the id list, those without captions included.
        feature_dim: D, 0 for images.
        branches: those of the captions, `en` before `tgt`: see `basic.collection.scored_branches`.
        left_out: LeftOut, or None.
        texts: dict en, tgt -> list of str, the captions; pictures: basic.thumbnails.Media; to show,
            None where there are none.
        lang: the language.
    """

    split: str
    captions: Loader
    visuals: Loader
    order: dict[str, np.ndarray]
    visual_of: np.ndarray
    caption_ids: list[str]
    visual_ids: list[str]
    feature_dim: int
    branches: tuple[str, ...] = ('en', 'tgt')
    left_out: 'LeftOut | None' = None
    texts: dict[str, list[str]] | None = None
    pictures: Media | None = None
    lang: str = ''

    @property
    def longest(self):
        """Tokens of the longest caption."""
        return max(packed.longest for packed in self.captions.dataset.tokens.values())


def encoding_order(config, source, visual_ids, tokens):
    """EvalSet.order: the longest first, where an item does not depend on the padding beside it."""

    def longest_first(lengths):
        return np.argsort(-lengths, kind='stable')

    order = {}
    if config.text.pooling != 'padded_mean':
        order = {branch: longest_first(packed.lengths) for branch, packed in tokens.items()}
    if config.visual.kind == 'frames' and config.visual.pooling != 'padded_mean':
        order['visual'] = longest_first(source.lengths(visual_ids))
    return order


# --------------------------------------------------------------------- captions and visual items


class Split(NamedTuple):
    """A split's captions and visual items, joined by id."""

    files: dict[str, CaptionFile]  # branch -> its captions, all with the same ids
    source: Any  # visual source
    visual_ids: list[str]
    visual_of: np.ndarray  # (captions,) int64, index into visual_ids
    left_out: 'LeftOut | None'

    @property
    def caption_ids(self):
        """'<visual id>#<n>' of each caption."""
        return [f'{visual}#{n}' for visual, n in next(iter(self.files.values())).ids]


def join_split(collection, split, *, preprocessing, weights=None):
    """Open a split and join its captions with its visual items.

    Args:
        collection: basic.collection.Collection.
        split: train, val or test.
        preprocessing: of images.
        weights: shares w that it is scored with, see `Collection.branches`.
    Returns:
        Split.
    Raises:
        DataError: files are missing, captions do not join, visual items are not there.
    """
    files = collection.captions(split, weights)
    source = collection.source(split, next(iter(files.values())), preprocessing)
    files, visual_ids, left_out = present_items(collection.config, split, source, files)
    if left_out and distributed.is_main():
        log.warning('%s', left_out)
    row = {name: i for i, name in enumerate(visual_ids)}
    captions = next(iter(files.values()))
    visual_of = np.array([row[visual] for visual, _ in captions.ids], dtype=np.int64)
    return Split(files, source, visual_ids, visual_of, left_out)


def present_items(config, split, source, files):
    """A split's captions and visual items; missing ones are refused or left out (`data.missing`).

    Args:
        source: visual source.
        files: dict branch -> CaptionFile, all with the same ids.
    Returns:
        (files, visual ids in the order of `visual_order`, LeftOut or None: nothing is missing).
    Raises:
        DataError: items are missing and data.missing=error, or nothing is left.
    """
    captions = next(iter(files.values()))
    order = visual_order(config, split, source, captions)
    if config.data.missing == 'error':
        check_known(source, captions)
        check_images(source, order)
        return files, order, None

    named = dict.fromkeys([*order, *captions.visual_ids])
    unknown = dict.fromkeys(unknown_items(source, captions))
    absent = absent_images(source, [name for name in named if name not in unknown])
    gone = {**unknown, **dict.fromkeys(absent)}
    if not gone:
        return files, order, None

    rows = [row for row, (visual, _) in enumerate(captions.ids) if visual not in gone]
    if not rows:
        names = list(gone)
        raise DataError(
            f'all of the {len(captions.visual_ids):,} visual items of {captions.path} are '
            f'missing in {source.where}: {first_five(names)}'
            f'{did_you_mean(names, source.ids)}; data.missing=skip would leave nothing'
        )
    kept = {branch: file.take(rows) for branch, file in files.items()}
    order = visual_order(config, split, source, next(iter(kept.values())))
    left_out = LeftOut(
        split,
        captions=len(captions) - len(rows),
        of_captions=len(captions),
        visuals=len(gone),
        of_visuals=len(named),
        names=tuple(gone),
    )
    return kept, [name for name in order if name not in gone], left_out


def visual_order(config, split, source, captions):
    """A split's visual items in the order in which they are encoded and scored; see EvalSet."""
    by_list = split != 'train' and config.visual.kind != 'frames'
    return list(source.ids) if by_list else captions.visual_ids


def unknown_items(source, captions):
    """The visual items that a CaptionFile names and the source lacks, or has no frames of."""
    return [name for name in captions.visual_ids if name not in source]


def check_known(source, captions):
    """Raise DataError if the source lacks visual items that a CaptionFile names."""
    unknown = unknown_items(source, captions)
    if unknown:
        raise DataError(
            f'{len(unknown):,} of the {len(captions.visual_ids):,} visual items of {captions.path}'
            f' are not in {source.where}, or have no frames there:'
            f' {first_five(unknown)}{did_you_mean(unknown, source.ids)}; add them, or leave their'
            ' captions out with data.missing=skip'
        )


@dataclass(frozen=True)
class LeftOut:
    """What `data.missing=skip` left out of a split, each of how many; `names`: the visual items."""

    split: str
    captions: int
    of_captions: int
    visuals: int
    of_visuals: int
    names: tuple[str, ...]

    def __str__(self):
        text = (
            f"data.missing=skip: '{self.split}' is without {self.captions:,} of its "
            f'{self.of_captions:,} captions: {self.visuals:,} of its {self.of_visuals:,} visual '
            f'items are missing: {first_five(self.names)}'
        )
        if self.split != 'train':
            text += '; a result on fewer items cannot be compared with published ones'
        return text

    def counts(self):
        """The counts as plain data, for records."""
        return {
            'captions': self.captions,
            'of_captions': self.of_captions,
            'visuals': self.visuals,
            'of_visuals': self.of_visuals,
        }


# ------------------------------------------------------------------------------------- image cache


def store_images(source, ids, folder, *, split, config, device='cpu', encoder=None):
    """Images with what `compute.image_cache` names kept on disk; computed on a cache miss.

    Args:
        source: ImageSource.
        ids: the images to keep.
        folder: where caches lie. The name of a cache there tells its split, and by a hash its
            images and weights.
        device: where to compute embeddings.
        encoder: model.ClipEncoder, for embeddings.
    Returns:
        StoredImages.
    Raises:
        DataError: an image cannot be read, or the cache cannot be written.
    """
    kind = config.compute.image_cache
    made_from = {'kind': kind, **source.fingerprint(ids)}
    shape = source.preprocessing
    key = [kind, shape.image_size, *ids]
    key += [*shape.unlike_clip('resize', 'squeeze', 'resample').items()]
    if kind == 'embeddings':
        assert encoder is not None, 'the caller gives the encoder'
        made_from.update(weights_fingerprint(encoder.clip), tf32=config.compute.precision == 'tf32')
        numbers = encoder.preprocessing.unlike_clip('mean', 'std')
        made_from.update(numbers)
        key += [made_from['weights'], made_from['tf32'], *numbers.items()]
    name = f'{split}_{kind}_{hashlib.sha256(repr(key).encode()).hexdigest()[:12]}'

    def parts():
        loader = Loader(
            VisualBatches(source, ids, batch_size=128), workers=min(16, cpu_count()), processes=True
        )
        bar = tqdm(loader, desc=f'{kind} of {split}, once', leave=False, disable=None)
        pixels = (pixels for pixels, _ in bar)  # (128, 3, S, S) each
        if kind == 'embeddings':
            return embedded(pixels, encoder, device)
        return (part.numpy() for part in pixels)

    with cache_errors('image_cache', kind, folder, otherwise='none'):
        path = cached_array(folder / name, ids=ids, made_from=made_from, parts=parts)
    return StoredImages(path, ids, where=source.where, images=source)


@contextmanager
def cache_errors(option, value, folder, *, otherwise):
    """Raise DataError where a cache cannot be read or written; `otherwise`: the option without."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f'compute.{option}={value} keeps its cache in {folder}, which cannot be used: {error};'
            f' let it be written, or set compute.{option}={otherwise}'
        ) from None


def embedded(batches, encoder, device):
    """CLIP's embeddings of batches of pixels: yields (N, P) float32 arrays.

    The encoder is on `device` afterwards.
    """
    was_training = encoder.training
    encoder.to(device).eval()
    for pixels in batches:
        yield encoder.embed(pixels.to(device)).float().cpu().numpy()
    encoder.train(was_training)


# ----------------------------------------------------------------------------------- text cache


def lower_fingerprint(encoder, config):
    """What the outputs of a model.TextEncoder's frozen layers depend on beside the captions.

    Raises:
        ValueError: a kind of BERT that cannot be divided.
    """
    layers = encoder.frozen_layers
    return {
        'layers': layers,
        'tf32': config.compute.precision == 'tf32',
        **weights_fingerprint(lower_layers(encoder.bert, layers)),
    }


def store_lower_layers(tokens, folder, *, split, made_from, device, encoder):
    """Keep on disk what BERT's frozen lower layers make of a split's captions; see Tokens.lower.

    Args:
        tokens: dict branch -> PackedTokens, which get `lower`.
        folder, split, device: as for `store_images`.
        made_from: of `lower_fingerprint`.
        encoder: model.TextEncoder.
    Raises:
        DataError: the cache cannot be written, or the disk has too little room for it.
    """
    for branch, packed in tokens.items():
        captions = hashlib.sha256(packed.ids.tobytes() + packed.offsets.tobytes()).hexdigest()
        made = {**made_from, 'captions': captions}
        key = hashlib.sha256(repr(made).encode()).hexdigest()[:12]
        parts = partial(
            lower_outputs, packed, encoder, device, f'frozen layers, {split} {branch}, once'
        )
        with cache_errors('frozen_cache', 'true', folder, otherwise='false'):
            path = cached_array(
                folder / f'{split}_{branch}_layers_{key}',
                ids=[],
                made_from=made,
                parts=parts,
                rows=len(packed.ids),
                row_bytes=4 * encoder.bert.config.hidden_size,
            )
            packed.lower = np.load(path, mmap_mode='r')  # (tokens, D)


def lower_outputs(packed, encoder, device, label):
    """The frozen layers' outputs of packed captions: yields (tokens, D) float32 arrays, in order.

    The encoder is on `device` afterwards.
    """
    encoder.to(device)
    for start in tqdm(range(0, len(packed), 512), desc=label, leave=False, disable=None):
        captions = packed.padded(np.arange(start, min(start + 512, len(packed))))
        output = encoder.lower(captions.to(device)).cpu()  # (512, L, D)
        yield output[captions.mask.bool()].numpy()


# ----------------------------------------------------------------------------------------- loaders


def build_loaders(
    config,
    rootpath,
    tokenizer,
    splits=('train', 'val'),
    preprocessing=CLIP,
    device='cpu',
    model=None,
    number=None,
    of=None,
    weights=None,
):
    """Open, join and tokenise the splits.

    Args:
        config: basic.config.Config.
        rootpath: folder that holds the collection's folder.
        tokenizer: from basic.pretrained.tokenizer.load_tokenizer.
        splits: of train, val, test.
        preprocessing: of the images, as the model's image tower expects it.
        device: where the model is; batches are put into pinned memory if that is a GPU.
        model: model.NRCCR, for compute.image_cache=embeddings and compute.frozen_cache. The latter
            is for a training, which reads its captions again and again; a test reads them once.
        number, of: this process's number and how many there are; None: as basic.distributed has it.
        weights: shares w that val and test are scored with, which tell the branches needed; see
            `Collection.branches`.
    Returns:
        dict name -> TrainLoader (train) or EvalSet. The name is the split's; of several languages
        each has EvalSets of its own, named 'val de', 'val fr', ...: see `eval_sets`.
    Raises:
        DataError: something in the data is missing, malformed or does not fit together.
    """
    collection, loaders = Collection(config, rootpath), {}
    number = distributed.rank() if number is None else number
    of = distributed.size() if of is None else of
    share = {'number': number, 'of': of, 'pin_memory': torch.device(device).type == 'cuda'}

    def opened(split, part):
        """A split in one language, its images with what `compute.image_cache` keeps of them."""
        joined = join_split(part, split, preprocessing=preprocessing, weights=weights)
        pictures = part.media(split)
        if config.visual.kind == 'clip' and config.compute.image_cache != 'none':
            with distributed.patiently():  # one process makes the cache, and the others wait
                stored = store_images(
                    joined.source,
                    joined.visual_ids,
                    collection.folder / 'cache',
                    split=split,
                    config=config,
                    device=device,
                    encoder=model and model.visual_encoder,
                )
            joined = joined._replace(source=stored)
        return joined, pack_split(config, joined.files, tokenizer), pictures

    keeps = config.compute.frozen_cache and 'train' in splits
    lower = lower_fingerprint(model.text_encoder, config) if keeps else None

    def kept(split, tokens):
        """The same tokens, with what `compute.frozen_cache` keeps of them."""
        if lower:
            with distributed.patiently():
                store_lower_layers(
                    tokens,
                    collection.folder / 'cache',
                    split=split,
                    made_from=lower,
                    device=device,
                    encoder=model.text_encoder,
                )
        return tokens

    first, *others = collection.in_languages().values()
    for split in splits:
        if split == 'train':
            joined, tokens, _ = opened(split, first)
            for other in others:
                files = other.translations(joined.files['en'])
                for branch, packed in pack_split(config, files, tokenizer).items():
                    tokens[branch] = tokens[branch].followed_by(packed)
            if config.train.back_as_en > 0:
                tokens = with_back_as_en(config, tokens)
            loaders[split] = train_loader(config, joined, kept(split, tokens), **share)
            continue
        for part in (first, *others):
            joined, tokens, pictures = opened(split, part)
            tokens = kept(split, tokens)
            found = eval_set(config, split, joined, tokens, pictures, lang=part.lang, **share)
            share_visuals(found, eval_sets(loaders, split))
            loaders[f'{split} {part.lang}' if others else split] = found
    return loaders


def eval_sets(loaders, split):
    """The EvalSets of a split among those of `build_loaders`, one for each language."""
    sets = [each for each in loaders.values() if isinstance(each, EvalSet)]
    return [each for each in sets if each.split == split]


def share_visuals(eval_set, others):
    """Give an EvalSet the visuals of another language's where they are the same, so that they are
    encoded once, see `evaluation.encode_all`."""
    for other in others:
        source, its = (each.visuals.dataset.source for each in (eval_set, other))
        if other.visual_ids == eval_set.visual_ids and its.where == source.where:
            eval_set.visuals = other.visuals


def train_loader(config, joined, tokens, *, number, of, pin_memory):
    """The TrainLoader of a Split and its tokens, see PairDataset."""
    captions = joined.files['en']
    if len(captions) < 2:
        raise DataError(
            f'{captions.path} has one caption; training needs at least two: the other pairs of'
            ' a batch are the negatives'
        )
    dataset = PairDataset(
        joined.source,
        visual_ids=joined.visual_ids,
        visual_of=joined.visual_of,
        tokens=tokens,
        languages=len(languages(config)),
        number=number,
        of=of,
        with_visual_of=config.loss.mask_same_visual,
    )
    return TrainLoader(
        dataset,
        batch_size=config.train.batch_size,
        seed=config.train.seed,
        workers=config.train.workers,
        pin_memory=pin_memory,
        left_out=joined.left_out,
        back_as_en=config.train.back_as_en,
        sampling=config.data.lang_sampling,
    )


def with_back_as_en(config, tokens):
    """A training's tokens with the back-translations after the English captions, see PairDataset.

    As `back` they stay where a loss term reads them.
    """
    joined = {**tokens, 'en': tokens['en'].followed_by(tokens['back'])}
    if 'back' not in reads(config.loss.weights):
        del joined['back']
    return joined


def eval_set(config, split, joined, tokens, pictures, *, lang='', number, of, pin_memory):
    """The EvalSet of a Split and its tokens, dict branch -> PackedTokens; pictures: see there."""
    source, visual_ids = joined.source, joined.visual_ids
    size = config.eval.val_batch_size if split == 'val' else config.eval.test_batch_size
    order = encoding_order(config, source, visual_ids, tokens)
    captions = CaptionBatches(tokens, order=order, batch_size=size)
    in_order = [visual_ids[i] for i in order['visual']] if 'visual' in order else visual_ids
    visuals = VisualBatches(source, in_order, batch_size=size)

    def own_batches(batches, **options):
        return Loader(
            batches,
            sampler=range(number, len(batches), of),
            workers=config.train.workers,
            pin_memory=pin_memory,
            **options,
        )

    return EvalSet(
        split=split,
        order=order,
        visual_of=joined.visual_of,
        captions=own_batches(captions),
        visuals=own_batches(visuals, processes=source.in_processes),
        caption_ids=joined.caption_ids,
        visual_ids=visual_ids,
        feature_dim=source.dim,
        branches=tuple(joined.files),
        left_out=joined.left_out,
        texts={branch: file.texts for branch, file in joined.files.items()},
        pictures=pictures,
        lang=lang,
    )


def pack_split(config, files, tokenizer):
    """Tokenise all branches of a split, and tell of captions that were cut.

    Args:
        files: dict branch -> CaptionFile.
    Returns:
        dict branch -> PackedTokens.
    """
    tokens = {
        branch: pack_texts(config, branch, file.texts, tokenizer) for branch, file in files.items()
    }
    for branch, packed in tokens.items():
        if packed.cut and distributed.is_main():
            log.warning(
                '%s of %s captions of %s are longer than %d tokens and were cut',
                f'{packed.cut:,}',
                f'{len(packed):,}',
                files[branch].path,
                config.text.positions,
            )
    return tokens
