"""The weights of a released file: their names here, and the architecture that they tell.

The file holds a state dict for each of PARTS; the encoders' names begin with 'module.'.
"""

import re

from basic.checkpoint_file import CheckpointError, refuse_whole_numbers, tensors_of

PARTS = ('visual_encoder', 'text_encoder', 'visual_projection', 'text_projection', 'discriminator')

# their name -> ours, the first pattern that matches; None: not used by the model
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


def rename_weights(parts, path):
    """The state dict of our model.

    Args:
        parts: a state dict for each of PARTS, by the released names.
        path: the file, for messages and its size.
    Returns:
        dict name -> tensor, floats as float32.
    Raises:
        CheckpointError: a tensor that no released layout known here has.
    """
    model, size = {}, path.stat().st_size
    for part, state in zip(PARTS, parts):
        for name, tensor in tensors_of(state, f'{path}: {part}', size).items():
            name = re.sub(r'^(module\.)+', '', name)
            for new_name, value in _translate(part, name, tensor, path):
                model[f'{part}.{new_name}'] = value.float() if value.is_floating_point() else value
    refuse_whole_numbers(model, path)
    return model


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


# ------------------------------------------------------------------------------------- architecture


def architecture_of(model, bert_heads):
    """The architecture that the shapes of our model's weights tell, as `model.build_model` takes
    it.

    Args:
        model: of `rename_weights`; bert_heads: BERT's attention heads; None: width / 64.
    Raises:
        KeyError: a tensor is missing; IndexError and others: a shape that no such tensor has.
    """
    return {
        'bert': _bert_architecture(model, bert_heads),
        'clip': _clip_architecture(model),
        'feature_dim': feature_dim(model),
    }


def _bert_architecture(model, heads):
    word = model['text_encoder.bert.embeddings.word_embeddings.weight']
    first = 'text_encoder.bert.encoder.layer.0.intermediate.dense.weight'
    hidden = word.shape[1]
    return {
        'model_type': 'bert',
        'vocab_size': word.shape[0],
        'hidden_size': hidden,
        'num_hidden_layers': layer_count(model, r'text_encoder\.bert\.encoder\.layer\.(\d+)\.'),
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
        'num_hidden_layers': layer_count(model, re.escape(prefix) + r'encoder\.layers\.(\d+)\.'),
        'num_attention_heads': max(width // 64, 1),
        'intermediate_size': model[f'{prefix}encoder.layers.0.mlp.fc1.weight'].shape[0],
        'projection_dim': model['visual_encoder.clip.visual_projection.weight'].shape[0],
        'hidden_act': 'quick_gelu',
        'layer_norm_eps': 1e-5,
    }


def feature_dim(model):
    """Width of the visual features that the encoder reads; 0 for CLIP."""
    if 'visual_encoder.input.linear.weight' in model:
        return model['visual_encoder.input.linear.weight'].shape[1]
    is_clip = any(name.startswith('visual_encoder.clip.') for name in model)
    return 0 if is_clip else model['visual_encoder.linear.weight'].shape[1]


def layer_count(model, pattern):
    """1 + the largest number that the pattern's group takes among the names, of which there are at
    least as many."""
    count = 1 + max(
        (int(m[1][:9]) for m in (re.match(pattern, name) for name in model) if m), default=-1
    )
    if count > len(model):
        raise KeyError(f'layer {count - 2}')  # one of those before the last
    return count
