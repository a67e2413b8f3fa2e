"""Files and folders that are whole or not there: atomic writes, replaced folders, locks."""
import json
import os
import shutil
import socket
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout


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
    descriptor, temporary = tempfile.mkstemp(prefix=f'.{path.name}.', suffix='.tmp', dir=path.parent)
    try:
        with os.fdopen(descriptor, 'wb') as file:
            if callable(content):
                content(file)
            else:
                file.write(content.encode('utf-8') if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())         # mkstemp's is for its owner alone
        os.replace(temporary, path)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(temporary)


def replace_folder(folder, fill):
    """Let fill(new folder) make a folder, and put it in the place of what was there: whole, or as it was.

    A process killed between the two renames leaves the old folder beside, as `.<name>.<random>.old`; the next call
    removes such leftovers, so it is for folders that can be made again, never for what a user has made.

    Args:
        folder: Path; its parent exists.
        fill: function of the new, empty folder.
    """
    folder = Path(folder)
    remove_leftovers(folder)
    temporary = Path(tempfile.mkdtemp(prefix=f'.{folder.name}.', suffix='.tmp', dir=folder.parent))
    old = temporary.with_suffix('.old')
    try:
        temporary.chmod(0o777 & ~_umask())
        fill(temporary)
        if folder.is_symlink() or folder.exists():
            os.replace(folder, old)
        os.replace(temporary, folder)
    finally:
        for left in (temporary, old):
            _remove(left)


def remove_leftovers(path):
    """Remove what a killed process left beside `path` while it wrote there by `write_atomically` or `replace_folder`."""
    path = Path(path)
    for ending in ('tmp', 'old'):
        for left in path.parent.glob(f'.{path.name}.*.{ending}'):
            _remove(left)


def _remove(path):
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def locked(path, *, wait=False, waiting=None):
    """Hold a lock file for as long as the context lasts; the system releases it if this process dies.

    A symbolic link in its place is refused, and nothing is ever written through one. The file stays when the lock is
    released, and tells who held it last.

    Args:
        path: the lock file, made if need be in a folder that exists.
        wait: until the other process is done; False: raise at once.
        waiting: called once with the holder's description if it has to wait.
    Raises:
        Locked: another process holds it (only without `wait`); the message names its number, machine and folder.
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
                raise Locked(f'{path.parent} is in use by {holder}: wait until it is done, or stop it') from None
            if waiting:
                waiting(holder)
            lock.acquire()
        _sign(path)
        yield
    finally:
        lock.release()


def _sign(path):
    """Write into the lock file who holds it; other processes only read it, and may find it half-written."""
    with suppress(OSError), open(os.open(path, os.O_WRONLY | getattr(os, 'O_NOFOLLOW', 0)), 'w') as file:
        file.truncate(0)
        json.dump({'process': os.getpid(), 'machine': socket.gethostname()}, file)


def _holder(path):
    try:
        found = json.loads(path.read_text(encoding='utf-8'))
        return f"process {int(found['process'])} on {str(found['machine'])[:60]}"
    except (OSError, ValueError, KeyError, TypeError):
        return 'another process'


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask
