"""The checks of `util.check_data` on features and images: unreadable, or without information.

D is the width of a feature, S the height and width of an image.
"""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from basic.errors import DataError, first_five
from basic.images import ImageSource, check_images
from basic.runtime import cpu_count
from data_provider import check_known, present_items, visual_order

CHUNK = 64 << 20  # bytes of features that are read at a time
MOST, SOME = 0.5, 0.1  # a share above the first is a problem, above the second a warning
SAMPLE = 64  # rows that are checked first
TOO_LARGE = 1e15  # the sum of squares over a row overflows float32
LARGE, SMALL = 1e6, 1e-6  # the largest number of a feature is between them


def check_visuals(report, collection, split, captions, *, preprocessing, column, scanned):
    """Open the visual items of a split, and read all of them, unless `scanned` is None.

    Args:
        report: util.check_data.Report; collection: basic.collection.Collection.
        captions: CaptionFile.
        preprocessing: of images.
        column: dict row label -> cell of this split, which is filled in.
        scanned: dict file -> (problems, warnings) of earlier splits, or for images template ->
            set of ids: a file is read only once.
    """
    source = report.attempt(collection.source, split, captions, preprocessing)
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
            [count for name, count in zip(source.ids, source.counts) if name in number]
        )
    column['feature width'] = f'{source.dim:,}' if source.dim else 'images'
    if scanned is None:
        return
    if isinstance(source, ImageSource):
        earlier = scanned.setdefault(source.template, set())
        new = [name for name in visual_ids if name not in earlier]
        earlier.update(new)
        found = report.attempt(look_at_images, source, new)
        if found is None:
            return
        unreadable, blank = found
        report.add(unreadable, kind=f"images of split '{split}' that cannot be read")
        if blank:
            report.note(
                f"{len(blank):,} of the {len(new):,} images of split '{split}' are "
                f'of a single colour: {first_five(blank)}; download them again',
                problem=len(blank) > MOST * len(new),
            )
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
    scan, where = scan_features(source.features), source.where
    total, problems, warnings = len(source.features), [], []
    if scan.swapped:
        return [
            f'{where}: the numbers are plausible only in the other byte order: write them again '
            "as little-endian float32 (NumPy: array.astype('<f4').tofile(path))"
        ], []

    def note(text, problem):
        (problems if problem else warnings).append(f'{where}: {text}')

    for rows, text, problem in (
        (scan.bad, 'have NaN or infinity', True),
        (
            scan.huge,
            f'have numbers as large as {scan.largest:.1e}, which overflow float32 in training',
            True,
        ),
        (scan.zero, 'are all zeros', len(scan.zero) > MOST * total),
        (scan.flat, 'have the same number in all columns', len(scan.flat) > MOST * total),
    ):
        if len(rows):
            note(
                f'{len(rows):,} of {total:,} rows {text}: {first_five(source.names(rows))}; '
                'extract these again',
                problem,
            )
    if len(scan.zero) + len(scan.flat) < total:
        if scan.repeated > SOME * total:
            example = source.names([scan.example])[0]
            note(
                f'{scan.repeated:,} of {total:,} rows are identical to that of {example}; '
                'extract the features again',
                scan.repeated > MOST * total,
            )
        elif scan.alike:
            note(
                f'all {total:,} rows are equal: every column is constant; extract the features '
                'again',
                True,
            )
    if LARGE < scan.largest <= TOO_LARGE:
        note(f'numbers as large as {scan.largest:.1e} are implausible in features', False)
    if 0 < scan.largest < SMALL:
        note(
            f'no number is larger than {scan.largest:.1e}, too small for the encoder; write the '
            'features again',
            True,
        )
    return problems, warnings


