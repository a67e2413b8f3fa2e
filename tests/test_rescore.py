"""util.rescore on a small trained run: the paper's row is the run's own, the others differ."""

import json
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

import train
from basic.scoring import similarity
from evaluation import Embeddings
from util import rescore

REPOSITORY = Path(train.__file__).parent


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp('world')
    root, bert = tiny.make_collection(folder / 'root'), tiny.make_bert(folder / 'bert')
    words = [
        '--config',
        str(REPOSITORY / 'configs/multi30k.yaml'),
        '--rootpath',
        str(root),
        '--device',
        'cpu',
    ]
    assert (
        train.main(
            [*words, '--run-dir', str(folder / 'run'), 'train.epochs=1', *tiny.options(bert)]
        )
        == 0
    )
    return root, folder / 'run'


@pytest.mark.parametrize('weight', [0.2, 0.0, 1.0])
def test_the_papers_row_is_the_runs_own(run, capsys, weight):
    root, folder = run
    words = [str(folder), '--rootpath', str(root), '--device', 'cpu', '--w', str(weight)]
    assert rescore.main([*words, '--bank', '3']) == 0
    report = json.loads((folder / 'rescored.json').read_text())
    printed = capsys.readouterr().out
    assert all(len(line) < 80 for line in printed.splitlines() if not line.startswith('written'))
    own = json.loads((folder / 'metrics.json').read_text())
    (row,) = (row for row in own['rows'] if row['weight'] == weight)
    rows = {row['name']: row for row in report['rows']}
    assert list(rows) == ['paper', 'frozen ranges', 'querybank', 'dual softmax']
    for way in ('t2v', 'v2t'):
        assert rows['paper'][way] == pytest.approx(row[way])
    assert rows['paper']['SumR'] == pytest.approx(row['SumR'])
    assert report['bank'] == {'captions': 3, 'visuals': 3} and report['weight'] == weight
    assert f'{row["SumR"]:.1f}' in printed


def test_what_cannot_be_rescored(run, capsys):
    root, folder = run
    words = [str(folder), '--rootpath', str(root), '--device', 'cpu']
    for more, expected in (
        (['--bank', '0'], '--bank of at least 1'),
        (['--w', '2'], '--w from 0 to 1'),
        (['--device', 'cpu:2'], 'expected one device'),
    ):
        try:
            assert rescore.main([*words, *more]) == 2
        except SystemExit as end:
            assert end.code == 2
        assert expected in capsys.readouterr().err


def test_a_fresh_run_takes_the_old_ones_rescored_figures_away(run):
    from basic.run_folder import RUN_FILES

    assert 'rescored.json' in RUN_FILES


def test_hubs_lose_what_they_had_won():
    """One visual item is near every caption, in the bank too: corrected scores find the rest."""
    torch.manual_seed(0)
    visual = torch.nn.functional.normalize(torch.randn(6, 8), dim=1)
    hub = visual[0]
    test = Embeddings(visual, *2 * [0.5 * visual + 0.6 * hub])
    others = torch.nn.functional.normalize(torch.randn(40, 8), dim=1)
    bank = Embeddings(others, *2 * [0.5 * others + 0.6 * hub])
    assert similarity(test.en, visual).argmax(dim=1).eq(0).sum() > 2
    rows = rescore.metrics_of_all(
        test=test,
        val=test,
        bank=bank,
        visual_of=np.arange(6),
        weight=0.5,
        ties='pessimistic',
        beta=20.0,
    )
    found = {row['name']: row['t2v']['R@1'] for row in rows}
    assert found['frozen ranges'] == found['paper'] < found['querybank']
    assert found['paper'] < found['dual softmax']
