"""The schedule against sequences worked out by hand from METHOD, Training."""

import json
import math

import pytest

from basic.config import load_config
from basic.schedule import build_schedule, CosineSchedule, Schedule


def make(**changes):
    return Schedule(
        **{
            'lr': 1.0,
            'lr_decay': 0.99,
            'halve_factor': 0.5,
            'halve_wait': 3,
            'patience': 10,
            **changes,
        }
    )


def run(schedule, figures):
    return [schedule.step(figure) for figure in figures]


def test_steady_improvement_decays_only():
    decisions = run(make(), [1, 2, 3, 4, 5])
    assert all(d.improved and not d.halved and not d.stop for d in decisions)
    assert [d.lr for d in decisions] == pytest.approx([0.99**n for n in range(1, 6)])


def test_no_halving_before_three_epochs_passed():
    # epochs 2 and 3 do not improve; epoch 2 is too early, at epoch 3 three have passed since the
    # start
    decisions = run(make(lr_decay=1.0), [5, 4, 4, 4, 4, 4, 4])
    assert [d.halved for d in decisions] == [False, False, True, False, False, True, False]
    assert decisions[-1].lr == 0.25


def test_the_wait_counts_improving_epochs_too():
    decisions = run(make(lr_decay=1.0), [1, 2, 3, 2, 4, 3, 3, 5, 4])
    #                          halved:             4th: 4 epochs    7th: 3 since    9th: 2 since,
    # too early
    assert [n for n, d in enumerate(decisions, 1) if d.halved] == [4, 7]


def test_decay_comes_with_the_halving():
    decisions = run(make(), [2, 1, 1])
    assert decisions[-1].lr == pytest.approx(0.99**3 * 0.5)


def test_equal_is_no_improvement():
    decisions = run(make(), [3.0, 3.0, 3.1])
    assert [d.improved for d in decisions] == [True, False, True]


def test_first_epoch_is_kept_whatever_it_reaches():
    schedule = make()
    assert schedule.step(0.0).improved and schedule.best == 0.0 and schedule.best_epoch == 1


def test_stops_after_more_than_patience_epochs():
    schedule = make()
    decisions = run(schedule, [1] + [0] * 11)
    # the 11th epoch without improvement
    assert [d.stop for d in decisions] == [False] * 11 + [True]
    assert schedule.stop and schedule.best_epoch == 1


def test_improvement_restarts_the_patience():
    schedule = make(patience=1)
    assert [d.stop for d in run(schedule, [1, 0, 2, 0, 0])] == [False, False, False, False, True]
    assert [d.stop for d in run(make(patience=0), [1, 0])] == [False, True]


@pytest.mark.parametrize('cut', range(1, 12))
def test_state_continues_exactly(cut):
    figures = [1, 3, 2, 2, 2, 4, 4, 4, 1, 5, 5, 5, 5, 5]
    whole, first, second = make(), make(), make()
    expected = run(whole, figures)
    head = run(first, figures[:cut])
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))  # plain data
    assert head + run(second, figures[cut:]) == expected
    assert second.state_dict() == whole.state_dict()


def test_more_patience_goes_on_after_a_stop():
    schedule, patient = make(patience=1), make(patience=5)
    run(schedule, [1, 0, 0])
    patient.load_state_dict(schedule.state_dict())
    assert schedule.stop and not patient.stop


def test_built_from_the_config():
    config = load_config(
        overrides=[
            'data.collection=x',
            'train.lr=0.5',
            'train.lr_decay=0.9',
            'train.halve_factor=0.1',
            'train.halve_wait=2',
            'train.patience=4',
        ]
    )
    assert vars(build_schedule(config, steps=7)) == vars(
        make(lr=0.5, lr_decay=0.9, halve_factor=0.1, halve_wait=2, patience=4)
    )


def test_a_cosine_rises_over_the_first_steps_and_falls_over_the_others():
    schedule = CosineSchedule(lr=2.0, warmup=0.25, epochs=2, steps=8)  # T = 16: 4 steps up
    rates = []
    for _ in range(2):
        rates += [schedule.lr_at(step) for step in range(8)]
        assert not schedule.step(0.0).halved
    assert rates[:4] == [0.5, 1.0, 1.5, 1 + math.cos(math.pi * -1 / 12)]
    assert rates[4:] == pytest.approx([1 + math.cos(math.pi * i / 12) for i in range(12)])
    assert rates[4] == 2.0 and min(rates[4:]) == rates[-1] > 0
    assert not any(schedule.step(-1.0).stop for _ in range(20))  # its length is fixed


def test_a_cosine_goes_on_from_its_state_and_needs_no_warmup():
    def rates(schedule, epochs):
        found = []
        for _ in range(epochs):
            found += [schedule.lr_at(step) for step in range(5)]
            schedule.step(1.0)
        return found

    options = {'lr': 0.1, 'warmup': 0.0, 'epochs': 4, 'steps': 5}
    whole, first, second = (CosineSchedule(**options) for _ in range(3))
    expected, head = rates(whole, 4), rates(first, 1)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert head + rates(second, 3) == expected and expected[0] == 0.1


def test_a_cosine_is_built_from_the_config():
    config = load_config(
        overrides=[
            'data.collection=x',
            'train.schedule=cosine',
            'train.lr=0.5',
            'train.warmup=0.2',
            'train.epochs=3',
        ]
    )
    expected = CosineSchedule(lr=0.5, warmup=0.2, epochs=3, steps=7)
    assert vars(build_schedule(config, steps=7)) == vars(expected)
