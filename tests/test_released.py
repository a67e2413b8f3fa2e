"""basic/released.py: the authors' layout with its CLIP, and what is wrong with files in it.

The released files here are written from a layout spelled out below, with weights of our own.
"""

import argparse
import collections
import pathlib
import re

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from basic.checkpoint import CheckpointError, load_checkpoint
from basic.released import _trained_layers
from basic.released_weights import PARTS
from model import build_model


# BERT's heads are 64 wide: two of them
BERT, HIDDEN, QK, SPACE, FRAME, VIDEO = 128, 24, 16, 14, 10, 32
CLIP_WIDTH, PATCH, GRID, EMBED, CLIP_LAYERS = 128, 8, 2, 12, 2  # two heads, images of 16 x 16
BERT_LAYERS, WORDS, POSITIONS = 3, 30, 40


def both(name, out, *rest):
    """A layer's weight and bias."""
    return {f'{name}.weight': (out, *rest), f'{name}.bias': (out,)}


def sequence_layers(dim, hidden, positions):
    return {
        **both('input_proj_layer.LayerNorm', dim),
        **both('input_proj_layer.net.1', hidden, dim),
        'pos_embed_layer.position_embeddings.weight': (positions, hidden),
        **both('pos_embed_layer.LayerNorm', hidden),
        **both('encoder_layer.self.query', QK, hidden),
        **both('encoder_layer.self.key', QK, hidden),
        **both('encoder_layer.self.value', hidden, hidden),
        **both('encoder_layer.output.dense', hidden, hidden),
        **both('encoder_layer.output.LayerNorm', hidden),
    }


def bert_tensors():
    shapes = {
        'embeddings.word_embeddings.weight': (WORDS, BERT),
        'embeddings.position_embeddings.weight': (POSITIONS, BERT),
        'embeddings.token_type_embeddings.weight': (2, BERT),
        **both('embeddings.LayerNorm', BERT),
        'embeddings.position_ids': (1, POSITIONS),
        **both('pooler.dense', BERT, BERT),
    }
    for i in range(BERT_LAYERS):
        layer = f'encoder.layer.{i}'
        for part in ('self.query', 'self.key', 'self.value', 'output.dense'):
            shapes.update(both(f'{layer}.attention.{part}', BERT, BERT))
        shapes.update(
            {
                **both(f'{layer}.attention.output.LayerNorm', BERT),
                **both(f'{layer}.output.LayerNorm', BERT),
                **both(f'{layer}.intermediate.dense', 48, BERT),
                **both(f'{layer}.output.dense', BERT, 48),
            }
        )
    return {f'text_bert.text_bert.{name}': shape for name, shape in shapes.items()}


def transformer_blocks(prefix, layers, width):
    shapes = {}
    for i in range(layers):
        block = f'{prefix}transformer.resblocks.{i}'
        shapes.update(
            {
                f'{block}.attn.in_proj_weight': (3 * width, width),
                f'{block}.attn.in_proj_bias': (3 * width,),
                **both(f'{block}.attn.out_proj', width, width),
                **both(f'{block}.ln_1', width),
                **both(f'{block}.mlp.c_fc', 4 * width, width),
                **both(f'{block}.mlp.c_proj', width, 4 * width),
                **both(f'{block}.ln_2', width),
            }
        )
    return shapes


def openai_clip():
    """The whole of OpenAI's CLIP under its own names: image tower, text tower, temperature."""
    return {
        'positional_embedding': (8, 16),
        'text_projection': (16, EMBED),
        'logit_scale': (),
        'visual.class_embedding': (CLIP_WIDTH,),
        'visual.positional_embedding': (GRID**2 + 1, CLIP_WIDTH),
        'visual.proj': (CLIP_WIDTH, EMBED),
        'visual.conv1.weight': (CLIP_WIDTH, 3, PATCH, PATCH),
        **both('visual.ln_pre', CLIP_WIDTH),
        **transformer_blocks('visual.', CLIP_LAYERS, CLIP_WIDTH),
        **both('visual.ln_post', CLIP_WIDTH),
        **transformer_blocks('', 1, 16),
        'token_embedding.weight': (20, 16),
        **both('ln_final', 16),
    }


