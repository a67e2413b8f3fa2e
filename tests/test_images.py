"""basic/images.py: images of any mode, and where they lie."""

import numpy as np
import pytest
import torch
from PIL import Image

from basic.errors import DataError
from basic.images import ImageSource, Preprocessing, check_images

SHAPE = (32, 32)
RAMP = np.linspace(0, 1, 32 * 32).reshape(SHAPE)  # black to white
GREY = torch.from_numpy((RAMP * 255).round())


def source(folder, *ids, template='{id}.jpg'):
    return ImageSource(
        str(folder / template), list(ids), preprocessing=Preprocessing(32), where='list'
    )


def load(folder, image, name='a.png', **options):
    for old in folder.iterdir():
        old.unlink()
    image.save(folder / name, **options)
    return source(folder, 'a').load('a')


def complaint(function, *args):
    with pytest.raises(DataError) as error:
        function(*args)
    return str(error.value)


def near(pixels, expected, atol=2):
    return all(torch.allclose(channel.double(), expected, atol=atol) for channel in pixels)


# -------------------------------------------------------------------------------------- their modes


def test_the_full_range_of_16_bits(tmp_path):
    ramp = Image.fromarray((RAMP * 65535).round().astype(np.uint16))
    for name in ('a.png', 'a.tif'):
        assert near(load(tmp_path, ramp, name), GREY)


@pytest.mark.parametrize('values', [RAMP * 255, RAMP * 4095])
def test_16_bits_that_would_be_black(tmp_path, values):
    with pytest.raises(
        DataError, match=r'a.png: its grey values of 16 bits go from 0 to (255|4095)'
    ):
        load(tmp_path, Image.fromarray(values.round().astype(np.uint16)))
    black = Image.fromarray(np.zeros(SHAPE, np.uint16))  # all of it, which no depth makes brighter
    assert not load(tmp_path, black).any()


@pytest.mark.parametrize('kind', [np.int32, np.float32])
def test_numbers_without_a_white_are_refused(tmp_path, kind):
    with pytest.raises(DataError, match='a.tiff: its pixels have 32 bits'):
        load(tmp_path, Image.fromarray((RAMP * 65535).astype(kind)), 'a.tiff')


def test_what_is_transparent_is_seen_over_white_or_else_over_black(tmp_path):
    drawing = np.zeros((*SHAPE, 4), np.uint8)
    drawing[:16, :, 3] = 255  # black on nothing
    pixels = load(tmp_path, Image.fromarray(drawing))
    assert not pixels[:, :15].any() and (pixels[:, 17:] == 255).all()
    drawing[..., :3] = 255  # white on nothing
    pixels = load(tmp_path, Image.fromarray(drawing))
    assert (pixels[:, :15] == 255).all() and not pixels[:, 17:].any()
    drawing[..., 3] = 0
    with pytest.raises(DataError, match='a.png: it is fully transparent'):
        load(tmp_path, Image.fromarray(drawing))


def test_palettes(tmp_path):
    ramp = Image.fromarray((RAMP * 255).round().astype(np.uint8))
    palette = ramp.convert('RGB').quantize(64)
    assert near(load(tmp_path, palette), GREY, atol=5)
    transparent = load(tmp_path, palette, transparency=bytes(range(0, 256, 4)))
    assert len(transparent.unique()) > 20
    assert near(load(tmp_path, Image.fromarray(RAMP > 0.5)), GREY.gt(127).double() * 255)


def test_ordinary_images_are_as_they_were(tmp_path):
    """To the last bit: resize, then RGB, as CLIP's own preprocessing has it; the camera's turn is
    not obeyed."""
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 255, (48, 40, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    for image, options in (
        (picture, {}),
        (picture.convert('L'), {}),
        (picture.convert('CMYK'), {}),
        (picture, {'exif': exif}),
    ):
        pixels = load(tmp_path, image, 'a.jpg', **options)
        stored = Image.open(tmp_path / 'a.jpg')
        expected = (
            stored.resize((32, 38), Image.Resampling.BICUBIC).crop((0, 3, 32, 35)).convert('RGB')
        )
        assert np.array_equal(pixels.permute(1, 2, 0).numpy(), np.asarray(expected))


def test_the_first_picture_of_an_animation(tmp_path):
    frames = [Image.new('RGB', SHAPE, colour) for colour in ('red', 'blue')]
    pixels = load(tmp_path, frames[0], 'a.gif', save_all=True, append_images=frames[1:])
    assert pixels[:, 0, 0].tolist() == [255, 0, 0]


def test_whatever_a_decoder_raises_names_the_file(tmp_path, monkeypatch):
    Image.new('RGB', SHAPE).save(tmp_path / 'a.jpg')
    monkeypatch.setattr(Image, 'open', lambda path: [][0])
    assert 'a.jpg: cannot be read as an image' in complaint(source(tmp_path, 'a').load, 'a')


# ----------------------------------------------------------------------------------- where they lie


@pytest.mark.parametrize(
    'name, found',
    [
        ('a', 'a.JPG'),
        ('b', 'b.jpeg'),
        ('c', 'c.png'),
        ('d.png', 'd.png'),
        ('e', 'e.jpg'),
        ('f.x', 'f.x.PNG'),
    ],
)
def test_other_endings_are_found(tmp_path, name, found):
    for file in ('a.JPG', 'b.jpeg', 'c.png', 'd.png', 'e.jpg', 'e.png', 'f.x.PNG', 'a.txt'):
        Image.new('RGB', SHAPE, 'red').convert('RGB').save(tmp_path / file, 'PNG')
    images = source(tmp_path, name)
    assert images.path(name) == tmp_path / found and images.missing([name]) == []
    assert images.load(name)[0].min() == 255 and images.fingerprint([name])['files']


def test_an_image_that_could_be_two(tmp_path):
    for file in ('a.png', 'a.jpeg'):
        (tmp_path / file).touch()
    for function, argument in (
        (source(tmp_path, 'a').load, 'a'),
        (source(tmp_path).missing, ['a']),
    ):
        assert 'but a.jpeg and a.png in the same folder' in complaint(function, argument)


def test_missing_images_name_the_nearest(tmp_path):
    (tmp_path / 'Dog.jpg').touch()
    message = complaint(check_images, source(tmp_path, 'cat', 'dog'), ['cat', 'dog'])
    assert '2 of the 2 images' in message and str(tmp_path / 'cat.jpg') in message
    assert "did you mean 'Dog.jpg' for 'dog.jpg'" in message and 'data.missing=skip' in message
    assert 'did you mean' not in complaint(check_images, source(tmp_path / 'none', 'a'), ['a'])
