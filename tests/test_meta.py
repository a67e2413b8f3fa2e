"""Every kind of model on torch's `meta` device, which knows shapes but no numbers.

To read a number raises there: so a step that waits for a GPU shows, and a tensor on a wrong device.
"""

import pytest
from torch.optim import adam

import train
from loss import build_loss
from model import build_model, build_teacher

MODERN = ('loss.teacher=momentum', 'loss.contrastive=infonce')


@pytest.fixture
def reads(monkeypatch):
    """The names of the figures that a step reads from the device; each read gives ones."""
    found = []

    def as_floats(figures):
        found.append(sorted(figures))
        return dict.fromkeys(figures, 1.0)

    monkeypatch.setattr(train, 'as_floats', as_floats)
    # The check lists real devices.
    monkeypatch.setattr(adam, '_device_dtype_check_for_fused', lambda *_, **__: None)
    return found


def step_on_meta(config, batch):
    model = build_model(config, feature_dim=10)
    model.to('meta').train()
    optimizer, discriminator_optimizer = train.build_optimizers(model, config)
    return train.train_step(
        batch.to('meta', non_blocking=True),
        model=model,
        criterion=build_loss(config),
        optimizer=optimizer,
        discriminator_optimizer=discriminator_optimizer,
        grad_clip=config.train.grad_clip,
        micro_batch=config.compute.micro_batch,
        precision=config.compute.precision,
        teacher=build_teacher(config, model),
    )


@pytest.mark.parametrize(
    'kind, options',
    [
        ('frames', ()),
        ('pooled', ()),
        ('clip', ()),
        ('frames', MODERN),
        ('pooled', ('discriminator.kind=weak', 'compute.attention=eager')),
        (
            'frames',
            ('discriminator.kind=strong', 'discriminator.pooling=mean', 'visual.pooling=max'),
        ),
        ('frames', ('compute.micro_batch=4', 'compute.checkpointing=true')),
        ('clip', ('compute.micro_batch=4', *MODERN)),
        ('clip', ('visual.train_clip=true', 'text.train_all=true', 'discriminator.kind=strong')),
        ('pooled', ('loss.hardest=false', 'train.grad_clip=0', 'compute.precision=bf16')),
        ('pooled', ('loss.weights.triplet_back=0', 'loss.weights.adversarial=0')),
        (
            'pooled',
            (
                'loss.weights.kd_sim=0',
                'loss.weights.kd_feat=0',
                'loss.weights.adversarial=0',
                'loss.weights.triplet_tgt=0',
                'compute.attention=fused',
            ),
        ),
    ],
)
def test_a_step_reads_its_figures_and_nothing_else(make_config, make_batch, reads, kind, options):
    values = step_on_meta(make_config(kind, *options), make_batch(kind))
    assert reads == [sorted(values)] and 'train/total' in values and 'train/grad_norm' in values
