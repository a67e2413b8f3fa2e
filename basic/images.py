"""Raw images, preprocessed for CLIP or a like image tower.

N images, S height and width of an image.
"""

import hashlib
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from basic import runtime
from basic.errors import DataError, first_five
from basic.ids import IMAGE_ENDINGS, did_you_mean

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)  # of CLIP's own preprocessing
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
PREPROCESSING = 2  # increment when ImageSource.load changes, to make caches stale
LARGEST_SIDE = 10_000
RESAMPLING = ('nearest', 'lanczos', 'bilinear', 'bicubic', 'box', 'hamming')  # by PIL's numbers


@dataclass(frozen=True)
class Preprocessing:
    """What an image tower asks of its images: resized, cropped, then normalised.

    The defaults are those of openai/clip-vit-base-patch32.

    Attributes:
        image_size: S, the side of the square that is cropped from the middle.
        resize: the side that the image is resized to before the crop; 0: S.
        squeeze: resize both edges to it, as SigLIP does; False: the shorter one, and keep the
            shape.
        resample: one of RESAMPLING.
        mean, std: of red, green and blue from 0 to 1, to normalise with.
    """

    image_size: int = 224
    resize: int = 0
    squeeze: bool = False
    resample: str = 'bicubic'
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD

    def __post_init__(self):
        """ValueError for values that a stranger's file may have, but no preprocessing."""
        for name in ('image_size', 'resize'):
            value, least = getattr(self, name), int(name == 'image_size')
            if type(value) is not int or not least <= value <= LARGEST_SIDE:
                raise ValueError(f'{name}: expected {least} to {LARGEST_SIDE}, found {value!r:.99}')
        if type(self.squeeze) is not bool or self.resample not in RESAMPLING:
            raise ValueError(
                f'squeeze, resample: expected true or false, and one of {", ".join(RESAMPLING)};'
                f' found {self.squeeze!r:.99}, {self.resample!r:.99}'
            )
        for name in ('mean', 'std'):
            values = getattr(self, name)
            if not (
                isinstance(values, list | tuple)
                and len(values) == 3
                and all(type(value) in (int, float) and abs(value) < 1000 for value in values)
                and (name == 'mean' or min(values) > 0)
            ):
                raise ValueError(
                    f'{name}: expected a number for each of red, green and blue'
                    f'{", above 0" * (name == "std")}; found {values!r:.99}'
                )
            object.__setattr__(self, name, tuple(map(float, values)))

    def plain(self):
        """As plain data, for a checkpoint."""
        return {**asdict(self), 'mean': list(self.mean), 'std': list(self.std)}

    def unlike_clip(self, *names):
        """Those of these attributes that are not CLIP's own, as plain data.

        Caches are named after them: those of CLIP have been made without.
        """
        own = Preprocessing(image_size=self.image_size).plain()
        return {name: self.plain()[name] for name in names if self.plain()[name] != own[name]}

    def __str__(self):
        text = f'images of {self.image_size} x {self.image_size}'
        numbers = [' '.join(f'{value:.4g}' for value in values) for values in (self.mean, self.std)]
        if self.unlike_clip('resize', 'squeeze', 'resample', 'mean', 'std'):
            text += (
                f', {"squeezed" if self.squeeze else "cropped"}, {self.resample}, mean {numbers[0]}'
                f', deviation {numbers[1]}'
            )
        return text


CLIP = Preprocessing()


class ItemFiles:
    """The files of visual items, one each: images, or videos.

    If the template's file does not exist, one is searched in the same folder: with the same name
    and another ending, such as .JPG, .jpeg or .png, or with the id itself as its name.

    Args:
        template: path, with {id} for the item's id.
        endings: of such files, lower-case.
    """

    def __init__(self, template, endings=IMAGE_ENDINGS):
        self.template, self.endings, self._listed = template, endings, {}

    def path(self, name):
        """The path of an item, or the template's path if there is no such file.

        Raises:
            DataError: the template's file does not exist, and two other files could be meant.
        """
        path = Path(self.template.replace('{id}', name))
        if path.suffix.lower() not in self.endings or path.exists():
            return path
        found = {path.with_name(other) for other in self._others(path.parent).get(path.stem, ())}
        itself = path.with_suffix('')
        if itself.suffix.lower() in self.endings and itself.exists():
            found.add(itself)
        if len(found) > 1:
            names = ' and '.join(sorted(other.name for other in found))
            raise DataError(
                f'no file {path}, but {names} in the same folder: remove the wrong ones'
            )
        return found.pop() if found else path

    def _others(self, folder):
        """The files of a folder, listed once: dict name without ending -> list of names."""
        if folder not in self._listed:
            self._listed[folder] = {}
            for name in sorted(os.listdir(folder)) if folder.is_dir() else ():
                stem, ending = os.path.splitext(name)
                if ending.lower() in self.endings:
                    self._listed[folder].setdefault(stem, []).append(name)
        return self._listed[folder]


