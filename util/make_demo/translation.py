"""The demo's machine translator, which errs.

`translate` does what a machine translator of some quality would do: it says the same in another
language, but loses, mistakes and displaces words, and tells what is left of the meaning, so that a
translation of the translation inherits its errors. All chance comes from the `random.Random` passed
in.
"""

import dataclasses

from util.make_demo.language import describe, render
from util.make_demo.words import FUNCTION_ERRORS
from util.make_demo.world import ATTRIBUTES, COLOURS, OBJECTS, SIZES, THINGS

OTHER_CLASS = 0.12  # how often a word is mistaken for one of a kindred class, if it has one
KINDRED = {
    'object': THINGS,
    'thing': OBJECTS,
    'colour': SIZES,
    'thing_colour': SIZES,
    'size': COLOURS,
}


def translate(scene, mentioned, target, rng, noise):
    """Say the mentioned attributes in the target language as a translator of some quality would.

    noise: the rate, 0..1, at which a content word is corrupted (4 in 10 dropped, 4 wrong, 2 out of
    order); function words err at half of it, endings at a quarter. Returns (text, perceived scene,
    perceived mentioned): what the text now means, to be translated further. A perceived scene may
    hold values of another class (a thing as the object, a size as the colour), which
    language.py can say but drawing.py cannot draw.
    """
    names = [name for name in ATTRIBUTES if name in mentioned and getattr(scene, name)]
    fates = {
        name: rng.choices(('dropped', 'wrong', 'displaced'), (4, 4, 2))[0]
        for name in names
        if rng.random() < noise
    }
    if names and all(fates.get(name) == 'dropped' for name in names):
        del fates[names[0]]  # something is always said
    perceived = dataclasses.replace(
        scene,
        **{name: mistaken(scene, name, rng) for name, fate in fates.items() if fate == 'wrong'},
    )
    pieces = bad_endings(describe(perceived, target, rng, names), perceived, target, rng, noise / 4)
    # no set: its order would steer the chance
    dropped = [name for name, fate in fates.items() if fate == 'dropped']
    # function words that go with their word
    widowed = {('function', name) for name in dropped if rng.random() < 0.7}
    pieces = [
        piece
        for piece in pieces
        if piece.concept[0] not in dropped and piece.concept not in widowed
    ]
    for name in (name for name, fate in fates.items() if fate == 'displaced'):
        displace(pieces, name)
    return (
        render(bad_function_words(pieces, target, rng, noise / 2), target),
        perceived,
        frozenset(names) - {*dropped},
    )


def mistaken(scene, name, rng):
    """A wrong value for an attribute: of the same class, or seldom of a kindred one."""
    values = KINDRED[name] if name in KINDRED and rng.random() < OTHER_CLASS else ATTRIBUTES[name]
    return rng.choice([value for value in values if value != getattr(scene, name)])


def bad_endings(pieces, scene, lang, rng, rate):
    """Give some content words the form they have when the subject's number is another."""
    if lang in ('zh', 'ja') or not rate:
        return pieces
    other = dataclasses.replace(scene, number='two' if scene.number == 'one' else 'one')
    names = {piece.concept[0] for piece in pieces} - {'number', 'function'}
    forms = {
        piece.concept: piece.text
        for piece in describe(other, lang, rng, names)
        if piece.concept[0] in names
    }
    return [
        piece._replace(text=forms.get(piece.concept, piece.text)) if rng.random() < rate else piece
        for piece in pieces
    ]


def displace(pieces, name):
    """Let the content word of an attribute and its right neighbour (the left one, at the end)
    change places."""
    at = next(i for i, piece in enumerate(pieces) if piece.concept[0] == name)
    words = [
        i for i, piece in enumerate(pieces) if piece.concept[1] != 'punctuation' and i != at
    ] or [at]
    to = next((i for i in words if i > at), words[-1])
    pieces[at], pieces[to] = pieces[to], pieces[at]


def bad_function_words(pieces, lang, rng, rate):
    """Drop, replace or double some function words."""
    result = []
    for piece in pieces:
        errs = (
            piece.concept[0] == 'function'
            and piece.concept[1] != 'punctuation'
            and rng.random() < rate
        )
        another = piece._replace(text=rng.choice(FUNCTION_ERRORS[lang]))
        result += rng.choice(([], [another], [another], [piece, piece])) if errs else [piece]
    return result
