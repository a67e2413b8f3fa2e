"""Machine-translate the captions that a collection lacks, or any caption file.

    python -m util.translate --config configs/multi30k.yaml --rootpath ROOT
        --engine command --command 'apertium -u -f line eng-spa'
        --back-command 'apertium -u -f line spa-eng' data.lang=es
    python -m util.translate --config configs/multi30k.yaml --rootpath ROOT
        --model facebook/nllb-200-distilled-600M data.lang=es
    python -m util.translate --input FILE --output FILE --from en --to es
        --model NAME_OR_FOLDER

For training it makes the translations of the English captions and their
back-translations; for validation and test, the English translations of the
human captions. Existing files are not made again. After a kill or Ctrl-C, the
same command continues. Several processes share the work with --shards N
--shard I; the one that finishes last joins their parts. With --shards N
--cluster slurm (or local), this command starts all N as jobs.

The exit status is 0 if all files are there, and 1 if another process still has
to do its share, or if captions to translate do not exist.
"""

import shlex
import sys
import time
from functools import partial
from pathlib import Path

from basic.command import command, telling, typed
from basic.errors import ConfigError
from basic.files import remove_at_once, remove_leftovers, write_atomically
from util import cluster
from util.translate.arguments import parse
from util.translate.engines import build

EXAMPLES = 5  # flagged captions to print


def make(jobs, *, shard=0, shards=1, overwrite=False):
    """Do one share of some jobs, and join the files whose parts are all done.

    This is all that a process of a cluster does. The order matters: a job's source may be made by
    the job before it.

    Args:
        jobs: list of shards.Job.
        shard, shards: this process's number, from 0, and the number of processes.
        overwrite: files of other translations are replaced.
    Returns:
        list of the jobs whose file is there now.
    Raises:
        ValueError: as `shards.do_share`.
    """
    from util.translate.records import is_current, write_reports
    from util.translate.shards import do_share, join

    finished = []
    for job in jobs:
        made = partial(is_current, job) if overwrite else job.path.exists
        try:
            with Progress(job, shard, shards) as progress:
                do_share(
                    job, progress.engine, shard=shard, shards=shards, done=progress.add, made=made
                )
            joined = join(job, partial(write_reports, job))
        except FileNotFoundError:  # the folder of the parts
            if job.folder.exists() or not made():
                raise
            joined = True  # by another process
        if joined or is_there(job):
            finished.append(job)
    return finished


def is_there(job):
    """Whether another process has joined a job's file."""
    return job.path.exists() and not job.folder.exists()


class Progress:
    """The engine of a job, loaded when it is needed, and the progress line with the time left."""

    loaded = None, None  # (setup, langs) and its engine: the last one, which the next job may share

    def __init__(self, job, shard, shards):
        self.job, self.line, self.captions = job, None, 0
        self.total = sum(
            len(range(len(job))[job.rows(part)])
            for part in job.parts()
            if part % shards == shard and job.read(part) is None
        )

    def engine(self):
        key = self.job.setup, self.job.langs
        if Progress.loaded[0] != key:
            Progress.loaded = None, None  # frees the memory of the last one
            Progress.loaded = key, build(*key[:1], *key[1])
        if self.line is None:
            from basic.logger import progress

            self.start = time.monotonic()
            self.line = progress(range(self.total), parts=self._parts)
        return Progress.loaded[1]

    def _parts(self, done, total, seconds):
        from basic.logger import clock

        found = [f'{"-".join(self.job.langs)} {done:,}/{total:,} captions']
        if done and seconds:
            found.append(f'{done / seconds:.3g}/s')
            found.append(f'{clock(seconds * (total - done) / done)} left')
        return found

    def add(self, captions):
        self.captions += captions
        self.line.update(captions)

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if self.line is None:
            return
        self.line.close()
        seconds = time.monotonic() - self.start
        if kind is None:
            print(
                f'translated {self.captions:,} captions of {self.job.source.name} in'
                f' {seconds:.1f} s ({self.captions / max(seconds, 1e-3):,.0f}/s)',
                file=sys.stderr,
            )


# ------------------------------------------------------------------------------------- the command


def to_do(jobs, overwrite):
    """The jobs whose file is missing, or with `overwrite` made in another way.

    A job whose source exists and is not made again reads the file.
    """
    from util.translate.records import is_current

    missing = []
    for job in jobs:
        if job.upstream is not None and job.upstream not in missing:
            job.upstream = None
        if not job.path.exists() or overwrite and not (job.upstream is None and is_current(job)):
            missing.append(job)
            continue
        remove_leftovers(job.folder)  # of a process that was killed after the file was written
        if job.folder.is_dir() and is_current(job) and not job.other_options():
            remove_at_once(job.folder)
    return missing


