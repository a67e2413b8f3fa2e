"""The demo's little world: scenes, and how they are drawn.

A scene is a handful of attributes (what, which colour, how many, how big, doing what, where, beside
what). `draw_image` makes one picture of it, `draw_video` a sequence of frames in which the action
is a motion. Nothing but the pixels tells a reader of the picture what the scene is; position, size,
shade, viewing side and background clutter vary between two pictures of one scene, as they do
between photographs.

Drawing coordinates are fractions of the picture's width and height, x to the right, y downwards.
"""

import dataclasses
import math
import random

import numpy as np
from PIL import Image, ImageDraw

IMAGE_SIZE = 96  # px, width and height of the JPEGs
FRAME_SIZE = 64  # px, width and height of a video frame
MIN_FRAMES, MAX_FRAMES = 5, 16

OBJECTS = ('dog', 'cat', 'bird', 'fish', 'rabbit', 'turtle', 'butterfly', 'robot', 'car', 'child')
COLOURS = ('red', 'blue', 'green', 'yellow', 'black', 'white', 'purple', 'orange')
NUMBERS = ('one', 'two', 'three', 'four')
SIZES = ('small', 'big')
ACTIONS = ('run', 'jump', 'spin', 'sleep', 'dance', 'fall', 'grow', 'wait')
PLACES = ('beach', 'forest', 'street', 'snow', 'room', 'meadow', 'stage', 'mountains')
THINGS = ('tree', 'house', 'box', 'umbrella', 'lamp', 'chair')
RELATIONS = ('left', 'right', 'front')


@dataclasses.dataclass(frozen=True)
class Scene:
    """What is to be seen: `number` of `object`, alike in colour, size and action, at a place,
    perhaps by a thing.

    `relation` says where the group is as seen from the thing ('left': the group is to the left of
    the thing). `thing`, `thing_colour` and `relation` are '' where there is no thing.
    """

    object: str
    colour: str
    number: str
    size: str
    action: str
    place: str
    thing: str = ''
    thing_colour: str = ''
    relation: str = ''

    @property
    def count(self):
        return NUMBERS.index(self.number) + 1


ATTRIBUTES = {
    'object': OBJECTS,
    'colour': COLOURS,
    'number': NUMBERS,
    'size': SIZES,
    'action': ACTIONS,
    'place': PLACES,
    'thing': THINGS,
    'thing_colour': COLOURS,
    'relation': RELATIONS,
}


def random_scene(rng):
    """A scene with every attribute drawn at random; 3 in 10 scenes have no thing."""
    values = {name: rng.choice(choices) for name, choices in ATTRIBUTES.items()}
    if rng.random() < 0.3:
        values.update(thing='', thing_colour='', relation='')
    return Scene(**values)


def distractor(scene, rng):
    """A scene that differs from `scene` in one or two attributes only."""
    names = [name for name in ATTRIBUTES if getattr(scene, name)]
    changes = {}
    for name in rng.sample(names, rng.choice((1, 2))):
        changes[name] = rng.choice(
            [value for value in ATTRIBUTES[name] if value != getattr(scene, name)]
        )
    return dataclasses.replace(scene, **changes)


def sample_scenes(sizes, rng, distractors=0.4):
    """Draw the scenes of several splits; no scene occurs twice, within a split or between two.

    sizes: one count a split. distractors: the share of scenes made by changing one or two
    attributes of an earlier scene of the same split, so that a ranking has near misses. Returns one
    list of `Scene` a split.
    """
    seen, splits = set(), []
    for size in sizes:
        scenes = []
        while len(scenes) < size:
            near_miss = scenes and rng.random() < distractors
            scene = distractor(rng.choice(scenes), rng) if near_miss else random_scene(rng)
            if scene not in seen:
                seen.add(scene)
                scenes.append(scene)
        splits.append(scenes)
    return splits


# ------------------------------------------------------------------------------------------ sprites