def projection(dim):
    return {
        **both('mapping.fc1', SPACE, dim),
        **both('mapping.bn_1', SPACE),
        'mapping.bn_1.running_mean': (SPACE,),
        'mapping.bn_1.running_var': (SPACE,),
        'mapping.bn_1.num_batches_tracked': (),
    }


def discriminator(kind):
    if kind == 'weak':
        return both('discriminator.model', 2, BERT)
    if kind == 'not-so-weak':
        return {
            **both('discriminator.model.0', 256, BERT),
            **both('discriminator.model.2', 128, 256),
            **both('discriminator.model.4', 2, 128),
        }
    blocks = [
        both(f'discriminator.convolve.{i}.conv{j}', 128, 128, 5) for i in (1, 2, 3) for j in (1, 2)
    ]
    return {
        **both('discriminator.convolve.0', 128, BERT, 1),
        **{k: v for b in blocks for k, v in b.items()},
        **both('discriminator.model', 2, 128),
    }


def released_shapes(kind, disc):
    visual, width = {
        'video': (sequence_layers(FRAME, VIDEO, 20), VIDEO),
        'features': (both('proj', FRAME, FRAME), FRAME),
        'clip': (
            {
                **{f'encoder.{name}': shape for name, shape in openai_clip().items()},
                **both('proj', VIDEO, EMBED),
            },
            VIDEO,
        ),
    }[kind]
    text = {**sequence_layers(BERT, HIDDEN, 30), **bert_tensors()}
    return [
        {f'module.{name}': shape for name, shape in visual.items()},
        {f'module.{name}': shape for name, shape in text.items()},
        projection(width),
        projection(HIDDEN),
        discriminator(disc),
    ]


def tensors(shapes, generator):
    def fill(name, shape):
        if name.endswith('position_ids'):
            return torch.arange(shape[1])[None]
        if name.endswith('num_batches_tracked'):
            return torch.tensor(17)
        value = torch.randn(shape, generator=generator) / max(shape[-1:] or (1,)) ** 0.5
        return value.abs() + 0.5 if name.endswith('running_var') else value

    return {name: fill(name, shape) for name, shape in shapes.items()}


@pytest.fixture
def released():
    """released(kind, **options): the content of a released file for video, features or clip."""

    def make(kind, **options):
        video = kind == 'video'
        opt = dict(
            collection='vatex' if video else 'multi30k',
            model_type='video' if video else 'img',
            img_encoder='resnet_152',
            img_encoder_name='ViT-B/32',
            visual_feature='i3d_kinetics',
            video_num_attention=4,
            text_num_attention=2,
            text_pooling='mean',
            video_pooling='mean',
            dropout=0.2,
            scale=0.002,
            glr=0.003,
            disc_type='strong' if video else 'not-so-weak',
            margin=0.3,
            measure='cosine',
            max_violation=True,
            cost_style='sum',
            direction='all',
            learning_rate=0.0005,
            tri_alpha=0.61,
            dtl_beta=0.41,
            l1_gama=0.11,
            back_w=0.51,
            frozen='frozen',
            layer_list=['layer.2', 'layer.1'],
            sim_ratio=0.25,
            text_norm=True,
            visual_norm=True,
            data_type='google_enc2fr',
            task=2,
            batch_size=8,
            grad_clip=1.5,
            momentum=0.8,
        )
        opt.update(options)
        generator = torch.Generator().manual_seed(4)
        states = [tensors(shapes, generator) for shapes in released_shapes(kind, opt['disc_type'])]
        if kind == 'clip':  # as OpenAI's weights come
            states[0] = {
                name: value.half() if '.encoder.' in name else value
                for name, value in states[0].items()
            }
        return {
            'epoch': 7,
            'model': states,
            'best_rsum': 123.4,
            'opt': argparse.Namespace(**opt),
            'Eiters': 1000,
        }

    return make


