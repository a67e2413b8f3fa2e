"""What `util.check_data` finds in features and images: those that cannot be read, and those that say nothing."""
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from basic.errors import DataError, first_five
from basic.images import ImageSource, check_images
from basic.runtime import cpu_count
from data_provider import check_known, present_items, visual_order

CHUNK = 64 << 20                         # bytes of features looked at in one go
MOST, SOME = 0.5, 0.1                    # a share above the first is a problem, above the second a warning
SAMPLE = 64                              # rows looked at first
TOO_LARGE = 1e15                         # squares of such numbers, summed over a row, overflow float32
LARGE, SMALL = 1e6, 1e-6                 # no feature is as large as the first, or never larger than the second


def check_visuals(report, collection, split, captions, *, image_size, column, scanned):
    """Open the visual items of a split, fill in the column; read all of them unless `scanned` is None.

    Args:
        report: util.check_data.Report; collection: data_provider.Collection; captions: CaptionFile.
        image_size: side to which images are brought.
        column: dict row label -> cell, of this split, to fill in.
        scanned: dict file of features -> (problems, warnings), for the next split that has the same.
    """
    source = report.attempt(collection.source, split, captions, image_size)
    if source is None:
        return
    if collection.config.data.missing == 'skip':
        found = report.attempt(present_items, collection.config, split, source, {'': captions})
        if found is None:
            return
        files, visual_ids, left_out = found
        captions = files['']
        if left_out:
            report.warn(str(left_out))
    else:
        report.attempt(check_known, source, captions)
        visual_ids = visual_order(collection.config, split, source, captions)
        report.attempt(check_images, source, visual_ids)
    number = Counter(visual for visual, _ in captions.ids)
    column['visual items'] = f'{len(visual_ids):,}'
    column['captions per item (min/mean/max)'] = _spread([number[name] for name in visual_ids])
    if hasattr(source, 'counts'):
        column['frames per video (min/mean/max)'] = _spread(
            [count for name, count in zip(source.ids, source.counts) if name in number])
    column['feature width'] = f'{source.dim:,}' if source.dim else 'images'
    if scanned is None:
        return
    if isinstance(source, ImageSource):
        found = report.attempt(look_at_images, source, visual_ids)
        if found is None:
            return
        unreadable, blank = found
        report.add(unreadable, kind=f"images of split '{split}' that cannot be read")
        text = (f"{len(blank):,} of the {len(visual_ids):,} images of split '{split}' are of one colour throughout: "
                f'{first_five(blank)}; fetch them again')
        if len(blank) > MOST * len(visual_ids):
            report.add([text])
        elif blank:
            report.warn(text)
        return
    if source.where not in scanned:
        scanned[source.where] = unsound_features(source)
    problems, warnings = scanned[source.where]
    report.add(problems)
    for warning in warnings:
        report.warn(warning)


def unsound_features(source):
    """What is wrong with features on disk.

    Args:
        source: basic.features.FeatureSource.
    Returns:
        (problems, warnings), lists of text.
    """
    scan = scan_features(source.features)
    total, problems, warnings = len(source.features), [], []

    def note(rows, text, problem):
        if len(rows):
            (problems if problem else warnings).append(
                f'{source.where}: {len(rows):,} of {total:,} rows {text}: {first_five(source.names(rows))}; extract '
                'these again')

    if scan.swapped:
        return [f'{source.where}: the numbers make sense only in the other byte order: write them again as '
                "little-endian float32, in NumPy array.astype('<f4').tofile(path)"], []
    note(scan.bad, 'hold NaN or infinity', True)
    note(scan.huge, f'hold numbers as large as {scan.largest:.1e}, implausible in features, which overflow float32 in '
         'training', True)
    note(scan.zero, 'are all zeros', len(scan.zero) > MOST * total)
    note(scan.flat, 'hold one number throughout', len(scan.flat) > MOST * total)
    nothing = len(scan.zero) + len(scan.flat) == total
    if scan.repeated > SOME * total and not nothing:
        (problems if scan.repeated > MOST * total else warnings).append(
            f'{source.where}: {scan.repeated:,} of {total:,} rows are identical, such as that of '
            f'{first_five(source.names([scan.example]))}; extract the features again')
    elif scan.alike and not nothing:
        problems.append(f'{source.where}: all {total:,} rows are alike: every column is constant; extract the features '
                        'again')
    if LARGE < scan.largest <= TOO_LARGE:
        warnings.append(f'{source.where}: numbers as large as {scan.largest:.1e} are implausible in features')
    if 0 < scan.largest < SMALL:
        problems.append(f'{source.where}: no number is larger than {scan.largest:.1e}, implausible in features, which '
                        'say nothing to the encoder then; write them again')
    return problems, warnings


