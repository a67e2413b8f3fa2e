"""Features on disk: of frames, in a BigFile folder, or one per image, in a .npy file.

N items, F frames, D width.
"""

import os
from pathlib import Path

import numpy as np
import torch

from basic.bigfile import BigFile
from basic.errors import DataError, first_five
from basic.foreign import DAMAGE
from basic.ids import read_ids


class FeatureSource:
    """The base class of features on disk, which are memory-mapped and checked when read."""

    in_processes = False  # threads suffice to copy rows

    def __init__(self, ids, features, file):
        # features: (rows, D), memory-mapped from `file`
        self.ids, self.features, self.file = ids, features, Path(file)
        self.dim = features.shape[1]
        self._row = {name: row for row, name in enumerate(ids)}
        self._sound = np.zeros(len(ids), dtype=bool)
        self._opened = _state(self.file)

    def check_unchanged(self, *, size_alone=False):
        """Raise DataError if the file has changed since it was mapped.

        Reading a map beyond the end of a truncated file kills the process (SIGBUS) or gives zeros.

        Args:
            size_alone: check only the size, as before each batch; otherwise also the time of the
                last change and the inode.
        """
        now = _state(self.file)
        if now[0] != self._opened[0]:
            size = (
                'it no longer exists'
                if now[0] is None
                else f'{self._opened[0]:,} bytes before, {now[0]:,} now'
            )
            raise DataError(
                f'{self.file} was changed while it was in use ({size}): restore the file'
            )
        if not size_alone and now != self._opened:
            raise DataError(
                f'{self.file} was changed or replaced while it was in use, and may have been read '
                'in both states: restore the file'
            )

    def __contains__(self, name):
        return name in self._row

    def _check(self, numbers, items):
        """Raise DataError if an item (..., D) has NaN or infinity; each item is checked once."""
        bad = []
        for place in np.flatnonzero(~self._sound[numbers]):
            with np.errstate(invalid='ignore', over='ignore'):
                # The sum is a cheap first test.
                suspicious = not np.isfinite(items[place].sum(dtype=np.float32))
            if suspicious and not np.isfinite(items[place]).all():
                bad.append(self.ids[numbers[place]])
            else:
                self._sound[numbers[place]] = True
        if bad:
            raise DataError(
                f'{self.where}: NaN or infinite features: {first_five(bad)}; extract these again '
                '(python -m util.check_data finds all of them)'
            )


class FrameSource(FeatureSource):
    """Frame features in a BigFile folder: batch(ids) -> (N, F, D) zero-padded, (N, F).

    Args:
        folder: BigFile folder, see basic.bigfile.
        max_frames: videos are cut to their first frames.
    Attributes:
        counts: (videos,) int64, frames of each video before cutting.
    Raises:
        DataError: the folder's files are wrong, or frames are missing.
    """

    def __init__(self, folder, *, max_frames):
        self.where, self.max_frames, self._file = folder, max_frames, BigFile(folder)
        ids, self.counts, self._rows = self._file.read_videos()
        self._starts = np.cumsum(self.counts) - self.counts
        # Usually a video's rows are contiguous, and are copied as one slice.
        jumps = np.cumsum(np.diff(self._rows, prepend=self._rows[:1]) != 1)
        self._in_one_piece = jumps[self._starts] == jumps[self._starts + self.counts - 1]
        super().__init__(ids, self._file.map(), self._file.path)

    def names(self, rows):
        """The frame ids of rows of the features."""
        ids = self._file.read_ids()
        return [ids[row] for row in rows]

    def lengths(self, ids):
        """(N,) int64, the frames of each video after cutting."""
        return np.minimum(self.counts[[self._row[name] for name in ids]], self.max_frames)

    def batch(self, ids, own=slice(None)):
        self.check_unchanged(size_alone=True)
        counts = self.lengths(ids)
        visual = np.empty((len(ids[own]), counts.max(), self.dim), dtype=np.float32)
        mask, counts = np.arange(counts.max()) < counts[own, None], counts[own]
        videos = np.array([self._row[name] for name in ids[own]], dtype=np.int64)
        items = []
        for out, count, video in zip(visual, counts.tolist(), videos.tolist()):
            rows = self._rows[self._starts[video] : self._starts[video] + count]
            if self._in_one_piece[video]:
                out[:count] = self.features[rows[0] : rows[0] + count]
            else:  # the rows exist; mode='clip' only saves `take` a second copy
                np.take(self.features, rows, axis=0, out=out[:count], mode='clip')
            out[count:] = 0
            items.append(out[:count])
        self._check(videos, items)
        return torch.from_numpy(visual), torch.from_numpy(mask.astype(np.float32))


class PooledSource(FeatureSource):
    """One feature per image, in a .npy file: batch(ids) -> (N, D), None.

    Args:
        path: .npy of (rows, D) floats.
        ids_path: id list; row i of the .npy belongs to line i.
    Raises:
        DataError: other files, or files of different lengths.
    """

    def __init__(self, path, ids_path):
        self.where = path
        super().__init__(read_ids(ids_path), self._map(), path)
        if len(self.features) != len(self.ids):
            raise DataError(
                f'{path} has {len(self.features):,} rows, but {ids_path} {len(self.ids):,} ids; row'
                ' i belongs to line i: download or extract both for the same images'
            )

    def _map(self):
        try:
            array = np.load(self.where, mmap_mode='r', allow_pickle=False)
        except (*DAMAGE, OSError) as error:
            raise DataError(f'{self.where} is not a .npy file of numbers: {error}') from None
        if not isinstance(array, np.ndarray):
            raise DataError(
                f'{self.where} is an .npz archive, expected .npy: save its array with np.save'
            )
        if array.ndim != 2 or array.dtype.kind != 'f' or not array.shape[1]:
            raise DataError(
                f'{self.where}: expected floats of shape (images, width), found {array.dtype} of'
                f' shape {array.shape}'
            )
        return np.asarray(array)

    def names(self, rows):
        """The image ids of rows of the features."""
        return [self.ids[row] for row in rows]

    def batch(self, ids, own=slice(None)):
        self.check_unchanged(size_alone=True)
        rows = np.array([self._row[name] for name in ids[own]], dtype=np.int64)
        features = self.features[rows].astype(np.float32, copy=False)
        self._check(rows, features)
        return torch.from_numpy(features), None


def _state(path):
    """(size, time of the last change, inode) of a file; Nones if it does not exist."""
    try:
        found = os.stat(path)
    except OSError:
        return None, None, None
    return found.st_size, found.st_mtime_ns, found.st_ino