PAINT = {
    'red': (214, 40, 40),
    'blue': (45, 85, 215),
    'green': (40, 160, 60),
    'yellow': (240, 215, 40),
    'black': (42, 42, 46),
    'white': (244, 244, 244),
    'purple': (140, 60, 180),
    'orange': (243, 140, 35),
}
FIXED = {
    'ink': (20, 20, 20),
    'milk': (250, 250, 250),
    'wood': (120, 80, 45),
    'glass': (190, 225, 240),
}
# What an object keeps whatever its colour: a dog's ears and legs are brown, a child's face is skin.
OWN = {
    'dog': (128, 82, 45),
    'cat': (205, 172, 128),
    'bird': (130, 130, 40),
    'fish': (60, 215, 205),
    'rabbit': (250, 160, 190),
    'turtle': (165, 220, 60),
    'butterfly': (225, 40, 160),
    'robot': (95, 135, 175),
    'car': (178, 222, 242),
    'child': (232, 184, 148),
    'tree': (105, 65, 35),
    'house': (190, 95, 80),
    'box': (255, 215, 150),
    'umbrella': (30, 45, 120),
    'lamp': (255, 250, 205),
    'chair': (0, 150, 150),
}
SPRITE = 72  # px; sprites are drawn at this size, then scaled

# One row a stroke: shape (e ellipse, r rectangle, p polygon, l line, c upper half of an ellipse),
# paint, coordinates. 'body', 'dark' and 'light' are shades of the object's own colour. Every object
# looks to the right.
SPRITES = {
    'dog': (
        ('p', 'own', 0.02, 0.24, 0.12, 0.18, 0.28, 0.46, 0.18, 0.56),
        ('r', 'own', 0.17, 0.62, 0.28, 0.97),
        ('r', 'own', 0.31, 0.62, 0.41, 0.97),
        ('r', 'own', 0.48, 0.62, 0.58, 0.97),
        ('r', 'own', 0.61, 0.62, 0.72, 0.97),
        ('e', 'body', 0.10, 0.36, 0.76, 0.74),
        ('e', 'body', 0.56, 0.10, 0.90, 0.50),
        ('e', 'own', 0.76, 0.26, 1.0, 0.50),
        ('e', 'own', 0.54, 0.10, 0.69, 0.54),
        ('e', 'ink', 0.91, 0.28, 1.0, 0.38),
        ('e', 'ink', 0.75, 0.18, 0.82, 0.26),
    ),
    'cat': (
        ('l', 'dark', 0.68, 0.90, 0.90, 0.84, 0.94, 0.62, 0.84, 0.50),
        ('e', 'body', 0.22, 0.46, 0.78, 1.0),
        ('e', 'own', 0.34, 0.60, 0.66, 0.98),
        ('p', 'own', 0.20, 0.32, 0.24, 0.0, 0.48, 0.18),
        ('p', 'own', 0.80, 0.32, 0.76, 0.0, 0.52, 0.18),
        ('e', 'body', 0.16, 0.12, 0.84, 0.60),
        ('e', 'own', 0.32, 0.36, 0.68, 0.60),
        ('e', 'milk', 0.26, 0.24, 0.42, 0.40),
        ('e', 'milk', 0.58, 0.24, 0.74, 0.40),
        ('e', 'ink', 0.32, 0.26, 0.38, 0.40),
        ('e', 'ink', 0.62, 0.26, 0.68, 0.40),
        ('p', 'ink', 0.45, 0.42, 0.55, 0.42, 0.5, 0.48),
        ('l', 'ink', 0.0, 0.40, 0.34, 0.46),
        ('l', 'ink', 0.0, 0.54, 0.34, 0.50),
        ('l', 'ink', 1.0, 0.40, 0.66, 0.46),
        ('l', 'ink', 1.0, 0.54, 0.66, 0.50),
    ),
    'bird': (
        ('p', 'own', 0.28, 0.54, 0.0, 0.34, 0.0, 0.70),
        ('l', 'ink', 0.42, 0.72, 0.40, 0.98),
        ('l', 'ink', 0.54, 0.72, 0.54, 0.98),
        ('e', 'body', 0.16, 0.36, 0.78, 0.80),
        ('e', 'body', 0.54, 0.14, 0.88, 0.48),
        ('p', 'own', 0.84, 0.22, 1.0, 0.34, 0.84, 0.44),
        ('p', 'own', 0.24, 0.52, 0.66, 0.58, 0.18, 0.0),
        ('e', 'milk', 0.68, 0.20, 0.80, 0.32),
        ('e', 'ink', 0.72, 0.22, 0.79, 0.30),
    ),
    'fish': (
        ('p', 'own', 0.26, 0.5, 0.0, 0.16, 0.08, 0.5, 0.0, 0.84),
        ('p', 'own', 0.30, 0.36, 0.70, 0.36, 0.36, 0.04),
        ('p', 'own', 0.36, 0.66, 0.64, 0.66, 0.38, 0.96),
        ('e', 'body', 0.14, 0.24, 0.98, 0.76),
        ('p', 'own', 0.36, 0.28, 0.44, 0.26, 0.42, 0.74, 0.34, 0.72),
        ('p', 'own', 0.54, 0.25, 0.62, 0.26, 0.60, 0.74, 0.52, 0.75),
        ('e', 'milk', 0.74, 0.34, 0.88, 0.50),
        ('e', 'ink', 0.79, 0.37, 0.87, 0.47),
    ),
    'rabbit': (
        ('e', 'body', 0.22, 0.0, 0.44, 0.48),
        ('e', 'body', 0.56, 0.0, 0.78, 0.48),
        ('e', 'own', 0.27, 0.06, 0.39, 0.42),
        ('e', 'own', 0.61, 0.06, 0.73, 0.42),
        ('e', 'body', 0.20, 0.54, 0.80, 0.98),
        ('e', 'own', 0.33, 0.62, 0.67, 0.98),
        ('e', 'body', 0.24, 0.30, 0.76, 0.68),
        ('e', 'ink', 0.34, 0.40, 0.43, 0.50),
        ('e', 'ink', 0.57, 0.40, 0.66, 0.50),
        ('e', 'own', 0.40, 0.50, 0.60, 0.62),
        ('r', 'milk', 0.45, 0.60, 0.55, 0.69),
        ('e', 'own', 0.12, 0.84, 0.42, 1.0),
        ('e', 'own', 0.58, 0.84, 0.88, 1.0),
    ),
    'turtle': (
        ('e', 'own', 0.70, 0.36, 1.0, 0.66),
        ('e', 'ink', 0.88, 0.43, 0.95, 0.50),
        ('p', 'own', 0.0, 0.76, 0.14, 0.58, 0.18, 0.76),
        ('e', 'own', 0.10, 0.60, 0.36, 0.96),
        ('e', 'own', 0.54, 0.60, 0.80, 0.96),
        ('c', 'body', 0.06, 0.14, 0.84, 1.26),
        ('l', 'dark', 0.30, 0.68, 0.34, 0.26),
        ('l', 'dark', 0.58, 0.68, 0.54, 0.26),
        ('l', 'dark', 0.12, 0.50, 0.78, 0.50),
        ('r', 'own', 0.06, 0.68, 0.84, 0.76),
    ),
    'butterfly': (
        ('e', 'body', 0.0, 0.04, 0.48, 0.54),
        ('e', 'body', 0.52, 0.04, 1.0, 0.54),
        ('e', 'own', 0.08, 0.48, 0.48, 0.96),
        ('e', 'own', 0.52, 0.48, 0.92, 0.96),
        ('e', 'own', 0.12, 0.16, 0.30, 0.36),
        ('e', 'own', 0.70, 0.16, 0.88, 0.36),
        ('e', 'body', 0.22, 0.62, 0.36, 0.78),
        ('e', 'body', 0.64, 0.62, 0.78, 0.78),
        ('e', 'ink', 0.44, 0.14, 0.56, 0.90),
        ('l', 'ink', 0.48, 0.18, 0.36, 0.0),
        ('l', 'ink', 0.52, 0.18, 0.64, 0.0),
    ),
    'robot': (
        ('l', 'ink', 0.5, 0.08, 0.5, 0.0),
        ('r', 'own', 0.02, 0.42, 0.18, 0.78),
        ('r', 'own', 0.82, 0.42, 0.98, 0.78),
        ('r', 'own', 0.26, 0.76, 0.44, 1.0),
        ('r', 'own', 0.56, 0.76, 0.74, 1.0),
        ('r', 'body', 0.24, 0.06, 0.76, 0.38),
        ('r', 'body', 0.18, 0.40, 0.82, 0.78),
        ('r', 'milk', 0.32, 0.12, 0.45, 0.24),
        ('r', 'milk', 0.55, 0.12, 0.68, 0.24),
        ('r', 'own', 0.34, 0.28, 0.66, 0.35),
        ('r', 'own', 0.30, 0.46, 0.70, 0.72),
        ('e', 'ink', 0.36, 0.52, 0.46, 0.62),
        ('e', 'ink', 0.54, 0.52, 0.64, 0.62),
    ),
    'car': (
        ('p', 'body', 0.14, 0.50, 0.28, 0.18, 0.70, 0.18, 0.86, 0.50),
        ('p', 'own', 0.20, 0.48, 0.32, 0.24, 0.48, 0.24, 0.48, 0.48),
        ('p', 'own', 0.52, 0.48, 0.52, 0.24, 0.67, 0.24, 0.79, 0.48),
        ('r', 'body', 0.0, 0.46, 1.0, 0.74),
        ('r', 'dark', 0.0, 0.66, 1.0, 0.74),
        ('e', 'ink', 0.10, 0.58, 0.38, 0.90),
        ('e', 'ink', 0.62, 0.58, 0.90, 0.90),
        ('e', 'own', 0.18, 0.66, 0.30, 0.82),
        ('e', 'own', 0.70, 0.66, 0.82, 0.82),
        ('r', 'own', 0.90, 0.48, 1.0, 0.58),
    ),
    'child': (
        ('p', 'own', 0.34, 0.40, 0.06, 0.60, 0.12, 0.68, 0.36, 0.54),
        ('p', 'own', 0.66, 0.40, 0.94, 0.60, 0.88, 0.68, 0.64, 0.54),
        ('r', 'own', 0.32, 0.70, 0.46, 0.98),
        ('r', 'own', 0.54, 0.70, 0.68, 0.98),
        ('p', 'body', 0.30, 0.36, 0.70, 0.36, 0.80, 0.78, 0.20, 0.78),
        ('e', 'own', 0.27, 0.02, 0.73, 0.40),
        ('c', 'wood', 0.25, 0.0, 0.75, 0.34),
        ('e', 'ink', 0.48, 0.19, 0.55, 0.26),
        ('e', 'ink', 0.61, 0.19, 0.68, 0.26),
    ),
    'tree': (
        ('r', 'own', 0.38, 0.50, 0.62, 1.0),
        ('e', 'dark', 0.04, 0.26, 0.54, 0.68),
        ('e', 'body', 0.46, 0.26, 0.96, 0.68),
        ('e', 'body', 0.16, 0.0, 0.82, 0.54),
        ('e', 'light', 0.34, 0.10, 0.52, 0.26),
    ),
    'house': (
        ('r', 'body', 0.10, 0.44, 0.90, 1.0),
        ('p', 'own', 0.0, 0.48, 0.5, 0.02, 1.0, 0.48),
        ('r', 'own', 0.40, 0.62, 0.60, 1.0),
        ('r', 'glass', 0.16, 0.54, 0.34, 0.72),
        ('r', 'glass', 0.66, 0.54, 0.84, 0.72),
    ),
    'box': (
        ('r', 'body', 0.06, 0.34, 0.94, 1.0),
        ('r', 'dark', 0.0, 0.20, 1.0, 0.42),
        ('r', 'own', 0.38, 0.20, 0.62, 1.0),
        ('r', 'own', 0.06, 0.58, 0.94, 0.72),
        ('e', 'own', 0.22, 0.02, 0.50, 0.24),
        ('e', 'own', 0.50, 0.02, 0.78, 0.24),
    ),
    'umbrella': (
        ('l', 'ink', 0.5, 0.10, 0.5, 0.92, 0.60, 0.98, 0.68, 0.90),
        ('c', 'body', 0.0, 0.06, 1.0, 1.0),
        ('p', 'own', 0.34, 0.52, 0.5, 0.06, 0.66, 0.52),
        ('p', 'own', 0.0, 0.52, 0.12, 0.24, 0.20, 0.52),
        ('p', 'own', 1.0, 0.52, 0.88, 0.24, 0.80, 0.52),
    ),
    'lamp': (
        ('r', 'own', 0.44, 0.40, 0.56, 1.0),
        ('r', 'own', 0.22, 0.88, 0.78, 1.0),
        ('p', 'body', 0.10, 0.44, 0.32, 0.04, 0.68, 0.04, 0.90, 0.44),
        ('e', 'own', 0.34, 0.38, 0.66, 0.60),
    ),
    'chair': (
        ('r', 'body', 0.12, 0.0, 0.30, 1.0),
        ('r', 'own', 0.30, 0.06, 0.40, 0.50),
        ('r', 'own', 0.14, 0.44, 0.90, 0.56),
        ('r', 'body', 0.14, 0.56, 0.88, 0.68),
        ('r', 'body', 0.72, 0.66, 0.88, 1.0),
    ),
}


