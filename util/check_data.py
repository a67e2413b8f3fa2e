"""Check a collection before training: every file, join, feature and image of every split.

    python -m util.check_data --config configs/vatex.yaml --rootpath ROOT [--split val] [--quick] [key=value ...]

Prints what was found, a column a split, and then every problem, not the first alone. Exit code 0: all is well, 1: there
are problems, 2: the command or the config is wrong. The pretrained tokenizer is a line of its own: where it can be
neither found nor downloaded, the captions' lengths are not checked, and that is no problem of the data.
"""
import argparse
import itertools
import os
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from tqdm import tqdm

from basic.caption import join_captions, load_tokenizer, read_captions
from basic.config import SPLITS, ConfigError, load_config
from basic.errors import DataError, UnreachableError, first_five
from basic.images import ImageSource, check_images
from data_provider import Collection, check_known, pack_branch, present_items, visual_order

SHOWN = 5                                # problems of one kind that are printed in full
IMAGE_SIZE = 224                         # to which images are brought; for finding those that cannot be, any will do
CHUNK = 64 << 20                         # bytes of features looked at in one go
UNKNOWN = 0.5                            # share of unknown tokens above which nothing could be learnt


@dataclass
class Report:
    """What `check_data` found.

    Attributes:
        table: dict split -> dict row label -> cell.
        tokenizer: one line about the tokenizer.
        problems: what must be put right, each once; warnings: what may be meant.
        met: how many problems were met, those noted before included.
    """
    table: dict[str, dict[str, str]] = field(default_factory=dict)
    tokenizer: str = ''
    met: int = 0
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def attempt(self, function, *args):
        """function(*args), or None and a problem more if it raises DataError."""
        try:
            return function(*args)
        except DataError as error:
            self.add([str(error)])
            return None

    def add(self, problems, kind='problems'):
        """Note problems of one kind: the first few and how many more; what is noted already is left out."""
        self.met += len(problems)
        new = [problem for problem in dict.fromkeys(problems) if problem not in self.problems]
        self.problems += new[:SHOWN]
        if len(new) > SHOWN:
            self.problems.append(f'... and {len(new) - SHOWN:,} more {kind}')

    def __str__(self):
        lines = [*_aligned(self.table), f'tokenizer: {self.tokenizer}']
        lines += [f'warning: {warning}' for warning in self.warnings]
        lines += [f'problem: {problem}' for problem in self.problems]
        return '\n'.join([*lines, f'{len(self.problems)} problem(s)' if self.problems else 'no problems found'])


def check_data(config, rootpath, splits=SPLITS, quick=False):
    """Check the data of a config.

    Args:
        config: basic.config.Config.
        rootpath: folder that holds the collection's folder.
        splits: of train, val, test.
        quick: leave out what reads every feature and opens every image.
    Returns:
        Report.
    """
    report = Report()
    tokenizer = _check_tokenizer(report, config)
    collection = report.attempt(Collection, config, rootpath)
    if collection is None:
        return report
    seen, scanned = {}, {}
    for split in splits:
        before = report.met
        column = report.table[split] = {}
        files = _check_captions(report, collection, split, tokenizer, column)
        lead = collection.roles(split)[0]
        if lead in files:
            seen[split] = set(files[lead].visual_ids)
            _check_visuals(report, collection, split, files[lead], column, scanned=None if quick else scanned)
        column['status'] = 'ok' if report.met == before else 'PROBLEMS'
    for one, other in itertools.combinations(seen, 2):
        both = seen[one] & seen[other]
        if both:
            report.warnings.append(f"{len(both):,} visual items are both in '{one}' and in '{other}': "
                                   f'{first_five(sorted(both))}')
    return report


