"""How a command line ends: message, exit status, signals, the command in the user's words."""

import ctypes
import errno
import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from basic import command as module
from basic.command import Killed, command, describe, killed, memory_advice, stopping_signals, typed
from basic.files import write_atomically

REPOSITORY = Path(module.__file__).resolve().parent.parent


def ends(error):
    @command('tool')
    def main(argv=None):
        raise error

    return main([])


class OutOfMemoryError(RuntimeError):
    """As torch's is called."""


class Own(RuntimeError):
    status = 1


@pytest.mark.parametrize(
    'error, status, text',
    [
        (ValueError('wrong'), 2, 'tool: error: wrong'),
        (FileNotFoundError(2, 'No such file', 'x'), 2, "No such file: 'x'"),
        (Own('not finite'), 1, 'tool: error: not finite'),
        (MemoryError(), 3, 'out of memory: MemoryError'),
        (
            OutOfMemoryError('CUDA out of memory. Tried to allocate 2 GiB\nmore'),
            3,
            'Tried to allocate 2 GiB\n',
        ),
        (
            RuntimeError(
                "[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory:"
                ' you tried'
            ),
            3,
            'out of memory',
        ),
        (RuntimeError('CUDA error: out of memory'), 3, 'out of memory'),
        (OSError(errno.ENOMEM, 'Cannot allocate memory'), 3, 'out of memory'),
        (Exception('No space left on device (os error 28)'), 2, 'No space left on device'),
        (
            RuntimeError('DataLoader worker (pid 7) is killed by signal: Killed. '),
            137,
            'SIGKILL), probably because memory',
        ),
        (
            RuntimeError('DataLoader worker (pid 7) is killed by signal: Bus error. '),
            128 + signal.SIGBUS,
            'SIGBUS',
        ),
        (
            Killed('process 1', signal.SIGKILL),
            137,
            'process 1 was killed (SIGKILL), probably because memory ran out',
        ),
        (KeyboardInterrupt(), 130, 'tool: interrupted'),
        (module.Stopped(signal.SIGTERM), 143, 'tool: stopped by SIGTERM'),
    ],
)
def test_endings(capsys, error, status, text):
    assert ends(error) == status
    printed = capsys.readouterr().err
    assert text in printed and printed.startswith('tool: ') and printed.count('\n') == 1


def test_a_signal_in_the_middle_of_a_save(capsys, tmp_path):
    """torch.save, cut short, raises an error of its own while it closes the file."""

    class Disk(io.BytesIO):
        def write(self, data):
            if self.tell() > 1000:
                os.kill(os.getpid(), signal.SIGUSR1)
            return super().write(data)

    @command('tool')
    def main(argv=None):
        write_atomically(tmp_path / 'x.pt', lambda file: torch.save(torch.zeros(9999), Disk()))

    assert main([]) == 128 + signal.SIGUSR1
    assert capsys.readouterr().err == 'tool: stopped by SIGUSR1\n'
    assert not list(tmp_path.iterdir())


def in_a_destructor(number):
    """Python drops what a destructor raises."""

    class Thing:
        def __del__(self):
            os.kill(os.getpid(), number)
            sum(range(1000))

    Thing()


def in_native_code(number):
    """Native code may ask whether there is an attribute, and drop what the search raises."""

    class Thing:
        def __getattr__(self, name):
            os.kill(os.getpid(), number)
            sum(range(1000))

    ctypes.pythonapi.PyObject_HasAttrString(ctypes.py_object(Thing()), b'missing')


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize('place', [in_a_destructor, in_native_code])
def test_a_signal_that_is_dropped_comes_again(capfd, number, place):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs ignore it
    times = []

    @command('tool')
    def main(argv=None):
        place(number)
        try:
            time.sleep(5)
        finally:
            times.append(1)
            time.sleep(3 * module.PATIENCE)  # it is being handled: not another time

    try:
        assert main([]) == 128 + number
        assert signal.getsignal(signal.SIGINT) == signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    lines = capfd.readouterr().err.splitlines()
    assert times == [1] and len(lines) == 1 and lines[0].startswith('tool: ')


