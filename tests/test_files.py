"""Files and folders that are whole or not there, and locks that end with their process."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from basic.files import Locked, disk_error, locked, remove_leftovers, replace_folder
from basic.files import write_atomically

REPOSITORY = Path(__file__).resolve().parent.parent
HOLD = """
import os, sys, time
from basic.files import locked
with locked(sys.argv[1]):
    if sys.argv[2] == 'alone' or os.fork() == 0:       # the child is there before anything is said
        print('held', flush=True)
    time.sleep(30)
os._exit(0)
"""
UNWIND = """
import os, sys, time
from basic.files import locked
with locked(sys.argv[1]):
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        print('held', flush=True)
        time.sleep(30)
os._exit(0)
"""


@pytest.fixture
def hold():
    """hold(path, code, ...) -> a process that holds the lock at `path`."""
    processes = []

    def start(path, code=HOLD, *words):
        process = subprocess.Popen(
            [sys.executable, '-c', code, str(path), *(words or ['alone'])],
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        assert process.stdout.readline() == 'held\n'
        return process

    yield start
    for process in processes:
        process.kill()
        process.wait()
        process.stdout.close()


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def fail_while(step):
    """A function that writes or makes something, and then fails."""

    def run(target):
        step(target)
        raise KeyboardInterrupt

    return run


# -------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize(
    'content', ['ä\n', 'ä\n'.encode(), lambda file: file.write('ä\n'.encode())]
)
def test_a_file_is_replaced(tmp_path, content):
    path = tmp_path / 'x.txt'
    path.write_text('old')
    write_atomically(path, content)
    assert path.read_bytes() == 'ä\n'.encode() and names(tmp_path) == ['x.txt']


def test_a_failure_leaves_the_old_file(tmp_path):
    path = tmp_path / 'x.txt'
    path.write_text('old')
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, fail_while(lambda file: file.write(b'half')))
    assert path.read_text() == 'old' and names(tmp_path) == ['x.txt']
    (tmp_path / 'y').mkdir()
    with pytest.raises(OSError):
        write_atomically(tmp_path / 'y', 'text')
    assert names(tmp_path) == ['x.txt', 'y']


def test_a_symbolic_link_is_replaced_and_not_followed(tmp_path):
    (tmp_path / 'precious').write_text('kept')
    (tmp_path / 'x').symlink_to('precious')
    write_atomically(tmp_path / 'x', 'new')
    assert (tmp_path / 'precious').read_text() == 'kept'
    assert (tmp_path / 'x').read_text() == 'new' and not (tmp_path / 'x').is_symlink()


@pytest.mark.parametrize('mask', [0o022, 0o077])
def test_modes_are_those_of_any_new_file(tmp_path, mask):
    before = os.umask(mask)
    try:
        write_atomically(tmp_path / 'x', '')
        replace_folder(tmp_path / 'folder', lambda folder: None)
    finally:
        os.umask(before)
    assert (tmp_path / 'x').stat().st_mode & 0o777 == 0o666 & ~mask
    assert (tmp_path / 'folder').stat().st_mode & 0o777 == 0o777 & ~mask


# ------------------------------------------------------------------------------------------ folders


def test_a_folder_is_replaced(tmp_path):
    for text in ('one', 'two'):
        replace_folder(tmp_path / 'x', lambda folder: (folder / text).write_text(text))
        assert names(tmp_path) == ['x'] and names(tmp_path / 'x') == [text]


def test_a_failure_leaves_the_old_folder(tmp_path, monkeypatch):
    folder = tmp_path / 'x'
    folder.mkdir()
    (folder / 'old').write_text('kept')
    with pytest.raises(KeyboardInterrupt):
        replace_folder(folder, fail_while(lambda new: (new / 'half').write_text('')))
    assert names(tmp_path) == ['x'] and names(folder) == ['old']

    replace = os.replace

    def interrupted(source, target):  # between the two renames
        if str(source).endswith('.tmp'):
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, 'replace', interrupted)
    with pytest.raises(KeyboardInterrupt):
        replace_folder(folder, lambda new: None)
    assert names(tmp_path) == ['x'] and names(folder) == ['old']


def test_leftovers_of_a_name_and_of_no_other(tmp_path):
    own = ['.x[1].0123abcd.tmp', '.x[1].0123abcd.old']
    others = ['.x[1].y.0123abcd.tmp', '.x1.0123abcd.tmp', '.x[1].tmp', 'x[1]']
    for name in own + others:
        (tmp_path / name).mkdir()
    remove_leftovers(tmp_path / 'x[1]')
    assert names(tmp_path) == sorted(others)


# -------------------------------------------------------------------------------------------- locks


def test_a_lock_that_another_process_holds(tmp_path, hold):
    path = tmp_path / '.lock'
    process = hold(path)
    with pytest.raises(Locked) as refused, locked(path):
        pass
    assert str(refused.value) == (
        f'{tmp_path} is in use by process {process.pid} on {socket.gethostname()}: '
        'wait until it is done, or stop it'
    )
    told = []

    def waiting(holder):
        told.append(holder)
        process.send_signal(signal.SIGKILL)  # its lock ends with it

    with locked(path, wait=True, waiting=waiting):
        assert json.loads(path.read_text())['process'] == os.getpid()
    assert told == [f'process {process.pid} on {socket.gethostname()}']


@pytest.mark.parametrize('text', ['', '[]', '[' * 900, '{"process": "x"}', '9' * 900])
def test_a_holder_that_does_not_say_who_it_is(tmp_path, hold, text):
    hold(tmp_path / '.lock')
    (tmp_path / '.lock').write_text(text)
    with pytest.raises(Locked, match='in use by another process'), locked(tmp_path / '.lock'):
        pass


def test_child_processes_neither_keep_nor_release_a_lock(tmp_path, hold):
    process = hold(tmp_path / 'kept', HOLD, 'child')
    process.kill()
    process.wait()
    with locked(tmp_path / 'kept'):
        pass
    hold(tmp_path / 'released', UNWIND)  # the child has left the context, the parent has not
    with pytest.raises(Locked), locked(tmp_path / 'released'):
        pass


def test_a_lock_is_not_taken_twice_in_one_process(tmp_path):
    with locked(tmp_path / '.lock'):
        with pytest.raises(Locked, match=f'process {os.getpid()}'), locked(tmp_path / '.lock'):
            pass
    with locked(tmp_path / '.lock'):
        pass


def test_nothing_is_written_through_a_link_in_the_place_of_a_lock(tmp_path):
    (tmp_path / 'precious').write_text('kept')
    for name, target in (('link', 'precious'), ('dangling', 'absent')):
        (tmp_path / name).symlink_to(target)
        with pytest.raises(OSError, match='is a symbolic link'), locked(tmp_path / name):
            pass
    assert (tmp_path / 'precious').read_text() == 'kept' and not (tmp_path / 'absent').exists()


def test_errors_that_are_their_own_cause():
    error = ValueError('raised from itself, as some libraries do')
    error.__cause__ = error
    assert disk_error(error) is None
