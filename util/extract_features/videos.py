"""Read videos, files or folders of frames: frames at a stated rate, by their timestamps.

Files are decoded with PyAV, an optional package.
"""

import os
import re
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


def import_av():
    """The package PyAV; DataError if it is not installed."""
    try:
        import av
    except ImportError:
        raise DataError(
            'util.extract_features reads videos with PyAV: pip install -r '
            'util/requirements-video.txt'
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


def _of_folder(folder, fps):
    """Yield (seconds, function that reads the frame), the seconds counted in frames without fps."""
    names = [name for name in os.listdir(folder) if name.lower().endswith(IMAGE_ENDINGS)]
    if not names:
        raise DataError(f'{folder}: no images in this folder')
    for number, name in enumerate(sorted(names, key=natural)):
        yield Fraction(number) / (fps or 1), lambda: _read_frame(folder / name)


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


def _of_file(path):
    """Yield (seconds since the first frame, function that makes the image) of each frame."""
    av = import_av()
    if not path.is_file():
        raise DataError(f'{path}: no such file')
    options = {'format_whitelist': FORMATS, 'protocol_whitelist': 'file'}
    try:
        with av.open(str(path), options=options, metadata_errors='replace') as container:
            if not container.streams.video:
                raise DataError(f'{path}: it has no video stream')
            yield from _decoded(container, container.streams.video[0], path)
    except (av.FFmpegError, OSError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        text = getattr(error, 'strerror', None) or str(error) or type(error).__name__
        raise DataError(f'{path}: cannot be decoded ({text}); download it again') from None


def _decoded(container, stream, path):
    stream.thread_type, first, last = 'AUTO', None, Fraction(0)
    step = 1 / stream.average_rate if stream.average_rate else Fraction(0)
    for number, frame in enumerate(container.decode(stream)):
        if frame.width * frame.height > (Image.MAX_IMAGE_PIXELS or 2**28):
            raise DataError(f'{path}: its frames are {frame.width} x {frame.height}: too large')
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
