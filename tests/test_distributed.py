"""Several processes against one: the same figures, terms, gradients and weights, by gloo on the
CPU."""

import json
import os
import socket
import subprocess
import sys
import time
import traceback
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
import yaml
from conftest import NO_DROPOUT
from torch import distributed as torch_distributed
from torch import multiprocessing

import train
from basic import distributed
from basic.checkpoint import LAST, load_checkpoint
from basic.config import config_to_dict, load_config
from basic.distributed import gather, gather_objects, reduce_, share, sum_gradients
from basic.layers import GlobalBatchNorm1d
from basic.merge import flatten
from basic.run_folder import read_log
from loss import build_loss
from model import build_model, build_teacher
from train import build_optimizers, train_step
from util import verify_parity, zero_shot
from util.benchmark import bench

REPOSITORY = Path(__file__).resolve().parent.parent


# Processes are forked from one that has imported this module, with no thread of its own: importing
# torch and transformers in each takes longer than the tests.
os.environ['PYTHONPATH'] = os.pathsep.join(
    [str(REPOSITORY / 'tests'), str(REPOSITORY), *filter(None, [os.environ.get('PYTHONPATH')])]
)
multiprocessing.get_context('forkserver').set_forkserver_preload(['test_distributed'])


def _process(number, count, folder, function, arguments):
    torch.set_num_threads(1)
    torch_distributed.init_process_group(
        'gloo', init_method=f'file://{folder}/meet', rank=number, world_size=count
    )
    try:
        result = function(*arguments)
    except Exception:  # as text: the test shows it
        result = traceback.format_exc()
    torch.save(result, f'{folder}/{number}.pt')
    distributed.stop()


def in_processes(count, folder, function, *arguments):
    """What function(*arguments), a function of this module, returns in each of `count`
    processes."""
    folder.mkdir()
    multiprocessing.start_processes(
        _process, (count, str(folder), function, arguments), nprocs=count, start_method='forkserver'
    )
    results = [torch.load(folder / f'{number}.pt', weights_only=False) for number in range(count)]
    failures = [result for result in results if isinstance(result, str)]
    assert not failures, '\n'.join(failures)
    return results


def test_one_of_several_processes_leaves_at_once(tmp_path):
    program = tmp_path / 'program.py'
    program.write_text(
        'import atexit, sys\n'
        'sys.path.insert(0, sys.argv[2])\n'  # it may hold a colon, as PYTHONPATH may not
        'from basic import distributed\n'
        'class Abort:\n'
        '    def __del__(self, exit=__import__("os")._exit):\n'
        '        exit(134)  # what a thread of gloo did while the interpreter was taken apart\n'
        'abort = Abort()\n'
        'atexit.register(print, "tidied up")\n'
        'print("done")\n'
        'distributed.leave(int(sys.argv[1]))\n'
    )
    for environment, status in [({'TORCHELASTIC_RUN_ID': 'x'}, 3), ({}, 134)]:
        ended = subprocess.run(
            [sys.executable, program, '3', REPOSITORY],
            env=os.environ | environment,
            capture_output=True,
            text=True,
        )
        assert (ended.returncode, ended.stdout.split()) == (status, ['done', 'tidied', 'up'])


@pytest.mark.parametrize(
    'total, of, expected', [(7, 3, [3, 2, 2]), (6, 3, [2, 2, 2]), (2, 3, [1, 1, 0]), (5, 1, [5])]
)
def test_shares(total, of, expected):
    shares = [share(total, number, of) for number in range(of)]
    assert [part.stop - part.start for part in shares] == expected
    assert [i for part in shares for i in range(total)[part]] == list(range(total))


def _patient():
    """How the group for the wait is made; when this process is done; when it has waited."""
    made, new_group = [], torch_distributed.new_group
    torch_distributed.new_group = lambda **options: made.append(options) or new_group(**options)
    with distributed.patiently():
        time.sleep(0.5 * distributed.rank())
        done = time.time()
    return made, done, time.time()


