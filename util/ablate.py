"""Train a grid of ablations and seeds, each run an ordinary run of train.py; go on where it was stopped.

    python -m util.ablate --config configs/vatex.yaml --rootpath ROOT [--only full,no_adversary] [--seeds 1,2,3]
                          [--jobs N] [--gpus 0,1] [--noise 0,0.2,0.4] [--list] [key=value ...]

An ablation is a file of configs/ablation/, or a file of your own, laid over --config and over the options, which are
those of the whole grid; its run folders are ROOT/<collection>/runs/<config>_<ablation>_<lang>/seed_<n>, and what a run
prints goes to seed_<n>.out beside it. A run
that is finished is skipped, an unfinished one goes on after its last epoch. A folder that holds a run of another
config is left as it is, and named: the same command always means the same results. Stopped by Ctrl-C, the grid stops
its runs; a run that fails shows its last lines, and the others go on. With --noise, for the demo, each rate has a
corpus of its own, ROOT/noise_<rate>.

Exit status: 0: every run of the grid is finished; 1: some are not; 2: the command is wrong; 130: stopped.
"""
import argparse
import fcntl
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from basic.checkpoint import BEST, LAST
from basic.config import Config, ConfigError, config_to_dict, keys_of, load_config
from basic.foreign import read_yaml
from basic.logger import CONFIG, LOG, METRICS, RUN_FILES, config_changes, duration, is_trained
from basic.runtime import cpu_count
from train import default_run_folder
from util.make_demo import make_demo, options_there
from util.table_runs import NO_DIFFERENCE, read_runs

REPOSITORY = Path(__file__).resolve().parent.parent
ABLATIONS = REPOSITORY / 'configs' / 'ablation'
DONE, UNFINISHED, NEW, OTHER, BUSY = 'finished', 'unfinished', 'to be run', 'another config', 'running'
NO_EFFECT = tuple(key for key in NO_DIFFERENCE if key != 'train.seed')   # may differ between the runs of a grid
POLL = 0.2                               # seconds between two looks at the runs
GRACE = 20                               # seconds that runs have to stop in
LAST_LINES = 12                          # of a failed run's output


@dataclass
class Job:
    """One run of the grid.

    Attributes:
        label: for people, such as 'no_adversary, seed 2'.
        config: resolved.
        folder: the run folder.
        arguments: of train.py, but for device and --resume.
    """
    label: str
    config: Config
    folder: Path
    arguments: list[str]

    @property
    def output(self):
        """The file for what the run prints."""
        return self.folder.with_name(f'{self.folder.name}.out')

    def state(self):
        """(state, detail): one of the states above; what differs, for a folder of another config."""
        with open_locked(self.output, make=False) as file:
            return (BUSY, '') if file is None else self.content()

    def content(self):
        """The state of the run folder, whoever is at work in it."""
        present = [name for name in RUN_FILES if (self.folder / name).exists()]
        if CONFIG not in present:        # stopped before it had written its config: nothing of value is lost
            kept = [name for name in present if name in (BEST, LAST, LOG, *METRICS.values())]
            return (OTHER, f'it has {", ".join(kept)}, but no {CONFIG}') if kept else (NEW, '')
        stored = read_yaml(self.folder / CONFIG)
        changes = config_changes(stored, config_to_dict(self.config), NO_EFFECT)
        if changes:
            return OTHER, '; '.join(changes)
        done = METRICS['test'] in present and is_trained(self.folder, self.config)
        return (DONE if done else UNFINISHED), ''


# ------------------------------------------------------------------------------------------------------------- the grid

def ablation_files(names=None):
    """dict name -> file, of names in configs/ablation/ or paths of files; None: all that are there, `full` first.

    Raises:
        ConfigError: no such ablation.
    """
    known = {path.stem: path for path in sorted(ABLATIONS.glob('*.yaml'), key=lambda path: (path.stem != 'full', path))}
    if names is None:
        return known
    files = {}
    for name in names:
        path = Path(name) if name.endswith('.yaml') else known.get(name)
        if path is None or not path.is_file():
            raise ConfigError(f"no ablation '{name}': give the name of one of {ABLATIONS} ({', '.join(known)}), or the "
                              'path of a .yaml file')
        if files.setdefault(path.stem, path) != path:
            raise ConfigError(f"two ablations are called '{path.stem}', {files[path.stem]} and {path}, and would share "
                              'their run folders: rename one')
    return files


