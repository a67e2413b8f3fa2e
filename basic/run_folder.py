"""The run folder: names of its files, what may start or resume in it, and the record of a start.

Only one process at a time uses a run folder.

`--overwrite` moves the files of the old run into `.replaced` inside the folder. When the new run
has written its first last.pt, `.replaced` is removed. If the new run ends before that, for any
reason, the next process that opens the folder restores the old run.
"""

import json
import os
import platform
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import torch
import yaml

from basic import files
from basic.checkpoint import BEST, LAST, NEXT_BEST, CheckpointError, load_checkpoint
from basic.config import config_changes, config_from_dict, config_to_dict, ignorable, keys_with
from basic.errors import ConfigError
from basic.files import locked, remove, write_atomically
from basic.foreign import is_json, parse_json, read_json, read_text, read_yaml
from basic.merge import flatten


CONFIG, RUN, LOG, TENSORBOARD, TOKENIZER = 'config.yaml', 'run.json', 'log.jsonl', 'tb', 'tokenizer'
METRICS = {'test': 'metrics.json', 'val': 'metrics_val.json'}
RANKS = {'test': 'ranks.npz', 'val': 'ranks_val.npz'}
PAGES = {'test': 'report.html', 'val': 'report_val.html'}
OF_A_TEST = (*METRICS.values(), *RANKS.values(), *PAGES.values())
# The names for an altered test, see evaluation.alterations.
ALTERED = {name: name.replace('.', '_altered.') for name in OF_A_TEST}
RESCORED = 'rescored.json'  # of util.rescore
CURVES = 'curves.png'  # of basic.curves
REPORTS = (*OF_A_TEST, *ALTERED.values(), RESCORED, CURVES)
RUN_FILES = (CONFIG, RUN, LOG, TENSORBOARD, TOKENIZER, BEST, NEXT_BEST, LAST, *REPORTS)
# The form of a line of log.jsonl, see basic.foreign.
RECORD = {
    'epoch': int,
    'best_epoch': (int, None),
    'speed': ({'train_seconds': float, 'val_seconds': float}, None),
}
# Options that may change when a run is resumed, such as a smaller micro-batch.
MAY_DIFFER = keys_with('speed', 'rounding', 'length')
LOCK = '.lock'
REPLACED = '.replaced'  # the whole old run
REPLACING = '.replacing'  # a part of it, while the rest is still in the folder


class RunFolder:
    """A context manager that locks a run folder for this process.

    Args:
        folder: Path; if it does not exist, the lock is taken by `open`.
    Raises:
        basic.files.Locked: another process uses it.
    """

    def __init__(self, folder):
        self.folder, self._lock = Path(folder), None
        if self.folder.is_dir():
            self._hold()

    def open(self):
        """Make the folder if it does not exist, and lock it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if self._lock is None:
            self._hold()

    def _hold(self):
        self._lock = locked(self.folder / LOCK)
        try:
            self._lock.__enter__()
        except BaseException:
            self._lock = None
            raise
        self._settle()

    def _settle(self):
        if settle(self.folder):
            print(
                f'note: {self.folder}: the old run is restored, because the new one ended before'
                ' its first epoch was finished',
                file=sys.stderr,
                flush=True,
            )

    def __enter__(self):
        return self

    def __exit__(self, *error):
        if self._lock is not None:
            self._settle()
            # A process that has opened the file meanwhile notices that it is deleted.
            (self.folder / LOCK).unlink(missing_ok=True)
            self._lock.__exit__(None, None, None)
            self._lock = None


def set_aside(folder):
    """Move an old run away; `settle` restores it unless the new run has a last.pt."""
    if not any((folder / name).exists() for name in (LAST, BEST)):
        clear_run_folder(folder)  # there is no model to lose
        return
    (folder / REPLACING).mkdir()
    _move(folder, folder / REPLACING, RUN_FILES)
    os.replace(folder / REPLACING, folder / REPLACED)
    clear_run_folder(folder)


def settle(folder):
    """Finish or undo the replacement of an old run, if there is one.

    Returns:
        whether the old run was restored.
    """
    replaced, replacing = folder / REPLACED, folder / REPLACING
    if replaced.is_dir() and (folder / LAST).exists():  # the new run has its first epoch
        remove(replaced)
        return False
    if not replaced.is_dir() and not replacing.is_dir():
        return False
    if replaced.is_dir():
        clear_run_folder(folder)
        os.replace(replaced, replacing)  # from now on, the folder's files are the old run's
    _move(replacing, folder, reversed(RUN_FILES))
    remove(replacing)
    return True


def keep_best(folder, best_epoch):
    """Rename the best model to model_best.pt, if a crash came before that.

    Args:
        best_epoch: from the state in last.pt.
    """
    waiting = folder / NEXT_BEST
    if not waiting.exists():
        return
    try:
        counts = load_checkpoint(waiting).epoch == best_epoch
    except CheckpointError:
        counts = False
    if counts:
        os.replace(waiting, folder / BEST)
    else:
        waiting.unlink()


def _move(source, target, names):
    for name in names:
        if (source / name).exists() or (source / name).is_symlink():
            os.replace(source / name, target / name)


def check_run_folder(folder, config, *, resume=False, overwrite=False):
    """Refuse to overwrite a run, or to resume it with another config. Changes nothing.

    Args:
        folder: the run folder, which need not exist.
        config: config tree of the run to start or resume, from `config_to_dict`.
        resume, overwrite: whether these options were given.
    Returns:
        the path of last.pt to resume from; None to start from the beginning.
    Raises:
        ConfigError: the folder has a run and neither option was given; or `resume` was given and
            there is no run, or one with another config.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f'run folder {folder} is a file: give another --run-dir')
    present = [name for name in RUN_FILES if (folder / name).exists()]
    if resume and not (folder / CONFIG).exists():
        raise ConfigError(
            f'nothing to resume: {folder} has no run; '
            + ('--overwrite clears it and starts one' if present else 'omit --resume to start one')
        )
    if resume:
        _check_same_config(config_to_dict(read_config(folder)), config, folder)
        if LAST not in present and (METRICS['test'] in present or len(read_log(folder)) > 1):
            raise ConfigError(
                f'{folder} cannot resume: its {LAST} was deleted after the test'
                f' (train.keep_last=true keeps it). To test {BEST}: evaluation.py --checkpoint'
                f' {folder}. To train longer, start again with --overwrite'
            )
        return folder / LAST if LAST in present else None  # None: interrupted in its first epoch
    if present and not overwrite:
        done = (
            f'tested, see {METRICS["test"]}'
            if METRICS['test'] in present
            else 'unfinished, or not tested'
        )
        raise ConfigError(
            f'{folder} already has a run ({done}). --resume continues it, --overwrite replaces it;'
            ' name=NAME, --seed N or --run-dir DIR select another folder'
        )
    return None


