"""A run folder: one process at a time, an older run kept until the new one counts, the data that it
was trained on."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

import train
from basic import command, files, run_folder
from basic.checkpoint import BEST, LAST, NEXT_BEST, load_checkpoint
from basic.run_folder import LOCK, keep_best, read_log, RunFolder, set_aside, settle
from basic.report import write_report
from train import main, train_step

REPOSITORY = Path(train.__file__).parent
CONFIG = str(REPOSITORY / 'configs/multi30k.yaml')


@pytest.fixture(scope='module')
def bert(tmp_path_factory):
    return tiny.make_bert(tmp_path_factory.mktemp('bert') / 'bert')


@pytest.fixture
def words(bert, tmp_path):
    """words(*more) -> arguments of train.py for a corpus and a run folder of the test's own."""
    root = tiny.make_collection(tmp_path / 'root')

    def make(*more):
        return [
            '--config',
            CONFIG,
            '--rootpath',
            str(root),
            '--run-dir',
            str(tmp_path / 'run'),
            *tiny.options(bert),
            *more,
        ]

    return make


def refused(argv, capsys, status=2):
    assert main(argv) == status
    message = capsys.readouterr().err.rstrip()
    assert 'Traceback' not in message
    return message


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_text()
        for path in folder.rglob('*')
        if path.is_file()
    }


# -------------------------------------------------------------------------------------- files alone


def older_run(folder, with_last=True):
    (folder / 'tb').mkdir(parents=True)
    for name in ('config.yaml', 'log.jsonl', 'tb/events', BEST, 'metrics.json', 'notes.txt', LAST)[
        : None if with_last else -1
    ]:
        (folder / name).write_text(f'old {name}')
    return contents(folder)


class Cut(BaseException):
    """The process is killed here."""


@pytest.mark.parametrize('with_last', [True, False])
def test_killed_at_any_moment_of_the_replacement_the_older_run_is_whole(
    tmp_path, monkeypatch, with_last
):
    real, moments = os.replace, 0
    for cut in range(30):
        folder = tmp_path / str(cut)
        before, left = older_run(folder, with_last), cut

        def replace(*args):
            nonlocal left
            if not left:
                raise Cut
            left -= 1
            real(*args)

        monkeypatch.setattr(os, 'replace', replace)
        try:
            set_aside(folder)
            (folder / 'config.yaml').write_text('new')  # the new run begins ...
            (folder / 'tokenizer').mkdir()
            settle(folder)  # ... and ended before its first epoch
            moments = moments or cut
        except Cut:
            pass
        monkeypatch.setattr(os, 'replace', real)
        settle(folder)
        assert contents(folder) == before, cut
        assert not list(folder.glob('.*'))
    assert 12 <= moments < 29


def test_with_its_first_epoch_the_new_run_counts(tmp_path):
    older_run(tmp_path)
    set_aside(tmp_path)
    assert contents(tmp_path)['notes.txt'] == 'old notes.txt' and not (tmp_path / BEST).exists()
    (tmp_path / LAST).write_text('new')
    assert settle(tmp_path) is False
    assert contents(tmp_path) == {LAST: 'new', 'notes.txt': 'old notes.txt'}


def test_a_best_model_counts_only_with_its_epoch(tmp_path, monkeypatch):
    monkeypatch.setattr(
        run_folder, 'load_checkpoint', lambda path: type('Checkpoint', (), {'epoch': 3})
    )
    for best_epoch, expected in ((3, 'next'), (2, 'old')):
        (tmp_path / BEST).write_text('old')
        (tmp_path / NEXT_BEST).write_text('next')
        keep_best(tmp_path, best_epoch)
        assert (tmp_path / BEST).read_text() == expected and not (tmp_path / NEXT_BEST).exists()


# --------------------------------------------------------------------------------------------- runs


def hold(folder):
    """Lock a run folder as another process would."""
    folder.mkdir(exist_ok=True)
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    os.write(
        descriptor,
        json.dumps({'process': os.getppid(), 'machine': files.socket.gethostname()}).encode(),
    )
    return descriptor


