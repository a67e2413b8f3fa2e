"""Read videos, files or folders of frames: frames at a stated rate, by their timestamps; or a few,
to look at.

Files are decoded with PyAV, an optional package.
"""

import os
import re
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

from PIL import Image

from basic.errors import DataError
from basic.ids import IMAGE_ENDINGS
from basic.images import eight_bits

VIDEO_ENDINGS = (
    *('.mp4', '.webm', '.mkv', '.avi', '.mov', '.flv', '.m4v', '.mpg', '.mpeg', '.wmv', '.3gp'),
    *('.ts', '.ogv', '.gif'),
)
# Containers only: a playlist (HLS, concat) could name any other file of this machine.
FORMATS = (
    'mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,matroska,webm,avi,flv,live_flv,mpeg,mpegts,mpegvideo,'
    'asf,ogg,gif,m4v,h264,hevc,ivf'
)
MISSING_SECONDS, MISSING_SHARE = 0.5, 0.05  # that a whole video's last frame may end too early
FAR = 300  # frames after a keyframe that `spread` decodes at most


def import_av():
    """The package PyAV; DataError if it is not installed."""
    try:
        import av
    except ImportError:
        raise DataError(
            'videos are read with PyAV: pip install -r util/requirements-video.txt'
        ) from None
    return av


