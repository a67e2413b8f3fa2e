"""What a config field says of itself beside its default: what it may hold, and what changing it
does.

    heads: int = option(8, COUNT)
    workers: int = option(2, NOT_NEGATIVE, effect='speed')

basic/config.py declares the fields, and its checks and comparisons follow from what they say.
"""

import math
import string
from collections.abc import Callable
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache

from basic.errors import ConfigError
from basic.foreign import LARGEST, shown

# What changing a field may change:
EFFECTS = (
    'place',  # where pretrained weights and images are found; of no matter to a trained model
    'speed',  # time, memory or disk space
    'rounding',  # and last digits
    'length',  # of the training
    'result',  # anything
)
TEMPLATE_FIELDS = ('c', 'p', 'lang', 'split', 't', 'feature', 'id')


@dataclass(frozen=True)
class Valid:
    """The values that a field may hold: as a message says it, and as a test of one value.

    The test may raise ValueError to say what is wrong.
    """

    words: str
    test: Callable


def at_least(least, reason=''):
    """Whole numbers from `least`, for a `reason` such as ': [CLS] and [SEP]'."""
    return Valid(f'expected a whole number of at least {least}{reason}', lambda n: n >= least)


def one_of(values):
    return Valid(f'valid values: {", ".join(values)}', lambda value: value in values)


def _is_name(text):
    """Whether a text can be a folder's name, here and on another machine."""
    return bool('/' not in text and text.strip(' .') and text.isprintable())


def _are_languages(text):
    """Whether a text is one language's name, or several, with commas between; else ValueError."""
    names = text.split(',')
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if twice:
        raise ValueError(f"'{twice[0]}' is listed twice")
    return all(map(_is_name, names))


def _is_template(value):
    """True for templates that can be filled in, of which there may be a list; else ValueError."""
    for template in value if isinstance(value, list) else [value]:
        for _, name, width, conversion in string.Formatter().parse(template):
            # {c:>9999} makes 9,999 blanks
            if name is not None and (name not in TEMPLATE_FIELDS or width or conversion):
                raise ValueError(f'cannot fill in {name!r}')
    return True


COUNT = at_least(1)
NOT_NEGATIVE = Valid('expected 0 or more', lambda x: x >= 0)
POSITIVE = Valid('expected a number above 0', lambda x: x > 0)
PROBABILITY = Valid('expected a probability, 0 <= p < 1', lambda p: 0 <= p < 1)
FACTOR = Valid('expected a factor, 0 < f <= 1', lambda f: 0 < f <= 1)
RATE = Valid('expected a rate from 0 to 1', lambda r: 0 <= r <= 1)
SHARE = Valid('expected a share of the English branch in [0, 1]', lambda w: 0 <= w <= 1)
SHARES = Valid('expected weights in [0, 1]', lambda ws: all(0 <= w <= 1 for w in ws))
MOMENTUM = Valid('expected a share, 0 <= m < 1', lambda m: 0 <= m < 1)
SEED = Valid('expected a whole number, 0 <= seed < 2^32', lambda seed: 0 <= seed < 2**32)
LAYERS = Valid(
    'expected different layer numbers, counted from 0',
    lambda layers: len(set(layers)) == len(layers) and all(n >= 0 for n in layers),
)
CASING = Valid('valid values: auto, true, false', lambda x: x is True or x is False or x == 'auto')
# part of a path, and of the run folder's
NAME = Valid("expected a folder's or a language's name, without / and control characters", _is_name)
LANGUAGES = Valid(
    "expected a language's name, without / and control characters, such as de; or several: de,fr",
    _are_languages,
)
TEMPLATE = Valid(
    f'fields: {", ".join(f"{{{name}}}" for name in TEMPLATE_FIELDS)}; a brace that is text is'
    ' written twice',
    _is_template,
)


def option(default, valid=None, *, effect='result'):
    """A dataclass field.

    Args:
        default: a list is copied.
        valid: Valid, or a tuple of the values that the field may hold; None: any of its type.
        effect: one of EFFECTS.
    """
    assert effect in EFFECTS, effect
    metadata = {'valid': one_of(valid) if isinstance(valid, tuple) else valid, 'effect': effect}
    if isinstance(default, list):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


@cache
def options_of(schema):
    """dict dotted key -> dataclass field of a schema's options, in its order; groups are opened."""
    found = {}
    for each in fields(schema):
        if is_dataclass(each.type):
            inner = options_of(each.type)
            found |= {f'{each.name}.{key}': value for key, value in inner.items()}
        else:
            found[each.name] = each
    return found


def check_values(schema, tree):
    """Raise ConfigError at the first option of a complete config tree that its field does not
    allow."""
    for key, each in options_of(schema).items():
        value = tree
        for part in key.split('.'):
            value = value[part]
        if isinstance(value, float) and not math.isfinite(value):
            raise refusal(key, value, 'expected a finite number')
        if isinstance(value, int) and abs(value) >= LARGEST:
            raise refusal(key, value, 'no number here is that large')
        valid, reason = each.metadata.get('valid'), ''
        try:
            fits = valid is None or valid.test(value)
        except ValueError as error:
            fits, reason = False, f'{error}; '
        if not fits:
            raise refusal(key, value, reason + valid.words)


def refusal(key, value, words):
    """The ConfigError that names a key and its value, and says what would be valid."""
    # a stranger's text or number may be endless
    value = shown(value) if isinstance(value, str | int) else str(value)[:500]
    return ConfigError(f"key '{key}' is {value}; {words}")
