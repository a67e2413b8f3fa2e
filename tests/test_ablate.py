"""The grid of ablations: what it runs, skips, continues, refuses, and how it stops; on a tiny
collection."""

import fcntl
import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import tiny
import torch
import yaml

from basic.checkpoint import BEST, LAST, load_checkpoint
from basic.config import ConfigError, load_config
from basic.logger import duration
from basic.run_folder import read_log
from basic.runtime import cpu_count
from util import ablate
from util.ablate import ablation_files, main, make_grid
from util.make_demo.corpus import make_demo

REPOSITORY = Path(ablate.__file__).resolve().parent.parent
CONFIG = str(REPOSITORY / 'configs/multi30k.yaml')


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    monkeypatch.setenv('OMP_NUM_THREADS', '1')


@pytest.fixture(scope='module')
def bert(tmp_path_factory):
    return tiny.make_bert(tmp_path_factory.mktemp('bert') / 'bert')


@pytest.fixture
def world(bert, tmp_path):
    """(ROOTPATH, options): a collection without runs."""
    return tiny.make_collection(tmp_path / 'root'), [*tiny.options(bert), 'train.epochs=1']


def words(world, *more):
    root, options = world
    return ['--config', CONFIG, '--rootpath', str(root), *options, *more]


def folder(world, ablation, seed):
    return world[0] / f'multi30k/runs/multi30k_{ablation}_de/seed_{seed}'


def test_a_grid_runs_and_is_not_run_twice(world, capsys):
    arguments = words(world, '--only', 'full,two_triplets', '--seeds', '2', '--jobs', '2')
    assert main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == '2 runs, 0 already finished; 2 at a time on cpu, cpu'
    for ablation in ('full', 'two_triplets'):
        run = folder(world, ablation, 2)
        config = yaml.safe_load((run / 'config.yaml').read_text())
        assert (config['name'], config['train']['seed']) == (f'multi30k_{ablation}', 2)
        assert config['loss']['weights']['kd_sim'] == (0.4 if ablation == 'full' else 0)
        report = json.loads((run / 'metrics.json').read_text())
        row = next(row for row in report['rows'] if row['weight'] == report['val_weight'])
        (line,) = [line for line in lines if line.startswith(f'{ablation}, seed 2: ')]
        assert f'SumR {row["SumR"]:.1f} (w = 0.2, epoch 1)' in line
        assert 'epoch   1' in run.with_name('seed_2.out').read_text()
    assert lines[-1] == 'all runs are finished: 2 of 2 finished'
    assert any('1 of 2 finished, 1 left, about ' in line for line in lines)

    before = {path: path.stat().st_mtime_ns for path in world[0].rglob('*') if path.is_file()}
    assert main(arguments) == 0
    assert capsys.readouterr().out.splitlines()[0].startswith('2 runs, 2 already finished')
    assert before == {
        path: path.stat().st_mtime_ns for path in world[0].rglob('*') if path.is_file()
    }


def test_a_failed_run_and_a_folder_of_another_config_do_not_stop_the_others(
    world, tmp_path, capsys
):
    assert main(words(world, '--only', 'full', '--seeds', '1')) == 0
    own = tmp_path / 'own.yaml'
    own.write_text('discriminator: {kind: weak}\n')
    before = (folder(world, 'full', 1) / BEST).read_bytes()
    capsys.readouterr()
    # The BERT of two layers has no layer 7; `full` was run with another margin.
    assert (
        main(words(world, '--only', f'full,layers_7_11,{own}', '--seeds', '1', 'loss.margin=0.3'))
        == 1
    )
    printed = capsys.readouterr().out
    assert (
        'NOT RUN full, seed 1: ' in printed
        and 'loss.margin: 0.2 -> 0.3' in printed
        and 'name=NAME' in printed
    )
    assert (folder(world, 'full', 1) / BEST).read_bytes() == before
    assert (
        'FAILED layers_7_11, seed 1 (exit status 2)' in printed
        and 'but this BERT has 2 (0 to 1)' in printed
    )
    assert 'own, seed 1: SumR' in printed and (folder(world, 'own', 1) / 'metrics.json').exists()
    assert (
        printed.splitlines()[-1]
        == '2 run(s) are not finished, see above: 1 of 3 finished, 2 failed'
    )
    # that makes no difference
    assert main(words(world, '--only', 'full', '--seeds', '1', 'train.workers=1')) == 0


