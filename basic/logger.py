"""A run's folder and its record: one JSON line an epoch, of which console and TensorBoard are views."""
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import torch
import yaml
from tqdm import tqdm

from basic.checkpoint import BEST, LAST
from basic.config import ConfigError, config_from_dict, config_to_dict
from basic.files import write_atomically
from basic.foreign import is_json, parse_json, read_json, read_text, read_yaml

CONFIG, RUN, LOG, TENSORBOARD, TOKENIZER = 'config.yaml', 'run.json', 'log.jsonl', 'tb', 'tokenizer'
METRICS = {'test': 'metrics.json', 'val': 'metrics_val.json'}
RANKS = {'test': 'ranks.npz', 'val': 'ranks_val.npz'}
ALTERED = {name: name.replace('.', '_altered.') for name in (*METRICS.values(), *RANKS.values())}   # see evaluation.py
REPORTS = (*METRICS.values(), *RANKS.values(), *ALTERED.values())
RUN_FILES = (CONFIG, RUN, LOG, TENSORBOARD, TOKENIZER, BEST, LAST, *REPORTS)
# a line of log.jsonl as others need it: see basic.foreign
RECORD = {'epoch': int, 'best_epoch': (int, None),
          'speed': ({'train_seconds': float, 'val_seconds': float}, None)}
MAY_DIFFER = ('train.epochs', 'train.workers', 'train.patience', 'compute.compile', 'compute.attention',
              'compute.micro_batch', 'compute.checkpointing', 'compute.image_cache',
              'compute.score_memory')    # between a run and its continuation: a smaller micro-batch, say


def check_run_folder(folder, config, *, resume=False, overwrite=False):
    """Stop before an older run is harmed, or continued as something else. Changes nothing.

    Args:
        folder: the run folder, which need not exist.
        config: config tree of the run to start or to continue, as `config_to_dict` gives it.
        resume, overwrite: what was asked for.
    Returns:
        the folder's last.pt if the run goes on from there; else None: it starts from the beginning.
    Raises:
        ConfigError: it holds a run, and neither was asked for; or resume, and there is no run, or another config.
    """
    folder = Path(folder)
    present = [name for name in RUN_FILES if (folder / name).exists()]
    if resume and overwrite:
        raise ConfigError('--resume and --overwrite contradict each other: give one')
    if resume and not (folder / CONFIG).exists():
        raise ConfigError(f'nothing to resume: {folder} holds no run; '
                          + ('--overwrite clears it and starts one' if present else 'leave --resume away to start one'))
    if resume:
        _check_same_config(config_to_dict(read_config(folder)), config, folder)
        if LAST not in present and (METRICS['test'] in present or len(read_log(folder)) > 1):
            raise ConfigError(f'{folder} cannot go on: {LAST}, which holds the state of its training, is not there. '
                              f'evaluation.py --checkpoint {folder} tests its {BEST}; --overwrite deletes the run and '
                              'starts again')
        return folder / LAST if LAST in present else None       # None: interrupted in its first epoch
    if present and not overwrite:
        done = f'tested, see {METRICS["test"]}' if METRICS['test'] in present else 'unfinished, or not tested'
        raise ConfigError(f'{folder} already holds a run ({done}). --resume goes on with it, --overwrite deletes it '
                          'and starts again; name=NAME, --seed N or --run-dir DIR choose another folder')
    return None


def read_config(folder):
    """The Config that a run folder was started with; ConfigError if its file is damaged."""
    path = Path(folder) / CONFIG
    try:
        return config_from_dict(read_yaml(path))
    except ValueError as error:
        raise ConfigError(f'{path} is not a config as train.py writes it: {" ".join(str(error).split())[:300]}'
                          ) from None


def is_trained(folder, config):
    """Whether a run's log has all the epochs that its config asks for, or those that made it stop early."""
    records = read_log(folder)
    if not records:
        return False
    epoch, best = records[-1]['epoch'], records[-1].get('best_epoch')
    return epoch >= config.train.epochs or best is not None and epoch - best > config.train.patience


