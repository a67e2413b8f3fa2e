"""Raw images as CLIP's image tower reads them.

N images, S side of an image.
"""
import hashlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from basic import runtime
from basic.errors import DataError, first_five

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)       # of CLIP's own preprocessing
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
PREPROCESSING = 1                        # count it up when ImageSource.load changes: caches are then made anew


class ImageSource:
    """Raw images through CLIP's preprocessing but its normalisation: batch(ids) -> (N, 3, S, S) uint8, None.

    A byte a number is a quarter of what the normalised pixels would take on their way to the model, which normalises
    them (model.ClipEncoder).

    Args:
        template: path, with {id} for the image's id.
        ids: the split's images, in order.
        image_size: S.
        where: the file that the ids come from, for messages.
    """

    dim = 0
    in_processes = True                  # decoding holds Python's lock too often for threads beside the training

    def __init__(self, template, ids, *, image_size, where):
        runtime.declare_missing_torchvision_ops()
        from torchvision import transforms  # only images need torchvision
        self.template, self.ids, self.where, self._known = template, ids, where, set(ids)
        self.image_size = image_size
        # CLIP's own order: the resize comes before the conversion to RGB.
        self._shape = transforms.Compose([
            transforms.Resize(image_size, interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(image_size)])

    def __contains__(self, name):
        return name in self._known

    def path(self, name):
        """Where an image lies."""
        return Path(self.template.replace('{id}', name))

    def batch(self, ids, own=slice(None)):
        pixels = torch.empty((len(ids[own]), 3, self.image_size, self.image_size), dtype=torch.uint8)
        for image, name in zip(pixels, ids[own]):
            image.copy_(self.load(name))
        return pixels, None

    def load(self, name):
        """One image (3, S, S) uint8; DataError if it is missing or cannot be decoded."""
        return self.read(name, lambda image: torch.from_numpy(np.array(self._shape(image).convert('RGB')))
                         ).permute(2, 0, 1)

    def read(self, name, function):
        """function(PIL image) of one image; DataError if it is missing or cannot be decoded."""
        path = self.path(name)
        try:
            with Image.open(path) as image:
                return function(image)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise DataError(f'{path}: cannot be read as an image ({error}); fetch it again') from None

    def missing(self, ids):
        """The paths of those images that do not exist."""
        paths = [self.path(name) for name in ids]
        # One listing a folder: a look at each of 100,000 files takes minutes on a network disk.
        there = {folder: {path.name for path in folder.iterdir()} if folder.is_dir() else ()
                 for folder in {path.parent for path in paths}}
        return [path for path in paths if path.name not in there[path.parent]]

    def fingerprint(self, ids):
        """What the pixels of these images are made from, as plain data: it changes if a file does."""
        files = hashlib.sha256()
        for name in ids:
            stat = self.path(name).stat()
            files.update(f'{name}\0{stat.st_size}\0{stat.st_mtime_ns}\n'.encode())
        return {'preprocessing': PREPROCESSING, 'image_size': self.image_size, 'files': files.hexdigest()}


class StoredImages:
    """Images kept on disk as pixels or embeddings: batch(ids) -> (N, 3, S, S) uint8 or (N, P) float32, None.

    Args:
        path: .npy of a row an image.
        ids: the rows' images.
        where: the file that the ids come from, for messages.
    """

    dim, in_processes = 0, False

    def __init__(self, path, ids, *, where):
        self.ids, self.where, self._row = ids, where, {name: row for row, name in enumerate(ids)}
        self._array = np.asarray(np.load(path, mmap_mode='r', allow_pickle=False))

    def __contains__(self, name):
        return name in self._row

    def batch(self, ids, own=slice(None)):
        rows = np.array([self._row[name] for name in ids[own]], dtype=np.int64)
        return torch.from_numpy(np.take(self._array, rows, axis=0)), None


def check_images(source, visual_ids):
    """Raise DataError if images of these ids do not exist; features have no images."""
    missing = source.missing(visual_ids) if isinstance(source, ImageSource) else []
    if missing:
        raise DataError(f'{len(missing):,} of the {len(visual_ids):,} images that {source.where} names do not exist: '
                        f'{first_five(missing)}; put them there, or set data.images to where they are')


def tower_fingerprint(clip):
    """What an image's embedding is made from beside its pixels, as plain data.

    Args:
        clip: transformers' CLIPVisionModelWithProjection.
    """
    weights = hashlib.sha256()
    for name, tensor in sorted(clip.state_dict().items()):
        weights.update(f'{name} {tensor.dtype} {tuple(tensor.shape)}'.encode())
        weights.update(tensor.cpu().contiguous().view(torch.uint8).numpy())
    unseen = ('hidden_act', 'num_attention_heads', 'layer_norm_eps', 'patch_size')     # in no weight's shape
    return {'weights': weights.hexdigest(), **{key: getattr(clip.config, key) for key in unseen}}
