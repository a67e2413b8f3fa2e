"""Checkpoints: ours, and the layout of the authors' released files.

Both are read by basic.checkpoint_file, so loading a file runs nothing that is in it. Ours hold
plain tensors and plain data only; a released file holds an `argparse.Namespace` too, or its options
as a dict. What a file holds is checked against the forms below before anything is made of it.

Released layout: {'epoch', 'model', 'best_rsum', 'opt', 'Eiters'}, 'model' a list of five state
dicts (visual encoder, text encoder, visual projection, text projection, discriminator), the
encoders' names beginning with 'module.'.
"""

import argparse
import re
from dataclasses import dataclass
from pathlib import Path

import torch

from basic.checkpoint_file import CheckpointError, read_content, refuse_whole_numbers, tensors_of
from basic.config import Config, ConfigError, config_from_dict, config_to_dict, load_config
from basic.errors import first_five
from basic.files import write_atomically
from basic.foreign import expect, plain_tree

FORMAT = 'nrccr-1'
NEXT_BEST = 'model_best.next.pt'  # until last.pt has its epoch, and makes it count
BEST, LAST, RELEASED = 'model_best.pt', 'last.pt', 'model_best.pth.tar'
RELEASED_PARTS = (
    'visual_encoder',
    'text_encoder',
    'visual_projection',
    'text_projection',
    'discriminator',
)
CONFIG_FOLDER = Path(__file__).resolve().parent.parent / 'configs'


# what our files hold, in the forms of basic.foreign
OURS = {
    'config': dict,
    'architecture': {'bert': (dict, None), 'clip': (dict, None), 'feature_dim': (int, None)},
    'model': dict,
    'epoch': int,
    'val': (dict, None),
    'training': (dict, None),
    'choice': ({'chosen_weight': float, 'chosen_from': [{'weight': float, 'SumR': float}]}, None),
}
OPTIMIZER = {'state': dict, 'param_groups': [dict]}
TRAINING = {
    'optimizer': OPTIMIZER,
    'discriminator_optimizer': OPTIMIZER,
    'teacher': (dict, None),
    'schedule': {
        'lr': float,
        'epoch': int,
        'best': (float, None),
        'best_epoch': int,
        'since_halving': int,
    },
    'random': [
        {'python': {'version': int, 'words': list}, 'numpy': {'kind': str, 'position': int}}
    ],
}
MOST_LAYERS, LARGEST_SIZE = 1000, 100_000  # of an architecture, whatever the weights are


@dataclass
class Checkpoint:
    """What a checkpoint file holds, whichever layout it came in."""

    path: Path
    config: Config
    architecture: dict  # of BERT, CLIP and the feature width: see model.build_model
    model: dict  # state dict of model.NRCCR
    epoch: int
    val: dict | None = None  # validation metrics of that epoch
    # of w on validation: see evaluation.choose_weight; none in a released file
    choice: dict | None = None
    training: dict | None = None  # optimisers, schedule, counters, random states; in last.pt only
    released: bool = False
    stored: Config | None = None  # the config without the overrides; None in a released file


def save_checkpoint(path, content):
    """Write a checkpoint atomically: the file at `path` is always whole, the old one or the new
    one.

    Args:
        path: file to write.
        content: dict of plain tensors and plain data: config, architecture, model, epoch, val[,
            choice][, training].
    Raises:
        OSError, or torch's RuntimeError over it: it cannot be written; what was there is unchanged.
    """
    write_atomically(path, lambda file: torch.save({'format': FORMAT, **content}, file))