def clear_run_folder(folder):
    """Make the folder, without what an older run left in it; other files stay."""
    remove_leftovers(folder)
    for path in (Path(folder) / name for name in RUN_FILES):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    Path(folder).mkdir(parents=True, exist_ok=True)


def remove_reports(folder):
    """Remove what tests have found, because the model will be another."""
    for name in REPORTS:
        (Path(folder) / name).unlink(missing_ok=True)


def remove_leftovers(folder):
    """Remove the half-written files of a process that was killed while it wrote atomically."""
    for name in RUN_FILES:
        for path in Path(folder).glob(f'.{name}.*.tmp'):
            path.unlink(missing_ok=True)


def config_changes(stored, asked, ignored=()):
    """How the config asked for differs from the stored one, 'key: old -> new' a key; a feature width of 0 fits any."""
    stored, asked = flatten(stored), flatten(asked)
    return [f'{key}: {stored.get(key)!r} -> {asked.get(key)!r}' for key in sorted(stored.keys() | asked.keys())
            if stored.get(key) != asked.get(key) and key not in ignored
            and not (key == 'visual.feature_dim' and asked.get(key) == 0)]


def _check_same_config(stored, asked, folder):
    """Raise ConfigError, naming the keys."""
    different = config_changes(stored, asked, MAY_DIFFER)
    if different:
        changes = '; '.join(different)
        raise ConfigError(f'cannot resume {folder} with another config ({changes}); only {", ".join(MAY_DIFFER)} may '
                          'change: give the options of the first start, or start a run of its own with name=NAME')


def describe_start(*, rootpath, device, model, processes=1):
    """How a run was started, as plain data for run.json: command, commit, versions, device, parameter counts."""
    versions = {name: getattr(sys.modules.get(name), '__version__', None)
                for name in ('torch', 'transformers', 'tokenizers', 'numpy')}
    name = torch.cuda.get_device_name(device) if device.type == 'cuda' else platform.processor() or platform.machine()
    counts = {part: sum(p.numel() for p in module.parameters()) for part, module in model.named_children()}
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return {'command': [sys.executable, *sys.argv], 'working_folder': os.getcwd(), 'git_commit': git_commit(),
            'started': datetime.now().astimezone().isoformat(timespec='seconds'),
            'rootpath': str(rootpath), 'device': f'{f"{processes} x " * (processes > 1)}{device.type} ({name})',
            'processes': processes,
            'versions': {'python': platform.python_version(), **versions},
            'parameters': {**counts, 'all': sum(counts.values()), 'trained': trained}}


def record_start(folder, start, config, *, resumed_after=0):
    """Write config.yaml (the resolved tree) and run.json; a continuation is added to the first start's `resumed`."""
    path = Path(folder) / RUN
    if resumed_after and path.exists():
        try:
            first = read_json(path, {'resumed': ([dict], None)})
        except ValueError as error:
            raise ConfigError(f'{path} is damaged ({error}): move it away, and the run goes on without it') from None
        start = {**first, 'resumed': [*(first.get('resumed') or []), {'after_epoch': resumed_after, **start}]}
    write_atomically(path, json.dumps(start, indent=2, ensure_ascii=False) + '\n')
    write_atomically(Path(folder) / CONFIG, yaml.safe_dump(config, sort_keys=False, allow_unicode=True))


def peak_memory(device):
    """GiB at most in use so far: of the GPU by tensors, or of this process."""
    if device.type == 'cuda':
        return torch.cuda.max_memory_allocated(device) / 2**30
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss     # KiB; bytes on macOS
    return peak / (2**30 if sys.platform == 'darwin' else 2**20)


def git_commit():
    """The commit that this code is at, with '+changes' if the working tree differs; None outside a repository."""
    home = Path(__file__).resolve().parent.parent
    def git(*words):
        return subprocess.run(['git', '-C', str(home), *words], capture_output=True, text=True, check=True).stdout
    try:
        if Path(git('rev-parse', '--show-toplevel').strip()).resolve() != home:
            return None                                # a copy of the code inside somebody else's repository
        return git('rev-parse', 'HEAD').strip() + ('+changes' if git('status', '--porcelain').strip() else '')
    except (OSError, subprocess.CalledProcessError):
        return None


