"""One process at a time in a run folder, and an older run that is kept until the new one has its
first epoch.

`--overwrite` moves the older run's files into `.replaced` inside the folder. The new run's first
last.pt is what makes it count: then `.replaced` is removed. Where the new run ended before that,
however it ended, the next one to open the folder puts the older run back.
"""

import os
import sys
from pathlib import Path

from basic.checkpoint import BEST, LAST, NEXT_BEST, CheckpointError, load_checkpoint
from basic.files import locked, remove
from basic.logger import RUN_FILES, clear_run_folder

LOCK = '.lock'
REPLACED = '.replaced'  # the whole older run
REPLACING = '.replacing'  # a part of it, the rest still being in the folder


class RunFolder:
    """A run folder that this process has for itself. A context manager: what it holds is released
    at the end.

    Args:
        folder: Path, which need not exist: then nothing is held before `open`.
    Raises:
        basic.files.Locked: another process uses it.
    """

    def __init__(self, folder):
        self.folder, self._lock = Path(folder), None
        if self.folder.is_dir():
            self._hold()

    def open(self):
        """Make the folder if need be, and hold it."""
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
                f'note: {self.folder}: the older run is back; the one that was to replace it ended'
                ' before its first epoch was done',
                file=sys.stderr,
                flush=True,
            )

    def __enter__(self):
        return self

    def __exit__(self, *error):
        if self._lock is not None:
            self._settle()
            # whoever opened it meanwhile sees that it is gone
            (self.folder / LOCK).unlink(missing_ok=True)
            self._lock.__exit__(None, None, None)
            self._lock = None


def set_aside(folder):
    """Move an older run out of the way of a new one, which `settle` undoes until the new one has a
    last.pt."""
    if not any((folder / name).exists() for name in (LAST, BEST)):
        clear_run_folder(folder)  # there is nothing of value
        return
    (folder / REPLACING).mkdir()
    _move(folder, folder / REPLACING, RUN_FILES)
    os.replace(folder / REPLACING, folder / REPLACED)
    clear_run_folder(folder)


def settle(folder):
    """Finish what a run that was to replace an older one has left half-done; without such a run, do
    nothing.

    Returns:
        whether the older run was put back.
    """
    replaced, replacing = folder / REPLACED, folder / REPLACING
    if replaced.is_dir() and (folder / LAST).exists():  # the new run has its first epoch
        remove(replaced)
        return False
    if not replaced.is_dir() and not replacing.is_dir():
        return False
    if replaced.is_dir():
        clear_run_folder(folder)
        os.replace(replaced, replacing)  # from here on, what is in the folder is the older run's
    _move(replacing, folder, reversed(RUN_FILES))
    remove(replacing)
    return True


def keep_best(folder, best_epoch):
    """Let the model of the best epoch be model_best.pt, if it was written but did not count yet.

    Args:
        best_epoch: as the state in last.pt has it.
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
