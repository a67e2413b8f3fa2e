"""Retrieval extras at test time: scores corrected against visual items, or captions, that every
query finds ("hubs").

Each changes the protocol, so `util.rescore` reports it apart. Queries are rows here and gallery
items columns, in either direction: of caption-visual scores (Q, V) as they are for t2v, and
transposed for v2t.

Q queries, G gallery items, K queries of the bank.
"""

import torch

from basic.scoring import mix, normalise

BETA = 20.0  # inverse temperature of querybank normalisation, as its paper has it
DUAL = 100.0  # inverse temperature of dual softmax, for scores from 0 to 1


def querybank(scores, bank, beta=BETA):
    """Querybank normalisation with the dynamic inverted softmax (Bogolin et al. 2022, arXiv
    2112.12777).

    A gallery item that many bank queries score high with is a hub: its scores are divided by
    sum_b exp(beta * bank[b, g]). This is done for queries whose first item is itself the first item
    of some bank query, the others stay as they are. Nothing of the other test queries is used.

    Args:
        scores: (Q, G), comparable with the bank's.
        bank: (K, G), of queries that are not in the test, such as the training captions.
        beta: inverse temperature.
    Returns:
        (Q, G), to be compared within a row: log of the corrected score where it was corrected.
    """
    hubs = torch.zeros(bank.shape[1], dtype=torch.bool, device=bank.device)
    hubs[bank.argmax(dim=1)] = True  # (G,) the activation set
    corrected = beta * scores - (beta * bank).logsumexp(dim=0)  # (Q, G) - (G,)
    return torch.where(hubs[scores.argmax(dim=1)][:, None], corrected, scores)


def dual_softmax(scores, beta=DUAL):
    """Scores times their softmax over all test queries (Cheng et al. 2021, arXiv 2109.04290).

    Transductive: a query's result depends on the other queries of the test.

    Args:
        scores: (Q, G), 0 or more.
        beta: inverse temperature.
    Returns:
        (Q, G).
    """
    return scores * (beta * scores).softmax(dim=0)


def frozen(en, tgt, weight, ranges):
    """Mix the branches' cosines with ranges that were fixed before, on validation, so that the
    score of a query does not depend on the other queries.

    Args:
        en, tgt: (Q, G) cosines.
        weight: share w of the English branch.
        ranges: ((low, high) of en, (low, high) of tgt).
    Returns:
        w * (en - low) / (high - low) + (1 - w) * the same of tgt, (Q, G); beyond [0, 1] where a
        cosine is beyond its range.
    """
    return mix(normalise(en, *ranges[0]), normalise(tgt, *ranges[1]), weight)
