"""The stages of util.benchmark: each takes a `bench.Bench` and adds its figures to it.

They call what training and evaluation call, and time it from outside: the batches' coming and going
(`Window`), the parts of a step that train marks by `record_function`. `images` and `score` have
files of their own.
"""

import io
import sys
import time
from contextlib import nullcontext, redirect_stderr
from dataclasses import fields, is_dataclass, replace
from unittest.mock import patch

import numpy as np
import torch
from torch.utils.data import DataLoader

import train
from basic.caption import CaptionFile
from basic.collection import Collection
from basic.config import load_config
from basic.runtime import matrix_precision
from data_provider import build_loaders, pack_branch
from evaluation import encode
from loss import build_loss
from model import build_model
from train import build_optimizers, train_one_epoch
from util.benchmark.baselines import SampleBySample, collate, train_as_released
from util.benchmark.measure import (
    Operations,
    Phases,
    copy_seconds,
    copy_seconds_one_core,
    forget_peak,
    peak,
)

BATCHES = 2  # different batches that a step is timed on
TOKENISED = 100_000  # captions
PRODUCTS, COPY = 'the same matrix products', 'a copy of the same bytes'
ADAM_TRAFFIC = 3.5  # it reads 4 numbers a weight and writes 3; a copy reads 1 and writes 1


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


# --------------------------------------------------------------------------------------------- data


def tokenise(bench):
    """WordPieces a second, as training tokenises: all at once, before the first epoch."""
    for branch, file in Collection(bench.config, bench.root).captions('train').items():
        part = CaptionFile(file.path, file.ids[:TOKENISED], file.texts[:TOKENISED])
        started = time.perf_counter()
        packed = pack_branch(bench.config, branch, part, bench.tokenizer)
        took, tokens = time.perf_counter() - started, len(packed.ids)
        size = sum(len(text.encode()) for text in part.texts) + packed.ids.nbytes
        bench.add(
            'tokenise',
            f'branch {branch}',
            tokens / took,
            'tokens/s',
            floor=tokens / copy_seconds_one_core(size),
            floor_is=f'{COPY}, one core',
            note=f'{len(part) / took:,.0f} captions/s, {tokens / len(part):.1f} tokens each',
        )


def loader(bench):
    """Training batches: ours by one core and by all workers, and the released way by one core."""
    started = time.perf_counter()
    config = with_workers(bench, 0)
    alone = build_loaders(config, bench.root, bench.tokenizer, splits=('train',))['train']
    bench.add(
        'loader',
        'opening, joining, tokenising',
        time.perf_counter() - started,
        's',
        note=f'once a run, {alone.dataset_size:,} pairs',
    )
    size = bytes_of(next(iter(alone)))
    copied = bench.config.train.batch_size / copy_seconds_one_core(size)
    first = Window(alone, bench.clock, warm=0, least=8, seconds=bench.seconds)
    drain(first)  # brings these batches' features into the page cache; then the same ones again
    ours = drain(Window(alone, bench.clock, warm=0, least=first.batches))
    bench.add(
        'loader',
        'one core',
        ours,
        'pairs/s',
        floor=copied,
        floor_is=f'{COPY}, one core',
        note=f'{size / bench.config.train.batch_size / 1024:.0f} KiB a pair, from the page cache',
    )
    theirs = drain(
        Window(sample_by_sample(bench, 0), bench.clock, warm=1, least=2, seconds=bench.seconds)
    )
    bench.add(
        'loader',
        'one core, released style',
        theirs,
        'pairs/s',
        floor=copied,
        floor_is=f'{COPY}, one core',
    )
    bench.add(
        'loader',
        'ours / released style, one core',
        ours / theirs,
        'times',
        note='goal: at least 20',
    )
    workers = bench.config.train.workers
    if workers:
        together = build_loaders(
            bench.config, bench.root, bench.tokenizer, splits=('train',), device=bench.device
        )['train']
        flow = drain(
            Window(together, bench.clock, warm=4 * workers, least=8, seconds=bench.seconds)
        )
        bench.add(
            'loader',
            f'{workers} workers',
            flow,
            'pairs/s',
            floor=copied,
            floor_is=f'{COPY}, one core',
            note='to this process, which does nothing else',
        )


def drain(window):
    """Ask for everything, use nothing: items a second."""
    for _ in window:
        pass
    return window.flow


def with_workers(bench, workers):
    """The config with so many loader workers."""
    return load_config(bench.config_path, [*bench.overrides, f'train.workers={workers}'])


