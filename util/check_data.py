"""Check a collection before training: every file, join, feature and image of every split.

    python -m util.check_data --config configs/vatex.yaml --rootpath ROOT [--split val] [--quick]
                              [key=value ...]

It looks for the tokenizer and the encoders first, then reads the data, with progress on stderr. It
prints a table with a column per split, and then all problems. The exit status is 0 without
problems, 1 with problems, and 2 for a wrong command or config. Something that can be neither found
nor downloaded, such as the tokenizer without network, is reported as NOT checked and does not count
as a problem.
"""

import argparse
import itertools
import math
import re
import shutil
import sys
import textwrap
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from basic.command import command, telling
from basic.config import SPLITS, load_config
from basic.errors import DataError, UnreachableError, first_five

SHOWN = 5  # problems of one kind that are printed
NARROW = 80  # least width of the table, in columns


@dataclass
class Report:
    """What `check_data` found.

    Attributes:
        table: dict split -> dict row label -> cell.
        tokenizer, bert, clip: one line about each; '' for CLIP where it is not used.
        unchecked: names of what could not be checked.
        quick: whether features and images were not read.
        met: how many problems were found, repeated ones included.
        problems: what must be corrected, without repetition.
        warnings: what may be intended.
    """

    table: dict[str, dict[str, str]] = field(default_factory=dict)
    tokenizer: str = ''
    bert: str = ''
    clip: str = ''
    unchecked: list[str] = field(default_factory=list)
    quick: bool = False
    met: int = 0
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def attempt(self, function, *args):
        """Return function(*args); if it raises DataError, add a problem and return None."""
        try:
            return function(*args)
        except DataError as error:
            self.add([str(error)])
            return None

    def add(self, problems, kind='problems'):
        """Add problems of one kind: the first few, and the number of the others."""
        self.met += len(problems)
        new = [problem for problem in dict.fromkeys(problems) if problem not in self.problems]
        self.problems += new[:SHOWN]
        if len(new) > SHOWN:
            self.problems.append(f'... and {len(new) - SHOWN:,} more {kind}')

    def note(self, text, *, problem):
        """Add a problem or a warning."""
        if problem:
            self.add([text])
        else:
            self.warn(text)

    def warn(self, text):
        """Add a warning, unless the report has it already."""
        if text not in self.warnings:
            self.warnings.append(text)

    def encoders(self):
        """dict name -> what was found; '' for an encoder that is not used."""
        return {'tokenizer': self.tokenizer, 'BERT': self.bert, 'CLIP': self.clip}

    def verdict(self):
        """The last line of the report."""
        if self.problems:
            return '1 problem' if len(self.problems) == 1 else f'{len(self.problems):,} problems'
        if self.unchecked:
            return f'no problems in what could be checked; NOT checked: {", ".join(self.unchecked)}'
        return 'no problems found' + ' (features and images were not read)' * self.quick

    def lines(self, width=NARROW):
        """The lines of the report; the table fits into `width` columns."""
        return [
            *_fitted(self.table, width),
            *(f'{name}: {text}' for name, text in self.encoders().items() if text),
            *(f'warning: {warning}' for warning in self.warnings),
            *(f'problem: {problem}' for problem in self.problems),
            self.verdict(),
        ]

    def __str__(self):
        return '\n'.join(self.lines())


class Encoders:
    """The tokenizer, and the limits of the encoders, to check captions and images with.

    Attributes:
        tokenizer: transformers' tokenizer, or None if it was not found.
        bert: basic.pretrained.encoders.TextLimits, or None.
        lowercase: whether captions are lower-cased and stripped of accents.
        preprocessing: what CLIP asks of its images.
    """

    def __init__(self, config):
        self.config = config
        self.tokenizer = self.bert = None
        self.preprocessing, self.lowercase = None, config.text.lowercase is True

    @cached_property
    def own_tokenizer(self):
        """The tokenizer with text.lowercase=false."""
        from basic.pretrained.tokenizer import load_tokenizer

        return load_tokenizer(self.config.text.bert, False)


