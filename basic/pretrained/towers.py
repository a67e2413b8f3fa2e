"""Image towers of CLIP-like models: the class, the width and the preprocessing that each asks for.

N images, S side of an image, P width of the embeddings.
"""

import torch
import transformers

from basic.errors import DataError, UnreachableError
from basic.images import RESAMPLING, Preprocessing
from basic.logger import tell
from basic.pretrained.encoders import load_whole, loading, read_config, refuse_unusable
from basic.pretrained.hub import NeedsCodeError, check_weights, load_pretrained

# The model types of image towers that are known, and the class that a tower is loaded with.
FAMILIES = {
    'clip': 'CLIPVisionModelWithProjection',
    'clip_vision_model': 'CLIPVisionModelWithProjection',
    'metaclip_2': 'MetaClip2VisionModelWithProjection',
    'metaclip_2_vision_model': 'MetaClip2VisionModelWithProjection',
    'siglip': 'SiglipVisionModel',
    'siglip_vision_model': 'SiglipVisionModel',
    # There is no class of the tower alone with its projection.
    'chinese_clip': 'ChineseCLIPModel',
    'altclip': 'AltCLIPModel',
}
REFUSED = {
    'siglip2': (
        'its images have no fixed size (NaFlex); take one of fixed size, such as'
        ' google/siglip2-base-patch16-224'
    ),
    'siglip2_vision_model': 'its images have no fixed size (NaFlex); take one of fixed size',
    'chinese_clip_vision_model': 'the projection is not part of it; give the whole Chinese-CLIP',
    'altclip_vision_model': 'the projection is not part of it; give the whole AltCLIP',
}


def build_clip(*, name, pretrained, architecture=None):
    """A CLIP-like image tower with its projection, if it has one.

    Args:
        name: hub name or local folder, of the whole model or of the tower.
        pretrained: False keeps the architecture and starts from random weights.
        architecture: its config as a plain dict, from a checkpoint: then nothing is read from
            `name`.
    Raises:
        ValueError: neither reachable nor in the local cache, or not a folder that transformers can
            load, or not an image tower.
    """
    with loading('visual.clip', name):
        if not architecture and pretrained:
            read_tower_config(name)
            return load_tower(name)
        if architecture:
            # Of a released checkpoint it does not say its kind, which is always CLIP.
            known = {'model_type': 'clip_vision_model', **architecture}
            _refuse_strange(known['model_type'])
            config = transformers.AutoConfig.for_model(**known)
            _refuse_unfit(config)
        else:
            config = read_tower_config(name)
        return _alone(_class_of(config.model_type)(config))


def load_tower(name):
    """The pretrained image tower of a known family; raises as `load_whole` and `read_config`."""
    return _alone(load_whole(_class_of(read_config(name).model_type), name))


def clip_preprocessing(name, pretrained):
    """What an image tower asks of its images, from its json files alone.

    Args:
        name, pretrained: as for `build_clip`. Weights are looked for, not read.
    Returns:
        basic.images.Preprocessing.
    Raises:
        UnreachableError: neither here nor to be downloaded now.
        ValueError: as `build_clip`, or a preprocessing that cannot be done here.
    """
    with loading('visual.clip', name):
        config = read_tower_config(name)
        if pretrained:
            check_weights(name)
        return read_preprocessing(name, config)


def read_tower_config(name):
    """The configuration of an image tower, from that of the whole model or of the tower alone."""
    config = read_config(name)
    kind = config.model_type
    _refuse_strange(kind)
    wanted = _class_of(kind).config_class
    config = config if isinstance(config, wanted) else load_pretrained(wanted, name)
    _refuse_unfit(config)
    return config


def read_preprocessing(name, config):
    """A tower's Preprocessing, from preprocessor_config.json; a CLIP without one has CLIP's own.

    Args:
        name: hub name or folder; config: of the tower.
    Raises:
        ValueError: a preprocessing that cannot be done here, or none.
    """
    size = vision_config(config).image_size
    try:
        processor = load_pretrained(transformers.AutoImageProcessor, name)
    except NeedsCodeError:
        raise
    except (OSError, ValueError) as error:
        if config.model_type in ('clip', 'clip_vision_model'):
            if isinstance(error, UnreachableError) and not str(name).startswith('openai/'):
                tell(
                    f'note: {name}: its preprocessor_config.json cannot be had now; its images are'
                    ' prepared as those of openai/clip-vit-base-patch32'
                )
            return Preprocessing(image_size=size)
        kind = UnreachableError if isinstance(error, UnreachableError) else DataError
        raise kind(
            'it has no preprocessor_config.json that can be read, which says how its images are'
            f' resized and normalised ({(str(error).splitlines() or [""])[0][:200]})'
        ) from None
    return preprocessing_of(processor.to_dict(), size)


