"""Data: visual sources, the training pairs and the evaluation splits, in batches.

N pairs or items, L tokens, F frames, D width of a feature, S side of an image, V visual items, Q
captions. Masks are (N, L) or (N, F) float32, 1 on real positions.

A visual source has `ids` (list of str), `dim` (0 for images), `where` (its files, for messages),
`id in source` and `batch(ids, own)` -> (visual, mask or None): the items ids[own], padded as a
batch of all `ids` is. A new kind of feature is one such class and a branch of `Collection.source`.

Several processes share the work: a training batch is cut into their shares, an evaluation split is
dealt out by whole batches, so that the batches are those of one process.
"""

import hashlib
import logging
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler
from tqdm import tqdm

from basic import distributed
from basic.cache import cached_array
from basic.caption import CaptionFile, PackedTokens, Tokens, clean_english
from basic.collection import Collection
from basic.errors import DataError, first_five
from basic.ids import did_you_mean
from basic.images import ImageSource, StoredImages, absent_images, check_images, tower_fingerprint
from basic.loader import Loader
from basic.runtime import cpu_count

log = logging.getLogger(__name__)


@dataclass
class Batch:
    """N caption pairs with their visual items: a process's share of a training batch, padded as the
    whole batch is.

    Attributes:
        visual: frames (N, F, D) or features (N, D), float32, pixels (N, 3, S, S) uint8, or CLIP's
            embeddings (N, P).
        visual_mask: (N, F) float32 for frames, else None.
        en, tgt, back: the branches' tokens, each padded to its own longest caption; `tgt` and
            `back` are None where no loss term needs them.
        index: (N,) int64, the pairs' numbers, in the order of the split's `en` file.
        total: pairs of the whole batch, in all processes; None: this is the whole batch, and it
            becomes N.
        owner: (N,) int64, the visual item of each pair, as a number; None without
            `loss.mask_same_visual`.
    """

    visual: torch.Tensor
    visual_mask: torch.Tensor | None
    en: Tokens
    tgt: Tokens | None
    back: Tokens | None
    index: torch.Tensor
    total: int | None = None
    owner: torch.Tensor | None = None

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
        """Views of at most `size` rows each, padded as before; one of no rows where the batch has
        none."""
        return [
            self.each(lambda tensor: tensor[start : start + size])
            for start in range(0, max(1, len(self.index)), size)
        ]

    def stand_in(self):
        """One row of ones in the same form, which a model can read, for a process that has no row
        of its own."""
        return self.each(lambda tensor: tensor.new_ones(1, *tensor.shape[1:]))

    def each(self, function):
        """The batch with function(tensor) for each of its tensors."""
        parts = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(
            self,
            **{
                name: function(part) if isinstance(part, torch.Tensor) else part.each(function)
                for name, part in parts.items()
                if isinstance(part, torch.Tensor | Tokens)
            },
        )


def store_images(source, ids, folder, *, split, config, device='cpu', encoder=None):
    """Images with what `compute.image_cache` names kept on disk; computed where it is not there, or
    is out of date.

    Args:
        source: ImageSource.
        ids: the images to keep.
        folder: where caches lie; the cache's name there tells the split, and images and weights by
            a hash.
        device: where to compute embeddings.
        encoder: model.ClipEncoder, for embeddings.
    Returns:
        StoredImages.
    Raises:
        DataError: an image cannot be read, or the cache cannot be written.
    """
    kind = config.compute.image_cache
    made_from = {'kind': kind, **source.fingerprint(ids)}
    key = [kind, source.image_size, *ids]
    if kind == 'embeddings':
        assert encoder is not None, 'the caller gives the encoder'
        made_from.update(tower_fingerprint(encoder.clip), tf32=config.compute.precision == 'tf32')
        key += [made_from['weights'], made_from['tf32']]
    name = f'{split}_{kind}_{hashlib.sha256(repr(key).encode()).hexdigest()[:12]}'
    workers = min(16, cpu_count())

    def parts():
        loader = Loader(VisualBatches(source, ids, batch_size=128), workers=workers, processes=True)
        pixels = (
            pixels
            for pixels, _ in tqdm(
                loader, desc=f'{kind} of {split}, once', leave=False, disable=None
            )
        )
        return (
            embedded(pixels, encoder, device)
            if kind == 'embeddings'
            else (part.numpy() for part in pixels)
        )

    try:
        path = cached_array(folder / name, ids=ids, made_from=made_from, parts=parts)
    except OSError as error:
        raise DataError(
            f"compute.image_cache={kind} keeps the images' {kind} in {folder}, which cannot be"
            f' used: {error}; let it be written, or set compute.image_cache=none'
        ) from None
    return StoredImages(path, ids, where=source.where, images=source)


