"""The model: what padding may change, what trains and what does not, branches, discriminators,
rebuilding."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
import transformers
from conftest import FEATURE_DIM, IMAGE_SIZE, NO_DROPOUT, VOCABULARY, random_tokens
from torch.nn import functional as F

from basic.caption import Tokens
from basic.checkpoint import load_checkpoint, save_checkpoint
from basic.config import DISCRIMINATORS, VISUAL_KINDS, config_to_dict
from basic.images import Preprocessing
from basic.pretrained import hub
from loss import build_loss, discriminator_loss
from basic.pretrained.encoders import bert_layers, build_bert
from model import (
    LARGEST_SCALE,
    MomentumTeacher,
    Projection,
    TextEncoder,
    build_discriminator,
    build_model,
    build_teacher,
)

DIM = 32  # of the tiny BERT's tokens


@pytest.fixture
def make_model(make_config):
    """make_model(kind, *options) -> the same random weights each time for the same sizes."""

    def make(kind='frames', *options):
        torch.manual_seed(5)
        return build_model(make_config(kind, *options), feature_dim=FEATURE_DIM)

    return make


def captions(lengths, seed=0):
    return random_tokens(torch.Generator().manual_seed(seed), lengths)


def padded(tokens, extra, word=0):
    """The same captions with `extra` more padding, filled with `word`, also where padding was
    before."""
    ids = tokens.ids.masked_fill(tokens.mask == 0, word)
    return SimpleNamespace(
        ids=F.pad(ids, (0, extra), value=word), mask=F.pad(tokens.mask, (0, extra))
    )


def step(model, criterion, batch, optimizer=None, discriminator_optimizer=None):
    """One training step as METHOD describes it; returns the terms."""
    encoded = model(batch)
    fake_logits = None
    if 'adversarial' in criterion.weights:
        loss, _ = discriminator_loss(
            model.discriminator(encoded.tokens_en.detach(), batch.en.mask),
            model.discriminator(encoded.tokens_tgt.detach(), batch.tgt.mask),
        )
        model.discriminator.zero_grad()
        loss.backward()
        if discriminator_optimizer:
            discriminator_optimizer.step()
        fake_logits = model.discriminator(encoded.tokens_tgt, batch.tgt.mask)
    terms = criterion(encoded, fake_logits)
    if optimizer:
        optimizer.zero_grad()
    criterion.total(terms).backward()
    if optimizer:
        optimizer.step()
    return terms


# -------------------------------------------------------------------------- padding and batch mates


@pytest.mark.parametrize(
    'pooling, changes', [('mean', False), ('max', False), ('padded_mean', True)]
)
def test_a_captions_vector_depends_on_its_batch_mates_only_with_padded_mean(
    make_model, pooling, changes
):
    encoder = make_model('frames', f'text.pooling={pooling}').eval().text_encoder
    batch = captions([4, 12, 7])
    with torch.no_grad():
        together = encoder(batch)
        alone = torch.cat(
            [encoder(batch.each(lambda x: x[i : i + 1, :n])) for i, n in enumerate([4, 12, 7])]
        )
    difference = (together - alone).abs().amax(dim=1)
    assert difference[1] < 1e-5  # the longest one is not padded
    assert (difference[[0, 2]] > 1e-3).all() if changes else (difference < 1e-5).all()


@pytest.mark.parametrize('pooling', ['mean', 'max'])
def test_what_stands_in_the_padding_does_not_matter(make_model, pooling):
    model = make_model('frames', f'text.pooling={pooling}', f'visual.pooling={pooling}').eval()
    batch = captions([4, 9])
    more = padded(batch, 3, word=7)
    with torch.no_grad():
        assert torch.allclose(model.encode_text(batch), model.encode_text(more), atol=1e-6)


@pytest.mark.parametrize(
    'pooling, changes', [('mean', False), ('max', False), ('padded_mean', True)]
)
def test_a_videos_vector_depends_on_its_batch_mates_only_with_padded_mean(
    make_model, make_batch, pooling, changes
):
    encoder, batch = (
        make_model('frames', f'visual.pooling={pooling}').eval().visual_encoder,
        make_batch(),
    )
    counts = batch.visual_mask.sum(dim=1).int().tolist()
    with torch.no_grad():
        together = encoder(batch.visual, batch.visual_mask)
        alone = torch.cat(
            [
                encoder(batch.visual[i : i + 1, :n], batch.visual_mask[i : i + 1, :n])
                for i, n in enumerate(counts)
            ]
        )
        garbage = encoder(
            batch.visual + torch.randn(6, 7, FEATURE_DIM) * (1 - batch.visual_mask[..., None]),
            batch.visual_mask,
        )
    difference, short = (together - alone).abs().amax(dim=1), torch.tensor(counts) < 7
    assert (difference[~short] < 1e-5).all()
    assert (difference[short] > 1e-3).all() if changes else (difference < 1e-5).all()
    assert ((garbage - together).abs().max() > 1e-3) == changes


@pytest.mark.parametrize(
    'pooling, changes', [('mean', False), ('max', False), ('padded_mean', True)]
)
def test_the_cross_branch_likewise(make_model, pooling, changes):
    encoder = make_model('frames', f'text.pooling={pooling}').eval().text_encoder

    def cross(en, tgt):
        en_tokens, tgt_tokens = encoder.tokens([en, tgt])
        return encoder.attend_across(
            encoder.inputs(en_tokens), en.mask, encoder.inputs(tgt_tokens), tgt.mask
        )

    en, tgt = captions([5, 8]), captions([9, 3], seed=1)
    with torch.no_grad():
        plain = cross(en, tgt)
        for other in (cross(padded(en, 2), tgt), cross(en, padded(tgt, 3))):
            assert ((other - plain).abs().max() > 1e-3) == changes


def test_the_cross_branch_pools_what_it_read_together_with_the_translations_inputs(make_model):
    encoder = make_model('frames', 'text.pooling=mean').eval().text_encoder
    generator = torch.Generator().manual_seed(0)
    en, tgt = torch.randn(2, 4, 24, generator=generator), torch.randn(2, 3, 24, generator=generator)
    en_mask, tgt_mask = (
        torch.tensor([[1.0] * 4, [1, 1, 0, 0]]),
        torch.tensor([[1.0] * 3, [1, 0, 0]]),
    )
    crossed = encoder.block(en, en_mask, context=tgt, context_mask=tgt_mask)
    expected = torch.stack(
        [
            torch.cat([crossed[0], tgt[0]]).mean(dim=0),
            torch.cat([crossed[1, :2], tgt[1, :1]]).mean(dim=0),
        ]
    )
    assert torch.allclose(encoder.attend_across(en, en_mask, tgt, tgt_mask), expected, atol=1e-6)


def test_one_pass_through_bert_equals_one_a_branch(make_model, make_batch):
    encoder, batch = make_model().eval().text_encoder, make_batch()
    branches = [batch.en, batch.tgt, batch.back]
    with torch.no_grad():
        apart, together = (
            encoder.tokens(branches, together=False),
            encoder.tokens(branches, together=True),
        )
    for one, other, captions in zip(apart, together, branches):
        assert one.shape == other.shape == (*captions.ids.shape, DIM)
        # at padded positions too: padded_mean reads them
        assert torch.allclose(one, other, atol=1e-5)
        assert one.std() > 0.1
    assert not torch.allclose(together[0][:, :4], together[1][:, :4], atol=1e-2)


def test_a_caption_longer_than_berts_positions_names_the_option(make_model):
    encoder = make_model('frames', 'text.positions=64').eval().text_encoder  # the tiny BERT has 40
    ids = torch.full((1, 41), 5)
    with pytest.raises(
        ValueError, match='41 tokens, but this BERT has only 40 positions: set text.positions=40'
    ):
        encoder(Tokens(ids, torch.ones(1, 41)))
    assert encoder(Tokens(ids[:, :40], torch.ones(1, 40))).shape == (1, 24)


def test_positions_of_other_models_are_counted_as_they_count_them():
    sizes = dict(
        vocab_size=20,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=8,
        max_position_embeddings=12,
    )
    for kind, longest in (('bert', 12), ('xlm-roberta', 10), ('electra', 12), ('deberta-v2', 12)):
        bert = build_bert(
            name='', pretrained=False, dropout=0.0, architecture={'model_type': kind, **sizes}
        )
        encoder = _text_encoder(bert)
        assert encoder.max_tokens == longest
        assert encoder(Tokens(torch.full((1, longest), 5), torch.ones(1, longest))).shape == (1, 8)


def _text_encoder(bert, **options):
    return TextEncoder(
        bert=bert,
        **{
            **dict(
                trained_layers=[0],
                train_embeddings=False,
                hidden=8,
                heads=2,
                qk_width=4,
                score_scale='value_width',
                positions=12,
                dropout=0.0,
                pooling='mean',
            ),
            **options,
        },
    )


# -------------------------------------------------------------------------------------- what trains

VARIANTS = [
    ('frames', 'strong', 'visual.train_clip=false'),
    ('pooled', 'not-so-weak', 'visual.train_clip=false'),
    ('clip', 'weak', 'visual.train_clip=false'),
    ('clip', 'weak', 'visual.train_clip=true'),
]


@pytest.mark.parametrize('kind, discriminator, train_clip', VARIANTS)
def test_what_is_trained_gets_a_gradient_and_what_is_frozen_does_not_move(
    make_model, make_config, make_batch, kind, discriminator, train_clip
):
    options = [f'discriminator.kind={discriminator}', train_clip, *NO_DROPOUT]
    model, criterion = make_model(kind, *options).train(), build_loss(make_config(kind, *options))
    main, names = model.main_parameters(), {id(p): name for name, p in model.named_parameters()}
    before = {name: tensor.clone() for name, tensor in model.named_parameters()}
    optimizer = torch.optim.Adam(main, lr=1e-3)
    discriminator_optimizer = torch.optim.Adam(model.discriminator.parameters(), lr=1e-3)
    for seed in range(3):
        step(model, criterion, make_batch(kind, seed), optimizer, discriminator_optimizer)

    trained = {names[id(p)] for p in [*main, *model.discriminator.parameters()]}
    for name, parameter in model.named_parameters():
        if name in trained:
            assert parameter.grad is not None, name
            # A bias right before a batch norm, or on all of a softmax's scores, has a gradient of
            # rounding errors.
            assert parameter.grad.any() or name.endswith(
                ('linear.bias', 'key.bias', 'k_proj.bias')
            ), name
            assert name.endswith('.bias') or not torch.equal(parameter, before[name]), name
        else:
            assert parameter.grad is None and torch.equal(parameter, before[name]), name
    frozen = set(before) - trained
    expected = {
        name
        for name in before
        if name.startswith(('text_encoder.bert.embeddings.', 'text_encoder.bert.encoder.layer.0.'))
    }
    if kind == 'clip' and train_clip.endswith('false'):
        expected |= {name for name in before if name.startswith('visual_encoder.clip.')}
    assert frozen == expected and len(expected) > 10


def test_the_discriminator_is_not_among_the_main_parameters(make_model):
    model = make_model()
    main = {id(p) for p in model.main_parameters()}
    assert main.isdisjoint(id(p) for p in model.discriminator.parameters())
    assert all(p.requires_grad for p in model.discriminator.parameters())
    assert main == {
        id(p)
        for name, p in model.named_parameters()
        if p.requires_grad and name.split('.')[0] != 'discriminator'
    }


@pytest.mark.parametrize(
    'options, trained',
    [
        (['text.trained_layers=[]'], set()),
        (['text.trained_layers=[0]'], {'encoder.layer.0'}),
        (
            ['text.trained_layers=[2,0]', 'text.train_embeddings=true'],
            {'encoder.layer.0', 'encoder.layer.2', 'embeddings'},
        ),
    ],
)
def test_the_trained_layers_are_those_of_the_config(make_model, options, trained):
    bert = make_model('frames', *options).text_encoder.bert
    for name in ('embeddings', 'encoder.layer.0', 'encoder.layer.1', 'encoder.layer.2'):
        assert {p.requires_grad for p in bert.get_submodule(name).parameters()} == {name in trained}


def test_a_layer_that_bert_does_not_have_names_the_key(make_model):
    with pytest.raises(
        ValueError, match=r"'text.trained_layers' names layer 3, but this BERT has 3 \(0 to 2\)"
    ):
        make_model('frames', 'text.trained_layers=[2,3]')


def test_frozen_layers_still_run_with_dropout_in_training(make_model):
    model = make_model('frames', 'text.bert_dropout=0.5', 'text.trained_layers=[]').train()
    batch = captions([6, 6])
    first, second = (model.text_encoder.tokens([batch])[0] for _ in range(2))
    assert not torch.equal(first, second) and not first.requires_grad
    model.eval()
    first, second = (model.text_encoder.tokens([batch])[0] for _ in range(2))
    assert torch.equal(first, second)


def test_clip_is_read_without_a_graph_unless_trained(make_model, make_batch):
    pixels = make_batch('clip').visual
    frozen, trained = (
        make_model('clip', f'visual.train_clip={value}') for value in ('false', 'true')
    )
    for model, expected in ((frozen, False), (trained, True)):
        model.encode_visual(pixels).sum().backward()
        grads = [p.grad is not None for p in model.visual_encoder.clip.parameters()]
        assert set(grads) == {expected}
        assert model.visual_encoder.linear.weight.grad is not None
    with torch.no_grad():
        assert not trained.visual_encoder(pixels).requires_grad
        assert torch.equal(frozen.visual_encoder(pixels), trained.visual_encoder(pixels))


# ---------------------------------------------------------------------------- encoders and branches


def test_every_branch_is_of_unit_length_in_the_common_space(make_model, make_batch):
    for kind in VISUAL_KINDS:
        encoded = make_model(kind).train()(make_batch(kind))
        for name in ('visual', 'en', 'tgt', 'cross', 'back'):
            vectors = getattr(encoded, name)
            assert vectors.shape == (6, 14)
            assert torch.allclose(vectors.norm(dim=1), torch.ones(6), atol=1e-5)


def test_the_training_branches_are_those_of_evaluation(make_model, make_batch):
    model, batch = make_model().eval(), make_batch()
    with torch.no_grad():
        encoded = model(batch)
        assert torch.equal(encoded.visual, model.encode_visual(batch.visual, batch.visual_mask))
        for name in ('en', 'tgt', 'back'):
            tokens = getattr(batch, name)
            assert torch.allclose(getattr(encoded, name), model.encode_text(tokens), atol=1e-6)
    for name in ('en', 'tgt'):
        tokens, mask = getattr(encoded, f'tokens_{name}'), getattr(batch, name).mask
        assert tokens.shape == (*mask.shape, DIM) and torch.equal(mask, getattr(batch, name).mask)


def test_image_features_go_through_a_rectified_linear_layer(make_model, make_batch):
    encoder, features = make_model('pooled').visual_encoder, make_batch('pooled').visual
    assert encoder.linear.weight.shape == (FEATURE_DIM, FEATURE_DIM)
    expected = (features @ encoder.linear.weight.T + encoder.linear.bias).clamp(min=0)
    assert torch.allclose(encoder(features), expected, atol=1e-6)


def test_images_go_through_clip_and_a_linear_layer_without_activation(make_model, make_batch):
    model, pixels = make_model('clip').eval(), make_batch('clip').visual
    encoder = model.visual_encoder
    with torch.no_grad():
        image = encoder.clip(pixel_values=pixels).image_embeds
        assert torch.allclose(
            encoder(pixels), image @ encoder.linear.weight.T + encoder.linear.bias, atol=1e-6
        )
        assert (encoder(pixels) < 0).any()
    assert encoder.linear.weight.shape == (16, 12)
    assert model.preprocessing == Preprocessing(IMAGE_SIZE)


def test_features_have_no_preprocessing(make_model):
    assert make_model('frames').preprocessing is make_model('pooled').preprocessing is None


def test_projections_start_xavier_uniform_with_zero_bias():
    torch.manual_seed(0)
    projection = Projection(dim=50, space=30, dropout=0.2)
    bound = (6 / 80) ** 0.5
    weight = projection.linear.weight
    assert (
        weight.abs().max() <= bound
        and weight.abs().max() > 0.95 * bound
        and not projection.linear.bias.any()
    )
    assert abs(weight.std().item() / (bound / 3**0.5) - 1) < 0.05


def test_the_projection_is_linear_batch_norm_unit_length():
    torch.manual_seed(0)
    projection, x = Projection(dim=5, space=4, dropout=0.0).train(), torch.randn(8, 5)
    y = x @ projection.linear.weight.T
    y = (y - y.mean(dim=0)) / (y.var(dim=0, correction=0) + 1e-5).sqrt()
    assert torch.allclose(projection(x), y / y.norm(dim=1, keepdim=True), atol=1e-5)


def test_the_projection_drops_out_between_batch_norm_and_unit_length():
    torch.manual_seed(0)
    projection, x = Projection(dim=5, space=200, dropout=0.25).train(), torch.randn(8, 5)
    y = projection(x)
    assert abs((y == 0).float().mean().item() - 0.25) < 0.05
    assert torch.allclose(y.norm(dim=1), torch.ones(8), atol=1e-5)
    assert not (projection.eval()(x) == 0).any()


@pytest.mark.parametrize(
    'options, calls, missing',
    [
        ([], 4, set()),
        (['loss.weights.kd_sim=0'], 4, set()),
        (['loss.weights.kd_feat=0'], 4, set()),
        (['loss.weights.kd_sim=0', 'loss.weights.kd_feat=0'], 3, {'cross'}),
        (['loss.weights.triplet_back=0'], 3, {'back'}),
        (
            ['loss.weights.kd_sim=0', 'loss.weights.kd_feat=0', 'loss.weights.triplet_back=0'],
            2,
            {'cross', 'back'},
        ),
    ],
)
def test_a_branch_that_no_term_needs_is_not_computed(
    make_model, make_batch, options, calls, missing
):
    model, batch = make_model('frames', *options).train(), make_batch()
    if 'back' in missing:
        batch.back = None
    encoded = model(batch)
    assert {
        name for name in ('en', 'tgt', 'cross', 'back') if getattr(encoded, name) is None
    } == missing
    assert model.text_projection.norm.num_batches_tracked == calls
    assert model.visual_projection.norm.num_batches_tracked == 1
    model.eval()(batch)
    assert model.text_projection.norm.num_batches_tracked == calls


def test_the_text_projection_is_called_in_the_order_of_the_method(make_model, make_batch):
    model, batch = make_model('frames', *NO_DROPOUT).train(), make_batch()
    text, seen = model.text_encoder, []
    model.text_projection.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model(batch)
    tokens = text.tokens([batch.en, batch.tgt, batch.back])
    inputs = [text.inputs(part) for part in tokens]
    expected = [
        text.attend(inputs[0], batch.en.mask),
        text.attend(inputs[1], batch.tgt.mask),
        text.attend_across(inputs[0], batch.en.mask, inputs[1], batch.tgt.mask),
        text.attend(inputs[2], batch.back.mask),
    ]
    assert len(seen) == 4
    assert all(torch.allclose(one, other, atol=1e-6) for one, other in zip(seen, expected))


@pytest.mark.parametrize('more, calls', [([], 1), (['loss.weights.triplet_back=0.5'], 2)])
def test_without_a_term_for_translations_none_is_read(make_model, make_batch, more, calls):
    """So training on English alone needs no translated captions, and none moves the batch norm."""
    nothing = [
        f'loss.weights.{term}=0'
        for term in ('triplet_tgt', 'kd_sim', 'kd_feat', 'triplet_back', 'adversarial')
    ]
    model, batch = make_model('frames', *nothing, *more).train(), make_batch()
    batch.tgt = None
    for micro_batch in (0, 2):
        model.text_projection.norm.num_batches_tracked.zero_()
        encoded = model(batch, micro_batch)
        assert encoded.tgt is encoded.cross is encoded.tokens_tgt is None and encoded.en.shape == (
            6,
            14,
        )
        assert model.text_projection.norm.num_batches_tracked == calls


@pytest.mark.parametrize(
    'options', [[], ['text.trained_layers=[7]'], ['compute.checkpointing=true']]
)
def test_all_of_bert_is_trained_whatever_its_depth(make_model, make_batch, options):
    model = make_model('frames', 'text.train_all=true', *options).train()
    bert = model.text_encoder.bert
    model(make_batch()).en.sum().backward()
    assert all(p.requires_grad and p.grad is not None for p in bert.parameters())
    assert {id(p) for p in bert.parameters()} <= {id(p) for p in model.main_parameters()}


# ---------------------------------------------------------------------------------------------- the
# learned temperature


def test_the_temperature_is_a_parameter_only_where_it_is_learned(make_model, make_batch):
    plain, learned = make_model(), make_model('frames', 'loss.contrastive=infonce')
    assert learned.log_scale.exp().item() == pytest.approx(1 / 0.07)
    assert any(p is learned.log_scale for p in learned.main_parameters())
    assert all(
        torch.equal(value, learned.state_dict()[name]) for name, value in plain.state_dict().items()
    )
    assert 'log_scale' not in plain.state_dict() and plain(make_batch()).log_scale is None


def test_the_scale_is_bounded_and_can_come_down_again(make_model):
    model = make_model('frames', 'loss.contrastive=infonce')
    with torch.no_grad():
        model.log_scale.fill_(7.0)
    model.keep_in_bounds()
    assert model.log_scale.exp().item() == pytest.approx(LARGEST_SCALE)
    model.log_scale.exp().backward()
    assert model.log_scale.grad > 0
    make_model().keep_in_bounds()


# ----------------------------------------------------------------------------- the momentum teacher


@pytest.fixture
def make_teacher(make_model, make_config):
    """make_teacher(kind, *options) -> (model in training mode, its teacher of momentum 0.9)."""

    def make(kind='frames', *options):
        options = ['loss.teacher=momentum', 'loss.teacher_momentum=0.9', *options]
        model = make_model(kind, *options).train()
        return model, build_teacher(make_config(kind, *options), model)

    return make


@pytest.mark.parametrize(
    'options',
    [[], ['text.train_all=true'], ['text.trained_layers=[]'], ['compute.checkpointing=true']],
)
def test_the_teacher_is_a_moving_average_of_what_is_trained(make_teacher, make_batch, options):
    model, teacher = make_teacher('frames', *options)
    parts = {'encoder': model.text_encoder, 'projection': model.text_projection}
    trained = {
        f'{part}.{name}': p
        for part, module in parts.items()
        for name, p in module.named_parameters()
        if p.requires_grad
    }
    expected = {name: p.detach().clone() for name, p in trained.items()}
    assert teacher.weights().keys() == trained.keys()
    assert not any(p.requires_grad for p in teacher.weights().values())
    for step in range(3):
        with torch.no_grad():
            for p in trained.values():
                p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(step)))
        teacher.follow()
        for name, p in trained.items():
            expected[name] = 0.9 * expected[name] + 0.1 * p.detach()
            assert torch.allclose(teacher.weights()[name], expected[name], atol=1e-6), name
    moving = {p.data_ptr() for p in teacher.weights().values()}
    frozen = {p.data_ptr() for p in model.text_encoder.parameters() if not p.requires_grad}
    assert {p.data_ptr() for p in teacher.parameters()} - moving == frozen  # shared
    assert all(
        p.requires_grad == (f'encoder.{name}' in trained)
        for name, p in model.text_encoder.named_parameters()
    )


def test_the_teacher_starts_as_the_models_own_cross_branch(make_teacher, make_model, make_batch):
    own = make_model('frames', *NO_DROPOUT).train()(make_batch())
    model, teacher = make_teacher('frames', *NO_DROPOUT)
    encoded, batch = model(make_batch()), make_batch()
    assert encoded.cross is None and torch.equal(encoded.tgt, own.tgt)
    assert model.text_projection.norm.num_batches_tracked == 3
    cross = teacher(batch)
    assert torch.allclose(cross, own.cross, atol=1e-6) and not cross.requires_grad
    for micro_batch in (1, 4, 6, 9):
        assert torch.allclose(teacher(batch, micro_batch), cross, atol=1e-6)


def test_the_teacher_has_no_dropout_and_takes_the_batchs_statistics_in_any_mode(
    make_teacher, make_batch
):
    model, teacher = make_teacher()
    state, cross = torch.get_rng_state(), teacher(make_batch())
    assert torch.equal(torch.get_rng_state(), state)
    model.eval()
    for mode in (teacher.train(), teacher.eval()):
        assert torch.equal(mode(make_batch()), cross)
    assert cross.mean(dim=0).abs().max() < 0.15  # over the batch; before unit length it is 0


def test_a_teacher_goes_on_from_its_weights(make_teacher, make_batch):
    model, teacher = make_teacher()
    with torch.no_grad():
        for p in model.main_parameters():
            p.add_(0.1)
    teacher.follow()
    _, again = make_teacher()
    assert not torch.allclose(again(make_batch()), teacher(make_batch()), atol=1e-4)
    again.restore({name: value.clone() for name, value in teacher.weights().items()})
    assert torch.equal(again(make_batch()), teacher(make_batch()))


def test_there_is_a_teacher_only_for_a_term_that_it_teaches(make_model, make_config):
    without = ['loss.weights.kd_sim=0', 'loss.weights.kd_feat=0']
    for options in ([], without, ['loss.teacher=momentum', *without]):
        assert (
            build_teacher(make_config('frames', *options), make_model('frames', *options)) is None
        )
    options = ['loss.teacher=momentum', 'loss.weights.kd_sim=0']
    assert isinstance(
        build_teacher(make_config('frames', *options), make_model('frames', *options)),
        MomentumTeacher,
    )


# ----------------------------------------------------------------------------------- discriminators


@pytest.fixture
def make_discriminator(make_config):
    def make(kind, *options):
        torch.manual_seed(8)
        return build_discriminator(
            make_config('frames', f'discriminator.kind={kind}', *options), dim=DIM
        )

    return make


def conv5(layer, x):
    """A convolution of kernel 5 and padding 2, written out: x (N, L, C)."""
    length = x.shape[1]
    x = F.pad(x, (0, 0, 2, 2))
    return layer.bias + sum(x[:, k : k + length] @ layer.weight[:, :, k].T for k in range(5))


@pytest.mark.parametrize('relu_skip', [True, False])
def test_the_strong_discriminator_is_its_formula(make_discriminator, relu_skip):
    network = make_discriminator('strong', f'discriminator.relu_skip={str(relu_skip).lower()}')
    tokens, mask = (
        torch.randn(3, 9, DIM),
        torch.tensor([[1.0] * 9, [1] * 4 + [0] * 5, [1] + [0] * 8]),
    )
    x = tokens @ network.entry.weight[:, :, 0].T + network.entry.bias
    assert x.shape == (3, 9, 128) and len(network.blocks) == 3
    for block in network.blocks:
        skip = x.clamp(min=0) if relu_skip else x
        x = skip + 0.3 * conv5(block.conv2, conv5(block.conv1, x.clamp(min=0)).clamp(min=0))
    # over padding too, as released
    expected = x.mean(dim=1) @ network.model.weight.T + network.model.bias
    assert torch.allclose(network(tokens, mask), expected, atol=1e-5)


def test_the_weaker_discriminators_are_their_formulas(make_discriminator):
    tokens, mask = (
        torch.randn(3, 6, DIM),
        torch.tensor([[1.0] * 6, [1] * 4 + [0] * 2, [1] + [0] * 5]),
    )
    average = tokens.mean(dim=1)
    weak, mlp = make_discriminator('weak'), make_discriminator('not-so-weak')
    assert torch.allclose(
        weak(tokens, mask), average @ weak.model.weight.T + weak.model.bias, atol=1e-6
    )
    first, second, third = (mlp.model[i] for i in (0, 2, 4))
    assert [layer.weight.shape[0] for layer in (first, second, third)] == [256, 128, 2]
    hidden = torch.tanh(average @ first.weight.T + first.bias)
    hidden = torch.tanh(hidden @ second.weight.T + second.bias)
    assert torch.allclose(mlp(tokens, mask), hidden @ third.weight.T + third.bias, atol=1e-6)


@pytest.mark.parametrize('kind', DISCRIMINATORS)
def test_the_discriminator_reads_padding_as_released_and_not_with_mean(make_discriminator, kind):
    tokens, mask = torch.randn(2, 8, DIM), torch.tensor([[1.0] * 8, [1] * 3 + [0] * 5])
    garbage = tokens + 5 * (1 - mask[..., None])
    longer, longer_mask = F.pad(tokens, (0, 0, 0, 4), value=0.7), F.pad(mask, (0, 4))
    for pooling, changes in (('padded_mean', True), ('mean', False)):
        network = make_discriminator(kind, f'discriminator.pooling={pooling}').eval()
        logits = network(tokens, mask)
        assert logits.shape == (2, 2)
        difference = (network(garbage, mask) - logits).abs().amax(dim=1)
        assert difference[0] < 1e-6 and (difference[1] > 1e-4) == changes
        alone = torch.cat([network(tokens[:1], mask[:1]), network(tokens[1:, :3], mask[1:, :3])])
        for other in (network(longer, longer_mask), alone):
            assert ((other - logits).abs().max() > 1e-4) == changes
            assert changes or torch.allclose(other, logits, atol=1e-6)


# -------------------------------------------------------------------------- building and rebuilding


@pytest.fixture
def no_pretrained(monkeypatch):
    """Any attempt to read a pretrained model, from hub or folder, fails the test."""

    def forbidden(*args, **kwargs):
        pytest.fail(f'from_pretrained{args} was called')

    for name in ('AutoConfig', 'AutoModel', 'CLIPVisionConfig', 'CLIPVisionModelWithProjection'):
        monkeypatch.setattr(getattr(transformers, name), 'from_pretrained', forbidden)


@pytest.mark.parametrize('kind', VISUAL_KINDS)
def test_a_checkpoint_rebuilds_the_model_without_the_pretrained_ones(
    make_model, make_config, make_batch, tmp_path, monkeypatch, request, kind
):
    model, batch = make_model(kind), make_batch(kind)
    model.train()(batch)  # moves the batch norms' statistics
    save_checkpoint(
        tmp_path / 'model_best.pt',
        {
            'config': config_to_dict(make_config(kind)),
            'architecture': model.architecture,
            'model': model.state_dict(),
            'epoch': 3,
        },
    )
    request.getfixturevalue('no_pretrained')
    checkpoint = load_checkpoint(
        tmp_path, ['text.bert=no/such/folder', 'visual.clip=no/such/folder']
    )
    again = build_model(checkpoint.config, architecture=checkpoint.architecture)
    again.load_state_dict(checkpoint.model)
    assert again.architecture == model.architecture and again.preprocessing == model.preprocessing
    model.eval(), again.eval()
    with torch.no_grad():
        expected, got = model(batch), again(batch)
    for name in ('visual', 'en', 'tgt', 'cross', 'back', 'tokens_en'):
        assert torch.equal(getattr(expected, name), getattr(got, name))


def test_an_architecture_is_plain_data(make_model):
    architecture = make_model('clip').architecture
    assert json.loads(json.dumps(architecture)) == architecture
    assert (
        architecture['bert']['hidden_size'] == DIM and architecture['clip']['projection_dim'] == 12
    )


def test_pretrained_weights_are_read_and_random_ones_are_not_the_same(make_model, bert_folder):
    stored = transformers.BertModel.from_pretrained(bert_folder)
    word = stored.embeddings.word_embeddings.weight
    pretrained, random = (
        make_model('frames', f'text.pretrained={value}').text_encoder.bert
        for value in ('true', 'false')
    )
    assert torch.equal(pretrained.embeddings.word_embeddings.weight, word)
    assert random.embeddings.word_embeddings.weight.shape == word.shape == (len(VOCABULARY), DIM)
    assert not torch.equal(random.embeddings.word_embeddings.weight, word)
    assert pretrained.pooler is None


def test_a_folder_without_weights_is_enough_for_random_weights_only(
    make_model, bert_folder, clip_folder, tmp_path
):
    for folder in (bert_folder, clip_folder):
        (tmp_path / folder.name).mkdir()
        shutil.copy(folder / 'config.json', tmp_path / folder.name)
    bert, clip = (
        f'{key}={tmp_path / folder.name}'
        for key, folder in (('text.bert', bert_folder), ('visual.clip', clip_folder))
    )
    model = make_model('clip', bert, clip, 'text.pretrained=false', 'visual.clip_pretrained=false')
    assert (
        model.preprocessing == Preprocessing(IMAGE_SIZE)
        and len(bert_layers(model.text_encoder.bert)) == 3
    )
    with pytest.raises(ValueError, match="key 'text.bert'"):
        make_model('frames', bert)
    with pytest.raises(ValueError, match="key 'visual.clip'"):
        make_model('clip', clip)


@pytest.mark.parametrize('key', ['text.bert', 'visual.clip'])
def test_a_folder_that_does_not_exist_names_the_option_that_takes_one(make_model, tmp_path, key):
    with pytest.raises(ValueError) as error:
        make_model('clip', f'{key}={tmp_path}/no/model')
    assert (
        f"key '{key}'" in str(error.value)
        and f'{key}=FOLDER' in str(error.value)
        and 'no/model' in str(error.value)
    )


@pytest.mark.parametrize('key', ['text.bert', 'visual.clip'])
def test_a_hub_out_of_reach_names_the_option_that_takes_a_folder(make_model, monkeypatch, key):
    asked, real = [], transformers.AutoConfig.from_pretrained

    def load(name, local_files_only=False, **kwargs):
        if name != 'some/hub-name':
            return real(name, **kwargs)
        asked.append(local_files_only)
        raise OSError(f'no {name} here\nmore')

    def ask(*args, timeout, **kwargs):
        assert timeout <= 10
        raise ConnectionError('no route to host')

    monkeypatch.setattr(transformers.AutoConfig, 'from_pretrained', load)
    monkeypatch.setattr(hub, 'get_hf_file_metadata', ask)
    with pytest.raises(ValueError) as error:
        make_model('clip', f'{key}=some/hub-name')
    assert f"key '{key}'" in str(error.value) and f'{key}=FOLDER' in str(error.value)
    assert 'some/hub-name' in str(error.value) and 'no route to host' in str(error.value)
    assert 'Without network' in str(error.value)
    assert asked == [True]  # the cache alone: transformers would ask a dead hub for a minute


def test_a_model_that_is_not_like_bert_is_refused():
    with pytest.raises(ValueError, match="'text.bert': GPT2Model keeps its layers in none of"):
        bert_layers(
            transformers.GPT2Model(
                transformers.GPT2Config(
                    n_layer=1, n_head=1, n_embd=8, vocab_size=10, bos_token_id=1, eos_token_id=1
                )
            )
        )


@pytest.mark.parametrize(
    'architecture',
    [
        {'model_type': 'bert', 'num_hidden_layers': 2},
        {'model_type': 'xlm-roberta', 'num_hidden_layers': 2},
        {'model_type': 'distilbert', 'dim': 8, 'hidden_dim': 8, 'n_layers': 2, 'n_heads': 1},
        {
            'model_type': 'deberta-v2',
            'num_hidden_layers': 2,
            'relative_attention': True,
            'pos_att_type': ['p2c', 'c2p'],
        },
    ],
)
def test_other_models_like_bert_fit_and_take_the_dropout(architecture):
    sizes = (
        {}
        if 'dim' in architecture
        else dict(hidden_size=8, num_attention_heads=1, intermediate_size=8)
    )
    bert = build_bert(
        name='',
        pretrained=False,
        dropout=0.4,
        architecture=dict(vocab_size=20, max_position_embeddings=14, **sizes, **architecture),
    )
    drops = {
        m.p
        for name, m in bert.named_modules()
        if isinstance(m, torch.nn.Dropout) and 'classif' not in name
    }
    assert drops == {0.4}
    encoder = _text_encoder(bert, trained_layers=[1], train_embeddings=True).eval()
    trained = {name for name, p in bert.named_parameters() if p.requires_grad}
    assert trained and all('embeddings.' in name or '.1.' in name for name in trained)
    tokens = captions([4, 9])
    with torch.no_grad():
        ids = tokens.ids % 20
        alone = encoder(Tokens(ids[:1, :4], tokens.mask[:1, :4]))
        assert torch.allclose(encoder(Tokens(ids, tokens.mask))[:1], alone, atol=1e-5)
