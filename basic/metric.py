"""Retrieval metrics from scores and the ground truth; the scores may come in blocks.

Q captions, V visual items; B captions and C visual items of a block. A caption belongs to one
visual item; a visual item has any number of captions. When a visual item is the query, its rank is
that of its best-ranked caption, and its average precision includes all its captions. Higher scores
are better; ranks start at 1.
"""

from contextlib import contextmanager

import torch

RECALLS = (1, 5, 10)
# The comparisons by which a wrong item counts as ranked before a right one; a rule with two takes
# their mean. They work in place and give 0.0 and 1.0, which on a CPU is several times as fast as
# making booleans and adding them.
TIES = {'pessimistic': (torch.Tensor.ge_,), 'mean': (torch.Tensor.gt_, torch.Tensor.ge_)}


def retrieval_metrics(scores, visual_of, ties='pessimistic'):
    """The metrics of both directions of caption-visual retrieval.

    Tie rule: the k-th right item of a query, in order of score, has

        rank = k + (wrong items with a higher score) + c * (wrong items with the same score)

    with c = 1 for `pessimistic` (wrong items are ranked before the right one) and c = 1/2 for
    `mean` (the middle rank). Right items with the same score have consecutive ranks.

    Args:
        scores: (Q, V) tensor or array of any floating type; compared without rounding.
        visual_of: (Q,) integers, the index of the visual item that caption j belongs to.
        ties: `pessimistic` or `mean`.
    Returns:
        dict: `t2v` (captions are queries) and `v2t` (visual items with captions are queries; those
            without are only in the gallery of t2v), each a dict of R@1, R@5, R@10 (per cent),
            MedR, MeanR (ranks) and mAP (0 to 1); and `SumR`, the sum of the six recalls.
    Raises:
        ValueError: NaN or infinite scores, no captions, shapes that do not fit, a caption without
            a visual item, or an unknown tie rule.
    """
    scores = torch.as_tensor(scores).detach()
    if not scores.is_floating_point():
        scores = scores.double()
    if scores.ndim != 2:
        raise ValueError(f'expected scores (Q, V); found {tuple(scores.shape)}')
    captions, visuals = (slice(0, n) for n in scores.shape)
    truth = GroundTruth(visual_of, *scores.shape, device=scores.device)
    comparisons = comparisons_of(ties)
    refuse_broken(count_broken(scores), scores.numel())
    if scores.itemsize < 4:
        scores = scores.float()  # lossless, and float32 is also exact for the counts
    at_once = tile_size(scores.device)
    matched = scores.gather(1, truth.visual_of[:, None]).squeeze(1)  # (Q,)
    wrong = WrongCount(truth, matched, comparisons, at_once)
    with cpu_threads(1):
        for some in tiles(visuals, len(scores), at_once):
            block = scores[:, some].T.clone(memory_format=torch.contiguous_format)  # (some, Q)
            block[truth.pairs(captions, some)] = torch.nan  # right pairs: never counted
            wrong.add(block, captions, some)
    return wrong.metrics()


def recall_sum(direction):
    """R@1 + R@5 + R@10 of a direction's dict; that of `t2v` on validation selects the model."""
    return sum(direction[f'R@{k}'] for k in RECALLS)


def comparisons_of(ties):
    """The comparisons of a tie rule, see `TIES`; ValueError for an unknown rule."""
    if ties not in TIES:
        raise ValueError(f"unknown tie rule '{ties}'; valid: {', '.join(TIES)}")
    return TIES[ties]


def count_broken(scores):
    """The number of scores that are NaN or infinite."""
    return scores.numel() - int(scores.isfinite().sum())


def refuse_broken(broken, total):
    """Raise ValueError if any score is NaN or infinite."""
    if broken:
        raise ValueError(f'{broken} of {total} scores are NaN or infinite and cannot be ranked')


def tile_size(device):
    """The number of scores per tile: few enough for a CPU's cache, or enough to fill a GPU."""
    return 2**18 if device.type == 'cpu' else 2**24


