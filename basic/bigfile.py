"""BigFile: the features of a video collection as one float32 matrix on disk, one row per frame.

A BigFile folder has `shape.txt` ("rows dims"), `id.txt` (the rows' frame ids, separated by white
space), `feature.bin` (float32, little-endian, row-major, no header) and `video2frames.txt` (a
Python dict literal, video id -> frame ids). Ids are UTF-8, or ISO-8859-1 if they are not valid
UTF-8.
"""

import ast
import json
from pathlib import Path

import numpy as np

from basic.errors import DataError, first_five
from basic.ids import did_you_mean, read_bytes, repeated, visual_id

ENCODING = 'iso-8859-1'  # for text that is not UTF-8; it decodes every byte


class BigFile:
    """The memory-mapped matrix of a BigFile folder.

    Attributes:
        rows, dim: its size, from shape.txt.
    Raises:
        DataError: a file is missing, or shape.txt is malformed or does not fit the size of
            feature.bin.
    """

    def __init__(self, folder):
        self.folder = Path(folder)
        self.path = self._file('feature.bin')
        self.rows, self.dim = self._read_shape()
        size, expected = self.path.stat().st_size, 4 * self.rows * self.dim
        if size != expected:
            raise DataError(
                f'{self.folder / "shape.txt"}:1: {self.rows} rows of {self.dim} float32 numbers are'
                f' {expected:,} bytes, but {self.path} has {size:,}; the files belong to different'
                ' features, or a download is incomplete: download both again'
            )

    def map(self):
        """The features (rows, dim), float32, read-only, memory-mapped."""
        return np.asarray(np.memmap(self.path, dtype='<f4', mode='r', shape=(self.rows, self.dim)))

    def read_ids(self):
        """The frame id of each row, a list of `rows` strings.

        Raises:
            DataError: id.txt is missing, has another number of ids, or has duplicates.
        """
        path = self._file('id.txt')
        # Split the bytes instead of text: in ISO-8859-1, 0x85 and 0xA0 are white space, which
        # would split UTF-8 ids.
        ids = [_text(name) for name in read_bytes(path).split()]
        if len(ids) != self.rows:
            raise DataError(
                f'{path}: {len(ids):,} ids, but {self.folder / "shape.txt"} says {self.rows:,}'
                ' rows; they must be equal: row i of feature.bin belongs to id i'
            )
        if len(set(ids)) != len(ids):
            raise DataError(
                f'{path}: duplicate ids: {first_five(repeated(ids))}; each row needs its own id:'
                ' write the features again'
            )
        return ids

    def read_videos(self):
        """The rows of each video.

        Returns:
            ids (list of str), counts (videos,) int64, rows (frames,) int64: the rows of the first
                video, then those of the second, and so on. Videos without frames are omitted.
        Raises:
            DataError: id.txt or video2frames.txt is wrong, or video2frames.txt has frames that
                id.txt does not have.
        """
        path, row = (
            self._file('video2frames.txt'),
            {name: i for i, name in enumerate(self.read_ids())},
        )
        videos = {name: frames for name, frames in read_video2frames(path).items() if frames}
        absent = [frame for frames in videos.values() for frame in frames if frame not in row]
        if absent:
            raise DataError(
                f'{path}: {len(absent):,} frames are not in {self.folder / "id.txt"}: '
                f'{first_five(absent)}{did_you_mean(absent, row)}; the files belong to '
                'different features: download both again'
            )
        ids = [visual_id(name) for name in videos]
        if len(set(ids)) != len(ids):
            raise DataError(
                f'{path}: duplicate videos: {first_five(repeated(ids))}; remove one of each'
            )
        rows = np.fromiter(
            (row[frame] for frames in videos.values() for frame in frames), dtype=np.int64
        )
        return ids, np.array([len(frames) for frames in videos.values()], dtype=np.int64), rows

    def _file(self, name):
        path = self.folder / name
        if not path.is_file():
            raise DataError(
                f'no file {path}; a feature folder needs shape.txt, id.txt, feature.bin and '
                'video2frames.txt'
            )
        return path

    def _read_shape(self):
        path = self._file('shape.txt')
        words = read_bytes(path).decode(ENCODING).split()
        if len(words) != 2 or not all(
            word.isdecimal() and len(word) < 19 and int(word) > 0 for word in words
        ):
            raise DataError(
                f"{path}:1: expected two whole numbers above 0, 'rows dims', found "
                f'{" ".join(words)[:60]!r}'
            )
        return int(words[0]), int(words[1])