def _small_tools():
    x = torch.arange(5.0)[:, None] * torch.tensor([1.0, -2.0])  # (5, 2)
    own = x[share(5)].clone().requires_grad_()
    whole = gather(own, 5)
    (whole * torch.arange(10.0).view(5, 2)).sum().backward()
    numbers = [torch.tensor([float(distributed.rank())]) for _ in range(3)]
    parameter = torch.nn.Parameter(torch.zeros(3, 2))
    other = torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))
    parameter.grad = torch.full((3, 2), 1.0 + distributed.rank())
    other.grad = torch.full((2,), 10.0 ** distributed.rank(), dtype=torch.float64)
    sum_gradients([parameter, other, torch.nn.Parameter(torch.zeros(1))])
    return {
        'whole': whole.detach(),
        'grad': own.grad,
        'objects': gather_objects({'rank': distributed.rank()}),
        'reduced': [float(reduce_(n, how)) for n, how in zip(numbers, ('sum', 'min', 'max'))],
        'summed': parameter.grad,
        'other': other.grad,
        'patient': _patient(),
    }


def test_gather_sum_reduce(tmp_path):
    results = in_processes(3, tmp_path / 'three', _small_tools)
    for number, result in enumerate(results):
        assert torch.equal(result['whole'], torch.arange(5.0)[:, None] * torch.tensor([1.0, -2.0]))
        assert torch.equal(result['grad'], torch.arange(10.0).view(5, 2)[share(5, number, 3)])
        assert result['objects'] == [{'rank': 0}, {'rank': 1}, {'rank': 2}]
        assert result['reduced'] == [3, 0, 2]
        assert torch.equal(result['summed'], torch.full((3, 2), 6.0)) and result[
            'other'
        ].tolist() == [111, 111]

    made, done, left = zip(*(result['patient'] for result in results))
    assert list(made) == 3 * [[{'backend': 'gloo', 'timeout': distributed.WHILE_CACHING}]]
    assert min(left) >= max(done)
    assert distributed.PATIENCE <= timedelta(minutes=15) < distributed.WHILE_CACHING


def _batch_norm():
    torch.manual_seed(0)
    x, target = torch.randn(7, 4) * 3 + 100, torch.randn(7, 4)
    norm = GlobalBatchNorm1d(4)
    torch.nn.init.normal_(norm.weight)
    own = x[share(7)].clone().requires_grad_()
    (gather(norm(own), 7) * target).sum().backward()
    sum_gradients(norm.parameters())
    return {
        'grad': gather(own.grad, 7),
        'weight': norm.weight.grad,
        'bias': norm.bias.grad,
        **{name: value.clone() for name, value in norm.named_buffers()},
    }


def test_batch_norm_is_that_of_the_whole_batch(tmp_path):
    alone = _batch_norm()
    for result in in_processes(2, tmp_path / 'two', _batch_norm):
        for name, value in alone.items():
            assert torch.allclose(result[name], value, rtol=1e-5, atol=1e-5), name


def _steps(config, batch):
    """Three training steps on this process's share of a batch: the values, the first one's
    gradients and batch norm statistics, the weights at the end."""
    torch.manual_seed(0)
    model = build_model(config, feature_dim=10).train()
    optimizer, discriminator_optimizer = build_optimizers(model, config)
    teacher = build_teacher(config, model)
    rows = share(batch.total)
    own = batch.each(lambda tensor: tensor[rows])
    values, first, statistics = [], {}, {}
    for _ in range(3):
        values.append(
            train_step(
                own,
                model=model,
                criterion=build_loss(config),
                optimizer=optimizer,
                grad_clip=0,
                discriminator_optimizer=discriminator_optimizer,
                teacher=teacher,
                micro_batch=config.compute.micro_batch,
            )
        )
        first = first or {
            name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None
        }
        statistics = statistics or {name: value.clone() for name, value in model.named_buffers()}
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    if teacher:
        weights |= {f'teacher.{name}': value.clone() for name, value in teacher.weights().items()}
    return values, first, statistics, weights


