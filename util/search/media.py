"""Images from outside, and the small pictures that are shown."""

import io
import warnings
from functools import lru_cache

from PIL import ExifTags, Image, ImageOps

from basic.errors import DataError
from basic.thumbnails import jpeg_of, thumbnail_of

# Of an upload; other decoders are not given bytes from outside.
FORMATS = ('JPEG', 'PNG', 'WEBP', 'GIF', 'BMP')
PIXELS = 64_000_000  # of an upload, at most; they take 4 bytes each
REMEMBERED = 1000  # thumbnails, some 5 to 40 KiB each


class TooLarge(DataError):
    """An image with too many pixels, such as a decompression bomb."""


def decode(data):
    """The image in the bytes of a file, upright.

    Args:
        data: bytes of one of FORMATS; of an animation, the first frame is used.
    Returns:
        PIL image, decoded.
    Raises:
        TooLarge: more than PIXELS pixels; they are not decoded.
        DataError: anything else than such an image.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=FORMATS)
        with image:
            width, height = image.size
            if width * height > PIXELS:
                raise TooLarge(
                    f'the image has {width:,} x {height:,} pixels; {PIXELS:,} are allowed'
                )
            image.load()
            return ImageOps.exif_transpose(image)
    except Image.DecompressionBombError:
        raise TooLarge(f'the image has too many pixels; {PIXELS:,} are allowed') from None
    except (TooLarge, MemoryError):
        raise
    except Exception:  # decoders raise many kinds of errors for damaged files
        raise DataError(
            f'this is no image that can be read; expected one of {", ".join(FORMATS)}'
        ) from None


def is_turned(path):
    """Whether an image's EXIF data say that it is to be turned; False for what is no image."""
    try:
        with Image.open(path) as image:
            return image.getexif().get(ExifTags.Base.Orientation, 1) != 1
    except MemoryError:
        raise
    except Exception:  # the encoder says what is wrong with it
        return False


def upright(path):
    """An image file as a PIL image, turned as its EXIF data say; DataError if it is damaged."""
    try:
        with Image.open(path) as image:
            image.load()
            return ImageOps.exif_transpose(image)
    except MemoryError:
        raise
    except Exception as error:
        raise DataError(f'{path}: cannot be read as an image ({error})') from None


@lru_cache(REMEMBERED)
def small_jpeg(path, side):
    """The bytes of a JPEG of a file's or folder's thumbnail; None if there is none."""
    if not path:
        return None
    try:
        return jpeg_of(thumbnail_of(path, side))
    except (DataError, OSError):
        return None