def tint(paint, factor):
    """An (r, g, b) of 0..255 made darker (factor < 1) or lighter (factor > 1)."""
    if factor <= 1:
        return tuple(int(channel * factor) for channel in paint)
    return tuple(int(255 - (255 - channel) * (2 - factor)) for channel in paint)


def shade(paint, rng, spread=14):
    """The same colour in another light: brightness and each channel moved a little."""
    light = rng.randint(-spread, spread)
    return tuple(min(255, max(0, channel + light + rng.randint(-8, 8))) for channel in paint)


def sprite(name, paint, own=None):
    """One object or thing as an RGBA picture, SPRITE px square, outlined so that it shows on its
    own colour."""
    paints = dict(
        FIXED, body=paint, dark=tint(paint, 0.68), light=tint(paint, 1.45), own=own or paint
    )
    picture = Image.new('RGBA', (SPRITE, SPRITE), (*paint, 0))
    draw = ImageDraw.Draw(picture)
    for shape, colour, *coordinates in SPRITES[name]:
        xy = [round(value * (SPRITE - 1)) for value in coordinates]
        fill, outline = (*paints[colour], 255), (*tint(paints[colour], 0.45), 255)
        if shape == 'e':
            draw.ellipse(xy, fill=fill, outline=outline)
        elif shape == 'r':
            draw.rectangle(xy, fill=fill, outline=outline)
        elif shape == 'p':
            draw.polygon(xy, fill=fill, outline=outline)
        elif shape == 'c':
            draw.chord(xy, 180, 360, fill=fill, outline=outline)
        else:
            draw.line(xy, fill=fill, width=3)
    return picture


