"""The stages `step` and `training`: a step on batches on the device, and training as it is.

They call what training calls, and time it from outside: the batches' coming and going (`Window`),
the parts of a step that train marks by `record_function`.
"""

import io
import sys
from contextlib import nullcontext, redirect_stderr
from dataclasses import replace
from unittest.mock import patch

import torch

import train
from basic.config import load_config
from basic.runtime import matrix_precision
from loss import build_loss
from model import build_model
from train import build_optimizers, train_one_epoch
from util.benchmark.baselines import train_as_released
from util.benchmark.loading import sample_by_sample
from util.benchmark.measure import (
    COPY,
    PRODUCTS,
    Operations,
    Phases,
    copy_seconds,
    forget_peak,
    peak,
)
from util.benchmark.window import Window, bytes_of

BATCHES = 2  # different batches that a step is timed on
ADAM_TRAFFIC = 3.5  # it reads 4 numbers a weight and writes 3; a copy reads 1 and writes 1


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
    run, batches = bench.run, first_batches(bench)
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

    add_parts(bench, batches, floors)
    with matrix_precision('fp32'):
        released = timed_steps(
            as_released(bench), batches, bench, warm=1, least=2, seconds=bench.seconds, wait=True
        )
    bench.add('step', 'a step, released style', 1e3 * released.work, 'ms', note='fp32')
    bench.add('step', 'released style / ours', released.work / took, 'times')
    if bench.profile is not None:
        profile(bench, batches)


def add_parts(bench, batches, floors):
    """The parts of a step, the time that no part accounts for, and moving a batch to a GPU."""
    run, clock, phases = bench.run, bench.clock, Phases(bench.clock)
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
