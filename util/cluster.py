"""Run parts of a tool's work as jobs, on this machine or on a Slurm cluster, through submitit.

A job runs the tool itself with the options of its part, such as `--shards 8 --shard 3`. So what
holds for one process of a tool, also holds for its jobs: locks, resuming, errors. The process that
submits the jobs waits for them, and cancels them when it is stopped.
"""

import difflib
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from basic.command import killed, typed
from basic.errors import ConfigError, DataError

REPOSITORY = Path(__file__).resolve().parent.parent
HOURS = 24  # time limit of a job on Slurm, if none is given
POLL = 0.5  # seconds between two looks for results
QUEUE = 10  # seconds between two looks at Slurm's queue
GRACE = 25  # seconds that a stopped job has to end
LAST_LINES = 12  # of a failed job's output that are shown
# Runs a module of this checkout from anywhere. In PYTHONPATH its path could not hold a colon.
FIND = (
    'import runpy, sys; sys.path.insert(0, sys.argv.pop(1));'
    ' runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)'
)
LISTS = ('setup', 'teardown', 'srun_args')
OURS = ('nodes', 'ntasks_per_node', 'array_parallelism', 'stderr_to_stdout', 'num_gpus', 'use_srun')
GENERAL = {'name': 'job_name', 'timeout_min': 'time', 'mem_gb': 'mem', 'gpus': 'gpus_per_node'}


@dataclass
class Task:
    """A job: `label` to print, and the `words` of its command."""

    label: str
    words: list


# ------------------------------------------------------------------------------------ the arguments


def add_arguments(parser):
    """Add --cluster and its options to a tool's parser."""
    add = parser.add_argument_group('cluster').add_argument
    add(
        '--cluster',
        choices=('local', 'slurm', 'none'),
        help='run each part as a job: on this machine, or on Slurm (default: none)',
    )
    add(
        '--cluster-option',
        action='append',
        default=[],
        metavar='KEY=VALUE',
        help=f"of submitit's Slurm jobs, such as partition=gpu, time=120 (minutes; default: {HOURS}"
        ' h), gpus_per_node=1, cpus_per_task=8, mem=32GB; can be repeated',
    )
    add(
        '--cluster-logs',
        metavar='DIR',
        help="folder for the jobs' output, which all machines see (default: cluster_logs in"
        ' ROOT, or beside --output)',
    )


def check_arguments(args):
    """Raise ConfigError for cluster options that are wrong; submitit is needed for --cluster.

    `args.cluster` is None if there is nothing to submit, also for the jobs themselves.
    """
    if args.cluster is None and (args.cluster_option or args.cluster_logs):
        raise ConfigError('--cluster-option and --cluster-logs need --cluster local or slurm')
    args.cluster = None if args.cluster == 'none' else args.cluster
    if not args.cluster:
        return
    try:
        import submitit  # noqa: F401
    except ImportError:
        raise ConfigError(
            '--cluster submits jobs with submitit: pip install -r util/requirements-cluster.txt'
        ) from None
    if args.cluster == 'local' and args.cluster_option:
        raise ConfigError('--cluster-option is for --cluster slurm')
    if args.cluster == 'slurm':
        slurm_options(args.cluster_option)


def check_shards(args, device):
    """Raise ConfigError for --shard beside --cluster, and for several devices on Slurm."""
    if args.cluster and args.shard:
        raise ConfigError('--cluster runs all shards: omit --shard')
    if args.cluster == 'slurm' and ',' in device:
        raise ConfigError(
            f'--device {device}: expected one; Slurm gives each job its GPUs'
            ' (--cluster-option gpus_per_node=1)'
        )


