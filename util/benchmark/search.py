"""How long a query of util.search takes, beside a plain matrix product over the same vectors.

    python -m util.benchmark.search [--items 10000,100000,1000000] [--dim 1536] [--folder DIR]

Random vectors are written to a file, 4 bytes a number (1,000,000 x 1,536: 5.7 GiB), and removed at
the end. Times are medians. Memory is what searching needs beside the memory-mapped file.
"""

import argparse
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import torch

from basic.command import command
from util.search.exact import NpyVectors

ROWS = 10_000  # vectors that are written at a time
TOP = 10


def write_vectors(path, items, dim):
    """A file of random unit vectors, as NpyVectors."""
    random, store = np.random.default_rng(0), NpyVectors.create(path, dim)
    for start in range(0, items, ROWS):
        some = random.standard_normal((min(ROWS, items - start), dim), dtype=np.float32)
        store.append([], some / np.linalg.norm(some, axis=1, keepdims=True))
    return store


def plain(vectors, queries):
    """One matrix product over the whole map, and the best of it: the least a search does."""
    product = torch.from_numpy(vectors) @ torch.from_numpy(queries).T  # (N, Q)
    return torch.topk(product, min(TOP, len(product)), dim=0)


def median_seconds(function, rounds=5):
    """The median time of a call; what takes long is called twice only."""
    times = []
    while len(times) < rounds and (sum(times) < 20 or len(times) < 2):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


class AnonymousMemory:
    """The peak of this process's memory without mapped files, in MiB above that at the start.

    A context manager; Linux only, else `peak` is None.
    """

    def __enter__(self):
        self.before, self.peak, self._done = _anonymous(), 0, threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._done.set()
        self._thread.join()
        self.peak = None if self.before is None else self.peak

    def _watch(self):
        while self.before is not None and not self._done.wait(0.005):
            self.peak = max(self.peak, _anonymous() - self.before)


def _anonymous():
    try:
        status = Path('/proc/self/status').read_text()
    except OSError:
        return None
    return int(status.partition('RssAnon:')[2].split()[0]) / 1024


def measure(items, dim, folder):
    """Yield the lines of the table for so many vectors."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        store = write_vectors(Path(place) / 'vectors.npy', items, dim)
        for count in (1, 64):
            queries = np.random.default_rng(1).standard_normal((count, dim), dtype=np.float32)
            store.map().sum()  # from the disk into the system's cache
            base = median_seconds(lambda queries=queries: plain(store.map(), queries))
            with AnonymousMemory() as memory:
                ours = median_seconds(lambda queries=queries: store.search(queries, TOP, None))
            peak = '-' if memory.peak is None else f'{memory.peak:,.0f}'
            yield (
                f'{items:>9,} {count:>8} {1e3 * ours / count:>12.2f} {1e3 * base / count:>12.2f}'
                f' {ours / base:>6.2f} {peak:>12}'
            )


@command('benchmark.search')
def main(argv=None):
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog='python -m util.benchmark.search', description=__doc__.partition('\n\n')[0]
    )
    parser.add_argument('--items', default='10000,100000', metavar='N,...', help='%(default)s')
    parser.add_argument('--dim', type=int, default=1536, help='default: %(default)s')
    parser.add_argument('--folder', help='for the vectors (default: that of temporary files)')
    args = parser.parse_args(argv)
    sizes = [int(size) for size in args.items.split(',')]
    print(f'top {TOP} of vectors of {args.dim}, {torch.get_num_threads()} threads')
    print('    items  at once  ms a query      plain   ratio   MiB beside')
    for size in sizes:
        for line in measure(size, args.dim, args.folder):
            print(line, flush=True)
    return 0


if __name__ == '__main__':
    sys.exit(main())
