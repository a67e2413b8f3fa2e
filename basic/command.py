"""How every command line ends: output that any terminal can show, signals, exit status, the reason in one line.

Exit status: 0 done; 1 it ended without success, as the command's own help says; 2 something that the user can put
right; 3 out of memory; 128 + the signal's number where a signal stopped it (130 Ctrl-C, 143 SIGTERM, 129 SIGHUP, 138
SIGUSR1, which clusters send before the time is up).
"""
import errno
import os
import shlex
import signal
import sys
import threading
from contextlib import contextmanager
from functools import wraps

STOPPING = tuple(getattr(signal, name) for name in ('SIGTERM', 'SIGHUP', 'SIGUSR1') if hasattr(signal, name))
OUT_OF_MEMORY = 3
TYPED = 'NRCCR_TYPED'                    # the command as the user typed it, where a driver started this one


class Stopped(KeyboardInterrupt):
    """A signal other than Ctrl-C's asks the process to stop. `number`: the signal's."""

    def __init__(self, number):
        super().__init__(signal.Signals(number).name)
        self.number = number


def command(name):
    """Decorator for a `main(argv=None)`: ends it as this module says, and returns the exit status.

    What a `main` knows beside the error (how to go on, which options help) it attaches by `error.add_note`; each note
    is printed as a line of its own.

    Args:
        name: as messages call the command, such as 'train.py'.
    """
    def decorate(main):
        @wraps(main)
        def run(argv=None):
            readable_output()
            try:
                with stopping_signals():
                    return main(argv) or 0
            except BrokenPipeError:      # `... | head`: nobody reads any more
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                return 128 + signal.SIGPIPE
            except BaseException as error:
                ending = describe(error)
                if ending is None:       # a mistake of ours: the traceback is what helps
                    raise
                message, status = ending
                if _is_to_speak(interrupted=status > 128):
                    print(f'{name}: {message}', *getattr(error, '__notes__', ()), sep='\n', file=sys.stderr)
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
    cause = full_disk(error)
    if cause:
        return f'error: {cause}', 2
    if isinstance(error, ValueError | OSError):
        return f'error: {error}', 2
    if hasattr(error, 'exit_status'):
        return f'error: {error}', error.exit_status
    return None


def is_out_of_memory(error):
    """Whether an error says that memory, the machine's or a GPU's, did not suffice."""
    return (isinstance(error, MemoryError) or type(error).__name__ == 'OutOfMemoryError'
            or isinstance(error, RuntimeError) and "can't allocate memory" in str(error))


def full_disk(error):
    """The OSError behind an error that a library raised because a file could not be written; else None."""
    if isinstance(error, RuntimeError):  # torch.save raises it while it closes the file that failed
        while error is not None:
            if isinstance(error, OSError):
                return error
            error = error.__cause__ or error.__context__
    elif f'(os error {errno.ENOSPC})' in str(error):        # tokenizers raises a bare Exception
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return None


@contextmanager
def stopping_signals():
    """Raise Stopped when one of STOPPING arrives, as Ctrl-C raises KeyboardInterrupt; in the main thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number, _):
        raise Stopped(number)

    before = {number: signal.signal(number, stop) for number in STOPPING if signal.getsignal(number) == signal.SIG_DFL}
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
    first = shlex.split(line) if line else ['python', sys.argv[0], *words]
    kept = [word for word in first if word not in without and word not in more]
    return shlex.join([*kept, *more])


def readable_output():
    """Let output in an encoding that lacks a character show its escape, instead of ending the program."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, 'reconfigure'):
            stream.reconfigure(errors='backslashreplace')


def _is_to_speak(interrupted):
    """Whether this process says why it ends: of several that have the same to say, it is the first."""
    if os.environ.get('RANK', '0') == '0' or 'TORCHELASTIC_RUN_ID' not in os.environ:
        return True
    if not interrupted:
        from basic import distributed
        distributed.after_process_0()
    return not interrupted


def _first_line(error):
    return (str(error).strip() or type(error).__name__).splitlines()[0]