def embedded(batches, encoder, device):
    """CLIP's embeddings of batches of pixels: yields (N, P) float32 arrays; the encoder is then on
    `device`."""
    was_training = encoder.training
    encoder.to(device).eval()
    for pixels in batches:
        yield encoder.embed(pixels.to(device)).float().cpu().numpy()
    encoder.train(was_training)


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


def present_items(config, split, source, files):
    """A split's captions and visual items; missing ones are refused or left out (`data.missing`).

    Args:
        source: visual source.
        files: dict role -> CaptionFile, all with the same ids.
    Returns:
        (files, visual ids in the order of `visual_order`, LeftOut or None: nothing is missing).
    Raises:
        DataError: items are missing and data.missing=error, or nothing is left.
    """
    first = next(iter(files.values()))
    if config.data.missing == 'error':
        check_known(source, first)
        visual_ids = visual_order(config, split, source, first)
        check_images(source, visual_ids)
        return files, visual_ids, None
    named = dict.fromkeys([*visual_order(config, split, source, first), *first.visual_ids])
    gone = dict.fromkeys(unknown_items(source, first))
    gone.update(dict.fromkeys(absent_images(source, [name for name in named if name not in gone])))
    if not gone:
        return files, visual_order(config, split, source, first), None
    rows = [row for row, (visual, _) in enumerate(first.ids) if visual not in gone]
    if not rows:
        names = list(gone)
        raise DataError(
            f'all of the {len(first.visual_ids):,} visual items of {first.path} are '
            f'missing in {source.where}: {first_five(names)}'
            f'{did_you_mean(names, source.ids)}; data.missing=skip would leave nothing'
        )
    ids = [first.ids[row] for row in rows]
    kept = {
        role: CaptionFile(file.path, ids, [file.texts[row] for row in rows])
        for role, file in files.items()
    }
    order = visual_order(config, split, source, next(iter(kept.values())))
    left_out = LeftOut(
        split,
        captions=len(first) - len(rows),
        of_captions=len(first),
        visuals=len(gone),
        of_visuals=len(named),
        names=tuple(gone),
    )
    return kept, [name for name in order if name not in gone], left_out


class PairDataset(Dataset):
    """Training pairs. An index is a whole batch, the rows of its captions; an item is this
    process's share of it.

    Args:
        source: visual source.
        visual_ids: the visual items; `owner` (captions,) int64 says which one each caption belongs
            to.
        tokens: dict en[, tgt][, back] -> PackedTokens.
        number, of: this process's number and how many there are.
        with_owner: batches tell which visual item each pair has, for a loss that asks.
    """

    def __init__(self, source, *, visual_ids, owner, tokens, number=0, of=1, with_owner=False):
        self.source, self.visual_ids, self.owner, self.tokens = source, visual_ids, owner, tokens
        self.number, self.of, self.with_owner = number, of, with_owner

    def __len__(self):
        return len(self.owner)

    def __getitem__(self, rows):
        rows = np.asarray(rows)
        own = distributed.share(len(rows), self.number, self.of)
        visual, mask = self.source.batch([self.visual_ids[i] for i in self.owner[rows]], own)
        tokens = {role: packed.padded(rows, own) for role, packed in self.tokens.items()}
        owner = torch.from_numpy(self.owner[rows[own]]) if self.with_owner else None
        return Batch(
            visual=visual,
            visual_mask=mask,
            index=torch.from_numpy(rows[own]),
            total=len(rows),
            owner=owner,
            **{role: tokens.get(role) for role in ('en', 'tgt', 'back')},
        )