def paste(canvas, picture, *, x, y, width, angle=0.0):
    """Paste a sprite with its centre at (x, y), `width` px wide, turned by `angle` degrees
    anticlockwise."""
    side = max(4, round(width * 1.42))  # room for the corners of a turned square
    scale, turn = SPRITE / width, math.radians(angle)
    a, b = math.cos(turn) * scale, -math.sin(turn) * scale
    half = side / 2
    middle = SPRITE / 2
    matrix = (a, b, middle - (a + b) * half, -b, a, middle - (a - b) * half)
    stamp = picture.transform(
        (side, side), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR
    )
    canvas.paste(stamp, (round(x - half), round(y - half)), stamp)


# ------------------------------------------------------------------------------------------- places

SKY = {
    'beach': (150, 205, 240),
    'forest': (95, 130, 85),
    'street': (185, 190, 200),
    'snow': (205, 215, 228),
    'room': (225, 200, 165),
    'meadow': (140, 195, 245),
    'stage': (105, 25, 35),
    'mountains': (165, 190, 225),
}
GROUND = {
    'beach': (225, 200, 145),
    'forest': (85, 95, 50),
    'street': (95, 95, 100),
    'snow': (236, 240, 246),
    'room': (165, 115, 70),
    'meadow': (110, 180, 70),
    'stage': (190, 140, 85),
    'mountains': (130, 140, 95),
}


