"""The page of a test, report.html: one file for a browser, without scripts and without the network.

Its figures are those of metrics.json, ranks.npz and log.jsonl; only the example queries' scores and
pictures come beside them (`basic.examples.Details`). Text is escaped, pictures are small JPEGs in
the file, and both are bounded: the page stays below 3 MiB.
"""

import base64
import hashlib
import math
from html import escape
from pathlib import Path

import numpy as np

from basic.breakdown import (
    RANGES,
    chance,
    chance_recall,
    cutoffs,
    grouped,
    histogram,
    ranks_by_language,
    recall,
)
from basic.charts import STYLES, Series, bar_chart, line_chart
from basic.curves import training_curves
from basic.gallery import examples
from basic.published import released_figures
from basic.report import mean_of

STYLE = Path(__file__).with_name('page.css')
WAYS = {'t2v': 'text to visual', 'v2t': 'visual to text'}
AT = (1, 2, 5, 10, 20, 50, 100)  # cutoffs in the table below the recall curves
FIGURES = ('R@1', 'R@5', 'R@10', 'MedR', 'mAP')


def page(report, records=()):
    """The HTML of a test.

    Args:
        report: of `evaluation.evaluate_checkpoint`, with its ranks and its details.
        records: of the run's log.jsonl.
    Returns:
        str.
    """
    ranks, details = ranks_by_language(report), report['details']
    sections = [
        ('Metrics', metrics(report, ranks, details.config)),
        ('Ranks', rank_charts(ranks)),
        ('The weight w of the English branch', weights(report)),
        ('Training', training(list(records))),
        ('Which queries are hard', groups(details.languages, ranks)),
        ('Example queries', examples(details.languages)),
    ]
    body = ''.join(
        f'<section><h2>{title}</h2>{content}</section>' for title, content in sections if content
    )
    style = STYLE.read_text(encoding='utf-8')
    known = base64.b64encode(hashlib.sha256(style.encode('utf-8')).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'sha256-{known}'"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f'<title>{escape(heading(report))}</title><style>{style}</style></head>\n'
        f'<body><main>{head(report)}{body}</main></body></html>\n'
    )


# ---------------------------------------------------------------------------------------- the head


def heading(report):
    """Such as 'multi30k (de), test'."""
    return f'{report["collection"]} ({report["lang"].replace(",", ", ")}), {report["split"]}'


def head(report):
    """The title, the result in large, and what was tested."""
    found = report['result']
    large = [('SumR', found['SumR'])] + [(f'{way} R@1', found[f'{way} R@1']) for way in WAYS]
    figures = ''.join(f'<div><dt>{name}</dt><dd>{value:.1f}</dd></div>' for name, value in large)
    facts = [
        f'{report["captions"]:,} captions and {report["visuals"]:,} visual items',
        f'model {escape(run_name(report["checkpoint"]))}, epoch {report["epoch"]}',
        f'w = {found["weight"]:g}',
        f'ties {escape(report["ties"])}',
    ]
    noise = report['details'].config.data.noise
    if noise:
        facts.append(f'{100 * noise:g} % of the training translations corrupted')
    notes = []
    if report.get('altered'):
        notes.append(f'Not the test of the run as it was trained: {"; ".join(report["altered"])}.')
    if report.get('left_out'):
        gone = report['left_out']
        notes.append(
            f'Without {gone["captions"]:,} of {gone["of_captions"]:,} captions, whose visual items'
            ' are missing (data.missing=skip): not to be compared with published results.'
        )
    return (
        f'<header><p class="kind">Cross-lingual cross-modal retrieval</p>'
        f'<h1>{escape(heading(report))}</h1><p>{" · ".join(facts)}</p>'
        f'<dl class="large">{figures}</dl>'
        + ''.join(f'<p class="warning">{escape(note)}</p>' for note in notes)
        + '<p class="small">R@K: per cent of queries with a right item among the first K. MedR:'
        ' median rank of the first right item. mAP in per cent. SumR: the six recalls added. In'
        ' text-to-visual retrieval (t2v) captions are the queries, in visual-to-text retrieval'
        ' (v2t) images or videos are.</p></header>'
    )


