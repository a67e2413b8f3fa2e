"""Make a table of tested runs, with means over seeds, or a curve over noise rates.

    python -m util.table RUNS... [--base NAME] [--format text|markdown|latex|csv] [--output FILE]
                         [--metric NAME,... | --all-columns] [--weight val|chosen]
    python -m util.table --curve FILE.png RUNS... [--metric NAME] [--weight val|chosen]

RUNS are run folders, or folders that hold some. Runs of one config name that differ only in the
seed form a row; runs that differ in more are refused. The figures are those of the test split at
the weight w that validation uses, as in the paper, or with --weight chosen at the w that was best
on validation. A second group of columns is for w = 0, without translation at test time. A terminal
shows only recalls and SumR of the first group; a file or a pipe gets all columns.
"""

import argparse
import csv
import io
import shutil
import sys
import textwrap
from dataclasses import dataclass, field
from functools import partial

from basic.command import command
from basic.files import write_atomically
from basic.published import QUALITIES, released_figures
from util.table.runs import COSTS, group_by_name, group_by_noise, read_runs
from util.table.statistics import Summary, difference, summary

NOTHING = '–'
MAIN, ZERO = '', 'w=0 '  # groups of columns, as CSV has them before each name
GROUPS = (MAIN, ZERO)
COMPACT = tuple(
    name for name in QUALITIES if name.rpartition('/')[2] in ('R@1', 'R@5', 'R@10', 'SumR')
)
NAME_WIDTH = 32  # most characters of a row's name on a terminal


@dataclass
class Row:
    """One row of the table.

    Attributes:
        name: the config's name, or 'released ...'.
        seeds: number of seeds.
        weights: the different w of the group `MAIN`, as text.
        figures: dict group (of `GROUPS`) -> dict metric -> Summary or None.
        differences: dict group -> Difference to the base row, for the groups that have one.
    """

    name: str
    seeds: int
    weights: str
    figures: dict = field(default_factory=dict)
    differences: dict = field(default_factory=dict)


def build_rows(groups, metrics, base=None, bootstrap=difference):
    """The table's rows: one per group of runs, then those of the authors' results.

    Args:
        groups: dict label -> runs, see `util.table.runs.group_by_name`.
        metrics: names, of `QUALITIES` and `COSTS`.
        base: config name of the row to compare with. It comes first among the rows of the same
            collection, language and noise rate. None: no differences.
        bootstrap: function of two lists of hits, see `util.table.statistics.difference`.
    Raises:
        ValueError: no such base, or a row that cannot be compared with it.
    """
    names = {label: runs[0].config.name for label, runs in groups.items()}
    settings = {label: label.removeprefix(name) for label, name in names.items()}
    if base is not None and base not in names.values():
        raise ValueError(f"no runs named '{base}' to compare with; there are: {', '.join(groups)}")
    rows = [
        _row(label, groups[label], metrics)
        for label in sorted(groups, key=lambda label: (settings[label], names[label] != base))
    ]
    for row in rows:
        other = f'{base}{settings[row.name]}'
        if row.name != other and other in groups:
            row.differences = _differences(
                row.name, groups[row.name], other, groups[other], bootstrap
            )
    return rows + _released_rows(groups, metrics)


def weight_of(run, group):
    """The weight w of a run's figures in a group of columns."""
    return run.weight if group == MAIN else 0.0


def _row(name, runs, metrics):
    weights = dict.fromkeys(f'{run.weight:g}' + ' (preset)' * run.preset for run in runs)
    figures = {
        group: {
            metric: summary(run.value(metric, weight_of(run, group)) for run in runs)
            for metric in metrics
            if group == MAIN or metric not in COSTS
        }
        for group in GROUPS
    }
    return Row(name=name, seeds=len(runs), weights=', '.join(weights), figures=figures)


def _differences(name, runs, base, base_runs, bootstrap):
    found = {}
    for group in GROUPS:
        both = [[(run, weight_of(run, group)) for run in some] for some in (runs, base_runs)]
        if all(run.row(weight) for some in both for run, weight in some):
            hits = [[run.hits(weight) for run, weight in some] for some in both]
            try:
                found[group] = bootstrap(*hits)
            except ValueError as error:
                raise ValueError(
                    f"'{name}' cannot be compared with '{base}': {error} ({runs[0].folder} and "
                    f'{base_runs[0].folder})'
                ) from None
    return found