def slurm_options(words):
    """dict of the parameters of submitit's SlurmExecutor.

    Args:
        words: such as ['partition=gpu', 'time=120'].
    Raises:
        ConfigError: an unknown name, or a wrong value.
    """
    from submitit import SlurmExecutor

    known = sorted(SlurmExecutor._valid_parameters() - {*OURS, 'additional_parameters'})
    found = {'time': HOURS * 60, 'job_name': 'nrccr'}
    for word in words:
        key, given, value = word.partition('=')
        key = key.removeprefix('slurm_')
        key = GENERAL.get(key, key)
        if not given or not value or key not in known:
            near = difflib.get_close_matches(key, known, 1)
            raise ConfigError(
                f"--cluster-option {word}: expected KEY=VALUE with a KEY of submitit's Slurm jobs"
                + (f": did you mean '{near[0]}'?" if near and near[0] != key else '')
                + f'\n  they are {", ".join(known)}'
            )
        if key in LISTS:
            found.setdefault(key, []).append(value)
            continue
        if key == 'time' and not re.fullmatch('[1-9][0-9]*', value):
            raise ConfigError(f'--cluster-option {word}: expected whole minutes, such as time=120')
        if key == 'mem' and value.isdigit():
            value = f'{value}GB'
        found[key] = int(value) if value.isdigit() else value == 'true' or value
    return found


def logs_folder(args, tool):
    """A new folder for the output of jobs."""
    place = args.rootpath or os.path.dirname(os.path.abspath(args.output))
    base = Path(args.cluster_logs or Path(place) / 'cluster_logs')
    name = f'{tool}_{time.strftime("%Y%m%d_%H%M%S")}_{os.getpid()}'
    return (base / name).absolute()


def share_tasks(tool, args, words, shares):
    """The Tasks of some shares of `args.shards`; they take turns with the devices of --device.

    Args:
        tool: name in `util`; words: its command line; shares: numbers from 0.
    """
    devices = args.device.split(',')
    tasks = []
    for share in shares:
        more = ['--device', devices[share % len(devices)]]
        more += ['--shard', str(share)] if args.shards > 1 else []
        tasks.append(Task(f'shard {share} of {args.shards}', command_of(tool, words, more)))
    return tasks


def command_of(tool, words, more):
    """The command of a job: the tool's command line with other options.

    Args:
        more: options; of an option that is given twice, the last one counts.
    """
    end = words.index('--') if '--' in words else len(words)
    words = [*words[:end], '--cluster', 'none', *more, *words[end:]]
    return [sys.executable, '-m', f'util.{tool}', *words]


# ------------------------------------------------------------------------------- what runs in a job


class Part:
    """The function of a job: it runs the tool in a process of its own.

    Args:
        words: the whole command, such as `python -m util.<tool> ...`.
        environment: dict of variables to set; None deletes one.
        stop: file whose existence tells a job on this machine to stop; None on Slurm.
    """

    def __init__(self, words, environment, stop):
        self.words, self.environment, self.stop = words, environment, stop

    def __call__(self):
        environment = {**os.environ, **self.environment}
        environment = {key: value for key, value in environment.items() if value is not None}
        sys.stdout.reconfigure(errors='backslashreplace')  # a path may hold what LANG=C has not
        print('+', *self.words, flush=True)
        words = self.words
        if words[1] == '-m':
            words = [words[0], '-P', '-c', FIND, str(REPOSITORY), *words[2:]]
        self.process = subprocess.Popen(
            words,
            env=environment,
            stdin=subprocess.DEVNULL,
            # Ctrl-C in the terminal reaches a local job only through `stop`.
            start_new_session=self.stop is not None,
        )
        while True:
            try:
                # Not longer: `end` waits too, perhaps in a signal handler within this call.
                status = self.process.wait(POLL)
                break
            except subprocess.TimeoutExpired:
                if self.stop and self.stop.exists():
                    self.end(signal.SIGTERM)
        if status < 0:
            time.sleep(1)  # a signal to the whole job may be about to reach this process
        return status

    def end(self, number):
        """Stop the tool, at first gently."""
        self.process.send_signal(number)
        try:
            self.process.wait(GRACE)
        except subprocess.TimeoutExpired:
            self.process.kill()

    def checkpoint(self):
        """submitit calls this before the time limit or a preemption, and starts the job again."""
        from submitit.helpers import DelayedSubmission

        try:
            self.process.wait(GRACE if self.stop is None else 0)  # Slurm has told the tool as well
        except subprocess.TimeoutExpired:
            self.end(signal.SIGUSR1)
        return DelayedSubmission(Part(self.words, self.environment, self.stop))


