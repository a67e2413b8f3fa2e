"""Image encoders for features: torchvision's ResNets, and the image towers of CLIP-like models.

N images, D width of the features.
"""

import hashlib
import re
from pathlib import Path
from urllib.error import URLError

import torch

from basic import runtime
from basic.checkpoint_file import CheckpointError, read_content, tensors_of
from basic.command import is_out_of_memory
from basic.errors import DataError, UnreachableError, first_five
from basic.pretrained.encoders import UNUSABLE, load_whole, read_config
from basic.pretrained.hub import load_pretrained, reason
from basic.pretrained.towers import FAMILIES, image_embeddings, load_tower

RESNET = r'(wide_)?resne(x)?t\d+\w*'  # torchvision's names: resnet152, resnext101_32x8d, ...
WEIGHTS = ('IMAGENET1K_V1', 'IMAGENET1K_V2')


class Encoder:
    """A frozen image encoder with its preprocessing.

    Attributes:
        name: as the user gave it.
        model: in evaluation mode, float32.
        prepare: function of a list of PIL images in RGB -> dict of tensors with N rows.
        preprocessing: plain data that describes `prepare`.
    """

    def __init__(self, name, model, prepare, preprocessing):
        self.name, self.prepare, self.preprocessing = name, prepare, preprocessing
        self.model = model.requires_grad_(False).eval()
        self.device, self.precision = torch.device('cpu'), 'fp32'

    def to(self, device, precision='fp32'):
        """Move the model to a device; `precision` is fp32, tf32 or bf16."""
        self.device, self.precision = torch.device(device), precision
        self.model.to(self.device)
        return self

    def describe(self):
        """What the features depend on in addition to the pixels, as plain data."""
        return {
            'name': str(self.name),
            'class': type(self.model).__name__,
            'weights': weights_hash(self.model),
            'revision': getattr(getattr(self.model, 'config', None), '_commit_hash', None),
            'preprocessing': self.preprocessing,
        }

    @torch.inference_mode()
    def __call__(self, inputs):
        """Encode a batch: dict of tensors from `prepare` -> (N, D) float32, not normalised."""
        inputs = {key: value.to(self.device) for key, value in inputs.items()}
        with (
            runtime.matrix_precision(self.precision),
            runtime.autocast(self.device, self.precision),
        ):
            found = image_embeddings(self.model, **inputs)
        return found.float().cpu()


def build_encoder(name, weights=None):
    """An image encoder.

    Args:
        name: a ResNet of torchvision, such as resnet152; or the hub name or folder of a CLIP-like
            model (CLIP, SigLIP, SigLIP 2, MetaCLIP 2, Chinese-CLIP, ...).
        weights: of a ResNet: IMAGENET1K_V1 (default) or _V2, or a file as torchvision saves it.
    Raises:
        DataError: no such encoder or weights; UnreachableError: they cannot be downloaded now.
    """
    if re.fullmatch(RESNET, name) and not Path(name).is_dir():
        return _resnet(name, weights or WEIGHTS[0])
    if weights:
        raise DataError(
            f"--weights is for ResNets of torchvision; '{name}' has its own: give --encoder FOLDER"
        )
    return _tower(name)


def weights_hash(model):
    """SHA-256 of a model's weights: names, types, shapes and numbers."""
    found = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        found.update(f'{name} {tensor.dtype} {tuple(tensor.shape)}'.encode())
        found.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()


# ------------------------------------------------------------------------------------------ ResNets


class _Pooled(torch.nn.Module):
    """A ResNet without its classifier: the average of the last feature map, (N, D)."""

    def __init__(self, resnet):
        super().__init__()
        resnet.fc = torch.nn.Identity()
        self.resnet = resnet

    def forward(self, pixel_values):
        return self.resnet(pixel_values)


class _Transforms:
    """The preprocessing that belongs to a ResNet's weights."""

    def __init__(self, transforms):
        self.transforms = transforms

    def __call__(self, images):
        return {'pixel_values': torch.stack([self.transforms(image) for image in images])}