def find_checkpoint(path):
    """The checkpoint file meant by `path`: a file, our run folder or the one above it, or a
    released one.

    Raises:
        CheckpointError: no such path, a folder without a checkpoint (says what was looked for), or
            one of several runs.
    """
    path = Path(path)
    if path.is_file():
        return path
    if not path.exists():
        raise CheckpointError(f'no checkpoint at {path}: give a run folder or a checkpoint file')
    if not path.is_dir():
        raise CheckpointError(
            f'{path} is a pipe or a device: give a run folder or a checkpoint file'
        )
    for name in (BEST, RELEASED):
        if (path / name).is_file():
            return path / name
    seeds = sorted(folder for folder in path.glob('seed_*') if (folder / BEST).is_file())
    if len(seeds) == 1:
        return seeds[0] / BEST
    if seeds:
        raise CheckpointError(
            f'{path} holds {len(seeds)} runs, {first_five([seed.name for seed in seeds])}: '
            'name one of them'
        )
    there = ', '.join(sorted(p.name for p in path.iterdir())[:8]) or 'nothing'
    raise CheckpointError(
        f'no {BEST} (ours) and no {RELEASED} (released) in {path}, which has: {there}'
    )


def load_checkpoint(path, overrides=(), bert_heads=None):
    """Read a checkpoint of either layout onto the CPU.

    Args:
        path: a file, or a folder as `find_checkpoint` takes.
        overrides: `key=value` strings laid over the stored config.
        bert_heads: attention heads of BERT in a released file, which does not say; None: width /
            64, mBERT's 12.
    Returns:
        Checkpoint.
    Raises:
        CheckpointError: unreadable, unsafe or foreign file.
        basic.config.ConfigError: an override that does not fit.
    """
    path = find_checkpoint(path)
    content = read_content(path)
    if (
        isinstance(content, dict)
        and isinstance(content.get('format'), str)
        and content['format'] == FORMAT
    ):
        return _ours(path, content, overrides)
    if (
        isinstance(content, dict)
        and isinstance(content.get('model'), (list, tuple))
        and 'opt' in content
    ):
        return _released(path, content, overrides, bert_heads)
    keys = (
        ', '.join(str(key)[:40] for key in list(content)[:20] if isinstance(key, str | int))
        if isinstance(content, dict)
        else type(content).__name__
    )
    raise CheckpointError(
        f'{path} is neither a checkpoint of this project nor a released one; it holds: {keys[:300]}'
    )


def training_of(checkpoint):
    """What last.pt holds to go on with, as train.training_state made it; CheckpointError if it is
    anything else."""
    return expect(
        checkpoint.training, TRAINING, f"{checkpoint.path}: key 'training'", CheckpointError
    )


def _ours(path, content, overrides):
    """A file of `save_checkpoint` as a Checkpoint."""
    missing = [key for key in ('config', 'architecture', 'model', 'epoch') if key not in content]
    if missing:
        raise CheckpointError(f'{path} is incomplete: it has no {", ".join(missing)}')
    expect(content, OURS, path, CheckpointError)
    model = tensors_of(content['model'], path, path.stat().st_size)
    refuse_whole_numbers(model, path)
    plain = {
        key: plain_tree(content.get(key), f'{path}: {key}', CheckpointError)
        for key in ('architecture', 'val', 'choice')
    }
    architecture = plain['architecture']
    _refuse_absurd_sizes(architecture, sum(value.numel() for value in model.values()), path)
    try:
        stored = config_from_dict(content['config'], source='its config')
    except ConfigError as error:
        raise CheckpointError(f'{path}: {error}') from None
    return Checkpoint(
        path=path,
        config=config_from_dict(content['config'], overrides),
        stored=stored,
        architecture=architecture
        and {'bert': None, 'clip': None, 'feature_dim': 0, **architecture},
        model=model,
        epoch=content['epoch'],
        val=plain['val'],
        choice=plain['choice'],
        training=content.get('training'),
    )


