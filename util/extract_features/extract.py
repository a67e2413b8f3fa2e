"""Extract the features of images or videos: the work of one process, and the end of it.

`run_share` does the share of one process; several on one or many machines make one output.
"""

import hashlib
import os
import time
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

from basic import distributed
from basic.collection import Collection
from basic.config import load_config
from basic.errors import DataError, first_five
from basic.images import absent_images
from basic.logger import clock, progress, tell
from basic.runtime import choose_devices
from util.extract_features.encoders import build_encoder
from util.extract_features.items import collection_ids, find_images, find_videos, listed_ids
from util.extract_features.reading import encoded, Images, Videos
from util.extract_features.shards import share_of, Work
from basic.videos import import_av
from util.extract_features.writing import ids_of, sidecar_of, write_frames, write_pooled


@dataclass
class Options:
    """What the command line asks for, see `util.extract_features.main`; it can be pickled."""

    encoder: str
    weights: str | None = None
    images: str | None = None
    videos: str | None = None
    configs: list = field(default_factory=list)
    overrides: list = field(default_factory=list)
    rootpath: str | None = None
    splits: tuple = ('train', 'val', 'test')
    ids: str | None = None
    output: str | None = None
    fps: str = '1'
    folder_fps: str | None = None
    max_frames: int = 0
    device: str = 'auto'
    precision: str = 'fp32'
    batch_size: int = 32
    workers: int = 2
    shard_size: int = 0
    skip_bad: bool = False
    overwrite: bool = False


@dataclass
class Job:
    """One output: `kind` images (a .npy) or frames (a BigFile folder), with its items.

    Attributes:
        source: basic.images.ImageSource, or dict id -> path of the videos.
        place: the folder or template of the files, absolute.
        splits: of the collection; () without one.
        listed: the id list of the collection that the rows belong to, or None.
    """

    output: Path
    kind: str
    ids: list
    source: object
    place: str
    splits: tuple = ()
    listed: Path | None = None


def run_share(options, share=0, shares=1):
    """Do one share of the work, and join the output if no other share is missing.

    Args:
        options: Options.
        share: this process's number, from 0; shares: the number of processes.
    Returns:
        list of text: what was written, or what is missing.
    Raises:
        DataError: a mistake of the user; BadFiles: files cannot be read (without skip_bad).
    """
    jobs = find_jobs(options)
    for job in jobs:
        _refuse_absent(job, options.skip_bad)
        if job.kind == 'frames' and any(not path.is_dir() for path in job.source.values()):
            import_av()
    devices = choose_devices(options.device)
    if len(devices) > 1:
        raise DataError(f'--device {options.device}: one device; start several with --shards')
    tell(f'reading the encoder {options.encoder}')
    encoder = build_encoder(options.encoder, options.weights)
    described = encoder.describe()
    encoder.to(distributed.start(devices), options.precision)
    told = []
    for job in jobs:
        told += _run_job(job, options, encoder, described, share, shares)
    return told


def open_shares(options, shares):
    """The shares that have something to do, as far as the files tell; [0] if that is not known.

    Raises:
        DataError: a mistake of the user, as in `run_share`.
    """
    found = set()
    for job in find_jobs(options):
        _refuse_absent(job, options.skip_bad)
        work = Work(job.output, {}, job.ids, _size(job, options))
        again = options.overwrite or job.output.with_name(f'{job.output.name}.bad.txt').exists()
        if again or work.folder.exists() or not job.output.exists():
            done = set() if again else work.done()
            found |= {shard % shares for shard in range(work.count) if shard not in done}
    return sorted(found) or [0]


def told(options):
    """What to print about the outputs that are there; list of text."""
    jobs = find_jobs(options)
    return [line for job in jobs if job.output.exists() for line in _told(job, options)]


def _size(job, options):
    """Items per shard."""
    return options.shard_size or (512 if job.kind == 'images' else 32)