def draw_place(place, rng, size):
    """The background of a scene, `size` px square: a horizon, what marks the place, and clutter."""
    horizon = rng.uniform(0.34, 0.46)
    canvas = Image.new('RGB', (size, size), shade(SKY[place], rng))
    draw = ImageDraw.Draw(canvas)

    def at(*coordinates):
        return [value * size for value in coordinates]

    draw.rectangle(at(0, horizon, 1, 1), fill=shade(GROUND[place], rng))
    if place == 'beach':
        draw.rectangle(at(0, horizon - 0.14, 1, horizon), fill=shade((50, 115, 190), rng))
        x = rng.uniform(0.1, 0.8)
        draw.ellipse(at(x, 0.03, x + 0.13, 0.16), fill=(250, 230, 120))
    elif place == 'forest':
        for _ in range(rng.randint(6, 10)):
            x, width = rng.random(), rng.uniform(0.02, 0.05)
            draw.rectangle(at(x, 0, x + width, horizon + 0.03), fill=shade((72, 55, 38), rng))
            draw.ellipse(
                at(x - 0.1, -0.12, x + 0.14, rng.uniform(0.1, 0.2)), fill=shade((50, 95, 45), rng)
            )
    elif place == 'street':
        x = -rng.uniform(0, 0.15)
        while x < 1:
            width, top = rng.uniform(0.15, 0.28), rng.uniform(0.02, 0.2)
            draw.rectangle(at(x, top, x + width, horizon), fill=shade((140, 125, 120), rng, 30))
            for row in range(3):
                draw.rectangle(
                    at(
                        x + 0.04, top + 0.03 + row * 0.08, x + width - 0.04, top + 0.06 + row * 0.08
                    ),
                    fill=(90, 100, 120),
                )
            x += width + 0.02
        for x in range(4):
            draw.rectangle(at(x * 0.27 + 0.05, 0.74, x * 0.27 + 0.17, 0.77), fill=(230, 230, 225))
    elif place == 'snow':
        for _ in range(22):
            x, y = rng.random(), rng.random()
            draw.ellipse(at(x, y, x + 0.025, y + 0.025), fill=(255, 255, 255))
        draw.ellipse(
            at(-0.2, horizon - 0.08, 0.6, horizon + 0.2), fill=shade((228, 234, 243), rng, 8)
        )
    elif place == 'room':
        x = rng.uniform(0.05, 0.65)
        draw.rectangle(at(x, 0.06, x + 0.26, 0.26), fill=(180, 215, 235), outline=(110, 80, 55))
        draw.line(at(x + 0.13, 0.06, x + 0.13, 0.26), fill=(110, 80, 55))
        for y in range(4):
            draw.line(
                at(0, horizon + 0.1 + y * 0.15, 1, horizon + 0.1 + y * 0.15), fill=(125, 85, 50)
            )
    elif place == 'meadow':
        for _ in range(26):
            x, y = rng.random(), rng.uniform(horizon, 1)
            draw.line(
                at(x, y, x + rng.uniform(-0.02, 0.02), y - 0.05), fill=shade((60, 135, 45), rng)
            )
        for _ in range(5):
            x, y = rng.random(), rng.uniform(horizon, 1)
            draw.ellipse(
                at(x, y, x + 0.03, y + 0.03),
                fill=shade(rng.choice([(250, 240, 120), (240, 150, 190)]), rng),
            )
    elif place == 'stage':
        for x in range(9):
            if x % 2:
                draw.rectangle(at(x / 9, 0, (x + 1) / 9, horizon), fill=shade((150, 30, 42), rng))
        x = rng.uniform(0.2, 0.8)
        draw.ellipse(at(x - 0.3, 0.66, x + 0.3, 0.9), fill=(225, 185, 125))
    else:
        for _ in range(3):
            x, top = rng.uniform(0, 1), rng.uniform(0.03, 0.14)
            draw.polygon(
                at(x - 0.3, horizon, x, top, x + 0.3, horizon), fill=shade((115, 115, 130), rng)
            )
            draw.polygon(
                at(x - 0.08, top + 0.08, x, top, x + 0.08, top + 0.08), fill=(240, 242, 246)
            )
    for _ in range(rng.randint(2, 6)):  # stones, leaves, litter: no caption speaks of them
        x, y, width = rng.random(), rng.uniform(horizon, 1), rng.uniform(0.015, 0.045)
        draw.ellipse(at(x, y, x + width, y + width * 0.7), fill=shade((130, 125, 120), rng, 60))
    return canvas


