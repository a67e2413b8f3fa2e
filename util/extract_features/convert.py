"""Convert features that exist to a BigFile folder: `--from`.

Forms: a folder with one .npy (or .pt) per video, such as VATEX's official I3D features; an HDF5
file with one dataset per video; a .pt file, dict of video id -> tensor. Features of a
video are (F, D), (1, F, D), or (D,) for one frame. F frames, D width.
"""

import os
from pathlib import Path

import numpy as np
import torch

from basic.checkpoint_file import read_content, tensors_of
from basic.errors import DataError, first_five
from basic.foreign import DAMAGE, MAY_INFLATE, refuse_special
from basic.ids import did_you_mean
from basic.logger import progress
from util.extract_features.items import ids_of_names
from util.extract_features.shards import refuse_bad
from util.extract_features.writing import write_frames

FILES = ('.npy', '.pt', '.pth')
HDF5 = ('.h5', '.hdf5', '.hdf', '.he5')


def convert(place, output, *, ids=None, skip_bad=False, max_frames=0):
    """Convert the features of `place` to the BigFile folder `output`.

    Args:
        place: folder or file, see above.
        output: Path; it is replaced whole.
        ids: the videos to convert, in order; None: all, in the source's order.
        skip_bad: omit videos that are missing or unusable; otherwise they are an error.
        max_frames: of each video, the first; 0: all.
    Returns:
        (videos, bad): how many were written, and dict id -> reason of those omitted.
    Raises:
        DataError: a source of another kind; BadFiles: bad videos, without skip_bad.
    """
    with open_source(place) as source:
        known = source.ids()
        ids = known if ids is None else ids
        there, bad, dim = set(known), {}, []
        absent = [name for name in ids if name not in there]
        if absent and not skip_bad:
            raise DataError(
                f'{place} has no features of {len(absent):,} of {len(ids):,} videos: '
                f'{first_five(absent)}{did_you_mean(absent, known)}; add them, or omit them with '
                '--skip-bad'
            )

        def videos():
            for name in progress(ids, 'videos'):
                try:
                    if name not in there:
                        raise DataError('no features of this video')
                    array = _frames(source.read(name), dim)
                except (DataError, OSError) as error:
                    bad[name] = ' '.join(str(error).split())[:500]
                    continue
                array = array[: max_frames or None]
                yield name, range(len(array)), array
            if bad and not skip_bad:
                refuse_bad(bad, len(ids), output.with_name(f'{output.name}.bad.txt'))
            if len(bad) == len(ids):
                name, reason = next(iter(bad.items()))
                raise DataError(f'{place}: no video has usable features; {name}: {reason}')

        output.parent.mkdir(parents=True, exist_ok=True)
        made_from = {'kind': 'frames', 'source': os.path.abspath(place), 'max_frames': max_frames}
        more = {'items': len(ids), 'skipped': bad, 'not_converted': len(there - set(ids))}
        write_frames(output, made_from, videos(), more)
    return len(ids) - len(bad), bad


def _frames(array, dim):
    """An array as (F, D) float32, of the width of the first one; `dim` is a list that keeps it."""
    shape = array.shape
    while array.ndim > 2 and array.shape[0] == 1:
        array = array[0]
    array = array[None] if array.ndim == 1 else array
    if array.ndim != 2 or not array.size or array.dtype.kind != 'f':
        raise DataError(f'it is {array.dtype} of shape {shape}; expected floats (frames, width)')
    with np.errstate(over='ignore'):
        array = np.asarray(array, dtype=np.float32)
    if not np.isfinite(array).all():
        raise DataError('it has NaN or infinite numbers')
    if not dim:
        dim.append(array.shape[1])
    if array.shape[1] != dim[0]:
        raise DataError(f'its features are {array.shape[1]} wide, those before it {dim[0]}')
    return array