def _run_job(job, options, encoder, described, share, shares):
    work = Work(job.output, _plan(job, options, described), job.ids, _size(job, options))
    sidecar = sidecar_of(job.output, job.kind)
    if not work.begin(sidecar, overwrite=options.overwrite):
        return [f'complete already: {job.output}']
    mine = share_of(work.count, share, shares)
    try:
        do_shards(work, mine, _reader(job, options, encoder), encoder, workers=options.workers)
    except (OSError, DataError):
        with work.lock():
            if not work.is_complete(sidecar):
                raise
        return [f'another process has written {job.output}']  # and removed the work folder
    state = work.join(lambda work, bad: _write(job, work, bad), skip_bad=options.skip_bad)
    if state == 'waiting':
        missing = work.count - len(work.done())
        return [
            f'{job.output}: this share is done; {missing:,} of {work.count:,} shards are missing: '
            'the process that finds all done joins them, or a call without --shards'
        ]
    if state == 'gone':
        return [f'another process has written {job.output}']
    return _told(job, options)


def do_shards(work, numbers, reader, encoder, *, workers):
    """Make those of some shards that are missing, and try the bad items of the others again."""
    done = work.done()
    results = {
        shard: work.read(shard) if shard in done else [None] * len(work.items(shard))
        for shard in numbers
    }
    todo = {
        shard: [
            position
            for position, result in zip(work.items(shard), known)
            if not hasattr(result, 'features')
        ]
        for shard, known in results.items()
    }
    results = {shard: known for shard, known in results.items() if todo[shard]}
    left = {shard: len(positions) for shard, positions in todo.items() if positions}
    if not left:
        return
    unit = 'images/s' if isinstance(reader, Images) else 'videos/s'
    start, again = time.monotonic(), len(done & set(numbers))
    if again:
        tell(f'{again:,} of {len(numbers):,} shards are done already')

    def parts(count, total, elapsed):
        found = [f'{work.output.name}  {count}/{total}']
        if count and elapsed:
            found.append(f'{count / elapsed:.3g} {unit}')
            found.append(f'{clock(elapsed * (total - count) / count)} left')
        return found

    bar = progress(range(sum(left.values())), parts=parts)
    for position, result in encoded(
        reader, [todo[shard] for shard in left], encoder, workers=workers
    ):
        shard = position // work.size
        results[shard][position % work.size] = result
        left[shard] -= 1
        bar.update()
        if not left[shard]:
            work.write(shard, results.pop(shard))
    bar.close()
    seconds = time.monotonic() - start
    total = sum(map(len, todo.values()))
    tell(f'{work.output.name}: {total:,} in {seconds:.0f} s, {total / seconds:.3g} {unit}')


def _plan(job, options, described):
    """What the features of a job depend on, as plain data."""
    plan = {
        'kind': job.kind,
        'encoder': described,
        'precision': options.precision,
        'source': job.place,
        'items': {'count': len(job.ids), 'sha256': _hash(job.ids)},
    }
    if job.kind == 'frames':
        plan['fps'] = options.fps
        plan['folder_fps'] = options.folder_fps
        plan['max_frames'] = options.max_frames
    return plan


def _hash(ids):
    return hashlib.sha256('\n'.join(ids).encode('utf-8', 'surrogatepass')).hexdigest()


def _reader(job, options, encoder):
    if job.kind == 'images':
        return Images(job.ids, job.source, encoder.prepare, options.batch_size)
    sampling = {
        'fps': Fraction(options.fps),
        'folder_fps': Fraction(options.folder_fps) if options.folder_fps else None,
        'max_frames': options.max_frames,
    }
    return Videos(job.ids, job.source, encoder.prepare, options.batch_size, sampling)


def _refuse_absent(job, skip_bad):
    """Raise DataError at once, before hours of work, if files do not exist."""
    if job.kind == 'images':
        absent = absent_images(job.source, job.ids)
        near = job.source.near(absent) if absent else ''
    else:
        absent, near = [name for name in job.ids if name not in job.source], ''
    if absent and not skip_bad:
        raise DataError(
            f'{len(absent):,} of {len(job.ids):,} {job.kind} do not exist in {job.place}: '
            f'{first_five(absent)}{near}; add them, or omit them with --skip-bad'
        )


# ----------------------------------------------------------------------------------------- the jobs


def find_jobs(options):
    """The outputs that the options ask for, with their items."""
    if not options.configs:
        return [_own_job(options)]
    config = collection_config(options)
    collection = Collection(config, options.rootpath)
    if options.videos:
        return _video_jobs(options, collection)
    jobs, place = [], options.images
    for split in options.splits:
        ids, where = collection_ids(collection, split)
        templates = list(getattr(config.data.pooled, split))
        if not templates:
            raise DataError(
                f'data.pooled.{split} is empty: set the path of the features, such as '
                f'\'data.pooled.{split}=["FeatureData/{{feature}}/{split}.npy"]\''
            )
        if not place and not config.data.images:
            raise DataError('data.images is empty: give the folder of the images with --images')
        template = place or image_template(collection, split)
        ids, source = find_images(template, ids, where)
        output = next(collection.paths(templates[0], split))
        lists = getattr(config.data.ids, split)
        candidates = [path for each in lists for path in collection.paths(each, split)]
        listed = where if where in candidates else None
        jobs.append(Job(output, 'images', ids, source, os.path.abspath(template), (split,), listed))
    return jobs