# The colour of the marks around a still's action.
MARK = {
    'run': (255, 120, 70),
    'jump': (15, 15, 25),
    'spin': (60, 235, 245),
    'sleep': (30, 40, 170),
    'dance': (245, 60, 190),
    'fall': (120, 105, 215),
    'grow': (255, 240, 110),
}

# -------------------------------------------------------------------------------------- composition

# Where the members of a group of 1, 2, 3 or 4 stand, as fractions of the group's region.
FORMATION = {
    1: ((0.5, 0.5),),
    2: ((0.25, 0.55), (0.75, 0.45)),
    3: ((0.2, 0.68), (0.5, 0.25), (0.8, 0.68)),
    4: ((0.25, 0.2), (0.75, 0.2), (0.25, 0.8), (0.75, 0.8)),
}


@dataclasses.dataclass
class Layout:
    """What is settled once for a picture or a video; lengths in px."""

    background: Image.Image
    picture: Image.Image  # the sprite of one member
    places: list  # (x, y, width) of each member at rest
    thing: tuple = None  # (sprite, x, y, width) or None
    reach: float = 0.0  # how far a running group goes to either side
    facing: int = 1  # 1: looks and runs to the right, -1: to the left


def lay_out(scene, rng, size):
    """Choose positions, sizes, shades and the viewing side for a scene."""
    picture = sprite(scene.object, shade(PAINT[scene.colour], rng), shade(OWN[scene.object], rng))
    facing = rng.choice((1, -1))
    if facing < 0:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    left, right, top, bottom = 0.1, 0.9, 0.42, 0.9
    thing = None
    if scene.thing:
        width, y = rng.uniform(0.3, 0.36), rng.uniform(0.42, 0.5)
        if scene.relation == 'front':
            x, width, y, top = rng.uniform(0.4, 0.6), width + 0.12, rng.uniform(0.26, 0.32), 0.56
        elif scene.relation == 'left':
            x, right = rng.uniform(0.82, 0.88), 0.74
        else:
            x, left = rng.uniform(0.12, 0.18), 0.26
        drawn = sprite(
            scene.thing, shade(PAINT[scene.thing_colour], rng), shade(OWN[scene.thing], rng)
        )
        thing = (drawn, x * size, y * size, width * size)
    width = rng.uniform(0.2, 0.24) if scene.size == 'small' else rng.uniform(0.32, 0.38)
    places = []
    for column, row in FORMATION[scene.count]:
        x = left + (right - left) * column + rng.uniform(-0.03, 0.03)
        y = top + (bottom - top) * row + rng.uniform(-0.03, 0.03)
        places.append((x * size, y * size, width * rng.uniform(0.94, 1.06) * size))
    places.sort(key=lambda place: place[1])  # the nearest member is drawn last
    reach = (0.14 if scene.thing and scene.relation != 'front' else 0.26) * size
    return Layout(draw_place(scene.place, rng, size), picture, places, thing, reach, facing)