class Pixels:
    """PIL image in 8 bits -> pixels (3, S, S) uint8, resized and cropped for a tower.

    They are not normalised: uint8 takes a quarter of the memory of float32, and the model
    normalises them (model.ClipEncoder).
    """

    def __init__(self, preprocessing):
        runtime.declare_missing_torchvision_ops()
        from torchvision import transforms  # imported here, because only images need it

        side = preprocessing.resize or preprocessing.image_size
        # CLIP's own order: the resize comes before the conversion to RGB.
        self._shape = transforms.Compose(
            [
                transforms.Resize(
                    (side, side) if preprocessing.squeeze else side,
                    interpolation=transforms.InterpolationMode(preprocessing.resample),
                ),
                transforms.CenterCrop(preprocessing.image_size),
            ]
        )

    def __call__(self, image):
        return torch.from_numpy(np.array(self._shape(image).convert('RGB'))).permute(2, 0, 1)


def read_image(path, function):
    """function(PIL image) of an image file in 8 bits; DataError if it is missing or unusable."""
    try:
        with Image.open(path) as image:
            return function(eight_bits(image))
    except Unclear as error:
        raise DataError(f'{path}: {error}') from None
    except MemoryError:
        raise
    except Exception as error:  # decoders raise many kinds of errors for damaged files
        raise DataError(
            f'{path}: cannot be read as an image ({error}); download it again'
        ) from None


class ImageSource(ItemFiles):
    """Raw images, resized and cropped for a tower: batch(ids) -> (N, 3, S, S) uint8, None.

    Args:
        template: path, with {id} for the image's id, see `ItemFiles`.
        ids: the split's images, in order.
        preprocessing: of the tower that reads them.
        where: the file that the ids come from, for messages.
    """

    dim = 0
    in_processes = True  # decoding holds Python's global lock too often for threads

    def __init__(self, template, ids, *, preprocessing, where):
        super().__init__(template)
        self.ids, self.where, self._known = ids, where, set(ids)
        self.preprocessing, self._pixels = preprocessing, Pixels(preprocessing)

    def __contains__(self, name):
        return name in self._known

    def batch(self, ids, own=slice(None)):
        side = self.preprocessing.image_size
        pixels = torch.empty((len(ids[own]), 3, side, side), dtype=torch.uint8)
        for image, name in zip(pixels, ids[own]):
            image.copy_(self.load(name))
        return pixels, None

    def load(self, name):
        """One image (3, S, S) uint8; DataError if it is missing or cannot be decoded."""
        return self.read(name, self._pixels)

    def read(self, name, function):
        """function(PIL image) of one image in 8 bits; DataError if it is missing or unusable."""
        return read_image(self.path(name), function)

    def absent(self, ids):
        """The ids whose image does not exist."""
        # One listing per folder: to check 100,000 files takes minutes on a network file system.
        self._listed = {}  # images may have been added since
        there, absent = {}, []
        for name in ids:
            path = Path(self.template.replace('{id}', name))
            folder = path.parent
            if folder not in there:
                there[folder] = set(os.listdir(folder)) if folder.is_dir() else set()
            if path.name not in there[folder] and self.path(name).name not in there[folder]:
                absent.append(name)
        return absent

    def missing(self, ids):
        """The paths of the images that do not exist."""
        return [self.path(name) for name in self.absent(ids)]

    def near(self, absent):
        """A suggestion for a message about missing images; see `did_you_mean`."""
        folder = self.path(absent[0]).parent
        return did_you_mean(
            [self.path(name).name for name in absent],
            sorted(os.listdir(folder)) if folder.is_dir() else (),
        )

    def fingerprint(self, ids):
        """What the pixels of these images depend on, as plain data: it changes if a file does."""
        files = hashlib.sha256()
        for name in ids:
            stat = self.path(name).stat()
            files.update(f'{name}\0{stat.st_size}\0{stat.st_mtime_ns}\n'.encode())
        return {
            'preprocessing': PREPROCESSING,
            'image_size': self.preprocessing.image_size,
            'files': files.hexdigest(),
            **self.preprocessing.unlike_clip('resize', 'squeeze', 'resample'),
        }


