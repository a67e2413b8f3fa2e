"""Retrieval extras against loops over every query, and on scores made by hand."""

import math

import pytest
import torch

from basic.rescoring import dual_softmax, frozen, querybank
from basic.scoring import fuse


def test_a_hub_is_corrected_for_those_who_find_it_first():
    # item 2 is near every query of the bank
    bank = torch.tensor([[0.1, 0.2, 0.9], [0.3, 0.1, 0.8], [0.0, 0.0, 0.9]])
    scores = torch.tensor([[0.70, 0.1, 0.75], [0.9, 0.1, 0.2], [0.2, 0.6, 0.61]])
    found = querybank(scores, bank)
    assert found.argmax(dim=1).tolist() == [0, 0, 1]
    assert torch.equal(found[1], scores[1])  # its first item is no hub


def test_querybank_is_what_its_paper_says():
    torch.manual_seed(0)
    scores, bank, beta = torch.rand(6, 5), torch.rand(9, 5), 7.0
    first = {int(row.argmax()) for row in bank}
    assert 1 < len(first) < 5
    found = querybank(scores, bank, beta)
    for q in range(6):
        row = scores[q].tolist()
        if row.index(max(row)) in first:
            row = [
                math.exp(beta * s) / sum(math.exp(beta * b) for b in bank[:, g].tolist())
                for g, s in enumerate(row)
            ]
            assert found[q].exp().tolist() == pytest.approx(row, rel=1e-5)
        else:
            assert found[q].tolist() == row


def test_dual_softmax_is_over_the_queries():
    torch.manual_seed(0)
    scores = torch.rand(4, 3)
    expected = [
        [
            s * math.exp(10 * s) / sum(math.exp(10 * other) for other in scores[:, g].tolist())
            for g, s in enumerate(row)
        ]
        for row in scores.tolist()
    ]
    assert torch.allclose(dual_softmax(scores, beta=10), torch.tensor(expected))
    # two queries want item 0, the second one more: the first is left with item 1
    both = torch.tensor([[0.80, 0.79], [0.95, 0.10]])
    assert both.argmax(dim=1).tolist() == [0, 0]
    assert dual_softmax(both).argmax(dim=1).tolist() == [1, 0]


def test_frozen_ranges_make_a_query_independent_of_the_others():
    torch.manual_seed(0)
    en, tgt = torch.rand(2, 5, 4)
    ranges = [(float(part.min()), float(part.max())) for part in (en, tgt)]
    whole = frozen(en, tgt, 0.3, ranges)
    assert torch.allclose(whole, fuse(en, tgt, 0.3))  # the ranges are the test's own
    assert torch.equal(frozen(en[2:3], tgt[2:3], 0.3, ranges), whole[2:3])
    assert torch.equal(frozen(en, tgt, 1.0, [(0.5, 0.5), (0, 1)]), en - 0.5)
