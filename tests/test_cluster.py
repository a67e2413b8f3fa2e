"""Jobs of a cluster: submitit's local executor, and a real Slurm where one is installed."""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from basic.errors import ConfigError, DataError
from util import cluster
from util.cluster import Part, Task, command_of, run, slurm_options

pytest.importorskip('submitit', reason='util/requirements-cluster.txt')
REPOSITORY = Path(__file__).resolve().parent.parent
UPPER = "tr '[:lower:]' '[:upper:]'"
SLURM = shutil.which('sinfo') and not subprocess.run(['sinfo'], capture_output=True).returncode


def arguments(folder, *words):
    """The arguments of a tool whose ROOT is `folder`."""
    parser = argparse.ArgumentParser()
    parser.add_argument('--rootpath', default=str(folder))
    cluster.add_arguments(parser)
    args = parser.parse_args([str(word) for word in words])
    cluster.check_arguments(args)
    return args


def python(code):
    return [sys.executable, '-S', '-c', code]


def test_jobs_and_their_failures(tmp_path, capfd, monkeypatch):
    monkeypatch.setenv('PYTHONIOENCODING', 'ascii')  # a job shows its command all the same
    tasks = [
        Task('good', python('print(1)  # é')),
        Task('bad', python('print("what went wrong"); raise SystemExit(2)')),
        Task('killed', python('import os; os.kill(os.getpid(), 9)')),
    ]
    args = arguments(tmp_path, '--cluster', 'local')
    assert run('tool', tasks, args, at_once=2, result=lambda i: f'result {i}') == 2
    out = capfd.readouterr().out
    assert '3 jobs on this machine; output: ' in out and 'good: result 0; ' in out
    (failed,) = [line for line in out.splitlines() if line.startswith('FAILED bad')]
    log = Path(failed.partition('its output: ')[2])
    assert 'exit status 2' in failed and 'what went wrong' in log.read_text()
    assert log.parent.parent == tmp_path / 'cluster_logs'
    assert (
        '    what went wrong\n' in out and 'FAILED killed: the process was killed (SIGKILL)' in out
    )


def test_a_job_without_a_result(tmp_path, capfd):
    """The process of submitit itself is killed, as by a scheduler for its memory."""
    tasks = [Task('lost', python('import os; os.kill(os.getppid(), 9)'))]
    assert run('tool', tasks, arguments(tmp_path, '--cluster', 'local')) == 1
    assert 'FAILED lost: ended without a result' in capfd.readouterr().out


def test_the_number_of_jobs_at_a_time(tmp_path):
    log = f'open({str(tmp_path / "log")!r}, "a").write'
    code = f'import time; {log}("begins "); time.sleep(0.5); {log}("ends ")'
    args = arguments(tmp_path, '--cluster', 'local')
    assert run('tool', [Task(str(i), python(code)) for i in range(2)], args, at_once=1) == 0
    assert (tmp_path / 'log').read_text().split() == ['begins', 'ends'] * 2


def test_ctrl_c_stops_the_jobs(tmp_path):
    code = f'import time; open({str(tmp_path / "started")!r}, "w"); time.sleep(60)'
    done = threading.Event()

    def interrupt():
        while not (tmp_path / 'started').exists() and not done.wait(0.1):
            pass
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs ignore it
    thread = threading.Thread(target=interrupt)
    thread.start()
    start = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt) as error:
            run(
                'tool',
                [Task('long', python(code))],
                arguments(tmp_path, '--cluster', 'local'),
                words=['--x'],
            )
    finally:
        done.set()
        thread.join()
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() - start < 30
    assert 'the jobs are cancelled; to continue: ' in error.value.__notes__[0]
    (log,) = tmp_path.glob('cluster_logs/*/*_log.out')
    assert 'Job completed successfully' in log.read_text()  # it has seen its process end


def test_before_the_time_limit_a_job_stops_its_tool(tmp_path):
    """submitit calls `checkpoint` in a signal handler, while the job waits for its tool."""
    part, again = Part(python('import time; time.sleep(60)'), {}, tmp_path / 'stop'), []
    before = signal.signal(signal.SIGUSR1, lambda *_: again.append(part.checkpoint()))
    timer = threading.Timer(0.3, os.kill, [os.getpid(), signal.SIGUSR1])
    start = time.monotonic()
    try:
        timer.start()
        assert part() == -signal.SIGUSR1
    finally:
        timer.join()
        signal.signal(signal.SIGUSR1, before)
    assert again[0].function.words == part.words and time.monotonic() - start < 15


def collection(folder):
    text = folder / 'multi30k/TextData'
    text.mkdir(parents=True)
    lines = [f'v{i}.jpg#enc#0 a text {i}\n' for i in range(5)]
    (text / 'multi30ktrain_enc.caption.txt').write_text(''.join(lines))
    return text


def translate(folder, *more):
    from util.translate.translate import main

    return main(
        [
            *('--config', str(REPOSITORY / 'configs/multi30k.yaml'), '--rootpath', str(folder)),
            *('--engine', 'command', '--command', UPPER, '--back-command', 'cat'),
            *('--splits', 'train', '--part-size', '2', 'data.lang=es', *more),
        ]
    )


