"""The pretrained encoders, BERT-like text models and dual encoders: by name, from a folder, or
rebuilt empty. Image towers are in towers.py."""

import copy
import hashlib
import json
import logging
import math
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from basic import runtime  # noqa: F401  (lets transformers import beside a torchvision of another build)
from basic.command import is_out_of_memory
from basic.errors import DataError, UnreachableError, first_five
from basic.pretrained.hub import check_weights, load_pretrained, reason, refuse_empty

from transformers import AutoConfig, AutoModel, AutoTokenizer

# what from_pretrained raises for files that it cannot use
UNUSABLE = (OSError, ValueError, KeyError, ImportError)
# Models that give their mask to transformers' `create_bidirectional_mask` and to nothing else: it
# takes a ready one of four dimensions as it is. ModernBERT's local attention would lose its window.
READY_MASKS = (
    'bert',
    'camembert',
    'distilbert',
    'electra',
    'eurobert',
    'mpnet',
    'nomic_bert',
    'roberta',
    'xlm-roberta',
    'xlm-roberta-xl',
)
# models that keep their layers in encoder.layer, and of which lower and upper ones were tried apart
DIVISIBLE = ('bert', 'camembert', 'roberta', 'xlm-roberta')
MOST_LAYERS = 1000  # of any encoder: a config.json with more is not to be believed
# where BERT-like models keep them
LAYER_LISTS = ('encoder.layer', 'transformer.layer', 'encoder.layers', 'layers')


def bert_layers(bert):
    """The list of transformer layers of a BERT-like model; raises ValueError if none of the known
    places has it."""
    for path in LAYER_LISTS:
        try:
            return bert.get_submodule(path)
        except AttributeError:
            continue
    raise ValueError(
        f"key 'text.bert': {type(bert).__name__} keeps its layers in none of"
        f' {", ".join(LAYER_LISTS)}; give a BERT-like encoder'
    )


def lower_layers(bert, count):
    """The embeddings and first `count` layers of a BERT-like model, as a model of the same weights.

    Raises:
        ValueError: of this kind of model it is not known whether it can be divided.
    """
    if bert.config.model_type not in DIVISIBLE:
        raise ValueError(
            f"key 'compute.frozen_cache': a {type(bert).__name__} cannot be divided; it was tried"
            f' with {", ".join(DIVISIBLE)}: valid value then: false'
        )
    return _with_layers(bert, bert_layers(bert)[:count])


def upper_layers(bert, count):
    """The rest: a model that reads the outputs of `lower_layers`, as `inputs_embeds` (N, L, D)."""
    upper = _with_layers(bert, bert_layers(bert)[count:])
    upper._modules['embeddings'] = _AsGiven()
    return upper


class _AsGiven(nn.Module):
    """In the place of BERT's embeddings: passes on what it is given."""

    def forward(self, *, inputs_embeds, **_):
        return inputs_embeds


def _with_layers(bert, layers):
    """The model with other layers; it shares everything else with `bert`, which does not change."""

    def shallow(module):
        same = copy.copy(module)
        same._modules = dict(module._modules)
        return same

    whole = shallow(bert)
    whole._modules['encoder'] = shallow(bert.encoder)
    whole._modules['encoder']._modules['layer'] = layers
    return whole


def bert_positions(bert):
    """The longest sequence that the model can read; infinite where its positions are not a
    table."""
    table = getattr(getattr(bert, 'embeddings', None), 'position_embeddings', None)
    if not isinstance(table, nn.Embedding):
        return math.inf
    # RoBERTa counts from there
    reserved = 0 if table.padding_idx is None else table.padding_idx + 1
    return table.num_embeddings - reserved


def bert_mask(bert, mask):
    """The mask of a pass through a BERT-like model, in a form that the model need not look into.

    From a mask (N, L) transformers first finds out whether anything is padding, which waits for
    a GPU.

    Args:
        bert: the model; mask: (N, L), 1 on real positions.
    Returns:
        what transformers would make of it: bool (N, 1, L, L) for fused attention, for eager
        attention what is added to the scores, (N, 1, 1, L). `mask` itself for a model that may make
        something else of it.
    """
    kernels = bert.config._attn_implementation
    if bert.config.model_type not in READY_MASKS or kernels not in ('sdpa', 'eager'):
        return mask
    real = mask.bool()[:, None, None]  # (N, 1, 1, L)
    if kernels == 'sdpa':
        return real.expand(-1, -1, mask.shape[1], -1)
    return torch.where(real, 0.0, torch.finfo(torch.float32).min)


