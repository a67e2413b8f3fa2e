"""Means over seeds, and the difference of two rows with a bootstrap confidence interval.

Q captions, S visual items that have captions.
"""

from typing import NamedTuple

import numpy as np
from scipy.stats import bootstrap

ROOM = 2**22  # numbers drawn at once


class Summary(NamedTuple):
    """Mean and sample standard deviation (ddof=1) over seeds; of one seed there is no deviation."""

    mean: float
    deviation: float | None


class Difference(NamedTuple):
    """SumR less that of the base row, and its confidence interval."""

    mean: float
    low: float
    high: float

    @property
    def significant(self):
        """Whether the interval leaves out 0."""
        return not self.low <= 0 <= self.high


def summary(values):
    """Summary of a figure's values, one a seed; None if there are none or one is not recorded."""
    values = list(values)
    if not values or None in values:
        return None
    return Summary(
        float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None
    )


def difference(row, base, *, resamples=9999, confidence=0.95, seed=1):
    """The difference in SumR of two rows, each a mean over its seeds, with a percentile bootstrap
    interval.

    Both rows answer the same queries, so a resample draws them once, for both (paired): it draws S
    of the visual items with replacement, each with all its captions, and SumR is the recalls over
    those captions (t2v) plus the recalls over those items (v2t). What belongs to one visual item
    thus stays together. The trained models are as they are: the interval says how far the test
    queries matter, the deviations over seeds say how far training does.

    Args:
        row, base: lists of a dict for each seed, see `util.table.runs.TestedRun.hits`.
        resamples: how many; confidence: of the interval; seed: of the drawing.
    Returns:
        Difference.
    Raises:
        ValueError: other queries, or fewer than two visual items.
    """
    first = base[0]
    if any(
        not np.array_equal(hits[key], first[key])
        for hits in (*row, *base)
        for key in ('caption_ids', 'owner')
    ):
        raise ValueError('the runs were tested on other queries')
    if len(first['v2t']) < 2:
        raise ValueError('there is but one visual item: nothing to draw from')
    t2v, v2t = (
        np.mean([hits[way] for hits in row], axis=0) - np.mean([hits[way] for hits in base], axis=0)
        for way in ('t2v', 'v2t')
    )
    # (S,) how many each has
    captions = np.bincount(first['owner'], minlength=len(v2t)).astype(float)
    # (S,) by all of them together
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
    """SumR of visual items (..., S): t2v, what their captions add up to; captions, how many; v2t,
    what each adds."""
    return t2v.sum(axis=axis) / captions.sum(axis=axis) + v2t.mean(axis=axis)