def _released_rows(groups, metrics):
    """A row for each setting of the runs for which the authors report results."""
    rows = {}
    for runs in groups.values():
        config = runs[0].config
        figures = released_figures(config)
        if figures:
            task = f', task {config.data.task}' if config.data.collection == 'multi30k' else ''
            name = f'released: {config.data.collection} {config.data.lang}{task}'
            shown = {
                metric: Summary(figures[metric], None) if metric in figures else None
                for metric in metrics
            }
            rows[name] = Row(
                name=name,
                seeds=1,
                weights=NOTHING,
                figures={MAIN: shown, ZERO: dict.fromkeys(set(metrics) - set(COSTS))},
            )
    return list(rows.values())


# -------------------------------------------------------------------------------------- the formats


def columns(rows, metrics, groups=GROUPS):
    """The table's columns after name, seeds and w, as a list of (group, metric).

    The metric 'difference' follows SumR. If every row is at w = 0, there is no second group.
    """
    found = []
    if all(row.weights in ('0', NOTHING) for row in rows):
        groups = [MAIN]
    for group in groups:
        for metric in metrics:
            if group == MAIN or metric not in COSTS:
                found.append((group, metric))
            if metric == 'SumR' and any(group in row.differences for row in rows):
                found.append((group, 'difference'))
    return found


def cell(row, group, metric):
    """The texts (mean, deviation or None, note) of a cell; None for an empty cell."""
    if group == ZERO and row.weights == '0':
        return None  # the first group has the same figures
    if metric == 'difference':
        change = row.differences.get(group)
        return change and (
            f'{change.mean:+.1f}',
            None,
            f'[{change.low:+.1f}, {change.high:+.1f}]' + ' *' * change.significant,
        )
    figure = row.figures[group][metric]
    if figure is None:
        return None
    digits = 2 if metric.endswith('mAP') else 1
    return (
        f'{figure.mean:.{digits}f}',
        None if figure.deviation is None else f'{figure.deviation:.{digits}f}',
        '',
    )


def label(metric, delta='Δ SumR'):
    return delta if metric == 'difference' else metric.replace('/', ' ')


def markdown(rows, metrics, notes):
    """A Markdown table; the heads of the second group name it."""
    shown = columns(rows, metrics)
    head = [
        '',
        'seeds',
        'w',
        *(f'w = 0: {label(metric)}' if group == ZERO else label(metric) for group, metric in shown),
    ]
    body = []
    for row in rows:
        cells = [cell(row, *column) for column in shown]
        body.append(
            [
                row.name.replace('|', '\\|'),
                str(row.seeds),
                row.weights,
                *(
                    (
                        NOTHING
                        if part is None
                        else part[0]
                        + (f' ± {part[1]}' if part[1] else '')
                        + (f' {part[2]}' if part[2] else '')
                    )
                    for part in cells
                ),
            ]
        )
    lines = [
        f'| {" | ".join(line)} |' for line in (head, ['---', *['---:'] * (len(head) - 1)], *body)
    ]
    return '\n'.join([*lines, '', *notes]) + '\n'


def latex(rows, metrics, notes):
    """A LaTeX tabular for the package booktabs, with a head over each group and direction."""
    shown = columns(rows, metrics)
    heads = [
        (
            'w = 0' if group == ZERO else '$w$ of each row',
            metric.partition('/')[0] if '/' in metric else '',
        )
        for group, metric in shown
    ]

    def spanning(level):
        """One level of heads, each over the columns that share it."""
        cells, start = [], 0
        while start < len(heads):
            end = start + 1
            while end < len(heads) and heads[end][: level + 1] == heads[start][: level + 1]:
                end += 1
            cells.append(rf'\multicolumn{{{end - start}}}{{c}}{{{heads[start][level]}}}')
            start = end
        return ' & & & ' + ' & '.join(cells) + r' \\'

    def text(part):
        if part is None:
            return '--'
        mean, deviation, note = part
        interval, star, _ = note.partition(' *')
        return (
            f'${mean}$'
            + (rf' {{\scriptsize $\pm$ {deviation}}}' if deviation else '')
            + (rf' {{\scriptsize ${interval}$}}' if interval else '')
            + ('$^{*}$' if star else '')
        )

    lines = [f'% {note}' for note in notes] + [
        rf'\begin{{tabular}}{{lrr{"r" * len(shown)}}}',
        r'\toprule',
    ]
    lines += [spanning(0), spanning(1)]
    lines.append(
        ' & '.join(
            [
                '',
                'seeds',
                '$w$',
                *(
                    (
                        label(metric, r'$\Delta$ SumR').rpartition(' ')[2]
                        if '/' in metric
                        else label(metric, r'$\Delta$ SumR')
                    )
                    for _, metric in shown
                ),
            ]
        )
        + r' \\'
    )
    lines.append(r'\midrule')
    for row in rows:
        cells = [
            escaped(row.name),
            str(row.seeds),
            row.weights.replace(NOTHING, '--'),
            *(text(cell(row, *column)) for column in shown),
        ]
        lines.append(' & '.join(cells) + r' \\')
    return '\n'.join([*lines, r'\bottomrule', r'\end{tabular}']) + '\n'


