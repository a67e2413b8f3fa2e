"""Measure speed and memory on made data of true sizes, each stage by itself and all together,
beside their floors.

    python -m util.benchmark [--sizes small|paper|million] [--device cpu|0] [--stages step,score]
    [key=value ...]

Each figure stands beside its floor, timed in the same run: a pure matrix product of the same
floating-point operations, or a plain copy of the same bytes. The released system's way of loading,
training and scoring is timed too.
"""

import argparse
import json
import shutil
import sys
import tempfile
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import train
from basic import distributed
from basic.arguments import training_arguments
from basic.command import command
from basic.config import PRECISIONS, load_config
from basic.pretrained.tokenizer import load_tokenizer
from basic.runtime import choose_devices, matrix_precision, seed_everything
from util.benchmark.data import COLLECTIONS, CONFIGS, make_data, sizes_of
from util.benchmark.encoding import encode_split
from util.benchmark.images import images
from util.benchmark.loading import loader, tokenise
from util.benchmark.measure import Clock, ceiling, describe
from util.benchmark.scoring import score
from util.benchmark.training import count_operations, end_to_end, step

# each takes a `Bench` and adds its figures to it
STAGES = {
    'tokenise': tokenise,
    'loader': loader,
    'images': images,
    'step': step,
    'training': end_to_end,
    'encode': encode_split,
    'score': score,
}
DEFAULT_STAGES = {
    'small': list(STAGES),
    'paper': list(STAGES),
    'million': ['tokenise', 'loader', 'score'],
}
SECONDS = {'small': 2.0, 'paper': 15.0, 'million': 15.0}
WIDTHS = (9, 37, 17, 17, 8)
HEAD = ('stage', 'figure', 'measured', 'floor', 'ratio', "the floor's work; notes")


@dataclass
class Figure:
    """One measurement; the units end in /s where more is better.

    Attributes:
        stage, figure: what was measured; value, unit: the result.
        floor: what pure arithmetic or a plain copy gives in the same unit, None where there is
            none; floor_is: which.
        note: what else one must know.
    """

    stage: str
    figure: str
    value: float
    unit: str
    floor: float | None = None
    floor_is: str = ''
    note: str = ''

    @property
    def ratio(self):
        """How many times the floor's time it takes."""
        if self.floor is None:
            return None
        return self.floor / self.value if self.unit.endswith('/s') else self.value / self.floor

    def line(self):
        """The figure as a row of the table."""
        value, floor = (
            f'{show(number)} {self.unit}' if number is not None else ''
            for number in (self.value, self.floor)
        )
        ratio = '' if self.ratio is None else f'{show(self.ratio)}x'
        notes = '; '.join(part for part in (self.floor_is, self.note) if part)
        return row(self.stage, self.figure, value, floor, ratio, notes)


def show(number):
    """A number with three figures or more, for people."""
    return (
        f'{number:,.0f}'
        if abs(number) >= 1000
        else f'{number:.3g}'
        if abs(number) < 100
        else f'{number:.0f}'
    )


def row(stage, figure, value, floor, ratio, notes):
    widths = WIDTHS
    cells = (
        f'{stage:<{widths[0]}} {figure:<{widths[1]}} {value:>{widths[2]}} {floor:>{widths[3]}}'
        f' {ratio:>{widths[4]}}'
    )
    return f'{cells}  {notes}'.rstrip()