def place_thing(canvas, layout):
    if layout.thing:
        picture, x, y, width = layout.thing
        paste(canvas, picture, x=x, y=y, width=width)


def draw_image(scene, rng, size=IMAGE_SIZE):
    """One still picture of a scene (an RGB `PIL.Image`, `size` px square).

    A still cannot move, so each action is a pose with the marks that comics use: speed lines, a
    shadow under a jump, Zs over a sleeper, notes around a dancer, rings around a spinner, an echo
    around what grows.
    """
    layout = lay_out(scene, rng, size)
    canvas = layout.background
    place_thing(canvas, layout)
    for x, y, width in layout.places:
        draw_pose(canvas, layout, scene.action, rng, x=x, y=y, width=width)
    return canvas


def draw_pose(canvas, layout, action, rng, *, x, y, width):
    """Draw one member of the group in the pose that stands for its action, with the marks; lengths
    in px."""
    draw, facing, half = ImageDraw.Draw(canvas, 'RGBA'), layout.facing, width / 2
    mark = shade(MARK.get(action, (0, 0, 0)), rng)
    angle = rng.uniform(-5, 5)
    if action == 'run':
        angle = -facing * rng.uniform(10, 20)
        for offset in (-0.6, 0.0, 0.6):
            start, length, v = (
                x - facing * half * 1.1,
                width * rng.uniform(0.35, 0.55),
                y + offset * half,
            )
            draw.line((start, v, start - facing * length, v), fill=mark, width=3)
    elif action == 'jump':
        draw.ellipse((x - half, y + half * 0.85, x + half, y + half * 1.25), fill=(*mark, 210))
        y -= width * rng.uniform(0.35, 0.5)
    elif action == 'spin':
        angle = rng.uniform(-180, 180)
        for start in (20, 200):
            ring = half * 1.3
            draw.arc(
                (x - ring, y - ring, x + ring, y + ring), start, start + 130, fill=mark, width=3
            )
    elif action == 'sleep':
        angle = rng.choice((90, -90)) + rng.uniform(-8, 8)
        for step in (0, 1):
            u, v, w = x + half * (0.1 + 0.6 * step), y - half * (1.1 + 0.4 * step), width * 0.22
            draw.line((u, v, u + w, v, u, v + w, u + w, v + w), fill=mark, width=2)
    elif action == 'dance':
        angle = rng.choice((1, -1)) * rng.uniform(16, 28)
        for side in (-1, 1):
            u, v, w = x + side * half * 1.15, y - half * rng.uniform(0.4, 0.9), width * 0.18
            draw.ellipse((u - w, v, u, v + w), fill=mark)
            draw.line((u, v + w / 2, u, v - w * 1.5, u + w, v - w * 0.7), fill=mark, width=2)
    elif action == 'fall':
        angle, y = 180 + rng.uniform(-35, 35), y - width * rng.uniform(0.1, 0.3)
        for offset in (-0.6, 0.0, 0.6):
            u, v = x + offset * half, y - half * 1.1
            draw.line((u, v, u, v - width * rng.uniform(0.35, 0.55)), fill=mark, width=3)
    elif action == 'grow':
        for scale in (1.2, 1.5):
            ring = half * scale
            draw.rectangle((x - ring, y - ring, x + ring, y + ring), outline=mark, width=2)
    paste(canvas, layout.picture, x=x, y=y, width=width, angle=angle)