@contextmanager
def cpu_threads(number):
    """Use this number of CPU threads in torch within the context.

    One thread is best for thousands of short operations. Two are hardly faster, and much slower on
    a busy machine, where each operation may wait for a thread without a core.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def tiles(visuals, captions, size):
    """Cut a slice of visual items into parts of about `size` scores with `captions` captions."""
    rows = max(1, size // captions)
    starts = range(visuals.start, visuals.stop, rows)
    return [slice(start, min(start + rows, visuals.stop)) for start in starts]


class GroundTruth:
    """The ground truth: which caption belongs to which visual item.

    Args:
        visual_of: (Q,) integers, the visual item of each caption, in any order.
        captions, visuals: Q and V.
        device: that of the scores.
    Attributes:
        visual_of: (Q,) int64, on the device.
        captions: (V,) int64, the number of captions of each visual item.
        ends: (V,) int64, the cumulative sum of `captions`.
    Raises:
        ValueError: a caption without a visual item.
    """

    def __init__(self, visual_of, captions, visuals, *, device):
        visual_of = torch.as_tensor(visual_of)
        if visual_of.shape != (captions,) or 0 in (captions, visuals):
            raise ValueError(
                f'expected scores (Q, V) and visual_of (Q,), neither empty; found ({captions},'
                f' {visuals}) and {tuple(visual_of.shape)}'
            )
        low, high = visual_of.min(), visual_of.max()
        if visual_of.is_floating_point() or low < 0 or high >= visuals:
            raise ValueError(
                f'expected visual_of to index the {visuals} visual items; found {visual_of.dtype}'
                f' from {low} to {high}'
            )
        self.visual_of = visual_of.to(device, torch.int64)
        self.captions = torch.bincount(self.visual_of, minlength=visuals)
        self.ends = self.captions.cumsum(0)
        self._order = torch.argsort(self.visual_of, stable=True)
        self._bounds = [0, *self.ends.tolist()]

    def captions_of(self, visuals):
        """The captions of a slice of visual items, in the order of the items."""
        return self._order[self._bounds[visuals.start] : self._bounds[visuals.stop]]

    def pairs(self, captions, visuals):
        """(rows, columns) of the right pairs in a block, of which visual items are the rows."""
        row = self.visual_of[captions] - visuals.start
        column = ((row >= 0) & (row < visuals.stop - visuals.start)).nonzero().squeeze(1)
        return row[column], column


class WrongCount:
    """Counts the wrong items that are ranked before each right one, over blocks of scores.

    Caption j and its visual item v have the score `matched[j]`. If j is the query, the wrong items
    before v are the other visual items with at least this score for j. If v is the query, the
    wrong items before j are the captions of other items with at least this score for v. Both are
    counts of comparisons without sorting, so blocks can be counted in any order and process. From
    the sums (`totals`) and `matched`, `metrics` computes the metrics.

    Args:
        truth: GroundTruth.
        matched: (Q,) float32 or float64, the score of each caption with its own visual item.
        comparisons: of the tie rule, see `comparisons_of`.
        at_once: most scores to compare at a time.
    """

    def __init__(self, truth, matched, comparisons, at_once):
        self.truth, self.matched = truth, matched
        self.comparisons, self.at_once = comparisons, at_once
        # (2, Q): t2v, v2t
        self.totals = torch.zeros(2, len(matched), dtype=torch.int32, device=matched.device)

    def add(self, scores, captions, visuals):
        """Count a block.

        Args:
            scores: (C, B), of the type of `matched`. The right pairs are NaN, which no comparison
                counts; all others are finite.
            captions, visuals: slices of the block's B captions and C visual items.
        """
        t2v, v2t = self.totals  # (Q,) each
        own = self.matched[captions]  # (B,)
        searching = self.truth.captions_of(visuals)  # those that the block's visual items look for
        for compare in self.comparisons:
            t2v[captions] += compare(scores.clone(), own).sum(0).int()
            # Each of them is compared with its visual item's scores with the block's captions.
            for some in searching.split(max(1, self.at_once // len(own))):
                rows = self.truth.visual_of[some] - visuals.start
                others = scores.index_select(0, rows)  # (some, B)
                v2t[some] += compare(others, self.matched[some, None]).sum(1).int()

    @cpu_threads(1)
    def metrics(self):
        """The dict of `retrieval_metrics`; call it when every pair has been counted."""
        visual_of, captions = self.truth.visual_of, self.truth.captions
        t2v_rank, v2t_rank, place = self._all_ranks()
        first = place == 1  # one caption of every visual item that has any
        precision = torch.zeros(len(captions), dtype=torch.float64, device=visual_of.device)
        precision.index_add_(0, visual_of, place / v2t_rank)  # (V,)
        average_precision = precision[visual_of[first]] / captions[visual_of[first]]
        t2v, v2t = _summary(t2v_rank, 1 / t2v_rank), _summary(v2t_rank[first], average_precision)
        return {'t2v': t2v, 'v2t': v2t, 'SumR': recall_sum(t2v) + recall_sum(v2t)}

    @cpu_threads(1)
    def ranks(self):
        """The rank of each query's first right item; call it when every pair has been counted.

        Returns:
            t2v: (Q,) float64, of each caption's visual item.
            v2t: (S,) float64, of the best-ranked caption of each visual item with captions, in the
                order of the items.
        """
        t2v_rank, v2t_rank, place = self._all_ranks()
        best = torch.empty(len(self.truth.captions), dtype=torch.float64, device=t2v_rank.device)
        best[self.truth.visual_of[place == 1]] = v2t_rank[place == 1]
        return t2v_rank, best[self.truth.captions > 0]

    def _all_ranks(self):
        """Of each caption j: its visual item's rank, its own rank for that item, its place.

        The place is that among the item's captions, see `_place_among_own`.
        """
        t2v, v2t = self.totals.double() / len(self.comparisons)
        place = self._place_among_own()  # the k of the tie rule
        return 1 + t2v, place + v2t, place

    def _place_among_own(self):
        """(Q,) int64: 1 for the best-scored caption of each visual item, 2 for the next, ..."""
        visual_of = self.truth.visual_of
        order = torch.argsort(self.matched, descending=True, stable=True)
        # By visual item, and those of one item by falling score.
        order = order[torch.argsort(visual_of[order], stable=True)]
        starts = self.truth.ends - self.truth.captions  # (V,) where each item's captions begin
        places = torch.arange(1, len(visual_of) + 1, device=visual_of.device)
        place = torch.empty_like(visual_of)
        place[order] = places - starts[visual_of[order]]
        return place


def _summary(ranks, average_precision):
    recalls = {f'R@{k}': 100 * float((ranks <= k).double().mean()) for k in RECALLS}
    ordered = ranks.sort().values  # torch.quantile refuses more than 16 million
    median = (ordered[(len(ranks) - 1) // 2] + ordered[len(ranks) // 2]) / 2
    return {
        **recalls,
        'MedR': float(median),
        'MeanR': float(ranks.mean()),
        'mAP': float(average_precision.mean()),
    }
