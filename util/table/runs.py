"""Tested run folders for tables and curves: read them, group them by name, refuse mixed configs.

Q captions, S visual items with captions, W weights.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from basic.config import Config, config_to_dict, keys_with
from basic.foreign import read_json, read_npz
from basic.merge import flatten
from basic.run_folder import CONFIG, LOG, METRICS, RANKS, is_trained, read_config, read_log
from basic.metric import RECALLS

# Options in which the runs of a row may differ.
NO_DIFFERENCE = ('train.seed', *keys_with('speed'))
# Options in which the runs of a curve's line may differ too.
NOISE_OPTIONS = ('data.noise', 'data.captions.train.tgt', 'data.captions.train.back')
FIGURES = dict.fromkeys((*(f'R@{k}' for k in RECALLS), 'MedR', 'mAP'), float)
# The form of metrics.json, see basic.foreign.
REPORT = {
    'split': str,
    'ties': str,
    'captions': int,
    'visuals': int,
    'epoch': int,
    'val_weight': float,
    'chosen_weight': (float, None),
    'altered': ([str], None),
    'languages': (dict, None),
    'rows': [{'weight': float, 'SumR': float, 't2v': FIGURES, 'v2t': FIGURES}],
}
COSTS = ('epoch', 'minutes')


@dataclass
class TestedRun:
    """A run folder after its test.

    Attributes:
        folder: its path; config: its resolved config.
        report: the content of metrics.json.
        weight: the w of the run's result: that of validation, as in the paper, or on request the
            one chosen on validation.
        chosen: whether a w was chosen on validation.
        preset: whether the chosen w was requested, but there is none.
    """

    folder: Path
    config: Config
    report: dict
    weight: float
    chosen: bool
    preset: bool = False

    @property
    def seed(self):
        return self.config.train.seed

    def row(self, weight):
        """The report's row at a weight; None if it has none."""
        return next((row for row in self.report['rows'] if row['weight'] == weight), None)

    def value(self, name, weight):
        """The value at a weight of one of `basic.published.QUALITIES` (mAP in per cent), or of
        `COSTS`; or None."""
        if name == 'epoch':
            return self.report['epoch']
        if name == 'minutes':
            times = [record['speed'] for record in read_log(self.folder) if record.get('speed')]
            return (
                sum(time['train_seconds'] + time['val_seconds'] for time in times) / 60
                if times
                else None
            )
        row = self.row(weight)
        if row is None:
            return None
        way, _, name = name.rpartition('/')
        return (row[way] if way else row)[name] * (100 if name == 'mAP' else 1)

    def hits(self, weight):
        """How much each query contributes to SumR.

        Returns:
            dict: t2v (Q,) and v2t (S,), 100 for each of R@1, R@5, R@10 that finds a correct item;
                owner (Q,), the index in v2t of each caption's visual item; caption_ids (Q,). The
                queries of several languages are weighted, so that their mean is that of the
                languages.
        Raises:
            ValueError: there are no ranks, or they do not belong to the report.
        """
        path = self.folder / RANKS['test']
        again = f'test it again: python evaluation.py --checkpoint {self.folder}'
        if not path.is_file():
            raise ValueError(f'{self.folder} has no {path.name}, the ranks of each query; {again}')
        queries, rows = self.report['captions'], len(self.report['rows'])
        try:
            ranks = read_npz(
                path,
                {
                    'weights': ((rows,), 'fi'),
                    't2v': ((rows, queries), 'fi'),
                    'v2t': ((rows, None), 'fi'),
                    'owner': ((queries,), 'iu'),
                    'caption_ids': ((queries,), 'U'),
                },
            )
        except (ValueError, OSError) as error:
            raise ValueError(f'{error}; {again}') from None
        if not np.isin(ranks['owner'], np.arange(ranks['v2t'].shape[1])).all():
            raise ValueError(f'{path} is damaged (captions without a visual item); {again}')
        at = np.flatnonzero(ranks['weights'] == weight)
        found = (
            {way: sum(100.0 * (ranks[way][at[0]] <= k) for k in RECALLS) for way in ('t2v', 'v2t')}
            if len(at)
            else {}
        )
        if found and self.report.get('languages'):
            shares = _shares(self.report['languages'], ranks['owner'])
            found = {way: values * shares[way] for way, values in found.items()}
        if not (
            found
            and abs(found['t2v'].mean() + found['v2t'].mean() - self.row(weight)['SumR']) <= 1e-6
        ):
            raise ValueError(f'{path} does not belong to the {METRICS["test"]} beside it; {again}')
        return {**found, 'owner': ranks['owner'], 'caption_ids': ranks['caption_ids']}


def _shares(languages, owner):
    """Factors of queries whose plain mean then is the mean over the languages of their means.

    Args:
        languages: dict language -> report, of which `captions` is read; owner: (Q,), see `hits`.
    Returns:
        dict: t2v (Q,) and v2t (S,).
    """
    captions = [int(part['captions']) for part in languages.values()]
    parts = np.split(owner, np.cumsum(captions)[:-1])
    items = [len(np.unique(part)) for part in parts]
    return {
        way: np.repeat([sum(counts) / (len(counts) * count) for count in counts], counts)
        for way, counts in (('t2v', captions), ('v2t', items))
    }


