"""Cached arrays: computed once, stored on disk, and memory-mapped by every run that needs them.

A cached array is a folder with `array.npy` (one row per item), `ids.txt` (the rows' ids, one per
line) and `made_from.json`. It is written atomically. It is stale, and made again, if what it was
made from has changed.
"""

import errno
import json
import os
import shutil
import sys
from functools import partial
from pathlib import Path

import numpy as np

from basic.files import locked, replace_folder
from basic.foreign import DAMAGE, read_json, read_text, refuse_special

ARRAY, IDS, MADE_FROM = 'array.npy', 'ids.txt', 'made_from.json'


def cached_array(folder, *, ids, made_from, parts, rows=None, row_bytes=0):
    """The path of an array's .npy, which is computed if the cache is missing or stale.

    Several processes may call this at the same time: one computes, the others wait for it.

    Args:
        folder: of the cached array.
        ids: the rows' ids, in order; see `rows`.
        made_from: dict of plain data, on which the array depends in addition to the ids.
        parts: function that yields the rows in order, as arrays of one type and width.
        rows: how many rows there are, where they have no ids of their own; None: one for each id.
        row_bytes: of a row, where it is known: the room that the disk must have is checked first.
    Returns:
        Path.
    Raises:
        OSError: the array must be computed, and the folder cannot be written.
        Whatever `parts` raises.
    """
    folder, rows = Path(folder), len(ids) if rows is None else rows
    if not _is_valid(folder, ids, made_from, rows):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(
            folder.parent / '.lock', wait=True, waiting=partial(_say_waiting, folder.parent)
        ):
            # Another process may have made it meanwhile.
            if not _is_valid(folder, ids, made_from, rows):
                _remove_leftovers_of_older_versions(folder)
                _refuse_full_disk(folder.parent, rows * row_bytes)
                make = partial(_make, ids=ids, made_from=made_from, parts=parts, rows=rows)
                replace_folder(folder, make)
    return folder / ARRAY


def _is_valid(folder, ids, made_from, rows):
    """Whether the array exists, is complete and was made from this; all else is a cache miss."""
    try:
        if read_json(folder / MADE_FROM, dict) != made_from or read_text(folder / IDS) != _lines(
            ids
        ):
            return False
        refuse_special(folder / ARRAY)
        return len(np.load(folder / ARRAY, mmap_mode='r', allow_pickle=False)) == rows
    except (OSError, *DAMAGE):
        return False


def _make(folder, *, ids, made_from, parts, rows):
    """Write the array, its ids and what it was made from into an empty folder."""
    # Not through a memory map: on a full disk that kills the process.
    with open(folder / ARRAY, 'wb') as file:
        written = 0
        for part in parts():
            if not written:
                header = {
                    'descr': np.lib.format.dtype_to_descr(part.dtype),
                    'fortran_order': False,
                    'shape': (rows, *part.shape[1:]),
                }
                np.lib.format.write_array_header_1_0(file, header)
            file.write(np.ascontiguousarray(part).data)
            written += len(part)
        assert written == rows
        file.flush()
        os.fsync(file.fileno())
    (folder / IDS).write_text(_lines(ids), encoding='utf-8')
    (folder / MADE_FROM).write_text(json.dumps(made_from, indent=2) + '\n', encoding='utf-8')


def _refuse_full_disk(folder, size):
    """OSError unless the disk has room for `size` bytes."""
    free = shutil.disk_usage(folder).free
    if size > free:
        needed, there = (f'{number / 1e9:.1f} GB' for number in (size, free))
        raise OSError(
            errno.ENOSPC, f'it needs {needed}, and the disk has {there} left', str(folder)
        )


def _remove_leftovers_of_older_versions(folder):
    """Remove `.<name>.<random>` folders of killed older processes; ours now end in `.tmp`."""
    for left in folder.parent.glob(f'.{folder.name}.*'):
        shutil.rmtree(left, ignore_errors=True)


def _say_waiting(folder, holder):
    print(f'waiting for {holder}, which is writing to {folder}', file=sys.stderr, flush=True)


def _lines(ids):
    return ''.join(f'{name}\n' for name in ids)
