"""Train a grid of ablations and seeds with train.py, or resume it.

    python -m util.ablate --config configs/vatex.yaml --rootpath ROOT
                          [--only full,no_adversary] [--seeds 1,2,3] [--jobs N] [--device 0,1]
                          [--noise 0,0.2,0.4] [--list] [key=value ...]

An ablation is a file in configs/ablation/, or your own file. Its values replace those of --config
and of the options. The run folders are
ROOT/<collection>/runs/<config>_<ablation>_<lang>/seed_<n>, and the output of a run goes to
seed_<n>.out beside its folder. A finished run is skipped, an unfinished one resumes after its last
epoch. A folder with a run of another config is left unchanged and reported, so the same command
always gives the same results. Ctrl-C stops all runs. If a run fails, its last lines are shown and
the others continue. With --noise (demo only), each noise rate has its own corpus in
ROOT/noise_<rate>. With --cluster slurm (or local), each run is a job.

The exit status is 0 if all runs are finished, 1 if some are not, 2 for a wrong command, and 128 +
the signal's number if a signal stopped the grid (130 for Ctrl-C).
"""

import argparse
import fcntl
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from basic.command import OUT_OF_MEMORY, STOPPING, command
from basic.config import Config, config_changes, config_to_dict, keys_with, load_config
from basic.errors import ConfigError
from basic.files import open_no_link
from basic.languages import languages
from basic.merge import keys_of
from util import cluster
from util.make_demo.corpus import make_demo, options_there
from util.make_demo.folders import read_manifest

# Modules that import torch, which takes seconds, are imported where they are used, so that wrong
# arguments are reported at once.

REPOSITORY = Path(__file__).resolve().parent.parent
ABLATIONS = REPOSITORY / 'configs' / 'ablation'
DONE, UNFINISHED, NEW, OTHER, BUSY = (
    'finished',
    'unfinished',
    'to be run',
    'another config',
    'running',
)
POLL = 0.2  # seconds between two checks of the running processes
PROBE = 1  # seconds for which another process's check may hold a lock
GRACE = 20  # seconds that runs have to stop
LAST_LINES = 12  # of a failed run's output that are shown


@dataclass
class Job:
    """One run of the grid.

    Attributes:
        label: a name to print, such as 'no_adversary, seed 2'.
        config: the resolved config.
        folder: the run folder.
        arguments: of train.py, without device and --resume.
        alone: the arguments of this tool that select this run.
    """

    label: str
    config: Config
    folder: Path
    arguments: list[str]
    alone: tuple[str, ...] = ()

    @property
    def output(self):
        """The file for the run's output."""
        return self.folder.with_name(f'{self.folder.name}.out')

    def state(self):
        """(state, detail): one of the states above, and for another config what differs."""
        return (BUSY, '') if is_locked(self.output) else self.content()

    def content(self):
        """(state, detail) of the run folder, without checking whether a process is using it."""
        from basic.checkpoint import BEST, LAST
        from basic.run_folder import CONFIG, LOG, METRICS, RUN_FILES, is_trained, read_config

        present = [name for name in RUN_FILES if (self.folder / name).exists()]
        # The run stopped before it wrote its config: it can start again.
        if CONFIG not in present:
            kept = [name for name in present if name in (BEST, LAST, LOG, *METRICS.values())]
            return (OTHER, f'found {", ".join(kept)}, but no {CONFIG}') if kept else (NEW, '')
        try:
            # Defaults replace options that an older config lacks.
            stored = config_to_dict(read_config(self.folder))
        except (ValueError, OSError) as error:
            return OTHER, str(error)
        # Runs of a grid may differ in these.
        changes = config_changes(stored, config_to_dict(self.config), keys_with('speed'))
        if changes:
            return OTHER, '; '.join(changes)
        done = METRICS['test'] in present and is_trained(self.folder, self.config)
        return (DONE if done else UNFINISHED), ''


# ----------------------------------------------------------------------------------------- the grid


