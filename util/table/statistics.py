"""Means over seeds, and the difference of two rows with a bootstrap confidence interval.

Q captions, S visual items with captions.
"""

from typing import NamedTuple

import numpy as np
from scipy.stats import bootstrap

ROOM = 2**22  # random numbers per batch of resamples


class Summary(NamedTuple):
    """Mean and sample standard deviation (ddof=1) over seeds; None for one seed."""

    mean: float
    deviation: float | None


class Difference(NamedTuple):
    """SumR minus that of the base row, and its confidence interval."""

    mean: float
    low: float
    high: float

    @property
    def significant(self):
        """Whether the interval excludes 0."""
        return not self.low <= 0 <= self.high


def summary(values):
    """Summary of a metric's values, one per seed; None if there are none or one is missing."""
    values = list(values)
    if not values or None in values:
        return None
    return Summary(
        float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None
    )


def difference(row, base, *, resamples=9999, confidence=0.95, seed=1):
    """The difference in SumR of two rows, with a percentile bootstrap interval.

    The bootstrap is paired: each resample is used for both rows. It draws S visual items with
    replacement, each with all its captions. SumR is the sum of the recalls over these captions
    (t2v) and over these items (v2t), averaged over the seeds of a row. The interval is the
    uncertainty from the choice of test queries; the deviations over seeds show that of training.

    Args:
        row, base: lists of a dict per seed, see `util.table.runs.TestedRun.hits`.
        resamples: number of resamples.
        confidence: of the interval.
        seed: of the random numbers.
    Returns:
        Difference.
    Raises:
        ValueError: the rows have different queries, or there are fewer than two visual items.
    """
    first = base[0]
    if any(
        not np.array_equal(hits[key], first[key])
        for hits in (*row, *base)
        for key in ('caption_ids', 'owner')
    ):
        raise ValueError('the runs were tested on different queries')
    if len(first['v2t']) < 2:
        raise ValueError('a bootstrap needs at least two visual items, found one')
    t2v, v2t = (
        np.mean([hits[way] for hits in row], axis=0) - np.mean([hits[way] for hits in base], axis=0)
        for way in ('t2v', 'v2t')
    )
    # (S,) number of captions of each visual item
    captions = np.bincount(first['owner'], minlength=len(v2t)).astype(float)
    # (S,) difference in t2v, summed over the captions of each visual item
    gained = np.bincount(first['owner'], weights=t2v, minlength=len(v2t))
    found = bootstrap(
        (gained, captions, v2t),
        sum_of_recalls,
        paired=True,
        vectorized=True,
        method='percentile',
        n_resamples=resamples,
        confidence_level=confidence,
        rng=seed,
        batch=max(1, ROOM // len(v2t)),
    )
    return Difference(
        float(sum_of_recalls(gained, captions, v2t)), *map(float, found.confidence_interval)
    )


def sum_of_recalls(t2v, captions, v2t, axis=-1):
    """SumR over visual items.

    Args:
        t2v: (..., S) sums over the captions of each item.
        captions: (..., S) numbers of captions.
        v2t: (..., S) values of the items.
    """
    return t2v.sum(axis=axis) / captions.sum(axis=axis) + v2t.mean(axis=axis)
