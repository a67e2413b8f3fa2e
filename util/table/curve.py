"""Plot a metric against the noise rate: one line per config name, with a band over seeds."""

import csv
import io
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from basic.files import write_atomically
from util.table.statistics import summary

# The colours of Okabe and Ito, which differ for every kind of colour vision; markers and dashes
# differ too.
COLOURS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#000000')
MARKERS, DASHES = 'os^DvP*', ('-', '--', ':', '-.')
PANELS = {'with translation': 'query and its translation', 'w=0': 'query alone (w = 0)'}
WEIGHTS = {'val': "validation's w", 'chosen': 'w chosen on validation'}
HEADER = ('group', 'name', 'noise', 'seeds', 'mean', 'deviation')


def curve_points(lines, metric):
    """The points to draw.

    Args:
        lines: dict name -> dict noise -> runs, see `util.table.runs.group_by_noise`.
        metric: one of `basic.published.QUALITIES`.
    Returns:
        list of dicts with the keys of `HEADER`; the deviation is None for one seed. A point is
        omitted if a run has no value for the group (of `PANELS`).
    """
    points = []
    for group in PANELS:
        for name, line in lines.items():
            for noise, runs in line.items():
                found = summary(
                    run.value(metric, 0.0 if group == 'w=0' else run.weight) for run in runs
                )
                if found:
                    points.append(dict(zip(HEADER, (group, name, noise, len(runs), *found))))
    return points


def write_curve(lines, metric, path, weight='val'):
    """Write the plot, and its numbers as CSV beside it.

    Args:
        lines, metric: as for `curve_points`.
        path: of the plot, ending in .png.
        weight: as for `util.table.runs.read_runs`; named in the title.
    Returns:
        both paths.
    Raises:
        ValueError: another ending, or all runs have the same noise rate.
    """
    path = Path(path)
    if path.suffix != '.png':
        raise ValueError(f'--curve {path}: expected a name that ends in .png')
    points = curve_points(lines, metric)
    rates = {point['noise'] for point in points}
    if len(rates) < 2:
        raise ValueError(
            f'all runs have data.noise={rates.pop():g}; a curve needs at least two rates. Start '
            'runs on corrupted translations with data.noise=RATE, as util.add_noise prints'
        )
    text = io.StringIO()
    writer = csv.DictWriter(text, HEADER, lineterminator='\n')
    writer.writeheader()
    writer.writerows(points)
    picture = io.BytesIO()
    FigureCanvasAgg(draw(points, metric, weight)).print_png(picture)
    numbers = path.with_suffix('.csv')
    write_atomically(numbers, text.getvalue())
    write_atomically(path, picture.getvalue())
    return path, numbers


def draw(points, metric, weight='val'):
    """A matplotlib Figure with a panel per group; all panels share the scale and the styles."""
    groups = [group for group in PANELS if any(point['group'] == group for point in points)]
    names = list(dict.fromkeys(point['name'] for point in points))
    figure = Figure(figsize=(0.8 + 4.6 * len(groups), 4.2), dpi=160, layout='constrained')
    panels = figure.subplots(1, len(groups), sharey=True, squeeze=False)[0]
    drawn = {}
    for panel, group in zip(panels, groups):
        for number, name in enumerate(names):
            line = [point for point in points if (point['group'], point['name']) == (group, name)]
            if line:
                drawn[name] = draw_line(panel, line, number)
        title = PANELS[group] + (f' ({WEIGHTS[weight]})' if group != 'w=0' else '')
        panel.set_title(title, fontsize=10)
        panel.set_xlabel('noise rate of the training translations')
        panel.set_xticks(sorted({point['noise'] for point in points}))
        panel.grid(axis='y', color='0.9', linewidth=0.8)
        panel.spines[['top', 'right']].set_visible(False)
        panel.set_axisbelow(True)
    panels[0].set_ylabel(metric.replace('/', ' ') + ', test')
    height = -(-len(drawn) // 4)  # rows of the legend
    figure.legend(
        drawn.values(),
        drawn.keys(),
        loc='outside lower center',
        ncols=-(-len(drawn) // height),
        frameon=False,
    )
    return figure


def draw_line(panel, line, number):
    """Draw one name's line, with a band of mean ± deviation if there are several seeds."""
    colour = COLOURS[number % len(COLOURS)]
    noise, means = [point['noise'] for point in line], [point['mean'] for point in line]
    spread = [point['deviation'] or 0.0 for point in line]
    if any(spread):
        panel.fill_between(
            noise,
            [mean - by for mean, by in zip(means, spread)],
            [mean + by for mean, by in zip(means, spread)],
            color=colour,
            alpha=0.15,
            linewidth=0,
        )
    return panel.plot(
        noise,
        means,
        color=colour,
        marker=MARKERS[number % len(MARKERS)],
        markersize=5,
        linewidth=1.8,
        linestyle=DASHES[number // len(COLOURS) % len(DASHES)],
    )[0]
