"""The demo's little world: its scenes, and how they are sampled.

A scene is a handful of attributes (what, which colour, how many, how big, doing what, where, beside
what). drawing.py draws it, language.py describes it.
"""

import dataclasses
import random

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


def scene_rng(*key):
    """A generator for one purpose, the same in every process: `random.Random` hashes a string by
    SHA-512."""
    return random.Random('/'.join(str(part) for part in key))