def test_shares_that_are_done_are_not_submitted(tmp_path, capfd, monkeypatch):
    text = collection(tmp_path)
    assert translate(tmp_path, '--shards', '3', '--shard', '1') == 1
    assert translate(tmp_path, '--shards', '3', '--shard', '2') == 1
    monkeypatch.chdir(tmp_path)  # a job finds the tool from any folder
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    assert translate(tmp_path, '--shards', '3', '--cluster', 'local') == 0
    out = capfd.readouterr().out
    assert '1 job on this machine' in out and 'shard 0 of 3: done; 1 of 1 ended' in out
    assert '5 captions, ' in out
    made = (text / 'multi30ktrain_google_enc2es2enc.caption.txt').read_text().splitlines()
    assert [line.split(' ', 1)[1] for line in made] == [f'A TEXT {i}' for i in range(5)]
    assert translate(tmp_path, '--shards', '3', '--cluster', 'local') == 0
    assert 'job' not in capfd.readouterr().out


def test_the_command_of_a_job():
    words = ['--cluster', 'slurm', '--shards', '3', 'a=b', '--', 'c=d']
    found = command_of('translate', words, ['--shard', '1'])
    assert found[1:3] == ['-m', 'util.translate']
    assert found[3:] == [*words[:5], '--cluster', 'none', '--shard', '1', '--', 'c=d']


def test_the_jobs_of_a_grid(tmp_path, monkeypatch, capsys):
    """One for each run that is not finished, with the options that select this run alone."""
    from util import ablate

    seen = []
    monkeypatch.setattr(
        cluster, 'run', lambda tool, tasks, args, **more: seen.append((tasks, more))
    )
    words = ['--config', str(REPOSITORY / 'configs/multi30k.yaml'), '--rootpath', str(tmp_path)]
    words += ['--only', 'full,no_adversary', '--seeds', '1,2', '--cluster', 'slurm', 'data.lang=de']
    other = tmp_path / 'multi30k/runs/multi30k_full_de/seed_2'
    other.mkdir(parents=True)
    (other / 'log.jsonl').write_text('')
    assert ablate.main([*words, '--jobs', '5']) == 1
    ((tasks, more),) = seen
    assert more['at_once'] == 5
    assert [task.label for task in tasks] == [
        'full, seed 1',
        'no_adversary, seed 1',
        'no_adversary, seed 2',
    ]
    args = ablate.parse_arguments(tasks[2].words[3:])
    assert (args.only, args.seeds, args.cluster, args.jobs) == (['no_adversary'], [2], None, 1)
    assert 'NOT RUN full, seed 2: ' in capsys.readouterr().out


def test_slurm_options():
    found = slurm_options(
        ['partition=gpu', 'time=90', 'gpus=1', 'setup=a', 'setup=b c', 'mem_gb=8']
    )
    assert found['partition'] == 'gpu' and found['time'] == 90 and found['gpus_per_node'] == 1
    assert found['setup'] == ['a', 'b c'] and found['mem'] == '8GB'
    assert slurm_options([])['time'] == 24 * 60
    for word, problem in (
        ('partitoin=x', "did you mean 'partition'"),
        ('partition', 'expected KEY=VALUE'),
        ('time=1-00:00', 'whole minutes'),
        ('nodes=2', 'they are account'),
    ):
        with pytest.raises(ConfigError, match=problem):
            slurm_options([word])


@pytest.mark.parametrize(
    'words, problem',
    [
        (['--cluster-option', 'time=3'], 'need --cluster'),
        (['--cluster', 'local', '--cluster-option', 'time=3'], 'is for --cluster slurm'),
    ],
)
def test_options_that_do_not_fit(words, problem, tmp_path):
    with pytest.raises(ConfigError, match=problem):
        arguments(tmp_path, *words)


def test_shards_and_devices_that_do_not_fit(tmp_path, capsys):
    assert translate(tmp_path, '--cluster', 'local', '--shards', '2', '--shard', '1') == 2
    assert 'omit --shard' in capsys.readouterr().err
    assert translate(tmp_path, '--cluster', 'slurm', '--device', '0,1') == 2
    assert 'gpus_per_node' in capsys.readouterr().err


def test_submitit_is_asked_for(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, 'submitit', None)
    with pytest.raises(ConfigError, match='requirements-cluster.txt'):
        arguments(tmp_path, '--cluster', 'local')


@pytest.mark.skipif(shutil.which('srun') is not None, reason='Slurm is installed')
def test_no_slurm_here(tmp_path):
    with pytest.raises(DataError, match='there is no srun here'):
        run('tool', [Task('a', python(''))], arguments(tmp_path, '--cluster', 'slurm'))


@pytest.mark.skipif(not SLURM, reason='no Slurm runs here')
def test_slurm(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(cluster, 'QUEUE', 1)
    tasks = [
        Task('good', python('print(1)')),
        Task('bad', python('print("what went wrong"); raise SystemExit(2)')),
        Task('lost', python('import os; os.kill(os.getppid(), 9)')),
    ]
    args = arguments(tmp_path, '--cluster', 'slurm', '--cluster-option', 'time=5')
    assert run('tool', tasks, args, result=lambda i: f'result {i}') == 2
    out = capfd.readouterr().out
    assert 'good: result 0; ' in out and 'FAILED bad: exit status 2' in out
    assert '--signal=USR1@90' in next(tmp_path.glob('*/*/*_submission.sh')).read_text()
    assert '    what went wrong\n' in out and 'FAILED lost: ended without a result' in out
