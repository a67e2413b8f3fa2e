"""Vectors in a .npy file, and exact search over them by blocked matrix products.

N vectors, Q queries, E common space, k results.
"""

import os
from pathlib import Path

import numpy as np

from basic.errors import DataError
from basic.foreign import DAMAGE, refuse_special

MEMORY = 1024  # MiB for a block of vectors and its scores, as compute.score_memory
BLOCK = 16_384  # vectors of a block: with more, products are not faster
ROUNDING = 1e-5  # products of unit vectors in float32 differ by less, however they are blocked
TIES = 1000  # vectors within the rounding of the last result that are compared exactly


class NpyVectors:
    """The vectors of one part of an index: the first `count` rows of a .npy file.

    Rows are only ever added behind them, so a reader is not disturbed by a writer, and rows of an
    addition that was killed do not count.

    Args:
        path: .npy file, float32 of shape (at least count, dim).
        count, dim: of the rows that count.
    Raises:
        DataError: not such a file, or a truncated one.
    """

    def __init__(self, path, count, dim):
        self.path, self.count, self.dim = Path(path), count, dim
        self.offset = _check(self.path, count, dim)
        self._map = None

    @staticmethod
    def create(path, dim):
        """Write a file without rows; the size of its header does not depend on their number."""
        with open(path, 'xb') as file:
            _write_header(file, 0, dim)
        return NpyVectors(path, 0, dim)

    def append(self, numbers, vectors):
        """Write vectors (n, E) behind the rows that count; `numbers` is for other stores."""
        vectors = np.ascontiguousarray(vectors, dtype='<f4')
        with open(self.path, 'r+b') as file:
            file.seek(self._end())
            file.write(vectors.data)
            file.truncate()  # what a killed addition has left behind these rows
            file.flush()
            os.fsync(file.fileno())
            file.seek(0)
            _write_header(file, self.count + len(vectors), self.dim)
            file.flush()
            os.fsync(file.fileno())
        self.count += len(vectors)
        self._map = None

    def kept(self, rows, path):
        """Write these rows to a new file, and return it as NpyVectors."""
        with open(path, 'xb') as file:
            _write_header(file, len(rows), self.dim)
            for start in range(0, len(rows), BLOCK):
                file.write(self.take(rows[start : start + BLOCK]).data)
            file.flush()
            os.fsync(file.fileno())
        return NpyVectors(path, len(rows), self.dim)

    def map(self):
        """The rows that count (N, E), memory-mapped, read-only.

        Raises:
            DataError: the file has been truncated; to read a map beyond its end kills the process.
        """
        if self.path.exists() and self.path.stat().st_size < self._end():
            raise DataError(f'{self.path} was truncated while it was in use: make the index again')
        if self._map is None:
            shape = (self.count, self.dim)
            # Copy on write, because torch warns about arrays that are read-only.
            whole = np.memmap(self.path, '<f4', 'c', self.offset, shape) if self.count else None
            self._map = np.zeros(shape, '<f4') if whole is None else np.asarray(whole)
        return self._map

    def _end(self):
        return self.offset + 4 * self.count * self.dim

    def take(self, rows):
        """A copy of rows (n,) of the vectors: (n, E)."""
        return np.ascontiguousarray(self.map()[np.asarray(rows, dtype=np.int64)])

    def search(self, queries, k, numbers, memory=MEMORY):
        """The k best vectors of each query, by inner product.

        Equal scores are in the order of the rows. Scores are computed again in float64 for the
        candidates, so a result does not depend on blocks, memory, or the other queries.

        Args:
            queries: (Q, E) float32 array.
            k: results per query, at most; memory: MiB for a block of vectors and its scores.
            numbers: for other stores.
        Returns:
            for each query rows (k,) int64 and scores (k,) float64, falling.
        """
        import torch  # here, because adding and removing need none of it

        vectors, size = self.map(), block_size(len(queries), self.dim, memory)
        q = torch.from_numpy(np.ascontiguousarray(queries, dtype=np.float32))
        slack = ROUNDING * np.linalg.norm(queries, axis=1)  # (Q,)
        found = [(np.zeros(0, np.int64), np.zeros(0, np.float32))] * len(queries)
        for start in range(0, self.count, size):
            block = torch.from_numpy(vectors[start : start + size])  # (B, E)
            scores = (block @ q.T).T.contiguous().numpy()  # (Q, B)
            for i, row in enumerate(scores):
                found[i] = _better(found[i], row, start, k, slack[i])
        return [settle(query, rows, self.take(rows), k) for query, (rows, _) in zip(queries, found)]


def block_size(queries, dim, memory):
    """Vectors of a block, so that it and its scores fit into `memory` MiB."""
    return max(1, min(BLOCK, memory * 2**20 // (4 * (dim + 3 * queries))))


def settle(query, rows, vectors, k):
    """Sort candidates by their exact score, then by row.

    Args:
        query: (E,); rows: (n,) of the candidates; vectors: (n, E), theirs.
    Returns:
        rows (k,), scores (k,) float64.
    """
    # The order of the sum depends only on E, so equal vectors have equal scores.
    scores = (vectors.astype(np.float64) * query.astype(np.float64)).sum(axis=1)
    order = np.lexsort((rows, -scores))[:k]
    return rows[order], scores[order]


def _better(found, scores, start, k, slack):
    """Candidates (rows, scores) of one query, those of a block included.

    All within `slack` of the k-th best stay, because float32 cannot tell their order.
    """
    rows, best = found
    if not np.isfinite(scores).all():
        raise DataError('the index has vectors with NaN or infinity: make it again')
    least = _kth(best, k) if len(best) >= k else -np.inf
    least = max(least, _kth(scores, k) if len(scores) >= k else -np.inf) - slack
    new = np.flatnonzero(scores >= least)
    rows, best = np.concatenate([rows, start + new]), np.concatenate([best, scores[new]])
    if len(best) > k:
        kept = np.flatnonzero(best >= _kth(best, k) - slack)
        rows, best = rows[kept], best[kept]
    if len(best) > k + TIES:
        kept = np.sort(np.lexsort((rows, -best))[: k + TIES])
        rows, best = rows[kept], best[kept]
    return rows, best


def _kth(scores, k):
    return np.partition(scores, len(scores) - k)[len(scores) - k]


def _write_header(file, count, dim):
    # NumPy leaves room for a growing first dimension, so headers of a width have one size.
    described = {'descr': '<f4', 'fortran_order': False, 'shape': (count, dim)}
    np.lib.format.write_array_header_1_0(file, described)


def _check(path, count, dim):
    """Where the rows begin; DataError unless the file has `count` rows of width `dim`."""
    if not path.is_file():
        raise DataError(f'no file {path}: the index is incomplete; make it again')
    refuse_special(path)
    try:
        with open(path, 'rb') as file:
            if np.lib.format.read_magic(file) != (1, 0):
                raise ValueError('expected version 1.0 of the format')
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
            offset = file.tell()
    except DAMAGE as error:
        raise DataError(f'{path} is not a .npy file: {str(error)[:200]}') from None
    if dtype != np.dtype('<f4') or fortran or len(shape) != 2 or shape[1] != dim:
        raise DataError(
            f'{path}: expected float32 of shape ({count}, {dim}), found {dtype} of shape {shape}'
        )
    size = path.stat().st_size
    if size < offset + 4 * count * dim:
        raise DataError(
            f'{path}: {size:,} bytes, expected {offset + 4 * count * dim:,} for {count:,} vectors:'
            ' the file is incomplete; copy it again, or make the index again'
        )
    return offset
