"""Scoring a split from its embeddings, without ever holding the full score matrix.

A caption has two vectors, one per text branch (`en`, `tgt`). Its score with a visual item is a
weighted sum of the two cosines, each min-max normalised over the branch's whole matrix:

    score(w) =    w    * (en  - low_en)  / (high_en  - low_en)
             + (1 - w) * (tgt - low_tgt) / (high_tgt - low_tgt)

`fuse` computes this for matrices in memory. `scored` computes it for any size, in two passes over
blocks of captions and visual items:

1. find the lowest and highest cosine of each branch, and the cosines of each caption with its own
   item;
2. mix the cosines of every block at each weight w, and count the wrong items that are ranked before
   the right ones (`basic.metric.WrongCount`).

If the cosines of the first pass fit into memory, they are kept for the second; otherwise they are
computed again. Only a few numbers per caption are stored. Several processes share the blocks of
captions and add up their counts.

Q captions, V visual items, E common space; B captions and C visual items of a block.
"""

import math

import numpy as np
import torch
from torch.nn import functional as F

from basic.distributed import rank, reduce_, share, size
from basic.metric import GroundTruth, WrongCount, comparisons_of, count_broken, cpu_threads
from basic.metric import refuse_broken, tile_size, tiles
from basic.runtime import matrix_precision

_ROWS = 256  # queries whose items are sorted at once
_BLOCK = 4096  # captions, and visual items, of a block: with more, products are not faster


def similarity(captions, visual):
    """Cosine scores: captions (Q, E), visual (V, E) -> (Q, V)."""
    return F.normalize(captions, dim=-1) @ F.normalize(visual, dim=-1).T


def normalise(scores, low=None, high=None):
    """Min-max normalise to [0, 1]; a constant matrix becomes zeros; NaN stays NaN.

    Args:
        scores: any part of a matrix.
        low, high: the lowest and highest score of the whole matrix, 0-dimensional tensors or
            floats; None: `scores` is the whole matrix.
    """
    low, high = scores.min() if low is None else low, scores.max() if high is None else high
    return (scores - low) / (high - low if high > low else 1)


def mix(en, tgt, weight):
    """The weighted sum of the branches' normalised scores; `weight` is w, that of English."""
    return weight * en + (1 - weight) * tgt


def fuse(en, tgt, weight):
    """Normalise the scores of each branch and mix them.

    Args:
        en, tgt: (Q, V) cosine scores of the English and of the target-language branch.
        weight: w of the English branch.
    Returns:
        w * normalise(en) + (1 - w) * normalise(tgt), (Q, V).
    """
    return mix(normalise(en), normalise(tgt), weight)


def scored(
    visual,
    en,
    tgt,
    visual_of,
    weights,
    *,
    ties='pessimistic',
    memory=1024,
    device=None,
    progress=None,
    blocks=None,
):
    """Score a split at several weights, for its metrics and ranks.

    They are equal to those of `retrieval_metrics(fuse(en, tgt, w), visual_of, ties)`. If
    torch.distributed is initialised, every process must call this with the same arguments, and
    gets the same result.

    Args:
        visual: (V, E) embeddings: a tensor of any floating type, or an array, which may be a
            memory-mapped .npy (`np.load(file, mmap_mode='r')`), read block by block.
        en, tgt: (Q, E), likewise.
        visual_of: (Q,) integers, the index of the visual item that caption j belongs to.
        weights: values of w, the weight of the English branch.
        ties: `pessimistic` or `mean`.
        memory: MiB for blocks of embeddings and scores. Less is slower, with the same result.
        device: where to compute; None: the device of `visual`.
        progress: function of (blocks done, blocks of both passes), called after each block.
        blocks: score only this number of blocks of captions, to time them; None: all.
    Returns:
        Scoring, for its `metrics` and `ranks`.
    Raises:
        ValueError: see `basic.metric.retrieval_metrics`.
    """
    scoring = Scoring(visual, en, tgt, visual_of, weights, ties=ties, memory=memory, device=device)
    scoring.progress = progress
    scoring.blocks = scoring.blocks[:blocks]
    scoring.find_range()
    scoring.count()
    return scoring


