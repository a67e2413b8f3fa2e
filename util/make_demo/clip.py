"""The demo's image tower: a small CLIP vision transformer whose weights are written down by hand.

Its first three layers turn every patch into palette responses, the other three average these over
six regions of the picture. Only the linear map from the averages to the embedding is fitted, by
ridge regression on pictures of *other* scenes. So it is the same on every machine and takes
seconds.

Dimensions: N pictures, P palette colours, T attribute values, D width.
"""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from util.make_demo.features import SIDE, other_images, palette, vision_rng
from util.make_demo.world import ATTRIBUTES

CONFIG = {
    'architectures': ['CLIPVisionModelWithProjection'],
    'model_type': 'clip_vision_model',
    'hidden_act': 'quick_gelu',
    'hidden_size': 128,
    'num_attention_heads': 2,
    'num_hidden_layers': 6,
    'intermediate_size': 336,
    'image_size': SIDE,
    'patch_size': 8,
    'num_channels': 3,
    'projection_dim': 64,
    'layer_norm_eps': 1e-5,
    'attention_dropout': 0.0,
    'torch_dtype': 'float32',
}
# CLIP's own
MEAN, DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
PREPROCESSOR = {
    'image_processor_type': 'CLIPImageProcessor',
    'do_resize': True,
    'size': {'shortest_edge': SIDE},
    'resample': 3,
    'do_center_crop': True,
    'crop_size': {'height': SIDE, 'width': SIDE},
    'do_rescale': True,
    'rescale_factor': 1 / 255,
    'do_normalize': True,
    'image_mean': list(MEAN),
    'image_std': list(DEVIATION),
    'do_convert_rgb': True,
}
# rows and columns of the regions; two regions, one a head, for each of the last layers
REGIONS = (2, 3)
RADIUS = 0.06  # squared distance at which a colour no longer counts as a palette colour
SHARPNESS = 3 / RADIUS
# The residual stream of a patch: 16 cells of 2 x 2 px, 3 colours each | their squared lengths |
# palette responses | region code | spare | mark of the class token | two anchors. The class token's
# first dimensions collect the estimates of the attributes instead. The anchors hold +-ANCHOR and
# outweigh the rest, and the spare dimensions hold minus the sum of the others: so every layer norm
# subtracts nothing and divides by the same UNIT, which its weight undoes.
CELLS = 16
SQUARES = CELLS * 3
CHANNELS = SQUARES + CELLS
ANCHOR = 100.0
UNIT = ANCHOR * np.sqrt(2 / CONFIG['hidden_size'])


def quick_gelu(x):
    return x / (1 + np.exp(np.minimum(-1.702 * x, 60)))


def palette_channels(pictures):
    """What the tower's patches hold after three layers: uint8 (N, 64, 64, 3) -> float32 (N, 64
    patches, P)."""
    colours = palette()
    cells = (
        pictures.reshape(len(pictures), 32, 2, 32, 2, 3).mean((2, 4), dtype=np.float32) / 255 - 0.5
    )
    squares = np.sum(cells * np.tanh(0.851 * cells), -1, keepdims=True) / 0.851
    inside = RADIUS - squares + 2 * cells @ colours.T - np.sum(colours**2, 1)
    responses = quick_gelu(SHARPNESS * inside).reshape(len(pictures), 8, 4, 8, 4, -1)
    return responses.mean((2, 4)).reshape(len(pictures), 64, -1)


def region_of_patch():
    """The region that each of the 8 x 8 patches belongs to: int (64,)."""
    rows, columns = np.divmod(np.arange(64), 8)
    return rows * REGIONS[0] // 8 * REGIONS[1] + columns * REGIONS[1] // 8


def attribute_targets(scenes):
    """One-hot attributes, less their means: float64 (N, 57)."""
    rows = [
        [
            float(getattr(scene, name) == value)
            for name, values in ATTRIBUTES.items()
            for value in values
        ]
        for scene in scenes
    ]
    targets = np.array(rows)
    return targets - targets.mean(0)


def fit_readout(count=3000):
    """Ridge regression from region averages of palette responses to attributes, on `count` other
    scenes.

    Returns weights (regions, P, T), a bias (T,) and the deviations (T,) of the estimates; T = 57.
    """
    scenes, pictures = other_images(count)
    channels = np.concatenate(
        [palette_channels(pictures[i : i + 250]) for i in range(0, count, 250)]
    )
    regions = region_of_patch()
    averages = np.stack(
        [channels[:, regions == region].mean(1) for region in range(regions.max() + 1)], 1
    )
    inputs = averages.reshape(count, -1).astype(np.float64)
    mean, scale = inputs.mean(0), inputs.std(0) + 1e-6
    standard = (inputs - mean) / scale
    ridge = 0.03 * count * np.eye(standard.shape[1])
    weights = (
        np.linalg.solve(standard.T @ standard + ridge, standard.T @ attribute_targets(scenes))
        / scale[:, None]
    )
    estimates = inputs @ weights
    return weights.reshape(*averages.shape[1:], -1), -mean @ weights, estimates.std(0)