def image_template(collection, split):
    """`data.images` of a collection: the first spelling whose folder exists, else the first."""
    templates = [str(path) for path in collection.paths(collection.config.data.images, split)]
    folders = (Path(each.partition('{id}')[0] + 'x').parent for each in templates)
    return next((each for each, folder in zip(templates, folders) if folder.is_dir()), templates[0])


def collection_config(options):
    """The collection's config; `visual.feature` is named after the encoder, unless it is given."""
    given = any(text.startswith('visual.feature=') for text in options.overrides)
    named = [] if given else [f'visual.feature={feature_name(options.encoder)}']
    kind = 'visual.kind=frames' if options.videos else 'visual.kind=pooled'
    return load_config(options.configs, [*options.overrides, kind, *named])


def feature_name(encoder):
    """The name of an encoder's features, such as resnet_152."""
    name = Path(encoder.rstrip('/')).name
    return f'resnet_{name[6:]}' if name.startswith('resnet') and name[6:].isdigit() else name


def _video_jobs(options, collection):
    """The jobs of videos: one per output, which all splits share as a rule."""
    outputs = {}
    for split in options.splits:
        output = next(collection.paths(collection.config.data.frames, split))
        ids = collection_ids(collection, split)[0]
        known = outputs.setdefault(output, ([], {}))  # a dict as an ordered set
        known[0].append(split)
        known[1].update(dict.fromkeys(ids))
    return [
        Job(
            output,
            'frames',
            *find_videos(options.videos, list(ids), 'the captions'),
            os.path.abspath(options.videos),
            tuple(splits),
        )
        for output, (splits, ids) in outputs.items()
    ]


def _own_job(options):
    ids = listed_ids(options.ids) if options.ids else None
    kind, place = ('frames', options.videos) if options.videos else ('images', options.images)
    find = find_videos if options.videos else find_images
    ids, source = find(place, ids, options.ids or '')
    return Job(Path(options.output), kind, ids, source, os.path.abspath(place))


# -------------------------------------------------------------------------------------- the outputs


def _write(job, work, bad):
    """Write a job's output from its shards."""
    ids = [name for name in job.ids if name not in bad]
    more = {'items': len(job.ids), 'skipped': bad}

    def videos():
        for shard in range(work.count):
            for position, result in zip(work.items(shard), work.read(shard)):
                if not isinstance(result, str):
                    yield work.ids[position], result.frames, result.features

    if job.kind == 'images':
        parts = (features for _, _, features in videos())
        write_pooled(job.output, work.plan, ids, parts, more)
    else:
        write_frames(job.output, work.plan, videos(), more)


def _told(job, options):
    """What to print about a written output."""
    from basic.foreign import read_json

    found = read_json(sidecar_of(job.output, job.kind), {'rows': int, 'dim': int, 'ids': int})
    lines = [f'written: {job.output}  ({found["rows"]:,} rows of {found["dim"]:,} numbers)']
    skipped = found.get('skipped') or {}
    lines += [f'skipped {len(skipped):,} items:'] * bool(skipped)
    lines += [f'  {name}: {reason}' for name, reason in list(skipped.items())[:5]]
    lines += [f'  ... all are listed in {sidecar_of(job.output, job.kind)}'] * (len(skipped) > 5)
    if not job.splits:
        return lines
    config = collection_config(options)
    use = [f'visual.kind={"pooled" if job.kind == "images" else "frames"}']
    use.append(f'visual.feature={config.visual.feature}')
    if job.kind == 'images' and (skipped or job.listed is None):
        folder = Collection(config, options.rootpath).folder
        relative = os.path.relpath(ids_of(job.output), folder)
        use.append(f'\'data.ids.{job.splits[0]}=["{relative}"]\'')
    use += ['data.missing=skip'] * bool(skipped)
    return [*lines, f'  to train on it: {" ".join(use)}']