def sample_by_sample(bench, workers):
    """A DataLoader that loads the released way."""
    return DataLoader(
        SampleBySample(bench.config, bench.root, bench.tokenizer),
        shuffle=True,
        collate_fn=collate,
        batch_size=bench.config.train.batch_size,
        num_workers=workers,
        drop_last=True,
        pin_memory=bench.device.type == 'cuda',
    )


# ----------------------------------------------------------------------------------------- training


def first_batches(bench):
    """Some training batches on the device."""
    window = Window(bench.run.loaders['train'], bench.clock, warm=0, least=BATCHES)
    return [batch.to(bench.device) for batch in window]


def timed_steps(run, loader, bench, *, listener=None, **options):
    """Train on a loader's batches through train's own loop; returns the Window on it.

    `listener(part)`, a context manager, wraps each part of a step that train marks.
    """
    window = Window(loader, bench.clock, **options)
    no_progress = redirect_stderr(io.StringIO())  # it would stand among the rows of the table
    marked = patch.object(train, 'record_function', listener) if listener else nullcontext()
    with no_progress, marked:
        train_one_epoch(replace(run, loaders={**run.loaders, 'train': window}), 1)
    return window


def count_operations(bench):
    """Operations and floors of a training step, the mean over `first_batches`.

    Returns:
        (floating-point operations, dict part -> seconds of pure products, 'all' for the step).
    """
    counted = Operations()
    with counted:
        timed_steps(bench.run, first_batches(bench), bench, listener=counted, warm=0, least=BATCHES)
    with bench.products():
        floors = counted.floors(bench.clock)
    return sum(counted.flops.values()) / BATCHES, {
        part: seconds / BATCHES for part, seconds in floors.items()
    }


def step(bench):
    """A training step on batches that lie on the device: the whole, its parts, the released way."""
    run, clock, batches = bench.run, bench.clock, first_batches(bench)
    flops, floors = bench.operations
    forget_peak(bench.device)
    # A GPU chooses its kernels, and torch.compile compiles, in the first steps.
    warm = 2 * BATCHES if bench.device.type == 'cuda' or bench.config.compute.compile else 1
    window = timed_steps(run, batches, bench, warm=warm, seconds=bench.seconds, wait=True)
    took, pairs = window.work, bench.config.train.batch_size
    bench.add(
        'step',
        'a step',
        1e3 * took,
        'ms',
        floor=1e3 * floors['all'],
        floor_is=PRODUCTS,
        note=f'{pairs} pairs, median of {window.batches}',
    )
    bench.add('step', 'peak memory', peak(bench.device), 'GiB')
    most = bench.ceiling()
    bench.add(
        'step',
        'operations',
        flops / took / 1e9,
        'GFLOP/s',
        floor=most / 1e9,
        floor_is='a large matrix product',
        note=(
            f'model FLOP utilisation {100 * flops / took / most:.1f} per cent; {flops / 1e9:,.0f}'
            ' GFLOP a step, counted by FlopCounterMode'
        ),
    )

    phases = Phases(clock)
    window = timed_steps(
        run,
        batches,
        bench,
        warm=0,
        least=BATCHES,
        seconds=bench.seconds,
        wait=True,
        listener=phases,
    )
    trained = 4 * sum(parameter.numel() for parameter in run.model.main_parameters())
    for part in phases.seconds:
        seconds, floor, floor_is = phases.seconds[part] / window.batches, floors.get(part), PRODUCTS
        if part == 'optimizer':
            floor, floor_is = (
                copy_seconds(ADAM_TRAFFIC * trained, clock),
                'a copy of the bytes that Adam moves',
            )
        bench.add(
            'step',
            f'of it {part}',
            1e3 * seconds,
            'ms',
            floor=1e3 * floor if floor else None,
            floor_is=floor_is if floor else '',
        )
    rest = (window.elapsed - window.waited - sum(phases.seconds.values())) / window.batches
    bench.add('step', 'of it not marked', 1e3 * rest, 'ms')
    if bench.device.type == 'cuda':
        moved = next(iter(run.loaders['train']))
        seconds = clock.best(lambda: moved.to(bench.device, non_blocking=True), calls=clock.calls)
        bench.add(
            'step',
            'before it: moving the batch',
            1e3 * seconds,
            'ms',
            floor_is=COPY,
            floor=1e3 * copy_seconds(bytes_of(moved), clock, source='cpu'),
        )

    with matrix_precision('fp32'):
        released = timed_steps(
            as_released(bench), batches, bench, warm=1, least=2, seconds=bench.seconds, wait=True
        )
    bench.add('step', 'a step, released style', 1e3 * released.work, 'ms', note='fp32')
    bench.add('step', 'released style / ours', released.work / took, 'times')
    if bench.profile is not None:
        profile(bench, batches)


