"""A run's log, one JSON line per epoch, its views (console, TensorBoard), and progress lines."""

import json
import os
import resource
import sys
import weakref
from pathlib import Path

import torch
from tqdm import tqdm

from basic import distributed
from basic.board import STEP, add_code, add_scalars, attempt, open_board
from basic.files import write_atomically
from basic.merge import flatten
from basic.run_folder import CONFIG, LOG, TENSORBOARD, read_log

POINTS = 200  # steps per epoch that TensorBoard shows
# Values of a record that are not worth a plot in TensorBoard.
NO_CURVE = ('epoch', 'best_epoch', 'val/weight')
WIDTH = 80  # of a terminal whose width is unknown


def peak_memory(device):
    """Peak memory in GiB: of tensors on the GPU, or of this process."""
    if device.type == 'cuda':
        return torch.cuda.max_memory_allocated(device) / 2**30
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB; bytes on macOS
    return peak / (2**30 if sys.platform == 'darwin' else 2**20)


class RunLog:
    """Writes log.jsonl, the console and TensorBoard. A context manager.

    Args:
        folder: the run folder.
        epoch: the last finished epoch; later lines of an interrupted run are dropped.
        steps: steps per epoch; TensorBoard shows `POINTS` of them.
    """

    def __init__(self, folder, epoch=0, steps=0):
        self.path = Path(folder) / LOG
        kept = [record for record in read_log(folder) if record['epoch'] <= epoch]
        write_atomically(self.path, ''.join(json.dumps(record) + '\n' for record in kept))
        self.steps, self.every = steps, max(1, steps // POINTS)
        self.board = attempt(
            open_board, Path(folder) / TENSORBOARD, epoch=epoch, step=epoch * steps
        )
        config = Path(folder) / CONFIG
        if config.is_file():
            self.show(add_code, 'config', config.read_text(encoding='utf-8'), epoch)

    def show(self, function, *args):
        """Call function(SummaryWriter, *args); after a failure, TensorBoard is not used again."""

        def of_board():
            function(self.board, *args)
            return self.board

        if self.board:
            self.board = attempt(of_board)

    def step(self, values, *, epoch, step, lr):
        """Show the values of a training step, a dict from `train.train_step`."""
        if self.board and step % self.every == 0:
            renamed = {'train/total': 'train/loss'}
            named = {
                f'{STEP}{renamed.get(name, name).removeprefix("train/")}': value
                for name, value in {**values, 'lr': lr}.items()
            }
            self.show(add_scalars, named, (epoch - 1) * self.steps + step)

    def add(self, record):
        """Append an epoch's record (nested dict with `epoch`) and show it."""
        line = json.dumps(record, allow_nan=False) + '\n'
        # One write per line: after a crash, only the last line can be incomplete.
        with open(self.path, 'a', encoding='utf-8') as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        values = {
            name: value
            for name, value in flatten(record, separator='/').items()
            if name not in NO_CURVE
        }
        self.show(add_scalars, values, record['epoch'])
        self.show(lambda board: board.flush())
        print(summary_line(record), flush=True)
        if record.get('halved'):
            print('           the learning rate is halved', flush=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        close_progress()  # in case that a message follows
        self.show(lambda board: board.close())


def show_test(folder, report, text):
    """Add a test to a run's TensorBoard: the metrics of its result, and the table as text.

    Args:
        folder: the run folder.
        report: from `evaluation.evaluate_checkpoint`.
        text: from `evaluation.table`.
    """
    row = next((row for row in report['rows'] if row['weight'] == report['result']['weight']), {})
    board = attempt(open_board, Path(folder) / TENSORBOARD)

    def add():
        figures = {
            name: value for name, value in flatten(row, separator='/').items() if name != 'weight'
        }
        add_scalars(
            board,
            {f'{report["split"]}/{name}': value for name, value in figures.items()},
            report['epoch'],
        )
        add_code(board, report['split'], text, report['epoch'])
        board.close()

    if board:
        attempt(add)


# ----------------------------------------------------------------------------------------- progress


def tell(line):
    """Print on stderr, in the main process, what is being done; stdout is for results."""
    if distributed.is_main():
        print(line, file=sys.stderr, flush=True)


def progress(iterable, label='', *, parts=None, shown=True, seconds=30):
    """Iterate with a progress line on a terminal, or else print a line every `seconds` seconds.

    Args:
        iterable: what to iterate over.
        label: the start of the line, before '3/7'.
        parts: instead of a label, a function (done, total or None, seconds so far) -> list of str,
            the parts of the line. On a narrow terminal, parts before the last are omitted.
        shown: False shows nothing, as in all processes except the main one.
        seconds: between two lines; shorter work has no line.
    Returns:
        tqdm's iterator.
    """

    def plain(done, total, elapsed):
        left = [f'{clock(elapsed * (total - done) / done)} left'] if done and total else []
        return [f'{label} {done}/{total or "?"}', *left]

    options = {'parts': parts or plain, 'leave': False, 'miniters': 1, 'disable': not shown}
    if sys.stderr.isatty():
        return _Line(iterable, mininterval=0.5, dynamic_ncols=True, **options)
    return _Line(iterable, mininterval=seconds, delay=seconds, file=_Lines(sys.stderr), **options)


def counted(label, *, shown=True):
    """A function (done, total) that updates a line like that of `progress`, for other work."""
    lines = []

    def report(done, total):
        if not lines:
            lines.append(progress(range(total), label, shown=shown))
        lines[0].update(done - lines[0].n)
        if done >= total:
            lines[0].close()

    return report


def epoch_progress(loader, *, epoch, epochs, last=None, shown=True, seconds=30):
    """The `progress` of a training epoch.

    The line is 'epoch 3/12  step 40/94  loss 12.3  35 samples/s  at most 2:10 left'. The time left
    is that of all epochs; the run may stop earlier.

    Args:
        loader: data_provider.TrainLoader.
        epoch, epochs: this epoch, from 1, and the most epochs.
        last: seconds of the previous epoch with its validation; None for the first.
    Returns:
        tqdm's iterator; set its `loss` to the value to show.
    """

    def parts(step, steps, elapsed):
        found = [f'epoch {epoch}/{epochs}', f'step {step}/{steps or "?"}']
        if not (step and steps and elapsed):
            return found
        this = elapsed * steps / step
        if bar.loss is not None:
            found.append(f'loss {loss_text(bar.loss)}')
        if hasattr(loader, 'dataset_size'):
            found.append(f'{loader.dataset_size * step / steps / elapsed:.3g} samples/s')
        left = max(this, last or 0) - elapsed + (epochs - epoch) * (last or this)
        return [*found, f'at most {clock(left)} left']

    bar = progress(loader, parts=parts, shown=shown, seconds=seconds)
    bar.loss = None
    return bar


def duration(seconds):
    """'45 s', '12 min' or '3.4 h'."""
    if seconds < 90:
        return f'{seconds:.0f} s'
    return f'{seconds / 60:.0f} min' if seconds < 5400 else f'{seconds / 3600:.1f} h'


def clock(seconds):
    """'0:07', '2:10' or '3:02:10'."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f'{hours}:{minutes:02}:{seconds:02}' if hours else f'{minutes}:{seconds:02}'


def close_progress():
    """Clear all progress lines, which an exception leaves on the terminal, before a message."""
    for line in list(_Line.shown):
        line.close()


class _Line(tqdm):
    """tqdm with a text line that is shorter than the terminal; arguments as of `progress`."""

    shown = weakref.WeakSet()

    def __init__(self, *args, parts, **options):
        self.parts, self.loss = parts, None
        super().__init__(*args, **options)
        self.shown.add(self)

    def __str__(self):
        state = self.format_dict
        parts = self.parts(state['n'], state['total'], state['elapsed'])
        width = (state['ncols'] or WIDTH) - 1
        while len(parts) > 2 and len('  '.join(parts)) > width:
            del parts[-2]
        return '  '.join(parts)[:width]


class _Lines:
    """A file for tqdm, which writes its lines without carriage returns, for logs."""

    def __init__(self, file):
        self.file = file

    def write(self, text):
        if text.strip():
            self.file.write(f'{text.strip()}\n')

    def flush(self):
        self.file.flush()


def summary_line(record):
    """One line of at most 80 characters about an epoch, for the console."""
    train, val = record['train'], record['val']
    recalls = ' '.join(f'{val["t2v"][key]:.1f}' for key in ('R@1', 'R@5', 'R@10'))
    return (
        f'epoch {record["epoch"]:>3}  loss {loss_text(train["total"])}  '
        f'val t2v R@1/5/10 {recalls}  SumR {val["SumR"]:.1f}  '
        f'{duration(record["speed"]["train_seconds"] + record["speed"]["val_seconds"])}'
        + '  best'
        * record['improved']
    )


def loss_text(loss):
    """A loss, which may be a sum over a batch, in five or six characters."""
    return f'{loss:.0f}' if abs(loss) >= 1000 else f'{loss:#.4g}'
