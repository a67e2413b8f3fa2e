"""Cached arrays: computed once, stored on disk, and memory-mapped by every run that needs them.

A cached array is a folder with `array.npy` (one row per item), `ids.txt` (the rows' ids, one per
line) and `made_from.json`. It is written atomically. It is stale, and made again, if what it was
made from has changed.
"""

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


def cached_array(folder, *, ids, made_from, parts):
    """The path of an array's .npy, which is computed if the cache is missing or stale.

    Several processes may call this at the same time: one computes, the others wait for it.

    Args:
        folder: of the cached array.
        ids: the rows' ids, in order.
        made_from: dict of plain data, on which the array depends in addition to the ids.
        parts: function that yields the rows in order, as arrays of one type and width.
    Returns:
        Path.
    Raises:
        OSError: the array must be computed, and the folder cannot be written.
        Whatever `parts` raises.
    """
    folder = Path(folder)
    if not _is_valid(folder, ids, made_from):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(
            folder.parent / '.lock', wait=True, waiting=partial(_say_waiting, folder.parent)
        ):
            if not _is_valid(folder, ids, made_from):  # another process may have made it meanwhile
                _remove_leftovers_of_older_versions(folder)
                replace_folder(folder, partial(_make, ids=ids, made_from=made_from, parts=parts))
    return folder / ARRAY


def _is_valid(folder, ids, made_from):
    """Whether the array exists, is complete and was made from this; all else is a cache miss."""
    try:
        if read_json(folder / MADE_FROM, dict) != made_from or read_text(folder / IDS) != _lines(
            ids
        ):
            return False
        refuse_special(folder / ARRAY)
        return len(np.load(folder / ARRAY, mmap_mode='r', allow_pickle=False)) == len(ids)
    except (OSError, *DAMAGE):
        return False


def _make(folder, *, ids, made_from, parts):
    """Write the array, its ids and what it was made from into an empty folder."""
    # Not through a memory map: on a full disk that kills the process.
    with open(folder / ARRAY, 'wb') as file:
        rows = 0
        for part in parts():
            if not rows:
                header = {
                    'descr': np.lib.format.dtype_to_descr(part.dtype),
                    'fortran_order': False,
                    'shape': (len(ids), *part.shape[1:]),
                }
                np.lib.format.write_array_header_1_0(file, header)
            file.write(np.ascontiguousarray(part).data)
            rows += len(part)
        assert rows == len(ids)
        file.flush()
        os.fsync(file.fileno())
    (folder / IDS).write_text(_lines(ids), encoding='utf-8')
    (folder / MADE_FROM).write_text(json.dumps(made_from, indent=2) + '\n', encoding='utf-8')


def _remove_leftovers_of_older_versions(folder):
    """Remove `.<name>.<random>` folders of killed older processes; ours now end in `.tmp`."""
    for left in folder.parent.glob(f'.{folder.name}.*'):
        shutil.rmtree(left, ignore_errors=True)


def _say_waiting(folder, holder):
    print(f'waiting for {holder}, which is writing to {folder}', file=sys.stderr, flush=True)


def _lines(ids):
    return ''.join(f'{name}\n' for name in ids)
