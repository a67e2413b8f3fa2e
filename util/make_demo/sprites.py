"""The objects and things of the little world as small pictures, and how they are pasted.

Coordinates are fractions of the sprite's width and height, x to the right, y downwards.
"""

import math

from PIL import Image, ImageDraw

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
