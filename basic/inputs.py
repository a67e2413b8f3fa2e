"""What people give a model by hand: texts, images, frame features, pooled features.

It is checked, and cut into batches of items of one length, so that nothing is padded.

N items, F frames, D width of a feature, S side of an image.
"""

import os

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from basic.errors import DataError
from basic.images import Pixels, Unclear, eight_bits, read_image


def check_texts(texts, what='texts'):
    """A list of str; ValueError if it is empty, one text alone, or holds something else."""
    texts = _items(texts, what, 'a list of texts, such as [text]')
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f'{what}[{number}] is {_shown(text)}; expected a text')
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f'{what}[{number}] is no valid text: half of a surrogate pair at character'
                f' {error.start + 1}, {ascii(text[error.start])}'
            ) from None
    return texts


def check_images(images):
    """A list of paths and PIL images; ValueError if it is empty or holds something else."""
    images = _items(images, 'images', 'a list of paths or PIL images, such as [image]')
    for number, image in enumerate(images):
        if not isinstance(image, str | os.PathLike | Image.Image):
            raise ValueError(
                f'images[{number}] is {_shown(image)}; expected a path or a PIL image'
                ' (PIL.Image.fromarray makes one of an array)'
            )
    return images


def check_videos(videos, dim, max_frames):
    """The features of videos as the model reads them.

    Args:
        videos: list of arrays or tensors (F, D), one for each video.
        dim: D; max_frames: videos are cut to their first frames.
    Returns:
        list of tensors (F, D), float32, on the CPU.
    Raises:
        ValueError: an empty list, another shape, NaN or infinity; names the video.
    """
    videos = _items(videos, 'videos', 'a list of arrays (frames, width), one for each video')
    return [
        _features(f'videos[{number}]', video, dim, 'frames', max_frames)
        for number, video in enumerate(videos)
    ]


def check_features(features, dim):
    """Pooled features (N, D), an array or a tensor, as a float32 tensor on the CPU.

    Raises:
        ValueError: none, another shape, NaN or infinity.
    """
    return _features('features', features, dim, 'items')


def in_batches(lengths, size):
    """Arrays of at most `size` row numbers each, of items of one length: none is padded.

    Args:
        lengths: (N,) integers.
    """
    lengths = np.asarray(lengths)
    for length in np.unique(lengths):
        rows = np.flatnonzero(lengths == length)
        for start in range(0, len(rows), size):
            yield rows[start : start + size]


class ImageBatches(Dataset):
    """Paths and PIL images; an index is a batch's number, an item its pixels (N, 3, S, S) uint8.

    A PIL image is read as the same image in a file is.

    Args:
        images: list of them.
        preprocessing: of the tower that reads them, a basic.images.Preprocessing.
        batch_size: images in a batch.
    """

    def __init__(self, images, preprocessing, *, batch_size):
        self.images, self.batch_size, self._pixels = images, batch_size, Pixels(preprocessing)

    def __len__(self):
        return -(-len(self.images) // self.batch_size)

    def __getitem__(self, number):
        start = number * self.batch_size
        return torch.stack(list(map(self._read, self.images[start : start + self.batch_size])))

    def _read(self, image):
        if not isinstance(image, Image.Image):
            return read_image(image, self._pixels)
        try:
            return self._pixels(eight_bits(image))
        except Unclear as error:
            raise DataError(f'{image!r}: {error}') from None
        except MemoryError:
            raise
        except Exception as error:  # an image is decoded when it is first used
            raise DataError(f'{image!r} cannot be decoded ({error})') from None


def _items(given, name, expected):
    """What was given, as a list; ValueError if it is a single item, or empty."""
    if isinstance(given, str | bytes | dict | os.PathLike | Image.Image):
        raise ValueError(f'{name}: expected {expected}; found {_shown(given)}')
    try:
        given = list(given)
    except TypeError:
        raise ValueError(f'{name}: expected {expected}; found {_shown(given)}') from None
    if not given:
        raise ValueError(f'{name}: an empty list; expected {expected}')
    return given


def _features(name, features, dim, what, most=None):
    """Features (rows, D) as a float32 tensor of the first `most` rows; ValueError otherwise."""
    expected = f'expected an array of shape ({what}, {dim}), with one row or more'
    if isinstance(features, str | bytes | dict | os.PathLike | Image.Image):
        raise ValueError(f'{name}: {expected}; found {_shown(features)}')
    if not isinstance(features, torch.Tensor):
        try:
            features = np.asarray(features)
        except ValueError:  # rows of different lengths
            raise ValueError(f'{name}: {expected}; found rows of different lengths') from None
        if features.dtype.kind not in 'fiu':
            raise ValueError(f'{name}: {expected}; found {features.dtype}')
    if features.ndim != 2 or features.shape[1] != dim or not len(features):
        raise ValueError(f'{name}: {expected}; found shape {tuple(features.shape)}')
    features = features[:most]
    if isinstance(features, np.ndarray):
        features = torch.from_numpy(np.array(features, dtype=np.float32))
    features = features.detach().to('cpu', torch.float32)
    if not features.isfinite().all():
        raise ValueError(f'{name}: NaN or infinity among them; extract the features again')
    return features


def _shown(value):
    """A value in a few words, for messages."""
    text = repr(value)
    return f'{type(value).__name__} {text if len(text) < 60 else text[:60] + "..."}'