def _load_and_step(path, batch):
    return _steps(load_config(path), batch)


# Adding a constant there changes nothing (before a batch norm, in a softmax): Adam walks on
# rounding.
NO_TRUE_GRADIENT = (
    'projection.linear.bias',
    'visual_encoder.linear.bias',
    'block.norm.bias',
    'key.bias',
)


FRUGAL = (
    'compute.micro_batch=2',
    'compute.checkpointing=true',
    'text.pooling=mean',
    'discriminator.pooling=mean',
    'loss.mask_same_visual=true',
)
MODERN = (
    'loss.teacher=momentum',
    'loss.teacher_momentum=0.5',
    'loss.contrastive=infonce',
    'loss.mask_same_visual=true',
    'loss.weights.back_visual=0.5',
    'train.bert_lr=2e-4',
)


@pytest.mark.parametrize(
    'kind, pairs, processes, options',
    [
        ('frames', 6, 2, ('discriminator.kind=strong', *FRUGAL)),
        ('clip', 3, 4, ('discriminator.kind=weak',)),
        ('clip', 3, 4, ('discriminator.kind=weak', *MODERN)),
        ('frames', 6, 2, ('discriminator.kind=strong',)),
    ],
)
def test_training_is_that_of_one_process(
    tmp_path, make_config, make_batch, kind, pairs, processes, options
):
    """Four processes for three pairs: one of them holds none."""
    config = make_config(
        kind, *NO_DROPOUT, 'loss.weights.adversarial=1', 'text.trained_layers=[2]', *options
    )
    tree = tmp_path / 'config.yaml'
    tree.write_text(yaml.safe_dump(config_to_dict(config)), encoding='utf-8')
    batch = replace(make_batch(kind), visual_of=torch.tensor([0, 1, 0, 2, 1, 1]))
    batch = replace(batch.each(lambda tensor: tensor[:pairs]), total=pairs)
    expected, gradients, statistics, weights = _steps(config, batch)
    # From the second step on Adam has walked on the rounding of the first: released figures move by
    # as much.
    for result in in_processes(processes, tmp_path / 'processes', _load_and_step, str(tree), batch):
        for step, (ours, theirs) in enumerate(zip(result[0], expected)):
            for name in theirs:
                assert ours[name] == pytest.approx(
                    theirs[name], rel=(1e-5, 1e-3, 5e-3)[step], abs=1e-6
                ), (step, name)
        for name, value in gradients.items():
            size = expected[0]['train/grad_norm']
            assert torch.allclose(result[1][name], value, rtol=1e-5, atol=1e-5 * size), name
        for name, value in statistics.items():
            assert torch.allclose(result[2][name], value, rtol=1e-5, atol=1e-5), name
        for name, value in weights.items():
            if not name.endswith(NO_TRUE_GRADIENT):
                # Adam moves a weight by `lr` per step whichever sign rounding gives to a gradient
                # that is hardly there: few weights may be as far apart as that.
                apart = (result[3][name] - value).abs()
                assert apart.max() <= 2.1 * 3 * config.train.lr, name
                assert (apart > 1e-5 + 1e-5 * value.abs()).float().mean() < 0.02, name


# --------------------------------------------------------------------------------- the command line


@pytest.fixture(scope='module')
def world(tmp_path_factory):
    """(ROOTPATH, BERT's folder), small."""
    folder = tmp_path_factory.mktemp('world')
    return tiny.make_collection(folder / 'root'), tiny.make_bert(folder / 'bert')


def start(script, *arguments):
    """Run a script of the command line; returns the finished process."""
    return subprocess.run(
        [sys.executable, str(REPOSITORY / script), *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, 'OMP_NUM_THREADS': '1'},
        timeout=300,
    )


def train_arguments(world, run_dir, device, *more):
    root, bert = world
    return [
        '--config',
        REPOSITORY / 'configs/multi30k.yaml',
        '--rootpath',
        root,
        '--run-dir',
        run_dir,
        '--device',
        device,
        *tiny.options(bert),
        *NO_DROPOUT,
        'train.epochs=2',
        'train.keep_last=true',
        *more,
    ]