def ablation_files(names=None):
    """The files of ablations.

    Args:
        names: names in configs/ablation/, or paths of YAML files; None: all of configs/ablation/.
    Returns:
        dict name -> path; if `names` is None, `full` is first.
    Raises:
        ConfigError: no such ablation.
    """
    known = {
        path.stem: path
        for path in sorted(ABLATIONS.glob('*.yaml'), key=lambda path: (path.stem != 'full', path))
    }
    if names is None:
        return known
    files = {}
    for name in names:
        path = Path(name) if name.endswith('.yaml') else known.get(name)
        if path is None or not path.is_file():
            raise ConfigError(
                f"no ablation '{name}': expected the name of one in {ABLATIONS}"
                f' ({", ".join(known)}), or the path of a .yaml file'
            )
        if files.setdefault(path.stem, path) != path:
            raise ConfigError(
                f"two ablations have the name '{path.stem}', {files[path.stem]} and {path}, and"
                ' would use the same run folders: rename one'
            )
    return files


def make_grid(configs, rootpath, *, files, seeds, overrides=(), noise=None):
    """The jobs of the grid: all ablations with the first seed, then with the next.

    Args:
        configs: list of YAML files, as for `basic.config.load_config`.
        rootpath: folder that holds the collection's folder.
        files: dict of ablations, from `ablation_files`.
        seeds: list of int.
        overrides: key=value strings.
        noise: noise rates, each with its ROOTPATH from `noise_root`; None: the data at `rootpath`.
    Raises:
        ConfigError, DataError: wrong options or data.
    """
    from train import default_run_folder

    base, jobs = load_config(configs, overrides), []
    for seed in tqdm(seeds, desc='configs of every seed', leave=False, disable=None):
        for rate in [None] if noise is None else noise:
            root = rootpath if rate is None else noise_root(rootpath, rate)
            for ablation, path in files.items():
                options = [
                    *without(overrides, keys_of(path), path),
                    f'name={base.name}_{ablation}',
                    f'train.seed={seed}',
                    *([] if rate is None else [f'data.noise={rate:g}']),
                ]
                config = load_config([*configs, path], options)
                words = [word for file in (*configs, path) for word in ('--config', str(file))]
                jobs.append(
                    Job(
                        label=f'{ablation}, seed {seed}'
                        + ('' if rate is None else f', noise {rate:g}'),
                        config=config,
                        folder=default_run_folder(config, root),
                        arguments=[*words, '--rootpath', str(root), *options],
                        alone=alone(path, seed, rate),
                    )
                )
    return jobs


def alone(path, seed, rate):
    """The arguments of this tool that select one run of a grid."""
    name = path.stem if path.parent == ABLATIONS else str(path)
    return (f'--only={name}', f'--seeds={seed}', *(() if rate is None else (f'--noise={rate:g}',)))


def without(overrides, keys, path):
    """The overrides without those of `keys`, which the ablation file at `path` sets.

    Raises:
        ConfigError: an override sets a whole group of which the file sets a part.
    """
    kept = []
    for text in overrides:
        key = text.partition('=')[0]
        if any(name.startswith(f'{key}.') for name in keys):
            raise ConfigError(
                f"option '{text}' sets a group, and {path} sets a part of it: give the keys of"
                ' the group one by one'
            )
        kept += [text] if key not in keys else []
    return kept


def noise_root(rootpath, rate):
    """The ROOTPATH of the demo's corpus with a noise rate."""
    return Path(rootpath) / f'noise_{rate:g}'


def make_noisy_demos(rootpath, config, rates, report):
    """Make the demo's corpora with these noise rates, with the sizes of the one at `rootpath`.

    Raises:
        ValueError: there is no demo at `rootpath`.
    """
    collection = config.data.collection
    for lang in languages(config):
        options = options_there(rootpath, collection, lang)
        if not options:
            raise ValueError(
                f'--noise needs a demo, and {Path(rootpath) / collection} does not exist: make it'
                f' with python -m util.make_demo --rootpath {rootpath} --collection {collection}'
                f' --lang {lang}. For other data, use python -m util.add_noise'
            )
        for rate in rates:
            make_demo(
                root=noise_root(rootpath, rate),
                collection=collection,
                lang=lang,
                report=report,
                encoders=False,  # those of the first corpus are used
                **{**options, 'noise': rate},
            )


# ----------------------------------------------------------------------------------------- the runs


@contextmanager
def open_locked(path):
    """Open and lock a run's output file; yields None if another process has locked it.

    The lock holds until every process that inherits the open file has closed it.

    Raises:
        OSError: the file cannot be opened, or is a symbolic link.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(open_no_link(path, os.O_WRONLY | os.O_APPEND), 'ab') as file:
        end = time.monotonic() + PROBE
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > end:
                    yield None
                    return
            time.sleep(0.02)  # another process may be in `is_locked`
        yield file


def is_locked(path):
    """Whether a run has locked its output file.

    The check takes a shared lock for a moment; `open_locked` waits for that.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError:  # no such file, or not a file of ours
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def missing_demos(rootpath, config, rates):
    """The noise rates whose corpus does not exist or is not finished."""
    missing = []
    for rate in rates:
        manifest = read_manifest(noise_root(rootpath, rate) / config.data.collection)
        made = manifest and not manifest['unfinished'] and manifest['noise']
        if not made or any(made.get(lang) != rate for lang in languages(config)):
            missing.append(rate)
    return missing


