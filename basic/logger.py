"""A run's folder and its record: one JSON line an epoch, of which console and TensorBoard are
views."""

import json
import os
import platform
import resource
import subprocess
import sys
import weakref
from datetime import datetime
from pathlib import Path

import torch
import yaml
from tqdm import tqdm

from basic import distributed, files
from basic.board import STEP, add_code, add_scalars, attempt, open_board
from basic.checkpoint import BEST, LAST, NEXT_BEST
from basic.config import ConfigError, config_from_dict, config_to_dict
from basic.files import remove, write_atomically
from basic.foreign import is_json, parse_json, read_json, read_text, read_yaml

CONFIG, RUN, LOG, TENSORBOARD, TOKENIZER = 'config.yaml', 'run.json', 'log.jsonl', 'tb', 'tokenizer'
METRICS = {'test': 'metrics.json', 'val': 'metrics_val.json'}
RANKS = {'test': 'ranks.npz', 'val': 'ranks_val.npz'}
# see evaluation.py
ALTERED = {name: name.replace('.', '_altered.') for name in (*METRICS.values(), *RANKS.values())}
REPORTS = (*METRICS.values(), *RANKS.values(), *ALTERED.values())
RUN_FILES = (CONFIG, RUN, LOG, TENSORBOARD, TOKENIZER, BEST, NEXT_BEST, LAST, *REPORTS)
# a line of log.jsonl as others need it: see basic.foreign
RECORD = {
    'epoch': int,
    'best_epoch': (int, None),
    'speed': ({'train_seconds': float, 'val_seconds': float}, None),
}
MAY_DIFFER = (
    'train.epochs',
    'train.workers',
    'train.patience',
    'train.keep_last',
    'compute.compile',
    'compute.attention',
    'compute.micro_batch',
    'compute.checkpointing',
    'compute.image_cache',
    # between a run and its continuation: a smaller micro-batch, say
    'compute.score_memory',
)


POINTS = 200  # of an epoch's steps in TensorBoard
# of a record: a line in TensorBoard would say nothing
NO_CURVE = ('epoch', 'best_epoch', 'val/weight')
WIDTH = 80  # of a terminal that does not tell


