"""Ways of computing that change speed and memory: the figures stay."""

import pytest
import torch
from conftest import NO_DROPOUT, REPOSITORY
from torch._dynamo.testing import CompileCounter

from basic.caption import Tokens
from loss import build_loss
from model import Encoded, build_model, build_teacher
from train import build_optimizers, train_step
from util import verify_parity

GOLDEN = REPOSITORY / 'tests/data/golden'
MEANS = ('text.pooling=mean', 'visual.pooling=mean', 'discriminator.pooling=mean')


@pytest.mark.parametrize(
    'option',
    [
        'compute.attention=fused',
        'compute.attention=eager',
        'compute.micro_batch=3',
        'compute.checkpointing=true',
    ],
)
def test_released_figures(option):
    rows = verify_parity.check_model(GOLDEN / 'video.json', torch.device('cpu'), [option])
    assert len(rows) > 10 and [row for row in rows if not verify_parity.passes(row)] == []


@pytest.fixture
def make_step(make_config):
    """make_step(kind, *options) -> the keyword arguments of train_step for a small model;
    seeded."""

    def make(kind, *options):
        config = make_config(kind, 'loss.weights.adversarial=1', *options)
        torch.manual_seed(0)
        model = build_model(config, feature_dim=10).train()
        optimizer, discriminator_optimizer = build_optimizers(model, config)
        return {
            'model': model,
            'criterion': build_loss(config),
            'grad_clip': 0,
            'optimizer': optimizer,
            'discriminator_optimizer': discriminator_optimizer,
            'micro_batch': config.compute.micro_batch,
            'precision': config.compute.precision,
            'teacher': build_teacher(config, model),
        }

    return make


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same_step(one, other, batch, rel=1e-5):
    """Both take a step on the batch: the same figures and gradients."""
    values, others = train_step(batch, **one), train_step(batch, **other)
    judged = 'train/adversarial'  # by a discriminator after Adam's first step, of which the sign of
    if judged in values:  # rounding decides where there is hardly a gradient
        assert others.pop(judged) == pytest.approx(values.pop(judged), rel=10 * rel)
    assert others == pytest.approx(values, rel=rel, abs=1e-6)
    ours, theirs = gradients(one['model']), gradients(other['model'])
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.allclose(
            theirs[name], value, rtol=rel, atol=rel * values['train/grad_norm']
        ), name


@pytest.mark.parametrize('kind', ['frames', 'pooled', 'clip'])
@pytest.mark.parametrize(
    'option',
    [
        'compute.micro_batch=4',
        'compute.micro_batch=1',
        'compute.micro_batch=6',
        'compute.checkpointing=true',
        'compute.attention=fused',
    ],
)
def test_a_step_stays_what_it_is(make_step, make_batch, kind, option):
    assert_same_step(
        make_step(kind, *NO_DROPOUT), make_step(kind, *NO_DROPOUT, option), make_batch(kind)
    )


@pytest.mark.parametrize(
    'option', ['compute.micro_batch=4', 'compute.checkpointing=true', 'compute.attention=fused']
)
def test_a_step_with_momentum_teacher_and_infonce_stays_what_it_is(make_step, make_batch, option):
    modern = [
        *NO_DROPOUT,
        'loss.teacher=momentum',
        'loss.teacher_momentum=0.5',
        'loss.contrastive=infonce',
    ]
    one, other = make_step('frames', *modern), make_step('frames', *modern, option)
    for seed in (0, 1):  # in the second, the teacher has moved
        assert_same_step(one, other, make_batch(seed=seed), rel=1e-5 * 100**seed)
    for name, value in one['teacher'].weights().items():
        assert torch.allclose(other['teacher'].weights()[name], value, atol=1e-3), name


def test_sorting_by_length_stays_what_it_is(make_step, make_batch, monkeypatch):
    """Where padding does not matter: several groups, of captions that are not in order of
    length."""
    monkeypatch.setattr('model.GROUP', 4)
    sorted_step, plain_step = (
        make_step('frames', *NO_DROPOUT, *MEANS),
        make_step('frames', *NO_DROPOUT, *MEANS),
    )
    assert not sorted_step['model'].text_encoder.padding_matters
    plain_step['model'].text_encoder.padding_matters = True
    assert_same_step(plain_step, sorted_step, make_batch())


@pytest.mark.parametrize(
    'options, matters',
    [
        ((), True),
        (MEANS, False),
        (MEANS[:2], True),
        ((*MEANS[:2], 'loss.weights.adversarial=0'), False),
        (('text.pooling=max', 'discriminator.pooling=mean'), False),
    ],
)
def test_when_padding_matters(make_config, options, matters):
    assert (
        build_model(make_config('pooled', *options), feature_dim=10).text_encoder.padding_matters
        is matters
    )


def test_parts_are_computed_again_with_the_same_dropout(make_step, make_batch):
    """Against the parts with their graphs kept, under the same seed."""
    one, batch = make_step('frames', 'compute.micro_batch=2'), make_batch()
    other = make_step('frames')
    model = other['model']

    def keep_graphs(batch, _):
        parts = [model.encode_branches(part) for part in batch.split(2)]
        return model.project(Encoded.cat(parts), total=6)

    other['model'].forward = keep_graphs
    for step in (one, other):
        torch.manual_seed(5)
        step['values'] = train_step(batch, **step)
    assert one['values'] == pytest.approx(other['values'], rel=1e-6)
    theirs = gradients(model)
    for name, value in gradients(one['model']).items():
        assert torch.allclose(value, theirs[name], rtol=1e-5, atol=1e-7), name


