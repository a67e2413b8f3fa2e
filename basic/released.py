"""The authors' released checkpoints: their layout, read as our config, architecture and weights.

{'epoch', 'model', 'best_rsum', 'opt', 'Eiters'}: 'model' is a list of five state dicts (visual
encoder, text encoder, visual projection, text projection, discriminator), the encoders' names
beginning with 'module.'; 'opt' is an `argparse.Namespace`, or a dict of the same options.
"""

import argparse
import re
from pathlib import Path

from basic.checkpoint_file import CheckpointError, refuse_absurd_sizes
from basic.config import ConfigError, config_from_dict, config_to_dict, load_config
from basic.foreign import expect
from basic.released_weights import PARTS, architecture_of, feature_dim, layer_count, rename_weights

CONFIG_FOLDER = Path(__file__).resolve().parent.parent / 'configs'

# the options that are read here, in the forms of basic.foreign; any of them may be missing
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


def is_released(content):
    """Whether what a file holds is in the authors' layout."""
    return (
        isinstance(content, dict)
        and isinstance(content.get('model'), (list, tuple))
        and 'opt' in content
    )


def read_released(path, content, bert_heads):
    """What a released file holds, in our names.

    Args:
        path: the file, for messages and its size.
        content: what it holds, for which `is_released` is true.
        bert_heads: attention heads of BERT, which the file does not say; None: width / 64.
    Returns:
        dict: config, architecture, model and epoch, as `basic.checkpoint.Checkpoint` has them, the
        config as a plain tree.
    Raises:
        CheckpointError: another layout, or a model or an option that cannot be run here.
    """
    parts = content['model']
    if len(parts) != len(PARTS) or not all(isinstance(state, dict) for state in parts):
        raise CheckpointError(
            f"{path}: 'model' has {len(parts)} parts, expected the state dicts of "
            f'{len(PARTS)}: {", ".join(PARTS)}'
        )
    options = (
        vars(content['opt']) if isinstance(content['opt'], argparse.Namespace) else content['opt']
    )
    expect(options, {str: object}, f"{path}: its options ('opt')", CheckpointError)
    expect(options, OPTIONS, f"{path}: its options ('opt')", CheckpointError)
    epoch = expect(content, {'epoch': (int, None)}, path, CheckpointError).get('epoch') or 0
    try:
        model = rename_weights(parts, path)
        architecture = architecture_of(model, bert_heads)
        config = _config(_Options(options, path), model)
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
    refuse_absurd_sizes(architecture, sum(value.numel() for value in model.values()), path)
    return {'config': config, 'architecture': architecture, 'model': model, 'epoch': epoch}


# ------------------------------------------------------------------------------------------- config


class _Options:
    """The options that a released file was trained with: a dict, and the file for messages."""

    def __init__(self, options, path):
        self.options, self.path = options, path

    def __call__(self, name, default=None):
        """An option's value; CheckpointError if it is missing and has no default."""
        if name not in self.options and default is None:
            raise CheckpointError(
                f"{self.path}: its options ('opt') have no '{name}'; found:"
                f' {", ".join(sorted(self.options))}'
            )
        return self.options.get(name, default)

    def pooling(self, name):
        """Our name of a pooling."""
        poolings = {'mean': 'padded_mean', 'max': 'max'}
        if self(name) not in poolings:
            raise CheckpointError(
                f'{self.path}: option {name}={self(name)!r}; known: {", ".join(poolings)}'
            )
        return poolings[self(name)]


def _config(option, model):
    """Our config tree for a model's `_Options` and its renamed weights."""
    for name, expected in (
        ('measure', 'cosine'),
        ('cost_style', 'sum'),
        ('direction', 'all'),
        ('text_norm', True),
        ('visual_norm', True),
    ):
        if option(name, expected) != expected:
            raise CheckpointError(
                f'{option.path}: option {name}={option(name)!r}; only {expected!r} can be run here'
            )
    tree = _collection_config(option)
    tree['text'].update(
        lowercase=True,
        hidden=model['text_encoder.input.linear.weight'].shape[0],
        heads=option('text_num_attention'),
        qk_width=model['text_encoder.block.query.weight'].shape[0],
        pooling=option.pooling('text_pooling'),
        positions=model['text_encoder.positions.embedding.weight'].shape[0],
        trained_layers=_trained_layers(option.options, model),
    )
    _set_visual(tree['visual'], option, model)
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
            f'{option.path}: its options do not make a runnable config: {error}'
        ) from None


def _collection_config(option):
    """The tree of our config of the collection, in the language and task that the options name."""
    collection = option('collection')
    base = {'msrvtt10kcn': 'msrvttcn'}.get(collection, collection)
    if base not in [file.stem for file in CONFIG_FOLDER.glob('*.yaml')]:
        raise CheckpointError(
            f"{option.path}: it was trained on '{collection}', for which there is no"
            f' configs/{base}.yaml: add one that says where its captions and features lie'
        )
    tree = config_to_dict(load_config(CONFIG_FOLDER / f'{base}.yaml'))
    language = re.search(r'enc2([a-z]+)', str(option('data_type', '')))
    if language:
        tree['data']['lang'] = language[1]
    if base == 'multi30k':
        tree['data']['task'] = option('task', 1)
    return tree


def _set_visual(visual, option, model):
    """Fill in the config's group `visual`, for frames, CLIP or pooled features."""
    if option('model_type') == 'video':
        visual.update(
            kind='frames',
            feature=option('visual_feature'),
            heads=option('video_num_attention'),
            hidden=model['visual_encoder.input.linear.weight'].shape[0],
            qk_width=model['visual_encoder.block.query.weight'].shape[0],
            positions=model['visual_encoder.positions.embedding.weight'].shape[0],
            pooling=option.pooling('video_pooling'),
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
    visual['feature_dim'] = feature_dim(model)


def _trained_layers(options, model):
    layers = range(layer_count(model, r'text_encoder\.bert\.encoder\.layer\.(\d+)\.'))
    listed = options.get('layer_list')
    if listed is None or options.get('frozen', 'frozen') != 'frozen':
        return list(layers)
    return sorted(number for number in layers if f'layer.{number}' in listed)