def check_data(config, rootpath, splits=SPLITS, quick=False):
    """Check the data of a config, with progress on stderr.

    Args:
        config: basic.config.Config.
        rootpath: folder that holds the collection's folder.
        splits: of train, val, test.
        quick: do not read every feature and open every image.
    Returns:
        Report.
    """
    report = Report(quick=quick)
    encoders = check_encoders(report, config)
    with telling('checking the data'):
        from basic.collection import Collection
        from util.check_captions import check_captions
        from util.check_visuals import check_visuals

        collection = report.attempt(Collection, config, rootpath)
    if collection is None:
        return report
    seen, scanned = {}, {}
    parts = collection.in_languages()
    if 'train' in splits and len(parts) > 1:
        report.attempt(collection.check_english)
    for split, (lang, part) in itertools.product(splits, parts.items()):
        before, name = report.met, f'{split} {lang}' if len(parts) > 1 else split
        column = report.table[name] = {}
        with telling(f'checking captions of {name}'):
            files = check_captions(report, part, split, encoders=encoders, column=column)
        lead = part.branches(split)[0]
        if lead in files:
            seen[split] = seen.get(split, set()) | set(files[lead].visual_ids)
            kind = 'images' if config.visual.kind == 'clip' else 'features'
            with telling(f'checking {kind} of {name}'):
                check_visuals(
                    report,
                    part,
                    split,
                    files[lead],
                    column=column,
                    preprocessing=encoders.preprocessing,
                    scanned=None if quick else scanned,
                )
        column['status'] = 'ok' if report.met == before else 'PROBLEMS'
    for one, other in itertools.combinations(seen, 2):
        both = seen[one] & seen[other]
        if both:
            report.warn(
                f"{len(both):,} visual items are both in '{one}' and in '{other}': "
                f'{first_five(sorted(both))}'
            )
    return report


def check_encoders(report, config):
    """Look for tokenizer, BERT and CLIP, without their weights, and report what they are.

    Returns:
        Encoders.
    """
    encoders, name = Encoders(config), config.text.bert
    with telling('checking the tokenizer'):
        from basic.pretrained.tokenizer import load_tokenizer, lowercases

        tokenizer, report.tokenizer = _looked_at(
            report, 'tokenizer', name, load_tokenizer, name, config.text.lowercase
        )
    if tokenizer is not None:
        encoders.tokenizer = tokenizer
        encoders.lowercase = lowercases(tokenizer, config.text.lowercase)
        kind = type(tokenizer.backend_tokenizer.model).__name__
        report.tokenizer = (
            f'{name}: {kind}, {len(tokenizer):,} tokens'
            + ', lower-cased and without accents' * encoders.lowercase
        )
    with telling('checking BERT'):
        from basic.pretrained.encoders import text_limits

        _check_bert(report, config, encoders, text_limits)
    if config.visual.kind == 'clip':
        name = config.visual.clip
        with telling('checking CLIP'):
            from basic.images import CLIP
            from basic.pretrained.towers import clip_preprocessing

            found, report.clip = _looked_at(
                report, 'CLIP', name, clip_preprocessing, name, config.visual.clip_pretrained
            )
        encoders.preprocessing = found or CLIP
        if found:
            report.clip = f'{name}: {found}'
    # Print this now: reading the data can take minutes.
    for what, line in report.encoders().items():
        if line.startswith(('NOT CHECKED', 'not usable')):
            print(f'{what}: {line}', file=sys.stderr, flush=True)
    return encoders