def test_stopped_runs_go_on_where_they_were(world):
    """Two runs at once that would take an hour: stopped, none of their processes stays, and both
    continue."""
    arguments = words(
        world, '--only', 'full,no_adversary', '--seeds', '1', '--jobs', '2', 'train.patience=100000'
    )
    process = subprocess.Popen(
        [sys.executable, '-m', 'util.ablate', *arguments, 'train.epochs=100000'],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
    )
    runs = [folder(world, name, 1) for name in ('full', 'no_adversary')]
    end = time.monotonic() + 120
    while (
        not all((run / LAST).exists() for run in runs)
        and time.monotonic() < end
        and process.poll() is None
    ):
        time.sleep(0.1)
    busy = [ablate.Job('', load_config(CONFIG), run, []).state()[0] for run in runs]
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 130, printed
    assert busy == [ablate.BUSY] * 2
    assert 'stopped; the same command resumes: 0 of 2 finished, 2 left' in printed.splitlines()[-1]
    for run in runs:  # the output file is locked for as long as any process of the run lives
        assert ablate.Job('', load_config(CONFIG), run, []).state()[0] != ablate.BUSY
        assert 'train.py: interrupted' in run.with_name('seed_1.out').read_text()
    last = [load_checkpoint(run / LAST).epoch for run in runs]

    # as if that had been the number asked for, so that this ends
    for run in runs:
        config = yaml.safe_load((run / 'config.yaml').read_text())
        config['train']['epochs'] = max(last) + 1
        (run / 'config.yaml').write_text(yaml.safe_dump(config))
    assert main([*arguments, f'train.epochs={max(last) + 1}']) == 0
    for run, epoch in zip(runs, last):
        assert [record['epoch'] for record in read_log(run)] == list(range(1, max(last) + 2))
        assert json.loads((run / 'run.json').read_text())['resumed'][0]['after_epoch'] == epoch


def test_the_states_of_a_grid(world, capsys):
    arguments = words(world, '--only', 'full,en_only,infonce,disc_weak', '--seeds', '1')
    job = make_grid(
        [CONFIG], world[0], files=ablation_files(['en_only']), seeds=[1], overrides=world[1]
    )[0]
    job.folder.mkdir(parents=True)
    (job.folder / 'tokenizer').mkdir()  # killed before it had written anything of value
    (folder(world, 'infonce', 1)).mkdir(parents=True)
    (folder(world, 'infonce', 1) / 'model_best.pt').write_text('')
    (folder(world, 'disc_weak', 1)).mkdir(parents=True)
    config = make_grid(
        [CONFIG], world[0], files=ablation_files(['disc_weak']), seeds=[1], overrides=world[1]
    )[0].config
    (folder(world, 'disc_weak', 1) / 'config.yaml').write_text(
        yaml.safe_dump(ablate.config_to_dict(config))
    )
    assert main([*arguments, '--list']) == 0
    states = {
        line.split(',')[0]: line.split('1 ', 1)[1] for line in capsys.readouterr().out.splitlines()
    }
    assert states['full'].strip().startswith(ablate.NEW) and states['en_only'].strip().startswith(
        ablate.NEW
    )
    assert (
        ablate.OTHER in states['infonce']
        and 'model_best.pt, but no config.yaml' in states['infonce']
    )
    assert states['disc_weak'].strip().startswith(ablate.UNFINISHED)
    assert not (folder(world, 'full', 1)).exists()


def test_two_ablations_of_one_name_are_refused(tmp_path):
    own = tmp_path / 'full.yaml'
    own.write_text('train: {lr: 1}')
    with pytest.raises(ConfigError, match="two ablations have the name 'full'"):
        ablation_files(['full', str(own)])
    assert ablation_files(['full', 'full']).keys() == {'full'}


def test_the_grid_is_every_ablation_by_every_seed(world):
    root, options = world
    jobs = make_grid([CONFIG], root, files=ablation_files(), seeds=[1, 2, 3], overrides=options)
    names = list(ablation_files())
    assert names[0] == 'full' and len(names) == len(
        list((REPOSITORY / 'configs/ablation').glob('*.yaml'))
    )
    assert [job.label for job in jobs] == [
        f'{name}, seed {seed}' for seed in (1, 2, 3) for name in names
    ]
    assert len({job.folder for job in jobs}) == len(jobs)
    named = make_grid(
        [CONFIG], root, files=ablation_files(['full']), seeds=[1], overrides=[*options, 'name=mine']
    )
    assert named[0].config.name == 'mine_full'


