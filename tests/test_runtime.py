"""Devices, seeds and random states."""

import os
import random
from operator import attrgetter

import numpy as np
import pytest
import torch

from basic.checkpoint import load_checkpoint, save_checkpoint
from basic.config import config_to_dict
from basic.runtime import (
    choose_devices,
    cpu_count,
    declare_missing_torchvision_ops,
    matrix_precision,
    random_states,
    restore_random_states,
    seed_everything,
    set_precision,
)

CPU = torch.device('cpu')


@pytest.fixture
def gpus(monkeypatch):
    """gpus(n): torch believes that there are n GPUs."""

    def pretend(count):
        monkeypatch.setattr(torch.cuda, 'is_available', lambda: count > 0)
        monkeypatch.setattr(torch.cuda, 'device_count', lambda: count)

    return pretend


@pytest.mark.parametrize('name', ['cpu', ' cpu '])
def test_the_cpu(name):
    assert choose_devices(name) == [torch.device('cpu')]


@pytest.mark.parametrize('name, index', [('0', 0), (1, 1), ('cuda:1', 1)])
def test_one_of_the_gpus(gpus, name, index):
    gpus(2)
    assert choose_devices(name) == [torch.device('cuda', index)]


def test_a_process_a_device(gpus):
    gpus(4)
    assert choose_devices('3,0') == [torch.device('cuda', 3), torch.device('cuda', 0)]
    assert choose_devices('cpu:3') == 3 * [torch.device('cpu')]


@pytest.mark.parametrize(
    'count, name, parts',
    [
        (0, '0', ["device '0'", 'no GPU', 'give cpu']),
        (2, '2', ["device '2'", '2 GPU(s)', 'numbered from 0']),
        (4, '0,0', ["device '0,0'", 'named twice']),
        (4, '0,4', ["device '0,4'", '4 GPU(s)']),
        (4, '0,', ['expected auto, cpu']),
        (0, 'cpu:0', ['expected auto, cpu', 'cpu:N']),
        (2, 'gpu', ["device 'gpu'", 'expected auto, cpu, cpu:N']),
        (2, '-1', ["device '-1'", 'expected auto, cpu, cpu:N']),
        (2, '', ['expected auto, cpu, cpu:N']),
        (2, '²', ['expected auto, cpu, cpu:N']),
        (2, 'cuda', ['expected auto, cpu, cpu:N']),
    ],
)
def test_what_is_no_device_is_refused(gpus, count, name, parts):
    gpus(count)
    with pytest.raises(ValueError) as error:
        choose_devices(name)
    assert all(part in str(error.value) for part in parts)


def test_processors_are_counted_with_and_without_an_affinity(monkeypatch):
    monkeypatch.setattr(os, 'sched_getaffinity', lambda process: {2, 5}, raising=False)
    assert cpu_count() == 2
    monkeypatch.delattr(os, 'sched_getaffinity')  # macOS
    monkeypatch.setattr(os, 'cpu_count', lambda: 6)
    assert cpu_count() == 6
    monkeypatch.setattr(os, 'cpu_count', lambda: None)
    assert cpu_count() == 1


def newer_switches():
    cuda, cudnn, mkldnn = torch.backends.cuda, torch.backends.cudnn, torch.backends.mkldnn
    switches = (cuda.matmul, cudnn.conv, cudnn.rnn, mkldnn.matmul, mkldnn.conv)
    return [switch.fp32_precision for switch in switches]


def older_switches():
    return (
        torch.get_float32_matmul_precision(),
        torch.backends.cuda.matmul.allow_tf32,
        torch.backends.cudnn.allow_tf32,
    )


SWITCHES = [
    ('backends.fp32_precision', 'tf32'),
    ('backends.cuda.matmul.fp32_precision', 'tf32'),
    ('backends.cudnn.conv.fp32_precision', 'tf32'),
    ('backends.cudnn.conv.fp32_precision', 'ieee'),
    ('backends.cudnn.fp32_precision', 'ieee'),
    ('backends.mkldnn.matmul.fp32_precision', 'bf16'),
    ('backends.cuda.matmul.allow_tf32', True),
    ('backends.cudnn.allow_tf32', False),
]