@pytest.fixture
def load(tmp_path):
    """Write a released file into a folder, load that folder."""

    def write_and_load(content, *overrides):
        torch.save(content, tmp_path / 'model_best.pth.tar')
        return load_checkpoint(tmp_path, overrides)

    return write_and_load


@pytest.mark.parametrize(
    'kind, disc', [('video', 'strong'), ('features', 'weak'), ('clip', 'not-so-weak')]
)
def test_every_released_tensor_finds_its_place(released, load, kind, disc):
    content = released(kind, disc_type=disc)
    checkpoint = load(content)
    model = build_model(checkpoint.config, architecture=checkpoint.architecture)
    model.load_state_dict(checkpoint.model)  # strict: none is missing, none is left over
    assert checkpoint.released and checkpoint.epoch == 7 and checkpoint.training is None
    assert all(value.dtype in (torch.float32, torch.int64) for value in checkpoint.model.values())
    dropped = re.compile(
        r'pooler|position_ids|encoder\.(transformer|token_embedding|ln_final|positional_embedding|'
        r'text_projection|logit_scale)|in_proj'
    )
    for part, state in zip(PARTS, content['model']):
        ours = list(model.get_submodule(part).state_dict().values())
        for name, theirs in state.items():
            # OpenAI multiplies from the right
            theirs = theirs.t() if name.endswith('.visual.proj') else theirs
            found = [
                ours_
                for ours_ in ours
                if ours_.shape == theirs.shape and torch.equal(ours_, theirs.to(ours_.dtype))
            ]
            assert found or dropped.search(name), name


def test_names_of_the_released_layout(released, load):
    content = released('video')
    visual, text, visual_projection, text_projection, adversary = content['model']
    model = load(content).model
    for theirs, ours in [
        (visual['module.input_proj_layer.LayerNorm.weight'], 'visual_encoder.input.norm.weight'),
        (visual['module.input_proj_layer.net.1.bias'], 'visual_encoder.input.linear.bias'),
        (visual['module.pos_embed_layer.LayerNorm.bias'], 'visual_encoder.positions.norm.bias'),
        (
            visual['module.encoder_layer.output.LayerNorm.weight'],
            'visual_encoder.block.norm.weight',
        ),
        (
            text['module.pos_embed_layer.position_embeddings.weight'],
            'text_encoder.positions.embedding.weight',
        ),
        (text['module.encoder_layer.self.query.weight'], 'text_encoder.block.query.weight'),
        (text['module.encoder_layer.self.key.weight'], 'text_encoder.block.key.weight'),
        (text['module.encoder_layer.self.value.weight'], 'text_encoder.block.value.weight'),
        (text['module.encoder_layer.output.dense.weight'], 'text_encoder.block.dense.weight'),
        (
            text['module.text_bert.text_bert.encoder.layer.1.output.dense.weight'],
            'text_encoder.bert.encoder.layer.1.output.dense.weight',
        ),
        (visual_projection['mapping.fc1.weight'], 'visual_projection.linear.weight'),
        (visual_projection['mapping.bn_1.running_var'], 'visual_projection.norm.running_var'),
        (text_projection['mapping.bn_1.weight'], 'text_projection.norm.weight'),
        (adversary['discriminator.convolve.0.weight'], 'discriminator.entry.weight'),
        (adversary['discriminator.convolve.1.conv2.weight'], 'discriminator.blocks.0.conv2.weight'),
        (adversary['discriminator.convolve.3.conv1.weight'], 'discriminator.blocks.2.conv1.weight'),
        (adversary['discriminator.model.weight'], 'discriminator.model.weight'),
    ]:
        assert torch.equal(model[ours], theirs)