def _resnet(name, weights):
    from torchvision import models

    known = [each for each in models.list_models(module=models) if re.fullmatch(RESNET, each)]
    if name not in known:
        raise DataError(f"--encoder: torchvision has no '{name}', but {', '.join(known)}")
    choices = models.get_model_weights(name)
    if weights in WEIGHTS and weights not in choices.__members__:
        raise DataError(f'--weights: torchvision has no {weights} of {name}')
    if weights in WEIGHTS:
        chosen = choices[weights]
        try:
            state = chosen.get_state_dict(progress=False, check_hash=True)
        except (URLError, OSError, RuntimeError) as error:
            raise UnreachableError(
                f'the weights of {name} are not in the cache of torch.hub and cannot be downloaded '
                f'now ({reason(error)}): download {chosen.url} elsewhere and give it with '
                f'--weights FILE'
            ) from None
    else:
        state, chosen = _read_weights(weights, choices)
    model = models.get_model(name, weights=None)
    _load_resnet(model, state, name, weights)
    # Its text names sizes, interpolation, mean and standard deviation.
    return Encoder(name, _Pooled(model), _Transforms(chosen.transforms()), str(chosen.transforms()))


def _read_weights(path, choices):
    """The state dict of a file, and the weights of torchvision whose preprocessing is theirs.

    The names of torchvision's files end in the start of their SHA-256.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f'--weights: no file {path}; expected {", ".join(WEIGHTS)} or a file')
    state = tensors_of(read_content(path), path, path.stat().st_size)
    with open(path, 'rb') as file:
        digest = hashlib.file_digest(file, 'sha256').hexdigest()
    for each in choices:
        if digest.startswith(re.search(r'-([0-9a-f]{8})\.pth', each.url)[1]):
            return state, each
    return state, choices[WEIGHTS[0]]


def _load_resnet(model, state, name, path):
    own = {key: value for key, value in model.state_dict().items() if not key.startswith('fc.')}
    wrong = [key for key, value in own.items() if key not in state or _differs(state[key], value)]
    if wrong:
        raise CheckpointError(
            f'{path} does not have the weights of {name}: missing or of another shape: '
            f'{first_five(wrong)}'
        )
    model.load_state_dict({key: state[key] for key in own}, strict=False)


def _differs(found, wanted):
    return found.shape != wanted.shape or found.is_floating_point() != wanted.is_floating_point()


# ------------------------------------------------------------------------------------- image towers


class _Processor:
    """A model's own image processor."""

    def __init__(self, processor):
        self.processor = processor

    def __call__(self, images):
        return dict(self.processor(images=images, return_tensors='pt'))


def _tower(name):
    from transformers import AutoImageProcessor, AutoModel

    try:
        if read_config(name).model_type in FAMILIES:
            model = load_tower(name)
        else:
            model = load_whole(AutoModel, name)
            if not hasattr(model, 'get_image_features'):
                raise DataError(f'it is a {type(model).__name__}, not a CLIP-like model')
        processor = load_pretrained(AutoImageProcessor, name)
    except Exception as error:
        if is_out_of_memory(error) or not isinstance(error, UNUSABLE):
            raise
        unreachable = UnreachableError if isinstance(error, UnreachableError) else DataError
        raise unreachable(
            f"--encoder: cannot use '{name}': {(str(error).strip() or repr(error)).splitlines()[0]}"
            '\n  Expected resnet152, or a CLIP-like model as transformers saves it (config.json, '
            'weights, preprocessor_config.json): its hub name, or without network a folder'
        ) from None
    described = {
        key: value
        for key, value in processor.to_dict().items()
        if isinstance(value, str | int | float | bool | dict | list | tuple)
        and key != 'data_format'
    }
    return Encoder(
        name, model, _Processor(processor), {'class': type(processor).__name__, **described}
    )