def plan(args):
    """(all jobs, messages about captions that do not exist)."""
    from util.translate.jobs import Engines, collection_jobs
    from util.translate.shards import Job

    if args.config:
        return collection_jobs(
            args.config,
            args.rootpath,
            Engines(args.into, args.back),
            langs=args.langs,
            splits=args.splits,
            part_size=args.part_size,
        )
    path, source = Path(args.output), Path(args.input)
    if path.absolute() == source.absolute():
        raise ConfigError('--input and --output are the same file')
    if not path.absolute().parent.is_dir():
        raise ConfigError(f'--output {path}: no such folder {path.parent}')
    return [Job(source, path, args.langs, args.into, args.part_size)], []


def check_setups(jobs, engine):
    """Raise ConfigError if a direction that is needed has no model or command."""
    for job in jobs:
        if job.setup is None:
            back = '' if job.branch in ('', 'tgt') else 'back-'
            option = f'--{back}{"command" if engine == "command" else "model"}'
            raise ConfigError(
                f'{job.path.name} is missing: give {option}, which translates'
                f' {job.langs[0]} -> {job.langs[1]}'
            )


def show_reports(jobs):
    """Print the report of each file that is there."""
    from util.translate import report
    from util.translate.records import beside, texts_of, write_reports

    for job in jobs:
        if job.report is None:
            write_reports(job, texts_of(job.path, job.names()), {})
        counts, flagged = job.report
        for line in report.lines(job.path, counts, flagged[:EXAMPLES]):
            print(line)
        if flagged:
            print(f'  all flagged captions: {beside(job.path, ".flagged.tsv")}')


def drop_flagged(args, jobs):
    """Leave suspicious captions out: of --output, or of a copy of the English training captions.

    Training reads the captions of the English file; translations of others are not used.
    """
    from basic.caption import caption_lines, split_line
    from util.add_noise import with_suffix
    from util.translate.records import flagged_ids, key_of

    train = [job for job in jobs if job.split == 'train']
    if args.config and not train:
        raise ConfigError('--drop-flagged is for training captions: add train to --split')
    done = [job for job in (train or jobs) if job.path.exists()]
    if len(done) < len(train or jobs):
        return
    bad = set().union(*(flagged_ids(job.path) for job in done))
    source = done[0].source if args.config else done[0].path
    lines = [line for _, line in caption_lines(source)]
    kept = [line for line in lines if key_of(split_line(line)[0]) not in bad]
    target = source.with_name(with_suffix(source.name, '_unflagged')) if args.config else source
    write_atomically(target, b''.join(line + b'\n' for line in kept))
    print(f'kept {len(kept):,} of {len(lines):,} captions: {target}')
    if args.config:
        template = with_suffix(args.config.data.captions.train.en, '_unflagged')
        option = shlex.quote(f'data.captions.train.en="{template}"')
        print(f'to train on them: {option}')


def make_here(jobs, args, words):
    """Do this process's share of the jobs; returns those whose file is there now."""
    try:
        return make(jobs, shard=args.shard, shards=args.shards, overwrite=args.overwrite)
    except KeyboardInterrupt as error:
        error.add_note(f'to continue: {typed(words)}')
        raise


def submit(jobs, args, words):
    """Have all shares done by jobs of a cluster; returns the number of jobs that failed."""
    shares = {part % args.shards for job in jobs for part in job.missing()} or {0}
    tasks = cluster.share_tasks('translate', args, words, sorted(shares))
    # 1: the process that ends last joins the parts, or other captions do not exist.
    return cluster.run('translate', tasks, args, allowed=(0, 1), words=words)


@command('translate')
def main(argv=None):
    """The command line; returns the exit status."""
    words = sys.argv[1:] if argv is None else list(argv)
    args = parse(words, __doc__)
    # Slow imports come only now, because a wrong argument should not take seconds to report.
    with telling('loading'):
        jobs, absent = plan(args)
    missing = to_do(jobs, args.overwrite)
    check_setups(missing, args.engine)
    for job in jobs:
        if job not in missing:
            print(f'{job.path} exists')
            if job.folder.is_dir():
                print(f'  {job.folder} has an unfinished one; --overwrite continues it')
    if args.cluster and missing:
        failed = submit(missing, args, words)
        finished = [job for job in missing if is_there(job)]
    else:
        failed, finished = 0, make_here(missing, args, words)
    report_all = args.report or args.drop_flagged
    show_reports(job for job in jobs if job in finished or job not in missing and report_all)
    if args.drop_flagged:
        drop_flagged(args, jobs)
    for job in missing:
        if job not in finished:
            left = len(job.missing())
            print(
                f'{job.path.name}: {left:,} of {len(job.parts()):,} parts are not done; the'
                ' process that does the last one joins them'
            )
    for message in absent:
        print(f'not translated: {message}')
    return 1 if absent or failed or len(finished) < len(missing) else 0


if __name__ == '__main__':
    sys.exit(main())