def test_what_an_ablation_sets_wins_over_the_options_of_the_grid(world):
    root, options = world  # which train layer 1
    frozen, full = make_grid(
        [CONFIG], root, files=ablation_files(['frozen_text', 'full']), seeds=[1], overrides=options
    )
    assert (
        list(frozen.config.text.trained_layers) == []
        and 'text.trained_layers=[1]' not in frozen.arguments
    )
    assert (
        list(full.config.text.trained_layers) == [1]
        and frozen.config.text.hidden == full.config.text.hidden == 16
    )
    with pytest.raises(ConfigError, match='sets a group, and .*no_adversary.yaml sets a part'):
        make_grid(
            [CONFIG],
            root,
            files=ablation_files(['no_adversary']),
            seeds=[1],
            overrides=[*options, 'loss.weights={kd_sim: 1}'],
        )


def test_noise_has_corpora_of_its_own(tmp_path, capsys, demo_root):
    sizes = {'train': 4, 'val': 2, 'test': 2}
    arguments = [
        '--config',
        str(REPOSITORY / 'configs/demo/multi30k.yaml'),
        '--rootpath',
        str(tmp_path),
        '--seeds',
        '1',
        '--only',
        'full',
        '--noise',
        '0,0.4',
        '--list',
        f'text.bert={tmp_path}/bert',
    ]
    assert main(arguments) == 0  # a look makes no corpus
    assert capsys.readouterr().out.count('no corpus yet, 1 run ') == 2 and not list(
        tmp_path.iterdir()
    )
    config = load_config(arguments[1], [arguments[-1]])
    with pytest.raises(ValueError, match='util.make_demo'):
        ablate.make_noisy_demos(tmp_path, config, [0, 0.4], print)
    make_demo(
        root=demo_root(tmp_path),
        collection='multi30k',
        lang='de',
        report=lambda line: None,
        **sizes,
    )
    ablate.make_noisy_demos(tmp_path, config, [0, 0.4], print)
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert not (tmp_path / 'noise_0/clip').exists()  # all of them use the first corpus's encoders
    for rate, name in ((0, 'multi30k_full_de'), (0.4, 'multi30k_full_de_noise_0.4')):
        assert f'{tmp_path}/noise_{rate}/multi30k/runs/{name}/seed_1' in printed
        manifest = json.loads((tmp_path / f'noise_{rate}/multi30k/demo.json').read_text())
        assert manifest['noise'] == {'de': rate} and manifest['options'].items() >= sizes.items()


def test_devices_are_used_in_turn_and_threads_shared(monkeypatch):
    monkeypatch.setenv('OMP_NUM_THREADS', '8')
    assert ablate.Grid([], ['0', '1', '0']).environment['OMP_NUM_THREADS'] == '2'
    monkeypatch.delenv('OMP_NUM_THREADS')
    assert ablate.Grid([], ['cpu']).environment['OMP_NUM_THREADS'] == str(cpu_count())
    made = []
    monkeypatch.setattr(ablate.Grid, 'run', lambda grid: made.append(grid.free) or 0)
    monkeypatch.setattr(ablate, 'make_grid', lambda *args, **options: [])
    for options in (
        ['--device', '0,1', '--jobs', '3'],
        ['--gpus', '0,1'],
        ['--device', 'cpu', '--jobs', '2'],
    ):
        assert main(['--config', CONFIG, '--rootpath', '/', *options]) == 0
    assert made == [['0', '1', '0'], ['0', '1'], ['cpu', 'cpu']]
    made.clear()
    for there, device in ((True, '0'), (False, 'cpu')):
        monkeypatch.setattr(torch.cuda, 'is_available', lambda there=there: there)
        assert main(['--config', CONFIG, '--rootpath', '/']) == 0 and made.pop() == [device]


@pytest.fixture
def stand_in(monkeypatch, tmp_path):
    """stand_in(code): what runs in place of train.py."""

    def make(code):
        (tmp_path / 'stand_in').mkdir(exist_ok=True)
        (tmp_path / 'stand_in/train.py').write_text(code)
        monkeypatch.setattr(ablate, 'REPOSITORY', tmp_path / 'stand_in')

    return make


