"""The unfinished work of an extraction: shards of items, each written atomically.

The work folder `.<output>.shards` beside the output has `plan.json` (what the features depend on),
and `<number>.npz` for each finished shard. A killed process loses the shard that it was making. The
file `joining` says that the output is being written from the shards.
Several processes can work on one output, each on its share of the shards.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from basic.errors import DataError, UserError, first_five
from basic.files import locked, remove, remove_at_once, remove_leftovers, write_atomically
from basic.foreign import parse_json, read_json, read_npz
from basic.merge import flatten

PLAN, JOINING, LOCK = 'plan.json', 'joining', '.extract_features.lock'


class BadFiles(UserError):
    """Files that cannot be read; the exit status is 1."""

    status = 1


@dataclass
class Result:
    """The features of one item: `features` (F, D) float32, `frames` (F,) int64, their k."""

    features: np.ndarray
    frames: np.ndarray


class Work:
    """The shards of one output.

    Args:
        output: path of the output, a file or a folder.
        plan: plain data on which the features depend, `encoder`, `items` and others.
        ids: all items, in order.
        size: items per shard.
    """

    def __init__(self, output, plan, ids, size):
        self.output, self.ids, self.size = Path(output), ids, size
        self.plan = json.loads(json.dumps({**plan, 'shard_size': size}))
        self.folder = self.output.with_name(f'.{self.output.name}.shards')
        self.count = -(-len(ids) // size)

    def items(self, shard):
        """The positions of a shard's items in `ids`."""
        return range(shard * self.size, min((shard + 1) * self.size, len(self.ids)))

    def begin(self, sidecar, *, overwrite):
        """Make the work folder, or continue the one that exists.

        Args:
            sidecar: path of the output's record.
            overwrite: replace an output of other data or options, and discard such unfinished work.
        Returns:
            whether there is something to do; False if the output is complete.
        Raises:
            DataError: output or unfinished work of other data or options, without `overwrite`.
        """
        self.output.parent.mkdir(parents=True, exist_ok=True)
        with self.lock():
            stored = self._stored()
            changes = plan_changes(stored, self.plan)
            remove_leftovers(self.folder)
            if self.is_complete(sidecar):
                remove_leftovers(self.output)  # of a process that was killed at the end
                if not stored or not changes:
                    remove_at_once(self.folder)
                return False
            joining = not changes and (self.folder / JOINING).exists()
            if self.output.exists() and not joining and not overwrite:
                raise DataError(
                    f'{self.output} exists and was made from other data or options, or by other '
                    'means: --overwrite replaces it'
                )
            if not changes:
                return True
            if stored and not overwrite:
                raise DataError(
                    f'{self.folder} has unfinished work with other options: '
                    f'{"; ".join(changes)}. Finish it with those options, discard it with '
                    '--overwrite, or write to another place'
                )
            remove_at_once(
                self.folder
            )  # without a plan: a process was killed when it made or removed it
            self.folder.mkdir()
            write_atomically(self.folder / PLAN, json.dumps(self.plan, indent=2) + '\n')
            return True

    def is_complete(self, sidecar):
        """Whether the output is there, made by this plan."""
        return self.output.exists() and is_same(sidecar, self.plan)

    def _stored(self):
        path = self.folder / PLAN
        return read_json(path, dict) if path.exists() else {}

    def lock(self):
        """A lock for the short moments in which the work begins, or is joined."""
        return locked(self.output.parent / LOCK, wait=True)

    def path(self, shard):
        return self.folder / f'{shard:06}.npz'

    def done(self):
        """The finished shards, perhaps with bad items."""
        return {shard for shard in range(self.count) if self.path(shard).exists()}

    def write(self, shard, results):
        """Write a shard: a list of Result, or the reason (str) why an item is bad."""
        good = [each for each in results if isinstance(each, Result)]
        bad = {str(i): each for i, each in enumerate(results) if isinstance(each, str)}
        width = good[0].features.shape[1] if good else 1
        arrays = {
            'features': np.concatenate(
                [each.features for each in good] or [np.empty((0, width), np.float32)]
            ),
            'frames': np.concatenate([each.frames for each in good] or [np.empty(0, np.int64)]),
            'counts': np.array(
                [len(each.frames) if isinstance(each, Result) else -1 for each in results]
            ),
            'bad': np.frombuffer(json.dumps(bad).encode(), dtype=np.uint8),
        }
        write_atomically(self.path(shard), lambda file: np.savez(file, **arrays))

    def read(self, shard):
        """The results of a finished shard, see `write`.

        Raises:
            DataError: the file is damaged.
        """
        path = self.path(shard)
        shapes = {
            'features': ((None, None), 'f'),
            'frames': ((None,), 'i'),
            'counts': ((None,), 'i'),
            'bad': ((None,), 'u'),
        }
        found = read_npz(path, shapes)
        counts, bad = found['counts'], parse_json(found['bad'].tobytes().decode(), {str: str}, path)
        sizes = np.maximum(counts, 0)
        if len(counts) != len(self.items(shard)) or sizes.sum() != len(found['features']):
            raise DataError(f'{path} does not fit its plan: delete this file')
        starts = np.cumsum(sizes) - sizes
        return [
            Result(found['features'][start : start + size], found['frames'][start : start + size])
            if count >= 0
            else bad[str(i)]
            for i, (start, size, count) in enumerate(zip(starts, sizes, counts))
        ]

    def bad(self):
        """The bad items of the finished shards: dict id -> reason."""
        found = {}
        for shard in sorted(self.done()):
            for position, result in zip(self.items(shard), self.read(shard)):
                if isinstance(result, str):
                    found[self.ids[position]] = result
        return found

    def join(self, write, *, skip_bad):
        """Write the output from the shards if all are done, and remove the work folder.

        Args:
            write: function of (this object, dict of bad items), which writes the output whole.
            skip_bad: omit bad items; otherwise they are an error.
        Returns:
            'joined'; 'waiting' if shards are missing; 'gone' if another process has joined them.
        Raises:
            BadFiles: there are bad items, which are all listed in a file.
        """
        with self.lock():
            if plan_changes(self._stored(), self.plan):
                return 'gone'
            if len(self.done()) < self.count:
                return 'waiting'
            bad = self.bad()
            if bad and not skip_bad:
                refuse_bad(bad, len(self.ids), self.output.with_name(f'{self.output.name}.bad.txt'))
            if len(bad) == len(self.ids):
                raise BadFiles(f'none of the {len(bad):,} items can be read: {reasons(bad)}')
            (self.folder / JOINING).touch()
            write(self, bad)
            remove_at_once(self.folder)
            remove(self.output.with_name(f'{self.output.name}.bad.txt'))
            return 'joined'


