"""Tables and curves from made run folders: means, deviations, intervals, refusals, formats."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from basic.config import config_to_dict, load_config
from basic.published import FIGURES, QUALITIES, released_figures
from util.table.table import main
from util.table.runs import read_runs
from util.table.statistics import Difference, difference, summary

CONFIGS = Path(__file__).resolve().parent.parent / 'configs'
CAPTIONS, VISUALS = 60, 20  # three captions a visual item
OWNER = np.repeat(np.arange(VISUALS), 3)


def make_ranks(seed, ceiling, weights=(0.5, 0.2, 0.0)):
    """Ranks of every query at every weight, from 1 to `ceiling`."""
    random = np.random.RandomState(seed)
    return {
        'weights': np.array(weights),
        'owner': OWNER,
        't2v': random.randint(1, ceiling + 1, (len(weights), CAPTIONS)).astype(np.float32),
        'v2t': random.randint(1, ceiling + 1, (len(weights), VISUALS)).astype(np.float32),
        'caption_ids': np.array([f'v{i // 3}#{i % 3}' for i in range(CAPTIONS)]),
        'visual_ids': np.array([f'v{i}' for i in range(VISUALS)]),
    }


def direction(ranks):
    return {
        **{f'R@{k}': 100 * float(np.mean(ranks <= k)) for k in (1, 5, 10)},
        'MedR': float(np.median(ranks)),
        'MeanR': float(ranks.mean()),
        'mAP': float((1 / ranks).mean()),
    }


def make_run(
    folder, name='full', seed=1, ranks=None, options=(), collection='multi30k', chosen=0.5
):
    """A run folder as train.py leaves it, less what tables do not read; ranks: of `make_ranks`."""
    ranks = ranks or make_ranks(seed, 20)
    config = load_config(
        f'{CONFIGS}/{collection}.yaml',
        [f'name={name}', f'train.seed={seed}', 'train.epochs=2', *options],
    )
    rows = []
    for i, weight in enumerate(ranks['weights'].tolist()):
        t2v, v2t = direction(ranks['t2v'][i]), direction(ranks['v2t'][i])
        sum_r = sum(way[f'R@{k}'] for way in (t2v, v2t) for k in (1, 5, 10))
        rows.append({'weight': weight, 't2v': t2v, 'v2t': v2t, 'SumR': sum_r})
    folder.mkdir(parents=True)
    (folder / 'config.yaml').write_text(yaml.safe_dump(config_to_dict(config)))
    np.savez_compressed(folder / 'ranks.npz', **ranks)
    (folder / 'metrics.json').write_text(
        json.dumps(
            {
                'config': name,
                'epoch': 3 + seed,
                'split': 'test',
                'ties': 'pessimistic',
                'captions': CAPTIONS,
                'visuals': VISUALS,
                'val_weight': 0.2,
                'chosen_weight': chosen,
                'rows': rows,
            }
        )
    )
    (folder / 'log.jsonl').write_text(
        ''.join(
            json.dumps(
                {
                    'epoch': epoch,
                    'best_epoch': epoch,
                    'speed': {'train_seconds': 50 * seed, 'val_seconds': 10},
                }
            )
            + '\n'
            for epoch in (1, 2)
        )
    )
    return rows


@pytest.fixture
def runs(tmp_path):
    """Three seeds each of `full` and, with worse ranks, of `none`; returns (folder, dict name ->
    rows a seed)."""
    rows = {
        name: [
            make_run(
                tmp_path / name / f'seed_{seed}',
                name,
                seed,
                make_ranks(seed + 10 * number, ceiling),
            )
            for seed in (1, 2, 3)
        ]
        for number, (name, ceiling) in enumerate((('full', 12), ('none', 30)))
    }
    return tmp_path, rows


def table_of(capsys, *argv):
    assert main([str(word) for word in argv]) == 0
    return capsys.readouterr().out


def numbers_of(capsys, *argv):
    """dict name -> dict column -> text, of the CSV form."""
    return {
        row['name']: row
        for row in csv.DictReader(io.StringIO(table_of(capsys, *argv, '--format', 'csv')))
    }


def value_in(row, name):
    way, _, key = name.rpartition('/')
    return (row[way] if way else row)[key] * (100 if key == 'mAP' else 1)


# ----------------------------------------------------------------------------- means and deviations


def test_mean_and_sample_deviation_of_every_figure(runs, capsys):
    folder, rows = runs
    found = numbers_of(capsys, folder)
    assert list(found) == ['full', 'none', 'released: multi30k de, task 1']
    for name in ('full', 'none'):
        assert (found[name]['seeds'], found[name]['w']) == ('3', '0.2')
        for group, at in (('', 1), ('w=0 ', 2)):
            for figure in QUALITIES:
                values = [value_in(seed[at], figure) for seed in rows[name]]
                mean = sum(values) / 3
                assert float(found[name][f'{group}{figure} mean']) == pytest.approx(mean)
                assert float(found[name][f'{group}{figure} deviation']) == pytest.approx(
                    (sum((value - mean) ** 2 for value in values) / 2) ** 0.5
                )


def test_each_seed_has_the_weight_chosen_for_it(tmp_path, capsys):
    first = make_run(tmp_path / '1', seed=1, chosen=0.5)
    second = make_run(tmp_path / '2', seed=2, chosen=0.0)
    found = numbers_of(capsys, tmp_path, '--weight', 'chosen')['full']
    assert found['w'] == '0.5, 0'
    assert float(found['SumR mean']) == pytest.approx((first[0]['SumR'] + second[2]['SumR']) / 2)


def test_without_a_choice_the_weight_of_validation_is_shown(tmp_path, capsys):
    rows = make_run(tmp_path / '1', chosen=None)
    found = numbers_of(capsys, tmp_path, '--weight', 'chosen')['full']
    assert found['w'] == '0.2 (preset)' and found['SumR deviation'] == ''
    assert float(found['SumR mean']) == pytest.approx(rows[1]['SumR'])


def test_a_run_without_w_0_has_no_figures_there(tmp_path, capsys):
    make_run(tmp_path / '1', ranks=make_ranks(1, 9, weights=(1.0,)), chosen=1.0)
    found = numbers_of(capsys, tmp_path, '--weight', 'chosen')['full']
    assert found['SumR mean'] and not found['w=0 SumR mean']


def test_costs_come_from_the_log(runs, capsys):
    found = numbers_of(capsys, runs[0], '--metric', 'SumR,epoch,minutes')
    assert float(found['full']['epoch mean']) == 5
    assert float(found['full']['minutes mean']) == pytest.approx(2 * (100 + 10) / 60)
    assert 'w=0 epoch mean' not in found['full']


def test_of_one_value_there_is_no_deviation():
    assert summary([3.0]) == (3.0, None) and summary([1.0, None]) is None and summary([]) is None


# -------------------------------------------------------------------------------------- differences


def hits_of(ranks):
    return {
        way: sum(100.0 * (ranks[way][0] <= k) for k in (1, 5, 10)) for way in ('t2v', 'v2t')
    } | {'owner': OWNER, 'caption_ids': ranks['caption_ids']}


def by_hand(row, base, resamples, seed):
    """The same interval in a loop: draw visual items, look up both rows' recalls anew, average over
    seeds, subtract."""
    random, found = np.random.RandomState(seed), []
    for _ in range(resamples):
        drawn = random.randint(0, VISUALS, VISUALS)
        captions = np.concatenate([np.flatnonzero(OWNER == visual) for visual in drawn])
        sums = [
            np.mean(
                [
                    sum(
                        direction(ranks['t2v'][0][captions])[f'R@{k}']
                        + direction(ranks['v2t'][0][drawn])[f'R@{k}']
                        for k in (1, 5, 10)
                    )
                    for ranks in seeds
                ]
            )
            for seeds in (row, base)
        ]
        found.append(sums[0] - sums[1])
    return np.percentile(found, [2.5, 97.5])


def test_the_interval_is_that_of_a_plain_loop():
    row, base = (
        [make_ranks(seed + first, ceiling) for seed in (1, 2)]
        for first, ceiling in ((0, 14), (50, 16))
    )
    found = difference(
        [hits_of(ranks) for ranks in row], [hits_of(ranks) for ranks in base], resamples=4000
    )
    low, high = by_hand(row, base, 1500, seed=0)
    width = high - low
    assert found.low == pytest.approx(low, abs=0.08 * width) and found.high == pytest.approx(
        high, abs=0.08 * width
    )
    assert found.low < found.mean < found.high


def test_the_drawing_is_paired():
    """A row that does the same a little better on every query: unpaired, the interval would be
    wide."""
    ranks = make_ranks(4, 20)
    better = {**ranks, 'v2t': np.where(np.arange(VISUALS) == 0, 1, ranks['v2t']).astype(np.float32)}
    ranks['v2t'][:, 0] = 2
    found = difference([hits_of(better)], [hits_of(ranks)])
    assert (
        found.mean == pytest.approx(100 / VISUALS)
        and 0 <= found.low
        and found.high <= 4 * 100 / VISUALS
    )


def test_what_leaves_out_0_is_marked(runs, capsys):
    folder, rows = runs
    found = numbers_of(capsys, folder, '--base', 'full')
    for group, at in (('', 1), ('w=0 ', 2)):
        means = [np.mean([seed[at]['SumR'] for seed in rows[name]]) for name in ('none', 'full')]
        assert float(found['none'][f'{group}SumR difference']) == pytest.approx(means[0] - means[1])
        assert (
            found['none'][f'{group}significant'] == '1'
            and found['full'][f'{group}significant'] == ''
        )
    assert Difference(2.0, 0.5, 3.0).significant and Difference(-2.0, -3.0, -0.5).significant
    assert not Difference(2.0, -0.5, 3.0).significant
    assert ' *' in table_of(capsys, folder, '--base', 'full')


def test_equal_rows_do_not_differ(tmp_path, capsys):
    for name in ('a', 'b'):
        make_run(tmp_path / name, name, 1, make_ranks(1, 20))
    found = numbers_of(capsys, tmp_path, '--base', 'a')['b']
    assert [float(found[f'SumR difference{end}']) for end in ('', ' low', ' high')] == [0, 0, 0]
    assert found['significant'] == '0'


def test_other_confidence_other_interval(runs, capsys):
    wide, narrow = (
        numbers_of(capsys, runs[0], '--base', 'full', '--confidence', share)['none']
        for share in ('0.99', '0.5')
    )
    for end, sign in (('low', 1), ('high', -1)):
        key = f'SumR difference {end}'
        assert sign * float(wide[key]) < sign * float(narrow[key])


# ----------------------------------------------------------------------------------------- refusals


def refused(capsys, *argv):
    assert main([str(word) for word in argv]) == 2
    captured = capsys.readouterr()
    message = captured.err.splitlines()[-1]  # runs that are left out are named before
    assert message.startswith('table: error: ') and captured.out == ''
    return message


def test_runs_that_differ_in_more_than_the_seed_are_not_averaged(tmp_path, capsys):
    make_run(tmp_path / '1', seed=1)
    make_run(
        tmp_path / '2',
        seed=2,
        options=['loss.weights.kd_sim=0', 'train.lr=3e-4', 'data.missing=skip'],
    )
    message = refused(capsys, tmp_path)
    assert "runs named 'full' differ in more than the seed" in message
    assert "data.missing: 'error' and 'skip'" in message
    assert (
        'loss.weights.kd_sim: 0.4 and 0.0; train.lr: 0.0001 and 0.0003' in message
        and 'train.seed' not in message
    )


def test_languages_and_rates_of_noise_are_rows_of_their_own(tmp_path, capsys):
    for number, options in enumerate([[], ['data.lang=fr'], ['data.noise=0.4']]):
        for name in ('full', 'none'):
            make_run(
                tmp_path / f'{name}{number}',
                name=name,
                options=options,
                ranks=make_ranks(number, 20),
            )
    table = numbers_of(capsys, tmp_path, '--base', 'full', '--metric', 'SumR')
    rows = [name for name in table if not name.startswith('released')]
    assert rows == [
        'full (de, noise 0)',
        'none (de, noise 0)',
        'full (de, noise 0.4)',
        'none (de, noise 0.4)',
        'full (fr, noise 0)',
        'none (fr, noise 0)',
    ]
    assert float(table['none (fr, noise 0)']['SumR difference']) == 0  # its base has the same ranks
    assert table['full (fr, noise 0)']['SumR difference'] == ''


def test_a_run_tested_before_its_end_is_pointed_out(tmp_path, capsys):
    make_run(tmp_path / '1', options=['train.epochs=9'])
    lines = []
    assert len(read_runs([tmp_path], lines.append)) == 1
    assert lines == [f'tested before its training was finished: {tmp_path / "1"}']


def test_damaged_ranks_are_named(runs, capsys):
    (runs[0] / 'full/seed_1/ranks.npz').write_bytes(b'PK')
    assert 'ranks.npz is damaged' in refused(capsys, runs[0], '--base', 'full')


def test_options_that_change_no_result_are_no_difference(tmp_path, capsys):
    make_run(tmp_path / '1', seed=1)
    make_run(
        tmp_path / '2',
        seed=2,
        options=['train.workers=7', 'compute.image_cache=pixels', 'compute.score_memory=9'],
    )
    assert numbers_of(capsys, tmp_path)['full']['seeds'] == '2'


def test_a_seed_counts_once(tmp_path, capsys):
    make_run(tmp_path / 'a')
    make_run(tmp_path / 'b')
    assert "two runs named 'full' have seed 1" in refused(capsys, tmp_path)
    assert (
        numbers_of(capsys, tmp_path / 'a', tmp_path / 'a', tmp_path / 'b' / '..' / 'a')['full'][
            'seeds'
        ]
        == '1'
    )


def test_a_test_with_other_options_is_refused(tmp_path, capsys):
    make_run(tmp_path / '1')
    path = tmp_path / '1/metrics.json'
    path.write_text(
        json.dumps({**json.loads(path.read_text()), 'altered': ['the model of last.pt']})
    )
    message = refused(capsys, tmp_path)
    assert 'the model of last.pt' in message and 'evaluation.py --checkpoint' in message


def test_a_test_of_another_kind_is_not_averaged(tmp_path, capsys):
    for seed, ties in ((1, 'mean'), (2, 'pessimistic')):
        make_run(tmp_path / str(seed), seed=seed)
        path = tmp_path / str(seed) / 'metrics.json'
        path.write_text(path.read_text().replace('pessimistic', ties))
    assert "the test: ties: 'mean' and 'pessimistic'" in refused(capsys, tmp_path)


def test_rows_of_other_queries_are_not_compared(runs, tmp_path, capsys):
    ranks = make_ranks(1, 9)
    make_run(tmp_path / 'other', 'other', 1, {**ranks, 'caption_ids': ranks['caption_ids'][::-1]})
    assert (
        "'other' cannot be compared with 'full': the runs were tested on different queries"
        in refused(capsys, runs[0], '--base', 'full')
    )


def test_ranks_of_another_test_are_refused(runs, capsys):
    np.savez_compressed(runs[0] / 'none/seed_2/ranks.npz', **make_ranks(77, 40))
    message = refused(capsys, runs[0], '--base', 'full')
    assert (
        'ranks.npz does not belong to the metrics.json beside it' in message
        and 'evaluation.py' in message
    )
    (runs[0] / 'none/seed_2/ranks.npz').unlink()
    assert 'has no ranks.npz' in refused(capsys, runs[0], '--base', 'full')
    assert table_of(capsys, runs[0])  # which needs no ranks


def test_an_unknown_base(runs, capsys):
    assert "no runs named 'half' to compare with; there are: full, none" in refused(
        capsys, runs[0], '--base', 'half'
    )


def test_folders_without_tested_runs(runs, tmp_path, capsys):
    (tmp_path / 'full/seed_2/metrics.json').unlink()
    assert numbers_of(capsys, tmp_path)['full']['seeds'] == '2'  # left out, and said so:
    lines = []
    read_runs([tmp_path], lines.append)
    assert lines == [f'skipped, not tested: {tmp_path / "full/seed_2"}']
    assert 'has no tested run' in refused(capsys, tmp_path / 'full/seed_2')
    assert 'no folder' in refused(capsys, tmp_path / 'absent')
    (tmp_path / 'full/seed_1/metrics.json').write_text('{')
    assert 'metrics.json is damaged' in refused(capsys, tmp_path)


@pytest.mark.parametrize(
    'change, expected',
    [
        ({'rows': 3}, "key 'rows' is 3"),
        ({'epoch': None}, "key 'epoch' is None"),
        ({'chosen_weight': 'x'}, "key 'chosen_weight'"),
        ({'rows': [{'weight': 0.5}]}, r"key 'rows[0].SumR' is None"),
        ({'captions': 10**30}, "key 'captions'"),
        ({'rows': []}, 'has no row'),
        ({'altered': 'x'}, "key 'altered'"),
        ({'val_weight': float('nan')}, "key 'val_weight'"),
        ([1], 'it is a list'),
    ],
)
def test_a_report_of_another_form_is_named(runs, capsys, change, expected):
    path = runs[0] / 'full/seed_1/metrics.json'
    path.write_text(
        json.dumps(
            change
            if isinstance(change, list)
            else {**json.loads(path.read_text()), 'chosen_weight': None, **change}
        )
    )
    assert expected in refused(capsys, runs[0])


@pytest.mark.parametrize(
    'change',
    [
        {'owner': OWNER + 20},
        {'owner': OWNER - 1},
        {'owner': OWNER.astype(np.float32)},
        {'t2v': np.ones((3, 59))},
        {'weights': np.array(['x', 'y', 'z'])},
        {'v2t': np.ones((2, 20))},
        {'caption_ids': np.arange(60)},
        {'v2t': np.ones((3, 0))},
    ],
    ids=str,
)
def test_ranks_of_another_shape_are_refused(runs, capsys, change):
    path = runs[0] / 'full/seed_1/ranks.npz'
    np.savez_compressed(path, **{**make_ranks(1, 12), **change})
    message = refused(capsys, runs[0], '--base', 'full')
    assert str(path) in message and ('damaged' in message or 'does not belong' in message)


@pytest.mark.parametrize(
    'options',
    [
        ['--metric', 'R@1'],
        ['--base', 'full', '--metric', 't2v/R@1'],
        ['--curve', 'x.png', '--base', 'full'],
        ['--curve', 'x.png', '--metric', 'SumR,t2v/R@1'],
        ['--confidence', '95'],
    ],
)
def test_options_that_do_not_go_together(tmp_path, options):
    with pytest.raises(SystemExit, match='2'):
        main([str(tmp_path), *options])


# ------------------------------------------------------------------------------------------ formats


def test_markdown(runs, capsys):
    lines = table_of(capsys, runs[0], '--base', 'full').splitlines()
    rows = [[part.strip() for part in line.strip('|').split('|')] for line in lines[:5]]
    assert len({len(row) for row in rows}) == 1
    assert rows[0][:4] == ['', 'seeds', 'w', 't2v R@1'] and rows[0].count('SumR') == 1
    assert (
        rows[0][14] == 'Δ SumR'
        and rows[0][15] == 'w = 0: t2v R@1'
        and rows[0][-1] == 'w = 0: Δ SumR'
    )
    assert rows[2][0] == 'full' and '±' in rows[2][3] and rows[2][14] == '–'
    assert (
        rows[4][:4] == ['released: multi30k de, task 1', '1', '–', '53.8']
        and rows[4][13] == '450.7'
    )
    assert rows[4][15:] == ['–'] * 12
    notes = '\n'.join(lines[6:])
    assert 'difference from full, with a 95 % interval' in notes and '9,999 resamples' in notes


def test_latex(runs, tmp_path, capsys):
    make_run(tmp_path / 'x', 'a_b', 1)
    assert (
        main(
            [
                str(tmp_path),
                '--base',
                'full',
                '--format',
                'latex',
                '--output',
                str(tmp_path / 't.tex'),
            ]
        )
        == 0
    )
    text = (tmp_path / 't.tex').read_text()
    body = [line for line in text.splitlines() if not line.startswith('%')]
    assert body[0] == r'\begin{tabular}{lrr' + 24 * 'r' + '}' and body[-1] == r'\end{tabular}'
    assert r'\multicolumn{12}{c}{$w$ of each row} & \multicolumn{12}{c}{w = 0} \\' in text
    assert r'\multicolumn{5}{c}{t2v} & \multicolumn{5}{c}{v2t} & \multicolumn{2}{c}{}' in text
    assert r'a\_b &' in text and r'{\scriptsize $\pm$' in text and r'$^{*}$' in text
    for line in body[2:-2]:
        assert (
            line.count('&') == (26 if 'multicolumn' not in line else line.count('multicolumn') + 2)
            or '&' not in line
        )


def test_a_file_appears_whole_and_is_named(runs, tmp_path, capsys):
    assert (
        table_of(capsys, runs[0], '--output', tmp_path / 't.md')
        == f'written: {tmp_path / "t.md"}\n'
    )
    assert (tmp_path / 't.md').read_text() == table_of(capsys, runs[0]) and not list(
        tmp_path.glob('.*')
    )


def test_chosen_metrics_only(runs, capsys):
    found = table_of(capsys, runs[0], '--metric', 'SumR,t2v/R@1').splitlines()[0]
    assert found == '|  | seeds | w | SumR | t2v R@1 | w = 0: SumR | w = 0: t2v R@1 |'


# --------------------------------------------------------------------------------- released figures


def test_released_figures_add_up():
    for figures in FIGURES.values():
        if len(figures) > 1:
            assert sum(figures[i] for i in (0, 1, 2, 5, 6, 7)) == pytest.approx(
                figures[-1], abs=0.21
            )


def test_released_figures_belong_to_released_settings():
    def sum_of(collection, *options):
        return released_figures(load_config(f'{CONFIGS}/{collection}.yaml', options)).get('SumR')

    assert (
        sum_of('vatex') == 366.5
        and sum_of('msrvttcn') == 308
        and sum_of('mscoco', 'data.lang=ja') == 507
    )
    assert sum_of('multi30k', 'data.lang=cs', 'visual.kind=pooled') == 303.6
    assert sum_of('multi30k', 'data.lang=fr', 'data.task=2') == 482.1
    assert released_figures(load_config(f'{CONFIGS}/vatex.yaml'))['v2t/mAP'] == 32.57
    assert (
        sum_of('vatex', 'visual.feature=mine')
        is sum_of('demo/vatex')
        is sum_of('demo/mscoco')
        is None
    )
    assert sum_of('multi30k', 'visual.kind=pooled') is None


# ------------------------------------------------------------------------------------------- curves


@pytest.fixture
def noisy(tmp_path):
    """Two names at three rates, the first with two seeds."""
    for noise in (0, 0.2, 0.4):
        options = [f'data.noise={noise}', f'data.captions.train.tgt=n{noise}.txt']
        for name, seeds in (('full', (1, 2)), ('none', (1,))):
            for seed in seeds:
                make_run(
                    tmp_path / f'{name}{noise}/{seed}',
                    name,
                    seed,
                    make_ranks(seed + int(9 * noise), 20),
                    options,
                )
    return tmp_path


def test_curve(noisy, tmp_path, capsys):
    out = table_of(capsys, '--curve', tmp_path / 'noise.png', noisy)
    assert out == f'written: {tmp_path / "noise.png"}, {tmp_path / "noise.csv"}\n'
    with Image.open(tmp_path / 'noise.png') as picture:
        assert picture.format == 'PNG' and picture.width > 800
    points = list(csv.DictReader(io.StringIO((tmp_path / 'noise.csv').read_text())))
    assert len(points) == 12 and {point['group'] for point in points} == {'with translation', 'w=0'}
    runs = read_runs([noisy / 'full0.2'])
    values = [run.value('SumR', 0.2) for run in runs]
    point = points[1]
    assert (point['group'], point['name'], float(point['noise']), point['seeds']) == (
        'with translation',
        'full',
        0.2,
        '2',
    )
    assert float(point['mean']) == pytest.approx(sum(values) / 2)
    assert float(point['deviation']) == pytest.approx(abs(values[0] - values[1]) / 2**0.5)
    assert points[3]['name'] == 'none' and points[3]['deviation'] == ''


def test_a_line_of_mixed_configs_is_refused(noisy, tmp_path, capsys):
    make_run(tmp_path / 'odd', 'full', 3, options=['data.noise=0.6', 'train.lr=1'])
    message = refused(capsys, '--curve', tmp_path / 'noise.png', noisy)
    assert 'train.lr: 0.0001 and 1.0' in message and 'data.noise' not in message
    assert not (tmp_path / 'noise.png').exists()


def test_a_point_of_two_caption_files_is_refused(noisy, tmp_path, capsys):
    make_run(
        tmp_path / 'odd', 'full', 3, options=['data.noise=0.2', 'data.captions.train.tgt=other.txt']
    )
    assert "runs named 'full, noise 0.2' differ" in refused(
        capsys, '--curve', tmp_path / 'n.png', noisy
    )


def test_no_curve_of_one_rate_and_no_other_picture(runs, noisy, tmp_path, capsys):
    assert 'all runs have data.noise=0' in refused(
        capsys, '--curve', tmp_path / 'x.png', runs[0] / 'full'
    )
    assert 'a name that ends in .png' in refused(
        capsys, '--curve', tmp_path / 'x.pdf', noisy / 'full0'
    )


def test_the_table_does_not_mix_rates_either(noisy, capsys):
    names = {run.config.name for run in read_runs([noisy])}
    rates = {run.config.data.noise for run in read_runs([noisy])}
    rows = [name for name in numbers_of(capsys, noisy) if not name.startswith('released')]
    assert (
        sorted(rows) == sorted(f'{name} (noise {rate:g})' for name in names for rate in rates)
        and len(rates) > 1
    )
