"""Reports of a test: their means over languages, the table for people, the files.

A report is what `evaluation.evaluate_all` gives: plain data, and ranks as arrays.
"""

import errno
import io
import json
import math
import sys
import textwrap
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from basic import run_folder
from basic.files import holder_of, write_atomically

COLUMNS = {'R@1': 7, 'R@5': 7, 'R@10': 7, 'MedR': 8, 'MeanR': 8, 'mAP': 7}  # name -> width
# Of the figures in metrics.json; the table for people has mAP in per cent.
UNITS = {
    'R@k': 'per cent',
    'SumR': 'per cent, six recalls added',
    'MedR': 'rank, from 1',
    'MeanR': 'rank, from 1',
    'mAP': 'from 0 to 1',
}
WIDTH = 79  # characters that a line for people has at most, except for paths


def mean_of(rows):
    """The mean of dicts of numbers, and of dicts of these, with the same keys."""
    return {
        key: mean_of([row[key] for row in rows])
        if isinstance(value, dict)
        else math.fsum(row[key] for row in rows) / len(rows)
        for key, value in rows[0].items()
    }


def join_ranks(ranks):
    """The ranks of several languages as one: the captions and items of each after the one before.

    Args:
        ranks: dict language -> what `collect_ranks` gives.
    Returns:
        the same dict of arrays, and caption_lang (Q,) and visual_lang (S,), text.
    """
    parts, seen = list(ranks.values()), 0
    joined = {'weights': parts[0]['weights']}
    for name in ('t2v', 'v2t', 'caption_ids', 'visual_ids'):
        joined[name] = np.concatenate([part[name] for part in parts], axis=-1)
    owners = []
    for part in parts:
        owners.append(part['owner'] + seen)
        seen += len(part['visual_ids'])
    joined['owner'] = np.concatenate(owners)
    for name in ('caption', 'visual'):
        counts = [len(part[f'{name}_ids']) for part in parts]
        joined[f'{name}_lang'] = np.repeat(list(ranks), counts)
    return joined


def result_of(rows, val_weight):
    """The one result of a test, by the paper's protocol: at the w that validation used.

    Where that w has no row, the first row is the result.

    Returns:
        dict: weight, SumR, and R@1 of t2v and of v2t.
    """
    row = next((row for row in rows if row['weight'] == val_weight), rows[0])
    return {
        'weight': row['weight'],
        'SumR': row['SumR'],
        **{f'{way} R@1': row[way].get('R@1') for way in ('t2v', 'v2t')},
    }


def table(report):
    """A report of `evaluate_checkpoint` as aligned text for people, within `WIDTH`."""
    lines = [
        f'{report["collection"]} ({report["lang"]}), {report["split"]}: {report["captions"]:,}'
        f' captions, {report["visuals"]:,} visual items',
        f'model of epoch {report["epoch"]}; ties {report["ties"]}',
    ]
    of_all = _language_rows(report)
    for way, title in (('t2v', 'text to visual (t2v)'), ('v2t', 'visual to text (v2t)')):
        sum_heading = '    SumR' if way == 'v2t' else ''  # beside the last of the figures it adds
        if of_all:
            lines += ['', f'{title}, w = {report["result"]["weight"]:g}']
            lines += [f'{"":<5}{column_names()}{sum_heading}']
            lines += [_figures(name, row, way) for name, row in of_all.items()]
            title = f'{title}, mean of the languages'
        lines += ['', title, f'{"w":<5}{column_names()}{sum_heading}']
        lines += [_table_row(report, row, way) for row in report['rows']]
    notes = [
        'w: share of the English branch in the score; R@k, mAP and SumR in per cent.'
        f' {which_w(report)}'
    ]
    if report.get('left_out'):
        gone = report['left_out']
        notes.append(
            f'Without {gone["captions"]:,} of {gone["of_captions"]:,} captions, whose visual items'
            ' are missing (data.missing=skip): not to be compared with published results.'
        )
    wrapped = [line for note in notes for line in textwrap.wrap(note, WIDTH)]
    return '\n'.join([*lines, '', *wrapped])


def _table_row(report, row, way):
    """The figures of one direction at one w, and whether that w is the result's, or chosen."""
    line, marks = _figures(f'{row["weight"]:.4g}', row, way), []
    if row['weight'] == report['result']['weight']:
        marks.append('result')
    if row['weight'] == report.get('chosen_weight'):
        marks.append('chosen')
    return f'{line}  <- {", ".join(marks)}' if marks else line


def _figures(name, row, way):
    """A line of the table: a name, the figures of one direction, and SumR beside v2t."""
    return f'{name:<5}{columns(row[way])}' + (f'{row["SumR"]:8.1f}' if way == 'v2t' else '')


def _language_rows(report):
    """dict language, or 'mean' -> row at the result's w; empty for a single language."""
    parts = report.get('languages', {})
    found = {**parts, **({'mean': report} if parts else {})}
    weight = report['result']['weight']
    return {
        name: next(row for row in part['rows'] if row['weight'] == weight)
        for name, part in found.items()
    }