def escaped(text):
    """Text with LaTeX's special characters escaped."""
    special = {'\\': r'\textbackslash{}', '~': r'\textasciitilde{}', '^': r'\textasciicircum{}'}
    return ''.join(
        special.get(letter, f'\\{letter}' if letter in '_%&#${}' else letter) for letter in text
    )


def as_csv(rows, metrics, notes):
    """CSV for programs: full precision, one column per number, no notes."""
    shown, lines = columns(rows, metrics), []
    for row in rows:
        line = {'name': row.name, 'seeds': row.seeds, 'w': row.weights.replace(NOTHING, '')}
        for group, metric in shown:
            if metric == 'difference':
                change = row.differences.get(group)
                values = (
                    (change.mean, change.low, change.high, int(change.significant))
                    if change
                    else [None] * 4
                )
                names = (
                    'SumR difference',
                    'SumR difference low',
                    'SumR difference high',
                    'significant',
                )
            else:
                values, names = (
                    row.figures[group][metric] or (None, None),
                    (f'{metric} mean', f'{metric} deviation'),
                )
            line.update((f'{group}{name}', value) for name, value in zip(names, values))
        lines.append(line)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(lines[0]), lineterminator='\n')
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def as_text(rows, metrics, notes, groups=GROUPS):
    """An aligned table of the terminal's width; columns that do not fit follow in another block."""
    width = shutil.get_terminal_size().columns
    names = [cut(row.name) for row in rows]
    first = max(map(len, names))
    units = {
        '': [
            padded(['seeds', *(str(row.seeds) for row in rows)]),
            padded(['w', *(row.weights for row in rows)]),
        ]
    }
    for group, metric in columns(rows, metrics, groups):
        way, _, name = label(metric).rpartition(' ') if '/' in metric else ('', '', label(metric))
        head = ' '.join(filter(None, ['w=0' if group == ZERO else '', way]))
        cells = [cell(row, group, metric) for row in rows]
        units.setdefault(f'{group}{way or "sum"}', []).append(
            padded(
                [
                    f'{head} {name}'.strip(),
                    *(
                        (
                            NOTHING
                            if part is None
                            else part[0]
                            + (f'±{part[1]}' if part[1] else '')
                            + (f' {part[2]}' if part[2] else '')
                        )
                        for part in cells
                    ),
                ]
            )
        )
    blocks = [[padded(['', *names], left=True)]]
    for unit in units.values():  # the columns of a unit stay together if they can
        whole = first + sum(len(column[0]) + 2 for column in unit)
        if whole <= width and used(blocks[-1]) + whole - first > width:
            blocks.append(blocks[0][:1])
        for column in unit:
            if used(blocks[-1]) + len(column[0]) + 2 > width and len(blocks[-1]) > 1:
                blocks.append(blocks[0][:1])
            blocks[-1].append(column)
    tables = ['\n'.join('  '.join(line).rstrip() for line in zip(*block)) for block in blocks]
    return (
        '\n\n'.join(
            [*tables, '\n'.join(line for note in notes for line in textwrap.wrap(note, width - 1))]
        )
        + '\n'
    )


def cut(name):
    """Shorten a name to its end, in which names differ, so that it fits a terminal."""
    return name if len(name) <= NAME_WIDTH else f'..{name[2 - NAME_WIDTH :]}'


def padded(cells, left=False):
    """A column's cells, padded to the widest."""
    width = max(map(len, cells))
    return [text.ljust(width) if left else text.rjust(width) for text in cells]


def used(block):
    """The width of columns beside each other."""
    return sum(len(column[0]) for column in block) + 2 * (len(block) - 1)


FORMATS = {'text': as_text, 'markdown': markdown, 'latex': latex, 'csv': as_csv}