def read_runs(paths, report=lambda line: print(line, file=sys.stderr), weight='val'):
    """Read tested runs.

    Args:
        paths: run folders, or folders with run folders at any depth.
        report: function that is called with a message for each run that is skipped because it is
            not tested, and for each that was tested before its training was finished.
        weight: `val`, the w that validation uses, or `chosen`, the w chosen on validation.
    Raises:
        ValueError: a path without a tested run, or a damaged file.
    """
    folders = {}
    for path in map(Path, paths):
        if not path.is_dir():
            raise ValueError(f'no folder {path}; expected a run folder, or a folder of run folders')
        inside = sorted(file.parent for file in path.rglob(CONFIG))
        tested = [folder for folder in inside if (folder / METRICS['test']).is_file()]
        if not tested:
            raise ValueError(
                f'{path} has no tested run: expected folders with {CONFIG} and {METRICS["test"]}, '
                f'found {len(inside)} with {CONFIG} only. To test a trained run: python '
                'evaluation.py --checkpoint FOLDER'
            )
        for folder in inside:
            if folder not in tested:
                report(f'skipped, not tested: {folder}')
        folders.update((folder.resolve(), folder) for folder in tested)
    runs = [_read_run(folder, weight) for folder in folders.values()]
    for run in runs:
        if (run.folder / LOG).is_file() and not is_trained(run.folder, run.config):
            report(f'tested before its training was finished: {run.folder}')
    return runs


def _preset(report):
    """The w of a test's result; reports of older versions have only that of validation."""
    return report['result']['weight'] if 'result' in report else report['val_weight']


def _read_run(folder, weight):
    try:
        config = read_config(folder)
        report = read_json(folder / METRICS['test'], REPORT)
        chosen = report.get('chosen_weight')
        asked = chosen if weight == 'chosen' else None
        run = TestedRun(
            folder=folder,
            config=config,
            report=report,
            chosen=chosen is not None,
            weight=_preset(report) if asked is None else asked,
            preset=weight == 'chosen' and chosen is None,
        )
        if run.row(run.weight) is None:
            raise ValueError(f'{METRICS["test"]} has no row for w = {run.weight:g}')
    except ValueError as error:
        raise ValueError(f'{folder}: {CONFIG} or {METRICS["test"]} is damaged: {error}') from None
    if report.get('altered'):
        raise ValueError(
            f'{folder / METRICS["test"]} is from a test with other options than the training'
            f' ({"; ".join(report["altered"])}): test it again, python evaluation.py --checkpoint'
            f' {folder}'
        )
    return run


def group_by_name(runs):
    """Group runs of one config name that differ only in the seed.

    Returns:
        dict label -> runs in the order of their seeds. The label is the config's name. If the runs
        have several collections, languages or noise rates, these are part of the label, because
        their queries differ.
    Raises:
        ValueError: runs of a label differ in more than the seed, or a seed occurs twice.
    """
    groups = _grouped(runs, _label(runs, ('collection', 'lang', 'noise')))
    for name, group in groups.items():
        refuse_differences(name, group, NO_DIFFERENCE)
        _refuse_doubles(name, group)
    return groups


def group_by_noise(runs):
    """Group runs of one config name that differ only in the seed and the noise rate.

    Returns:
        dict label -> dict noise rate, ascending -> runs in the order of their seeds.
    Raises:
        ValueError: runs of a label differ in more, or a seed occurs twice at a rate.
    """
    lines = {}
    for name, group in _grouped(runs, _label(runs, ('collection', 'lang'))).items():
        refuse_differences(name, group, (*NO_DIFFERENCE, *NOISE_OPTIONS))
        points = _grouped(group, lambda run: float(run.config.data.noise))
        for noise, point in points.items():
            refuse_differences(f'{name}, noise {noise:g}', point, NO_DIFFERENCE)
            _refuse_doubles(f'{name}, noise {noise:g}', point)
        lines[name] = dict(sorted(points.items()))
    return lines


def _label(runs, keys):
    """A function run -> label: the config's name, and the `data` keys in which the runs differ."""
    different = [key for key in keys if len({run.config.data[key] for run in runs}) > 1]

    def label(run):
        parts = [
            f'noise {run.config.data.noise:g}' if key == 'noise' else run.config.data[key]
            for key in different
        ]
        return run.config.name + (f' ({", ".join(parts)})' if parts else '')

    return label


def _grouped(runs, key):
    groups = {}
    for run in runs:
        groups.setdefault(key(run), []).append(run)
    return groups


def refuse_differences(name, runs, allowed):
    """Raise ValueError if the configs differ in keys that are not allowed, or the tests differ."""
    first = runs[0]
    for run in runs[1:]:
        one, other = (flatten(config_to_dict(each.config)) for each in (first, run))
        different = {
            key: (one.get(key), other.get(key))
            for key in sorted(one.keys() | other.keys())
            if one.get(key) != other.get(key) and key not in allowed
        }
        different |= {
            f'the test: {key}': (first.report[key], run.report[key])
            for key in ('split', 'ties', 'captions', 'visuals')
            if first.report[key] != run.report[key]
        }
        if different:
            raise ValueError(
                f"runs named '{name}' differ in more than the seed: "
                + '; '.join(f'{key}: {a!r} and {b!r}' for key, (a, b) in different.items())
                + f' ({first.folder} and {run.folder}), so they have no common mean. Omit one of'
                ' them, or train it with another name=NAME'
            )


def _refuse_doubles(name, runs):
    """Sort runs by seed; raise ValueError if two have the same seed."""
    runs.sort(key=lambda run: run.seed)
    for one, other in zip(runs, runs[1:]):
        if one.seed == other.seed:
            raise ValueError(
                f"two runs named '{name}' have seed {one.seed}: {one.folder} and {other.folder}; "
                'omit one'
            )