def _check_tokenizer(report, config):
    try:
        tokenizer = load_tokenizer(config.text.bert, config.text.lowercase)
    except UnreachableError as error:
        report.tokenizer = f"NOT CHECKED, nor the captions' lengths: {error}"
        return None
    except DataError as error:
        report.tokenizer = f'of no use, see the problems: {config.text.bert}'
        report.add([str(error)])
        return None
    report.tokenizer = (f'{config.text.bert}: {type(tokenizer.backend_tokenizer.model).__name__}, {len(tokenizer):,} '
                        f'tokens' + ', lower-cased and without accents' * config.text.lowercase)
    return tokenizer


def _check_captions(report, collection, split, tokenizer, column):
    """Read, join and tokenise the branches of a split; fill in the column; return dict role -> CaptionFile."""
    files = {}
    for role in collection.roles(split):
        path = report.attempt(collection.caption_path, split, role)
        if path is not None:
            bad = []
            file = report.attempt(read_captions, path, bad)
            report.add(bad, kind=f'problems in {path}')
            if file is not None:
                files[role] = file
    first = files.get(collection.roles(split)[0])
    for file in files.values():
        if first is not None and file is not first and report.attempt(join_captions, first, file) is not None:
            extra = len(file) - len(first)
            if extra:
                report.warnings.append(f"{extra:,} captions of {file.path} are not used: {first.path} has no "
                                       'captions of these ids')
    column['branches'] = ' / '.join(files)
    column['captions'] = ' / '.join(f'{len(file):,}' for file in files.values())
    empty = {role: file.empty for role, file in files.items()}
    if tokenizer is not None:
        packed = [pack_branch(collection.config, role, file, tokenizer) for role, file in files.items()]
        special = tokenizer.num_special_tokens_to_add()      # cleaning leaves nothing of an English caption in Chinese
        empty = {role: int((tokens.lengths <= special).sum()) for role, tokens in zip(files, packed)}
        unknown = [np.count_nonzero(tokens.ids == tokenizer.unk_token_id) / max(1, len(tokens.ids))
                   for tokens in packed]
        for file, share in zip(files.values(), unknown):
            _check_unknown(report, file, share)
    column['empty captions'] = ' / '.join(f'{number:,}' for number in empty.values())
    for role, file in files.items():
        if empty[role]:
            report.warnings.append(f'{empty[role]:,} captions of {file.path} are empty'
                                   + ', or have nothing that cleaning leaves' * (role == 'en'))
    if tokenizer is not None:
        column['longest caption, tokens'] = ' / '.join(f'{tokens.longest:,}' for tokens in packed)
        column[f'cut to {collection.config.text.positions} tokens'] = ' / '.join(f'{tokens.cut:,}' for tokens in packed)
        column['unknown tokens, %'] = ' / '.join(f'{100 * share:.1f}' for share in unknown)
    return files


def _check_unknown(report, file, share):
    """Note a file of which the tokenizer knows little."""
    text = (f'{100 * share:.0f} % of the tokens of {file.path} are unknown to the tokenizer: is it the one that belongs '
            'to text.bert, and is its vocabulary whole?')
    if share > UNKNOWN:
        report.add([text])
    elif share > UNKNOWN / 5:
        report.warnings.append(text)


def _check_visuals(report, collection, split, captions, column, scanned):
    """Open the visual items of a split, fill in the column; read all of them unless `scanned` is None.

    Args:
        scanned: dict file of features -> its problems, for the next split that has the same.
    """
    source = report.attempt(collection.source, split, captions, IMAGE_SIZE)
    if source is None:
        return
    if collection.config.data.missing == 'skip':
        found = report.attempt(present_items, collection.config, split, source, {'': captions})
        if found is None:
            return
        files, visual_ids, left_out = found
        captions = files['']
        if left_out:
            report.warnings.append(str(left_out))
    else:
        report.attempt(check_known, source, captions)
        visual_ids = visual_order(collection.config, split, source, captions)
        report.attempt(check_images, source, visual_ids)
    number = Counter(visual for visual, _ in captions.ids)
    column['visual items'] = f'{len(visual_ids):,}'
    column['captions a visual item (min / mean / max)'] = _spread([number[name] for name in visual_ids])
    if hasattr(source, 'counts'):
        column['frames a video (min / mean / max)'] = _spread(
            [count for name, count in zip(source.ids, source.counts) if name in number])
    column['feature width'] = f'{source.dim:,}' if source.dim else 'images'
    if scanned is None:
        return
    if isinstance(source, ImageSource):
        complaints = report.attempt(unreadable_images, source, visual_ids)
        report.add(complaints or [], kind=f"images of split '{split}' that cannot be read")
    else:
        if source.where not in scanned:
            scanned[source.where] = unsound_features(source)
        report.add(scanned[source.where])