def openai_vit(state, images):
    """OpenAI's VisionTransformer, from its description: no code of theirs, no transformers."""
    weight = {
        name.removeprefix('module.encoder.visual.'): value.float() for name, value in state.items()
    }

    def norm(x, name):
        return F.layer_norm(x, x.shape[-1:], weight[f'{name}.weight'], weight[f'{name}.bias'])

    def linear(x, name):
        return x @ weight[f'{name}.weight'].T + weight[f'{name}.bias']

    patches = images.unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH)  # (N, 3, grid, grid, P, P)
    # (N, grid^2, 3 P P), row by row
    patches = patches.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
    x = patches @ weight['conv1.weight'].flatten(1).T
    x = (
        torch.cat([weight['class_embedding'].expand(len(x), 1, -1), x], dim=1)
        + weight['positional_embedding']
    )
    x, heads, width = norm(x, 'ln_pre'), CLIP_WIDTH // 64, 64
    for i in range(CLIP_LAYERS):
        block = f'transformer.resblocks.{i}'
        y = norm(x, f'{block}.ln_1')
        joint = y @ weight[f'{block}.attn.in_proj_weight'].T + weight[f'{block}.attn.in_proj_bias']
        query, key, value = joint.split(CLIP_WIDTH, dim=-1)
        mixed = []
        for h in range(heads):
            own = slice(h * width, (h + 1) * width)
            scores = torch.einsum('nid,njd->nij', query[..., own], key[..., own]) / width**0.5
            mixed.append(torch.einsum('nij,njd->nid', scores.softmax(dim=-1), value[..., own]))
        x = x + linear(torch.cat(mixed, dim=-1), f'{block}.attn.out_proj')
        y = linear(norm(x, f'{block}.ln_2'), f'{block}.mlp.c_fc')
        x = x + linear(y * torch.sigmoid(1.702 * y), f'{block}.mlp.c_proj')  # QuickGELU
    return norm(x[:, 0], 'ln_post') @ weight['proj']


def test_clip_of_a_released_file_computes_what_openais_does(released, load):
    content = released('clip')
    checkpoint = load(content)
    model = build_model(checkpoint.config, architecture=checkpoint.architecture).eval()
    model.load_state_dict(checkpoint.model)
    images = torch.randn(
        3, 3, PATCH * GRID, PATCH * GRID, generator=torch.Generator().manual_seed(0)
    )
    expected = openai_vit(content['model'][0], images)
    assert model.preprocessing.image_size == PATCH * GRID and expected.std() > 0.1
    with torch.no_grad():
        got = model.visual_encoder.clip(pixel_values=images).image_embeds
        assert torch.allclose(got, expected, atol=1e-5)
        state = content['model'][0]
        assert torch.allclose(
            model.visual_encoder(images),
            expected @ state['module.proj.weight'].T + state['module.proj.bias'],
            atol=1e-5,
        )


def test_the_options_of_a_released_video_model(released, load):
    config = load(released('video'), 'eval.ties=mean').config
    assert (config.data.collection, config.data.lang) == ('vatex', 'fr')
    assert (config.text.hidden, config.text.heads, config.text.qk_width, config.text.positions) == (
        HIDDEN,
        2,
        QK,
        30,
    )
    assert (config.text.pooling, config.visual.pooling) == ('padded_mean', 'padded_mean')
    assert list(config.text.trained_layers) == [1, 2]
    visual = config.visual
    assert (visual.kind, visual.feature, visual.feature_dim) == ('frames', 'i3d_kinetics', FRAME)
    assert (visual.hidden, visual.heads, visual.qk_width, visual.positions, visual.max_frames) == (
        VIDEO,
        4,
        QK,
        20,
        20,
    )
    assert (config.space.dim, config.space.dropout) == (SPACE, 0.2)
    assert (config.discriminator.kind, config.discriminator.lr) == ('strong', 0.003)
    assert dict(config.loss.weights) == {
        'triplet_en': 1.0,
        'triplet_tgt': 0.61,
        'kd_sim': 0.41,
        'kd_feat': 0.11,
        'triplet_back': 0.51,
        'back_visual': 0.0,
        'adversarial': 0.002,
    }
    assert (
        config.loss.margin,
        config.train.lr,
        config.train.grad_clip,
        config.train.batch_size,
    ) == (0.3, 5e-4, 1.5, 8)
    assert config.train.val_weight == 0.25 and config.eval.ties == 'mean'