def preprocessing_of(found, image_size):
    """The Preprocessing that an image processor describes.

    Args:
        found: what preprocessor_config.json says, filled up with the processor's own defaults.
        image_size: S, as the tower's config has it.
    Raises:
        ValueError: it is none of resizing, cropping and normalising to S.
    """
    whole = found.get('do_resize') and found.get('do_rescale') and found.get('do_normalize')
    size, crop = found.get('size') or {}, found.get('crop_size') or {}
    edges = {size.get('height'), size.get('width')} - {None} or {size.get('shortest_edge')}
    squeeze = bool(size.get('height'))
    side = edges.pop()
    cropped = {crop.get('height'), crop.get('width')} if found.get('do_center_crop') else {side}
    number = found.get('resample')
    number = int(number) if isinstance(number, int) else -1
    if (
        not whole
        or edges
        or not isinstance(side, int)
        or size.get('longest_edge')
        or abs(found.get('rescale_factor', 0) * 255 - 1) > 1e-3
        or not squeeze
        and not found.get('do_center_crop')
        or not 0 <= number < len(RESAMPLING)
    ):
        raise ValueError(
            'its preprocessor_config.json asks for something else than to resize an image, crop a'
            ' square and normalise it'
        )
    if cropped != {image_size}:
        raise ValueError(
            f'its preprocessor_config.json makes images of {"x".join(map(str, cropped))}, but its'
            f' config.json says that the tower reads {image_size}'
        )
    return Preprocessing(
        image_size=image_size,
        resize=0 if side == image_size else side,
        squeeze=squeeze,
        resample=RESAMPLING[number],
        mean=found.get('image_mean'),
        std=found.get('image_std'),
    )


def vision_config(config):
    """The part of a tower's config that describes the transformer of the images."""
    return getattr(config, 'vision_config', config)


def tower_width(config):
    """P, the width of a tower's embeddings: of its projection, or of its pooled output."""
    if 'siglip' in config.model_type:
        return config.hidden_size
    return config.projection_dim


def image_embeddings(tower, **inputs):
    """A tower's embeddings (N, P), not normalised.

    Args:
        tower: transformers' image tower, or a whole model with `get_image_features`, or any model
            that puts out a tensor.
        inputs: pixel_values (N, 3, S, S), normalised, and what else the model reads.
    """
    found = getattr(tower, 'get_image_features', tower)(**inputs)
    if isinstance(found, torch.Tensor):
        return found
    embeds = getattr(found, 'image_embeds', None)  # behind the projection
    return found.pooler_output if embeds is None else embeds


def _class_of(kind):
    return getattr(transformers, FAMILIES[kind])


def _alone(model):
    """The model without its text tower."""
    for name in ('text_model', 'text_projection', 'logit_scale'):
        if hasattr(model, name):
            delattr(model, name)
    return model


def _refuse_strange(kind):
    """ValueError unless the model type has an image tower that is known."""
    if kind in REFUSED:
        raise ValueError(f"its config.json is of a model of type '{kind}': {REFUSED[kind]}")
    if kind not in FAMILIES:
        raise ValueError(
            f"its config.json is of a model of type '{kind!s:.60}', not of CLIP or a like model"
            f' ({", ".join(kind for kind in FAMILIES if "vision" not in kind)})'
        )


def _refuse_unfit(config):
    """ValueError for a configuration of a tower that cannot be used."""
    vision = vision_config(config)
    for part in {id(config): config, id(vision): vision}.values():
        refuse_unusable(part)
    if not isinstance(vision.image_size, int):
        raise ValueError(f'its images are of {vision.image_size!r:.99}; expected one size')
    if getattr(vision, 'vision_use_head', True) is False:
        raise ValueError('it has no pooled output (vision_use_head is false)')