def notes_of(rows, base, confidence, resamples, *, weight='val', groups=GROUPS):
    """The notes below the table, a sentence or two per line."""
    which = {
        'val': 'as in validation and in the paper',
        'chosen': 'chosen on the validation split',
    }[weight]
    notes = [
        'Mean ± sample standard deviation over seeds (none for one seed), test split. R@k and mAP'
        f' in per cent. w: weight of the English scores, {which}'
        + ('; w = 0: no translation at test time.' if ZERO in groups else '.')
    ]
    if any('(preset)' in row.weights for row in rows):
        notes.append('(preset): no w was chosen on validation; this is the w that validation uses.')
    if any(row.differences for row in rows):
        notes.append(
            f'Δ SumR: difference from {base}, with a {100 * confidence:g} % interval of a paired'
            " percentile bootstrap over the test split's visual items with their captions"
            f' ({resamples:,} resamples); *: it excludes 0. It does not include the randomness of'
            ' training, which the deviations show.'
        )
    if any(row.name.startswith('released') for row in rows):
        notes.append('released: single runs, as reported by the authors.')
    return notes


# --------------------------------------------------------------------------------- the command line


def parse_arguments(argv=None):
    parser = argparse.ArgumentParser(
        prog='python -m util.table', description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        'runs', nargs='+', metavar='RUNS', help='run folders, or folders that hold some'
    )
    parser.add_argument(
        '--base', metavar='NAME', help='config name of the row to compare the others with'
    )
    parser.add_argument(
        '--format', choices=list(FORMATS), help='default: text on a terminal, else markdown'
    )
    parser.add_argument(
        '--output', metavar='FILE', help='write the table there (default: print it)'
    )
    parser.add_argument(
        '--metric',
        metavar='NAME,...',
        help=(
            f'one or more of {", ".join((*QUALITIES, *COSTS))} (epoch: of the best model; '
            'minutes: training and validation); default: all but the last two, on a terminal '
            'recalls and SumR, for a curve SumR'
        ),
    )
    parser.add_argument(
        '--all-columns',
        action='store_true',
        help='all columns on a terminal too, with those at w = 0',
    )
    parser.add_argument(
        '--weight',
        choices=('val', 'chosen'),
        default='val',
        help=('the w of the figures: that of validation (default), or the one that was best there'),
    )
    parser.add_argument(
        '--confidence', type=float, default=0.95, metavar='SHARE', help='of the interval (0.95)'
    )
    parser.add_argument(
        '--resamples', type=int, default=9999, metavar='N', help='of the bootstrap (9999)'
    )
    parser.add_argument(
        '--curve',
        metavar='FILE.png',
        help=(
            'plot a metric against data.noise, one line per config name, and write the numbers to '
            'FILE.csv'
        ),
    )
    args = parser.parse_args(argv)
    if args.curve and (args.base or args.output):
        parser.error('--curve makes no table: omit --base and --output')
    if args.all_columns and args.metric:
        parser.error('--all-columns and --metric contradict each other: give one')
    on_terminal = not args.output and sys.stdout.isatty()
    args.compact = on_terminal and not (args.metric or args.all_columns or args.format)
    args.format = args.format or ('text' if on_terminal else 'markdown')
    if args.base and args.metric and 'SumR' not in args.metric.split(','):
        parser.error('--base shows differences in SumR: add SumR to --metric, or omit --base')
    if not 0 < args.confidence < 1 or args.resamples < 1:
        parser.error('expected --confidence between 0 and 1, and --resamples of at least 1')
    args.metric = (
        args.metric.split(',')
        if args.metric
        else ['SumR']
        if args.curve
        else list(COMPACT if args.compact else QUALITIES)
    )
    unknown = [
        name
        for name in args.metric
        if name not in (QUALITIES if args.curve else (*QUALITIES, *COSTS))
    ]
    if unknown or (args.curve and len(args.metric) > 1):
        parser.error(
            f'--metric {",".join(args.metric)}: expected '
            + ('one of ' if args.curve else 'names among ')
            + ', '.join(QUALITIES if args.curve else (*QUALITIES, *COSTS))
        )
    return args


@command('table')
def main(argv=None):
    """The command line; returns the exit status, see basic.command."""
    args = parse_arguments(argv)
    runs = read_runs(args.runs, weight=args.weight)
    if args.curve:
        from util.table.curve import write_curve  # matplotlib is slow to import

        written = write_curve(group_by_noise(runs), args.metric[0], args.curve, args.weight)
        print(f'written: {", ".join(map(str, written))}')
        return 0
    rows = build_rows(
        group_by_name(runs),
        args.metric,
        args.base,
        partial(difference, resamples=args.resamples, confidence=args.confidence),
    )
    options = {'groups': [MAIN]} if args.compact else {}
    notes = notes_of(
        rows, args.base, args.confidence, args.resamples, weight=args.weight, **options
    )
    text = FORMATS[args.format](rows, args.metric, notes, **options)
    if args.output:
        write_atomically(args.output, text)
    print(f'written: {args.output}' if args.output else text, end='\n' if args.output else '')
    return 0