def test_every_device_s_random_numbers_are_kept_for_the_parts(make_step, make_batch, monkeypatch):
    """`checkpoint` looks for devices among the tensors that it is given, not inside a Batch."""
    batch, given = make_batch(), []
    monkeypatch.setattr(
        'model.checkpoint',
        lambda function, *arguments, **options: (
            given.append({a.device for a in arguments if isinstance(a, torch.Tensor)}),
            function(*arguments),
        )[1],
    )
    make_step('frames')['model'](batch, 2)
    assert given == 3 * [{batch.index.device}]


def kept_bytes(model, batch, micro_batch):
    """Bytes that the forward pass keeps for the backward pass, parameters left out."""
    parameters, kept = {p.data_ptr() for p in model.parameters()}, {}

    def note(tensor):
        if tensor.data_ptr() not in parameters:
            kept[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        model(batch, micro_batch)
    return sum(kept.values())


def test_parts_keep_little(make_step, make_batch):
    model, batch = make_step('frames')['model'], make_batch()
    assert kept_bytes(model, batch, micro_batch=2) < kept_bytes(model, batch, micro_batch=0) / 4


def test_checkpointed_layers_keep_little(make_step, make_batch):
    batch = make_batch()
    plain, frugal = (
        kept_bytes(make_step('frames', *options)['model'], batch, 0)
        for options in ((), ('compute.checkpointing=true',))
    )
    assert frugal < 0.75 * plain


@pytest.mark.parametrize('option', ['compute.checkpointing=false', 'compute.checkpointing=true'])
def test_nothing_is_kept_below_the_lowest_trained_layer(make_step, make_batch, option):
    model, seen = make_step('frames', 'text.trained_layers=[2]', option)['model'], {}
    for number, layer in enumerate(model.text_encoder.bert.encoder.layer):
        layer.register_forward_hook(
            lambda _, inputs, output, number=number: seen.update(
                {number: (output[0] if isinstance(output, tuple) else output).requires_grad}
            )
        )
    model(make_batch())
    assert seen == {0: False, 1: False, 2: True}


@pytest.mark.parametrize('more', [(), ('loss.teacher=momentum', 'loss.contrastive=infonce')])
def test_bfloat16(make_step, make_batch, more):
    """Coarser, but the same step; what losses and scores compare is float32."""
    options, batch = [*NO_DROPOUT, *more], make_batch()
    exact, coarse = (
        make_step('frames', *options),
        make_step('frames', *options, 'compute.precision=bf16'),
    )
    values, others = train_step(batch, **exact), train_step(batch, **coarse)
    assert others == pytest.approx(values, rel=0.05, abs=0.02) and others != pytest.approx(
        values, rel=1e-5
    )
    with torch.autocast('cpu', dtype=torch.bfloat16):
        encoded = coarse['model'](batch)
        cross = coarse['teacher'](batch) if more else encoded.cross
    assert {encoded.visual.dtype, encoded.en.dtype, cross.dtype} == {torch.float32}
    assert all(p.dtype == torch.float32 for p in coarse['model'].parameters())


@pytest.mark.parametrize('pooling', ['mean', 'padded_mean'])
def test_a_cpu_convolves_in_float32(make_step, make_batch, pooling):
    """In bfloat16 the threads of a CPU wait for each other within the convolutions."""
    step, seen = (
        make_step(
            'frames',
            'compute.precision=bf16',
            'discriminator.kind=strong',
            f'discriminator.pooling={pooling}',
        ),
        set(),
    )
    for module in step['model'].discriminator.modules():
        if isinstance(module, torch.nn.Conv1d):
            module.register_forward_hook(
                lambda _, inputs, output: seen.add((inputs[0].dtype, output.dtype))
            )
    train_step(make_batch(), **step)
    assert seen == {(torch.float32, torch.float32)}


def test_compiled_once_for_every_length(make_step, make_batch, monkeypatch):
    """With a stand-in for the code generator: what is compiled, how often, and that it computes the
    same."""
    torch._dynamo.reset()
    counter, compile_module = CompileCounter(), torch.nn.Module.compile
    monkeypatch.setattr(
        torch.nn.Module,
        'compile',
        lambda self, **options: compile_module(self, backend=counter, **options),
    )
    step, plain, counts = (
        make_step('frames', *NO_DROPOUT, 'compute.compile=true'),
        make_step('frames', *NO_DROPOUT),
        [],
    )
    for length in (0, 1, 2, 3, 4):
        batch = make_batch(seed=length)
        batch.en = longer(batch.en, length)
        batch.visual = torch.nn.functional.pad(batch.visual, (0, 0, 0, length))
        batch.visual_mask = torch.nn.functional.pad(batch.visual_mask, (0, length))
        if length == 0:
            assert_same_step(plain, step, batch)
        else:
            train_step(batch, **step)
        counts.append(counter.frame_count)
    assert counts[0] > 0 and counts[1] == counts[-1], counts
    torch._dynamo.reset()


def longer(tokens, more):
    pad = torch.nn.functional.pad
    return Tokens(pad(tokens.ids, (0, more)), pad(tokens.mask, (0, more)))
