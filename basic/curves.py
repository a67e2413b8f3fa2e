"""The curves of a training, from log.jsonl: as points, and as the picture curves.png."""

import io
import math

from basic.files import write_atomically
from basic.run_folder import CURVES, read_log

SIZE, DPI = (10, 3.6), 120  # inches; dots per inch
COLOURS = ('#1f6feb', '#c2410c', '#15803d', '#9333ea')


def training_curves(records):
    """What log.jsonl has of a training, to plot.

    Args:
        records: its lines, see `basic.run_folder.read_log`.
    Returns:
        dict: loss, points (epoch, loss); recalls, dict name -> points (epoch, per cent) of
            validation; best, the epoch of the best model, or None.
    """

    def points(*keys):
        found = []
        for record in records:
            value = record
            for key in keys:
                value = value.get(key) if isinstance(value, dict) else None
            if isinstance(value, int | float) and math.isfinite(value):
                found.append((record['epoch'], value))
        return found

    names = [(way, name) for way in ('t2v', 'v2t') for name in ('R@1', 'R@10')]
    return {
        'loss': points('train', 'total'),
        'recalls': {f'{way} {name}': points('val', way, name) for way, name in names},
        'best': records[-1].get('best_epoch') if records else None,
    }


def write_curves(folder):
    """Write curves.png into a run folder: training loss, and recalls on validation, per epoch.

    Args:
        folder: Path of the run folder.
    Returns:
        its path; None if the log has no epoch.
    """
    curves = training_curves(read_log(folder))
    if not curves['loss']:
        return None
    from matplotlib.figure import Figure  # imported here because it takes a second

    figure = Figure(figsize=SIZE, layout='constrained')
    left, right = figure.subplots(1, 2)
    plots = (
        (left, {'training loss': curves['loss']}, 'training loss'),
        (right, curves['recalls'], 'validation, per cent'),
    )
    for axes, lines, label in plots:
        for colour, (name, points) in zip(COLOURS, lines.items()):
            if points:
                axes.plot(*zip(*points), color=colour, label=name, marker='.')
        if curves['best']:
            words = f'best: epoch {curves["best"]}'
            axes.axvline(curves['best'], color='#6b7280', linestyle=':', label=words)
        axes.set_xlabel('epoch')
        axes.set_ylabel(label)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.legend(fontsize='small')
    right.set_ylim(bottom=0)
    file = io.BytesIO()
    figure.savefig(file, format='png', dpi=DPI)
    write_atomically(folder / CURVES, file.getvalue())
    return folder / CURVES
