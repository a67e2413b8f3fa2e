"""Retrieval metrics: pure functions of a score matrix and the ground truth.

Q captions, V visual items. A caption belongs to one visual item; a visual item has any number of captions. It is
found at its best-ranked one, and its average precision counts them all. Higher scores are better, ranks start at 1.
"""
import torch

RECALLS = (1, 5, 10)
TIES = {'pessimistic': 1.0, 'mean': 0.5}   # how much of a wrong item that ties with a right one stands before it
_BLOCK = 2**23                             # scores compared at once: bounds the memory, not the result


def retrieval_metrics(scores, owner, ties='pessimistic'):
    """Both directions of caption-visual retrieval.

    Tie rule: the k-th right item of a query, in order of score, has

        rank = k + (wrong items that score higher) + c * (wrong items that score the same)

    with c = 1 for `pessimistic` (among equal scores the wrong items come first) and c = 1/2 for `mean` (the middle
    rank, when one right item ties). Right items that tie with each other are in line one behind the other.

    Args:
        scores: (Q, V) tensor or array of any floating type; compared as they are, never rounded.
        owner: (Q,) integers, the index of the visual item that caption j belongs to.
        ties: `pessimistic` or `mean`.
    Returns:
        dict: `t2v` (captions search visual items) and `v2t` (visual items search captions; those without a caption
        are searched in t2v, but are no query here), each a dict of R@1, R@5, R@10 (per cent), MedR, MeanR (ranks) and
        mAP (0 to 1); and `SumR`, the six recalls added.
    Raises:
        ValueError: NaN or infinite scores, no captions, shapes or owners that do not fit, unknown tie rule.
    """
    scores, owner = _checked(scores, owner, ties)
    matched = scores.gather(1, owner[:, None]).squeeze(1)        # (Q,) each caption's score with its own visual item

    above, level = _wrong_visuals(scores, matched)
    t2v_rank = 1 + above + TIES[ties] * level                    # (Q,) rank of caption j's visual item

    place = _place_among_own(matched, owner)                     # (Q,) the k of the tie rule
    above, level = _wrong_captions(scores, matched, owner, place)
    v2t_rank = place + above + TIES[ties] * level                # (Q,) rank of caption j for its visual item
    first = place == 1                                           # one caption of every visual item that has any
    precision = torch.zeros(scores.shape[1], dtype=torch.float64, device=scores.device)
    precision.index_add_(0, owner, place / v2t_rank)
    average_precision = precision[owner[first]] / torch.bincount(owner)[owner[first]]

    t2v, v2t = _summary(t2v_rank, 1 / t2v_rank), _summary(v2t_rank[first], average_precision)
    return {'t2v': t2v, 'v2t': v2t, 'SumR': recall_sum(t2v) + recall_sum(v2t)}


def recall_sum(direction):
    """R@1 + R@5 + R@10 of one direction's dict; that of `t2v` in validation chooses the model."""
    return sum(direction[f'R@{k}'] for k in RECALLS)


def _checked(scores, owner, ties):
    scores, owner = torch.as_tensor(scores), torch.as_tensor(owner)
    if not scores.is_floating_point():
        scores = scores.double()
    if scores.ndim != 2 or 0 in scores.shape or owner.shape != scores.shape[:1]:
        raise ValueError(f'expected scores (Q, V) and owner (Q,), neither empty; found {tuple(scores.shape)} and '
                         f'{tuple(owner.shape)}')
    if owner.is_floating_point() or owner.min() < 0 or owner.max() >= scores.shape[1]:
        raise ValueError(f'expected owner to index the {scores.shape[1]} visual items; found {owner.dtype} from '
                         f'{owner.min()} to {owner.max()}')
    broken = scores.numel() - int(scores.isfinite().sum())
    if broken:
        raise ValueError(f'{broken} of {scores.numel()} scores are NaN or infinite: nothing can be ranked')
    if ties not in TIES:
        raise ValueError(f"unknown tie rule '{ties}'; valid: {', '.join(TIES)}")
    return scores, owner.to(scores.device, torch.int64)


def _wrong_visuals(scores, matched):
    """(Q,) float64 each: how many wrong visual items score above, and level with, caption j's own. No sorting."""
    rows_at_once = max(1, _BLOCK // scores.shape[1])
    blocks = list(zip(scores.split(rows_at_once), matched.split(rows_at_once)))
    above = torch.cat([(rows > own[:, None]).sum(dim=1) for rows, own in blocks])
    level = torch.cat([(rows == own[:, None]).sum(dim=1) for rows, own in blocks]) - 1     # less the own one
    return above.double(), level.double()


def _wrong_captions(scores, matched, owner, place):
    """(Q,) float64 each: how many wrong captions score above, and level with, caption j at its visual item.

    Counts among all captions, by binary search in each visual item's sorted scores, less those among its own.
    """
    own = torch.full((scores.shape[1], int(place.max())), torch.inf, dtype=matched.dtype, device=matched.device)
    own[owner, place - 1] = -matched                             # (V, most) ascending; those without are filled up
    at_once = max(1, _BLOCK // len(scores))
    above, level = [], []
    for columns, rows in zip(scores.split(at_once, dim=1), own.split(at_once)):
        everyone = (-columns.T.contiguous()).sort(dim=1).values  # (block, Q)
        over, upto = (torch.searchsorted(everyone, rows, right=right) - torch.searchsorted(rows, rows, right=right)
                      for right in (False, True))                # (block, most)
        above.append(over)
        level.append(upto - over)
    return torch.cat(above)[owner, place - 1].double(), torch.cat(level)[owner, place - 1].double()


def _place_among_own(matched, owner):
    """(Q,) int64: 1 for the best-scored caption of each visual item, 2 for the next, and so on."""
    order = torch.argsort(matched, descending=True, stable=True)
    order = order[torch.argsort(owner[order], stable=True)]      # by visual item, then by falling score
    captions = torch.bincount(owner)
    start = captions.cumsum(0) - captions                        # where each visual item's captions begin in `order`
    place = torch.empty_like(owner)
    place[order] = torch.arange(1, len(owner) + 1, device=owner.device) - start[owner[order]]
    return place


def _summary(ranks, average_precision):
    recalls = {f'R@{k}': 100 * float((ranks <= k).double().mean()) for k in RECALLS}
    return {**recalls, 'MedR': float(ranks.quantile(0.5)), 'MeanR': float(ranks.mean()),
            'mAP': float(average_precision.mean())}