def test_a_folder_in_use_is_refused_and_a_test_of_it_goes_elsewhere(
    words, tmp_path, monkeypatch, capsys
):
    descriptor = hold(tmp_path / 'run')
    (tmp_path / 'run/config.yaml').write_text('kept')
    for more in (['--resume'], ['--overwrite'], []):
        assert f'is in use by process {os.getppid()} on ' in refused(words(*more), capsys)
    (tmp_path / 'here').mkdir()
    monkeypatch.chdir(tmp_path / 'here')
    report = {'split': 'test', 'checkpoint': str(tmp_path / 'run' / BEST)}
    assert write_report(report) == tmp_path / 'here/metrics.json'
    assert f'it is in use by process {os.getppid()}' in capsys.readouterr().err
    os.close(descriptor)
    assert write_report(report) == tmp_path / 'run/metrics.json'


def test_a_new_run_that_fails_in_its_first_epoch_leaves_the_older_one(
    words, tmp_path, monkeypatch, capsys
):
    assert main(words('train.epochs=1')) == 0
    assert not (tmp_path / 'run' / LAST).exists()  # tested: its training is over
    before = {path: path.read_bytes() for path in (tmp_path / 'run').rglob('*') if path.is_file()}

    def stopped(*_, **__):
        raise command.Stopped(signal.SIGTERM)

    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(train, 'train_step', stopped)
        message = refused(words('train.epochs=2', '--overwrite'), capsys, status=143)
    assert 'stopped by SIGTERM\nepochs finished and kept: 0' in message and message.endswith(
        ' --overwrite'
    )
    assert before == {
        path: path.read_bytes() for path in (tmp_path / 'run').rglob('*') if path.is_file()
    }

    assert main(words('train.epochs=1', '--resume')) == 0  # nothing is left to do
    assert 'is finished and tested, see metrics.json' in capsys.readouterr().out
    message = refused(words('train.epochs=2', '--resume'), capsys)
    assert 'train.keep_last=true' in message and '--overwrite' in message
    assert main(words('train.epochs=2', 'train.keep_last=true', '--overwrite')) == 0
    assert len(read_log(tmp_path / 'run')) == 2 and (tmp_path / 'run' / LAST).exists()


def test_out_of_memory_says_what_helps_and_how_to_go_on(words, tmp_path, monkeypatch, capsys):
    steps = []

    def full(*args, **options):
        steps.append(1)
        if len(steps) > 3:  # in the second epoch
            raise RuntimeError(
                "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
            )
        return train_step(*args, **options)

    monkeypatch.setattr(train, 'train_step', full)
    monkeypatch.setenv('NRCCR_TYPED', './do_all_multi30k.sh demo de cpu --overwrite')
    message = refused(words('--overwrite'), capsys, status=3)
    assert (
        'out of memory' in message
        and 'compute.micro_batch=16' in message
        and 'compute.checkpointing' in message
    )
    assert message.endswith(
        'epochs finished and kept: 1, in '
        + str(tmp_path / 'run')
        + '. To go on:\n  ./do_all_multi30k.sh demo de cpu --resume'
    )


def test_other_data_are_noticed(words, tmp_path, capsys):
    features = next((tmp_path / 'root/multi30k/FeatureData').glob('train-*.npy'))
    text = tmp_path / 'root/multi30k/TextData'
    assert main(words('train.epochs=1', '--no-test')) == 0
    kept = features.read_bytes()
    np.save(features, np.load(features) + 1)
    message = refused(words('train.epochs=2', '--resume'), capsys)
    assert (
        'train features changed' in message
        and 'train captions' not in message
        and '--other-data' in message
    )
    features.write_bytes(kept)
    for path in text.glob('multi30ktrain*'):
        path.write_text(''.join(path.read_text().splitlines(keepends=True)[:-1]))
    message = refused(words('train.epochs=2', '--resume'), capsys)
    assert 'train captions: 12 -> 11' in message
    assert main(words('train.epochs=2', '--resume', '--other-data', '--no-test')) == 0


