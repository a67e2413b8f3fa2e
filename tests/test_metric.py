"""Metrics against hand-made matrices, brute force, ties, half precision and the released
figures."""

from pathlib import Path

import numpy as np
import pytest
import torch

from basic import metric
from basic.metric import recall_sum, retrieval_metrics
from basic.scoring import fuse, similarity

GOLDEN = Path(__file__).parent / 'data/golden'
NAMES = ('R@1', 'R@5', 'R@10', 'MedR', 'MeanR', 'mAP')


def brute_force(scores, owner, ties):
    """The tie rule of `retrieval_metrics`, one query at a time."""
    share = {'pessimistic': 1.0, 'mean': 0.5}[ties]
    scores, owner = np.asarray(scores, dtype=np.float64), np.asarray(owner)

    def query(row, right):
        """First rank and average precision of one query: row of scores, mask of right items."""
        ranks = [
            k + (row[~right] > value).sum() + share * (row[~right] == value).sum()
            for k, value in enumerate(sorted(row[right], reverse=True), 1)
        ]
        return ranks[0], np.mean([k / rank for k, rank in enumerate(ranks, 1)])

    def direction(results):
        ranks, precisions = map(np.array, zip(*results))
        return {
            **{f'R@{k}': 100 * np.mean(ranks <= k) for k in (1, 5, 10)},
            'MedR': np.median(ranks),
            'MeanR': ranks.mean(),
            'mAP': precisions.mean(),
        }

    visuals = np.arange(scores.shape[1])
    return {
        't2v': direction([query(scores[j], visuals == owner[j]) for j in range(len(owner))]),
        'v2t': direction([query(scores[:, v], owner == v) for v in visuals if v in owner]),
    }


def assert_same(found, expected):
    for way in ('t2v', 'v2t'):
        assert list(found[way]) == list(NAMES)
        assert found[way] == pytest.approx(expected[way], abs=1e-9), way


def random_case(seed, captions, visuals, levels=None, dtype=np.float64):
    """Scores, on a few levels only if ties are wanted; owners, unequally many captions each, some
    visuals none."""
    random = np.random.RandomState(seed)
    scores = random.randn(captions, visuals)
    if levels:
        scores = random.randint(0, levels, scores.shape) / levels
    return scores.astype(dtype), random.randint(0, max(1, visuals - 2), captions)


def test_hand_made():
    scores = np.array(
        [
            [0.9, 0.1, 0.2],  # caption 0 of visual 0: first
            [0.8, 0.3, 0.7],  # caption 1 of visual 0: first
            [0.6, 0.5, 0.4],  # caption 2 of visual 1: second
            [0.5, 0.4, 0.3],  # caption 3 of visual 2: third
        ]
    )
    found = retrieval_metrics(scores, np.array([0, 0, 1, 2]))
    assert found['t2v'] == pytest.approx(
        {
            'R@1': 50,
            'R@5': 100,
            'R@10': 100,
            'MedR': 1.5,
            'MeanR': 7 / 4,
            'mAP': (1 + 1 + 1 / 2 + 1 / 3) / 4,
        }
    )
    # visual 0: captions 0 and 1 come first; visual 1: caption 2 comes first; visual 2: caption 3
    # third
    assert found['v2t'] == pytest.approx(
        {
            'R@1': 200 / 3,
            'R@5': 100,
            'R@10': 100,
            'MedR': 1,
            'MeanR': 5 / 3,
            'mAP': (1 + 1 + 1 / 3) / 3,
        }
    )
    assert found['SumR'] == pytest.approx(50 + 200 + 200 / 3 + 200)
    assert recall_sum(found['t2v']) == pytest.approx(250)


@pytest.mark.parametrize('ties, rank', [('pessimistic', 5), ('mean', 3)])
def test_all_scores_equal(ties, rank):
    found = retrieval_metrics(np.zeros((5, 5)), np.arange(5), ties=ties)
    assert found['t2v']['MedR'] == found['v2t']['MeanR'] == rank
    assert found['t2v']['R@1'] == 0


def test_right_captions_that_tie_with_each_other_stand_in_line():
    # visual 0 has captions 0, 1, 2; caption 3 is of visual 1 and ties with them
    found = retrieval_metrics(np.array([[1.0, 0], [1, 0], [1, 0], [1, 2]]), np.array([0, 0, 0, 1]))
    assert found['v2t']['MeanR'] == (2 + 1) / 2  # the wrong one comes before all three
    assert found['v2t']['mAP'] == pytest.approx(((1 / 2 + 2 / 3 + 3 / 4) / 3 + 1) / 2)
    alone = retrieval_metrics(np.array([[1.0, 0], [1, 0], [1, 0], [0, 2]]), np.array([0, 0, 0, 1]))
    assert alone['v2t']['mAP'] == 1 and alone['v2t']['R@1'] == 100