class Grid:
    """Runs jobs, several in parallel.

    Args:
        jobs: list of Job.
        devices: the device of each parallel run, such as ['0', '1'] or ['cpu', 'cpu'].
        report: function that is called with each message.
    """

    def __init__(self, jobs, devices, report=print):
        self.waiting = [
            job
            for job in tqdm(jobs, desc='looking at runs', leave=False, disable=None)
            if job.state()[0] != DONE
        ]
        self.total, self.finished, self.failed = len(jobs), len(jobs) - len(self.waiting), 0
        self.stopped = None  # the number of the signal that stops the grid
        self.slots, self.free, self.running, self.seconds, self.report = (
            len(devices),
            list(devices),
            {},
            [],
            report,
        )
        from basic.runtime import cpu_count

        threads = int(os.environ.get('OMP_NUM_THREADS') or cpu_count())
        self.environment = {**os.environ, 'OMP_NUM_THREADS': str(max(1, threads // self.slots))}

    def run(self):
        """Run all jobs, or until a signal stops the grid; returns the exit status."""
        before = {
            number: signal.signal(number, self.interrupt) for number in (signal.SIGINT, *STOPPING)
        }
        try:
            while (self.waiting or self.running) and not self.stopped:
                while self.waiting and self.free and not self.stopped:
                    self.start(self.waiting.pop(0))
                time.sleep(POLL)
                for process in [process for process in self.running if process.poll() is not None]:
                    self.end(process)
        finally:
            self.stop()
            for number, handler in before.items():
                signal.signal(number, handler)
        return 128 + self.stopped if self.stopped else 1 if self.failed else 0

    def interrupt(self, number, _):
        """Signal handler: stop the grid; a second signal stops it at once."""
        if self.stopped:
            raise KeyboardInterrupt
        self.stopped = number

    def start(self, job):
        """Start a job, or report why it cannot start."""
        state, detail = job.content()
        if state == DONE:
            self.finished += 1
            return
        if state == OTHER:
            self.refuse(job, other_config(job, detail))
            return
        try:
            with open_locked(job.output) as file:
                if file is None:
                    self.refuse(job, f'another process is running it, see {job.output}')
                    return
                now = job.content()[0]  # another process may have finished it meanwhile
                if now in (DONE, OTHER):
                    return self.start(job)
                self.launch(job, file, resume=now == UNFINISHED)
        except OSError as error:
            self.refuse(job, error)

    def refuse(self, job, reason):
        """Report a job that cannot run, and count it as failed."""
        self.failed += 1
        self.report(f'NOT RUN {job.label}: {reason}')

    def launch(self, job, file, resume):
        """Start a job with its open, locked output file, which the process inherits."""
        more = ['--resume'] if resume else ['--overwrite']  # there is no run to lose
        file.truncate(0)
        device = self.free[0]
        process = subprocess.Popen(
            [
                sys.executable,
                str(REPOSITORY / 'train.py'),
                *job.arguments,
                '--device',
                device,
                *more,
            ],
            stdout=file,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=self.environment,
            start_new_session=True,  # Ctrl-C reaches it only through `stop`
        )
        self.free.remove(device)
        self.running[process] = (job, device, time.monotonic())

    def end(self, process):
        """Report a run that has ended, and free its device."""
        from basic.logger import duration

        job, device, started = self.running.pop(process)
        self.free.append(device)
        if process.returncode == 0 and job.content()[0] == DONE:
            self.finished += 1
            self.seconds.append(time.monotonic() - started)
            self.report(
                f'{job.label}: {result(job)}, {duration(self.seconds[-1])}; {self.outlook()}'
            )
            return
        self.failed += 1
        lines = job.output.read_text(encoding='utf-8', errors='replace').splitlines()[-LAST_LINES:]
        self.report(
            '\n'.join(
                [
                    (
                        f'FAILED {job.label} ({ending(process.returncode)}); its output: '
                        f'{job.output}'
                    ),
                    *(f'    {line}' for line in lines),
                    f'    {self.outlook()}',
                ]
            )
        )

    def outlook(self):
        """How many runs are finished, and how long the others may take."""
        left = self.total - self.finished - self.failed
        text = f'{self.finished} of {self.total} finished' + (
            f', {self.failed} failed' if self.failed else ''
        )
        text += f', {left} left' if left else ''
        if left and self.seconds and not self.stopped:
            from basic.logger import duration

            mean = sum(self.seconds) / len(self.seconds)
            text += f', about {duration(mean * left / min(self.slots, left))}'
        return text

    def stop(self):
        """Stop all runs as Ctrl-C does, and kill those that do not stop in time."""
        try:
            for process in self.running:
                process.send_signal(signal.SIGINT)  # nothing, for one that has ended
            end = time.monotonic() + GRACE
            for process in self.running:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=max(0, end - time.monotonic()))
        finally:
            for process in self.running:
                with suppress(ProcessLookupError):  # the group includes its workers
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            self.running.clear()


def other_config(job, detail):
    """What to say about a job whose folder has a run of another config."""
    return (
        f'{job.folder} has a run of another config ({detail}): give its options, give'
        ' name=NAME, or delete the folder'
    )


def submit(jobs, args, words, report=print):
    """Train the runs that are not finished as jobs of a cluster; returns the exit status."""
    states = [job.state() for job in jobs]
    finished = [state for state, _ in states].count(DONE)
    todo = [job for job, (state, _) in zip(jobs, states) if state in (NEW, UNFINISHED)]
    report(f'{len(jobs)} runs, {finished} already finished')
    for job, (state, detail) in zip(jobs, states):
        if state == OTHER:
            report(f'NOT RUN {job.label}: {other_config(job, detail)}')
        elif state == BUSY:
            report(f'NOT RUN {job.label}: another process is running it, see {job.output}')
    devices, tasks = args.device or [], []
    for number, job in enumerate(todo):
        more = [*job.alone, '--jobs=1']
        more += [f'--device={devices[number % len(devices)]}'] if devices else []
        tasks.append(cluster.Task(job.label, cluster.command_of('ablate', words, more)))
    if tasks:
        at_once = args.jobs or (len(devices) or 1 if args.cluster == 'local' else None)
        cluster.run(
            'ablate', tasks, args, at_once=at_once, result=lambda i: result(todo[i]), words=words
        )
    finished += sum(job.content()[0] == DONE for job in todo)
    left = len(jobs) - finished
    report(f'{finished} of {len(jobs)} finished' + f', {left} not, see above' * (left > 0))
    return 1 if left else 0


def ending(status):
    """The meaning of a run's exit status, see train.py."""
    number = -status if status < 0 else status - 128
    try:
        name = signal.Signals(number).name
    except ValueError:
        return f'exit status {status}' + (': out of memory' if status == OUT_OF_MEMORY else '')
    if status > 0:
        return f'exit status {status}: stopped by {name}'
    if number == signal.SIGKILL:
        return (
            f'killed ({name}), probably because memory ran out: try fewer --jobs or a smaller '
            'compute.micro_batch'
        )
    return f'killed ({name})'


def result(job):
    """The result of a finished run, in a few words."""
    from util.table.runs import read_runs

    (run,) = read_runs([job.folder])
    return (
        f'SumR {run.value("SumR", run.weight):.1f} (w = {run.weight:g}, epoch'
        f' {run.value("epoch", run.weight)})'
    )


# --------------------------------------------------------------------------------- the command line


def numbers(kind):
    """A parser of '1,2,3'."""

    def parse(text):
        values = [kind(word) for word in text.split(',')]
        if len(set(values)) < len(values):
            raise ValueError
        return values

    parse.__name__ = f'list of different {"whole " * (kind is int)}numbers (such as 1,2)'
    return parse


def device_names(text):
    """The list of devices of '0,1' or 'cpu'; None for 'auto'."""
    names = text.split(',')
    if not re.fullmatch('auto|cpu|[0-9]+(,[0-9]+)*', text) or len(set(names)) < len(names):
        raise argparse.ArgumentTypeError(
            f"'{text}': expected cpu, or different indices of GPUs, such as 0,1 (use --jobs N "
            'for several runs on each)'
        )
    return None if text == 'auto' else names


def first_device():
    """The first GPU that torch sees, or the CPU."""
    import torch

    return '0' if torch.cuda.is_available() else 'cpu'


def parse_arguments(argv=None):
    parser = argparse.ArgumentParser(
        prog='python -m util.ablate',
        description=__doc__.splitlines()[0],
        epilog=(
            'The options are those of basic/config.py; name=NAME replaces <config> in the names '
            'of the run folders. The values of an ablation replace those of the options.'
        ),
    )
    parser.add_argument(
        '--config',
        required=True,
        action='append',
        metavar='FILE',
        help='as for train.py, such as configs/vatex.yaml',
    )
    parser.add_argument(
        '--rootpath',
        required=True,
        metavar='ROOT',
        help="folder that holds the collections' folders",
    )
    parser.add_argument(
        '--only',
        type=lambda text: text.split(','),
        metavar='NAME,...',
        help=(
            'names in configs/ablation/, or paths of .yaml files (default: all of'
            ' configs/ablation/)'
        ),
    )
    parser.add_argument(
        '--seeds', type=numbers(int), default=[1, 2, 3], metavar='N,...', help='default: 1,2,3'
    )
    parser.add_argument(
        '--jobs',
        type=int,
        metavar='N',
        help='parallel runs, which share the CPU cores (default: one per GPU, or one)',
    )
    parser.add_argument(
        '--device',
        '--gpus',
        dest='device',
        type=device_names,
        metavar='D',
        help=(
            'cpu, or indices of GPUs, such as 0,1, with one run on each at a time (default: the'
            ' first GPU, or the CPU if there is none)'
        ),
    )
    parser.add_argument(
        '--noise',
        type=numbers(float),
        metavar='RATE,...',
        help='for the demo: noise rates; the corpus of each is made if it does not exist',
    )
    parser.add_argument(
        '--list', action='store_true', help='show the state of all runs, and start none'
    )
    cluster.add_arguments(parser)
    parser.add_argument('overrides', nargs='*', metavar='key=value', help='options of all runs')
    args = parser.parse_intermixed_args(argv)
    cluster.check_arguments(args)
    if args.jobs is not None and args.jobs < 1:
        parser.error('--jobs: expected at least 1')
    if args.noise and not all(0 <= rate <= 1 for rate in args.noise):
        parser.error('--noise: expected rates from 0 to 1')
    return args


def say(line):
    print(line, flush=True)


@command('ablate')
def main(argv=None):
    """The command line; returns the exit status."""
    words = sys.argv[1:] if argv is None else list(argv)
    args = parse_arguments(words)
    files = ablation_files(args.only)
    config = load_config(args.config, args.overrides)
    # On stderr, because programs may read the table of --list.
    print('loading PyTorch ...', file=sys.stderr, flush=True)
    devices = args.device or ['' if args.cluster else first_device()]
    devices = [devices[i % len(devices)] for i in range(args.jobs or len(devices))]
    missing = []
    if args.noise and args.list:
        missing = missing_demos(args.rootpath, config, args.noise)
    elif args.noise:
        make_noisy_demos(args.rootpath, config, args.noise, say)
    noise = [rate for rate in args.noise if rate not in missing] if args.noise else None
    jobs = make_grid(
        args.config,
        args.rootpath,
        files=files,
        seeds=args.seeds,
        overrides=args.overrides,
        noise=noise,
    )
    if args.list:
        show(jobs)
        runs = len(files) * len(args.seeds)
        for rate in missing:
            say(
                f'noise {rate:g}: no corpus yet, {runs} run{"s" * (runs > 1)}  '
                f'{noise_root(args.rootpath, rate)}'
            )
        return 0
    if args.cluster:
        return submit(jobs, args, words, report=say)
    grid = Grid(jobs, devices, report=say)
    say(
        f'{len(jobs)} runs, {grid.finished} already finished; {len(devices)} at a time on '
        f'{", ".join(devices)}'
    )
    status = grid.run()
    say(
        {0: 'all runs are finished', 1: f'{grid.failed} run(s) are not finished, see above'}.get(
            status, 'stopped; the same command resumes'
        )
        + f': {grid.outlook()}'
    )
    return status


def show(jobs):
    """Print a line for each job: its state and its folder."""
    width = max((len(job.label) for job in jobs), default=0)
    for job in jobs:
        state, detail = job.state()
        say(
            f'{job.label:<{width}}  {state:<{len(OTHER)}}  {job.folder}'
            + (f'  ({detail})' if detail else '')
        )


if __name__ == '__main__':
    sys.exit(main())