def sampled(path, *, fps, folder_fps=None, max_frames=0):
    """Yield (k, PIL image in RGB) of the frames of a video.

    Frame k is the first with pts - (pts of the first frame) >= k / fps. A frame that is the first
    for several k, because the video has fewer frames per second, is taken once, with the last k.

    Args:
        path: a video file, or a folder of frames.
        fps: Fraction, sampled frames per second.
        folder_fps: Fraction, frames per second of the frames in a folder; None: all are taken.
        max_frames: stop after this many; 0: no limit.
    Raises:
        DataError: the video cannot be decoded, or not to its end.
    """
    path = Path(path)
    frames = _of_folder(path, folder_fps) if path.is_dir() else _of_file(path)
    step, wanted, taken = 1 if path.is_dir() and not folder_fps else Fraction(1) / fps, 0, 0
    for seconds, image in frames:
        if seconds < wanted * step:
            continue
        k = int(seconds // step)
        wanted, taken = k + 1, taken + 1
        yield k, image()
        if taken == max_frames:
            return


def spread(path, count):
    """Some frames of a video, evenly spread over its length, to look at.

    Args:
        path: a video file, or a folder of frames.
        count: how many.
    Returns:
        list of PIL images in RGB; fewer of a shorter video. Of a file whose length is unknown, the
        first frames, one per second.
    Raises:
        DataError: the video cannot be decoded, or PyAV is not installed.
    """
    path = Path(path)
    if path.is_dir():
        names = _frame_names(path)
        rows = sorted({(2 * part + 1) * len(names) // (2 * count) for part in range(count)})
        return [_read_frame(path / names[row]) for row in rows]
    with _opened(path) as (container, stream):
        length = _length(container, stream)
        if length and stream.time_base:
            places = [length * (part + 0.5) / count for part in range(count)]
            return [_frame_at(container, stream, seconds, path) for seconds in places]
    return [image for _, image in sampled(path, fps=Fraction(1), max_frames=count)]


def _frame_at(container, stream, seconds, path):
    """The first frame at or after some seconds; an earlier one, if that is far from a keyframe."""
    wanted = (stream.start_time or 0) + int(seconds / stream.time_base)
    container.seek(wanted, stream=stream)  # to the keyframe before it
    found = None
    for number, frame in enumerate(container.decode(stream)):
        _check_size(frame, path)
        found = frame
        if frame.pts is None or frame.pts >= wanted or number == FAR:
            break
    if found is None:
        raise DataError(f'{path}: no frame could be decoded at {seconds:.1f} seconds')
    return _upright(found).convert('RGB')


def _of_folder(folder, fps):
    """Yield (seconds, function that reads the frame), the seconds counted in frames without fps."""
    for number, name in enumerate(_frame_names(folder)):
        yield Fraction(number) / (fps or 1), lambda: _read_frame(folder / name)


def _frame_names(folder):
    """The images of a folder of frames, in order."""
    names = [name for name in os.listdir(folder) if name.lower().endswith(IMAGE_ENDINGS)]
    if not names:
        raise DataError(f'{folder}: no images in this folder')
    return sorted(names, key=natural)


def _read_frame(path):
    try:
        with Image.open(path) as image:
            return eight_bits(image).convert('RGB')
    except MemoryError:
        raise
    except Exception as error:  # decoders raise many kinds of errors for damaged files
        raise DataError(f'{path}: cannot be read as an image ({error})') from None


def natural(name):
    """A sort key by which frame_10 comes after frame_9."""
    return [int(part) if part.isdecimal() else part for part in re.split(r'(\d+)', name)]


@contextmanager
def _opened(path):
    """(container, its first video stream) of a video file; DataError if it cannot be decoded."""
    av = import_av()
    if not path.is_file():
        raise DataError(f'{path}: no such file')
    options = {'format_whitelist': FORMATS, 'protocol_whitelist': 'file'}
    try:
        with av.open(str(path), options=options, metadata_errors='replace') as container:
            if not container.streams.video:
                raise DataError(f'{path}: it has no video stream')
            yield container, container.streams.video[0]
    except (av.FFmpegError, OSError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        text = getattr(error, 'strerror', None) or str(error) or type(error).__name__
        raise DataError(f'{path}: cannot be decoded ({text}); download it again') from None


def _of_file(path):
    """Yield (seconds since the first frame, function that makes the image) of each frame."""
    with _opened(path) as (container, stream):
        yield from _decoded(container, stream, path)


def _check_size(frame, path):
    """Raise DataError if a frame has more pixels than Pillow reads in an image."""
    if frame.width * frame.height > (Image.MAX_IMAGE_PIXELS or 2**28):
        raise DataError(f'{path}: its frames are {frame.width} x {frame.height}: too large')


def _decoded(container, stream, path):
    stream.thread_type, first, last = 'AUTO', None, Fraction(0)
    step = 1 / stream.average_rate if stream.average_rate else Fraction(0)
    for number, frame in enumerate(container.decode(stream)):
        _check_size(frame, path)
        if frame.pts is not None and frame.time_base:
            seconds = frame.pts * frame.time_base
        elif step:
            seconds = number * step
        else:
            raise DataError(f'{path}: its frames have no timestamps')
        first = seconds if first is None else first
        last = max(last, seconds - first)
        yield seconds - first, lambda: _upright(frame)
    if first is None:
        raise DataError(f'{path}: no frame could be decoded')
    length = _length(container, stream)
    missing = length - float(last + step)
    if missing > max(MISSING_SECONDS, MISSING_SHARE * length):
        raise DataError(
            f'{path}: only {float(last + step):.1f} of its {length:.1f} seconds can be decoded; '
            'the file is incomplete: download it again'
        )


def _length(container, stream):
    """The seconds that the file says its video has; 0 if it does not say."""
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    told = re.fullmatch(r'(\d+):(\d+):(\d+(\.\d+)?)', stream.metadata.get('DURATION', ''))
    if told:
        return int(told[1]) * 3600 + int(told[2]) * 60 + float(told[3])
    alone = len(container.streams) == 1  # else it may be the length of the sound
    return container.duration / 1e6 if container.duration and alone else 0.0


def _upright(frame):
    """A decoded frame as a PIL image, turned as the file's display matrix says."""
    image, angle = frame.to_image(), round(frame.rotation) % 360
    # Degrees are counter-clockwise, in FFmpeg's matrix and in PIL.
    return image.rotate(angle, expand=True) if angle else image