def tower_weights():
    """The tower's weights under transformers' names: dict of float32 arrays.

    Layer 1's MLP squares (x * tanh(x) from two quick GELUs); those of layers 2 and 3 answer where a
    cell's colour is within RADIUS of a palette colour, half of the palette each; in layers 4 to 6
    the class token attends evenly to two regions each, the values being the readout's share of that
    region. Patches attend to the class token alone.
    """
    readout, bias, deviation = fit_readout()
    colours = palette().astype(np.float64)
    number, targets = len(colours), readout.shape[2]
    width, hidden = CONFIG['hidden_size'], CONFIG['intermediate_size']
    code, spare = CHANNELS + number, slice(CHANNELS + number + len(readout), width - 3)
    class_mark, anchors = width - 3, (width - 2, width - 1)
    regions = region_of_patch()
    assert spare.start < spare.stop and CELLS * number <= 2 * hidden and targets <= 64
    weights = {'vision_model.embeddings.class_embedding': np.zeros(width)}

    patch = np.zeros((width, 3, 8, 8))
    for cell in range(CELLS):
        row, column = divmod(cell, 4)
        for channel in range(3):
            block = (
                cell * 3 + channel,
                channel,
                slice(row * 2, row * 2 + 2),
                slice(column * 2, column * 2 + 2),
            )
            patch[block] = DEVIATION[channel] / 4
    positions = np.zeros((65, width))
    positions[1:, :SQUARES] = np.tile(np.array(MEAN) - 0.5, CELLS)
    positions[1 + np.arange(64), code + regions] = 1
    positions[0, class_mark] = 1
    positions[:, anchors[0]], positions[:, anchors[1]] = ANCHOR, -ANCHOR
    weights['vision_model.embeddings.patch_embedding.weight'] = patch
    weights['vision_model.embeddings.position_embedding.weight'] = positions

    def norm(name):
        weights[f'{name}.weight'], weights[f'{name}.bias'] = np.full(width, UNIT), np.zeros(width)

    norm('vision_model.pre_layrnorm')
    norm('vision_model.post_layernorm')
    for layer in range(CONFIG['num_hidden_layers']):
        name = f'vision_model.encoder.layers.{layer}'
        norm(f'{name}.layer_norm1')
        norm(f'{name}.layer_norm2')
        for part in ('q', 'k', 'v', 'out'):
            weights[f'{name}.self_attn.{part}_proj.weight'] = np.zeros((width, width))
            weights[f'{name}.self_attn.{part}_proj.bias'] = np.zeros(width)
        weights[f'{name}.mlp.fc1.weight'], weights[f'{name}.mlp.fc1.bias'] = (
            np.zeros((hidden, width)),
            np.zeros(hidden),
        )
        weights[f'{name}.mlp.fc2.weight'], weights[f'{name}.mlp.fc2.bias'] = (
            np.zeros((width, hidden)),
            np.zeros(width),
        )

    first = 'vision_model.encoder.layers.0.mlp'
    for index in range(SQUARES):
        for unit, sign in ((2 * index, 1), (2 * index + 1, -1)):
            weights[f'{first}.fc1.weight'][unit, index] = sign
            weights[f'{first}.fc2.weight'][SQUARES + index // 3, unit] = 1 / 0.851
    for colour in range(number):
        mlp = f'vision_model.encoder.layers.{1 + colour % 2}.mlp'
        for cell in range(CELLS):
            unit = colour // 2 * CELLS + cell
            weights[f'{mlp}.fc1.weight'][unit, cell * 3 : cell * 3 + 3] = (
                2 * SHARPNESS * colours[colour]
            )
            weights[f'{mlp}.fc1.weight'][unit, SQUARES + cell] = -SHARPNESS
            weights[f'{mlp}.fc1.bias'][unit] = SHARPNESS * (RADIUS - np.sum(colours[colour] ** 2))
            weights[f'{mlp}.fc2.weight'][CHANNELS + colour, unit] = 1 / CELLS

    for region in range(len(readout)):
        attention = f'vision_model.encoder.layers.{3 + region // 2}.self_attn'
        head = 64 * (region % 2)  # two heads of 64 dimensions
        # Scores are divided by sqrt(64) = 8: 20 * 20 / 8 = 50 leaves nothing to what is not asked
        # for.
        weights[f'{attention}.q_proj.weight'][head, class_mark] = 20
        weights[f'{attention}.k_proj.weight'][head, code + region] = 20
        weights[f'{attention}.q_proj.weight'][head + 1, code : code + len(readout)] = 20
        weights[f'{attention}.k_proj.weight'][head + 1, class_mark] = 20
        weights[f'{attention}.v_proj.weight'][head : head + targets, CHANNELS:code] = readout[
            region
        ].T
        weights[f'{attention}.out_proj.weight'][:targets, head : head + targets] = np.eye(targets)
    weights['vision_model.embeddings.position_embedding.weight'][0, :targets] = bias

    for name, value in weights.items():  # whatever writes to the stream keeps its sum at zero
        if name.endswith(('patch_embedding.weight', 'out_proj.weight', 'fc2.weight')):
            value[spare] = -value.sum(0) / (spare.stop - spare.start)
    positions[:, spare] = -positions.sum(1, keepdims=True) / (spare.stop - spare.start)

    # A random rotation, so that no single number of the embedding is an attribute by itself.
    turn = np.linalg.qr(vision_rng().standard_normal((64, 64)))[0]
    weights['visual_projection.weight'] = np.zeros((CONFIG['projection_dim'], width))
    weights['visual_projection.weight'][:, :targets] = turn[:, :targets] / deviation
    return {name: value.astype(np.float32) for name, value in weights.items()}


def clip_tower(folder):
    """Write the tower to `folder` in transformers' format: config.json, model.safetensors,
    preprocessor_config.json."""
    folder = Path(folder)
    for name, content in (('config.json', CONFIG), ('preprocessor_config.json', PREPROCESSOR)):
        (folder / name).write_text(json.dumps(content, indent=2) + '\n', encoding='utf-8')
    save_file(tower_weights(), folder / 'model.safetensors', metadata={'format': 'pt'})
