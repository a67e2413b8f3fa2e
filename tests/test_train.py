"""Training: one step, the loop, stop and resume, the run folder, the command line."""

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path

import pytest
import tiny
import torch
import yaml

import train
from basic.checkpoint import BEST, LAST, load_checkpoint
from basic.config import config_to_dict, load_config
from basic.logger import epoch_progress, RunLog
from basic.pretrained.tokenizer import load_tokenizer
from basic.run_folder import check_run_folder, read_log
from data_provider import build_loaders
from evaluation import evaluate_checkpoint
from loss import build_loss
from model import build_model
from train import NonFiniteLoss, main, train_step
from util.table import table
from util.table.runs import read_runs

REPOSITORY = Path(train.__file__).parent
CONFIG = str(REPOSITORY / 'configs/multi30k.yaml')


@pytest.fixture(scope='module')
def world(tmp_path_factory):
    """(ROOTPATH, BERT's folder), small. One thread: at this size, more of them only wait for each
    other."""
    folder, threads = tmp_path_factory.mktemp('world'), torch.get_num_threads()
    torch.set_num_threads(1)
    yield tiny.make_collection(folder / 'root'), tiny.make_bert(folder / 'bert')
    torch.set_num_threads(threads)


# --------------------------------------------------------------------------- one step; its figures:
# tests/test_parity.py


@pytest.fixture
def step(world):
    """A function that makes (keyword arguments of train_step, a batch), for options."""

    def make(*options):
        root, bert = world
        config = load_config(CONFIG, [*tiny.options(bert), *options])
        loaders = build_loaders(config, root, load_tokenizer(str(bert), True), splits=('train',))
        torch.manual_seed(0)
        model = build_model(config, feature_dim=tiny.DIM).train()
        optimizer, discriminator_optimizer = train.build_optimizers(model, config)
        keywords = {
            'model': model,
            'criterion': build_loss(config),
            'grad_clip': config.train.grad_clip,
            'optimizer': optimizer,
            'discriminator_optimizer': discriminator_optimizer,
        }
        return keywords, next(iter(loaders['train']))

    return make


