"""Atomic writes, atomic replacement of folders, and locks."""

import errno
import fcntl
import json
import os
import re
import secrets
import shutil
import socket
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout


# The errors of a full or broken disk.
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)


class Locked(ValueError):
    """Another process holds a lock; the message names it."""


def write_atomically(path, content):
    """Write a file atomically: at any time, the whole old or the whole new file is there.

    Args:
        path: file to write. A symbolic link is replaced; its target does not change.
        content: text, bytes, or a function that writes to the open binary file it is given.
    Raises:
        OSError: the file cannot be written, for example to a full disk. The old file is unchanged.
    """
    path = Path(path)
    temporary = _temporary(path)
    # O_EXCL makes a new file, so no link is followed. The mode is that of any new file.
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with os.fdopen(descriptor, 'wb') as file:
            if callable(content):
                content(file)
            else:
                file.write(content.encode('utf-8') if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def disk_error(error):
    """The OSError of a full or broken disk that caused an error of a library, or None.

    torch.save raises a RuntimeError, whose context is the OSError. The libraries in Rust
    (tokenizers, safetensors) raise their own errors, which end in '(os error 28)'. NumPy's message
    has the number of bytes written.
    """
    told = re.search(r'\(os error (\d+)\)', str(error))
    if told and int(told[1]) in NO_SPACE:
        return OSError(int(told[1]), os.strerror(int(told[1])))
    seen = set()
    while error is not None and id(error) not in seen:  # some libraries raise an error from itself
        seen.add(id(error))
        if isinstance(error, OSError) and error.errno in NO_SPACE:
            return error
        if isinstance(error, OSError) and re.search(r'requested and \d+ written', str(error)):
            return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        error = error.__cause__ or error.__context__
    return None


def replace_folder(folder, fill):
    """Fill a new folder with `fill`, then replace the old folder with it.

    If anything fails, Ctrl-C included, the old folder stays. A process that is killed between the
    two renames leaves the old folder as `.<name>.<random>.old`, and the next call removes it. So
    this is only for folders that can be made again, never for those of a user. Two processes must
    not call it for the same folder at a time (see `locked`).

    Args:
        folder: Path; its parent exists.
        fill: function of the new, empty folder.
    """
    folder = Path(folder)
    with temporary_folder(folder) as temporary:
        fill(temporary)
        old = temporary.with_suffix('.old')
        try:
            if _is_there(folder):
                os.replace(folder, old)
            os.replace(temporary, folder)
        finally:
            if _is_there(old) and not _is_there(folder):
                os.replace(old, folder)  # stopped between the two renames
            remove(old)


@contextmanager
def temporary_folder(path):
    """A new folder `.<name>.<random>.tmp` beside `path`, which is removed at the end.

    Those of killed processes are removed first. Two processes must not call it for the same path
    at a time (see `locked`).
    """
    path = Path(path)
    remove_leftovers(path)
    temporary = _temporary(path)
    try:
        temporary.mkdir()
        yield temporary
    finally:
        remove(temporary)


def remove_leftovers(path):
    """Remove the temporary files that killed processes have left beside `path`.

    No other process may write to `path` at the same time.
    """
    path = Path(path)
    own = re.compile(rf'\.{re.escape(path.name)}\.[a-z0-9_]{{8}}\.(tmp|old)')
    for left in path.parent.iterdir():
        if own.fullmatch(left.name):
            remove(left)


def _temporary(path):
    return path.with_name(f'.{path.name}.{secrets.token_hex(4)}.tmp')


def _is_there(path):
    return path.is_symlink() or path.exists()


def remove(path):
    """Remove a file, a folder with its content, or a symbolic link, if it exists."""
    path = Path(path)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def remove_at_once(folder):
    """Remove a folder in which other processes may be writing.

    They find the whole folder or none: it is renamed first. `remove_leftovers` removes what a
    killed process leaves.
    """
    folder = Path(folder)
    temporary = _temporary(folder)
    with suppress(FileNotFoundError):
        os.replace(folder, temporary)
        remove(temporary)


@contextmanager
def locked(path, *, wait=False, waiting=None):
    """Hold a lock file within the context; the system releases it if this process dies.

    Child processes do not hold it. A second lock on the same file in the same process is refused,
    even with `wait`. The file stays when the lock is released, and names the last holder. A
    symbolic link in its place is refused, because nothing should be written through it.

    Args:
        path: the lock file; it and its folder are created if they do not exist.
        wait: wait for the other process; False: raise at once.
        waiting: function that is called once with the holder's description before waiting.
    Raises:
        Locked: another process holds the lock (only without `wait`); the message has its number,
            machine and folder.
        OSError: the file cannot be created, or is a symbolic link.
    """
    path = Path(path)
    lock = FileLock(path)
    try:
        try:
            lock.acquire(blocking=False)
        except Timeout:
            holder = _holder(path)
            if not wait:
                raise Locked(
                    f'{path.parent} is in use by {holder}: wait until it is done, or stop it'
                ) from None
            if waiting:
                waiting(holder)
            lock.acquire()
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            raise symbolic_link(path) from None
        _sign(path)
        yield
    finally:
        lock.release()


def holder_of(path):
    """The process that holds a lock, as text; None if nobody does. Writes nothing."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | getattr(os, 'O_NOFOLLOW', 0))
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return _holder(path)
    finally:
        os.close(descriptor)
    return None


def symbolic_link(path):
    """The OSError for a symbolic link in the place of a file that we write."""
    return OSError(f'{path} is a symbolic link; expected a regular file: delete the link')


def open_no_link(path, flags):
    """os.open of a file, which is created if it does not exist; OSError for a symbolic link.

    Args:
        flags: such as os.O_WRONLY | os.O_APPEND. The file is not truncated.
    """
    try:
        return os.open(path, flags | os.O_CREAT | getattr(os, 'O_NOFOLLOW', 0), 0o666)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise symbolic_link(path) from None


def _sign(path):
    """Write this process into the lock file; others only read it, perhaps when half-written."""
    with suppress(OSError), open(open_no_link(path, os.O_WRONLY), 'w') as file:
        file.truncate(0)
        json.dump({'process': os.getpid(), 'machine': socket.gethostname()}, file)


def _holder(path):
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), encoding='utf-8') as file:
            found = json.loads(file.read(1000))
        return f'process {int(found["process"])} on {str(found["machine"])[:60]}'
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return 'another process'