class Unclear(ValueError):
    """An image whose white level is unknown, or that is fully transparent."""


def eight_bits(image):
    """Convert a PIL image to 8 bits per channel; RGB, L and CMYK without transparency stay.

    Of an animation, the first frame is used. As released, an EXIF rotation is ignored.

    Args:
        image: PIL image of any mode. Transparent parts become white, or black if the image would
            then be all white.
    Raises:
        Unclear: pixels of 32 bits, whose white level is unknown; of 16 bits that would be almost
            black; or a fully transparent image.
    """
    if image.mode.startswith('I;16') or image.mode == 'I' and image.format == 'PNG':
        return _from_16_bits(image)
    if image.mode in ('I', 'F'):
        raise Unclear(
            f'its pixels have 32 bits (mode {image.mode}), so its white level is unknown; convert '
            'it to 8 bits per channel'
        )
    if image.mode in ('RGBA', 'RGBa', 'LA', 'La', 'PA') or 'transparency' in image.info:
        return _opaque(image.convert('RGBA'))
    if image.mode in ('1', 'P'):  # such pixels cannot be interpolated
        return image.convert('L' if image.mode == '1' else 'RGB')
    return image


def _from_16_bits(image):
    """Convert a grey image of 16 bits (65,535 is white) to 8 bits."""
    values = np.asarray(image).astype(np.int64)
    low, high = values.min(initial=0), values.max(initial=0)
    if low < 0 or 0 < high < 4096 or high > 65535:
        raise Unclear(
            f'its grey values of 16 bits go from {low} to {high}, but white is 65535: they seem '
            'to have another depth; convert it to 8 bits'
        )
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))


def _opaque(image):
    """Convert an RGBA image to RGB."""
    alpha = image.getchannel('A')
    if alpha.getextrema() == (255, 255):
        return image.convert('RGB')
    if alpha.getextrema()[1] == 0:
        raise Unclear('it is fully transparent; download it again')
    for ground in ('white', 'black'):
        shown = Image.new('RGB', image.size, ground)
        shown.paste(image, mask=alpha)
        if any(low < high for low, high in shown.getextrema()):
            break
    return shown


class StoredImages:
    """Cached images: batch(ids) -> (N, 3, S, S) uint8 pixels or (N, P) float32 embeddings, None.

    Args:
        path: .npy with one row per image.
        ids: the rows' images.
        where: the file that the ids come from, for messages.
        images: ImageSource that they were made from.
    """

    dim, in_processes = 0, False

    def __init__(self, path, ids, *, where, images=None):
        self.images = images
        self.ids, self.where, self._row = ids, where, {name: row for row, name in enumerate(ids)}
        self._array = np.asarray(np.load(path, mmap_mode='r', allow_pickle=False))

    def __contains__(self, name):
        return name in self._row

    def batch(self, ids, own=slice(None)):
        rows = np.array([self._row[name] for name in ids[own]], dtype=np.int64)
        return torch.from_numpy(np.take(self._array, rows, axis=0)), None


def absent_images(source, visual_ids):
    """The ids whose image does not exist; [] for features."""
    return source.absent(visual_ids) if isinstance(source, ImageSource) else []


def check_images(source, visual_ids):
    """Raise DataError if images of these ids do not exist; features are not checked."""
    absent = absent_images(source, visual_ids)
    if absent:
        paths = [source.path(name) for name in absent]
        raise DataError(
            f'{len(absent):,} of the {len(visual_ids):,} images in {source.where} do not exist:'
            f' {first_five(paths)}{source.near(absent)}; add them, set data.images to their path,'
            ' or skip them and their captions with data.missing=skip'
        )