SLOW = 'train.lr=1e-6'  # Adam walks on rounding where there is no gradient


@pytest.fixture(scope='module')
def of_one(world, tmp_path_factory):
    """The run folder of one process: 12 pairs in batches of 5; the shares of two are uneven."""
    folder = tmp_path_factory.mktemp('one') / 'run'
    assert train.main([str(word) for word in train_arguments(world, folder, 'cpu', SLOW)]) == 0
    return folder


def assert_same_run(folder, other):
    """Training, validation, the test, and its record."""
    ours, theirs = read_log(folder), read_log(other)
    assert len(ours) == len(theirs) == 2
    for one, two in zip(ours, theirs):
        # a mean over steps: rounding adds up
        assert one['train'] == pytest.approx(two['train'], rel=1e-4)
        assert one['val'] == two['val'] and one['lr'] == two['lr']
    rows = [json.loads((path / 'metrics.json').read_text())['rows'] for path in (folder, other)]
    assert rows[0] == rows[1]
    choice, its = (load_checkpoint(each).choice for each in (folder, other))
    ranges, expected = (flatten(each.pop('val_ranges')) for each in (choice, its))
    assert choice == its and ranges == pytest.approx(expected, abs=1e-4)
    ours, theirs = (dict(np.load(path / 'ranks.npz')) for path in (folder, other))
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[key], theirs[key]) for key in ours)


def test_a_run_of_two_processes_is_a_run_of_one(world, of_one, tmp_path):
    done = start('train.py', *train_arguments(world, tmp_path / 'two', 'cpu:2', SLOW))
    assert done.returncode == 0, done.stderr
    assert (
        done.stdout.count('epoch   1') == 1
        and done.stdout.count('Result: ') == 1
        and '2 x cpu' in done.stdout
    )
    assert_same_run(tmp_path / 'two', of_one)
    again = start(
        'evaluation.py',
        '--checkpoint',
        tmp_path / 'two',
        '--rootpath',
        world[0],
        '--device',
        'cpu:2',
        '--output',
        tmp_path / 'again.json',
    )
    assert again.returncode == 0, again.stderr
    assert (
        json.loads((tmp_path / 'again.json').read_text())['rows']
        == json.loads((tmp_path / 'two/metrics.json').read_text())['rows']
    )