def _check_bert(report, config, encoders, text_limits):
    """Look for BERT; report a tokenizer with more tokens than it has, and missing layers."""
    name, path = config.text.bert, Path(config.text.bert).expanduser()
    if path.is_file() or encoders.tokenizer is None and not path.is_dir():
        report.unchecked.append('BERT')
        report.bert = (
            (
                f'NOT CHECKED: {name} is only a vocabulary; training needs a folder with '
                'config.json and weights'
            )
            if path.is_file()
            else 'not checked, like the tokenizer'
        )
        return
    bert, report.bert = _looked_at(report, 'BERT', name, text_limits, name, config.text.pretrained)
    if bert is None:
        return
    encoders.bert, tokenizer = bert, encoders.tokenizer
    positions = 'any number of' if bert.positions == math.inf else bert.positions
    report.bert = (
        f'{name}: {bert.kind}, {bert.layers} layers, {positions} positions, {bert.tokens:,} tokens'
    )
    if tokenizer is not None and len(tokenizer) > bert.tokens:
        report.add(
            [
                f"the tokenizer has {len(tokenizer):,} tokens, but the model's BERT only "
                f'{bert.tokens:,}: use the tokenizer of this BERT (text.bert)'
            ]
        )
    beyond = [number for number in config.text.trained_layers if number >= bert.layers]
    if beyond and not config.text.train_all:
        report.add(
            [
                f"key 'text.trained_layers' names layer {beyond[0]}, but this BERT has "
                f'{bert.layers} (0 to {bert.layers - 1})'
            ]
        )


def _looked_at(report, what, name, function, *args):
    """Return (function(*args), ''), or (None, the reason) if it raises ValueError."""
    try:
        return function(*args), ''
    except UnreachableError as error:
        report.unchecked.append(what)
        return None, f'NOT CHECKED: {error}'
    except ValueError as error:  # DataError included
        report.add([str(error)])
        return None, f'not usable, see the problems: {name}'


def print_report(report):
    """Print a report, wrapped to the width of the terminal if it goes to one."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
    for line in report.lines(max(NARROW, width)):
        message = re.match('(warning|problem|tokenizer|BERT|CLIP): ', line)
        print(_wrapped(line, width) if width and message else line)


def _wrapped(text, width):
    """Wrap a message to `width` columns with a hanging indent; long paths are not broken."""
    wrap = textwrap.TextWrapper(
        max(width, 40), subsequent_indent='    ', break_long_words=False, break_on_hyphens=False
    )
    text = text.replace(': ', ':\0', 1)  # keeps 'problem:' on one line with a long path
    lines = (line for part in text.split('\n') for line in wrap.wrap(part))
    return '\n'.join(lines).replace('\0', ' ')


def _fitted(table, width):
    """Lines of one table with a column per split, or of a table per split if it is too wide."""
    together = _aligned(table)
    if max(map(len, together), default=0) <= width:
        return together
    return [line for split, column in table.items() for line in _aligned({split: column})]


def _aligned(table):
    """Lines of a table with a row per label; equal values of all branches are written once."""
    if not table:
        return []
    labels = list(dict.fromkeys(label for column in table.values() for label in column))
    labels = [*(label for label in labels if label != 'status'), 'status']
    rows = [
        ['', *table],
        *(
            [label, *(_once(column.get(label, '-')) for column in table.values())]
            for label in labels
        ),
    ]
    widths = [max(map(len, column)) for column in zip(*rows)]
    return [
        '  '.join(
            [
                row[0].ljust(widths[0]),
                *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:])),
            ]
        )
        for row in rows
    ]


def _once(cell):
    parts = cell.split(' / ')
    return parts[0] if len(set(parts)) == 1 else cell


@command('check_data')
def main(argv=None):
    parser = argparse.ArgumentParser(
        prog='python -m util.check_data', description=__doc__.split('\n\n')[0]
    )
    parser.add_argument(
        '--config',
        required=True,
        action='append',
        help='YAML file, such as configs/vatex.yaml; a second one replaces values of the first',
    )
    parser.add_argument(
        '--rootpath', required=True, help="folder that holds the collections' folders"
    )
    parser.add_argument(
        '--split', action='append', choices=SPLITS, help='check only this split; may be repeated'
    )
    parser.add_argument(
        '--quick', action='store_true', help='do not read every feature and open every image'
    )
    parser.add_argument(
        'options',
        nargs='*',
        metavar='key=value',
        help='options of the config, such as data.lang=fr',
    )
    args = parser.parse_intermixed_args(argv)
    config = load_config(args.config, args.options)
    report = check_data(config, args.rootpath, splits=args.split or SPLITS, quick=args.quick)
    print_report(report)
    return 1 if report.problems else 0


if __name__ == '__main__':
    sys.exit(main())