def _refuse_absurd_sizes(architecture, numbers, path, name='architecture'):
    """CheckpointError for a size that a model of so many `numbers` cannot have: nothing of that
    size is to be made."""
    for key, value in (
        architecture.items() if isinstance(architecture, dict) else enumerate(architecture)
    ):
        if isinstance(value, dict | list):
            _refuse_absurd_sizes(value, numbers, path, f'{name}.{key}')
        elif isinstance(value, int):
            most = MOST_LAYERS if 'layers' in str(key) else max(numbers, LARGEST_SIZE)
            if not -most <= value <= most:
                raise CheckpointError(
                    f"{path}: key '{name}.{key}' is {value:,}; its weights are {numbers:,} numbers"
                )


# ---------------------------------------------------------------------------------------------- the
# released layout


def _released(path, content, overrides, bert_heads):
    """A released file's content as a Checkpoint."""
    parts = content['model']
    if len(parts) != len(RELEASED_PARTS) or not all(isinstance(state, dict) for state in parts):
        raise CheckpointError(
            f"{path}: 'model' has {len(parts)} parts, expected the state dicts of "
            f'{len(RELEASED_PARTS)}: {", ".join(RELEASED_PARTS)}'
        )
    options = (
        vars(content['opt']) if isinstance(content['opt'], argparse.Namespace) else content['opt']
    )
    expect(options, {str: object}, f"{path}: its options ('opt')", CheckpointError)
    expect(options, OPTIONS, f"{path}: its options ('opt')", CheckpointError)
    epoch = expect(content, {'epoch': (int, None)}, path, CheckpointError).get('epoch') or 0
    model, size = {}, path.stat().st_size
    try:
        for part, state in zip(RELEASED_PARTS, parts):
            for name, tensor in tensors_of(state, f'{path}: {part}', size).items():
                for new_name, value in _translate(
                    part, re.sub(r'^(module\.)+', '', name), tensor, path
                ):
                    model[f'{part}.{new_name}'] = (
                        value.float() if value.is_floating_point() else value
                    )
        refuse_whole_numbers(model, path)
        architecture = {
            'bert': _bert_architecture(model, bert_heads),
            'clip': _clip_architecture(model),
            'feature_dim': _feature_dim(model),
        }
        tree = _released_config(options, model, path)
    except KeyError as error:
        raise CheckpointError(
            f'{path}: it has no tensor for {error}; expected a video, pooled-feature or CLIP ViT '
            'model'
        ) from None
    # of a shape that no such tensor has
    except (IndexError, TypeError, RuntimeError, OverflowError) as error:
        raise CheckpointError(
            f'{path}: its tensors have shapes that no released model has ({error})'
        ) from None
    _refuse_absurd_sizes(architecture, sum(value.numel() for value in model.values()), path)
    config = config_from_dict(tree, overrides)
    return Checkpoint(
        path=path, config=config, architecture=architecture, model=model, epoch=epoch, released=True
    )


# the options of a released file that are read here, where they are there
OPTIONS = {
    **dict.fromkeys(
        (
            'collection',
            'data_type',
            'model_type',
            'text_pooling',
            'video_pooling',
            'visual_feature',
            'img_encoder',
            'img_encoder_name',
            'disc_type',
            'measure',
            'cost_style',
            'direction',
        ),
        (str, None),
    ),
    **dict.fromkeys(('text_num_attention', 'video_num_attention', 'batch_size'), (int, None)),
    **dict.fromkeys(
        (
            'dropout',
            'glr',
            'margin',
            'tri_alpha',
            'dtl_beta',
            'l1_gama',
            'back_w',
            'scale',
            'learning_rate',
            'grad_clip',
            'sim_ratio',
        ),
        (float, None),
    ),
    **dict.fromkeys(('max_violation', 'text_norm', 'visual_norm'), (bool, int, None)),
    'task': (int, str, None),
    'layer_list': ([str], None),
    'frozen': (str, bool, None),
}

