"""TREC files: what other people's evaluation computes from them is what this one computes."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from basic.metric import retrieval_metrics
from basic.scoring import fuse, scored, similarity
from basic.trec import strictly_falling, write_trec

pytrec_eval = pytest.importorskip('pytrec_eval')
MEASURES = {'success_1', 'success_5', 'success_10', 'recip_rank', 'map'}


def split(captions=60, visuals=40, levels=0, seed=0, width=6):
    """Embeddings of a split and its EvalSet; with `levels` few values, so many scores are equal."""
    generator = torch.Generator().manual_seed(seed)
    parts = [torch.randn(n, width, generator=generator) for n in (visuals, captions, captions)]
    if levels:  # each row is one of a few
        parts = [part[torch.randint(levels, (len(part),), generator=generator)] for part in parts]
    owner = torch.randint(visuals - 5, (captions,), generator=generator)  # some have no caption
    shuffled = torch.randperm(visuals, generator=generator).tolist()
    ids = [f'item{n}' for n in shuffled]
    eval_set = SimpleNamespace(
        visual_of=owner.numpy(),
        visual_ids=ids,
        caption_ids=[f'{ids[item]}#{row}' for row, item in enumerate(owner.tolist())],
    )
    return parts, owner, eval_set


def read(path):
    lines = [line.split(' ') for line in path.read_text(encoding='utf-8').splitlines()]
    found = {}
    for line in lines:
        value = float(line[4]) if len(line) == 6 else int(line[3])
        found.setdefault(line[0], {})[line[2]] = value
    return found, lines


def judged(prefix, way):
    """The measures of pytrec_eval: the mean over the queries of the qrels, and each query's."""
    truth, run = (read(prefix.parent / f'{prefix.name}.{way}.{end}')[0] for end in ('qrels', 'run'))
    each = pytrec_eval.RelevanceEvaluator(truth, MEASURES).evaluate(run)
    assert each.keys() == truth.keys()
    means = {name: np.mean([found[name] for found in each.values()]) for name in MEASURES}
    return means, {query: found['recip_rank'] for query, found in each.items()}


@pytest.mark.parametrize('levels', [0, 5, 1])
@pytest.mark.parametrize('memory', [1024, 0.02])  # in one block, and in many
def test_pytrec_eval_finds_the_same_metrics(tmp_path, levels, memory):
    (visual, en, tgt), owner, eval_set = split(levels=levels)
    scoring = scored(visual, en, tgt, owner, [0.2], memory=memory)
    assert (len(scoring.all_blocks) > 1) == (memory < 1)
    paths = write_trec(tmp_path / 'x', scoring, eval_set, 0.2, depth=0)
    ours, (t2v, v2t) = scoring.metrics()[0], scoring.ranks()[0]
    assert [path.name for path in paths] == ['x.t2v.run', 'x.t2v.qrels', 'x.v2t.run', 'x.v2t.qrels']
    for way, ranks in (('t2v', t2v), ('v2t', v2t)):
        theirs, each = judged(tmp_path / 'x', way)
        for k in (1, 5, 10):
            assert 100 * theirs[f'success_{k}'] == pytest.approx(ours[way][f'R@{k}'])
        assert theirs['map'] == pytest.approx(ours[way]['mAP'])
        assert theirs['recip_rank'] == pytest.approx(float((1 / ranks).mean()))
        if way == 't2v':
            found = [each[name] for name in eval_set.caption_ids]
            assert found == pytest.approx((1 / ranks).tolist())
    fused = retrieval_metrics(fuse(similarity(en, visual), similarity(tgt, visual), 0.2), owner)
    assert ours['SumR'] == pytest.approx(fused['SumR'], abs=1e-6)


def test_a_run_has_the_first_items_in_order(tmp_path):
    (visual, en, tgt), owner, eval_set = split()
    scoring, told = scored(visual, en, tgt, owner, [1.0, 0.5]), []
    write_trec(
        tmp_path / 'x',
        scoring,
        eval_set,
        0.5,
        depth=7,
        name='my run',
        progress=lambda *args: told.append(args),
    )
    lines = read(tmp_path / 'x.t2v.run')[1]
    assert len(lines) == 60 * 7 and told[-1] == (60 + len(set(owner.tolist())),) * 2
    scores = fuse(similarity(en, visual), similarity(tgt, visual), 0.5)
    for row, name in enumerate(eval_set.caption_ids):
        own = lines[7 * row : 7 * row + 7]
        best = scores[row].topk(7)
        assert {line[0] for line in own} == {name} and [line[3] for line in own] == list('1234567')
        assert [line[2] for line in own] == [eval_set.visual_ids[i] for i in best.indices]
        assert [float(line[4]) for line in own] == pytest.approx(best.values.tolist(), abs=1e-6)
        assert {line[1] for line in own} == {'Q0'} and {line[5] for line in own} == {'my_run'}


def test_some_queries_alone_have_the_same_lists():
    (visual, en, tgt), owner, _ = split()
    scoring = scored(visual, en, tgt, owner, [0.2], memory=0.02)
    every = {query: line for query, *line in scoring.ranked(0.2, 3)}
    rows = [2, 31, 32, 59]
    some = {query: line for query, *line in scoring.ranked(0.2, 3, queries=rows)}
    assert [*some] == rows
    for row in rows:
        assert all(torch.equal(a, b) for a, b in zip(some[row], every[row]))


def test_strictly_falling_numbers():
    scores = np.array(
        [1, 0.5, 0.5, 0.5, np.nextafter(np.float32(0.5), np.float32(0)), 0, 0, -1, -1]
    )
    given = scores.astype(np.float32)
    found = strictly_falling(given)
    assert found.dtype == np.float32 and (np.diff(found.astype(np.float64)) < 0).all()
    assert found[[0, 1, 5, 7]].tolist() == [1, 0.5, 0, -1]
    assert found == pytest.approx(given, abs=1e-6)
    assert [np.float32(f'{x:.9g}') for x in found] == found.tolist()