def test_a_run_on_two_nodes_is_a_run_of_one(world, of_one, tmp_path):
    """Two torchruns of one process each, as on two machines: there LOCAL_RANK is 0 in both."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    words = [
        sys.executable,
        '-m',
        'torch.distributed.run',
        '--nnodes',
        '2',
        '--nproc-per-node',
        '1',
        '--rdzv-backend',
        'c10d',
        '--rdzv-id',
        'test',
        '--rdzv-endpoint',
        f'127.0.0.1:{port}',
        '--local-addr',
        '127.0.0.1',
        REPOSITORY / 'train.py',
        *train_arguments(world, tmp_path / 'nodes', 'cpu', SLOW),
    ]
    nodes = [
        subprocess.Popen(
            list(map(str, words)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, 'OMP_NUM_THREADS': '1'},
        )
        for _ in range(2)
    ]
    try:
        printed = [node.communicate(timeout=300) for node in nodes]
    finally:
        for node in nodes:
            node.kill()
    assert [node.returncode for node in nodes] == [0, 0], printed
    # One process of all shows and writes.
    assert sorted(output.count('epoch   1') for output, _ in printed) == [0, 1]
    assert '2 x cpu' in printed[0][0] + printed[1][0]
    assert_same_run(tmp_path / 'nodes', of_one)


def _train(words):
    """train.py as torchrun starts it, without the seconds of its imports."""
    number = str(distributed.rank())
    os.environ.update(
        TORCHELASTIC_RUN_ID='test', LOCAL_WORLD_SIZE='2', LOCAL_RANK=number, RANK=number
    )
    return train.main(words)


def test_two_processes_resume_exactly(world, tmp_path):
    """With dropout: each process goes on with its own random numbers."""
    dropout = [option.replace('=0', '=0.3') for option in NO_DROPOUT]
    for number, (name, epochs) in enumerate(
        (
            ('whole', ['train.epochs=2']),
            ('parts', ['train.epochs=1']),
            ('parts', ['train.epochs=2', '--resume']),
        )
    ):
        words = train_arguments(world, tmp_path / name, 'cpu:2', '--no-test', *dropout, *epochs)
        statuses = in_processes(2, tmp_path / f'processes {number}', _train, list(map(str, words)))
        assert statuses == [0, 0]
    whole, parts = (load_checkpoint(tmp_path / name / LAST) for name in ('whole', 'parts'))
    assert all(torch.equal(value, parts.model[name]) for name, value in whole.model.items())
    states = whole.training['random']
    assert len(states) == 2 and not torch.equal(states[0]['torch'], states[1]['torch'])


def test_as_many_devices_as_processes(monkeypatch):
    monkeypatch.setenv('TORCHELASTIC_RUN_ID', 'x')
    monkeypatch.setenv('LOCAL_WORLD_SIZE', '2')
    with pytest.raises(ValueError, match='2 processes and 1 devices'):
        distributed.start([torch.device('cpu')])
    monkeypatch.delenv('TORCHELASTIC_RUN_ID')
    with pytest.raises(ValueError, match='1 process and 2 devices'):
        distributed.start(2 * [torch.device('cpu')])


@pytest.mark.parametrize(
    'error',
    [
        RuntimeError(
            '[../gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:10812'
        ),
        RuntimeError('[pair.cc:534] Read error [127.0.0.1]:1: Connection reset by peer'),
        RuntimeError('writev [127.0.0.1]:1: Broken pipe'),
        RuntimeError('[unbound_buffer.cc:81] Timed out waiting 600000ms for recv operation'),
        torch_distributed.DistBackendError('NCCL communicator was aborted on rank 1.'),
        torch_distributed.DistBackendError(
            'NCCL error in: ProcessGroupNCCL.cpp:2772, remote process '
            'exited or there was a network error'
        ),
        RuntimeError(
            'ncclRemoteError: A call failed possibly due to a network error or a remote '
            'process exiting: socketProgress: Connection closed by remote peer gpu2<1234>'
        ),
        torch_distributed.DistNetworkError('failed to recv, got 0 bytes'),
    ],
)
def test_a_peer_that_went_away_is_recognised_in_the_words_of_each_backend(monkeypatch, error):
    waited, shown = [], []
    monkeypatch.setattr(distributed.time, 'sleep', waited.append)
    monkeypatch.setattr(sys, '__excepthook__', lambda kind, error, trace: shown.append(error))
    distributed._after_the_first(type(error), error, None)
    assert waited == [3 * distributed.GRACE] and shown == [error]
    assert 'its own output' in error.__notes__[0]
    mistake = RuntimeError('mat1 and mat2 shapes cannot be multiplied')
    distributed._after_the_first(RuntimeError, mistake, None)
    assert len(waited) == 1 and shown[-1] is mistake and not hasattr(mistake, '__notes__')


def test_every_tool_makes_its_gpu_the_current_one(monkeypatch, tmp_path):
    """Else GPU 0 is opened, too. `choose_devices` and torch believe in two GPUs."""

    class Set(Exception):
        pass

    def set_device(device):
        raise Set(device)

    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    monkeypatch.setattr(torch.cuda, 'set_device', set_device)
    config = str(REPOSITORY / 'configs/multi30k.yaml')
    tools = {
        bench: [],
        verify_parity: [str(tmp_path)],
        zero_shot: ['--config', config, '--model', 'x', '--rootpath', str(tmp_path)],
    }
    for tool, words in tools.items():
        with pytest.raises(Set, match='cuda:1'):
            tool.main([*words, '--device', '1'])
