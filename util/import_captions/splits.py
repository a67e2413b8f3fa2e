"""Which visual item belongs to which split: by the source, by id lists, or drawn with a seed."""

import random
from functools import cache
from pathlib import Path

from basic.config import SPLITS, ConfigError
from basic.errors import DataError, first_five
from basic.foreign import expect, read_json
from basic.ids import did_you_mean, lines_of, read_bytes

NAMES = {
    'train': ('train', 'training', 'restval'),
    'val': ('val', 'valid', 'validate', 'validation', 'dev'),
    'test': ('test', 'testing'),
}


def split_name(text, where):
    """train, val or test for a split's name in a source; DataError for any other."""
    name = text.strip().lower()
    for split, names in NAMES.items():
        if name in names:
            return split
    raise DataError(f'{where}: split {text[:40]!r}; expected {", ".join(SPLITS)}')


@cache
def json_of(path):
    """The content of a JSON file, which is parsed only once: Karpathy's has 144 MB."""
    return read_json(path, (dict, list))


def read_list(path, split):
    """The names of a split in a file: lines, a caption file, or Karpathy's or MSR-VTT's JSON, of
    which the names of this split are taken."""
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f'--ids {split}={path}: no such file')
    if path.suffix == '.json':
        tree = expect(json_of(path), dict, path)
        group, key = ('videos', 'video_id') if 'videos' in tree else ('images', 'filename')
        expect(tree, {group: [{key: str, 'split': str}]}, path)
        return [item[key] for item in tree[group] if split_name(item['split'], path) == split]
    names = []
    for number, line in lines_of(read_bytes(path)):
        try:
            text = line.decode('utf-8').strip()
        except UnicodeDecodeError:
            raise DataError(f'{path}:{number}: not UTF-8') from None
        if text:
            names.append(text.partition('#')[0])
    # A caption file names an item once per caption.
    return names if len(set(names)) == len(names) else list(dict.fromkeys(names))


def from_source(captions):
    """dict id -> split, of captions (id, Caption); DataError for an item in two splits."""
    splits = {}
    for visual, caption in captions:
        known = splits.setdefault(visual, caption.split)
        if known != caption.split:
            raise DataError(
                f"'{visual}' is in two splits, {known} and {caption.split} ({caption.place}): an "
                'item belongs to one'
            )
    return splits


def from_lists(visuals, lists, notes):
    """dict id -> split, of the items that a list names.

    Args:
        visuals: the ids that have captions.
        lists: dict split -> ids.
        notes: list to which a line is added for names without captions.
    """
    splits, there = {}, set(visuals)
    for split, names in lists.items():
        for name in names:
            if splits.setdefault(name, split) != split:
                raise DataError(f"'{name}' is in two id lists: {splits[name]} and {split}")
        lost = [name for name in names if name not in there]
        near = did_you_mean(lost, visuals) if lost else ''
        if len(lost) == len(names):
            raise DataError(f'the {split} list has no id with a caption: {first_five(lost)}{near}')
        if lost:
            notes.append(
                f'{split}: {len(lost):,} ids of the list have no caption: {first_five(lost)}{near}'
            )
    return splits


def draw(wanted, seed, pools):
    """dict id -> split, drawn at random; the result depends on the ids, not on their order.

    Args:
        wanted: dict split -> number of items, share of them (below 1), or 'rest'.
        pools: dict split -> the ids that can be in it: those with captions in its language.
    """
    total = len(set().union(*pools.values()))
    splits, rng = {}, random.Random(seed)
    order = sorted(wanted, key=lambda split: (wanted[split] == 'rest', -SPLITS.index(split)))
    for split in order:
        free = [name for name in sorted(pools[split]) if name not in splits]
        count = wanted[split]
        count = len(free) if count == 'rest' else int(count if count >= 1 else round(count * total))
        if count > len(free) or not count:
            shown = 'rest' if wanted[split] == 'rest' else f'{wanted[split]:g}'
            raise DataError(
                f'--draw {split}={shown}: of the {len(pools[split]):,} '
                f'items with captions in the language of {split}, {len(free):,} are left; give '
                'smaller numbers, or a share such as 0.1'
            )
        splits |= dict.fromkeys(rng.sample(free, count), split)
    return splits