def make_grid(configs, rootpath, *, files, seeds, overrides=(), noise=None):
    """The jobs, a seed of every ablation first, then the next seed.

    Args:
        configs: list of YAML files, as for `basic.config.load_config`.
        rootpath: folder that holds the collection's folder.
        files: dict of ablations, from `ablation_files`.
        seeds: list of int.
        overrides: key=value strings.
        noise: rates of noise, each with its ROOTPATH from `noise_root`; None: whatever the data are.
    Raises:
        ConfigError, DataError: something does not fit.
    """
    base, jobs = load_config(configs, overrides), []
    for seed in seeds:
        for rate in [None] if noise is None else noise:
            root = rootpath if rate is None else noise_root(rootpath, rate)
            for ablation, path in files.items():
                options = [*without(overrides, keys_of(path), path), f'name={base.name}_{ablation}',
                           f'train.seed={seed}', *([] if rate is None else [f'data.noise={rate:g}'])]
                config = load_config([*configs, path], options)
                words = [word for file in (*configs, path) for word in ('--config', str(file))]
                jobs.append(Job(label=f'{ablation}, seed {seed}' + ('' if rate is None else f', noise {rate:g}'),
                                config=config, folder=default_run_folder(config, root),
                                arguments=[*words, '--rootpath', str(root), *options]))
    return jobs


def without(overrides, keys, path):
    """The overrides but those of these keys, which the file at `path` sets: an ablation is what it says.

    Raises:
        ConfigError: an override sets a whole group, of which the file sets a part.
    """
    kept = []
    for text in overrides:
        key = text.partition('=')[0]
        if any(name.startswith(f'{key}.') for name in keys):
            raise ConfigError(f"option '{text}' sets a group of which {path} sets a part: give its keys one by one")
        kept += [text] if key not in keys else []
    return kept


def noise_root(rootpath, rate):
    """The ROOTPATH of the demo's corpus at a rate of noise."""
    return Path(rootpath) / f'noise_{rate:g}'


def make_noisy_demos(rootpath, config, rates, report):
    """Make the demo's corpora at these rates, as large as the one at `rootpath`.

    Raises:
        ValueError: there is no demo.
    """
    folder = Path(rootpath) / config.data.collection
    options = options_there(rootpath, config.data.collection, config.data.lang)
    if not options:
        raise ValueError(f'--noise is for the demo, and {folder} is not there: make it, python -m util.make_demo '
                         f'--root {rootpath} --collection {config.data.collection} --lang {config.data.lang}. For '
                         'other data python -m util.add_noise makes files, and prints the options to run with')
    for rate in rates:
        make_demo(root=noise_root(rootpath, rate), collection=config.data.collection, lang=config.data.lang,
                  report=report, encoders=False, **{**options, 'noise': rate})   # encoders: those of the first corpus


# ------------------------------------------------------------------------------------------------------------- the runs

@contextmanager
def open_locked(path, make=True):
    """A run's output file, locked for as long as anything holds it open, the run itself too; None if it is locked.

    Args:
        make: create it; False: where it is not there, nothing is locked, and the file is a stand-in.
    """
    if make:
        path.parent.mkdir(parents=True, exist_ok=True)
    with open(path if make or path.exists() else os.devnull, 'ab' if make else 'rb') as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
            return
        yield file


