"""Arrays that are computed once, kept on disk, and mapped into memory by every run that needs them.

A cached array is a folder: `array.npy` (a row an item), `ids.txt` (the rows' ids, one a line) and `made_from.json`. It
appears as a whole or not at all, and it is made anew when what it was made from has changed.
"""
import fcntl
import json
import os
import shutil
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np

ARRAY, IDS, MADE_FROM = 'array.npy', 'ids.txt', 'made_from.json'


def cached_array(folder, *, ids, made_from, parts):
    """The path of an array's .npy, computed if it is not there or was made from something else.

    Several processes may ask at once: one computes, the others wait for it and find the result.

    Args:
        folder: where it lies, or is to lie.
        ids: the rows' ids, in order.
        made_from: dict of plain data: what the array depends on beside the ids.
        parts: function that yields the rows in order, as arrays of one type and width.
    Returns:
        Path.
    Raises:
        OSError: the array is not there, and the folder cannot be written.
        what `parts` raises.
    """
    folder = Path(folder)
    if not _is_valid(folder, ids, made_from):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _alone(folder.parent):
            if not _is_valid(folder, ids, made_from):          # else another process has just made it
                _make(folder, ids, made_from, parts)
    return folder / ARRAY


def _is_valid(folder, ids, made_from):
    try:
        return (json.loads((folder / MADE_FROM).read_text(encoding='utf-8')) == made_from
                and (folder / IDS).read_text(encoding='utf-8') == _lines(ids) and (folder / ARRAY).is_file())
    except (OSError, ValueError, RecursionError):    # not there, cut off, or a folder in its place
        return False


def _make(folder, ids, made_from, parts):
    """Write the array into a temporary folder, and put that in the place of what was there."""
    for left in folder.parent.glob(f'.{folder.name}.*'):
        shutil.rmtree(left, ignore_errors=True)                # of a process that was killed at it
    temporary = Path(tempfile.mkdtemp(prefix=f'.{folder.name}.', dir=folder.parent))
    try:
        with open(temporary / ARRAY, 'wb') as file:            # not a map: on a full disk, writing one kills a process
            rows = 0
            for part in parts():
                if not rows:
                    header = {'descr': np.lib.format.dtype_to_descr(part.dtype), 'fortran_order': False,
                              'shape': (len(ids), *part.shape[1:])}
                    np.lib.format.write_array_header_1_0(file, header)
                file.write(np.ascontiguousarray(part).data)
                rows += len(part)
            assert rows == len(ids)
            file.flush()
            os.fsync(file.fileno())
        (temporary / IDS).write_text(_lines(ids), encoding='utf-8')
        (temporary / MADE_FROM).write_text(json.dumps(made_from, indent=2) + '\n', encoding='utf-8')
        temporary.chmod(0o755)                                 # mkdtemp's is for its owner alone
        if folder.exists():
            shutil.rmtree(folder)                              # a run that maps the old array keeps it
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def _alone(folder):
    """Hold the folder's lock, which the system releases should this process die."""
    with open(folder / '.lock', 'w') as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f'waiting for another process that writes into {folder}', file=sys.stderr)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _lines(ids):
    return ''.join(f'{name}\n' for name in ids)