# released name -> ours, the first pattern that matches; None: not used by the model
_RENAMES = {
    'text_encoder': [
        (r'text_bert\.text_bert\.(pooler\..*|embeddings\.(position_ids|token_type_ids))', None),
        (r'text_bert\.text_bert\.(.*)', r'bert.\1'),
    ],
    'visual_encoder': [
        (r'encoder\.visual\.(.*)', r'clip.\1'),  # OpenAI's names, translated further below
        (
            r'encoder\.(transformer\..*|positional_embedding|text_projection|logit_scale|token_embedding\..*|ln_final\..*'
            r'|input_resolution|context_length|vocab_size)',
            None,
        ),  # CLIP's text tower
        (r'proj\.(.*)', r'linear.\1'),
    ],
    'visual_projection': [
        (r'mapping\.fc1\.(.*)', r'linear.\1'),
        (r'mapping\.bn_1\.(.*)', r'norm.\1'),
    ],
    'discriminator': [
        (r'discriminator\.convolve\.0\.(.*)', r'entry.\1'),
        (r'discriminator\.convolve\.(\d)\.(.*)', lambda m: f'blocks.{int(m[1]) - 1}.{m[2]}'),
        (r'discriminator\.model\.(.*)', r'model.\1'),
    ],
}
_RENAMES['text_projection'] = _RENAMES['visual_projection']
_SEQUENCE_RENAMES = [  # what the text and the video encoder share
    (r'input_proj_layer\.LayerNorm\.(.*)', r'input.norm.\1'),
    (r'input_proj_layer\.net\.1\.(.*)', r'input.linear.\1'),
    (r'pos_embed_layer\.position_embeddings\.(.*)', r'positions.embedding.\1'),
    (r'pos_embed_layer\.LayerNorm\.(.*)', r'positions.norm.\1'),
    (r'encoder_layer\.self\.(query|key|value)\.(.*)', r'block.\1.\2'),
    (r'encoder_layer\.output\.dense\.(.*)', r'block.dense.\1'),
    (r'encoder_layer\.output\.LayerNorm\.(.*)', r'block.norm.\1'),
]
_CLIP_RENAMES = [
    (r'class_embedding', 'vision_model.embeddings.class_embedding'),
    (r'positional_embedding', 'vision_model.embeddings.position_embedding.weight'),
    (r'conv1\.weight', 'vision_model.embeddings.patch_embedding.weight'),
    (r'ln_pre\.(.*)', r'vision_model.pre_layrnorm.\1'),  # (sic)
    (r'ln_post\.(.*)', r'vision_model.post_layernorm.\1'),
    (
        r'transformer\.resblocks\.(\d+)\.ln_([12])\.(.*)',
        r'vision_model.encoder.layers.\1.layer_norm\2.\3',
    ),
    (
        r'transformer\.resblocks\.(\d+)\.mlp\.c_fc\.(.*)',
        r'vision_model.encoder.layers.\1.mlp.fc1.\2',
    ),
    (
        r'transformer\.resblocks\.(\d+)\.mlp\.c_proj\.(.*)',
        r'vision_model.encoder.layers.\1.mlp.fc2.\2',
    ),
    (
        r'transformer\.resblocks\.(\d+)\.attn\.out_proj\.(.*)',
        r'vision_model.encoder.layers.\1.self_attn.out_proj.\2',
    ),
]


def _rename(name, rules):
    """The new name, None for a tensor that is not used; raises KeyError where no rule matches."""
    for pattern, replacement in rules:
        match = re.fullmatch(pattern, name)
        if match:
            return replacement if replacement is None else re.sub(pattern, replacement, name)
    raise KeyError(name)