class Grid:
    """Runs jobs, some at the same time.

    Args:
        jobs: list of Job.
        devices: one for each run at a time, such as ['0', '1'] or ['cpu', 'cpu'].
        report: called with a line of text for whatever happens.
    """

    def __init__(self, jobs, devices, report=print):
        self.waiting = [job for job in jobs if job.state()[0] != DONE]
        self.total, self.finished, self.failed, self.stopped = len(jobs), len(jobs) - len(self.waiting), 0, False
        self.slots, self.free, self.running, self.seconds, self.report = len(devices), list(devices), {}, [], report
        threads = int(os.environ.get('OMP_NUM_THREADS') or cpu_count())
        self.environment = {**os.environ, 'OMP_NUM_THREADS': str(max(1, threads // self.slots))}

    def run(self):
        """Run all that is to be run, or until it is stopped; returns the exit status."""
        try:
            while (self.waiting or self.running) and not self.stopped:
                while self.waiting and self.free and not self.stopped:
                    self.start(self.waiting.pop(0))
                time.sleep(POLL)
                for process in [process for process in self.running if process.poll() is not None]:
                    self.end(process)
        finally:
            self.stop()
        return 130 if self.stopped else 1 if self.failed else 0

    def interrupt(self, *_):
        """Stop as soon as possible; the second time at once. A signal handler."""
        if self.stopped:
            raise KeyboardInterrupt
        self.stopped = True

    def start(self, job):
        """Start a job, or say why not."""
        state, detail = job.state()
        if state == DONE:
            self.finished += 1
            return
        if state in (OTHER, BUSY):
            self.failed += 1
            self.report(f'NOT RUN {job.label}: ' + (
                f'{job.folder} holds a run of another config ({detail}): give the options of that one, or '
                'name=NAME, or delete it' if state == OTHER else f'another process runs it, see {job.output}'))
            return
        more = ['--resume'] if state == UNFINISHED else ['--overwrite']      # there is nothing of value to overwrite
        with open_locked(job.output) as file:
            if file is None:             # another process was faster
                return self.start(job)
            file.truncate(0)
            device = self.free.pop(0)
            process = subprocess.Popen(
                [sys.executable, str(REPOSITORY / 'train.py'), *job.arguments, '--device', device, *more],
                stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=self.environment,
                start_new_session=True)  # so that Ctrl-C does not reach it but through `stop`
        self.running[process] = (job, device, time.monotonic())
        self.report(f'started {job.label} on {device}, output in {job.output}')

    def end(self, process):
        """Report a run that has ended, and free its device."""
        job, device, started = self.running.pop(process)
        self.free.append(device)
        if process.returncode == 0 and job.content()[0] == DONE:
            self.finished += 1
            self.seconds.append(time.monotonic() - started)
            self.report(f'{job.label}: {result(job)}, {duration(self.seconds[-1])}; {self.outlook()}')
            return
        self.failed += 1
        lines = job.output.read_text(encoding='utf-8', errors='replace').splitlines()[-LAST_LINES:]
        self.report('\n'.join([f'FAILED {job.label} (exit status {process.returncode}); all that it printed: '
                               f'{job.output}', *(f'    {line}' for line in lines), f'    {self.outlook()}']))

    def outlook(self):
        """How much is done and how long the rest may take."""
        left = self.total - self.finished - self.failed
        text = f'{self.finished} of {self.total} finished' + (f', {self.failed} failed' if self.failed else '')
        text += f', {left} to go' if left else ''
        if left and self.seconds and not self.stopped:
            mean = sum(self.seconds) / len(self.seconds)
            text += f', about {duration(mean * left / min(self.slots, left))}'
        return text

    def stop(self):
        """Stop what is running: as Ctrl-C would, and if that does not help, at once."""
        try:
            for process in self.running:
                process.send_signal(signal.SIGINT)
            end = time.monotonic() + GRACE
            for process in self.running:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=max(0, end - time.monotonic()))
        finally:
            for process in self.running:
                with suppress(ProcessLookupError):       # its workers are of its group
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            self.running.clear()


def result(job):
    """What a finished run has come to, in a few words."""
    run, = read_runs([job.folder])
    return f'SumR {run.value("SumR", run.weight):.1f} (w = {run.weight:g}, epoch {run.value("epoch", run.weight)})'


# ---------------------------------------------------------------------------------------------------- the command line

def numbers(kind):
    """A parser of '1,2,3'."""
    def parse(text):
        values = [kind(word) for word in text.split(',')]
        if len(set(values)) < len(values):
            raise ValueError
        return values
    parse.__name__ = f'list of different {"whole " * (kind is int)}numbers (such as 1,2)'
    return parse


def parse_arguments(argv=None):
    parser = argparse.ArgumentParser(prog='python -m util.ablate', description=__doc__.splitlines()[0],
                                     epilog='Options are keys of basic/config.py; name=NAME replaces the <config> in '
                                     "the run folders' names, and what an ablation sets wins.")
    parser.add_argument('--config', required=True, action='append', metavar='FILE',
                        help='as for train.py, such as configs/vatex.yaml')
    parser.add_argument('--rootpath', required=True, metavar='ROOT', help="folder that holds the collections' folders")
    parser.add_argument('--only', type=lambda text: text.split(','), metavar='NAME,...',
                        help='names in configs/ablation/, or paths of .yaml files (default: all of configs/ablation/)')
    parser.add_argument('--seeds', type=numbers(int), default=[1, 2, 3], metavar='N,...', help='default: 1,2,3')
    parser.add_argument('--jobs', type=int, metavar='N', help='runs at the same time, which share the CPU cores '
                        '(default: one a GPU, or one)')
    parser.add_argument('--gpus', type=numbers(int), metavar='N,...', help='indices of GPUs, used in turn '
                        '(default: the CPU)')
    parser.add_argument('--noise', type=numbers(float), metavar='RATE,...', help='for the demo: rates of translation '
                        'noise, with a corpus for each, made if need be')
    parser.add_argument('--list', action='store_true', help='show the grid and the state of its runs, and run nothing')
    parser.add_argument('overrides', nargs='*', metavar='key=value', help='options of all runs')
    args = parser.parse_intermixed_args(argv)
    if args.jobs is not None and args.jobs < 1:
        parser.error('--jobs: expected at least 1')
    if args.noise and not all(0 <= rate <= 1 for rate in args.noise):
        parser.error('--noise: expected rates from 0 to 1')
    return args


def say(line):
    print(line, flush=True)


def main(argv=None):
    """The command line; returns the exit status."""
    args = parse_arguments(argv)
    devices = list(map(str, args.gpus)) if args.gpus else ['cpu']
    devices = [devices[i % len(devices)] for i in range(args.jobs or len(devices))]
    try:
        files = ablation_files(args.only)
        if args.noise and not args.list:
            make_noisy_demos(args.rootpath, load_config(args.config, args.overrides), args.noise, say)
        rates = args.noise
        if rates and args.list:          # a look changes nothing: no corpus is made for it
            collection = load_config(args.config, args.overrides).data.collection
            rates = [rate for rate in rates if (noise_root(args.rootpath, rate) / collection).is_dir()]
        jobs = make_grid(args.config, args.rootpath, files=files, seeds=args.seeds, overrides=args.overrides,
                         noise=rates)
    except (ValueError, OSError) as error:
        print(f'ablate: error: {error}', file=sys.stderr)
        return 2
    if args.list:
        width = max((len(job.label) for job in jobs), default=0)
        for job in jobs:
            state, detail = job.state()
            say(f'{job.label:<{width}}  {state:<{len(OTHER)}}  {job.folder}' + (f'  ({detail})' if detail else ''))
        for rate in [rate for rate in args.noise or () if rate not in rates]:
            say(f'noise {rate:g}: corpus not made yet, {len(files) * len(args.seeds)} runs  '
                f'{noise_root(args.rootpath, rate)}')
        return 0
    grid = Grid(jobs, devices, report=say)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, grid.interrupt)
    say(f'{len(jobs)} runs, {grid.finished} of them finished already; {len(devices)} at a time on '
        f'{", ".join(devices)}')
    status = grid.run()
    say({0: 'all runs are finished', 1: f'{grid.failed} run(s) are not finished, see above',
         130: 'stopped; the same command goes on'}[status] + f': {grid.outlook()}')
    return status


if __name__ == '__main__':
    sys.exit(main())
