"""The processes of a run and their launcher: failures, signals, and who says what."""

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress

import numpy as np
import pytest
from test_distributed import REPOSITORY, start, train_arguments, world

from basic import distributed

__all__ = ['world']  # a fixture


def test_one_process_fails_and_all_stop(world, tmp_path):
    """A feature that only the second process reads is broken: its message, once, and no
    traceback."""
    root = shutil.copytree(world[0], tmp_path / 'root')
    path = root / 'multi30k/FeatureData/train-resnet_152-avgpool.npy'
    features = np.load(path)
    order = np.random.default_rng((1, 1)).permutation(12)  # of the first epoch, see EpochBatches
    features[order[4]] = np.nan  # the second half of the first batch
    np.save(path, features)
    done = start('train.py', *train_arguments((root, world[1]), tmp_path / 'run', 'cpu:2'))
    assert done.returncode == 2
    message = f'NaN or infinite features: train{order[4]};'
    assert done.stderr.count(message) == 1 and 'Traceback' not in done.stderr, done.stderr


def test_a_mistake_of_the_user_is_said_once(world, tmp_path):
    done = start('train.py', *train_arguments(world, tmp_path / 'run', 'cpu:2', 'train.lr=fast'))
    assert (
        done.returncode == 2
        and done.stderr.count("key 'train.lr'") == 1
        and 'Traceback' not in done.stderr
    )


def test_interrupted_processes_end_at_once_with_one_message(world, tmp_path):
    with running(world, tmp_path / 'run') as (process, _):
        os.killpg(process.pid, signal.SIGINT)
        started = time.monotonic()
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and time.monotonic() - started < distributed.GRACE
    assert errors.count('interrupted\nepochs finished and kept') == 1 and '--resume' in errors, (
        errors
    )
    assert 'Traceback' not in errors and 'death signal' not in errors, errors


@contextmanager
def running(world, run_dir):
    """A run of two processes that would take days, after its second epoch: (launcher, numbers of
    the two)."""
    words = train_arguments(world, run_dir, 'cpu:2', 'train.epochs=100000')
    with subprocess.Popen(
        [sys.executable, str(REPOSITORY / 'train.py'), *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={
            **os.environ,
            'OMP_NUM_THREADS': '1',
            'NRCCR_TYPED': './do_all_multi30k.sh demo de cpu:2 --overwrite',
        },
    ) as process:
        try:
            while 'epoch   2' not in process.stdout.readline():
                assert process.poll() is None
            found = subprocess.run(
                ['ps', '-A', '-o', 'pid=,ppid=,command='], capture_output=True, text=True
            ).stdout
            children = [
                int(line.split()[0])
                for line in found.splitlines()
                if line.split()[1] == str(process.pid) and 'train.py' in line
            ]
            assert len(children) == 2
            yield process, children
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def alive(number):
    done = subprocess.run(
        ['ps', '-o', 'stat=', '-p', str(number)], capture_output=True, text=True
    ).stdout.strip()
    return bool(done) and not done.startswith('Z')


def test_the_processes_end_with_a_launcher_that_was_killed(world, tmp_path):
    with running(world, tmp_path / 'run') as (process, children):
        process.kill()
        _, errors = process.communicate(timeout=60)  # until the processes have closed their ends
        end = time.monotonic() + 30
        while any(map(alive, children)) and time.monotonic() < end:
            time.sleep(0.2)
        assert not any(map(alive, children))
    assert 'Traceback' not in errors, errors


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_the_launcher_stops_all_with_one_message(world, tmp_path, number):
    with running(world, tmp_path / 'run') as (process, _):
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert errors.count(f'stopped by {number.name}\nepochs finished and kept: ') == 1, errors
    assert './do_all_multi30k.sh demo de cpu:2 --resume' in errors and 'Traceback' not in errors, (
        errors
    )


def test_a_process_killed_from_outside_is_named(world, tmp_path):
    with running(world, tmp_path / 'run') as (process, children):
        os.kill(max(children), signal.SIGKILL)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGKILL
    assert 'process 1 was killed (SIGKILL), probably because memory ran out' in errors, errors
    assert 'Traceback' not in errors, errors