def run_name(checkpoint):
    """The last two folders of a checkpoint file's path, which name a run; or a model's hub name."""
    path = Path(checkpoint)
    return '/'.join(path.parent.parts[-2:]) if path.is_file() else str(checkpoint)


# ----------------------------------------------------------------------------------------- figures


def metrics(report, ranks, config):
    """A table for each direction: this test, each language, the authors' result, chance."""
    weight, chosen = report['result']['weight'], report.get('chosen_weight')
    rows = {}
    for name, part in report.get('languages', {}).items():
        rows[name] = _row_at(part, weight)
    main = f'{"mean" if rows else "this model"}, w = {weight:g}'
    rows = {main: _row_at(report, weight), **rows}
    if chosen is not None and chosen != weight:
        rows[f'w = {chosen:g}, chosen on validation'] = _row_at(report, chosen)
    published = _published(config)
    if published:
        rows['reported by the authors'] = published
    rows['chance'] = mean_of([chance(each) for each in ranks.values()])
    tables = [metrics_table(way, rows, main) for way in WAYS]
    words = 'Chance: what a random order gives on average.'
    if weight == report['val_weight']:
        words += f' w = {weight:g} is that of validation, which selects the model, as in the paper.'
    if len(published) == 1:
        words += ' Of such a model the authors report SumR alone.'
    elif not published:
        words += ' The authors report no result of such a model on these data.'
    return f'<div class="pair">{"".join(tables)}</div><p class="small">{words}</p>'


def _row_at(part, weight):
    return next((row for row in part['rows'] if row['weight'] == weight), {})


def _published(config):
    """What the authors report, as a row of a report; {} if there is nothing."""
    row = {}
    for name, value in released_figures(config).items():
        way, _, figure = name.rpartition('/')
        if way:
            row.setdefault(way, {})[figure] = value / 100 if figure == 'mAP' else value
        else:
            row[figure] = value
    return row


def metrics_table(way, rows, main):
    """The table of one direction; rows: dict name -> row of a report; `main` stands out."""
    names = [*FIGURES, *(['SumR'] if way == 'v2t' else [])]
    lines = []
    for name, row in rows.items():
        figures = {**row.get(way, {}), 'SumR': row.get('SumR')}
        cells = ''.join(f'<td>{_cell(each, figures.get(each))}</td>' for each in names)
        kind = ' class="main"' if name == main else ''
        lines.append(f'<tr{kind}><th scope="row">{escape(name)}</th>{cells}</tr>')
    return _table(f'{WAYS[way].capitalize()} ({way})', ['', *names], lines)


def _table(caption, names, lines):
    first, *others = names
    heads = (f'<th scope="col">{first}</th>' if first else '<td></td>') + ''.join(
        f'<th scope="col">{name}</th>' for name in others
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{caption}"><table>'
        f'<caption>{caption}</caption><thead><tr>{heads}</tr></thead>'
        f'<tbody>{"".join(lines)}</tbody></table></div>'
    )


def _cell(name, value):
    if value is None:
        return '<span aria-label="not reported">–</span>'
    return f'{100 * value if name == "mAP" else value:.1f}'


def rank_charts(ranks):
    """Recall curves and the histogram of ranks, with their numbers."""
    curves, recalls = recall_curves(ranks)
    chart, shares = rank_histogram(ranks)
    words = 'R@K for each K; and at which rank queries find their first right item.'
    if len(ranks) > 1:
        words = (
            'R@K for each K, in each language; and at which rank queries find their first right'
            ' item, as the mean over the languages.'
        )
    return (
        f'<p class="small">{words}</p>{_charts([*curves, chart])}'
        f'{_more("The numbers", recalls + shares)}'
    )


