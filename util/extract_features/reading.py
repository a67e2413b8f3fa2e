"""Read and preprocess images and videos in worker processes, and encode them in this one.

A unit is what a worker reads in one go: a batch of images, or one video. A piece is one batch of it
for the encoder. A unit is encoded by itself, so the features do not depend on the workers.
"""

from dataclasses import dataclass, field

import numpy as np
from torch.utils.data import DataLoader, get_worker_info, IterableDataset

from basic.errors import DataError
from util.extract_features.shards import Result
from basic.videos import sampled


@dataclass
class Piece:
    """One batch for the encoder.

    Attributes:
        positions: of the item of each row.
        frames: the k of each row.
        inputs: dict of tensors, or None without rows.
        finished: positions of items that have no further rows.
        bad: dict position -> reason.
    """

    positions: list = field(default_factory=list)
    frames: list = field(default_factory=list)
    inputs: dict | None = None
    finished: list = field(default_factory=list)
    bad: dict = field(default_factory=dict)


class Images:
    """Reads images: a unit is a batch of positions.

    Args:
        ids, source: from `items.find_images`.
        prepare: of the encoder.
        batch_size: images per unit.
    """

    def __init__(self, ids, source, prepare, batch_size):
        self.ids, self.source, self.prepare, self.batch_size = ids, source, prepare, batch_size

    def units(self, positions):
        positions = list(positions)
        size = self.batch_size
        return [positions[start : start + size] for start in range(0, len(positions), size)]

    def pieces(self, unit):
        piece, images = Piece(finished=list(unit)), []
        for position in unit:
            try:
                name = self.ids[position]
                if not self.source.path(name).exists():
                    raise DataError(f'{self.source.path(name)}: no such file')
                images.append(self.source.read(name, lambda image: image.convert('RGB')))
            except DataError as error:
                piece.bad[position] = _one_line(error)
                continue
            piece.positions.append(position)
            piece.frames.append(0)
        if images:
            piece.inputs = self.prepare(images)
        yield piece


class Videos:
    """Reads videos: a unit is one video.

    Args:
        ids, paths: from `items.find_videos`.
        prepare, batch_size: as of Images; frames per piece.
        options: of `videos.sampled`.
    """

    def __init__(self, ids, paths, prepare, batch_size, options):
        self.ids, self.paths, self.prepare = ids, paths, prepare
        self.batch_size, self.options = batch_size, options

    def units(self, positions):
        return [[position] for position in positions]

    def pieces(self, unit):
        (position,) = unit
        frames, images = [], []
        try:
            if self.ids[position] not in self.paths:
                raise DataError('no such video')
            for k, image in sampled(self.paths[self.ids[position]], **self.options):
                if len(images) == self.batch_size:
                    yield self._piece(position, frames, images)
                    frames, images = [], []
                frames.append(k)
                images.append(image)
        except DataError as error:
            yield Piece(finished=[position], bad={position: _one_line(error)})
            return
        piece = self._piece(position, frames, images)
        piece.finished = [position]
        yield piece

    def _piece(self, position, frames, images):
        return Piece([position] * len(frames), frames, self.prepare(images))


def _one_line(error):
    return ' '.join(str(error).split())[:500]


class _Stream(IterableDataset):
    """The pieces of some units; each worker reads its share of them."""

    def __init__(self, reader, units):
        self.reader, self.units = reader, units

    def __iter__(self):
        worker = get_worker_info()
        units = self.units[worker.id :: worker.num_workers] if worker else self.units
        for unit in units:
            yield from self.reader.pieces(unit)


def encoded(reader, groups, encoder, *, workers):
    """Yield (position, Result or the reason why the item is bad) of each item.

    Args:
        reader: Images or Videos.
        groups: lists of positions, of the items to encode in each shard; no unit is in two.
        encoder: encoders.Encoder.
        workers: processes that read; 0: this one.
    Raises:
        DataError: the encoder returns NaN or infinity.
    """
    stream = _Stream(reader, [unit for group in groups for unit in reader.units(group)])
    rows = {}  # position -> [(k, feature)], of items that are not finished
    for piece in DataLoader(
        stream, batch_size=None, num_workers=workers, collate_fn=_as_it_is, pin_memory=False
    ):
        if piece.inputs is not None:
            features = encoder(piece.inputs).numpy()
            for position, k, feature in zip(piece.positions, piece.frames, features):
                if not np.isfinite(feature).all():
                    raise DataError(
                        f'the encoder {encoder.name} returns NaN or infinity for '
                        f'{reader.ids[position]}; use --precision fp32 or other weights'
                    )
                rows.setdefault(position, []).append((k, feature))
        for position in piece.finished:
            own = rows.pop(position, [])
            if position in piece.bad:
                yield position, piece.bad[position]
            else:
                frames = np.array([k for k, _ in own], dtype=np.int64)
                yield position, Result(np.stack([feature for _, feature in own]), frames)


def _as_it_is(piece):
    return piece