@pytest.mark.parametrize(
    'change, expected',
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-40]), 'bytes before'),
        (lambda path: os.utime(path, ns=(0, 0)), 'changed or replaced'),
        (
            lambda path: (path.rename(f'{path}.old'), shutil.copy(f'{path}.old', path)),
            'changed or replaced',
        ),
        (Path.unlink, 'it no longer exists'),
    ],
)
def test_features_that_change_while_they_are_read_are_named(
    words, tmp_path, monkeypatch, capsys, change, expected
):
    path, changed = next((tmp_path / 'root/multi30k/FeatureData').glob('train-*.npy')), []

    def step(*args, **options):
        if not changed:
            change(path)
            changed.append(1)
        return train_step(*args, **options)

    monkeypatch.setattr(train, 'train_step', step)
    message = refused(words('train.epochs=2'), capsys)
    assert str(path) in message and expected in message


def test_a_full_disk_in_any_of_the_writes_is_one_line(words, tmp_path, monkeypatch, capsys):
    real, calls = torch.save, []

    def full(content, file):
        calls.append(1)
        if len(calls) == 3:
            try:
                raise OSError(28, 'No space left on device')
            except OSError:
                raise RuntimeError('unexpected pos 64 vs 0')  # noqa: B904  (as torch does)
        real(content, file)

    with monkeypatch.context() as patch:
        patch.setattr(torch, 'save', full)
        message = refused(words('train.epochs=3', '--no-test'), capsys)
    assert (
        'No space left on device' in message
        and 'epochs finished and kept: 1' in message
        and '--resume' in message
    )

    def no_tokenizer(*_):
        raise Exception('No space left on device (os error 28)')

    with monkeypatch.context() as patch:
        patch.setattr(train, 'save_tokenizer', no_tokenizer)
        assert 'No space left' in refused(words('--overwrite'), capsys)
    assert load_checkpoint(tmp_path / 'run' / LAST).epoch == 1  # the older run is there


CUT = """
import os, signal, sys, time, threading, train
def killer(words=sys.argv[2:], after=float(sys.argv[1])):
    real, start = train.train, time.monotonic
    def kill():
        time.sleep(after)
        os.kill(os.getpid(), signal.SIGKILL)
    def begin(run):
        threading.Thread(target=kill, daemon=True).start()
        real(run)
    train.train = begin
    return train.main(words)
killer()
"""


def test_killed_and_resumed_again_and_again(words, tmp_path, capsys):
    """At random moments (more with KILLS=100); the best model always has its line in the log, and
    it ends as it should."""
    random, kills = np.random.default_rng(0), int(os.environ.get('KILLS', 2))
    epochs, folder = 4 + kills, tmp_path / 'run'
    for _ in range(kills):
        more = ['--resume'] if (folder / 'config.yaml').exists() else []
        subprocess.run(
            [
                sys.executable,
                '-c',
                CUT,
                str(random.uniform(0, 0.8)),
                *words(f'train.epochs={epochs}', 'train.patience=1000', '--no-test', *more),
            ],
            cwd=REPOSITORY,
            capture_output=True,
            env={**os.environ, 'OMP_NUM_THREADS': '1'},
        )
        if (folder / BEST).exists():
            assert load_checkpoint(folder).epoch in [record['epoch'] for record in read_log(folder)]
    more = ['--resume'] if (folder / 'config.yaml').exists() else []
    assert main(words(f'train.epochs={epochs}', 'train.patience=1000', *more)) == 0
    records = read_log(folder)
    assert [record['epoch'] for record in records] == list(range(1, epochs + 1))
    assert load_checkpoint(folder).epoch == records[-1]['best_epoch']
    assert not list(folder.glob('.*')) and not (folder / NEXT_BEST).exists()


def test_it_lets_go_of_the_folder(tmp_path):
    (tmp_path / 'run').mkdir()
    with RunFolder(tmp_path / 'run'):
        assert files.holder_of(tmp_path / 'run' / LOCK)
    assert files.holder_of(tmp_path / 'run' / LOCK) is None and time.monotonic()
