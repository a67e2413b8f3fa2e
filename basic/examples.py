"""Example queries, to be looked at: what some captions of a split find.

Q captions, V visual items, E common space.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn import functional as F

from basic.thumbnails import Media

KINDS = ('best', 'median', 'worst')  # of the examples in a report
EACH = 8  # examples of each kind, of all languages together


class Found(NamedTuple):
    """A visual item that a search has found."""

    rank: float
    score: float
    visual_id: str
    right: bool
    caption: str  # one of the item's


class Example(NamedTuple):
    """A search, to be looked at."""

    caption_id: str
    texts: list[str]  # the query, target language first
    rank: float  # the right item's
    found: list[Found]


class LanguageDetails(NamedTuple):
    """What report.html shows of a test in one language beside its metrics."""

    lengths: np.ndarray | None  # (Q,) tokens of each query, special ones included
    agreement: np.ndarray | None  # (Q,) cosine of the embeddings of a query and its translation
    examples: dict[str, list[Example]]  # of each kind of KINDS
    pictures: Media | None


class Details(NamedTuple):
    """What report.html shows of a test beside its metrics."""

    config: Any  # basic.config.Config
    languages: dict[str, LanguageDetails]


def details_of(config, scorings, embeddings, sets, weight):
    """The Details of a test.

    Args:
        config: basic.config.Config.
        scorings, embeddings, sets: lists of basic.scoring.Scoring (counted), evaluation.Embeddings
            and data_provider.EvalSet, one for each language.
        weight: w of the result.
    Returns:
        Details.
    """
    found = {}
    for number, (scoring, one, each) in enumerate(zip(scorings, embeddings, sets)):
        share = len(range(number, EACH, len(sets)))
        ranks = scoring.wrong[scoring.weights.index(weight)].ranks()[0].cpu().numpy()
        kinds = example_rows(ranks, each.visual_of, share)
        rows = [row for some in kinds.values() for row in some]
        examples = dict(zip(rows, search_examples(scoring, each, rows, weight=weight)))
        tokens = getattr(each.captions.dataset, 'tokens', None)  # those of zero_shot are not kept
        found[each.lang] = LanguageDetails(
            lengths=tokens['tgt' if 'tgt' in tokens else 'en'].lengths if tokens else None,
            agreement=agreement(one) if len(each.branches) == 2 else None,
            examples={kind: [examples[row] for row in some] for kind, some in kinds.items()},
            pictures=each.pictures,
        )
    return Details(config, found)


def agreement(embeddings):
    """(Q,) the cosine of each query's embedding and that of its machine translation."""
    parts = zip(embeddings.en.split(4096), embeddings.tgt.split(4096))
    return torch.cat([F.cosine_similarity(en, tgt) for en, tgt in parts]).cpu().numpy()


def example_rows(ranks, visual_of, number):
    """The queries with the best, median and worst ranks, of different visual items.

    Args:
        ranks, visual_of: (Q,) arrays.
        number: how many of each kind; fewer where there are not enough items.
    Returns:
        dict kind -> list of indices; the best and the worst come first. Of queries with the same
        rank, drawn ones.
    """
    drawn = np.random.default_rng(0).permutation(len(ranks))
    order = np.lexsort((drawn, ranks)).tolist()
    median = np.median(ranks)
    orders = {
        'best': order,
        'worst': order[::-1],
        'median': sorted(order, key=lambda row: abs(ranks[row] - median)),
    }
    seen, rows = set(), {}
    number = min(number, len(np.unique(visual_of)) // len(KINDS))
    for kind, some in orders.items():
        rows[kind] = []
        for row in some:
            if len(rows[kind]) < number and visual_of[row] not in seen:
                seen.add(visual_of[row])
                rows[kind].append(row)
    return {kind: rows[kind] for kind in KINDS}


def search_examples(scoring, eval_set, rows, *, weight, top=5):
    """What some queries find.

    Args:
        scoring: basic.scoring.Scoring of the split, counted.
        eval_set: data_provider.EvalSet, with its texts.
        rows: indices of the queries.
        weight: w, one of `scoring.weights`.
        top: visual items of each; the right one comes after them if it is not among them.
    Returns:
        list of Example, in the order of `rows`. Its ranks are those of the metrics.
    """
    visual_of = np.asarray(eval_set.visual_of).tolist()
    branches = [branch for branch in ('tgt', 'en') if branch in eval_set.texts]
    wrong = scoring.wrong[scoring.weights.index(weight)]
    ranks = wrong.ranks()[0].tolist()
    first_caption = {}  # of each visual item
    for row, item in enumerate(visual_of):
        first_caption.setdefault(item, row)

    def texts(row):
        return [eval_set.texts[branch][row] for branch in branches]

    def found(item, rank, score, right):
        caption = texts(first_caption[item])[-1] if item in first_caption else ''
        return Found(rank, score, eval_set.visual_ids[item], right, caption)

    examples = {}
    for row, *line in scoring.ranked(weight, top, queries=sorted(rows)):
        lists = [each.tolist() for each in line]
        items = [
            found(item, ranks[row] if right else place, score, right)
            for place, (item, score, right) in enumerate(zip(*lists), 1)
        ]
        if not any(each.right for each in items):
            items.append(found(visual_of[row], ranks[row], float(wrong.matched[row]), True))
        examples[row] = Example(eval_set.caption_ids[row], texts(row), ranks[row], items)
    return [examples[row] for row in rows]


def spread(total, number):
    """`number` different indices of `total` things, evenly spread, increasing; fewer of fewer."""
    return sorted({round(place) for place in np.linspace(0, total - 1, number)})