def recall_curves(ranks):
    """R@K against K, of both directions in one chart; of several languages one for each direction.

    Returns:
        list of charts, and a table.
    """

    def curve(each, way, value):
        most = each.visuals if way == 't2v' else len(each.t2v)
        return [(k, value(each, way, k)) for k in cutoffs(most)]

    def measured(each, way, k):
        return recall(getattr(each, way), k)

    options = {'x': 'K (logarithmic)', 'y': 'R@K, per cent', 'log': True, 'low': 0, 'high': 100}
    first = next(iter(ranks.values()))
    charts = []
    if len(ranks) == 1:
        lines = [Series(way, curve(first, way, measured), row) for row, way in enumerate(WAYS)]
        by_chance = curve(first, 't2v', chance_recall)
        lines.append(Series('chance, t2v', by_chance, STYLES - 1, dashed=True))
        charts.append(line_chart(lines, title='Recall at K of both directions', **options))
    for way, words in WAYS.items() if len(ranks) > 1 else ():
        lines = [
            Series(name, curve(each, way, measured), row)
            for row, (name, each) in enumerate(ranks.items())
        ]
        title = f'{words.capitalize()}: recall at K of each language'
        charts.append(f'<h3>{words.capitalize()}</h3>{line_chart(lines, title=title, **options)}')
    rows = []
    for name, each in ranks.items():
        for way in WAYS:
            own = f'{name} {way}' if len(ranks) > 1 else way
            cells = ''.join(f'<td>{measured(each, way, k):.1f}</td>' for k in AT)
            rows.append(f'<tr><th scope="row">{escape(own)}</th>{cells}</tr>')
    return charts, _table('R@K in per cent', ['', *(f'R@{k}' for k in AT)], rows)


def rank_histogram(ranks):
    """The share of queries in each range of ranks; of several languages the mean of the shares.

    Returns:
        the chart, and a table.
    """

    def mean(way):
        each = [histogram(getattr(one, way)) for one in ranks.values()]
        return [math.fsum(some) / len(each) for some in zip(*each)]

    names = [
        f'{low}' if low == high else f'{low}–{high}' if high < math.inf else f'≥ {low}'
        for low, high in RANGES
    ]
    series = [Series(way, mean(way), row) for row, way in enumerate(WAYS)]
    chart = bar_chart(
        series,
        names,
        title='How many queries have their first right item at which rank',
        x='rank of the first right item',
        y='queries, per cent',
    )
    lines = [
        f'<tr><th scope="row">{name}</th>'
        + ''.join(f'<td>{each.values[row]:.1f}</td>' for each in series)
        + '</tr>'
        for row, name in enumerate(names)
    ]
    heading = '' if len(ranks) == 1 else '<h3>Both directions</h3>'
    return heading + chart, _table('Queries in per cent', ['rank', *WAYS], lines)


def weights(report):
    """SumR and R@1 against w, on this split, and SumR on validation where w was chosen."""
    rows, split = sorted(report['rows'], key=lambda row: row['weight']), report['split']
    if len(rows) < 2:
        return ''
    marks = [(report['result']['weight'], 'result')]
    chosen = report.get('chosen_weight')
    if chosen is not None:
        same = chosen == marks[0][0]
        marks = [(chosen, 'result, chosen')] if same else [*marks, (chosen, 'chosen')]

    def points(part, value):
        return [(row['weight'], value(row)) for row in sorted(part, key=lambda row: row['weight'])]

    # A language has the colour that it has in the recall curves.
    parts = report.get('languages', {})
    name, style = (f'{split}, mean', STYLES - 1) if parts else (split, 0)
    sums = [Series(name, points(rows, lambda row: row['SumR']), style, dots=True)]
    for number, (name, part) in enumerate(parts.items()):
        line = points(part['rows'], lambda row: row['SumR'])
        sums.append(Series(name, line, number, dots=True))
    if split != 'val' and len(report.get('chosen_from') or ()) > 1:
        line = points(report['chosen_from'], lambda row: row['SumR'])
        sums.append(Series('validation', line, STYLES - 1, dashed=True, dots=True))
    firsts = [
        Series(f'{way} R@1', points(rows, lambda row: row[way]['R@1']), row, dots=True)
        for row, way in enumerate(WAYS)
    ]
    options = {'x': 'w (0: target language alone, 1: English alone)', 'marks': marks}
    charts = [
        line_chart(sums, title='SumR against w', y='SumR', **options),
        line_chart(firsts, title='R@1 of both directions against w', y='R@1, per cent', **options),
    ]
    names = ['w', *(f'{way} {name}' for way in WAYS for name in ('R@1', 'R@5', 'R@10')), 'SumR']
    lines = []
    for row in rows:
        cells = [row[way][name] for way in WAYS for name in ('R@1', 'R@5', 'R@10')]
        cells = ''.join(f'<td>{value:.1f}</td>' for value in (*cells, row['SumR']))
        lines.append(f'<tr><th scope="row">{row["weight"]:g}</th>{cells}</tr>')
    words = (
        'A query is scored by w · English + (1 − w) · target: its machine translation into English'
        ' and its own text. No w is chosen on the test split.'
    )
    numbers = _more('The numbers', _table(f'All w, {split}', names, lines))
    return f'<p class="small">{words}</p>{_charts(charts)}{numbers}'