def _translate(part, name, tensor, path):
    """Yield (our name inside the part, tensor) of one released tensor: none, one, or three for
    CLIP's joint q, k, v."""
    rules = _RENAMES[part] + (_SEQUENCE_RENAMES if part.endswith('encoder') else [])
    try:
        new_name = _rename(name, rules)
        if new_name is None:
            return
        if not (part == 'visual_encoder' and new_name.startswith('clip.')):
            yield new_name, tensor
            return
        inner = new_name.removeprefix('clip.')
        joint = re.fullmatch(r'transformer\.resblocks\.(\d+)\.attn\.in_proj_(weight|bias)', inner)
        if joint:
            for letter, piece in zip('qkv', tensor.chunk(3)):
                yield (
                    f'clip.vision_model.encoder.layers.{joint[1]}.self_attn.{letter}_proj.{joint[2]}',
                    piece,
                )
        elif inner == 'proj':
            # OpenAI multiplies from the right
            yield 'clip.visual_projection.weight', tensor.T.contiguous()
        else:
            yield f'clip.{_rename(inner, _CLIP_RENAMES)}', tensor
    except KeyError as error:
        raise CheckpointError(
            f'{path}: the {part} has a tensor {error} that no released layout known here has; '
            'expected a video, pooled-feature or CLIP ViT model of one text and one video layer'
        ) from None


def _count(model, pattern):
    """1 + the largest number that the pattern's group takes among the names, of which there are at
    least as many."""
    count = 1 + max(
        (int(m[1][:9]) for m in (re.match(pattern, name) for name in model) if m), default=-1
    )
    if count > len(model):
        raise KeyError(f'layer {count - 2}')  # one of those before the last
    return count