def test_a_signal_is_held_and_a_second_one_is_not(capsys):
    seen = []

    @command('tool')
    def main(argv=None):
        with module.signals_held():
            for number in argv:
                os.kill(os.getpid(), number)
                time.sleep(2 * module.PATIENCE)
                seen.append(number)
        seen.append('after')

    assert main([]) == 0 and seen == ['after']
    assert main([signal.SIGTERM]) == 128 + signal.SIGTERM
    assert seen == ['after', signal.SIGTERM]
    assert main([signal.SIGTERM, signal.SIGUSR1]) == 128 + signal.SIGUSR1
    assert seen == ['after', signal.SIGTERM, signal.SIGTERM]
    assert main([]) == 0  # the first of the two is forgotten
    assert capsys.readouterr().err.splitlines() == [
        'tool: stopped by SIGTERM',
        'tool: stopped by SIGUSR1',
    ]


def test_notes_have_lines_of_their_own(capsys):
    error = KeyboardInterrupt()
    error.add_note('To go on: python x --resume')
    assert ends(error) == 130
    assert capsys.readouterr().err == 'tool: interrupted\nTo go on: python x --resume\n'


def test_a_mistake_of_ours_keeps_its_traceback():
    for error in (TypeError('ours'), RuntimeError('ours'), AssertionError('ours')):
        assert describe(error) is None
        with pytest.raises(type(error)):
            ends(error)
    with pytest.raises(SystemExit):  # argparse's
        ends(SystemExit(2))


def test_advice_is_for_memory_only():
    for error, expected in ((MemoryError(), ['less']), (ValueError(), [])):
        with pytest.raises(type(error)), memory_advice('less'):
            raise error
        assert getattr(error, '__notes__', []) == expected


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_signals_stop_it(capsys, number):
    @command('tool')
    def main(argv=None):
        os.kill(os.getpid(), number)
        signal.pause()

    before = signal.getsignal(number)
    assert main([]) == 128 + number
    assert f'stopped by {signal.Signals(number).name}' in capsys.readouterr().err
    assert signal.getsignal(number) == before


def test_an_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as under nohup
    try:
        with stopping_signals():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_users_own_words(monkeypatch):
    monkeypatch.delenv(module.TYPED, raising=False)
    monkeypatch.setattr(sys, 'argv', ['train.py'])
    words = ['--config', 'a b.yaml', '--overwrite']
    assert (
        typed(words, '--resume', without=('--overwrite',))
        == "python train.py --config 'a b.yaml' --resume"
    )
    monkeypatch.setenv(module.TYPED, "./do_all_vatex.sh 'my demo' cpu --resume")
    assert (
        typed(words, '--resume', without=('--overwrite',))
        == "./do_all_vatex.sh 'my demo' cpu --resume"
    )
    monkeypatch.setenv(module.TYPED, "not 'quoted")
    assert typed(words).startswith('python train.py')


def test_killed_from_outside():
    assert killed('it', 11) == 'it was killed (SIGSEGV)' and 'signal 99' in killed('it', 99)
    assert 'truncated' in killed('it', signal.SIGBUS)


def test_output_that_the_terminal_cannot_show_and_nobody_reads():
    code = (
        "from basic.command import command\n@command('tool')\ndef main(argv=None):\n"
        "    print('\\u00e9' * 100000 * {})\nraise SystemExit(main())"
    )
    environment = {**os.environ, 'PYTHONIOENCODING': 'ascii'}
    done = subprocess.run(
        [sys.executable, '-c', code.format(1)], cwd=REPOSITORY, capture_output=True, env=environment
    )
    assert done.returncode == 0 and b'\\xe9' in done.stdout
    with subprocess.Popen(
        [sys.executable, '-c', code.format(100)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
    ) as process:
        process.stdout.read(10)
        process.stdout.close()
        assert b'Traceback' not in process.stderr.read()