def check_run_folder(folder, config, *, resume=False, overwrite=False):
    """Stop before an older run is harmed, or continued as something else. Changes nothing.

    Args:
        folder: the run folder, which need not exist.
        config: config tree of the run to start or to continue, as `config_to_dict` gives it.
        resume, overwrite: what was asked for.
    Returns:
        the folder's last.pt if the run goes on from there; else None: it starts from the beginning.
    Raises:
        ConfigError: it holds a run, and neither was asked for; or resume, and there is no run, or
            another config.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f'run folder {folder} is a file: give another --run-dir')
    present = [name for name in RUN_FILES if (folder / name).exists()]
    if resume and not (folder / CONFIG).exists():
        raise ConfigError(
            f'nothing to resume: {folder} holds no run; '
            + ('--overwrite clears it and starts one' if present else 'omit --resume to start one')
        )
    if resume:
        _check_same_config(config_to_dict(read_config(folder)), config, folder)
        if LAST not in present and (METRICS['test'] in present or len(read_log(folder)) > 1):
            raise ConfigError(
                f'{folder} cannot go on: its {LAST}, the state of the training, is deleted after'
                f' the test (train.keep_last=true keeps it). {BEST} can still be tested:'
                f' evaluation.py --checkpoint {folder}. For a longer training start again:'
                ' --overwrite'
            )
        return folder / LAST if LAST in present else None  # None: interrupted in its first epoch
    if present and not overwrite:
        done = (
            f'tested, see {METRICS["test"]}'
            if METRICS['test'] in present
            else 'unfinished, or not tested'
        )
        raise ConfigError(
            f'{folder} already holds a run ({done}). --resume goes on with it, --overwrite replaces'
            ' it by a new one; name=NAME, --seed N or --run-dir DIR choose another folder'
        )
    return None


def is_finished(folder, config):
    """Whether a run folder holds this run, trained to its end and tested, so that nothing is left
    to do."""
    folder = Path(folder)
    return (
        (folder / CONFIG).is_file()
        and (folder / METRICS['test']).is_file()
        and is_trained(folder, config)
        and not config_changes(
            config_to_dict(read_config(folder)), config_to_dict(config), MAY_DIFFER
        )
    )


def read_config(folder):
    """The Config that a run folder was started with; ConfigError if its file is damaged."""
    path = Path(folder) / CONFIG
    try:
        return config_from_dict(read_yaml(path))
    except ValueError as error:
        raise ConfigError(
            f'{path} is not a config as train.py writes it: {" ".join(str(error).split())[:300]}'
        ) from None


def is_trained(folder, config):
    """Whether a run's log has all the epochs that its config asks for, or those that made it stop
    early."""
    records = read_log(folder)
    if not records:
        return False
    epoch, best = records[-1]['epoch'], records[-1].get('best_epoch')
    return epoch >= config.train.epochs or best is not None and epoch - best > config.train.patience


def clear_run_folder(folder):
    """Make the folder, without what an older run left in it; other files stay."""
    remove_leftovers(folder)
    for name in RUN_FILES:
        remove(Path(folder) / name)
    Path(folder).mkdir(parents=True, exist_ok=True)


def remove_reports(folder):
    """Remove what tests have found, because the model will be another."""
    for name in REPORTS:
        (Path(folder) / name).unlink(missing_ok=True)


def remove_leftovers(folder):
    """Remove the half-written files of a process that was killed while it wrote atomically."""
    if Path(folder).is_dir():
        for name in RUN_FILES:
            files.remove_leftovers(Path(folder) / name)


def config_changes(stored, asked, ignored=()):
    """How the config asked for differs from the stored one, 'key: old -> new' a key; a feature
    width of 0 fits any."""
    stored, asked = flatten(stored), flatten(asked)
    return [
        f'{key}: {stored.get(key)!r} -> {asked.get(key)!r}'
        for key in sorted(stored.keys() | asked.keys())
        if stored.get(key) != asked.get(key)
        and key not in ignored
        and not (key == 'visual.feature_dim' and asked.get(key) == 0)
    ]


def _check_same_config(stored, asked, folder):
    """Raise ConfigError, naming the keys."""
    different = config_changes(stored, asked, MAY_DIFFER)
    if different:
        changes = '; '.join(different)
        raise ConfigError(
            f'cannot resume {folder} with another config ({changes}); only {", ".join(MAY_DIFFER)}'
            ' may change: give the options of the first start, or start a run of its own with'
            ' name=NAME'
        )


def describe_start(*, rootpath, device, model, processes=1):
    """How a run was started, as plain data for run.json: command, commit, versions, device,
    parameter counts."""
    versions = {
        name: getattr(sys.modules.get(name), '__version__', None)
        for name in ('torch', 'transformers', 'tokenizers', 'numpy')
    }
    name = (
        torch.cuda.get_device_name(device)
        if device.type == 'cuda'
        else platform.processor() or platform.machine()
    )
    counts = {
        part: sum(p.numel() for p in module.parameters()) for part, module in model.named_children()
    }
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return {
        'command': [sys.executable, *sys.argv],
        'working_folder': os.getcwd(),
        'git_commit': git_commit(),
        'started': datetime.now().astimezone().isoformat(timespec='seconds'),
        'rootpath': str(rootpath),
        'device': f'{f"{processes} x " * (processes > 1)}{device.type} ({name})',
        'processes': processes,
        'versions': {'python': platform.python_version(), **versions},
        'parameters': {**counts, 'all': sum(counts.values()), 'trained': trained},
    }


def record_start(folder, start, config, *, resumed_after=0):
    """Write config.yaml (the resolved tree) and run.json; a continuation is added to the first
    start's `resumed`."""
    path = Path(folder) / RUN
    if resumed_after and path.exists():
        try:
            first = read_json(path, {'resumed': ([dict], None)})
        except ValueError as error:
            raise ConfigError(
                f'{path} is damaged ({error}): move it away, and the run goes on without it'
            ) from None
        start = {
            **first,
            'resumed': [*(first.get('resumed') or []), {'after_epoch': resumed_after, **start}],
        }
    write_atomically(path, json.dumps(start, indent=2, ensure_ascii=False) + '\n')
    write_atomically(
        Path(folder) / CONFIG, yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
    )


def peak_memory(device):
    """GiB at most in use so far: of the GPU by tensors, or of this process."""
    if device.type == 'cuda':
        return torch.cuda.max_memory_allocated(device) / 2**30
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB; bytes on macOS
    return peak / (2**30 if sys.platform == 'darwin' else 2**20)