def training(records):
    """Loss and validation after each epoch; '' without a log."""
    found = training_curves(records)
    if not found['loss']:
        return ''
    best = [(found['best'], f'best: epoch {found["best"]}')] * bool(found['best'])
    options = {'x': 'epoch', 'marks': best, 'whole': True}
    few = len(records) <= 30
    charts = [
        line_chart(
            [Series('loss', found['loss'], 0, dots=few)],
            title='Training loss after each epoch',
            y='training loss',
            **options,
        )
    ]
    lines = [
        Series(name, points, row, dots=few)
        for row, (name, points) in enumerate(found['recalls'].items())
        if points
    ]
    if lines:
        title, y = 'Recalls on validation after each epoch', 'validation, per cent'
        charts.append(line_chart(lines, title=title, y=y, low=0, **options))
    return _charts(charts)


# ------------------------------------------------------------------------------ groups of queries


def groups(details, ranks):
    """t2v by the length of the query, and by how well it agrees with its machine translation."""
    t2v = np.concatenate([ranks[lang].t2v for lang in details])
    parts = []
    if all(each.lengths is not None for each in details.values()):
        parts.append(
            _groups(
                'By length',
                'tokens',
                'Tokens of the query in the target language, as the tokenizer counts them, special'
                ' ones included.',
                grouped(np.concatenate([each.lengths for each in details.values()]), t2v),
                lambda low, high: f'{low:.0f}' if low == high else f'{low:.0f}–{high:.0f}',
            )
        )
    if all(each.agreement is not None for each in details.values()):
        parts.append(
            _groups(
                'By noise of the machine translation',
                'agreement',
                'Agreement: the cosine of the embeddings of a query and of its machine translation'
                ' into English. It is low where the translation says something else, or where the'
                ' model takes it so: there is no reference to measure the noise itself.',
                grouped(np.concatenate([each.agreement for each in details.values()]), t2v),
                lambda low, high: f'{low:.2f} to {high:.2f}'.replace('-', '−'),
            )
        )
    return f'<div class="pair">{"".join(parts)}</div>' if parts else ''


def _groups(title, name, words, found, text):
    """A table of groups of queries with a bar for R@1."""
    lines = []
    for group in found:
        first = group.figures['R@1']
        bar = (
            '<svg class="inline" viewBox="0 0 100 10" preserveAspectRatio="none"'
            f' aria-hidden="true"><rect class="bar s0" width="{first:.1f}" height="10"/></svg>'
        )
        cells = ''.join(f'<td>{group.figures[k]:.1f}</td>' for k in ('R@1', 'R@5', 'R@10', 'MedR'))
        lines.append(
            f'<tr><th scope="row">{text(group.low, group.high)}{bar}</th>'
            f'<td>{group.queries:,}</td>{cells}</tr>'
        )
    names = [name, 'queries', 'R@1', 'R@5', 'R@10', 'MedR']
    table = _table('t2v, in per cent; the bar is R@1', names, lines)
    return f'<div><h3>{title}</h3><p class="small">{words}</p>{table}</div>'


# --------------------------------------------------------------------------------------- the parts


def _charts(charts):
    return f'<div class="pair">{"".join(f"<div class=chart>{each}</div>" for each in charts)}</div>'


def _more(title, content):
    return f'<details><summary>{title}</summary>{content}</details>'
