"""How every command line ends: output that any terminal can show, signals, exit status, the reason
in one line.

Exit status: 0 done; 1 it ended without success, as the command's own help says; 2 something that
the user can put right; 3 out of memory; 128 + the signal's number where a signal stopped it (130
Ctrl-C, 143 SIGTERM, 129 SIGHUP, 138 SIGUSR1, which clusters send before the time is up; macOS
counts SIGUSR1 otherwise), or, of several processes, killed one of them (137 SIGKILL).
"""

import faulthandler
import os
import re
import shlex
import signal
import sys
import threading
import time
from contextlib import contextmanager, suppress
from functools import wraps

from basic.files import disk_error

STOPPING = tuple(
    getattr(signal, name) for name in ('SIGTERM', 'SIGHUP', 'SIGUSR1') if hasattr(signal, name)
)
OUT_OF_MEMORY = 3
TYPED = 'NRCCR_TYPED'  # the command as the user typed it, where a driver started this one
NO_MEMORY = (
    "can't allocate memory",
    'not enough memory',
    'out of memory',
    'Cannot allocate memory',
    'CUBLAS_STATUS_ALLOC_FAILED',
)


class Stopped(KeyboardInterrupt):
    """A signal other than Ctrl-C's asks the process to stop. `number`: the signal's."""

    def __init__(self, number):
        super().__init__(signal.Signals(number).name)
        self.number = number


class Killed(RuntimeError):
    """A process that this one started was killed from outside.

    Args:
        who: such as 'process 1'; number: the signal's.
    """

    def __init__(self, who, number):
        super().__init__(killed(who, number))
        self.status = 128 + number


def killed(who, number):
    """The sentence that says so."""
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f'signal {number}'
    likely = {
        'SIGKILL': ', most often because memory ran out',
        'SIGBUS': ', most often because a file that it had mapped was cut short',
    }
    return f'{who} was killed ({name}){likely.get(name, "")}'


def command(name):
    """Decorator for a `main(argv=None)`: ends it as this module says, and returns the exit status.

    What a `main` knows beside the error (how to go on, which options help) it attaches by
    `error.add_note`; each note is a line of its own. An error with a `status` of its own ends with
    that.

    Args:
        name: as messages call the command, such as 'train.py'.
    """

    def decorate(main):
        @wraps(main)
        def run(argv=None):
            readable_output()
            show_crashes()
            try:
                with stopping_signals():
                    return main(argv) or 0
            except BrokenPipeError:  # `... | head`: nobody reads any more
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                return 128 + signal.SIGPIPE
            except BaseException as error:
                ending = describe(_interruption(error) or error)
                if ending is None:  # a mistake of ours: the traceback is what helps
                    raise
                message, status = ending
                if 'basic.logger' in sys.modules:
                    sys.modules['basic.logger'].close_progress()
                if not _has_the_word(interrupted=status > 128):
                    return status
                print(
                    f'{name}: {message}',
                    *getattr(error, '__notes__', ()),
                    sep='\n',
                    file=sys.stderr,
                )
                return status

        return run

    return decorate


def describe(error):
    """(message, exit status) of an error that is no mistake of ours; None for one that is."""
    if isinstance(error, Stopped):
        return f'stopped by {error}', 128 + error.number
    if isinstance(error, KeyboardInterrupt):
        return 'interrupted', 128 + signal.SIGINT
    if is_out_of_memory(error):
        return f'error: out of memory: {_first_line(error)}', OUT_OF_MEMORY
    if killed_worker(error):
        return (
            f'error: {killed("a worker process (train.workers)", killed_worker(error))}',
            128 + killed_worker(error),
        )
    if isinstance(error, Exception) and not getattr(error, 'filename', None) and disk_error(error):
        return f'error: {disk_error(error)}', 2
    if hasattr(error, 'status'):
        return f'error: {error}', error.status
    if isinstance(error, ValueError | OSError):
        return f'error: {error}', 2
    return None