def test_the_options_of_released_image_models(released, load):
    clip = load(released('clip', data_type='google_enc2cs')).config
    assert (clip.visual.kind, clip.visual.hidden, clip.data.task, clip.data.lang) == (
        'clip',
        VIDEO,
        2,
        'cs',
    )
    features = load(released('features', task=1, layer_list=None, text_pooling='max')).config
    visual = features.visual
    assert (visual.kind, visual.feature_dim, visual.feature) == ('pooled', FRAME, 'resnet_152')
    assert (features.data.task, features.text.pooling) == (1, 'max')
    assert list(features.text.trained_layers) == [0, 1, 2]
    assert load(released('video', collection='msrvtt10kcn')).config.data.collection == 'msrvttcn'


def test_layer_names_are_compared_whole(released):
    names = {f'text_encoder.bert.encoder.layer.{i}.x': None for i in range(12)}
    assert _trained_layers({'layer_list': ['layer.1', 'layer.10', 'layer.11']}, names) == [
        1,
        10,
        11,
    ]
    assert _trained_layers({'layer_list': ['layer.10']}, names) == [10]


def test_berts_heads_can_be_told(released, tmp_path):
    torch.save(released('video'), tmp_path / 'x.pth.tar')
    assert load_checkpoint(tmp_path / 'x.pth.tar').architecture['bert']['num_attention_heads'] == 2
    assert (
        load_checkpoint(tmp_path / 'x.pth.tar', bert_heads=8).architecture['bert'][
            'num_attention_heads'
        ]
        == 8
    )


@pytest.mark.parametrize(
    'part, name',
    [
        (0, 'module.encoder_layer2.weight'),
        (1, 'module.rnn.weight_ih_l0'),
        (2, 'mapping.fc2.weight'),
        (4, 'discriminator.lstm.weight'),
    ],
)
def test_an_unknown_tensor_is_named(released, load, part, name):
    content = released('video')
    content['model'][part][name] = torch.ones(1)
    with pytest.raises(CheckpointError) as error:
        load(content)
    assert name.removeprefix('module.') in str(error.value) and PARTS[part] in str(error.value)


def test_clips_resnet_towers_are_refused_by_tensor_name(released, load):
    content = released('clip')
    content['model'][0]['module.encoder.visual.layer1.0.conv1.weight'] = torch.ones(1)
    with pytest.raises(CheckpointError, match='layer1.0.conv1.weight.*CLIP ViT'):
        load(content)


def test_a_missing_tensor_is_named(released, load):
    content = released('video')
    del content['model'][1]['module.text_bert.text_bert.embeddings.word_embeddings.weight']
    with pytest.raises(CheckpointError, match='word_embeddings.weight'):
        load(content)


@pytest.mark.parametrize(
    'option, value',
    [
        ('measure', 'order'),
        ('cost_style', 'mean'),
        ('direction', 't2i'),
        ('text_norm', False),
        ('text_pooling', 'lstm'),
    ],
)
def test_an_option_that_cannot_be_run_is_named(released, load, option, value):
    with pytest.raises(CheckpointError, match=f'{option}={value!r}'):
        load(released('video', **{option: value}))


def test_other_things_wrong_with_a_released_file(released, load):
    with pytest.raises(CheckpointError, match="'tgif'.*configs/tgif.yaml"):
        load(released('video', collection='tgif'))
    with pytest.raises(
        CheckpointError, match="runnable config: key 'discriminator.kind' is 'mighty'.*strong"
    ):
        content = released('video')
        content['opt'].disc_type = 'mighty'
        load(content)
    content = released('video')
    del content['opt'].sim_ratio
    with pytest.raises(CheckpointError, match="have no 'sim_ratio'; found: back_w"):
        load(content)
    content = released('video')
    content['model'].pop()
    with pytest.raises(
        CheckpointError, match='4 parts, expected the state dicts of 5: visual_encoder'
    ):
        load(content)


def with_option(content, **options):
    vars(content['opt']).update(options)
    return content