@dataclass
class Bench:
    """What the stages work with.

    Attributes:
        config, overrides: basic.config.Config, and the key=value strings that it was made with.
        config_path: its YAML file; sizes: util.benchmark.data.Sizes.
        folder: where the data are made, once a stage needs them.
        clock: util.benchmark.measure.Clock of the device.
        seconds: about how long one figure may be measured.
        profile: None, or where to write the trace of a step, '' for nowhere.
        emit: called with each Figure.
        best_rate: what `ceiling` has seen.
    """

    config: Any
    config_path: Path
    overrides: list[str]
    sizes: Any
    folder: Path
    clock: Clock
    seconds: float
    profile: str | None
    emit: Any = field(repr=False)
    best_rate: float = 0.0

    @property
    def device(self):
        return self.clock.device

    def add(self, stage, figure, value, unit, **more):
        self.emit(Figure(stage, figure, value, unit, **more))

    @cached_property
    def root(self):
        """ROOTPATH of the made data."""
        return make_data(
            self.folder,
            self.config.data.collection,
            self.sizes,
            seed=self.config.train.seed,
            report=lambda line: print(line, file=sys.stderr),
        )

    @cached_property
    def tokenizer(self):
        return load_tokenizer(self.config.text.bert, self.config.text.lowercase)

    @cached_property
    def run(self):
        """A train.Run as the command line would make it."""
        words = [
            '--config',
            str(self.config_path),
            '--rootpath',
            str(self.root),
            '--overwrite',
            '--no-test',
            '--run-dir',
            str(self.root / 'run'),
            *self.overrides,
        ]
        with redirect_stdout(sys.stderr):
            return train.prepare(train.check_start(training_arguments(words)), self.device)

    @cached_property
    def operations(self):
        """Operations of one training step, mean over some batches, and the floors of its parts; see
        the stage."""
        return count_operations(self)

    def ceiling(self):
        """Floating-point operations a second of a large matrix product in the config's precision.

        The best seen so far: it is measured anew each time, for a machine may be busy with other
        work.
        """
        with self.products():
            self.best_rate = max(self.best_rate, ceiling(self.clock, self.config.compute.precision))
        return self.best_rate

    @contextmanager
    def products(self):
        """Matrix products are done in the config's precision meanwhile, where a floor is timed."""
        with matrix_precision(self.config.compute.precision):
            yield


def benchmark(args, emit):
    """Measure the stages asked for, on data made for it; `emit` gets a dict first, then each
    Figure.

    Raises:
        ValueError: something that the user can put right; says what.
    """
    devices, sizes = choose_devices(args.device), sizes_of(args.collection, args.sizes)
    if len(devices) > 1:
        raise ValueError(
            f"--device {args.device}: the benchmark measures one device; give cpu or one GPU's"
            ' index'
        )
    device = distributed.start(devices)  # which also makes it the current one
    stages = args.stages or DEFAULT_STAGES[args.sizes]
    config_path = CONFIGS / f'{args.collection}.yaml'
    temporary = None if args.folder else tempfile.mkdtemp(prefix='benchmark_')
    folder = Path(args.folder or temporary)
    try:
        overrides = [
            *sizes.options,
            f'train.seed={args.seed}',
            f'train.workers={args.workers}',
            f'train.batch_size={args.batch_size or sizes.batch_size}',
            f'compute.precision={args.precision}',
            f'compute.compile={args.compile}',
            'text.pretrained=false',
            f'text.bert={folder.absolute()}/bert',
            *args.overrides,
        ]
        config = load_config(config_path, overrides)
        seed_everything(args.seed)
        emit(
            {
                'benchmark': args.sizes,
                'collection': args.collection,
                'precision': config.compute.precision,
                'compile': config.compute.compile,
                'batch_size': config.train.batch_size,
                'workers': config.train.workers,
                'seed': args.seed,
                **describe(device),
                'sizes': asdict(sizes),
            }
        )
        bench = Bench(
            config=config,
            config_path=config_path,
            overrides=overrides,
            folder=folder,
            sizes=sizes,
            clock=Clock(device),
            profile=args.profile,
            emit=emit,
            seconds=SECONDS[args.sizes] if args.seconds is None else args.seconds,
        )
        bench.add('ceiling', 'large matrix product', bench.ceiling() / 1e9, 'GFLOP/s')
        for name in stages:
            STAGES[name](bench)
    finally:
        if temporary:
            shutil.rmtree(temporary, ignore_errors=True)