def _interruption(error):
    """The Ctrl-C or signal during which an error was raised, as torch.save raises its own when cut
    short; else None."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error


def is_out_of_memory(error):
    """Whether an error says that memory, the machine's or a GPU's, did not suffice."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == 'OutOfMemoryError'
        or isinstance(error, RuntimeError | OSError)
        and any(words in str(error) for words in NO_MEMORY)
    )


@contextmanager
def memory_advice(text):
    """Add to an error that says that memory ran out, which options help."""
    try:
        yield
    except Exception as error:
        if is_out_of_memory(error) or killed_worker(error):
            error.add_note(text)
        raise


def killed_worker(error):
    """The number of the signal that killed a worker of torch's DataLoader; 0 if that is not what
    happened."""
    told = (
        re.search(r'DataLoader worker .*killed by signal: (\w+)', str(error))
        if isinstance(error, RuntimeError)
        else None
    )
    names = {signal.strsignal(number): number for number in signal.valid_signals()} if told else {}
    return next(
        (int(number) for text, number in names.items() if text and text.startswith(told[1])),
        int(signal.SIGKILL) if told else 0,
    )


@contextmanager
def stopping_signals():
    """Raise Stopped when one of STOPPING arrives, as Ctrl-C raises KeyboardInterrupt; in the main
    thread only.

    A signal that is ignored, as SIGHUP is under nohup, stays ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number, _):
        raise Stopped(number)

    before = {
        number: signal.signal(number, stop)
        for number in STOPPING
        if signal.getsignal(number) == signal.SIG_DFL
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def typed(words, *more, without=()):
    """The command that the user typed, with further words, to be pasted into a shell.

    Args:
        words: the arguments of this command, used where no driver started it.
        more: words to add; without: words to leave out.
    """
    line = os.environ.get(TYPED)
    try:
        first = shlex.split(line) if line else [*_program(), *words]
    except ValueError:  # not as a shell quotes it
        first = [*_program(), *words]
    kept = [word for word in first if word not in without and word not in more]
    return shlex.join([*kept, *more])


def _program():
    spec = getattr(sys.modules['__main__'], '__spec__', None)
    return (
        ['python', '-m', spec.name]
        if spec and spec.name.startswith('util.')
        else ['python', sys.argv[0]]
    )


@contextmanager
def telling(what, *, plain=True):
    """Tell on stderr what is being done meanwhile; in a terminal, count the seconds that it takes.

    Args:
        what: such as 'checking BERT'.
        plain: tell it where stderr is no terminal, too.
    """
    if os.environ.get('RANK', '0') != '0':
        yield
        return
    line, start, done = f'{what} ...', time.monotonic(), threading.Event()
    if not sys.stderr.isatty():
        if plain:
            print(line, file=sys.stderr, flush=True)
        yield
        return

    def show(end=''):
        seconds = round(time.monotonic() - start)
        print(f'\r{line}' + f' {seconds} s' * (seconds > 0), end=end, file=sys.stderr, flush=True)

    def count():
        while not done.wait(1):
            show()

    show()
    thread = threading.Thread(target=count, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        show(end='\n')  # a progress bar may have wiped it out


def readable_output():
    """Let output in an encoding that lacks a character show its escape, instead of ending the
    program."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, 'reconfigure'):
            stream.reconfigure(errors='backslashreplace')


def show_crashes():
    """Let a crash in native code (SIGSEGV; SIGBUS, of a mapped file that was cut short) show where
    it came from."""
    if not faulthandler.is_enabled():
        with suppress(OSError, ValueError, AttributeError):  # no stderr, or none of the system's
            faulthandler.enable()


def _has_the_word(interrupted):
    """Whether this process says why it ends: of several, one does."""
    if 'TORCHELASTIC_RUN_ID' in os.environ:
        from basic import distributed

        if interrupted and not distributed.is_main():
            return False  # all of them are
        distributed.after_process_0()
    return True


def _first_line(error):
    return (str(error).strip() or type(error).__name__).splitlines()[0]