def weights_of(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def test_values_of_a_step(step):
    parts, batch = step()
    values = train_step(batch, **parts)
    weights = parts['criterion'].weights
    assert values['train/total'] == pytest.approx(
        sum(weights[t] * values[f'train/{t}'] for t in weights), rel=1e-5
    )
    assert values.keys() == {
        *(f'train/{t}' for t in (*weights, 'total', 'grad_norm')),
        *(f'discriminator/{k}' for k in ('real_loss', 'fake_loss', 'real_acc', 'fake_acc')),
    }
    assert all(isinstance(value, float) for value in values.values())


def test_frozen_parts_stay_and_all_others_move(step):
    parts, batch = step('loss.weights.adversarial=1')
    model = parts['model']
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for _ in range(2):  # the first step's ReLUs and zero biases may leave one untouched
        train_step(batch, **parts)
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert moved == trained and any('layer.0' in name for name in before.keys() - trained)


def test_the_encoders_loss_leaves_no_gradient_in_the_discriminator(step):
    parts, batch = step('loss.weights.adversarial=1')
    discriminator, own, seen = parts['model'].discriminator, parts['discriminator_optimizer'], []
    take_step = own.step
    own.step = lambda: (
        seen.extend(p.grad.clone() for p in discriminator.parameters()),
        take_step(),
    )
    train_step(batch, **parts)
    assert all(
        torch.equal(p.grad, before)
        for p, before in zip(discriminator.parameters(), seen, strict=True)
    )
    assert all(p.requires_grad for p in discriminator.parameters())


def test_the_discriminators_loss_leaves_no_gradient_in_the_encoder(step):
    parts, batch = step()
    parts['criterion'].total = lambda terms: 0 * sum(terms.values())
    train_step(batch, **parts)
    assert all(p.grad is None or not p.grad.any() for p in parts['model'].main_parameters())


def test_without_the_adversarial_term_the_discriminator_rests(step):
    parts, batch = step('loss.weights.adversarial=0')
    before = weights_of(parts['model'].discriminator)
    values = train_step(batch, **parts)
    assert not any(name.startswith('discriminator/') or 'adversarial' in name for name in values)
    assert all(
        torch.equal(value, before[name])
        for name, value in parts['model'].discriminator.state_dict().items()
    )


@pytest.mark.parametrize('clip', [0.5, 0])
def test_clipping_covers_the_main_parameters_only(step, clip):
    parts, batch = step(f'train.grad_clip={clip}')
    norm = train_step(batch, **parts)['train/grad_norm']
    left = torch.stack(
        [p.grad.norm() for p in parts['model'].main_parameters() if p.grad is not None]
    ).norm()
    assert float(left) == pytest.approx(clip or norm, rel=1e-4) and norm > 0.5


@pytest.mark.parametrize('broken', [math.nan, math.inf])
def test_a_broken_loss_moves_no_weight_of_the_encoders(step, broken):
    """Nor the optimizer's moments; a step before it has made them."""
    parts, batch = step()
    train_step(batch, **parts)
    batch.visual[0, 0] = broken

    def state():
        moments = parts['optimizer'].state_dict()['state']
        return [p.detach().clone() for p in parts['model'].main_parameters()] + [
            value.clone() for moment in moments.values() for value in moment.values()
        ]

    before = state()
    with pytest.raises(NonFiniteLoss, match='total=nan.*triplet_en=nan.*kd_feat=.*adversarial='):
        train_step(batch, **parts)
    assert all(torch.equal(now, then) for now, then in zip(state(), before, strict=True))


def test_a_finite_step_is_the_optimizers_own(step):
    (parts, batch), (others, _) = step(), step()
    torch.manual_seed(0)
    train_step(batch, **parts)
    plain = others['optimizer'].step
    others['optimizer'].step = lambda: (
        delattr(others['optimizer'], 'found_inf'),
        plain(),
        setattr(others['optimizer'], 'found_inf', None),
    )
    torch.manual_seed(0)
    train_step(batch, **others)
    assert all(
        torch.equal(ours, theirs)
        for ours, theirs in zip(
            parts['model'].main_parameters(), others['model'].main_parameters(), strict=True
        )
    )


# ------------------------------------------------------------------------------------ the whole run


def test_the_test_finds_the_training_s_model_freed(world, tmp_path, monkeypatch):
    """Two models side by side may not fit on a GPU."""
    kept = []
    monkeypatch.setattr(
        train,
        'train',
        lambda run: kept.extend(
            weakref.ref(part) for part in (run.model, run.optimizer, run.loaders['train'])
        ),
    )

    def evaluate_checkpoint(*_, **__):
        assert [part() for part in kept] == [None, None, None]
        raise ValueError('was here')

    monkeypatch.setattr(train, 'evaluate_checkpoint', evaluate_checkpoint)
    arguments = [
        '--config',
        CONFIG,
        '--rootpath',
        str(world[0]),
        '--run-dir',
        str(tmp_path / 'run'),
        *tiny.options(world[1]),
        'compute.checkpointing=true',
    ]
    assert main(arguments) == 2 and len(kept) == 3


def arguments(world, run_dir, *more, report=False):
    root, bert = world
    return [
        '--config',
        CONFIG,
        '--rootpath',
        str(root),
        '--run-dir',
        str(run_dir),
        *tiny.options(bert),
        'train.patience=50',
        'train.keep_last=true',
        *([] if report else ['--no-report']),
        *more,
    ]


@pytest.fixture(scope='module')
def finished(world, tmp_path_factory):
    """A run of four epochs, tested."""
    folder = tmp_path_factory.mktemp('runs') / 'finished'
    assert main(arguments(world, folder, 'train.epochs=4', report=True)) == 0
    return folder


def test_run_folder(finished):
    names = {path.name for path in finished.iterdir()}
    assert names == {
        'config.yaml',
        'run.json',
        'tokenizer',
        'log.jsonl',
        'tb',
        BEST,
        LAST,
        'metrics.json',
        'ranks.npz',
        'report.html',
        'curves.png',
    }
    assert 'Training loss after each epoch' in (finished / 'report.html').read_text()
    assert (
        yaml.safe_load((finished / 'config.yaml').read_text())['visual']['feature_dim'] == tiny.DIM
    )
    start = json.loads((finished / 'run.json').read_text())
    assert {
        'command',
        'git_commit',
        'started',
        'rootpath',
        'device',
        'versions',
        'parameters',
    } <= start.keys()
    assert (
        start['parameters']['all']
        > start['parameters']['trained']
        > start['parameters']['discriminator']
        > 0
    )
    best, last = load_checkpoint(finished), load_checkpoint(finished / LAST)
    assert best.training is None and last.epoch == 4
    assert best.epoch == read_log(finished)[-1]['best_epoch']
    assert best.val == read_log(finished)[best.epoch - 1]['val']
    assert json.loads((finished / 'metrics.json').read_text())['epoch'] == best.epoch


def test_the_weight_is_chosen_on_validation_and_kept_with_the_best_model(world, finished):
    choice = load_checkpoint(finished).choice
    val = evaluate_checkpoint(finished, rootpath=world[0], split='val')
    assert choice['chosen_from'] == [
        {'weight': row['weight'], 'SumR': row['SumR']} for row in val['rows']
    ]
    best = max(row['SumR'] for row in choice['chosen_from'])
    of_weight = {row['weight']: row['SumR'] for row in choice['chosen_from']}
    # Sums of the same recalls may round otherwise.
    assert of_weight[choice['chosen_weight']] == pytest.approx(best, abs=1e-6)
    report = json.loads((finished / 'metrics.json').read_text())
    assert {key: report[key] for key in choice} == choice
    assert load_checkpoint(finished / LAST).choice is None
    assert load_checkpoint(finished).val['weight'] == 0.2  # by which the model was selected


def test_tables_read_what_a_run_leaves(finished, capsys):
    (run,) = read_runs([finished])
    hits = run.hits(run.weight)
    assert hits['t2v'].shape == (12,) and hits['v2t'].shape == (6,) and run.chosen
    assert table.main([str(finished), '--metric', 'SumR,epoch,minutes', '--format', 'csv']) == 0
    name, seeds, _, total, deviation, epoch = capsys.readouterr().out.splitlines()[1].split(',')[:6]
    assert (name, seeds, deviation, float(epoch)) == (
        'multi30k',
        '1',
        '',
        load_checkpoint(finished).epoch,
    )
    assert float(total) == pytest.approx(run.row(run.weight)['SumR'])


def test_log(finished):
    records = read_log(finished)
    assert [record['epoch'] for record in records] == [1, 2, 3, 4]
    first = records[0]
    assert first['lr'] == 1e-3 and first['improved'] and first['val']['weight'] == 0.2
    terms = {'triplet_en', 'triplet_tgt', 'kd_sim', 'kd_feat', 'triplet_back', 'adversarial'}
    assert first['train'].keys() == terms | {'total', 'grad_norm'}
    assert first['discriminator'].keys() == {'real_loss', 'fake_loss', 'real_acc', 'fake_acc'}


def test_tensorboard(finished):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(finished / 'tb'))
    board.Reload()
    tags = set(board.Tags()['scalars'])
    assert {
        'train/total',
        'train/triplet_en',
        'train/grad_norm',
        'lr',
        'speed/samples_per_s',
        'discriminator/real_acc',
        'val/t2v/R@1',
        'val/v2t/mAP',
        'val/SumR',
    } <= tags
    assert [event.step for event in board.Scalars('val/t2v/R@1')] == [1, 2, 3, 4]


