"""Files and folders that are whole or not there: atomic writes, replaced folders, locks."""

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


# What a write may find wrong with a disk.
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)


class Locked(ValueError):
    """Another process holds a lock; the message names it."""


def write_atomically(path, content):
    """Write a file that is always whole: the old one or the new one.

    Args:
        path: file to write; a symbolic link is replaced, what it points to is left alone.
        content: text, bytes, or a function that writes into the open binary file that it is given.
    Raises:
        OSError: it cannot be written, a full disk included; what was there is unchanged.
    """
    path = Path(path)
    temporary = _temporary(path)
    # O_EXCL: the file is new, so no link is followed; its mode is that of any new file.
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
    """The OSError of a full or broken disk behind an error that a library raised, or None.

    torch.save raises a RuntimeError while it closes the file that could not be written, with the
    OSError as its context; the libraries in Rust (tokenizers, safetensors) raise errors of their
    own that end in '(os error 28)'; NumPy tells how many bytes were written.
    """
    told = re.search(r'\(os error (\d+)\)', str(error))
    if told and int(told[1]) in NO_SPACE:
        return OSError(int(told[1]), os.strerror(int(told[1])))
    while error is not None:
        if isinstance(error, OSError) and error.errno in NO_SPACE:
            return error
        if isinstance(error, OSError) and re.search(r'requested and \d+ written', str(error)):
            return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        error = error.__cause__ or error.__context__
    return None


def replace_folder(folder, fill):
    """Let fill(new folder) make a folder, then put it in the place of the old one.

    If anything fails, Ctrl-C included, the old folder is there as before. A process killed between
    the two renames leaves the old folder beside, as `.<name>.<random>.old`, and the next call
    removes such leftovers: this is for folders that can be made again, never for what a user has
    made. Two processes must not call it for one folder at a time (see `locked`).

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
    """A new folder `.<name>.<random>.tmp` beside `path`, removed in the end; killed calls' are
    removed first.

    Two processes must not call it for one path at a time (see `locked`).
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
    """Remove what killed calls of this module's functions for `path` left beside it.

    No other process may be writing `path` meanwhile.
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
    """Remove a file, a folder with all that it holds, or a symbolic link, if it is there."""
    path = Path(path)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def locked(path, *, wait=False, waiting=None):
    """Hold a lock file for as long as the context lasts; the system releases it if this process
    dies.

    Child processes do not hold it. A second lock on the same file in one process is refused like
    another process's, and raises even with `wait`. The file stays when the lock is released, and
    tells who held it last. A symbolic link in its place is refused: nothing is written through one.

    Args:
        path: the lock file; made if need be, and its folder too.
        wait: until the other process is done; False: raise at once.
        waiting: called once with the holder's description if it has to wait.
    Raises:
        Locked: another process holds it (only without `wait`); the message names its number,
            machine and folder.
        OSError: the file cannot be made, or is a symbolic link.
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
    """Who holds a lock, as text; None if nobody does. Makes and changes nothing."""
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
    """The OSError for a symbolic link where a file of ours is to be written."""
    return OSError(f'{path} is a symbolic link, and would be written through: delete it')


def open_no_link(path, flags):
    """os.open for a file that is made if need be; OSError where a symbolic link is in its place.

    Args:
        flags: such as os.O_WRONLY | os.O_APPEND. The file is never emptied.
    """
    try:
        return os.open(path, flags | os.O_CREAT | getattr(os, 'O_NOFOLLOW', 0), 0o666)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise symbolic_link(path) from None


def _sign(path):
    """Write into the lock file who holds it; others only read it, and may find it half-written."""
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