def build_bert(*, name, pretrained, dropout, architecture=None, attention='auto'):
    """The BERT-like encoder, without its pooler.

    Args:
        name: hub name or local folder.
        pretrained: False keeps the architecture and starts from random weights.
        dropout: inside it.
        architecture: its config as a plain dict, from a checkpoint: then nothing is read from
            `name`.
        attention: `eager`, `fused`, or `auto`: transformers' own choice, which is fused where it
            can be.
    Raises:
        ValueError: neither reachable nor in the local cache, or not a folder that transformers can
            load.
    """
    with loading('text.bert', name):
        config = AutoConfig.for_model(**architecture) if architecture else read_config(name)
        refuse_unusable(config)
        for key in (
            'hidden_dropout_prob',
            'attention_probs_dropout_prob',
            'dropout',
            'attention_dropout',
            'embedding_dropout',
            'mlp_dropout',
        ):  # as the models of LAYER_LISTS call it
            if hasattr(config, key):
                setattr(config, key, dropout)
        kernels = {'auto': None, 'fused': 'sdpa', 'eager': 'eager'}[attention]
        if architecture or not pretrained:
            bert = AutoModel.from_config(
                config, attn_implementation=kernels, trust_remote_code=False
            )
        else:
            bert = load_whole(AutoModel, name, config=config, attn_implementation=kernels)
    if getattr(bert, 'pooler', None) is not None:
        bert.pooler = None
    return bert


@dataclass(frozen=True)
class TextLimits:
    """What a BERT-like encoder can read.

    Attributes:
        kind: its class.
        tokens: of its vocabulary.
        positions: tokens of the longest caption; infinite where they are not a table.
        layers: how many it has.
    """

    kind: str
    tokens: int
    positions: float
    layers: int


def text_limits(name, pretrained):
    """TextLimits of a BERT-like model, from its config.json alone.

    Args:
        name, pretrained: as for `build_bert`. Weights are looked for, not read.
    Raises:
        UnreachableError: neither here nor to be downloaded now.
        ValueError: as `build_bert`.
    """
    with loading('text.bert', name):
        config = read_config(name)
        refuse_unusable(config)
        with torch.device('meta'):  # the architecture, without memory for its weights
            bert = AutoModel.from_config(config, trust_remote_code=False)
        tokens, positions = bert.get_input_embeddings().num_embeddings, bert_positions(bert)
        if pretrained:
            check_weights(name)
    return TextLimits(
        kind=type(bert).__name__, tokens=tokens, positions=positions, layers=len(bert_layers(bert))
    )


def read_config(name):
    """A model's configuration; raises NeedsCodeError, or another ValueError or OSError."""
    try:
        return load_pretrained(AutoConfig, name)
    except UNUSABLE:
        raise
    except Exception as error:  # values of a wrong kind: each architecture has its errors
        raise ValueError(f'its config.json cannot be used: {reason(error)}') from None


def refuse_unusable(config):
    """ValueError for a configuration that asks for code from the hub, or for too many layers."""
    kernel = getattr(config, '_attn_implementation', None)
    if isinstance(kernel, str) and '/' in kernel:
        raise ValueError(
            f"its configuration asks for the attention kernel '{kernel[:60]}' of the "
            'hub; code that comes with a model is never run here'
        )
    layers = getattr(config, 'num_hidden_layers', 0)
    if isinstance(layers, int) and layers > MOST_LAYERS:
        raise ValueError(
            f'its configuration asks for {layers:,} layers; at most {MOST_LAYERS:,} are expected'
        )


@contextmanager
def loading(key, name):
    """Turn what transformers raises of files that it cannot use into a ValueError that names the
    option."""
    try:
        yield
    except Exception as error:  # values of a wrong kind: each architecture has its errors
        if is_out_of_memory(error):
            raise
        kind = UnreachableError if isinstance(error, UnreachableError) else ValueError
        said = _first_line(error) if isinstance(error, UNUSABLE) else reason(error)
        advice = {
            'text.bert': (
                ' (config.json, weights, vocabulary): text.bert=FOLDER; with '
                'text.pretrained=false it needs no weights'
            ),
            'visual.clip': ': visual.clip=FOLDER',
        }
        raise kind(
            f"key '{key}': cannot load '{name}': {said}\n  Without network and cache, give a "
            f'local folder as transformers saves it{advice[key]}'
        ) from None