# ------------------------------------------------------------------------------------- the waiting


def run(tool, tasks, args, *, at_once=None, allowed=(0,), result=lambda index: '', words=None):
    """Run tasks as jobs, and wait for them; a job that fails does not stop the others.

    Args:
        tool: name in `util`; tasks: list of Task; args: of its command line, after
            `check_arguments`.
        at_once: number of jobs that run at a time; None: all.
        allowed: exit statuses that are no failure.
        result: function of a task's index, the text to print when it has ended well.
        words: of this command line, for the advice how to continue.
    Returns:
        number of jobs that failed.
    Raises:
        DataError: the jobs cannot be submitted.
    """
    from basic.logger import duration

    folder = logs_folder(args, tool)
    folder.mkdir(parents=True)
    many = f'{len(tasks)} job{"s" * (len(tasks) > 1)}'
    say(f'{many} on {"this machine" if args.cluster == "local" else "Slurm"}; output: {folder}')
    kind = Local if args.cluster == 'local' else Slurm
    jobs = kind(tasks, args, folder, at_once or len(tasks))
    started, ended, failed = time.monotonic(), 0, 0
    try:
        for index, status in jobs.ended():
            ended += 1
            head = f'{tasks[index].label}: '
            passed = duration(time.monotonic() - started)
            if status in allowed:
                text = result(index) or 'done'
                say(f'{head}{text}; {ended} of {len(tasks)} ended after {passed}')
            else:
                failed += 1
                log = jobs.log(index)
                say(f'FAILED {head}{meaning(status)}; its output: {log}')
                for line in last_lines(log):
                    say(f'    {line}')
    except BaseException as error:
        say('cancelling the jobs')
        with no_interrupt():  # an impatient second Ctrl-C would leave jobs
            jobs.cancel()
        if isinstance(error, KeyboardInterrupt):
            error.add_note(f'the jobs are cancelled; to continue: {typed(words or [])}')
        raise
    return failed


@contextmanager
def no_interrupt():
    """Ignore Ctrl-C in this process, and in those that it starts here."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def say(line):
    print(line, flush=True)


def meaning(status):
    """What the exit status of a job means."""
    if status is None:
        return 'ended without a result: cancelled, over its time or memory, or its machine failed'
    return killed('the process', -status) if status < 0 else f'exit status {status}'


def last_lines(log):
    """The last lines that a tool wrote to a job's output."""
    try:
        text = log.read_text(encoding='utf-8', errors='replace')
    except OSError:
        return ['(no output yet)']
    return [line for line in text.splitlines() if not line.startswith('submitit ')][-LAST_LINES:]


class Jobs:
    """Jobs of one kind; `jobs` has those that are submitted, by their index.

    Args:
        tasks, args: as for `run`; folder: for the output; at_once: jobs at a time.
    """

    def __init__(self, tasks, args, folder, at_once):
        import cloudpickle  # submitit's

        self.folder, self.at_once, self.total, self.jobs = folder, at_once, len(tasks), {}
        # A job's Python need not find this module; and the tools stop at SIGUSR1, not at USR2.
        cloudpickle.register_pickle_by_value(sys.modules[Part.__module__])
        python = ['env', 'SUBMITIT_PREEMPT_SIGNAL=USR1', sys.executable]
        self.executor = self.make_executor(shlex.join(python), args)
        self.parts = [self.part(task.words) for task in tasks]

    def part(self, words):
        return Part(words, {}, None)

    def log(self, index):
        return self.jobs[index].paths.stdout

    def ended(self):
        """Submit the jobs, and yield (index, exit status) of each that ends; None: no result."""
        waiting, running = list(range(len(self.parts))), []
        while waiting or running:
            free = self.at_once - len(running)
            new, waiting = waiting[:free], waiting[free:]
            self.submit(new)
            running += new
            time.sleep(POLL)
            gone = self.gone(running)
            for index in list(running):
                job = self.jobs[index]
                there = job.paths.result_pickle.exists()
                if there or index in gone:
                    running.remove(index)
                    well = there and job.exception() is None
                    yield index, job.result() if well else None