def refuse_bad(bad, total, path):
    """Write the bad items and their reasons to a file, and raise BadFiles."""
    write_atomically(path, ''.join(f'{name}\t{reason}\n' for name, reason in bad.items()))
    raise BadFiles(
        f'{len(bad):,} of {total:,} items cannot be read: {reasons(bad)}\n  All are listed in '
        f'{path}. Repair them and give the same command again, or omit them with --skip-bad'
    )


def reasons(bad):
    """The first bad items with their reasons, for messages."""
    return first_five([f'\n  {name}: {reason}' for name, reason in bad.items()]).replace(
        ', \n', '\n'
    )


def plan_changes(before, now):
    """What differs between two plans, as a list of texts such as 'fps: 1 -> 2'.

    The names of an encoder may differ, if its weights are equal.
    """
    before, now = flatten(before), flatten(now)
    same = before.get('encoder.weights') == now.get('encoder.weights')
    aside = {'encoder.name', 'encoder.revision'} if same else set()
    keys = [key for key in {**before, **now} if key not in aside]
    return [
        f'{key}: {_short(before.get(key))} -> {_short(now.get(key))}'
        for key in keys
        if before.get(key) != now.get(key)
    ]


def _short(value):
    text = 'none' if value is None else str(value)
    return text if len(text) <= 40 else f'{text[:37]}...'


def share_of(count, share, shares):
    """The numbers of the shards that one of several processes does."""
    return [shard for shard in range(count) if shard % shares == share]


def is_same(path, plan):
    """Whether a finished output's sidecar has this plan."""
    if not os.path.exists(path):
        return False
    before = read_json(path, {'made_from': dict})['made_from']
    return not plan_changes({**before, 'shard_size': plan['shard_size']}, plan)