class Scoring:
    """Two passes over a split, `find_range` and `count`; then `metrics` and `ranks`.

    The arguments are those of `scored`.

    Attributes:
        blocks, gallery: lists of slices, this process's blocks of captions, and those of visual
            items.
        blocks_in_all: the number of blocks of captions of this process.
    """

    def __init__(
        self, visual, en, tgt, visual_of, weights, *, ties='pessimistic', memory=1024, device=None
    ):
        _check_shapes(visual, en, tgt)
        self.visual, self.branches, self.weights = visual, (en, tgt), weights
        self.comparisons = comparisons_of(ties)
        if device is None:
            device = visual.device if isinstance(visual, torch.Tensor) else 'cpu'
        self.device = torch.device(device)
        double = any('float64' in str(part.dtype) for part in (visual, en, tgt))
        self.dtype = torch.float64 if double else torch.float32
        self.truth = GroundTruth(visual_of, len(en), len(visual), device=self.device)
        self._plan(memory * 2**20 // self.dtype.itemsize)
        self._threads = torch.get_num_threads()
        self.progress, self._done = None, 0

    def _plan(self, numbers):
        """Choose the blocks, and whether to keep their cosines, so that `numbers` fit in memory."""
        captions, visuals, width = len(self.branches[0]), len(self.visual), self.visual.shape[1]

        def working_set(block):
            rows, columns = min(block, visuals), min(block, captions)
            cosines = 4 * rows * columns  # of both branches, in this block and the last
            embeddings = 3 * (rows + columns) * width  # as read, and normalised
            return cosines + embeddings + 6 * min(tile_size(self.device), rows * columns)

        block = _BLOCK
        while block > 1 and working_set(block) > numbers // 2:
            block = block * 7 // 8
        self.all_blocks = cut(captions, block)
        self.blocks = self.all_blocks[rank() :: size()]
        self.blocks_in_all = len(self.blocks)
        self.gallery = cut(visuals, block)
        self.at_once = min(tile_size(self.device), block**2)
        keep = 2 * visuals * sum(some.stop - some.start for some in self.blocks) <= numbers // 2
        self._kept = [] if keep else None

    @torch.no_grad()
    @cpu_threads(1)
    def find_range(self):
        """First pass: each branch's extremes, and the cosines of the right pairs.

        They are `low` and `high` (2,), and `matched` (2, Q).
        """
        like = {'dtype': self.dtype, 'device': self.device}
        self.low = torch.full((2,), math.inf, **like)
        self.high = torch.full((2,), -math.inf, **like)
        self.matched = torch.zeros(2, len(self.truth.visual_of), **like)
        broken = torch.zeros(1, dtype=torch.int64, device=self.device)
        for captions, visuals, cosines in self._products():  # (2, C, B)
            low, high = cosines.amin(dim=2).amin(dim=1), cosines.amax(dim=2).amax(dim=1)
            if not (low.isfinite() & high.isfinite()).all():
                broken += count_broken(cosines)
            self.low, self.high = torch.minimum(self.low, low), torch.maximum(self.high, high)
            row, column = self.truth.pairs(captions, visuals)
            self.matched[:, captions.start + column] = cosines[:, row, column]
            if self._kept is not None:
                self._kept.append((captions, visuals, cosines))
            self._report()
        refuse_broken(int(reduce_(broken)), 2 * len(self.truth.visual_of) * len(self.visual))
        reduce_(self.low, 'min')
        reduce_(self.high, 'max')
        reduce_(self.matched)

    @torch.no_grad()
    @cpu_threads(1)
    def count(self):
        """Second pass: `wrong`, a WrongCount for each weight."""
        own = self._normalised(self.matched)  # (Q,) each
        self.wrong = [
            WrongCount(self.truth, mix(*own, weight), self.comparisons, self.at_once)
            for weight in self.weights
        ]
        for captions, visuals, cosines in self._products() if self._kept is None else self._kept:
            row, column = self.truth.pairs(captions, visuals)
            cosines[:, row, column] = torch.nan  # right pairs: never counted
            for some in tiles(visuals, captions.stop - captions.start, self.at_once):
                rows = slice(some.start - visuals.start, some.stop - visuals.start)
                en, tgt = self._normalised(cosines[:, rows])  # (some, B) each
                for weight, wrong in zip(self.weights, self.wrong):
                    wrong.add(mix(en, tgt, weight), captions, some)
            self._report()
        self._kept = None
        for wrong in self.wrong:
            reduce_(wrong.totals)

    def metrics(self):
        """A dict per weight."""
        return [wrong.metrics() for wrong in self.wrong]

    def ranks(self):
        """A pair per weight, see `basic.metric.WrongCount.ranks`."""
        return [wrong.ranks() for wrong in self.wrong]

    @torch.no_grad()
    def ranked(self, weight, depth, *, queries=None, v2t=False):
        """The first items of each query, in the order by which its ranks were counted.

        Wrong items come before right ones with the same score. Call this after `count`; a process
        can do so alone, and computes the scores of all processes' blocks.

        Args:
            weight: w.
            depth: the most items of a query.
            queries: captions, as increasing indices; None: all. Always all if v2t.
            v2t: the queries are the visual items that have captions.
        Yields:
            (index of the query, items (n,) int64, scores (n,), right (n,) bool): tensors on the CPU
            with n <= depth, for each query in turn.
        """
        if v2t:
            wanted = (self.truth.captions > 0).nonzero()[:, 0].cpu()
        else:
            wanted = torch.as_tensor(
                range(len(self.truth.visual_of)) if queries is None else queries
            )
        outer, inner = (self.gallery, self.all_blocks) if v2t else (self.all_blocks, self.gallery)
        for block in outer:
            some = wanted[(wanted >= block.start) & (wanted < block.stop)]
            parts = some.split(_ROWS) if len(some) else ()
            best = [None] * len(parts)
            for others in inner if parts else ():
                cosines = self._block(*(others, block) if v2t else (block, others))
                for number, rows in enumerate(parts):
                    columns = rows - block.start
                    chosen = cosines[:, columns] if v2t else cosines[:, :, columns].mT
                    found = self._found(chosen, weight, rows, others, v2t)
                    best[number] = _first(best[number], found, depth)
            for rows, found in zip(parts, best):
                scores, items, right = (each.cpu() for each in found)
                yield from zip(rows.tolist(), items, scores, right)

    def _found(self, cosines, weight, queries, others, v2t):
        """(scores, items, right), each (n, C), of n queries and a slice of others, from both
        branches' cosines (2, n, C)."""
        scores = mix(*self._normalised(cosines), weight)
        items = torch.arange(others.start, others.stop, device=self.device)
        queries = queries.to(self.device)
        visual_of = self.truth.visual_of
        pairs = (queries[:, None], visual_of[items]) if v2t else (visual_of[queries, None], items)
        return scores, items.expand_as(scores), pairs[0] == pairs[1]

    def _report(self):
        self._done += 1
        if self.progress:
            self.progress(self._done, 2 * len(self.blocks) * len(self.gallery))

    def _normalised(self, cosines):
        """Both branches' cosines (2, ...), each normalised over its whole matrix."""
        return [
            normalise(branch, low, high) for branch, low, high in zip(cosines, self.low, self.high)
        ]

    def _products(self):
        """Every block of this process: (captions, visual items, both branches' cosines (2, C, B)).

        Captions and items are slices. A block is the same matrix product in both passes, so that
        its cosines are equal to the last bit.
        """
        for captions in self.blocks:
            branches = [self._read(branch, captions) for branch in self.branches]  # (B, E) each
            for visuals in self.gallery:
                yield captions, visuals, self._product(branches, visuals)

    def _block(self, captions, visuals):
        """The cosines (2, C, B) of a block, given as slices of captions and visual items."""
        return self._product([self._read(branch, captions) for branch in self.branches], visuals)

    def _product(self, branches, visuals):
        """The cosines (2, C, B) of a block: its captions' embeddings (B, E) of both branches, and a
        slice of visual items."""
        gallery = self._read(self.visual, visuals)  # (C, E)
        shape = 2, len(gallery), len(branches[0])
        cosines = torch.empty(shape, dtype=self.dtype, device=self.device)
        with cpu_threads(self._threads), matrix_precision('fp32'):
            for branch, out in zip(branches, cosines):
                torch.mm(gallery, branch.T, out=out)
        return cosines

    def _read(self, embeddings, rows):
        """Rows of embeddings, normalised, on the device."""
        if isinstance(embeddings, np.ndarray):
            embeddings = _read_array(embeddings, rows)
        else:
            embeddings = embeddings[rows]
        return F.normalize(torch.as_tensor(embeddings).to(self.device, self.dtype), dim=-1)


def _first(before, found, depth):
    """The first items of some queries: (scores, items, right), each (some, n), n <= depth.

    Args:
        before: the same of other items, or None; found: of these items, in any order.
    """
    if before:
        found = [torch.cat(pair, dim=1) for pair in zip(before, found)]
    scores, right = found[0].double(), found[2]
    # In double precision there is a number between any two scores in single precision.
    after = torch.nextafter(scores, torch.full_like(scores, -math.inf))
    order = torch.where(right, after, scores).argsort(dim=1, descending=True, stable=True)
    return [each.gather(1, order[:, :depth]) for each in found]


def _check_shapes(visual, en, tgt):
    shapes = [tuple(part.shape) for part in (visual, en, tgt)]
    flat = any(len(shape) != 2 for shape in shapes)
    if flat or len({shape[1] for shape in shapes}) > 1 or len(en) != len(tgt):
        raise ValueError(
            f'expected visual (V, E), en and tgt (Q, E); found {", ".join(map(str, shapes))}'
        )


def cut(total, at_most):
    """0 to `total` in near-equal slices of `at_most` or less.

    There is no small last one, of which a matrix product might round differently.
    """
    number = -(-total // at_most)
    return [share(total, part, number) for part in range(number)]


def _read_array(array, rows):
    """A copy of an array's rows.

    Those of a memory map are read from its file: looked at through the map, they stay in memory.
    """
    if (
        not isinstance(array, np.memmap)
        or array.filename is None
        or array.mode == 'c'
        or not array.flags.c_contiguous
    ):
        return np.array(array[rows])
    whole = array
    # A slice of a map does not know its offset in the file.
    while isinstance(whole.base, np.memmap):
        whole = whole.base
    offset = whole.offset + array[rows].ctypes.data - whole.ctypes.data
    shape = (rows.stop - rows.start, *array.shape[1:])
    return np.fromfile(array.filename, array.dtype, math.prod(shape), offset=offset).reshape(shape)