def _bert_architecture(model, heads):
    word = model['text_encoder.bert.embeddings.word_embeddings.weight']
    first = 'text_encoder.bert.encoder.layer.0.intermediate.dense.weight'
    hidden = word.shape[1]
    return {
        'model_type': 'bert',
        'vocab_size': word.shape[0],
        'hidden_size': hidden,
        'num_hidden_layers': _count(model, r'text_encoder\.bert\.encoder\.layer\.(\d+)\.'),
        'num_attention_heads': heads or max(hidden // 64, 1),
        'intermediate_size': model[first].shape[0],
        'max_position_embeddings': model[
            'text_encoder.bert.embeddings.position_embeddings.weight'
        ].shape[0],
        'type_vocab_size': model['text_encoder.bert.embeddings.token_type_embeddings.weight'].shape[
            0
        ],
        'hidden_act': 'gelu',
        'layer_norm_eps': 1e-12,
    }


def _clip_architecture(model):
    prefix = 'visual_encoder.clip.vision_model.'
    patch = model.get(f'{prefix}embeddings.patch_embedding.weight')
    if patch is None:
        return None
    width, patch_size = patch.shape[0], patch.shape[-1]
    grid = round((model[f'{prefix}embeddings.position_embedding.weight'].shape[0] - 1) ** 0.5)
    return {
        'hidden_size': width,
        'patch_size': patch_size,
        'image_size': grid * patch_size,
        'num_hidden_layers': _count(model, re.escape(prefix) + r'encoder\.layers\.(\d+)\.'),
        'num_attention_heads': max(width // 64, 1),
        'intermediate_size': model[f'{prefix}encoder.layers.0.mlp.fc1.weight'].shape[0],
        'projection_dim': model['visual_encoder.clip.visual_projection.weight'].shape[0],
        'hidden_act': 'quick_gelu',
        'layer_norm_eps': 1e-5,
    }


def _feature_dim(model):
    """Width of the visual features that the encoder reads; 0 for CLIP."""
    if 'visual_encoder.input.linear.weight' in model:
        return model['visual_encoder.input.linear.weight'].shape[1]
    is_clip = any(name.startswith('visual_encoder.clip.') for name in model)
    return 0 if is_clip else model['visual_encoder.linear.weight'].shape[1]


def _released_config(options, model, path):
    """Our config tree for the options, a dict, that a released file was trained with."""

    def option(name, default=None):
        if name not in options and default is None:
            raise CheckpointError(
                f"{path}: its options ('opt') have no '{name}'; found: {', '.join(sorted(options))}"
            )
        return options.get(name, default)

    for name, expected in (
        ('measure', 'cosine'),
        ('cost_style', 'sum'),
        ('direction', 'all'),
        ('text_norm', True),
        ('visual_norm', True),
    ):
        if option(name, expected) != expected:
            raise CheckpointError(
                f'{path}: option {name}={option(name)!r}; only {expected!r} can be run here'
            )
    collection = option('collection')
    base = {'msrvtt10kcn': 'msrvttcn'}.get(collection, collection)
    if base not in [file.stem for file in CONFIG_FOLDER.glob('*.yaml')]:
        raise CheckpointError(
            f"{path}: it was trained on '{collection}', for which there is no configs/{base}.yaml: "
            'add one that says where its captions and features lie'
        )
    tree = config_to_dict(load_config(CONFIG_FOLDER / f'{base}.yaml'))
    poolings = {'mean': 'padded_mean', 'max': 'max'}

    def pooling(name):
        if option(name) not in poolings:
            raise CheckpointError(
                f'{path}: option {name}={option(name)!r}; known: {", ".join(poolings)}'
            )
        return poolings[option(name)]

    language = re.search(r'enc2([a-z]+)', str(option('data_type', '')))
    if language:
        tree['data']['lang'] = language[1]
    if base == 'multi30k':
        tree['data']['task'] = option('task', 1)
    tree['text'].update(
        hidden=model['text_encoder.input.linear.weight'].shape[0],
        heads=option('text_num_attention'),
        qk_width=model['text_encoder.block.query.weight'].shape[0],
        pooling=pooling('text_pooling'),
        positions=model['text_encoder.positions.embedding.weight'].shape[0],
        trained_layers=_trained_layers(options, model),
    )
    visual = tree['visual']
    if option('model_type') == 'video':
        visual.update(
            kind='frames',
            feature=option('visual_feature'),
            heads=option('video_num_attention'),
            hidden=model['visual_encoder.input.linear.weight'].shape[0],
            qk_width=model['visual_encoder.block.query.weight'].shape[0],
            positions=model['visual_encoder.positions.embedding.weight'].shape[0],
            pooling=pooling('video_pooling'),
        )
        visual['max_frames'] = min(visual['max_frames'], visual['positions'])
    elif any(name.startswith('visual_encoder.clip.') for name in model):
        visual.update(kind='clip', hidden=model['visual_encoder.linear.weight'].shape[0])
        known = {
            'ViT-B/32': 'openai/clip-vit-base-patch32',
            'ViT-B/16': 'openai/clip-vit-base-patch16',
        }
        visual['clip'] = known.get(option('img_encoder_name', ''), visual['clip'])
    else:
        visual.update(kind='pooled', feature=option('img_encoder'))
    visual['feature_dim'] = _feature_dim(model)
    tree['space'].update(
        dim=model['text_projection.linear.weight'].shape[0], dropout=option('dropout')
    )
    tree['discriminator'].update(kind=option('disc_type'), lr=option('glr'))
    tree['loss'].update(margin=option('margin'), hardest=bool(option('max_violation', True)))
    tree['loss']['weights'].update(
        triplet_tgt=option('tri_alpha'),
        kd_sim=option('dtl_beta'),
        kd_feat=option('l1_gama'),
        triplet_back=option('back_w'),
        adversarial=option('scale'),
    )
    tree['train'].update(
        lr=option('learning_rate'),
        grad_clip=option('grad_clip'),
        val_weight=option('sim_ratio'),
        batch_size=option('batch_size', tree['train']['batch_size']),
    )
    try:
        return config_to_dict(config_from_dict(tree))
    except ConfigError as error:
        raise CheckpointError(
            f'{path}: its options do not make a runnable config: {error}'
        ) from None


def _trained_layers(options, model):
    layers = range(_count(model, r'text_encoder\.bert\.encoder\.layer\.(\d+)\.'))
    listed = options.get('layer_list')
    if listed is None or options.get('frozen', 'frozen') != 'frozen':
        return list(layers)
    return sorted(number for number in layers if f'layer.{number}' in listed)
