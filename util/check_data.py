"""Check a collection before training: every file, join, feature and image of every split.

    python -m util.check_data --config configs/vatex.yaml --rootpath ROOT [--split val] [--quick] [key=value ...]

Looks for the tokenizer and the encoders first, then reads the data; says on stderr what it is doing. Prints what was
found, a column a split, and then every problem, not the first alone. Exit status 0: no problems, 1: there are problems,
2: the command or the config is wrong. What can be neither found nor downloaded now, such as the tokenizer without
network, is said to be not checked, and is no problem of the data.
"""
import argparse
import itertools
import re
import shutil
import sys
import textwrap
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from basic.command import command
from basic.config import SPLITS, load_config
from basic.errors import DataError, UnreachableError, first_five

SHOWN = 5                                # problems of one kind that are printed in full
IMAGE_SIZE = 224                         # to which images are brought where CLIP's own size is not known
NARROW = 80                              # columns of a terminal, at least


@dataclass
class Report:
    """What `check_data` found.

    Attributes:
        table: dict split -> dict row label -> cell.
        tokenizer, bert, clip: one line about each; '' for CLIP where it is not used.
        unchecked: what could not be looked at; quick: whether features and images were left out.
        problems: what must be put right, each once; warnings: what may be meant.
        met: how many problems were met, those noted before included.
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

    def warn(self, text):
        """Note a warning, unless it is noted already."""
        if text not in self.warnings:
            self.warnings.append(text)

    def verdict(self):
        """The last line."""
        if self.problems:
            return '1 problem' if len(self.problems) == 1 else f'{len(self.problems):,} problems'
        if self.unchecked:
            return f"no problems in what could be checked; NOT checked: {', '.join(self.unchecked)}"
        return 'no problems found' + ' (features and images were not read)' * self.quick

    def lines(self, width=NARROW):
        """The report, line by line; the table is made to fit `width` columns."""
        named = {'tokenizer': self.tokenizer, 'BERT': self.bert, 'CLIP': self.clip}
        return [*_fitted(self.table, width), *(f'{name}: {text}' for name, text in named.items() if text),
                *(f'warning: {warning}' for warning in self.warnings),
                *(f'problem: {problem}' for problem in self.problems), self.verdict()]

    def __str__(self):
        return '\n'.join(self.lines())


class Encoders:
    """What the captions and images are to be read with.

    Attributes:
        tokenizer: transformers' tokenizer; bert: basic.pretrained.TextLimits; each None if it could not be had.
        image_size: the side of CLIP's images.
    """

    def __init__(self, config):
        self.config = config
        self.tokenizer = self.bert = None
        self.image_size = IMAGE_SIZE

    def own_tokenizer(self):
        """The tokenizer as it would be with text.lowercase=false."""
        return self._own

    @cached_property
    def _own(self):
        from basic.caption import load_tokenizer
        return load_tokenizer(self.config.text.bert, False)


def check_data(config, rootpath, splits=SPLITS, quick=False):
    """Check the data of a config; says on stderr what it is doing.

    Args:
        config: basic.config.Config.
        rootpath: folder that holds the collection's folder.
        splits: of train, val, test.
        quick: leave out what reads every feature and opens every image.
    Returns:
        Report.
    """
    report = Report(quick=quick)
    encoders = check_encoders(report, config)
    from data_provider import Collection
    from util.check_captions import check_captions
    from util.check_visuals import check_visuals
    collection = report.attempt(Collection, config, rootpath)
    if collection is None:
        return report
    seen, scanned = {}, {}
    for split in splits:
        before = report.met
        column = report.table[split] = {}
        say(f'captions of {split}')
        files = check_captions(report, collection, split, encoders=encoders, column=column)
        lead = collection.roles(split)[0]
        if lead in files:
            say(f"{'images' if config.visual.kind == 'clip' else 'features'} of {split}")
            seen[split] = set(files[lead].visual_ids)
            check_visuals(report, collection, split, files[lead], image_size=encoders.image_size, column=column,
                          scanned=None if quick else scanned)
        column['status'] = 'ok' if report.met == before else 'PROBLEMS'
    for one, other in itertools.combinations(seen, 2):
        both = seen[one] & seen[other]
        if both:
            report.warn(f"{len(both):,} visual items are both in '{one}' and in '{other}': {first_five(sorted(both))}")
    return report


def say(what):
    """Tell what is being checked."""
    print(f'checking {what} ...', file=sys.stderr, flush=True)


def check_encoders(report, config):
    """Look for the tokenizer, BERT and CLIP, fill in the report's lines about them -> Encoders; reads no weights."""
    say('tokenizer')
    from basic.caption import load_tokenizer
    encoders, name = Encoders(config), config.text.bert
    encoders.tokenizer, report.tokenizer = _looked_at(
        report, 'tokenizer', name, load_tokenizer, name, config.text.lowercase)
    if encoders.tokenizer is not None:
        tokenizer = encoders.tokenizer
        report.tokenizer = (f'{name}: {type(tokenizer.backend_tokenizer.model).__name__}, {len(tokenizer):,} tokens'
                            + ', lower-cased and without accents' * config.text.lowercase)
    say('BERT')
    from basic.pretrained import clip_image_size, text_limits
    path = Path(name).expanduser()
    if path.is_file():
        report.bert = f'NOT CHECKED: {name} is a vocabulary; training needs a folder with config.json and weights, too'
        report.unchecked.append('BERT')
    elif encoders.tokenizer is None and not path.is_dir():
        report.bert = 'as the tokenizer'
        report.unchecked.append('BERT')
    else:
        encoders.bert, report.bert = _looked_at(report, 'BERT', name, text_limits, name, config.text.pretrained)
        if encoders.bert is not None:
            report.bert = (f'{name}: {encoders.bert.kind}, {encoders.bert.layers} layers, {encoders.bert.positions} '
                           f'positions, {encoders.bert.tokens:,} tokens')
            _check_fit(report, config, encoders)
    if config.visual.kind == 'clip':
        say('CLIP')
        name = config.visual.clip
        size, report.clip = _looked_at(report, 'CLIP', name, clip_image_size, name, config.visual.clip_pretrained)
        if size is not None:
            encoders.image_size, report.clip = size, f'{name}: images of {size} x {size}'
    return encoders