def double_module(content):
    content['model'] = [
        {f'module.{name}': value for name, value in state.items()} for state in content['model']
    ]
    return content


VARIANTS = {
    'numpy': lambda c: {**c, 'epoch': np.int64(7), 'best_rsum': np.float64(1.5)},
    'numpy option': lambda c: with_option(
        c, margin=np.float32(0.25), batch_size=np.int32(8), max_violation=np.bool_(True)
    ),
    'big-endian': lambda c: with_option(c, margin=np.array(0.25, '>f8')[()]),
    'numpy array': lambda c: with_option(c, ranks=np.arange(3)),
    'options as a dict': lambda c: {**c, 'opt': vars(c['opt'])},
    'device': lambda c: with_option(c, device=torch.device('cuda')),
    'paths': lambda c: with_option(
        c, root=pathlib.PurePosixPath('/x'), other=pathlib.PosixPath('y')
    ),
    'ordered': lambda c: {**c, 'model': [collections.OrderedDict(state) for state in c['model']]},
    'module.module': double_module,
    'defaultdict': lambda c: with_option(
        c, meters=collections.defaultdict(int, a=1), lists=collections.defaultdict(list)
    ),
    'parameters': lambda c: {
        **c,
        'model': [
            {
                name: torch.nn.Parameter(value) if value.is_floating_point() else value
                for name, value in state.items()
            }
            for state in c['model']
        ],
    },
}


@pytest.mark.parametrize('variant', [*VARIANTS, 'legacy'])
def test_what_people_put_into_a_released_file_is_read(released, tmp_path, variant):
    content = VARIANTS.get(variant, dict)(released('video', margin=0.25))
    torch.save(content, tmp_path / 'x.pth.tar', _use_new_zipfile_serialization=variant != 'legacy')
    checkpoint = load_checkpoint(tmp_path / 'x.pth.tar')
    assert (checkpoint.epoch, checkpoint.config.loss.margin) == (7, 0.25) and type(
        checkpoint.epoch
    ) is int
    build_model(checkpoint.config, architecture=checkpoint.architecture).load_state_dict(
        checkpoint.model
    )


@pytest.mark.parametrize(
    'option, value',
    [
        ('text_num_attention', 'two'),
        ('dropout', [0.2]),
        ('layer_list', 3),
        ('data_type', 5),
        ('collection', ['vatex']),
        ('text_pooling', {}),
        ('sim_ratio', float('nan')),
        ('batch_size', 10**30),
        ('task', ()),
        ('measure', torch.ones(2)),
    ],
)
def test_an_option_of_a_wrong_kind_is_named(released, load, option, value):
    with pytest.raises(CheckpointError, match=rf"its options \('opt'\): key '{option}' is"):
        load(with_option(released('video'), **{option: value}))


def test_other_shapes_of_a_released_file_are_refused(released, load):
    for change, expected in (
        (lambda c: c.update(opt='x'), "options .*it is 'x'"),
        (lambda c: c.update(epoch='x'), "key 'epoch' is 'x'"),
        (lambda c: c.update(opt={3: 4}), 'keys that are text'),
        (lambda c: c['opt'].__dict__.update(collection='../demo/vatex'), 'no configs'),
        (lambda c: c['model'][0].update({3: torch.ones(1)}), 'visual_encoder: a state dict'),
        (lambda c: c['model'][3].update({'mapping.fc1.weight': torch.tensor(1.0)}), 'shapes'),
        (
            lambda c: c['model'][1].update(
                {f'module.text_bert.text_bert.encoder.layer.{"9" * 5000}.x': torch.ones(1)}
            ),
            'no tensor for',
        ),
    ):
        content = released('video')
        change(content)
        with pytest.raises(CheckpointError, match=expected):
            load(content)


def test_reading_a_released_file_allows_the_namespace_in_that_file_alone(tmp_path, released):
    path = tmp_path / 'x.pth.tar'
    torch.save(released('video'), path)
    load_checkpoint(path)
    with pytest.raises(Exception, match='argparse.Namespace'):
        torch.load(path, weights_only=True)