class Report:
    """Writes what is measured, as it comes: a table for people, JSON lines for programs.

    Args:
        json_path: file for the JSON lines, '-' for them on stdout in place of the table, None for
            the table alone.
    """

    def __init__(self, json_path):
        self.table = json_path != '-'
        self.file = (
            sys.stdout
            if json_path == '-'
            else open(json_path, 'w', encoding='utf-8')
            if json_path
            else None
        )

    def __call__(self, thing):
        record = thing if isinstance(thing, dict) else {**asdict(thing), 'ratio': thing.ratio}
        if self.file:
            print(json.dumps(record), file=self.file, flush=True)
        if self.table:
            print(
                '\n'.join(self._heading(thing)) if isinstance(thing, dict) else thing.line(),
                flush=True,
            )

    @staticmethod
    def _heading(context):
        yield ', '.join(f'{key} {value}' for key, value in context.items() if key != 'sizes')
        yield row(*HEAD)


def parse_arguments(argv=None):
    parser = argparse.ArgumentParser(
        prog='python -m util.benchmark',
        description=__doc__.splitlines()[0],
        epilog='Options are keys of basic/config.py, such as text.pooling=mean.',
    )
    parser.add_argument(
        '--collection',
        default='vatex',
        choices=list(COLLECTIONS),
        help='default: vatex; the stage images, of raw images through CLIP, is the same for both',
    )
    parser.add_argument(
        '--sizes',
        default='small',
        choices=list(DEFAULT_STAGES),
        help=(
            "small (default): a minute or two on two CPU cores; paper: the collection's own;"
            ' million: 1,000,000 captions and 100,000 visual items'
        ),
    )
    parser.add_argument(
        '--stages',
        type=names_of_stages,
        metavar='A,B',
        help=f'of {", ".join(STAGES)} (default: all; for million tokenise, loader, score)',
    )
    parser.add_argument(
        '--device', default='cpu', help='cpu (default) or the index of a GPU, such as 0'
    )
    parser.add_argument('--precision', default='fp32', choices=PRECISIONS, help='default: fp32')
    parser.add_argument('--compile', action='store_true', help='short for compute.compile=true')
    parser.add_argument(
        '--batch-size', type=int, metavar='N', help='caption pairs (default: 128; small: 16)'
    )
    parser.add_argument(
        '--workers', type=int, default=2, metavar='N', help='loader workers (default: 2)'
    )
    parser.add_argument(
        '--seed', type=int, default=1, metavar='N', help='of everything that is drawn (default: 1)'
    )
    parser.add_argument(
        '--seconds',
        type=float,
        metavar='S',
        help='about how long to measure one figure (default: 15; small: 2)',
    )
    parser.add_argument(
        '--folder',
        metavar='DIR',
        help='make the data here, and keep them for the next time (default: a temporary folder)',
    )
    parser.add_argument(
        '--json', metavar='FILE', help='write JSON lines, too; - for these on stdout, and no table'
    )
    parser.add_argument(
        '--profile',
        nargs='?',
        const='',
        metavar='FILE',
        help=(
            'print the operators that take most of '
            'a training step; with FILE also write a trace for chrome://tracing'
        ),
    )
    parser.add_argument(
        'overrides', nargs='*', metavar='key=value', help='options over the config file'
    )
    args = parser.parse_intermixed_args(argv)
    if '=' in (args.profile or ''):
        parser.error(
            f'--profile took {args.profile!r} for its file: name one, or put the option last'
        )
    return args


def names_of_stages(text):
    """'a,b' -> ['a', 'b'], for argparse."""
    names = text.split(',')
    unknown = [name for name in names if name not in STAGES]
    if unknown:
        raise argparse.ArgumentTypeError(
            f'no stage {", ".join(map(repr, unknown))}; there are: {", ".join(STAGES)}'
        )
    return names


@command('benchmark')
def main(argv=None):
    """The command line; returns the exit status, see basic.command."""
    args = parse_arguments(argv)
    benchmark(args, Report(args.json))
    return 0