@dataclass
class Scan:
    """The result of one pass over features.

    Attributes:
        swapped: the numbers are plausible only in the other byte order; the rest is not checked.
        bad, huge, zero, flat: int64 arrays of rows: with NaN or infinity, with numbers above
            TOO_LARGE, with only zeros, with only one other number.
        largest: the largest magnitude of all rows except the bad ones.
        repeated: how many rows are equal to row `example`, the most frequent one of a sample.
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
    """Read every row of features (rows, D) once, in chunks -> Scan."""
    chosen = np.unique(np.linspace(0, len(features) - 1, SAMPLE).astype(np.int64))
    sample = features[chosen] if len(features) else features
    if _wrong_byte_order(sample):
        return Scan(swapped=True)
    example = _repeated_row(chosen, sample)
    step = max(1, CHUNK // (features.shape[1] * features.itemsize))
    starts = tqdm(range(0, len(features), step), desc='features', disable=None, leave=False)
    lows, highs, repeated = [np.zeros(0)], [np.zeros(0)], 0
    least, most = np.full(features.shape[1], np.inf), np.full(features.shape[1], -np.inf)
    # Training reads float32, in which a float64 of 1e300 is infinite: not worth a warning here.
    with np.errstate(over='ignore', invalid='ignore'):
        for start in starts:
            values = features[start : start + step].astype(np.float32, copy=False)
            lows.append(values.min(axis=1))
            highs.append(values.max(axis=1))
            least = np.minimum(least, values.min(axis=0))
            most = np.maximum(most, values.max(axis=0))
            if example is not None:
                row = features[example].astype(np.float32)
                repeated += int((values == row).all(axis=1).sum())
        low, high = np.concatenate(lows), np.concatenate(highs)  # of each row; NaN stays
        size = np.maximum(np.abs(low), np.abs(high))
        alike = (most - least <= 1e-5 * np.maximum(np.abs(least), np.abs(most))).all()
    sound = np.isfinite(size)
    flat = sound & (low == high) & (features.shape[1] > 1) & (0 < size) & (size <= TOO_LARGE)
    return Scan(
        bad=np.flatnonzero(~sound),
        huge=np.flatnonzero(sound & (size > TOO_LARGE)),
        zero=np.flatnonzero(sound & (size == 0)),
        flat=np.flatnonzero(flat),
        largest=float(size[sound].max(initial=0)),
        repeated=repeated,
        example=example or 0,
        alike=bool(alike) and len(features) > 1,
    )


def bad_rows(features):
    """The rows of `features` (rows, D) with NaN or infinity, as an int64 array."""
    return scan_features(features).bad


def _wrong_byte_order(sample):
    """Whether numbers are implausible, but plausible with their bytes swapped."""
    return _plausible(sample) < 0.9 and _plausible(sample.byteswap()) > 0.99


def _plausible(values):
    """Share of the non-zero numbers that have a plausible size; 0 if all are zeros."""
    with np.errstate(over='ignore', invalid='ignore'):
        size = np.abs(values[values != 0])
        return np.count_nonzero((size > 1e-12) & (size < 1e9)) / max(1, len(size))


def _repeated_row(rows, sample):
    """The number of a sample's most frequent non-zero row; None if no row occurs twice."""
    counts = Counter(row.tobytes() for row in sample if row.any())
    content, count = counts.most_common(1)[0] if counts else (b'', 0)
    if count < 2:
        return None
    return next(int(number) for number, row in zip(rows, sample) if row.tobytes() == content)


def look_at_images(source, visual_ids):
    """Decode every image that exists.

    Returns:
        (messages about unreadable images, ids of images of a single colour), lists.
    """
    missing = {str(path) for path in source.missing(visual_ids)}
    there = [name for name in visual_ids if str(source.path(name)) not in missing]

    def look(name):
        try:
            pixels = source.load(name).flatten(1)  # (3, S * S)
            return bool((pixels == pixels[:, :1]).all())
        except DataError as error:
            return str(error)

    with ThreadPoolExecutor(cpu_count()) as pool:
        found = list(
            tqdm(pool.map(look, there), total=len(there), desc='images', disable=None, leave=False)
        )
    return (
        [text for text in found if isinstance(text, str)],
        [name for name, blank in zip(there, found) if blank is True],
    )


def _spread(numbers):
    numbers = np.asarray(numbers)
    return f'{numbers.min()} / {numbers.mean():.1f} / {numbers.max()}' if len(numbers) else '-'
