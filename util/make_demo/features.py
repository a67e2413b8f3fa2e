"""The demo's features of pictures: responses to a palette of colours and to random filters,
averaged over a grid, projected by PCA.

Nothing is trained by gradient descent, so the features are the same on every machine and take
seconds. Dimensions: N pictures, S pixels a side, P palette colours, C channels.
"""

import functools

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image

from util.make_demo import drawing, sprites
from util.make_demo.world import sample_scenes, scene_rng

FEATURE_DIM = 192
SIDE = 64  # px, of a picture as the filters and the image tower see it
VISION_SEED = 'vision-1'  # everything here is the same for every demo, whatever its --seed


def vision_rng():
    """NumPy's generator for random filters and rotations, afresh."""
    return np.random.default_rng(list(VISION_SEED.encode()))


def palette():
    """The colours of the world, those nearly alike taken once: float32 (P, 3), each channel in
    -0.5..0.5."""
    paints = [
        *sprites.PAINT.values(),
        *sprites.OWN.values(),
        *drawing.MARK.values(),
        *sprites.FIXED.values(),
        *drawing.SKY.values(),
        *drawing.GROUND.values(),
    ]
    kept = []
    for colour in np.array(paints) / 255 - 0.5:
        if all(np.sum((colour - other) ** 2) > 0.012 for other in kept):
            kept.append(colour)
    return np.array(kept, np.float32)


def halve(pictures):
    """Mean of every 2 x 2 pixels: uint8 (N, S, S, 3) -> uint8 (N, S/2, S/2, 3)."""
    quarters = [
        pictures[:, row::2, column::2].astype(np.uint16) for row in (0, 1) for column in (0, 1)
    ]
    return (sum(quarters) // 4).astype(np.uint8)


def grid_mean(maps, cells):
    """Average maps (N, H, H, C) over a grid of `cells` x `cells`: (N, cells * cells * C). H is a
    multiple of cells."""
    count, height, _, channels = maps.shape
    step = height // cells
    return maps.reshape(count, cells, step, cells, step, channels).mean((2, 4)).reshape(count, -1)


class FilterBank:
    """Fixed features of a picture, from its pixels alone.

    call(pictures): uint8 (N, 64, 64, 3) -> float32 (N, FEATURE_DIM).
    calibration: uint8 (M, 64, 64, 3), pictures of other scenes; thresholds, scales and the
    principal axes that the projection keeps are taken from them, without any label.
    """

    CELLS = 4  # the maps are averaged over a grid of 4 x 4
    FILTERS, SIDE = 32, 5  # random filters, and their side in halved pixels
    LEVELS = 16  # steps of a colour channel in the table of palette responses
    WIDTH = 0.09  # how far from a palette colour a pixel still answers to it, in channels of 0..1
    # of the filters beside the palette; balances what the projection keeps of either
    SHAPE_WEIGHT = 0.6

    def __init__(self, calibration):
        steps = np.stack(np.meshgrid(*[np.arange(self.LEVELS)] * 3, indexing='ij'), -1).reshape(
            -1, 3
        )
        distance = np.sum((((steps + 0.5) / self.LEVELS - 0.5)[:, None] - palette()) ** 2, -1)
        # (LEVELS ** 3, P)
        self.responses = np.exp(-distance / (2 * self.WIDTH**2)).astype(np.float32)
        filters = vision_rng().standard_normal((self.FILTERS, self.SIDE**2 * 3)).astype(np.float32)
        filters -= filters.mean(1, keepdims=True)
        self.filters = filters / np.linalg.norm(filters, axis=1, keepdims=True)
        self.threshold = 0.5 * self._filtered(halve(calibration[::8])).std((0, 1, 2))
        pooled = self._pooled_in_chunks(calibration)
        colours = self.CELLS**2 * self.responses.shape[1]
        self.mean, self.scale = pooled.mean(0), pooled.std(0) + 1e-6
        self.scale[colours:] /= self.SHAPE_WEIGHT
        standard = (pooled - self.mean) / self.scale
        variances, axes = np.linalg.eigh(standard.T @ standard / len(standard))
        kept = slice(None, -FEATURE_DIM - 1, -1)  # eigh sorts upwards
        self.projection = axes[:, kept] / np.sqrt(variances[kept])

    def __call__(self, pictures):
        return (
            (self._pooled_in_chunks(pictures) - self.mean) / self.scale @ self.projection
        ).astype(np.float32)

    def _pooled_in_chunks(self, pictures, chunk=256):
        return np.concatenate(
            [self._pooled(pictures[i : i + chunk]) for i in range(0, len(pictures), chunk)]
        )

    def _filtered(self, pictures):
        """Random filters at every second pixel of halved pictures: (N, 32, 32, 3) -> (N, 16, 16,
        FILTERS)."""
        padded = (
            np.pad(pictures, ((0, 0), (2, 1), (2, 1), (0, 0)), mode='edge').astype(np.float32) / 255
            - 0.5
        )
        windows = sliding_window_view(padded, (self.SIDE, self.SIDE), (1, 2))[:, ::2, ::2]
        return windows.reshape(*windows.shape[:3], -1) @ self.filters.T

    def _pooled(self, pictures):
        pictures = halve(pictures)
        levels = (pictures // (256 // self.LEVELS)).astype(np.int64)
        colours = self.responses[levels @ (self.LEVELS**2, self.LEVELS, 1)]  # (N, 32, 32, P)
        shapes = self._filtered(pictures)
        parts = [
            grid_mean(colours, self.CELLS),
            grid_mean(np.maximum(shapes - self.threshold, 0), self.CELLS),
            grid_mean(np.maximum(-shapes - self.threshold, 0), self.CELLS),
        ]
        return np.concatenate(parts, 1)


@functools.cache
def frame_bank():
    """The filter bank for video frames, calibrated on every second frame of videos of other
    scenes."""
    (scenes,) = sample_scenes((400,), scene_rng(VISION_SEED, 'videos'))
    return FilterBank(
        np.concatenate(
            [
                drawing.draw_video(scene, scene_rng(VISION_SEED, 'video', i))[::2]
                for i, scene in enumerate(scenes)
            ]
        )
    )


@functools.cache
def image_bank():
    """The filter bank for still images, calibrated on images of other scenes."""
    return FilterBank(other_images(2500)[1])


def other_images(count):
    """Pictures to calibrate on, whose scenes come from no demo's seed: (scenes, uint8 (count, 64,
    64, 3))."""
    (scenes,) = sample_scenes((count,), scene_rng(VISION_SEED, 'images'))
    return scenes, np.stack(
        [
            small(drawing.draw_image(scene, scene_rng(VISION_SEED, 'image', i)))
            for i, scene in enumerate(scenes)
        ]
    )


def small(picture):
    """A `PIL.Image` as uint8 (64, 64, 3), shrunk as CLIP's preprocessing does."""
    return np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC))
