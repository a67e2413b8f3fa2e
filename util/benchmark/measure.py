"""Clocks and floors for util.benchmark: how long something takes, and how long its arithmetic or
its bytes must take.

A floor is a pure matrix product of the same operations or a plain copy of the same bytes, on the
same device and in the same precision, timed in the same run.
"""

import platform
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count
from torch.utils._python_dispatch import TorchDispatchMode

from basic.logger import peak_memory

GIB = 2**30
LONG = 4.0  # seconds after which nothing is repeated
PRODUCTS, COPY = 'the same matrix products', 'a copy of the same bytes'  # names of floors
STEADY = 0.05  # seconds for which something short is repeated, so that one pause is no matter
# where a product's matrices stand
OPERANDS = {'mm': (0, 1), 'addmm': (1, 2), 'bmm': (0, 1), 'baddbmm': (1, 2)}
# torch counts the operations of a GPU's fused attention, but not of a CPU's.
_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
CPU_ATTENTION = {
    _forward: lambda query, key, value, *_, **__: sdpa_flop_count(query, key, value),
    _backward: lambda gradient, query, key, value, *_, **__: sdpa_backward_flop_count(
        gradient, query, key, value
    ),
}


class Clock:
    """A monotonic clock that waits for the device first: `clock()` -> seconds."""

    def __init__(self, device):
        self.device = device

    def __call__(self):
        if self.device.type == 'cuda':
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def best(self, function, *, calls=1, rounds=3):
        """Seconds of the fastest call of `function()`: the mean of `calls` in a row, the best of
        `rounds` or more.

        What takes long is called once only.
        """
        first = self._mean(function, 1)
        if first > LONG:
            return first
        started, times = self(), []
        while len(times) < rounds or (len(times) < 50 and self() - started < STEADY):
            times.append(self._mean(function, calls))
        return min(times)

    def _mean(self, function, calls):
        started = self()
        for _ in range(calls):
            function()
        return (self() - started) / calls

    @property
    def calls(self):
        """How many calls in a row hide what a wait for the device itself costs."""
        return 10 if self.device.type == 'cuda' else 1


class Phases:
    """Stands in for `record_function` in train: seconds of each part of a step, a part within
    another counted once.

    Attributes:
        seconds: Counter of part -> seconds so far.
    """

    def __init__(self, clock):
        self.clock, self.seconds, self._inner = clock, Counter(), [0.0]

    @contextmanager
    def __call__(self, name):
        started = self.clock()
        self._inner.append(0.0)
        yield
        took = self.clock() - started
        self.seconds[name] += took - self._inner.pop()
        self._inner[-1] += took


class Operations(TorchDispatchMode):
    """Counts the floating-point operations that run under it, and notes the matrix products: shapes
    and numbers.

    It stands in for `record_function` in train too: what runs outside of any marked part belongs to
    the part ''.

    Attributes:
        products: dict part -> Counter of ((..., M, K), (..., K, N), dtype).
        flops: dict part -> operations that torch's FlopCounterMode counts: products, convolutions,
            attention.
    """

    def __init__(self):
        super().__init__()
        self.products, self.flops, self._parts, self._counted = {}, Counter(), [''], 0
        self._counter = FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION)

    def __enter__(self):
        # compiled graphs run as one unknown operation
        self._eager = torch.compiler.set_stance('force_eager')
        self._eager.__enter__()
        self._counter.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self._note()
        self._counter.__exit__(*error)
        self._eager.__exit__(*error)

    @contextmanager
    def __call__(self, name):
        self._note()
        self._parts.append(name)
        yield
        self._note()
        self._parts.pop()

    def _note(self):
        counted = self._counter.get_total_flops()
        self.flops[self._parts[-1]] += counted - self._counted
        self._counted = counted

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        places = OPERANDS.get(function._overloadpacket.__name__)
        if places:
            first, second = (args[place] for place in places)
            self.products.setdefault(self._parts[-1], Counter())[
                tuple(first.shape), tuple(second.shape), first.dtype
            ] += 1
        return function(*args, **(kwargs or {}))

    def floors(self, clock):
        """dict part -> seconds that its operations take as pure products, '' and all other parts
        together as 'all'.

        Products are timed with the shapes noted; convolutions and fused attention are taken to run
        as fast as these.
        """
        timed = {}
        for shapes in set().union(*self.products.values()):
            timed[shapes] = product_seconds(*shapes, clock=clock)
        noted = sum(
            n * product_flops(*shapes)
            for part in self.products.values()
            for shapes, n in part.items()
        )
        spent = sum(
            n * timed[shapes] for part in self.products.values() for shapes, n in part.items()
        )
        floors = {}
        for part, flops in self.flops.items():
            own = self.products.get(part, {})
            rest = flops - sum(n * product_flops(*shapes) for shapes, n in own.items())
            floors[part] = sum(n * timed[shapes] for shapes, n in own.items()) + (
                rest * spent / noted if noted else 0
            )
        return {**floors, 'all': sum(floors.values())}


def product_flops(first, second, _):
    """Operations of (..., M, K) @ (..., K, N): a multiplication and an addition each."""
    return 2 * int(np.prod(first, dtype=np.int64)) * second[-1]


def product_seconds(first, second, dtype, *, clock, rounds=5):
    """Seconds of one product of random matrices of these shapes."""
    first, second = (torch.randn(shape, device=clock.device).to(dtype) for shape in (first, second))
    return clock.best(lambda: first @ second, calls=clock.calls, rounds=rounds)


def ceiling(clock, precision):
    """Floating-point operations a second of a large square product: what the device can do."""
    side = 8192 if clock.device.type == 'cuda' else 1024
    shapes = (side, side), (side, side), torch.bfloat16 if precision == 'bf16' else torch.float32
    return product_flops(*shapes) / product_seconds(*shapes, clock=clock, rounds=20)


def copy_seconds(size, clock, *, source=None):
    """Seconds of one plain copy of `size` bytes on the device, or to it from page-locked memory of
    the CPU."""
    size = int(size)
    first = torch.ones(size, dtype=torch.uint8, device=source or clock.device)
    if source == 'cpu' and clock.device.type == 'cuda':
        first = first.pin_memory()
    second = torch.empty(size, dtype=torch.uint8, device=clock.device)
    return clock.best(lambda: second.copy_(first, non_blocking=True), calls=clock.calls)


def copy_seconds_one_core(size):
    """Seconds of one plain copy of `size` bytes by one thread of the CPU."""
    first, second = np.ones(int(size), dtype=np.uint8), np.empty(int(size), dtype=np.uint8)
    return Clock(torch.device('cpu')).best(lambda: np.copyto(second, first))


def forget_peak(device):
    """Let `peak` count from here. For the CPU this is possible on Linux only: elsewhere the peak is
    the whole run's."""
    if device.type == 'cuda':
        torch.cuda.reset_peak_memory_stats(device)
    elif _CLEAR.exists():
        _CLEAR.write_text('5')


def peak(device):
    """GiB at most in use since `forget_peak`: of the GPU by tensors, or of this process."""
    if device.type == 'cuda' or not _CLEAR.exists():
        return peak_memory(device)
    status = Path('/proc/self/status').read_text()
    return int(status.partition('VmHWM:')[2].split()[0]) / 2**20


_CLEAR = Path('/proc/self/clear_refs')


def describe(device):
    """What the figures were measured on, as plain data."""
    card = torch.cuda.get_device_name(device) if device.type == 'cuda' else None
    return {
        'device': card or f'{torch.get_num_threads()} CPU threads',
        'machine': platform.machine(),
        'torch': torch.__version__,
        'python': platform.python_version(),
    }