def is_finished(folder, config):
    """Whether a run folder has this run, fully trained and tested."""
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
    """The Config of a run folder; ConfigError if its file is damaged."""
    path = Path(folder) / CONFIG
    try:
        return config_from_dict(read_yaml(path))
    except ValueError as error:
        raise ConfigError(
            f'{path} is not a config of train.py: {" ".join(str(error).split())[:300]}'
        ) from None


def is_trained(folder, config):
    """Whether a run's log has all epochs of its config, or enough to stop early."""
    records = read_log(folder)
    if not records:
        return False
    epoch, best = records[-1]['epoch'], records[-1].get('best_epoch')
    return epoch >= config.train.epochs or best is not None and epoch - best > config.train.patience


def clear_run_folder(folder):
    """Make the folder, and remove the files of an old run; other files stay."""
    remove_leftovers(folder)
    for name in RUN_FILES:
        remove(Path(folder) / name)
    Path(folder).mkdir(parents=True, exist_ok=True)


def remove_reports(folder):
    """Remove the results of tests, and the curves, because the model will change."""
    for name in REPORTS:
        (Path(folder) / name).unlink(missing_ok=True)


def remove_leftovers(folder):
    """Remove the temporary files of a process that was killed during an atomic write."""
    if Path(folder).is_dir():
        for name in RUN_FILES:
            files.remove_leftovers(Path(folder) / name)


def _check_same_config(stored, asked, folder):
    """Raise ConfigError with the keys that differ, unless they are in MAY_DIFFER."""
    different = config_changes(stored, asked, MAY_DIFFER)
    if different:
        changes = '; '.join(different)
        may_change = ', '.join(ignorable(MAY_DIFFER, flatten(stored)))
        raise ConfigError(
            f'cannot resume {folder} with another config ({changes}); only {may_change}'
            ' may change: give the options of the first start, or start a new run with name=NAME'
        )


def describe_start(*, rootpath, device, model, processes=1):
    """The content of run.json: command, commit, versions, device, parameter counts."""
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
    """Write config.yaml (the resolved tree) and run.json.

    If the run is resumed, the start is added to `resumed` of the first start.
    """
    path = Path(folder) / RUN
    if resumed_after and path.exists():
        try:
            first = read_json(path, {'resumed': ([dict], None)})
        except ValueError as error:
            raise ConfigError(
                f'{path} is damaged ({error}): move it away to resume without it'
            ) from None
        start = {
            **first,
            'resumed': [*(first.get('resumed') or []), {'after_epoch': resumed_after, **start}],
        }
    write_atomically(path, json.dumps(start, indent=2, ensure_ascii=False) + '\n')
    write_atomically(
        Path(folder) / CONFIG, yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
    )


def git_commit():
    """The commit of this code, with '+changes' if the working tree differs; None without git."""
    home = Path(__file__).resolve().parent.parent

    def git(*words):
        return subprocess.run(
            ['git', '-C', str(home), *words], capture_output=True, text=True, check=True
        ).stdout

    try:
        if Path(git('rev-parse', '--show-toplevel').strip()).resolve() != home:
            return None  # a copy of the code inside another repository
        return git('rev-parse', 'HEAD').strip() + (
            '+changes' if git('status', '--porcelain').strip() else ''
        )
    except (OSError, subprocess.CalledProcessError):
        return None


def read_log(folder):
    """The records of log.jsonl, oldest first, without an incomplete last line after a crash.

    Raises:
        DataError: a line that is not a record.
    """
    path = Path(folder) / LOG
    lines = read_text(path).removesuffix('\n').split('\n') if path.exists() else ['']
    if not is_json(lines[-1]):
        lines.pop()
    return [
        parse_json(line, RECORD, f'{path}, line {number}') for number, line in enumerate(lines, 1)
    ]
