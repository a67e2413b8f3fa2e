"""Example queries, to be looked at: what some captions of a split find.

Q captions, V visual items, E common space.
"""

from typing import NamedTuple

import numpy as np
import torch

from basic.scoring import mix, normalise, similarity


class Found(NamedTuple):
    """A visual item that a search has found."""

    rank: int
    score: float
    visual_id: str
    right: bool
    caption: str  # one of the item's


class Example(NamedTuple):
    """A search, to be looked at."""

    caption_id: str
    texts: list[str]  # the query, target language first
    rank: int  # the right item's
    found: list[Found]


@torch.no_grad()
def search_examples(embeddings, eval_set, config, *, queries=4, top=5):
    """What some queries, evenly spread over the split, find at the weight that validation uses.

    Args:
        embeddings, eval_set, config: as `evaluation.evaluate` has; eval_set with its
            texts.
        queries: how many.
        top: visual items of each; the right one comes after them if it is not among them.
    Returns:
        list of Example.
    """
    visual_of = np.asarray(eval_set.visual_of).tolist()
    rows = sorted({round(place) for place in np.linspace(0, len(visual_of) - 1, queries)})
    branches = [branch for branch in ('tgt', 'en') if getattr(embeddings, branch) is not None]
    scores = [
        _normalised_scores(getattr(embeddings, branch), embeddings.visual, rows)
        for branch in branches
    ]  # (queries, V) each
    if len(branches) == 2:
        tgt, en = scores
        scores = [mix(en, tgt, config.train.val_weight)]
    first_caption = {}  # of each visual item
    for row, item in enumerate(visual_of):
        first_caption.setdefault(item, row)

    def texts(row):
        return [eval_set.texts[branch][row] for branch in branches]

    def found(item, place, score, right):
        caption = texts(first_caption[item])[-1] if item in first_caption else ''
        return Found(place, score, eval_set.visual_ids[item], item == right, caption)

    examples = []
    for row, line in zip(rows, scores[0].cpu()):
        order, right = line.argsort(descending=True, stable=True).tolist(), visual_of[row]
        rank = order.index(right) + 1
        places = list(range(1, min(top, len(order)) + 1))
        if rank > top:
            places.append(rank)
        items = [
            found(order[place - 1], place, float(line[order[place - 1]]), right) for place in places
        ]
        examples.append(Example(eval_set.caption_ids[row], texts(row), rank, items))
    return examples


def _normalised_scores(captions, visual, rows):
    """Scores (len(rows), V) of some captions, min-max normalised over the scores of all of them."""
    low, high = [], []
    for block in captions.split(1024):
        scores = similarity(block, visual)  # (1024, V)
        low.append(scores.min())
        high.append(scores.max())
    scores = similarity(captions[rows], visual)
    return normalise(scores, torch.stack(low).min(), torch.stack(high).max())