@pytest.mark.parametrize('ties', ['pessimistic', 'mean'])
@pytest.mark.parametrize('levels', [None, 3, 12])
@pytest.mark.parametrize('captions, visuals', [(1, 1), (7, 3), (40, 25), (90, 11)])
def test_brute_force(ties, levels, captions, visuals):
    for seed in range(3):
        scores, owner = random_case(seed, captions, visuals, levels)
        assert_same(retrieval_metrics(scores, owner, ties=ties), brute_force(scores, owner, ties))


@pytest.mark.parametrize('ties', ['pessimistic', 'mean'])
def test_ranks_are_those_of_the_metrics(ties):
    scores, owner = random_case(4, 40, 25, levels=6, dtype=np.float32)
    wrong = metric.WrongCount(
        metric.GroundTruth(owner, 40, 25, device='cpu'),
        torch.from_numpy(scores[np.arange(40), owner]),
        metric.comparisons_of(ties),
        2**18,
    )
    block = torch.from_numpy(scores.T.copy())
    block[owner, np.arange(40)] = torch.nan
    wrong.add(block, slice(0, 40), slice(0, 25))
    t2v, v2t = wrong.ranks()
    share = {'pessimistic': 1.0, 'mean': 0.5}[ties]

    def first(row, right):
        best = row[right].max()
        return 1 + (row[~right] > best).sum() + share * (row[~right] == best).sum()

    assert t2v.tolist() == [first(scores[j], np.arange(25) == owner[j]) for j in range(40)]
    assert (
        v2t.tolist() == [first(scores[:, v], owner == v) for v in range(25) if v in owner]
        and len(v2t) < 25
    )


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize('ties', ['pessimistic', 'mean'])
def test_low_precision_is_compared_as_it_is(dtype, ties):
    scores, owner = random_case(5, 60, 20)
    scores = torch.as_tensor(scores).mul(0.01).to(dtype)  # close together: rounding makes ties
    assert_same(
        retrieval_metrics(scores, owner, ties=ties), brute_force(scores.double(), owner, ties)
    )


def test_block_size_does_not_matter(monkeypatch):
    scores, owner = random_case(2, 50, 20, levels=5)
    whole = retrieval_metrics(scores, owner)
    monkeypatch.setattr(metric, 'tile_size', lambda device: 60)
    assert retrieval_metrics(scores, owner) == whole


def test_visual_items_without_captions_are_searched_but_do_not_search():
    scores = np.array([[0.5, 0.9]])
    found = retrieval_metrics(scores, np.array([0]))
    assert found['t2v']['MedR'] == 2 and found['v2t']['MedR'] == 1 and found['v2t']['R@1'] == 100


@pytest.mark.parametrize('name', ['metrics', 'metrics_noisy'])
def test_released_figures(name):
    golden = np.load(GOLDEN / f'{name}.npz')
    visual, en, tgt = (torch.from_numpy(golden[key]) for key in ('visual', 'source', 'translation'))
    en, tgt = similarity(en, visual), similarity(tgt, visual)
    assert np.abs(fuse(en, tgt, 0.2).numpy() - golden['scores_w0.2']).max() < 1e-6
    for weight, *expected in golden['weights_t2v_v2t']:
        found = retrieval_metrics(fuse(en, tgt, weight), golden['owner'])
        values = [found[way][key] for way in ('t2v', 'v2t') for key in NAMES]
        assert values == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    'scores, owner, ties, message',
    [
        ([[0.5, float('nan')]], [0], 'mean', '1 of 2 scores are NaN'),
        ([[0.5, float('inf')]], [0], 'mean', '1 of 2 scores are NaN or infinite'),
        ([[0.5, 0.1]], [2], 'mean', 'index the 2 visual items'),
        ([[0.5, 0.1]], [-1], 'mean', 'index the 2 visual items'),
        ([[0.5, 0.1]], [0.0], 'mean', 'index the 2 visual items'),
        ([[0.5, 0.1]], [0, 1], 'mean', r'\(1, 2\) and \(2,\)'),
        (np.zeros((0, 2)), np.zeros(0, dtype=int), 'mean', 'neither empty'),
        ([[0.5, 0.1]], [0], 'lucky', "unknown tie rule 'lucky'"),
    ],
)
def test_errors(scores, owner, ties, message):
    with pytest.raises(ValueError, match=message):
        retrieval_metrics(np.asarray(scores), np.asarray(owner), ties=ties)
