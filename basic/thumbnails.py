"""What to look at for a visual item: a small picture of its image, or four frames of its video.

    media = Collection(config, rootpath).media('test')   # Media; None: nothing to look at
    media.thumbnail('904456578')                         # PIL image in RGB, or None
    media.jpeg('904456578', side=120)                    # bytes of a JPEG, or None
    media.path('904456578')                              # of the file or folder, or None
    thumbnail_of(path)                                   # the same for one file or folder

An image is turned as its EXIF data say; a video (read with PyAV, see basic.videos) or a folder of
frames becomes a contact sheet of four frames, two by two, row by row. What cannot be read, or would
be too large, has no thumbnail, so that a broken file spoils no page. Nothing is cropped: the longer
side has `side` pixels, or fewer if the image is smaller.
"""

import io
import warnings
from pathlib import Path, PurePath

from PIL import ExifTags, Image

from basic.errors import DataError
from basic.ids import IMAGE_ENDINGS
from basic.images import ItemFiles, eight_bits
from basic.videos import VIDEO_ENDINGS, spread

SIDE = 160  # pixels of the longer side
QUALITY = 80  # of a JPEG
GAP = 2  # pixels between the frames of a contact sheet
PAPER = 'white'
MEDIA_ENDINGS = tuple(dict.fromkeys((*IMAGE_ENDINGS, *VIDEO_ENDINGS)))
TURNS = {  # of the values of the EXIF field Orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class Media:
    """The images, videos or folders of frames of visual items, to look at.

    Args:
        template: path, with {id} for the item's id; other endings are found too, see
            `basic.images.ItemFiles`.
    """

    def __init__(self, template):
        self.files = ItemFiles(template, MEDIA_ENDINGS)

    def path(self, name):
        """The Path of an item's file or folder; None if there is none, or if it is not clear which.

        An id never leads out of the template's folder.
        """
        if not name or PurePath(name).is_absolute() or '..' in PurePath(name).parts:
            return None
        try:
            path = self.files.path(name)
            return path if path.exists() else None
        except (DataError, OSError, ValueError):  # such as a name with a NUL byte
            return None

    def thumbnail(self, name, side=SIDE):
        """A PIL image in RGB, its longer side at most `side` pixels; None if there is none."""
        path = self.path(name)
        try:
            return path and thumbnail_of(path, side)
        except DataError:
            return None

    def jpeg(self, name, side=SIDE):
        """The thumbnail as the bytes of a JPEG file; None if there is none."""
        image = self.thumbnail(name, side)
        return image and jpeg_of(image)


def thumbnail_of(path, side=SIDE):
    """A small picture of an image file, a video file, or a folder of frames.

    Returns:
        PIL image in RGB, its longer side at most `side` pixels.
    Raises:
        DataError: it cannot be read, has more pixels than `PIL.Image.MAX_IMAGE_PIXELS`, or is a
            video and PyAV is not installed.
    """
    path = Path(path)
    ending = path.suffix.lower()
    if path.is_dir() or ending in VIDEO_ENDINGS and ending not in IMAGE_ENDINGS:
        return contact_sheet(spread(path, 4), side)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('error', Image.DecompressionBombWarning)
            with Image.open(path) as image:
                return _small(image, side)
    except MemoryError:
        raise
    except Exception as error:  # decoders raise many kinds of errors for damaged files
        raise DataError(f'{path}: cannot be read as an image ({error})') from None


def contact_sheet(frames, side=SIDE):
    """Up to four frames, PIL images, as one of two by two; a single one alone."""
    columns = 1 if len(frames) == 1 else 2
    cell = (side - GAP * (columns - 1)) // columns
    small = [_fitted(frame, cell) for frame in frames]
    width, height = (max(sizes) for sizes in zip(*(frame.size for frame in small)))
    rows = -(-len(small) // columns)
    size = [count * (length + GAP) - GAP for count, length in ((columns, width), (rows, height))]
    sheet = Image.new('RGB', size, PAPER)
    for number, frame in enumerate(small):
        sheet.paste(frame, (number % columns * (width + GAP), number // columns * (height + GAP)))
    return sheet


def jpeg_of(image):
    """The bytes of a JPEG file of a PIL image in RGB."""
    file = io.BytesIO()
    image.save(file, 'JPEG', quality=QUALITY, optimize=True)
    return file.getvalue()


def _small(image, side):
    """An opened image, decoded at a size that suffices, in 8 bits, scaled, and turned upright."""
    turn = TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
    image.draft('RGB', (2 * side, 2 * side))  # a JPEG is decoded at a smaller scale
    small = _fitted(eight_bits(image).convert('RGB'), side)
    return small if turn is None else small.transpose(turn)


def _fitted(image, side):
    """An image scaled so that its longer side has at most `side` pixels."""
    fitted = image.copy()
    fitted.thumbnail((side, side))
    return fitted
