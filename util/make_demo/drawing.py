"""How a scene is drawn: `draw_image` makes one picture of it, `draw_video` a sequence of frames in
which the action is a motion.

Nothing but the pixels tells a reader of the picture what the scene is; position, size, shade,
viewing side and background clutter vary between two pictures of one scene, as they do between
photographs.

Drawing coordinates are fractions of the picture's width and height, x to the right, y downwards.
"""

import dataclasses
import math

import numpy as np
from PIL import Image, ImageDraw

from util.make_demo.sprites import OWN, PAINT, paste, shade, sprite

IMAGE_SIZE = 96  # px, width and height of the JPEGs
FRAME_SIZE = 64  # px, width and height of a video frame
MIN_FRAMES, MAX_FRAMES = 5, 16

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


# -------------------------------------------------------------------------------------- composition

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