def read_video2frames(path):
    """Parse video2frames.txt as data.

    Args:
        path: file with a Python dict literal, video id -> list of frame ids.
    Returns:
        dict str -> list of str.
    Raises:
        DataError: not such a literal, or a duplicate video id.
    """
    data = read_bytes(path)
    text = _text(data)
    # Is each character one byte? So it is in a file that is not UTF-8, and in Python 2's
    # '\\xe4\\xb8\\xad'.
    bytewise = '\\' in text if data.isascii() else text.encode('utf-8') != data
    try:
        pairs = _json_pairs(text) if '"' not in text and '\\' not in text else None
        pairs = _literal_pairs(text) if pairs is None else pairs
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = getattr(error, 'lineno', None) or 1
        raise DataError(
            f'{path}:{line}: expected a dict literal such as '
            f"{{'video1': ['video1_0', 'video1_1']}}, found: {getattr(error, 'msg', error)}"
        ) from None
    for video, frames in pairs:
        if (
            not isinstance(video, str)
            or not isinstance(frames, list)
            or not all(isinstance(f, str) for f in frames)
        ):
            raise DataError(
                f'{path}: video {video!r}: expected a list of frame ids (strings), found '
                f'{str(frames)[:80]}'
            )
    if bytewise:
        pairs = [
            (_as_utf8(video), [_as_utf8(frame) for frame in frames]) for video, frames in pairs
        ]
    videos = dict(pairs)
    if len(videos) != len(pairs):
        again = repeated([video for video, _ in pairs])
        raise DataError(f'{path}: duplicate videos: {first_five(again)}; remove one of each')
    return videos


def _json_pairs(text):
    """(key, value) pairs of a dict literal that is JSON except for its quotes, else None.

    For a million frame ids, Python's own parser needs 13 seconds and a gigabyte, and JSON's a
    quarter of a second.
    """
    try:
        # A tuple of pairs, to tell it from a list.
        pairs = json.loads(text.replace("'", '"'), object_pairs_hook=tuple)
    except ValueError:
        return None
    return pairs if isinstance(pairs, tuple) else None


def _literal_pairs(text):
    """(key, value) pairs of a dict literal in Python syntax; raises ValueError or SyntaxError."""
    tree = ast.parse(text.strip(), mode='eval').body
    if not isinstance(tree, ast.Dict):
        raise ValueError(f'a {type(tree).__name__.lower()}')
    pairs = [(_literal(key), _literal(value)) for key, value in zip(tree.keys, tree.values)]
    return [(key, list(value) if isinstance(value, tuple) else value) for key, value in pairs]


def _literal(node):
    """The value of a literal's syntax tree; ValueError (with `lineno`) for code, never run."""
    try:
        return ast.literal_eval(node)
    except ValueError:
        found = (
            next(
                (
                    part
                    for part in ast.walk(node)
                    if isinstance(part, ast.expr)
                    and not isinstance(part, (ast.Constant, ast.List, ast.Tuple, ast.Dict))
                ),
                node,
            )
            if node
            else None
        )
        error = ValueError(
            f'code in place of data: {ast.unparse(found)[:60]!r}'
            if node
            else "'**' in place of data"
        )
        error.lineno = getattr(found, 'lineno', 1)
        raise error from None


def _text(data):
    """Decode bytes as UTF-8 if they are valid, else as ISO-8859-1."""
    try:
        return data.decode('utf-8')
    except UnicodeDecodeError:
        return data.decode(ENCODING)


def _as_utf8(name):
    """Decode an id in which each character is a byte as UTF-8, if it is valid."""
    try:
        return name if name.isascii() else name.encode(ENCODING).decode('utf-8')
    except UnicodeError:  # a character above 255, or bytes that are not UTF-8
        return name
