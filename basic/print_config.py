"""The output of --print-config: every option with its meaning, its value and its default.

The meaning is the comment at the field in basic/config.py.
"""

import io
import textwrap
import tokenize
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from pathlib import Path

from omegaconf import MISSING as REQUIRED

from basic import config as schema
from basic.config import Config, config_to_dict

WIDTH = 80


def describe_config(config):
    """The options of a config, grouped, as text of at most 80 columns.

    Args:
        config: a checked `Config`.
    Returns:
        str: `key = value`, with the default in brackets where the value is another, and below it
            what it means.
    """
    values = config_to_dict(config)
    lines = ['Options, to be given as key=value, or in a YAML file.']
    for group, cls in _groups(Config):
        lines += ['', *_wrapped(f'[{group or "top level"}] {_summary(cls)}', '', '  ')]
        comments = field_comments(cls)
        for field in fields(cls):
            if not is_dataclass(field.type):
                key = f'{group}.{field.name}'.lstrip('.')
                lines += _option(key, _at(values, key), _default(field), comments[field.name])
    return '\n'.join(lines) + '\n'


def field_comments(cls):
    """dict field -> the comment at it in the source of basic/config.py, '' where there is none."""
    comments = _comments().get(cls.__name__, {})
    return {field.name: ' '.join(comments.get(field.name, [])) for field in fields(cls)}


@cache
def _comments():
    """dict class -> dict field -> list of the comments above its line, at it and below."""
    source = Path(schema.__file__).read_text(encoding='utf-8')
    found, fields_here, comments, above = {}, {}, [], []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        column = token.start[1]
        if column == 0 and token.type == tokenize.NAME:
            words = token.line.split()
            fields_here = found.setdefault(words[1].rstrip(':'), {}) if words[0] == 'class' else {}
            above = []
        elif column == 4 and token.type == tokenize.NAME:
            comments = fields_here.setdefault(token.string, above)
            above = []
        elif token.type == tokenize.COMMENT and column:
            (above if column == 4 else comments).append(token.string.lstrip('# '))
    return found


def _groups(cls, name=''):
    """(dotted name, dataclass) of each group that has options of its own, in the schema's order."""
    if any(not is_dataclass(field.type) for field in fields(cls)):
        yield name, cls
    for field in fields(cls):
        if is_dataclass(field.type):
            yield from _groups(field.type, f'{name}.{field.name}'.lstrip('.'))


def _option(key, value, default, comment):
    head = f'{key} = {_yaml(value)}'
    if value != default:
        head += '  (must be given)' if default is REQUIRED else f'  (default: {_yaml(default)})'
    return [*_wrapped(head, '  ', '    '), *_wrapped(comment, '    ', '    ')]


def _wrapped(text, first, further):
    return textwrap.wrap(
        text, WIDTH, initial_indent=first, subsequent_indent=further, break_on_hyphens=False
    )


def _default(field):
    return field.default if field.default is not MISSING else field.default_factory()


def _summary(cls):
    return cls.__doc__.strip().split('\n\n')[0].replace('\n', ' ')


def _at(tree, key):
    for part in key.split('.'):
        tree = tree[part]
    return tree


def _yaml(value):
    """A value as one would type it."""
    if isinstance(value, bool) or value is None:
        return {True: 'true', False: 'false', None: 'null'}[value]
    if isinstance(value, list):
        return f'[{", ".join(map(_yaml, value))}]'
    if isinstance(value, dict):
        return '{' + ', '.join(f'{key}: {_yaml(item)}' for key, item in value.items()) + '}'
    if isinstance(value, str):
        return value if value and value == value.strip() else repr(value)
    return str(value)
