"""A loader that makes batches in the background."""

from collections import deque
from concurrent.futures import ThreadPoolExecutor

import torch
from torch.utils.data import DataLoader, Dataset

from basic.errors import DataError


class Loader:
    """Iterates over a dataset whose items are whole batches, which are made in the background.

    Features are loaded by threads, because a copy of a batch costs a process more than making it:
    on two busy cores, two threads gave 23 to 64 batches of VATEX's frames (128 pairs, 18 MiB) per
    second, two processes of torch's DataLoader 5 to 8. Threads also need no room in /dev/shm.
    Images are loaded by processes, because decoding them holds Python's lock.

    Args:
        dataset: the dataset.
        workers: number of batches made in parallel; 0: none in the background. The result is the
            same.
        processes: use worker processes instead of threads. A thread needs no copy of a batch, but
            holds Python's global lock; a process copies the batch through shared memory.
        pin_memory: for a model on a GPU.
        sampler: yields the dataset's indices; None: 0, 1, 2, ...
        keep_workers: keep the processes between iterations.
    Attributes:
        dataset: as given; indices: the sampler.
    Raises:
        DataError: during iteration, if the dataset raises it.
    """

    def __init__(
        self,
        dataset,
        *,
        workers,
        processes=False,
        pin_memory=False,
        sampler=None,
        keep_workers=False,
    ):
        self.indices = range(len(dataset)) if sampler is None else sampler
        self.dataset, self._workers, self._pin_memory = dataset, workers, pin_memory
        self._loader = None
        if processes and workers > 0:
            # Its own generator, because drawing a seed would change the random numbers of training.
            self._loader = DataLoader(
                _Guarded(dataset),
                batch_size=None,
                sampler=self.indices,
                collate_fn=_as_it_is,
                num_workers=workers,
                pin_memory=pin_memory,
                generator=torch.Generator(),
                persistent_workers=keep_workers,
            )

    def __len__(self):
        return len(self.indices)

    def __iter__(self):
        if self._loader:
            return self._from_processes()
        return self._from_threads() if self._workers else map(self._load, self.indices)

    def _from_processes(self):
        for item in self._loader:
            if isinstance(item, DataError):
                raise item
            yield item

    def _from_threads(self):
        # Each thread has its own current GPU, for which it pins memory.
        start = ()
        if self._pin_memory:
            start = torch.cuda.set_device, (torch.cuda.current_device(),)
        waiting = deque()  # futures, in the order of the indices
        with ThreadPoolExecutor(self._workers, 'loader', *start) as pool:
            try:
                for index in self.indices:
                    waiting.append(pool.submit(self._load, index))
                    if len(waiting) > 2 * self._workers:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:  # the iteration may end early
                for future in waiting:
                    future.cancel()

    def _load(self, index):
        item = self.dataset[index]
        return _pinned(item) if self._pin_memory else item


class _Guarded(Dataset):
    """Returns a DataError as an item; raised in a worker, it would arrive as a traceback's text."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        try:
            return self.dataset[index]
        except DataError as error:
            return error


def _as_it_is(batch):
    return batch


def _pinned(item):
    """An item, or a tuple of items and Nones, in pinned memory."""
    if isinstance(item, tuple):
        return tuple(map(_pinned, item))
    return None if item is None else item.pin_memory()