def open_source(place):
    """The source of a folder or file, a context manager with `ids()` and `read(id)`."""
    path = Path(place)
    if path.is_dir():
        return _Folder(path)
    if not path.exists():
        raise DataError(f'--from: no file or folder {path}')
    refuse_special(path)
    with open(path, 'rb') as file:
        head = file.read(8)
    if head == b'\x89HDF\r\n\x1a\n' or path.suffix.lower() in HDF5:
        return _Hdf5(path)
    if path.suffix.lower() in ('.pt', '.pth'):
        return _Tensors(path)
    raise DataError(
        f'--from {path}: expected a folder with one .npy or .pt per video, an HDF5 file, or a .pt '
        'file of tensors by video id'
    )


class _Source:
    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


class _Folder(_Source):
    """One file per video."""

    def __init__(self, folder):
        names = sorted(name for name in os.listdir(folder) if name.lower().endswith(FILES))
        if not names:
            raise DataError(f'--from {folder}: no .npy or .pt files in this folder')
        ids = ids_of_names([os.path.splitext(name)[0] for name in names], folder, 'features')
        self.paths = {name: folder / file for name, file in zip(ids, names)}

    def ids(self):
        return list(self.paths)

    def read(self, name):
        path = self.paths[name]
        if path.suffix.lower() == '.npy':
            refuse_special(path)
            try:
                array = np.load(path, mmap_mode='r', allow_pickle=False)
            except (*DAMAGE, OSError) as error:
                raise DataError(f'not a .npy file of numbers: {error}') from None
            if not isinstance(array, np.ndarray):
                raise DataError('an .npz archive, not a .npy file')
            return array
        found = read_content(path)
        return _array(found, path)


def _array(tensor, path):
    name = 'features'
    return tensors_of({name: tensor}, path, path.stat().st_size)[name].float().numpy()


class _Tensors(_Source):
    """A .pt file: dict of video id -> tensor."""

    def __init__(self, path):
        tensors = tensors_of(read_content(path), path, path.stat().st_size)
        self.tensors = dict(zip(ids_of_names(list(tensors), path, 'features'), tensors.values()))

    def ids(self):
        return list(self.tensors)

    def read(self, name):
        tensor = self.tensors[name]
        return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


class _Hdf5(_Source):
    """An HDF5 file: one dataset per video, in any group; the id is the dataset's name.

    A group per video, with one dataset, is read too: the id is then the group's name. Links to
    other files are not followed.
    """

    def __init__(self, path):
        try:
            import h5py
        except ImportError:
            raise DataError(
                'util.extract_features reads HDF5 files with h5py: pip install -r '
                'util/requirements-hdf5.txt'
            ) from None
        self.path = path
        try:
            self.file = h5py.File(path, 'r')
            found = []
            self.file.visititems(  # follows no soft or external links
                lambda name, item: found.append(name) if isinstance(item, h5py.Dataset) else None
            )
        except (*DAMAGE, OSError) as error:
            raise DataError(f'{path} cannot be read as an HDF5 file ({error})') from None
        last = [name.rpartition('/')[2] for name in found]
        parents = [name.rpartition('/')[0] for name in found]
        by_group = len(found) > 1 and len(set(last)) == 1 and len(set(parents)) == len(found)
        names = [parent.rpartition('/')[2] for parent in parents] if by_group else last
        self.names = dict(zip(ids_of_names(names, path, 'datasets'), found))

    def ids(self):
        return list(self.names)

    def read(self, name):
        dataset = self.file[self.names[name]]
        if dataset.external or dataset.is_virtual:
            raise DataError('its numbers lie in another file, which is not read')
        if dataset.nbytes > max(MAY_INFLATE, 100 * dataset.id.get_storage_size()):
            raise DataError(f'it would unpack to {dataset.nbytes / 2**30:,.1f} GiB')
        try:
            return dataset[()] if dataset.shape else np.empty(0)
        except (*DAMAGE, OSError) as error:
            raise DataError(f'its numbers cannot be read ({error})') from None

    def __exit__(self, *_):
        self.file.close()
