"""What the ranks of a test say beside its metrics: recall curves, histograms, groups of queries,
and what chance would give.

Q captions, S visual items with captions, V visual items, K a cutoff.
"""

import math
from typing import NamedTuple

import numpy as np

from basic.metric import RECALLS

RANGES = ((1, 1), (2, 5), (6, 10), (11, 50), (51, 100), (101, math.inf))  # of a histogram
CUTOFFS = 60  # points of a recall curve, at most
GROUPS = 4  # of queries, of about the same size


class Ranks(NamedTuple):
    """The ranks of a test in one language, at one w."""

    t2v: np.ndarray  # (Q,)
    v2t: np.ndarray  # (S,)
    captions: np.ndarray  # (S,) int64, how many captions each of these visual items has
    visuals: int  # V


class Group(NamedTuple):
    """Queries that have something in common."""

    low: float
    high: float
    queries: int
    figures: dict  # R@1, R@5, R@10, MedR


def ranks_by_language(report):
    """dict language -> Ranks at the result's w, from a report with its ranks."""
    ranks = report['ranks']
    row = ranks['weights'].tolist().index(report['result']['weight'])
    if 'languages' not in report:
        return {report['lang']: _ranks(ranks, row, report['visuals'])}
    return {
        name: _ranks(ranks, row, part['visuals'], name)
        for name, part in report['languages'].items()
    }


def _ranks(ranks, row, visuals, lang=None):
    own = slice(None) if lang is None else ranks['caption_lang'] == lang  # (Q,)
    items = slice(None) if lang is None else ranks['visual_lang'] == lang  # (S,)
    counts = np.bincount(ranks['owner'], minlength=len(ranks['visual_ids']))
    return Ranks(ranks['t2v'][row][own], ranks['v2t'][row][items], counts[items], visuals)


def cutoffs(most):
    """1 to `most` in at most CUTOFFS whole numbers, by about the same factor apart."""
    return sorted({round(k) for k in np.geomspace(1, most, CUTOFFS)})


def recall(ranks, cutoff):
    """R@K in per cent."""
    return 100 * float(np.mean(ranks <= cutoff))


def histogram(ranks):
    """The share of queries, in per cent, whose rank is in each of RANGES; a half belongs to the
    range that it enters."""
    ends = np.array([high for _, high in RANGES])
    counts = np.bincount(np.searchsorted(ends, ranks), minlength=len(RANGES))
    return (100 * counts / len(ranks)).tolist()


def chance_recall(ranks, way, cutoff):
    """The expected R@K of a random order, in per cent.

    v2t: of Q captions n are right; the first K have none of them with the probability
    C(Q - n, K) / C(Q, K).
    """
    if way == 't2v':
        return 100 * min(1.0, cutoff / ranks.visuals)
    total, shares = len(ranks.t2v), []
    for count, items in zip(*np.unique(ranks.captions, return_counts=True)):
        none = math.exp(_choose(total - count, cutoff) - _choose(total, cutoff))
        shares.append(items * (1 - none))
    return 100 * float(sum(shares)) / len(ranks.captions)


def _choose(total, some):
    """The logarithm of the binomial coefficient."""
    if some > total:
        return -math.inf
    return math.lgamma(total + 1) - math.lgamma(some + 1) - math.lgamma(total - some + 1)


def chance(ranks):
    """The expected figures of a random order, in the form of `basic.metric.retrieval_metrics`.

    MedR is the smallest K whose expected R@K is half of all queries.
    """
    row = {}
    for way, total in (('t2v', ranks.visuals), ('v2t', len(ranks.t2v))):
        row[way] = {f'R@{k}': chance_recall(ranks, way, min(k, total)) for k in RECALLS}
        low, high = 1, total
        while low < high:
            middle = (low + high) // 2
            enough = chance_recall(ranks, way, middle) >= 50 - 1e-9
            low, high = (low, middle) if enough else (middle + 1, high)
        row[way]['MedR'] = float(low)
    row['t2v']['mAP'] = _harmonic(ranks.visuals) / ranks.visuals
    row['v2t']['mAP'] = float(np.mean(_average_precision(ranks.captions, len(ranks.t2v))))
    row['SumR'] = sum(row[way][f'R@{k}'] for way in ('t2v', 'v2t') for k in RECALLS)
    return row


def _average_precision(right, total):
    """The expected average precision of a random order of `total` items, of which `right` are
    right: (H + (right - 1) / (total - 1) * (total - H)) / total, H the harmonic number of total."""
    found = _harmonic(total)
    return (found + (right - 1) / max(1, total - 1) * (total - found)) / total


def _harmonic(number):
    return float(np.sum(1 / np.arange(1, number + 1)))


def grouped(values, ranks):
    """Queries in up to GROUPS groups of about the same size, by a value; equal values go together.

    Args:
        values, ranks: (Q,).
    Returns:
        list of Group, by rising value.
    """
    order = np.argsort(values, kind='stable')
    ordered, found, start = values[order], [], 0
    for part in range(1, GROUPS + 1):
        end = round(part * len(order) / GROUPS)
        # Up to the last query with this value.
        end = int(np.searchsorted(ordered, ordered[end - 1], side='right')) if end else 0
        if end > start:
            own = ranks[order[start:end]]
            figures = {f'R@{k}': recall(own, k) for k in RECALLS}
            figures['MedR'] = float(np.median(own))
            found.append(Group(float(ordered[start]), float(ordered[end - 1]), len(own), figures))
            start = end
    return found