class EpochBatches(Sampler):
    """The batches of an epoch, each an array of rows, in an order that depends on (seed, epoch)
    alone.

    The last batch may be short, but never of one pair: batch norm and the triplet loss need two.
    That pair joins the batch before it.
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
    """Visual items in their order. An index is the number of a batch, an item (visual, mask or
    None)."""

    def __init__(self, source, ids, *, batch_size):
        self.source, self.ids, self.batch_size = source, ids, batch_size

    def __len__(self):
        return -(-len(self.ids) // self.batch_size)

    def __getitem__(self, number):
        return self.source.batch(
            self.ids[number * self.batch_size : (number + 1) * self.batch_size]
        )


class CaptionBatches(Dataset):
    """Captions of a split. An index is the number of a batch, an item (en Tokens, tgt Tokens).

    A branch that is not needed is None.

    Args:
        tokens: dict of en, tgt, or one of them -> PackedTokens.
        order: dict of the same -> (Q,) int64, the rows of that branch in the order in which they
            come.
    """

    def __init__(self, tokens, *, order, batch_size):
        self.tokens, self.order, self.batch_size = tokens, order, batch_size

    def __len__(self):
        return -(-len(next(iter(self.tokens.values()))) // self.batch_size)

    def __getitem__(self, number):
        place = slice(number * self.batch_size, (number + 1) * self.batch_size)
        return tuple(
            self.tokens[role].padded(self.order[role][place]) if role in self.tokens else None
            for role in ('en', 'tgt')
        )


class TrainLoader(Loader):
    """The training batches: an iterable of Batch, of which several processes get their shares.

    Attributes:
        dataset_size: caption pairs.
        feature_dim: D, 0 for images.
        longest: tokens of the longest caption.
        left_out: LeftOut, or None.
    """

    def __init__(self, dataset, *, batch_size, seed, workers, pin_memory, left_out=None):
        self.left_out = left_out
        self.dataset_size, self.feature_dim = len(dataset), dataset.source.dim
        self.longest = max(packed.width for packed in dataset.tokens.values())
        super().__init__(
            dataset,
            sampler=EpochBatches(len(dataset), batch_size=batch_size, seed=seed),
            workers=workers,
            processes=dataset.source.in_processes,
            pin_memory=pin_memory,
            keep_workers=True,
        )

    def set_epoch(self, epoch):
        """Shuffle as epoch `epoch` (a whole number from 0) does; call it before each epoch's
        iteration."""
        self.indices.epoch = epoch


@dataclass
class EvalSet:
    """A split to score.

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
        owner: (Q,) int64, the visual item (index into `visual_ids`) of each caption.
        caption_ids: '<visual id>#<n>' of each caption.
        visual_ids: videos in order of first appearance in the first branch's file; images in the
            order of the id list, those without captions included.
        feature_dim: D, 0 for images.
        branches: those of the captions, `en` before `tgt`: see `basic.collection.scored_branches`.
        left_out: LeftOut, or None.
        texts: dict en, tgt -> list of str, the captions; pictures: ImageSource; to show, None where
            there are none.
    """

    split: str
    captions: Loader
    visuals: Loader
    order: dict[str, np.ndarray]
    owner: np.ndarray
    caption_ids: list[str]
    visual_ids: list[str]
    feature_dim: int
    branches: tuple[str, ...] = ('en', 'tgt')
    left_out: LeftOut | None = None
    texts: dict[str, list[str]] | None = None
    pictures: ImageSource | None = None

    @property
    def longest(self):
        """Tokens of the longest caption."""
        return max(packed.width for packed in self.captions.dataset.tokens.values())


def visual_order(config, split, source, captions):
    """The ids of a split's visual items, in the order in which they are encoded and scored; see
    EvalSet."""
    by_list = split != 'train' and config.visual.kind != 'frames'
    return list(source.ids) if by_list else captions.visual_ids


def encoding_order(config, source, visual_ids, tokens):
    """EvalSet.order: the longest first where an item's embedding does not depend on the padding
    beside it."""
    order = {}
    if config.text.pooling != 'padded_mean':
        order = {
            role: np.argsort(-packed.lengths, kind='stable') for role, packed in tokens.items()
        }
    if config.visual.kind == 'frames' and config.visual.pooling != 'padded_mean':
        order['visual'] = np.argsort(-source.lengths(visual_ids), kind='stable')
    return order


def pack_branch(config, role, file, tokenizer):
    """Tokenise the captions of a branch (en, tgt, back) as the config says -> PackedTokens."""
    clean = role == 'en' and config.text.clean_en
    return PackedTokens(
        [clean_english(text) for text in file.texts] if clean else file.texts,
        tokenizer,
        max_tokens=config.text.positions,
    )


def build_loaders(
    config,
    rootpath,
    tokenizer,
    splits=('train', 'val'),
    image_size=224,
    device='cpu',
    image_encoder=None,
    number=None,
    of=None,
    weights=None,
):
    """Open, join and tokenise the splits.

    Args:
        config: basic.config.Config.
        rootpath: folder that holds the collection's folder.
        tokenizer: from basic.caption.load_tokenizer.
        splits: of train, val, test.
        image_size: S, the side that CLIP's image tower expects.
        device: where the model is; batches are put into pinned memory if that is a GPU.
        image_encoder: model.ClipEncoder, for compute.image_cache=embeddings.
        number, of: this process's number and how many there are; None: as basic.distributed has it.
        weights: shares w that val and test are scored with, which tell the branches needed; see
            `Collection.branches`.
    Returns:
        dict split -> TrainLoader (train) or EvalSet.
    Raises:
        DataError: something in the data is missing, malformed or does not fit together.
    """
    collection, loaders = Collection(config, rootpath), {}
    of = distributed.size() if of is None else of
    number = distributed.rank() if number is None else number
    pin_memory = torch.device(device).type == 'cuda'
    for split in splits:
        files = collection.captions(split, weights)
        source = collection.source(split, next(iter(files.values())), image_size)
        files, visual_ids, left_out = present_items(config, split, source, files)
        first = next(iter(files.values()))
        if left_out and distributed.is_main():
            log.warning('%s', left_out)
        pictures = source if isinstance(source, ImageSource) else None
        if config.visual.kind == 'clip' and config.compute.image_cache != 'none':
            with distributed.patiently():  # one process makes it, and the others wait
                source = store_images(
                    source,
                    visual_ids,
                    collection.folder / 'cache',
                    split=split,
                    config=config,
                    device=device,
                    encoder=image_encoder,
                )
        row = {name: i for i, name in enumerate(visual_ids)}
        owner = np.array([row[visual] for visual, _ in first.ids], dtype=np.int64)
        tokens = {role: pack_branch(config, role, file, tokenizer) for role, file in files.items()}
        for role, packed in tokens.items():
            if packed.cut and distributed.is_main():
                log.warning(
                    '%s of %s captions of %s are longer than %d tokens and were cut',
                    f'{packed.cut:,}',
                    f'{len(packed):,}',
                    files[role].path,
                    config.text.positions,
                )
        if split == 'train':
            if len(first) < 2:
                raise DataError(
                    f'{first.path} has one caption; training needs at least two: the other pairs of'
                    ' a batch are the negatives'
                )
            dataset = PairDataset(
                source,
                visual_ids=visual_ids,
                owner=owner,
                tokens=tokens,
                number=number,
                of=of,
                with_owner=config.loss.mask_same_visual,
            )
            loaders[split] = TrainLoader(
                dataset,
                batch_size=config.train.batch_size,
                seed=config.train.seed,
                workers=config.train.workers,
                pin_memory=pin_memory,
                left_out=left_out,
            )
        else:
            batch_size = (
                config.eval.val_batch_size if split == 'val' else config.eval.test_batch_size
            )
            order = encoding_order(config, source, visual_ids, tokens)
            captions = CaptionBatches(
                tokens,
                batch_size=batch_size,
                order={
                    role: order.get(role, np.arange(len(packed))) for role, packed in tokens.items()
                },
            )
            visuals = VisualBatches(
                source,
                batch_size=batch_size,
                ids=[visual_ids[i] for i in order['visual']] if 'visual' in order else visual_ids,
            )
            options = {'workers': config.train.workers, 'pin_memory': pin_memory}
            loaders[split] = EvalSet(
                split=split,
                order=order,
                owner=owner,
                captions=Loader(captions, sampler=range(number, len(captions), of), **options),
                visuals=Loader(
                    visuals,
                    sampler=range(number, len(visuals), of),
                    processes=source.in_processes,
                    **options,
                ),
                caption_ids=[f'{visual}#{n}' for visual, n in first.ids],
                visual_ids=visual_ids,
                feature_dim=source.dim,
                branches=tuple(files),
                left_out=left_out,
                texts={role: file.texts for role, file in files.items()},
                pictures=pictures,
            )
    return loaders