def git_commit():
    """The commit that this code is at, with '+changes' if the working tree differs; None outside a
    repository."""
    home = Path(__file__).resolve().parent.parent

    def git(*words):
        return subprocess.run(
            ['git', '-C', str(home), *words], capture_output=True, text=True, check=True
        ).stdout

    try:
        if Path(git('rev-parse', '--show-toplevel').strip()).resolve() != home:
            return None  # a copy of the code inside somebody else's repository
        return git('rev-parse', 'HEAD').strip() + (
            '+changes' if git('status', '--porcelain').strip() else ''
        )
    except (OSError, subprocess.CalledProcessError):
        return None


class RunLog:
    """log.jsonl, and the views of it. A context manager.

    Args:
        folder: the run folder.
        epoch: the last finished epoch; later lines of an interrupted run are dropped.
        steps: per epoch; TensorBoard has `POINTS` of them.
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
        """function(SummaryWriter, *args), if there is a SummaryWriter; one that fails is left out
        from then on."""

        def of_board():
            function(self.board, *args)
            return self.board

        if self.board:
            self.board = attempt(of_board)

    def step(self, values, *, epoch, step, lr):
        """Show what a training step gave, a dict as of `train.train_step`."""
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
        # one write of one line: whole, or the last and cut off
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
        close_progress()  # a message may follow
        self.show(lambda board: board.close())


def show_test(folder, report, text):
    """Add a test's result to a run's TensorBoard: the figures at the result's weight, and the whole
    table as text.

    Args:
        folder: the run folder.
        report: of `evaluation.evaluate_checkpoint`; text: of `evaluation.table`.
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
    """Say on stderr, in one process of several, what is being done; stdout is for results."""
    if distributed.is_main():
        print(line, file=sys.stderr, flush=True)


def progress(iterable, label='', *, parts=None, shown=True, seconds=30):
    """Iterate with one line that is kept up to date on a terminal, or else a line every so many
    seconds.

    Args:
        iterable: what to iterate.
        label: what the line begins with, before '3/7'.
        parts: instead, a function of (done, how many or None, seconds so far) -> the line's parts,
            list of str. Where a terminal is too narrow, the last but one is left out, and again.
        shown: False: nothing is shown, in all processes but one.
        seconds: between two lines; what takes less has none.
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
    """A function (done, of how many) that keeps a line as that of `progress` up to date, for work
    that is no loop."""
    lines = []

    def report(done, total):
        if not lines:
            lines.append(progress(range(total), label, shown=shown))
        lines[0].update(done - lines[0].n)
        if done >= total:
            lines[0].close()

    return report


def epoch_progress(loader, *, epoch, epochs, last=None, shown=True, seconds=30):
    """The `progress` of a training epoch: 'epoch 3/12  step 40/94  loss 12.3  35 samples/s  at most
    2:10 left'.

    The time left is that of the run, with all its epochs: it may stop early.

    Args:
        loader: data_provider.TrainLoader.
        epoch, epochs: this one, from 1, and how many at most.
        last: seconds that the epoch before took with its validation; None: there was none.
    Returns:
        tqdm's iterator; set its `loss` to what is to be shown.
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
    """Take every progress line off the terminal, before something else is said; an exception leaves
    it there."""
    for line in list(_Line.shown):
        line.close()


class _Line(tqdm):
    """tqdm with a line of words that never fills the terminal's width; the arguments are those of
    `progress`."""

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
    """A file for tqdm to write to, which passes on its lines without the carriage returns that a
    log would keep."""

    def __init__(self, file):
        self.file = file

    def write(self, text):
        if text.strip():
            self.file.write(f'{text.strip()}\n')

    def flush(self):
        self.file.flush()


def read_log(folder):
    """The records of a run folder's log.jsonl, oldest first; a last line cut off by a crash is left
    out.

    Raises:
        DataError: a line that is no such record; names it.
    """
    path = Path(folder) / LOG
    lines = read_text(path).removesuffix('\n').split('\n') if path.exists() else ['']
    if not is_json(lines[-1]):
        lines.pop()
    return [
        parse_json(line, RECORD, f'{path}, line {number}') for number, line in enumerate(lines, 1)
    ]


def summary_line(record):
    """One epoch in one line for the console, of at most 80 characters."""
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
    """A loss in five or six characters; it may be summed over a batch."""
    return f'{loss:.0f}' if abs(loss) >= 1000 else f'{loss:#.4g}'


def flatten(tree, prefix='', separator='.'):
    """Nested dicts as one dict of dotted keys; an empty dict stays a value."""
    flat = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            flat.update(flatten(value, f'{prefix}{key}{separator}', separator))
        else:
            flat[f'{prefix}{key}'] = value
    return flat