def comparable(folder):
    """Everything that a run computed, without times."""
    last = load_checkpoint(folder / LAST)
    records = [
        {key: value for key, value in record.items() if key != 'speed'}
        for record in read_log(folder)
    ]
    return last.model, last.training, records, load_checkpoint(folder).model


def assert_equal(first, second):
    assert type(first) is type(second)
    if isinstance(first, dict):
        assert first.keys() == second.keys()
        for key in first:
            assert_equal(first[key], second[key])
    elif isinstance(first, (list, tuple)):
        assert len(first) == len(second)
        for one, other in zip(first, second):
            assert_equal(one, other)
    elif isinstance(first, torch.Tensor):
        assert torch.equal(first, second)
    else:
        assert first == second


RECOMMENDED = (
    'train.schedule=cosine',
    'train.lr=2e-3',
    'train.bert_lr=1e-3',
    'train.back_as_en=0.5',
    'train.select=sumr',
    'loss.contrastive=infonce',
    'loss.weights={kd_sim: 0, kd_feat: 0, triplet_back: 0, adversarial: 0, back_visual: 0.5}',
)


@pytest.mark.parametrize('more', [(), ('compute.micro_batch=2', 'compute.precision=bf16')])
def test_the_recommended_options_go_on_exactly(world, tmp_path, monkeypatch, capsys, more):
    whole, cut, steps = tmp_path / 'whole', tmp_path / 'cut', []
    options = ('train.epochs=3', *RECOMMENDED, *more)
    assert main(arguments(world, whole, *options, 'train.keep_last=true')) == 0
    printed = capsys.readouterr().out

    def interrupted_step(*args, **kwargs):
        steps.append(1)
        if len(steps) == 5:  # three steps an epoch: in the second
            raise KeyboardInterrupt
        return train_step(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(train, 'train_step', interrupted_step)
        assert main(arguments(world, cut, *options, 'train.keep_last=true')) == 130
    assert main(arguments(world, cut, *options, 'train.keep_last=true', '--resume')) == 0
    assert_equal(comparable(cut), comparable(whole))

    assert main(arguments(world, whole, *options, 'train.epochs=4', '--resume')) == 2
    message = capsys.readouterr().err
    assert 'train.epochs: 3 -> 4' in message and 'train.epochs' not in message.partition('only')[2]

    records = read_log(whole)
    assert {'triplet_en', 'triplet_tgt', 'back_visual'} < records[0]['train'].keys()
    last = load_checkpoint(whole / LAST)
    rates = [group['lr'] for group in last.training['optimizer']['param_groups']]
    # step 9 of 9, of which 0.9 are the warm-up
    factor = 0.5 * (1 + math.cos(math.pi * (8 - 0.9) / 8.1))
    assert rates == pytest.approx([2e-3 * factor, 1e-3 * factor])
    chosen = load_checkpoint(whole)
    sums = {row['weight']: row['SumR'] for row in chosen.choice['chosen_from']}
    assert last.training['schedule']['best'] == max(sums.values())
    best = records[-1]['best_epoch']
    assert (f'try train.epochs={best}' in printed) == (best < 3)


def test_berts_rate_is_of_its_trained_layers_alone(step):
    parts, batch = step('train.bert_lr=1e-9', 'train.lr=1e-3')
    model, (new, bert) = parts['model'], parts['optimizer'].param_groups
    own = {id(p) for p in model.text_encoder.bert.parameters() if p.requires_grad}
    assert {id(p) for p in bert['params']} == own
    assert {id(p) for p in new['params']} == {id(p) for p in model.main_parameters()} - own
    before = weights_of(model)
    norm = train_step(batch, **parts)['train/grad_norm']
    everything = [p.grad for p in model.main_parameters() if p.grad is not None]
    # one clipping norm over both
    clipped = torch.stack([g.norm() for g in everything]).norm().item()
    assert clipped == pytest.approx(min(norm, parts['grad_clip']), rel=1e-3)
    for name, value in model.state_dict().items():
        if name.startswith('text_encoder.bert.'):
            assert torch.allclose(value, before[name], atol=1e-8), name
    assert len(step('train.bert_lr=1e-3', 'train.lr=1e-3')[0]['optimizer'].param_groups) == 1


@pytest.mark.parametrize('workers', [0, 1])
def test_stop_and_resume_equal_an_uninterrupted_run(
    world, finished, tmp_path, monkeypatch, capsys, workers
):
    folder, steps = tmp_path / 'run', []

    def interrupted_step(*args, **kwargs):
        steps.append(1)
        if len(steps) == 8:  # three steps an epoch: in the middle of the third
            raise KeyboardInterrupt
        return train_step(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(train, 'train_step', interrupted_step)
        assert main(arguments(world, folder, 'train.epochs=4', f'train.workers={workers}')) == 130
    message = capsys.readouterr().err
    assert (
        'finished and kept: 2' in message
        and message.rstrip().endswith('--resume')
        and 'Traceback' not in message
    )
    # as if it had been killed between the line and last.pt
    with open(folder / 'log.jsonl', 'a') as file:
        file.write('{"epoch": 3, "val": {}}\n{"epo')

    assert main(arguments(world, folder, 'train.epochs=4', '--resume')) == 0
    assert 'resuming after epoch 2' in capsys.readouterr().out
    assert_equal(comparable(folder), comparable(finished))
    assert (folder / 'metrics.json').read_text().replace(str(folder), '') == (
        finished / 'metrics.json'
    ).read_text().replace(str(finished), '')
    assert json.loads((folder / 'run.json').read_text())['resumed'][0]['after_epoch'] == 2


KILLED_WHILE_WRITING = """
import os, signal, sys, torch, train
real, calls = torch.save, []
def save(content, file):
    calls.append(1)
    if len(calls) == 4:                                   # in epoch 2 or 3
        file.write(b'half of it')
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    real(content, file)
torch.save = save
train.main(sys.argv[1:])
"""


def test_a_run_killed_while_it_writes_resumes_and_leaves_nothing_behind(world, finished, tmp_path):
    folder = tmp_path / 'run'
    argv = arguments(world, folder, 'train.epochs=4')
    done = subprocess.run(
        [sys.executable, '-c', KILLED_WHILE_WRITING, *argv],
        cwd=REPOSITORY,
        capture_output=True,
        env={**os.environ, 'OMP_NUM_THREADS': '1'},
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert list(folder.glob('.*.tmp')) and load_checkpoint(folder / LAST).epoch >= 1
    assert main([*argv, '--resume']) == 0
    assert not list(folder.glob('.*'))
    assert_equal(comparable(folder), comparable(finished))


def test_a_full_disk_is_one_clear_line(world, tmp_path, monkeypatch, capsys):
    def full(path, content):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(train, 'save_checkpoint', full)
    message = refused(arguments(world, tmp_path / 'run'), capsys)
    assert 'No space left on device' in message and str(tmp_path / 'run') in message


def test_two_runs_with_one_seed_are_equal_and_with_another_are_not(world, finished, tmp_path):
    for name, seed in (('same', '1'), ('other', '2')):
        assert (
            main(arguments(world, tmp_path / name, 'train.epochs=1', '--seed', seed, '--no-test'))
            == 0
        )
    first = read_log(finished)[0]['train']
    assert (
        read_log(tmp_path / 'same')[0]['train'] == first != read_log(tmp_path / 'other')[0]['train']
    )
    assert not (tmp_path / 'same/metrics.json').exists()


def test_teacher_and_temperature_go_on_exactly(world, tmp_path):
    modern = ['loss.teacher=momentum', 'loss.teacher_momentum=0.8', 'loss.contrastive=infonce']
    for name, epochs in (
        ('whole', ['train.epochs=3']),
        ('parts', ['train.epochs=1']),
        ('parts', ['train.epochs=3', '--resume']),
    ):
        assert main(arguments(world, tmp_path / name, *modern, *epochs)) == 0
    whole, parts = comparable(tmp_path / 'whole'), comparable(tmp_path / 'parts')
    assert_equal(parts, whole)
    last, best = whole[0], whole[3]
    teacher = load_checkpoint(tmp_path / 'whole' / LAST).training['teacher']
    assert not torch.equal(
        teacher['projection.linear.weight'], last['text_projection.linear.weight']
    )
    assert last['log_scale'] != best['log_scale'] or len(whole[2]) == 1
    assert not any('teacher' in name for name in best)  # evaluation needs none
    scales = [record['train']['scale'] for record in whole[2]]
    assert scales[0] == pytest.approx(1 / 0.07, rel=0.01) and len(set(scales)) == 3


def test_an_ablation_on_top_names_the_run(world):
    root, bert = world
    more = ['--config', CONFIG, '--config', str(REPOSITORY / 'configs/ablation/no_adversary.yaml')]
    assert (
        main([*more, '--rootpath', str(root), *tiny.options(bert), 'train.epochs=1', '--no-test'])
        == 0
    )
    config = yaml.safe_load(
        (root / 'multi30k/runs/multi30k_no_adversary_de/seed_1/config.yaml').read_text()
    )
    assert config['loss']['weights'] == {
        'triplet_en': 1.0,
        'triplet_tgt': 0.6,
        'kd_sim': 0.4,
        'kd_feat': 0.1,
        'triplet_back': 0.5,
        'back_visual': 0.0,
        'adversarial': 0.0,
    }


def test_english_alone_needs_no_translations(world, tmp_path):
    root = tiny.make_collection(tmp_path / 'root')
    for path in (root / 'multi30k/TextData').glob('multi30ktrain_google*'):
        path.unlink()
    more = ['--config', str(REPOSITORY / 'configs/ablation/en_only.yaml'), 'train.epochs=1']
    assert main(arguments((root, world[1]), tmp_path / 'run', *more)) == 0
    assert read_log(tmp_path / 'run')[0]['train'].keys() == {'triplet_en', 'total', 'grad_norm'}


def test_missing_items_left_out_from_the_first_epoch_to_the_table(world, tmp_path, capsys):
    """And validation and test by the target-language queries alone, without their translations."""
    root, bert = shutil.copytree(world[0], tmp_path / 'root'), world[1]
    for path in (root / 'multi30k/TextData').iterdir():
        path.write_text(path.read_text().replace('1.jpg#', '1_gone.jpg#'))
    for split in ('val', 'test'):
        next((root / 'multi30k/TextData').glob(f'multi30k{split}_google*')).unlink()
    words = [
        '--config',
        CONFIG,
        '--rootpath',
        str(root),
        '--run-dir',
        str(tmp_path / 'run'),
        *tiny.options(bert),
        'train.epochs=1',
        'eval.weights=[0]',
        'train.val_weight=0',
    ]
    assert main(words) == 2 and 'data.missing=skip' in capsys.readouterr().err
    assert main([*words, 'data.missing=skip', 'loss.mask_same_visual=true']) == 0
    started = json.loads((tmp_path / 'run/run.json').read_text())['left_out']
    assert started['train'] == {'captions': 2, 'of_captions': 12, 'visuals': 2, 'of_visuals': 12}
    assert started['val'] == {'captions': 1, 'of_captions': 6, 'visuals': 1, 'of_visuals': 7}
    report = json.loads((tmp_path / 'run/metrics.json').read_text())
    assert report['left_out']['captions'] == 2 and [row['weight'] for row in report['rows']] == [0]
    assert len(read_runs([tmp_path / 'run'])) == 1
    assert main([*words, '--resume', 'train.epochs=2']) == 2
    assert "data.missing: 'skip' -> 'error'" in capsys.readouterr().err


def test_more_epochs_for_a_finished_run(world, tmp_path, capsys):
    folder = tmp_path / 'run'
    assert main(arguments(world, folder, 'train.epochs=1')) == 0
    # nothing to do but the test
    assert main(arguments(world, folder, 'train.epochs=1', '--resume')) == 0
    assert (folder / 'metrics.json').exists()
    assert (
        main(arguments(world, folder, 'train.epochs=2', '--resume', '--workers', '0', '--no-test'))
        == 0
    )
    assert [record['epoch'] for record in read_log(folder)] == [1, 2]
    # of one epoch
    assert not (folder / 'metrics.json').exists() and not (folder / 'ranks.npz').exists()


def test_the_test_of_a_continuation_is_computed_as_it_says(world, tmp_path, monkeypatch, capsys):
    asked = []
    folder = tmp_path / 'run'
    assert main(arguments(world, folder, 'train.epochs=1', '--no-test')) == 0

    def watched(*args, overrides, **options):
        asked.extend(overrides)
        return evaluate_checkpoint(*args, overrides=overrides, **options)

    monkeypatch.setattr(train, 'evaluate_checkpoint', watched)
    assert (
        main(
            arguments(
                world,
                folder,
                'train.epochs=1',
                '--resume',
                'compute.score_memory=7',
                'compute.attention=eager',
            )
        )
        == 0
    )
    assert {
        'compute.score_memory=7',
        'compute.attention="eager"',
        'compute.image_cache="none"',
    } <= set(asked)
    assert json.loads((folder / 'metrics.json').read_text())['altered'] == []


def test_early_stop(world, tmp_path, monkeypatch, capsys):
    figures = iter([10.0, 5.0, 4.0, 3.0])
    monkeypatch.setattr(train, 'recall_sum', lambda _: next(figures))
    assert main(arguments(world, tmp_path / 'run', 'train.patience=1', '--no-test')) == 0
    assert 'stopped: 2 epochs without improvement' in capsys.readouterr().out
    assert (
        load_checkpoint(tmp_path / 'run').epoch == 1
        and load_checkpoint(tmp_path / 'run' / LAST).epoch == 3
    )


def test_the_rate_of_noise_names_the_run_folder(world, capsys):
    root, bert = world
    assert (
        main(
            [
                '--config',
                CONFIG,
                '--rootpath',
                str(root),
                *tiny.options(bert),
                'train.epochs=1',
                'name=noisy',
                'data.noise=0.2',
                '--no-test',
            ]
        )
        == 0
    )
    assert (root / 'multi30k/runs/noisy_de_noise_0.2/seed_1' / BEST).exists()


def test_default_run_folder(world, capsys):
    root, bert = world
    assert (
        main(
            [
                '--config',
                CONFIG,
                '--rootpath',
                str(root),
                *tiny.options(bert),
                'train.epochs=1',
                'name=trial',
                '--seed',
                '7',
                '--no-test',
            ]
        )
        == 0
    )
    assert (root / 'multi30k/runs/trial_de/seed_7' / BEST).exists()


def test_non_finite_loss_says_where(world, tmp_path, monkeypatch, capsys):
    real = train.build_loss

    def broken(config):
        criterion = real(config)
        criterion.terms['kd_sim'] = lambda *_: torch.tensor(math.nan)
        return criterion

    monkeypatch.setattr(train, 'build_loss', broken)
    assert main(arguments(world, tmp_path / 'run', 'train.epochs=1')) == 1
    message = capsys.readouterr().err
    assert 'epoch 1, step 1' in message and 'kd_sim=nan' in message and 'triplet_en=' in message


# ----------------------------------------------------------------------------------------- refusals


def refused(argv, capsys):
    assert main(argv) == 2
    message = capsys.readouterr().err  # what it was doing may have been said before
    assert 'train.py: error: ' in message and 'Traceback' not in message
    return message[message.index('train.py: error: ') :]


def test_a_run_is_not_overwritten(world, finished, capsys):
    before = (finished / LAST).read_bytes()
    message = refused(arguments(world, finished, 'train.epochs=4'), capsys)
    assert (
        'already has a run (tested' in message
        and '--resume' in message
        and '--overwrite' in message
    )
    assert (finished / LAST).read_bytes() == before


def test_overwrite(world, tmp_path, capsys):
    folder = tmp_path / 'run'
    assert main(arguments(world, folder, 'train.epochs=2')) == 0
    (folder / 'notes.txt').write_text('mine')
    refused(
        arguments(world, folder, 'train.epochs=1', '--overwrite', 'visual.feature=absent'), capsys
    )
    assert (folder / LAST).exists()  # an error in the new options costs nothing
    assert main(arguments(world, folder, 'train.epochs=1', '--overwrite', '--no-test')) == 0
    assert (
        len(read_log(folder)) == 1
        and not (folder / 'metrics.json').exists()
        and (folder / 'notes.txt').exists()
    )


def test_resume_with_another_config_names_the_keys(world, finished, capsys):
    message = refused(arguments(world, finished, 'train.lr=0.5', 'space.dim=8', '--resume'), capsys)
    assert (
        'train.lr: 0.001 -> 0.5' in message
        and 'space.dim: 12 -> 8' in message
        and 'train.epochs:' not in message
    )


def test_resume_of_nothing(world, tmp_path, capsys):
    message = refused(arguments(world, tmp_path / 'absent', '--resume'), capsys)
    assert 'nothing to resume' in message and 'omit --resume' in message
    (tmp_path / 'cut off/tokenizer').mkdir(parents=True)  # killed before it had written its config
    message = refused(arguments(world, tmp_path / 'cut off', '--resume'), capsys)
    assert 'nothing to resume' in message and '--overwrite' in message


def test_resume_of_a_run_that_finished_no_epoch(world, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(train, 'train_one_epoch', lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert main(arguments(world, tmp_path / 'run')) == 130
    assert main(arguments(world, tmp_path / 'run', 'train.epochs=1', '--resume', '--no-test')) == 0
    assert len(read_log(tmp_path / 'run')) == 1


@pytest.mark.parametrize(
    'more, expected',
    [
        (['train.learning_rate=1'], "unknown key 'train.learning_rate'"),
        (['train.lr=fast'], 'train.lr'),
        (['--device', 'gpu'], "device 'gpu'"),
        (['--device', '0,1'], 'torch finds no GPU'),
        (['data.lang=fr'], 'no captions'),
        (['text.bert=/absent/bert'], '/absent/bert'),
        (['text.trained_layers=[7]'], 'names layer 7'),
        (['--resume', '--overwrite'], 'contradict'),
    ],
)
def test_user_errors_leave_no_run_behind(world, tmp_path, capsys, more, expected):
    assert expected in refused(arguments(world, tmp_path / 'run', *more), capsys)
    assert not (tmp_path / 'run').exists()


def test_captions_beyond_berts_positions_are_refused_unless_they_are_cut(world, tmp_path, capsys):
    root = tiny.make_collection(tmp_path / 'root')
    for path in (root / 'multi30k/TextData').glob('multi30ktrain_*'):
        with open(path, 'a') as file:
            file.write(f'train0.jpg#x#7 {"cat " * 80}\n')
    argv = arguments((root, world[1]), tmp_path / 'run', 'train.epochs=1', '--no-test')
    message = refused(argv, capsys)
    assert 'but this BERT has only 64 positions: set text.positions=64' in message
    assert not (tmp_path / 'run').exists()
    assert main([*argv, 'text.positions=64']) == 0


# -------------------------------------------------------------------------------------- the console


def test_a_log_file_gets_a_line_an_epoch_and_no_pieces_of_bars(world, tmp_path, capfd):
    assert main(arguments(world, tmp_path / 'run', 'train.epochs=2', '--no-test')) == 0
    captured = capfd.readouterr()
    assert [line.split()[:2] for line in captured.out.splitlines()[3:]] == [
        ['epoch', '1'],
        ['epoch', '2'],
    ]
    assert captured.err == 'loading the encoders and the data ...\n'


def test_a_long_epoch_shows_plain_lines_in_a_log_file(capfd):
    bar = epoch_progress(range(30), epoch=7, epochs=9, seconds=0.05)
    for step in bar:
        time.sleep(0.01)
        bar.loss = step + 0.5
    captured = capfd.readouterr().err
    assert '\r' not in captured and captured.endswith('\n')
    lines = captured.splitlines()
    assert 2 <= len(lines) <= 7
    assert all(
        re.fullmatch(r'epoch 7/9  step \d+/30  loss \d+\.\d+  at most 0:0\d left', line)
        for line in lines
    )


# ------------------------------------------------------------------------------------------ the log


def test_log_drops_what_a_resumed_run_will_write_again(tmp_path):
    (tmp_path / 'log.jsonl').write_text('{"epoch": 1}\n{"epoch": 2}\n{"epoch": 3}\n{"ep')
    with RunLog(tmp_path, epoch=2):
        pass
    assert (tmp_path / 'log.jsonl').read_text() == '{"epoch": 1}\n{"epoch": 2}\n'


def test_log_damaged_in_the_middle_is_an_error(tmp_path):
    (tmp_path / 'log.jsonl').write_text('{"epoch": 1}\nrubbish\n{"epoch": 3}\n')
    with pytest.raises(ValueError, match='line 2: not JSON'):
        read_log(tmp_path)


def test_run_folder_states(tmp_path):
    assert check_run_folder(tmp_path / 'new', {}) is None
    (tmp_path / 'old').mkdir()
    (tmp_path / 'old/config.yaml').write_text(
        'name: vatex\ndata: {collection: vatex}\ntrain: {epochs: 3}\n'
    )
    (tmp_path / 'old' / LAST).write_text('')
    asked = config_to_dict(
        load_config(REPOSITORY / 'configs/vatex.yaml', ['train.epochs=9', 'compute.micro_batch=8'])
    )
    assert check_run_folder(tmp_path / 'old', asked, resume=True) == tmp_path / 'old' / LAST
    assert check_run_folder(tmp_path / 'old', {}, overwrite=True) is None


def test_a_finished_run_without_its_state_is_not_started_again(world, finished, tmp_path, capsys):
    folder = tmp_path / 'run'
    shutil.copytree(finished, folder)
    (folder / LAST).unlink()
    before = (folder / BEST).read_bytes()
    assert main(arguments(world, folder, 'train.epochs=5', '--resume')) == 2
    assert 'its last.pt was deleted after the test' in capsys.readouterr().err
    assert (folder / BEST).read_bytes() == before and (folder / 'metrics.json').exists()


@pytest.mark.parametrize(
    'name, content, message',
    [
        ('config.yaml', 'train: [', 'config.yaml is not a config of train.py'),
        ('config.yaml', '', 'config.yaml is not a config of train.py'),
        ('run.json', '{', 'run.json is damaged'),
    ],
)
def test_damaged_files_of_a_run_are_named(
    world, finished, tmp_path, capsys, name, content, message
):
    folder = tmp_path / 'run'
    shutil.copytree(finished, folder)
    (folder / name).write_text(content)
    assert main(arguments(world, folder, 'train.epochs=5', '--resume')) == 2
    assert message in capsys.readouterr().err


def damage_nothing(folder):
    return ''


def other_depth(folder):
    config = json.loads((folder / 'config.json').read_text())
    (folder / 'config.json').write_text(json.dumps({**config, 'num_hidden_layers': 4}))
    return 'hold the weights of another model, or of a part'


def other_width(folder):
    config = json.loads((folder / 'config.json').read_text())
    (folder / 'config.json').write_text(json.dumps({**config, 'intermediate_size': 64}))
    return "key 'text.bert': cannot load"


def cut_short(folder):
    path = folder / 'model.safetensors'
    path.write_bytes(path.read_bytes()[:1000])
    return "key 'text.bert': cannot load"


@pytest.mark.parametrize('damage', [damage_nothing, other_depth, other_width, cut_short])
def test_weights_that_do_not_fit_are_refused(world, tmp_path, capsys, damage):
    bert = tiny.make_bert(tmp_path / 'bert')
    message = damage(bert)
    status = main(arguments((world[0], bert), tmp_path / 'run', 'train.epochs=1', '--no-test'))
    error = capsys.readouterr().err
    assert (status == 2 and message in error and 'text.bert' in error) if message else status == 0