def unsound_features(source):
    """[] or one message: which rows of the features hold NaN or infinity."""
    rows = bad_rows(source.features)
    return [f'{source.where}: {len(rows):,} of {len(source.features):,} rows hold NaN or infinity: '
            f'{first_five(source.names(rows))}; extract these again'] if len(rows) else []


def bad_rows(features):
    """The rows of `features` (rows, D) that hold NaN or infinity, as an int64 array; reads it in chunks."""
    step = max(1, CHUNK // (features.shape[1] * features.itemsize))
    starts = tqdm(range(0, len(features), step), desc='features', disable=None, leave=False)
    with np.errstate(over='ignore'):     # as training reads them: in float32, in which 1e300 is infinite
        bad = [start + np.flatnonzero(~np.isfinite(features[start:start + step].astype(np.float32, copy=False)
                                                   ).all(axis=1)) for start in starts]
    return np.concatenate([np.zeros(0, dtype=np.int64), *bad])


def unreadable_images(source, visual_ids):
    """Decode every image that exists; a message for each that cannot be."""
    missing = {str(path) for path in source.missing(visual_ids)}
    there = [name for name in visual_ids if str(source.path(name)) not in missing]

    def complaint(name):
        try:
            source.load(name)
        except DataError as error:
            return str(error)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        complaints = tqdm(pool.map(complaint, there), total=len(there), desc='images', disable=None, leave=False)
        return [text for text in complaints if text]


def _spread(numbers):
    numbers = np.asarray(numbers)
    return f'{numbers.min()} / {numbers.mean():.1f} / {numbers.max()}' if len(numbers) else '-'


def _aligned(table):
    """Lines of a table with a row a label and a column a split."""
    labels = list(dict.fromkeys(label for column in table.values() for label in column if label != 'status'))
    rows = [['', *table]] + [[label, *(column.get(label, '-') for column in table.values())]
                             for label in [*labels, 'status'] if table]
    widths = [max(map(len, column)) for column in zip(*rows)]
    return ['  '.join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:]))])
            for row in rows if table]


def main(argv=None):
    parser = argparse.ArgumentParser(prog='python -m util.check_data', description=__doc__.split('\n\n')[0])
    parser.add_argument('--config', required=True, action='append', help='YAML file, such as configs/vatex.yaml; given '
                        'again, what a further file says wins')
    parser.add_argument('--rootpath', required=True, help="folder that holds the collection's folder")
    parser.add_argument('--split', action='append', choices=SPLITS, help='check this split; may be given repeatedly')
    parser.add_argument('--quick', action='store_true', help='do not read every feature, nor open every image')
    parser.add_argument('options', nargs='*', metavar='key=value', help='options of the config, such as data.lang=fr')
    args = parser.parse_intermixed_args(argv)
    try:
        config = load_config(args.config, args.options)
    except ConfigError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    try:
        report = check_data(config, args.rootpath, splits=args.split or SPLITS, quick=args.quick)
    except KeyboardInterrupt:
        print('check_data: interrupted', file=sys.stderr)
        return 130
    print(report)
    return 1 if report.problems else 0


if __name__ == '__main__':
    sys.exit(main())