def turn(switch):
    name, value = switch
    where, _, leaf = name.rpartition('.')
    setattr(attrgetter(where)(torch), leaf, value)


@pytest.fixture
def switches():
    """All of torch's switches as they are at a process's start, and afterwards as they were."""
    with matrix_precision('fp32'):
        torch.backends.fp32_precision = torch.backends.mkldnn.fp32_precision = 'none'
        torch.backends.cudnn.fp32_precision = 'none'
        set_precision('fp32')
        torch.backends.cudnn.allow_tf32 = True
        yield
        torch.backends.fp32_precision = torch.backends.cudnn.fp32_precision = 'none'
        torch.backends.mkldnn.fp32_precision = 'none'
        set_precision('fp32')


@pytest.mark.parametrize('switch', SWITCHES)
def test_precision_whichever_switches_the_process_has_used(switches, switch):
    turn(switch)
    before = newer_switches()
    with matrix_precision('fp32'):
        assert newer_switches() == ['ieee', 'ieee', 'ieee', 'ieee', 'ieee']
        assert older_switches() == ('highest', False, False)
        with matrix_precision('tf32'):
            assert newer_switches() == ['tf32', 'tf32', 'tf32', 'tf32', 'ieee']
            assert older_switches() == ('high', True, True)
        assert newer_switches() == ['ieee', 'ieee', 'ieee', 'ieee', 'ieee']
    assert newer_switches() == before
    for precision in ('tf32', 'fp32'):
        turn(switch)
        set_precision(precision)
        assert older_switches()[1:] == (precision == 'tf32',) * 2


def draw():
    return [
        random.random(),
        random.gauss(0, 1),
        *np.random.rand(3),
        np.random.randn(),
        *torch.rand(3).tolist(),
        *torch.randperm(5).tolist(),
    ]


def test_a_seed_decides_every_generator():
    seed_everything(7)
    first = draw()
    seed_everything(7)
    assert draw() == first
    seed_everything(8)
    assert all(a != b for a, b in zip(draw()[:9], first))
    seed_everything(2**32 + 1)  # more than NumPy takes


def test_random_states_survive_a_checkpoint(make_config, tmp_path):
    seed_everything(3)
    draw()  # one normal number: both Python and NumPy keep the pair's second
    save_checkpoint(
        tmp_path / 'last.pt',
        {
            'config': config_to_dict(make_config()),
            'architecture': {},
            'model': {},
            'epoch': 1,
            'training': {'random': random_states(CPU)},
        },
    )
    expected = [draw() for _ in range(2)]
    seed_everything(99)
    assert restore_random_states(load_checkpoint(tmp_path / 'last.pt').training['random'], CPU)
    assert [draw() for _ in range(2)] == expected


def test_another_gpu_goes_on_with_a_gpus_numbers_and_a_cpu_does_not(monkeypatch):
    kept, state = {}, torch.arange(16, dtype=torch.uint8)
    monkeypatch.setattr(torch.cuda, 'get_rng_state', lambda device: {1: state}[device.index])
    monkeypatch.setattr(
        torch.cuda, 'set_rng_state', lambda state, device: kept.update({device.index: state})
    )
    states = random_states(torch.device('cuda', 1))
    assert restore_random_states(states, torch.device('cuda', 0)) and kept == {0: state}
    assert not restore_random_states(states, CPU)
    assert not restore_random_states(random_states(CPU), torch.device('cuda', 0)) and kept == {
        0: state
    }


def test_torchvision_imports_and_declaring_twice_does_no_harm():
    pytest.importorskip('torchvision')
    declare_missing_torchvision_ops()
    from torchvision import transforms

    assert transforms.CenterCrop(2)(torch.ones(1, 4, 4)).shape == (1, 2, 2)