class RunLog:
    """log.jsonl, and the views of it. A context manager.

    Args:
        folder: the run folder.
        epoch: the last finished epoch; later lines of an interrupted run are dropped.
    """

    def __init__(self, folder, epoch=0):
        from torch.utils.tensorboard import SummaryWriter  # slow to import, and evaluation has no use for it
        self.path = Path(folder) / LOG
        kept = [record for record in read_log(folder) if record['epoch'] <= epoch]
        write_atomically(self.path, ''.join(json.dumps(record) + '\n' for record in kept))
        self.board = SummaryWriter(str(Path(folder) / TENSORBOARD), purge_step=epoch + 1)

    def add(self, record):
        """Append an epoch's record (nested dict with `epoch`) and show it."""
        line = json.dumps(record, allow_nan=False) + '\n'
        with open(self.path, 'a', encoding='utf-8') as file:  # one write of one line: whole, or the last and cut off
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        for name, value in flatten(record, separator='/').items():
            if name != 'epoch' and isinstance(value, (int, float)) and not isinstance(value, bool):
                self.board.add_scalar(name, value, record['epoch'])
        self.board.flush()
        print(summary_line(record), flush=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.board.close()


LINE = '{desc}: step {n_fmt} of {total_fmt}, {elapsed} so far, {remaining} to go{postfix}'


def progress(iterable, label, *, shown=True, seconds=30):
    """Iterate with a progress bar on a terminal, or else a plain line every so many seconds, for a log file.

    Args:
        iterable: with a length.
        label: what the bar or the line begins with.
        shown: False: nothing is shown, in all processes but one.
        seconds: between two lines; what takes less has none.
    Returns:
        tqdm's iterator, for `set_postfix(..., refresh=False)`.
    """
    if sys.stderr.isatty():
        return tqdm(iterable, desc=label, mininterval=0.5, leave=False, dynamic_ncols=True,
                    disable=not shown)
    return tqdm(iterable, desc=label, mininterval=seconds, miniters=1, delay=seconds, leave=False, bar_format=LINE,
                file=_Lines(sys.stderr), disable=not shown)


class _Lines:
    """A file for tqdm to write to, which passes on its lines without the carriage returns that a log would keep."""

    def __init__(self, file):
        self.file = file

    def write(self, text):
        if text.strip():
            self.file.write(f'{text.strip()}\n')

    def flush(self):
        self.file.flush()


def read_log(folder):
    """The records of a run folder's log.jsonl, oldest first; a last line cut off by a crash is left out.

    Raises:
        DataError: a line that is no such record; names it.
    """
    path = Path(folder) / LOG
    lines = read_text(path).removesuffix('\n').split('\n') if path.exists() else ['']
    if not is_json(lines[-1]):
        lines.pop()
    return [parse_json(line, RECORD, f'{path}, line {number}') for number, line in enumerate(lines, 1)]


def summary_line(record):
    """One epoch in one line for the console."""
    train, val = record['train'], record['val']
    recalls = ' '.join(f'{val["t2v"][key]:.1f}' for key in ('R@1', 'R@5', 'R@10'))
    verdict = 'best so far' if record['improved'] else f'best: epoch {record["best_epoch"]}'
    return (f'epoch {record["epoch"]:>3}  loss {train["total"]:.4g}  lr {record["lr"]:.3g}  '
            f'val t2v R@1/5/10 {recalls}  SumR {val["SumR"]:.1f}  ({verdict})  '
            f'{record["speed"]["train_seconds"]:.0f} s, {record["speed"]["samples_per_s"]:.0f} samples/s')


def flatten(tree, prefix='', separator='.'):
    """Nested dicts as one dict of dotted keys; an empty dict stays a value."""
    flat = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            flat.update(flatten(value, f'{prefix}{key}{separator}', separator))
        else:
            flat[f'{prefix}{key}'] = value
    return flat