def build_dual_encoder(name):
    """A CLIP-like model with its own preprocessing, for use as it is.

    Args:
        name: hub name or local folder.
    Returns:
        (model in evaluation mode, float32; tokenizer; image processor).
    Raises:
        DataError: it cannot be loaded, or encodes no images or no texts by themselves.
    """
    from transformers import AutoImageProcessor

    try:
        model = load_whole(AutoModel, name)
        if not (hasattr(model, 'get_text_features') and hasattr(model, 'get_image_features')):
            raise DataError(
                f'it is a {type(model).__name__}, which has no text and image features of one space'
            )
        tokenizer, processor = (
            load_pretrained(AutoTokenizer, name),
            load_pretrained(AutoImageProcessor, name),
        )
        refuse_empty(tokenizer)
    except UNUSABLE as error:
        raise DataError(
            f"--model: cannot use '{name}': {_first_line(error)}\n  Give a CLIP-like model as"
            ' transformers saves it, with tokenizer and image processor; without network and'
            ' cache, a local folder of it'
        ) from None
    return model.requires_grad_(False).eval(), tokenizer, processor


def load_whole(cls, name, *, dtype=torch.float32, **options):
    """A pretrained model, all of whose weights are in its files, but for a pooler:
    BERT's is not used.

    Raises:
        ValueError: some are not, which transformers would start at random.
        UNUSABLE: as `basic.pretrained.hub.load_pretrained`.
    """
    try:
        with _without_report():
            model, found = load_pretrained(
                cls, name, dtype=dtype, output_loading_info=True, **options
            )
    except UNUSABLE:
        raise
    # damaged weights, or of another shape: each reader has errors of its own
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise ValueError(f'its weights cannot be read: {reason(error)}') from None
    missing = sorted(key for key in found['missing_keys'] if not key.startswith('pooler.'))
    if missing:
        own = ''
        if getattr(model.config, 'auto_map', None):
            own = (
                "; its config.json names code of its own ('auto_map'), which is never run here:"
                ' choose a model that transformers itself knows'
            )
        raise ValueError(
            f'its files hold the weights of another model, or of a part: {len(missing):,} of the'
            f' {len(model.state_dict()):,} that a {type(model).__name__} of its config.json needs'
            f' are not there: {first_five(missing)}{own}'
        )
    return model


@contextmanager
def _without_report():
    """Without transformers' table of a checkpoint's other weights: missing ones are refused
    here."""
    # Not that of its module, whose own level would make it report on tensor parallelism.
    logger = logging.getLogger('transformers')
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def weights_fingerprint(model):
    """What the outputs of a transformers model depend on in addition to its inputs, as plain data.

    Args:
        model: an image tower, or a BERT-like model or a part of one.
    """
    # What the shapes of the weights do not show.
    unseen = ('hidden_act', 'num_attention_heads', 'layer_norm_eps', 'patch_size')
    config = getattr(model.config, 'vision_config', model.config)  # a whole model's tower
    known = {key: getattr(config, key) for key in unseen if hasattr(config, key)}
    return {'weights': weights_hash(model.state_dict()), **known}


def weights_hash(state):
    """A hash, as hex digits, of the names, types, shapes and numbers of a state dict."""
    weights = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        weights.update(f'{name} {tensor.dtype} {tuple(tensor.shape)}'.encode())
        # A view as bytes needs a dimension.
        weights.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return weights.hexdigest()


def checkpoint_layers(layers):
    """Let each layer keep its inputs only, and compute the rest again, with the same dropout, in
    the backward pass."""
    for layer in layers:  # transformers' own switch would have frozen layers build a graph, too
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)


def _first_line(error):
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return line if len(line) < 500 else f'{line[:300]} ...'  # as a list of all architectures


def plain(config):
    """A transformers config as plain data, without what describes files, versions or another task's
    labels."""
    drop = {
        '_name_or_path',
        'transformers_version',
        'architectures',
        'dtype',
        'torch_dtype',
        'id2label',
        'label2id',
    }
    return {
        key: value
        for key, value in json.loads(config.to_json_string(use_diff=False)).items()
        if key not in drop
    }