@pytest.mark.parametrize(
    'code, message',
    [
        (
            'import os; os.kill(os.getpid(), 9)',
            'killed (SIGKILL), probably because memory ran out: try fewer --jobs or a '
            'smaller compute.micro_batch',
        ),
        ('import os; os.kill(os.getpid(), 11)', 'killed (SIGSEGV)'),
        ('import sys; sys.exit(143)', 'exit status 143: stopped by SIGTERM'),
        ('import sys; sys.exit(3)', 'exit status 3: out of memory'),
        ('import sys; sys.exit(2)', 'exit status 2'),
    ],
)
def test_how_a_run_ended_is_said(world, stand_in, capsys, code, message):
    stand_in(code)
    assert main(words(world, '--only', 'full', '--seeds', '1')) == 1
    assert f'FAILED full, seed 1 ({message}); its' in capsys.readouterr().out


def test_the_output_is_not_written_through_a_link(world, stand_in, tmp_path, capsys):
    stand_in('print(1)')
    (tmp_path / 'precious').write_text('kept')
    output = folder(world, 'full', 1).with_name('seed_1.out')
    output.parent.mkdir(parents=True)
    output.symlink_to(tmp_path / 'precious')
    assert main(words(world, '--only', 'full', '--seeds', '1')) == 1
    assert f'NOT RUN full, seed 1: {output} is a symbolic link' in capsys.readouterr().out
    assert (tmp_path / 'precious').read_text() == 'kept'


def test_a_look_does_not_make_a_grid_drop_a_run(tmp_path):
    path = tmp_path / 'seed_1.out'
    with ablate.open_locked(path) as first:
        assert first is not None and ablate.is_locked(path)
    with open(path, 'rb') as looking:  # as is_locked does, for a moment
        fcntl.flock(looking, fcntl.LOCK_SH)
        assert not ablate.is_locked(path)  # two looks do not see each other
        threading.Timer(0.2, fcntl.flock, (looking, fcntl.LOCK_UN)).start()
        with ablate.open_locked(path) as second:
            assert second is not None
            with ablate.open_locked(path) as third:  # a run holds it
                assert third is None


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_the_runs_and_says_how_to_go_on(world, stand_in, capsys, number):
    stand_in(f'import os, signal, time\nos.kill(os.getppid(), {int(number)})\ntime.sleep(60)')
    before = signal.getsignal(number)
    start = time.monotonic()
    assert main(words(world, '--only', 'full', '--seeds', '1')) == 128 + number
    assert time.monotonic() - start < 50 and signal.getsignal(number) == before
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == 'stopped; the same command resumes: 0 of 1 finished, 1 left'
    assert not ablate.is_locked(folder(world, 'full', 1).with_name('seed_1.out'))


@pytest.mark.parametrize(
    'more, message',
    [
        (['--only', 'absent'], "no ablation 'absent'"),
        (['--only', 'absent.yaml'], "no ablation 'absent.yaml'"),
        (['loss.colour=red'], "unknown key 'loss.colour'"),
        (['data.collection=nowhere'], 'no folder nowhere'),
    ],
)
def test_mistakes_are_named_before_anything_runs(world, capsys, more, message):
    assert main(words(world, *more)) == 2
    assert message in capsys.readouterr().err
    assert not (world[0] / 'multi30k/runs').exists()


@pytest.mark.parametrize(
    'more',
    [
        ['--seeds', '1,1'],
        ['--seeds', 'x'],
        ['--jobs', '0'],
        ['--noise', '2'],
        ['--device', '0,0'],
        ['--device', 'gpu'],
        ['--device', 'cpu:2'],
    ],
)
def test_options_that_cannot_be(world, capsys, more):
    with pytest.raises(SystemExit) as left:
        main(words(world, *more))
    assert left.value.code == 2 and more[0] in capsys.readouterr().err


def test_an_ablation_needs_a_name_or_a_file():
    with pytest.raises(ConfigError, match='two_triplets'):
        ablation_files(['configs/ablation/full'])


@pytest.mark.parametrize(
    'seconds, text', [(4.4, '4 s'), (100, '2 min'), (5399, '90 min'), (9000, '2.5 h')]
)
def test_durations(seconds, text):
    assert duration(seconds) == text