def as_released(bench):
    """A train.Run of fresh weights that takes its steps the released way."""
    config = load_config(
        bench.config_path,
        [
            *bench.overrides,
            'compute.precision=fp32',
            'compute.compile=false',
            'compute.attention=eager',
            'compute.micro_batch=0',
            'compute.checkpointing=false',
        ],
    )
    model = build_model(config, feature_dim=bench.sizes.dim).to(bench.device)
    optimizer, discriminator_optimizer = build_optimizers(model, config)
    return train_as_released(
        replace(
            bench.run,
            config=config,
            model=model,
            criterion=build_loss(config),
            optimizer=optimizer,
            discriminator_optimizer=discriminator_optimizer,
        )
    )


def profile(bench, batches):
    """Print the operators that take most of a step's time; write the trace if a file was named."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if bench.device.type == 'cuda':
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as trace:
        timed_steps(bench.run, batches, bench, warm=0, least=1)
    key = f'self_{bench.device.type}_time_total'
    print(
        trace.key_averages().table(sort_by=key, row_limit=20, max_name_column_width=50),
        file=sys.stderr,
    )
    if bench.profile:
        trace.export_chrome_trace(bench.profile)


def end_to_end(bench):
    """Training as it is: loader, transfer and steps together; then the released way."""
    run, workers = bench.run, bench.config.train.workers
    _, floors = bench.operations
    forget_peak(bench.device)
    free = timed_steps(run, run.loaders['train'], bench, seconds=bench.seconds)
    pairs = bench.config.train.batch_size
    bench.add(
        'training',
        'loader and steps',
        free.flow,
        'pairs/s',
        floor=pairs / floors['all'],
        floor_is=PRODUCTS,
        note=f'{workers} workers',
    )
    held = timed_steps(run, run.loaders['train'], bench, seconds=bench.seconds, wait=True)
    bench.add(
        'training',
        'share that waits for data',
        100 * held.waited / held.elapsed,
        'per cent',
        note=f'{1e3 * held.waited / held.batches:.2f} ms a step',
    )
    bench.add('training', 'peak memory', peak(bench.device), 'GiB')
    with matrix_precision('fp32'):
        theirs = timed_steps(
            as_released(bench),
            sample_by_sample(bench, workers),
            bench,
            warm=1,
            least=2,
            seconds=bench.seconds,
        )
    bench.add(
        'training',
        'loader and steps, released style',
        theirs.flow,
        'pairs/s',
        note=f'fp32, {workers} workers',
    )
    bench.add(
        'training',
        'ours / released style',
        free.flow / theirs.flow,
        'times',
        note='goal on a GPU: at least 10',
    )


# ------------------------------------------------------------------------------------------ scoring


def encode_split(bench):
    """Encoding the test split's visual items and captions, in batches as at test time."""
    run, clock, parts = bench.run, bench.clock, ('visuals', 'captions')
    eval_set = build_loaders(
        bench.config, bench.root, bench.tokenizer, splits=('test',), device=bench.device
    )['test']

    def encode_part(batches):
        # No order: the embeddings of a part cannot be put into that of the whole split.
        encode(
            run.model,
            replace(eval_set, order={}, **batches),
            bench.device,
            bench.config.compute.precision,
        )

    firsts = {
        part: [batch for _, batch in zip(range(BATCHES), getattr(eval_set, part))] for part in parts
    }
    counted = Operations()
    with counted:
        encode_part({part: within(counted(part), firsts[part]) for part in parts})
    with bench.products():
        floors = counted.floors(clock)
    forget_peak(bench.device)
    windows = {
        part: Window(getattr(eval_set, part), clock, warm=2, seconds=bench.seconds)
        for part in parts
    }
    encode_part(windows)
    for part, what in (('visuals', 'visual items'), ('captions', 'captions, either branch')):
        items = sum(map(size_of, firsts[part]))
        bench.add(
            'encode',
            what,
            windows[part].flow,
            'items/s',
            floor=items / floors[part],
            floor_is=PRODUCTS,
            note=f'batches of {bench.config.eval.test_batch_size}, loading them included',
        )
    bench.add('encode', 'peak memory', peak(bench.device), 'GiB')


def within(context, items):
    """The items, the time between the first one and the end spent in a context."""
    with context:
        yield from items