@dataclass
class Scan:
    """What one pass over features finds.

    Attributes:
        swapped: the numbers make sense only in the other byte order; then nothing else was looked at.
        bad, huge, zero, flat: int64 arrays, the rows that hold NaN or infinity, numbers above TOO_LARGE, only zeros,
            only one other number.
        largest: the largest magnitude of the other rows, or of the huge ones.
        repeated: how many rows are equal to row `example`, which is that of the most frequent row in a sample.
        alike: whether every column is constant.
    """
    swapped: bool = False
    bad: np.ndarray = ()
    huge: np.ndarray = ()
    zero: np.ndarray = ()
    flat: np.ndarray = ()
    largest: float = 0.0
    repeated: int = 0
    example: int = 0
    alike: bool = False


def scan_features(features):
    """Look at every row of features (rows, D) once, in chunks -> Scan."""
    chosen = np.unique(np.linspace(0, len(features) - 1, SAMPLE).astype(np.int64)) if len(features) else []
    sample = features[chosen]
    if _wrong_byte_order(sample):
        return Scan(swapped=True)
    example = _repeated_row(chosen, sample)
    step = max(1, CHUNK // (features.shape[1] * features.itemsize))
    lows, highs, columns, repeated = [np.zeros(0)], [np.zeros(0)], None, 0
    with np.errstate(over='ignore', invalid='ignore'):     # as training reads them: in float32, 1e300 is infinite there
        for start in tqdm(range(0, len(features), step), desc='features', disable=None, leave=False):
            values = features[start:start + step].astype(np.float32, copy=False)
            lows.append(values.min(axis=1))
            highs.append(values.max(axis=1))
            low, high = values.min(axis=0), values.max(axis=0)
            columns = (low, high) if columns is None else (np.minimum(columns[0], low), np.maximum(columns[1], high))
            if example is not None:
                repeated += int((values == features[example].astype(np.float32)).all(axis=1).sum())
    low, high = np.concatenate(lows), np.concatenate(highs)
    size = np.maximum(np.abs(low), np.abs(high))
    sound = np.isfinite(size)
    same = sound & (low == high) & (features.shape[1] > 1)
    alike = columns is not None and len(features) > 1 and bool(
        (columns[1] - columns[0] <= 1e-5 * np.maximum(np.abs(columns[0]), np.abs(columns[1]))).all())
    return Scan(bad=np.flatnonzero(~sound), huge=np.flatnonzero(sound & (size > TOO_LARGE)),
                zero=np.flatnonzero(sound & (size == 0)), flat=np.flatnonzero(same & (size > 0) & (size <= TOO_LARGE)),
                largest=float(size[sound].max(initial=0)), repeated=repeated, example=example or 0, alike=alike)


def bad_rows(features):
    """The rows of `features` (rows, D) that hold NaN or infinity, as an int64 array; reads it in chunks."""
    return scan_features(features).bad


def _wrong_byte_order(sample):
    """Whether numbers are absurd as they stand, and features once their bytes are turned round."""
    return _plausible(sample) < 0.9 and _plausible(sample.byteswap()) > 0.99


def _plausible(values):
    """Share of numbers, zeros left out, of the size that features have; 0 where all are zeros."""
    with np.errstate(over='ignore', invalid='ignore'):
        size = np.abs(values[values != 0])
        return np.count_nonzero((size > 1e-12) & (size < 1e9)) / max(1, len(size))


def _repeated_row(rows, sample):
    """The number of the most frequent row in a sample that is not all zeros; None where each is there once."""
    counts = Counter(row.tobytes() for row in sample if row.any())
    content, count = counts.most_common(1)[0] if counts else (b'', 0)
    if count < 2:
        return None
    return next(int(number) for number, row in zip(rows, sample) if row.tobytes() == content)


def look_at_images(source, visual_ids):
    """Decode every image that exists -> (a message for each that cannot be read, the ids of blank ones)."""
    missing = {str(path) for path in source.missing(visual_ids)}
    there = [name for name in visual_ids if str(source.path(name)) not in missing]

    def look(name):
        try:
            pixels = source.load(name).flatten(1)            # (3, S * S)
            return bool((pixels == pixels[:, :1]).all())
        except DataError as error:
            return str(error)

    with ThreadPoolExecutor(cpu_count()) as pool:
        found = list(tqdm(pool.map(look, there), total=len(there), desc='images', disable=None, leave=False))
    return ([text for text in found if isinstance(text, str)],
            [name for name, blank in zip(there, found) if blank is True])


def _spread(numbers):
    numbers = np.asarray(numbers)
    return f'{numbers.min()} / {numbers.mean():.1f} / {numbers.max()}' if len(numbers) else '-'
