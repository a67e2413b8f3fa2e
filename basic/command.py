"""What all command lines share: readable output, signals, one-line errors and exit statuses.

Exit statuses:

    0      success
    1      no success, as the command's help explains
    2      a mistake of the user
    3      out of memory
    128+n  stopped by signal n, or one of several processes was killed by it: 130 Ctrl-C,
           143 SIGTERM, 129 SIGHUP, 137 SIGKILL, 138 SIGUSR1 (which clusters send before the time
           limit; another number on macOS)
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
PATIENCE = 0.25  # seconds after which an interruption that nothing handles counts as lost
TYPED = 'NRCCR_TYPED'  # the command that the user typed, if a do_*.sh script started this one
_holding, _held = [], []  # see signals_held
NO_MEMORY = (
    "can't allocate memory",
    'not enough memory',
    'out of memory',
    'Cannot allocate memory',
    'CUBLAS_STATUS_ALLOC_FAILED',
)


class Stopped(KeyboardInterrupt):
    """A signal other than Ctrl-C stops the process; `number` is the signal's."""

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
    """The message about a killed process."""
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f'signal {number}'
    likely = {
        'SIGKILL': ', probably because memory ran out',
        'SIGBUS': ', probably because a memory-mapped file was truncated',
    }
    return f'{who} was killed ({name}){likely.get(name, "")}'


def command(name):
    """Decorator for a `main(argv=None)`, which handles errors and returns the exit status.

    A `main` can add advice to an error with `error.add_note`; each note is printed on its own
    line. If an error has an attribute `status`, that is the exit status.

    Args:
        name: of the command in messages, such as 'train.py'.
    """

    def decorate(main):
        @wraps(main)
        def run(argv=None):
            readable_output()
            show_crashes()
            try:
                with stopping_signals():
                    return main(argv) or 0
            except BrokenPipeError:  # `... | head` has stopped reading
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                return 128 + signal.SIGPIPE
            except BaseException as error:
                ending = describe(_interruption(error) or error)
                if ending is None:  # a bug of ours, which needs the traceback
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
    """(message, exit status) of an error; None for a bug of ours."""
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
    """The Ctrl-C or signal that caused an error, such as torch.save's when interrupted, or None."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error


def is_out_of_memory(error):
    """Whether an error means that memory ran out, on the machine or on a GPU."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == 'OutOfMemoryError'
        or isinstance(error, RuntimeError | OSError)
        and any(words in str(error) for words in NO_MEMORY)
    )


@contextmanager
def memory_advice(text):
    """Add advice to an error which means that memory ran out."""
    try:
        yield
    except Exception as error:
        if is_out_of_memory(error) or killed_worker(error):
            error.add_note(text)
        raise


def killed_worker(error):
    """The number of the signal that killed a worker of torch's DataLoader; 0 for other errors."""
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
    """Raise Stopped when a signal of STOPPING arrives, as Ctrl-C raises KeyboardInterrupt.

    Python drops what a destructor raises, and native code can drop what it calls raises. A signal
    whose exception is lost in this way is sent again. A signal that is ignored, such as SIGHUP
    under nohup, stays ignored. All this works only in the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    arrived, done = [], threading.Event()

    def stop(number, _):
        if _holding and not _held:
            _held.append(number)
            return
        _held.clear()  # a second one counts at once
        arrived.append(number)
        raise KeyboardInterrupt if number == signal.SIGINT else Stopped(number)

    def send_again():
        seen = 0
        while not done.wait(PATIENCE):
            if seen and seen == len(arrived) and not _interrupted():
                os.kill(os.getpid(), arrived[-1])
            seen = len(arrived)

    def show(lost):
        if not isinstance(lost.exc_value, KeyboardInterrupt):
            hook(lost)

    hook, sys.unraisablehook = sys.unraisablehook, show
    before = {
        number: signal.signal(number, stop)
        for number in (signal.SIGINT, *STOPPING)
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler)
    }
    sender = threading.Thread(target=send_again, daemon=True)
    sender.start()
    try:
        yield
    finally:
        done.set()
        try:
            sender.join()
        finally:
            sys.unraisablehook = hook
            for number, handler in before.items():
                signal.signal(number, handler)


@contextmanager
def signals_held():
    """Context manager: a Ctrl-C or a signal counts at its end; a second one at once.

    An interruption in the middle of queue.Queue, say, can leave others waiting for good. For code
    of the main thread that shares such things with a library's thread.
    """
    _holding.append(True)
    try:
        yield
    finally:
        _holding.pop()
        if _held and not _holding:
            os.kill(os.getpid(), _held.pop())


def _interrupted():
    """Whether the main thread is handling a Ctrl-C or a signal."""
    error = sys._current_exceptions()[threading.main_thread().ident]
    return _interruption(error[1] if isinstance(error, tuple) else error) is not None


def typed(words, *more, without=()):
    """The command that the user typed, with more words, quoted for a shell.

    Args:
        words: the arguments of this command, for the case that no do_*.sh script started it.
        more: words to add.
        without: words to omit.
    """
    line = os.environ.get(TYPED)
    try:
        first = shlex.split(line) if line else [*_program(), *words]
    except ValueError:  # not quoted for a shell
        first = [*_program(), *words]
    kept = [word for word in first if word not in without and word not in more]
    return shlex.join([*kept, *more])


def _program():
    spec = getattr(sys.modules['__main__'], '__spec__', None)
    return (
        ['python', '-m', spec.name.removesuffix('.__main__')]
        if spec and spec.name.startswith('util.')
        else ['python', sys.argv[0]]
    )


@contextmanager
def telling(what, *, plain=True):
    """Print on stderr what is being done; on a terminal, also count the seconds.

    Args:
        what: such as 'checking BERT'.
        plain: print it even if stderr is not a terminal.
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
        show(end='\n')  # a progress bar may have overwritten the line


def readable_output():
    """Print characters that the output's encoding lacks as escapes, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, 'reconfigure'):
            stream.reconfigure(errors='backslashreplace')


def show_crashes():
    """Print a traceback at a crash in native code: SIGSEGV, or SIGBUS for a truncated map."""
    if not faulthandler.is_enabled():
        with suppress(OSError, ValueError, AttributeError):  # stderr is missing or not a real file
            faulthandler.enable()


def _has_the_word(interrupted):
    """Whether this process prints the error; of several processes, one does."""
    if 'TORCHELASTIC_RUN_ID' in os.environ:
        from basic import distributed

        if interrupted and not distributed.is_main():
            return False  # all processes are interrupted, and process 0 says so
        distributed.after_process_0()
    return True


def _first_line(error):
    return (str(error).strip() or type(error).__name__).splitlines()[0]
