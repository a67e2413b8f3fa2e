"""Write features in the data's layout: a .npy with its id list, or a BigFile folder.

Beside them is a sidecar JSON, which records what the features were made from.
"""

import json
import os
from datetime import datetime, UTC
from pathlib import Path

import numpy as np

from basic.files import remove, remove_leftovers, replace_folder, write_atomically

SIDECAR = 'extracted.json'  # in a BigFile folder


def sidecar_of(output, kind):
    """The path of an output's sidecar; `kind` is images or frames."""
    return output.with_suffix('.json') if kind == 'images' else output / SIDECAR


def ids_of(output):
    """The path of the id list beside a .npy."""
    return output.with_suffix('.txt')


def write_pooled(output, made_from, ids, parts, more):
    """Write `output` (.npy, one row per id), the id list beside it, and last the sidecar.

    Args:
        made_from: plan of the work, plain data.
        ids: of the rows.
        parts: yields arrays (n, D) float32.
        more: further entries of the sidecar.
    """
    output, parts = Path(output), iter(parts)
    sidecar = sidecar_of(output, 'images')
    remove(sidecar)  # without it the output counts as unfinished
    for path in (output, ids_of(output), sidecar):
        remove_leftovers(path)
    first = next(parts)

    def write(file):
        header = {
            'descr': np.lib.format.dtype_to_descr(np.dtype('<f4')),
            'fortran_order': False,
            'shape': (len(ids), first.shape[1]),
        }
        np.lib.format.write_array_header_1_0(file, header)
        rows = 0
        for part in _chain(first, parts):
            file.write(np.ascontiguousarray(part, dtype='<f4').data)
            rows += len(part)
        assert rows == len(ids)

    write_atomically(output, write)
    write_atomically(ids_of(output), ''.join(f'{name}\n' for name in ids))
    record = {'ids': len(ids), 'rows': len(ids), 'dim': first.shape[1], **more}
    write_atomically(sidecar, _record(made_from, record))


def write_frames(output, made_from, videos, more):
    """Write a BigFile folder with its sidecar; it replaces `output` whole.

    Args:
        videos: yields (id, k of the frames, features (F, D) float32). Frame k is `<id>_<k>`.
        more: further entries of the sidecar, filled when all videos are written.
    """

    def fill(folder):
        rows, dim, names = 0, 0, {}
        with open(folder / 'feature.bin', 'wb') as file:
            for video, frames, features in videos:
                names[video] = [f'{video}_{k}' for k in frames]
                file.write(np.ascontiguousarray(features, dtype='<f4').data)
                rows, dim = rows + len(features), features.shape[1]
            file.flush()
            os.fsync(file.fileno())
        ids = [name for frames in names.values() for name in frames]
        write_atomically(folder / 'shape.txt', f'{rows} {dim}\n')
        write_atomically(folder / 'id.txt', ' '.join(ids) + '\n')
        # A literal of Python; repr writes quotes and backslashes in an id as such.
        write_atomically(folder / 'video2frames.txt', f'{names!r}\n')
        record = {'ids': len(names), 'rows': rows, 'dim': dim, **more}
        write_atomically(folder / SIDECAR, _record(made_from, record))

    replace_folder(Path(output), fill)


def _chain(first, rest):
    yield first
    yield from rest


def _record(made_from, record):
    record = {'made_from': made_from, 'versions': versions(), **record}
    record['written'] = datetime.now(UTC).isoformat(timespec='seconds')
    return json.dumps(record, indent=2, ensure_ascii=False) + '\n'


def versions():
    """The versions of the packages that features may depend on."""
    from importlib import metadata

    found = {}
    for name in ('torch', 'torchvision', 'transformers', 'pillow', 'av', 'h5py'):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