def _looked_at(report, what, name, function, *args):
    """(function(*args), ''), or (None, a line that says why not)."""
    try:
        return function(*args), ''
    except UnreachableError as error:
        report.unchecked.append(what)
        line = f'NOT CHECKED: {error}'
    except ValueError as error:          # DataError included
        report.add([str(error)])
        line = f'of no use, see the problems: {name}'
    print(f'{what}: {line}', file=sys.stderr, flush=True)  # now, not after minutes of reading data
    return None, line


def _check_fit(report, config, encoders):
    """Note a tokenizer that BERT lacks tokens of, and layers that it lacks."""
    bert, tokenizer = encoders.bert, encoders.tokenizer
    if tokenizer is not None and len(tokenizer) > bert.tokens:
        report.add([f"the tokenizer has {len(tokenizer):,} tokens, but the model's BERT only {bert.tokens:,}: give the "
                    'one that belongs to it (text.bert)'])
    beyond = [number for number in config.text.trained_layers if number >= bert.layers]
    if beyond and not config.text.train_all:
        report.add([f"key 'text.trained_layers' names layer {beyond[0]}, but this BERT has {bert.layers} (0 to "
                    f'{bert.layers - 1})'])


def print_report(report):
    """Print a report: in a terminal no wider than that, long messages indented; as it is into a file."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    for line in report.lines(max(NARROW, width or 0)):
        if width and re.match('(warning|problem|tokenizer|BERT|CLIP): ', line):
            line = '\n'.join(wrapped for part in line.split('\n') for wrapped in textwrap.wrap(
                part, max(width, 40), subsequent_indent='    ', break_long_words=False, break_on_hyphens=False))
        print(line)


def _fitted(table, width):
    """Lines of a table with a row a label and a column a split, or with a part a split where that is too wide."""
    together = _aligned(table)
    if max(map(len, together), default=0) <= width or len(table) < 2:
        return together
    return [line for split, column in table.items() for line in _aligned({split: column})]


def _aligned(table):
    """Lines of a table with a row a label and a column a split; what is the same in every branch is written once."""
    labels = list(dict.fromkeys(label for column in table.values() for label in column if label != 'status'))
    rows = [['', *table]] + [[label, *(_once(column.get(label, '-')) for column in table.values())]
                             for label in [*labels, 'status'] if table]
    widths = [max(map(len, column)) for column in zip(*rows)]
    return ['  '.join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:]))])
            for row in rows if table]


def _once(cell):
    parts = cell.split(' / ')
    return parts[0] if len(set(parts)) == 1 else cell


@command('check_data')
def main(argv=None):
    parser = argparse.ArgumentParser(prog='python -m util.check_data', description=__doc__.split('\n\n')[0])
    parser.add_argument('--config', required=True, action='append', help='YAML file, such as configs/vatex.yaml; given '
                        'again, what a further file says wins')
    parser.add_argument('--rootpath', required=True, help="folder that holds the collection's folder")
    parser.add_argument('--split', action='append', choices=SPLITS, help='check this split; may be given repeatedly')
    parser.add_argument('--quick', action='store_true', help='do not read every feature, nor open every image')
    parser.add_argument('options', nargs='*', metavar='key=value', help='options of the config, such as data.lang=fr')
    args = parser.parse_intermixed_args(argv)
    config = load_config(args.config, args.options)
    report = check_data(config, args.rootpath, splits=args.split or SPLITS, quick=args.quick)
    print_report(report)
    return 1 if report.problems else 0


if __name__ == '__main__':
    sys.exit(main())
