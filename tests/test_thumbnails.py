"""What there is to look at for a visual item: images, videos, folders of frames."""

import io
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from basic.collection import Collection
from basic.config import load_config
from basic.errors import DataError
from basic.thumbnails import GAP, Media, contact_sheet, thumbnail_of
from util.make_demo.visuals import sheet_of

COLOURS = ('red', 'lime', 'blue', 'yellow')


def near(image, place, colour):
    """Whether the pixel at `place` is of a colour, but for what JPEG and a codec change."""
    wanted = Image.new('RGB', (1, 1), colour).getpixel((0, 0))
    return max(abs(a - b) for a, b in zip(image.getpixel(place), wanted)) < 60


def write_video(path, colours=COLOURS, frames=10):
    """A video with `frames` frames of each colour, ten per second."""
    av = pytest.importorskip('av')
    with av.open(str(path), 'w') as container:
        stream = container.add_stream('mpeg4', rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 32, 'yuv420p'
        stream.gop_size = 100  # one keyframe: what is between is found by decoding
        for colour in colours:
            for _ in range(frames):
                frame = av.VideoFrame.from_image(Image.new('RGB', (64, 32), colour))
                container.mux(stream.encode(frame))
        container.mux(stream.encode())


def test_an_image_is_scaled_and_keeps_its_shape(tmp_path):
    Image.new('RGB', (400, 100), 'red').save(tmp_path / 'a.jpg')
    Image.new('RGB', (20, 30), 'red').save(tmp_path / 'b.png')
    media = Media(f'{tmp_path}/{{id}}.jpg')
    assert media.thumbnail('a', 100).size == (100, 25)
    assert media.thumbnail('b', 100).size == (20, 30)  # another ending, and not enlarged
    shown = Image.open(io.BytesIO(media.jpeg('a', 100)))
    assert shown.format == 'JPEG' and shown.size == (100, 25) and near(shown, (50, 12), 'red')


def test_an_image_is_turned_as_its_exif_data_say(tmp_path):
    image = Image.new('RGB', (40, 20), 'blue')
    image.paste('red', (0, 0, 20, 20))  # on the left
    exif = Image.Exif()
    exif[0x0112] = 6  # turn it clockwise to see it upright: the left side is above
    image.save(tmp_path / 'a.jpg', exif=exif, quality=95)
    shown = Media(f'{tmp_path}/{{id}}.jpg').thumbnail('a', 40)
    assert shown.size == (20, 40)
    assert near(shown, (10, 5), 'red') and near(shown, (10, 35), 'blue')


def test_four_frames_of_a_video_two_by_two(tmp_path):
    write_video(tmp_path / 'clip.mp4')
    shown = Media(f'{tmp_path}/{{id}}.mp4').thumbnail('clip', 130)
    assert shown.size == (2 * 64 + GAP, 2 * 32 + GAP)
    for number, colour in enumerate(COLOURS):
        place = (32 + number % 2 * (64 + GAP), 16 + number // 2 * (32 + GAP))
        assert near(shown, place, colour), (number, shown.getpixel(place))


def test_four_frames_of_a_folder_in_natural_order(tmp_path):
    folder = tmp_path / 'clip'
    folder.mkdir()
    for number in range(12):  # 10 and 11 come last
        colour = COLOURS[number // 3]
        Image.new('RGB', (20, 20), colour).save(folder / f'frame_{number}.png')
    shown = Media(f'{tmp_path}/{{id}}').thumbnail('clip', 42)
    assert shown.size == (42, 42)
    places = [(10, 10), (32, 10), (10, 32), (32, 32)]
    assert all(near(shown, place, colour) for place, colour in zip(places, COLOURS))


def test_a_sheet_of_fewer_frames():
    frames = [Image.new('RGB', (40, 20), colour) for colour in COLOURS]
    assert contact_sheet(frames[:1], 82).size == (40, 20)
    assert contact_sheet(frames[:2], 82).size == (82, 20)
    assert contact_sheet(frames[:3], 82).size == (82, 42)


def test_what_cannot_be_shown_is_none(tmp_path, monkeypatch):
    (tmp_path / 'in').mkdir()
    (tmp_path / 'in' / 'broken.jpg').write_bytes(b'no image')
    (tmp_path / 'in' / 'broken.mp4').write_bytes(b'no video')
    (tmp_path / 'in' / 'empty').mkdir()
    Image.new('RGB', (100, 100)).save(tmp_path / 'in' / 'large.png')
    Image.new('RGB', (8, 8)).save(tmp_path / 'outside.jpg')
    for one in ('two.png', 'two.jpeg'):
        Image.new('RGB', (8, 8)).save(tmp_path / 'in' / one)
    images = Media(f'{tmp_path}/in/{{id}}.jpg')
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 9_000)  # fewer than those of large.png
    outside = ('../outside', str(tmp_path / 'outside'), '', 'nul\0')
    for name in ('broken', 'large', 'absent', 'two', 'x' * 5000, *outside):
        assert images.thumbnail(name) is None and images.jpeg(name) is None
    assert Media(f'{tmp_path}/in/{{id}}.mp4').thumbnail('broken') is None
    assert Media(f'{tmp_path}/in/{{id}}').thumbnail('empty') is None
    with pytest.raises(DataError, match='large.png: cannot be read as an image'):
        thumbnail_of(tmp_path / 'in' / 'large.png')


def test_without_pyav_a_video_has_no_thumbnail(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'av', None)
    (tmp_path / 'clip.mp4').write_bytes(b'video')
    assert Media(f'{tmp_path}/{{id}}.mp4').thumbnail('clip') is None
    with pytest.raises(DataError, match='requirements-video.txt'):
        thumbnail_of(tmp_path / 'clip.mp4')


@pytest.mark.parametrize(
    'options, folder, shown',
    [
        (['visual.kind=clip', 'data.images=pics/{id}.jpg'], 'pics', True),
        (
            ['visual.kind=clip', 'data.images=pics/{id}.jpg', 'data.media=videos/{id}.mp4'],
            'videos',
            True,
        ),
        (['data.media=/nowhere/{id}.mp4'], 'videos', False),
        ([], 'videos', False),
    ],
)
def test_where_the_media_of_a_collection_lie(tmp_path, options, folder, shown):
    (tmp_path / 'x' / folder).mkdir(parents=True)
    config = load_config(overrides=['data.collection=x', *options])
    media = Collection(config, tmp_path).media('test')
    if not shown:
        assert media is None
        return
    Image.new('RGB', (8, 8), 'red').save(tmp_path / 'x' / folder / 'a.jpg')
    assert media.path('a') == Path(tmp_path, 'x', folder, 'a.jpg') and media.thumbnail('a')


def test_the_demo_shows_four_frames_of_a_video():
    frames = np.zeros((10, 64, 64, 3), np.uint8)
    frames[[0, 3, 6, 9]] = np.array([50, 100, 150, 200])[:, None, None, None]
    sheet = sheet_of(frames)
    assert sheet.size == (2 * 64 + GAP,) * 2
    corners = [(0, 0), (129, 0), (0, 129), (129, 129)]
    assert [sheet.getpixel(place)[0] for place in corners] == [50, 100, 150, 200]