def column_names():
    """The heading of what `columns` gives."""
    return ''.join(f'{name:>{width}}' for name, width in COLUMNS.items())


def columns(figures):
    """The figures of one direction, see `basic.metric.retrieval_metrics`, aligned; mAP x 100."""
    return ''.join(
        f'{100 * figures[name]:{width}.2f}' if name == 'mAP' else f'{figures[name]:{width}.1f}'
        for name, width in COLUMNS.items()
    )


def which_w(report):
    """One sentence on the marks of a table."""
    used, preset = report['result']['weight'], report['val_weight']
    if used == preset:
        text = f'"result": at w = {used:g}, by which validation selects the model, as in the paper'
    else:
        text = f'"result": at w = {used:g}, without the queries that w = {preset:g} needs'
    if report.get('chosen_weight') is None:
        return f'{text}.'
    return f'{text}; "chosen": at the w that had the best SumR on validation.'


def result_line(report):
    """The last line of a test: its one result."""
    found = report['result']
    each = [
        f'{lang} {part["result"]["SumR"]:.1f}' for lang, part in report.get('languages', {}).items()
    ]
    return (
        f'Result: SumR {found["SumR"]:.1f} (t2v R@1 {found["t2v R@1"]:.1f}, v2t'
        f' {found["v2t R@1"]:.1f}) at w = {found["weight"]:g}'
        + (f'; {", ".join(each)}' if each else '')
    )


def write_report(report, output=None, folder=None, *, own=False):
    """Write a report as JSON, its ranks as .npz, and its page as HTML.

    They go to OUTPUT and, for ranks and page, to OUTPUT with the endings .npz and .html; or else
    into a folder as metrics.json, ranks.npz and report.html (for val metrics_val.json and so on).
    An altered test (see `alterations`) writes metrics_altered.json and so on, and leaves the run's
    own result alone. If the folder is read-only, or another process trains in it, they go into the
    current folder. A page is written if the report has `details`; if it cannot be made, a note says
    so.

    Args:
        report: of `evaluate_checkpoint`.
        output: path of the JSON file.
        folder: None: that of the checkpoint.
        own: this process is the one that trains in the folder.
    Returns:
        the path of the JSON file.
    """
    folder = Path(folder or Path(report['checkpoint']).parent)
    if output:
        path = Path(output)
        try:
            _write_all(report, [path, path.with_suffix('.npz'), page_beside(path)])
        except OSError as error:
            raise ValueError(f'cannot write {path}: {error.strerror or error}') from None
        return path
    kinds = (run_folder.METRICS, run_folder.RANKS, run_folder.PAGES)
    names = [kind[report['split']] for kind in kinds]
    if report.get('altered'):
        names = [run_folder.ALTERED[name] for name in names]
    holder = None if own else holder_of(folder / run_folder.LOCK)
    try:
        if holder:
            raise PermissionError(errno.EBUSY, f'it is in use by {holder}')
        (folder / names[2]).unlink(missing_ok=True)  # the page of an earlier test
        _write_all(report, [folder / name for name in names])
        return folder / names[0]
    except OSError as error:
        reason = error.strerror or error
    print(
        f'note: {folder} cannot be written to ({reason}); {names[0]} and {names[1]} go here',
        file=sys.stderr,
    )
    _write_all(report, [Path.cwd() / name for name in names])
    return Path.cwd() / names[0]


def page_beside(path):
    """The Path of the page that `write_report` writes beside the JSON file of this path."""
    for split, name in run_folder.METRICS.items():
        page = run_folder.PAGES[split]
        known = {name: page, run_folder.ALTERED[name]: run_folder.ALTERED[page]}
        if path.name in known:
            return path.with_name(known[path.name])
    return path.with_suffix('.html')


def written(report, path):
    """Such as 'RUN/metrics.json, report.html', for people."""
    page = page_beside(path)
    return f'{path}, {page.name}' if 'details' in report and page.exists() else str(path)


def _write_all(report, paths):
    """Write metrics, ranks and page of a report, as far as it has them, to these paths."""
    metrics, ranks, page = paths
    if 'ranks' in report:
        packed = io.BytesIO()
        np.savez_compressed(packed, **report['ranks'])
        write_atomically(ranks, packed.getvalue())
    figures = {key: value for key, value in report.items() if key not in ('ranks', 'details')}
    write_atomically(metrics, json.dumps(figures, indent=2, ensure_ascii=False) + '\n')
    if 'details' in report:
        with noted(page.name):
            write_atomically(page, _page(report))


def _page(report):
    """The HTML of a report, with the curves of the run that the checkpoint belongs to."""
    from basic.page import page  # imported here because it imports this module

    try:
        records = run_folder.read_log(Path(report['checkpoint']).parent)
    except ValueError:  # a damaged log has no curves
        records = []
    return page(report, records)


@contextmanager
def noted(what):
    """If making `what`, which is only to look at, fails, print a note and go on."""
    try:
        yield
    except Exception as error:  # any error: the result does not depend on it
        print(f'note: no {what} ({type(error).__name__}: {error})', file=sys.stderr, flush=True)