def motion(action, t, phase, tempo):
    """Where a member is at time t of 0..1: (dx, dy, angle, scale); dx in reaches, dy in widths,
    angle in degrees.

    phase (0..1) sets the members of a group apart; tempo (about 1) is how fast this video's motion
    is.
    """
    beat = 2 * math.pi * (1.5 * tempo * t + phase)
    if action == 'run':
        return (2 * t - 1) * tempo, -0.08 * abs(math.sin(2 * beat)), 0.0, 1.0
    if action == 'jump':
        return 0.0, -0.9 * abs(math.sin(beat)), 0.0, 1.0
    if action == 'spin':
        return 0.0, 0.0, math.degrees(beat), 1.0
    if action == 'sleep':
        return 0.0, 0.0, 90.0, 1 + 0.03 * math.sin(beat)
    if action == 'dance':
        return 0.25 * math.sin(beat), 0.0, 28 * math.sin(beat), 1.0
    if action == 'fall':
        return 0.0, -1.6 + 2.0 * min(1.0, t * tempo) ** 2, 180 + 15 * math.sin(beat), 1.0
    if action == 'grow':
        return 0.0, 0.0, 0.0, 0.45 + 1.1 * min(1.0, t * tempo)
    return 0.0, 0.0, 0.0, 1.0


def draw_video(scene, rng, size=FRAME_SIZE):
    """A video of a scene: uint8 array (F, size, size, 3), F of MIN_FRAMES..MAX_FRAMES; the action
    is a motion."""
    layout = lay_out(scene, rng, size)
    place_thing(layout.background, layout)
    frames, tempo = rng.randint(MIN_FRAMES, MAX_FRAMES), rng.uniform(0.85, 1.2)
    phases = [rng.uniform(0, 0.3) for _ in layout.places]
    turn = rng.choice((1, -1))
    video = np.empty((frames, size, size, 3), np.uint8)
    for index in range(frames):
        canvas = layout.background.copy()
        for (x, y, width), phase in zip(layout.places, phases):
            dx, dy, angle, scale = motion(scene.action, index / (frames - 1), phase, tempo)
            paste(
                canvas,
                layout.picture,
                x=x + dx * layout.reach * layout.facing + rng.uniform(-0.5, 0.5),
                y=y + dy * width,
                width=width * scale,
                angle=angle * turn,
            )
        video[index] = np.asarray(canvas)
    return video


def scene_rng(*key):
    """A generator for one purpose, the same in every process: `random.Random` hashes a string by
    SHA-512."""
    return random.Random('/'.join(str(part) for part in key))