class Local(Jobs):
    """Jobs on this machine, which share its CPU cores."""

    def make_executor(self, python, args):
        from submitit import LocalExecutor

        executor = LocalExecutor(self.folder, python=python)
        executor.update_parameters(timeout_min=10 * 365 * 24 * 60, stderr_to_stdout=True)
        return executor

    def part(self, words):
        from basic.runtime import cpu_count

        threads = int(os.environ.get('OMP_NUM_THREADS') or cpu_count())
        environment = {
            'OMP_NUM_THREADS': str(max(1, threads // self.at_once)),
            'CUDA_VISIBLE_DEVICES': os.environ.get('CUDA_VISIBLE_DEVICES'),  # submitit hides all
        }
        return Part(words, environment, self.folder / 'stop')

    def submit(self, indices):
        # A Ctrl-C in the terminal goes to all processes in the foreground: `cancel` tells the jobs.
        with no_interrupt():
            for index in indices:
                self.jobs[index] = self.executor.submit(self.parts[index])

    def gone(self, running):
        return {index for index in running if self.jobs[index].done()}

    def cancel(self):
        (self.folder / 'stop').touch()
        end = time.monotonic() + GRACE + 5
        while time.monotonic() < end and not all(job.done() for job in self.jobs.values()):
            time.sleep(POLL)


class Slurm(Jobs):
    """Jobs of a Slurm cluster, submitted as one array."""

    def make_executor(self, python, args):
        from submitit import SlurmExecutor

        try:
            executor = SlurmExecutor(self.folder, python=python)
        except RuntimeError:
            raise DataError(
                '--cluster slurm: there is no srun here; use a machine from which Slurm jobs can'
                ' be submitted'
            ) from None
        options = slurm_options(args.cluster_option)
        executor.update_parameters(
            array_parallelism=self.at_once,
            stderr_to_stdout=True,
            additional_parameters={'signal': f'USR1@{options.get("signal_delay_s", 90)}'},
            **options,
        )
        self.at_once = self.total  # Slurm itself sees to the number that run at a time
        self.looked, self.absent, self.reasons = time.monotonic(), set(), set()
        return executor

    def submit(self, indices):
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        if not indices:
            return
        try:
            jobs = self.executor.submit_array([self.parts[index] for index in indices])
        except (FailedJobError, FailedSubmissionError, OSError) as error:
            raise DataError(f'Slurm does not accept the jobs: {error}') from None
        self.jobs.update(zip(indices, jobs))

    def gone(self, running):
        """The jobs that have left Slurm's queue: seen twice, as results may come late."""
        if time.monotonic() < self.looked + QUEUE:
            return set()
        self.looked = time.monotonic()
        words = ['squeue', '--noheader', '--array', f'--user={os.getuid()}', '--format=%i|%T|%r']
        told = subprocess.run(words, capture_output=True, text=True)
        if told.returncode:  # the controller is busy
            return set()
        queue = {id_: more for id_, *more in (line.split('|') for line in told.stdout.splitlines())}
        states = {index: queue.get(self.jobs[index].job_id) for index in running}
        self.show_reasons(states.values())
        absent = {index for index, state in states.items() if state is None}
        before, self.absent = self.absent, absent
        return absent & before

    def show_reasons(self, states):
        """Print why jobs wait, each reason once."""
        pending = [state[1] for state in states if state and state[0] == 'PENDING']
        for reason in {*pending} - self.reasons - {'None', 'JobArrayTaskLimit'}:
            self.reasons.add(reason)
            count = pending.count(reason)
            say(f'{count} job{"s" * (count > 1)} waiting in the queue ({reason})')

    def cancel(self):
        ids = sorted({job.job_id.partition('_')[0] for job in self.jobs.values()})
        if ids:
            subprocess.run(['scancel', *ids])
