"""A timed window on a loader's batches: when each was asked for and when it came."""

import time
from dataclasses import fields, is_dataclass

import numpy as np
import torch


class Window:
    """A part of a loader, long enough to be timed, that notes when each batch was asked for and
    when it came.

    Args:
        loader: iterable of batches, begun anew where it ends too early.
        clock: util.benchmark.measure.Clock.
        warm: batches before the timing starts.
        least, seconds: batches after that; at least so many, and until the time is up; but where
            these take more than three times the time, one must do. 0 seconds: exactly `least`.
        wait: let the device finish before each batch is asked for, so that waiting for data is told
            from computing.
    Attributes:
        asked, came: seconds; `asked` has one more: the end.
        batches: how many came after the warm ones; items: (training) pairs in them.
    """

    def __init__(self, loader, clock, *, warm=2, least=3, seconds=0.0, wait=False):
        self.loader, self.clock, self.warm, self.least = loader, clock, warm, least
        self.seconds, self.wait = seconds, wait

    def __len__(self):
        return len(self.loader)

    def set_epoch(self, epoch):
        """As data_provider.TrainLoader; the order of the batches does not matter here."""

    def __iter__(self):
        self.asked, self.came, self.items = [], [], 0
        iterator = iter(self.loader)
        while True:
            at_edge = self.wait or len(self.asked) in (0, self.warm)
            self.asked.append(self.clock() if at_edge else time.perf_counter())
            if self.batches and self._enough(self.asked[-1] - self.asked[self.warm]):
                break
            batch = next(iterator, None)
            if batch is None:
                iterator = iter(self.loader)
                batch = next(iterator)
            self.came.append(time.perf_counter())
            self.items += size_of(batch) * (len(self.came) > self.warm)
            yield batch
        self.asked[-1] = self.clock()

    def _enough(self, elapsed):
        return (
            elapsed >= self.seconds
            if self.batches >= self.least
            else 0 < 3 * self.seconds <= elapsed
        )

    @property
    def batches(self):
        return max(0, len(self.came) - self.warm)

    @property
    def elapsed(self):
        """Seconds from when the first batch after the warm ones was asked for, to the end."""
        return self.asked[-1] - self.asked[self.warm]

    @property
    def waited(self):
        """Seconds of these in which nothing was done but wait for a batch."""
        return sum(
            came - asked for asked, came in zip(self.asked[self.warm :], self.came[self.warm :])
        )

    @property
    def work(self):
        """Seconds of the batches' use, the median over the batches."""
        return float(
            np.median(
                [
                    after - came
                    for came, after in zip(self.came[self.warm :], self.asked[self.warm + 1 :])
                ]
            )
        )

    @property
    def flow(self):
        """Items a second as they came, where nobody did anything with them."""
        return self.items / self.elapsed


def drain(window):
    """Ask for everything, use nothing: items a second."""
    for _ in window:
        pass
    return window.flow


def size_of(batch):
    """Items of a training batch, of a visual one (visual, mask), or captions of both branches (en,
    tgt)."""
    if isinstance(batch, tuple):
        first, second = batch
        return len(first) if isinstance(first, torch.Tensor) else len(first.ids) + len(second.ids)
    return len(batch.index)


def bytes_of(thing):
    """Bytes of the tensors in a batch, or in whatever holds some."""
    if isinstance(thing, torch.Tensor):
        return thing.numel() * thing.element_size()
    if is_dataclass(thing):
        thing = tuple(getattr(thing, field.name) for field in fields(thing))
    return sum(map(bytes_of, thing)) if isinstance(thing, tuple) else 0
