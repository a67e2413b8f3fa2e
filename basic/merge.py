"""Reading the layers of a config, YAML files and `key=value` options, and merging them onto a
schema.

A layer is (source, tree): what messages call it, and nested dicts. A schema is a dataclass whose
fields have defaults; OmegaConf converts and checks their types.
"""

import re
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from basic.errors import ConfigError
from basic.foreign import parse_yaml, plain_tree, read_yaml

MOST_FILES = 100  # that `base:` may lead to


# ---------------------------------------------------------------------------------- reading layers


def yaml_layers(path, seen=(), read=None):
    """(file, tree) of a YAML file and its bases, from the innermost `base:` outwards.

    Args:
        path: of the file.
        seen: the files whose bases led here; read: all files read so far.
    Raises:
        ConfigError: a file that is not there or cannot be read, or a `base:` without an end.
    """
    path, read = Path(path), [] if read is None else read
    if not path.is_file():
        known = sorted(p.name for p in path.parent.glob('*.yaml')) if path.parent.is_dir() else []
        raise ConfigError(
            f'no config file {path}; {path.parent} has: {", ".join(known) or "no .yaml files"}'
        )
    if path.resolve() in seen:
        raise ConfigError(
            f'{path}: `base:` leads back to a file already read: {" -> ".join(map(str, seen))}'
        )
    read.append(path)
    if len(read) > MOST_FILES:
        raise ConfigError(f'{path}: `base:` leads to more than {MOST_FILES} files')
    tree = read_yaml(path, ConfigError)
    bases = tree.pop('base', None) or []
    bases = [bases] if isinstance(bases, str) else bases
    if not (
        isinstance(bases, list)
        and all(isinstance(base, str) and len(base) < 1000 for base in bases)
    ):
        raise ConfigError(
            f"{path}: key 'base' is {repr(bases)[:200]}; expected a file name, or a list of them"
        )
    below = []
    for base in bases:
        below += yaml_layers(path.parent / base, (*seen, path.resolve()), read)
    return [*below, (path, tree)]


def option_layers(schema, overrides):
    """The layer of each `key=value` string; the schema tells text from numbers."""
    for text in overrides:
        if '=' not in text or text.startswith(('=', '-')):
            raise ConfigError(
                f"option '{text}' is not of the form key=value, for example train.lr=3e-4"
            )
        key, _, raw = text.partition('=')
        source = f"option '{text}'"
        try:
            tree = _option_value(_type_of(schema, key), raw)
        except ValueError as error:
            raise ConfigError(f'{source}: what follows = cannot be read: {error}') from None
        for part in reversed(key.split('.')):
            tree = {part: tree}
        yield source, plain_tree(tree, source, ConfigError)


def _option_value(kind, raw):
    """The value of an option's text: text as it was typed, unless it is in quotes; anything else as
    YAML reads it."""
    if kind is str:
        return _unquoted(raw) if len(raw) > 1 and raw[0] == raw[-1] and raw[0] in '\'"' else raw
    if kind == list[str] and re.fullmatch(r'\[[^\'"]*\]', raw, re.DOTALL):
        return [item.strip() for item in raw[1:-1].split(',')] if raw[1:-1].strip() else []
    return parse_yaml(raw)


def _unquoted(raw):
    try:
        value = parse_yaml(raw)
    except ValueError:
        value = None
    if not isinstance(value, str):
        raise ValueError('it is in quotes, but is not quoted as in YAML; text needs no quotes here')
    return value


# ----------------------------------------------------------------------------------------- merging


def merge(schema, layers):
    """The schema's defaults and the layers on top, of which later ones win.

    Raises:
        ConfigError: an unknown key or a wrong type; names the layer, the key and what is valid.
    """
    layers, config = list(layers), _defaults(schema)
    try:
        return _merge_layer(schema, config, ('', _together(tree for _, tree in layers)))
    except ConfigError:
        # Again, one by one, which takes longer: the message names the layer.
        for layer in layers:
            config = _merge_layer(schema, config, layer)
        return config


@cache
def _defaults(schema):
    """The schema with its defaults, as OmegaConf has it; merging copies it."""
    return OmegaConf.structured(schema)


def _together(trees):
    """Nested dicts as one, of which later ones win."""
    merged = {}
    for tree in trees:
        for key, value in tree.items():
            both = isinstance(value, dict) and isinstance(merged.get(key), dict)
            merged[key] = _together([merged[key], value]) if both else value
    return merged


def _merge_layer(schema, config, layer):
    """OmegaConf.merge with messages that name the source, the key and what is valid."""
    source, tree = layer
    _refuse_unknown(schema, tree, source)
    try:
        return OmegaConf.merge(config, OmegaConf.create(literal(tree, source)))
    # TypeError: a group where a list is expected
    except (OmegaConfBaseException, TypeError) as error:
        key = getattr(error, 'full_key', '') or ''
        message = f"key '{key}': " if key else ''
        message += str(error).splitlines()[0] + _type_hint(schema, key)
        raise ConfigError(f'{source}: {message}') from None


def literal(tree, source=''):
    """The tree with its text such that OmegaConf takes it for text: ${...} is filled in nowhere.

    Raises:
        ConfigError: text that means 'not set' to OmegaConf, ???.
    """
    if isinstance(tree, dict):
        return {name: literal(value, source) for name, value in tree.items()}
    if isinstance(tree, list):
        return [literal(value, source) for value in tree]
    if not isinstance(tree, str):
        return tree
    if re.fullmatch(r'\\*\?\?\?', tree):
        raise ConfigError(
            f"{source}: '{tree}' says that a value is missing: give it, or omit the key"
        )
    # a backslash makes it text, and is itself doubled before
    return re.sub(r'(\\*)\$\{', r'\1\1\\${', tree)


def _refuse_unknown(schema, tree, source, group=''):
    """Raise ConfigError at a key that the schema does not have, or a value of another shape."""
    types = {each.name: each.type for each in fields(schema)}
    for name, value in tree.items():
        key = f'{group}.{name}' if group else name
        if name not in types:
            raise ConfigError(
                f"{source}: unknown key '{key}'; {group or 'the top level'} has: {', '.join(types)}"
            )
        kind = types[name]
        if is_dataclass(kind):
            if not isinstance(value, dict):
                raise ConfigError(
                    f"{source}: key '{key}' is a group, found {value!r}; "
                    f'set one of its keys: {", ".join(each.name for each in fields(kind))}'
                )
            _refuse_unknown(kind, value, source, key)
        elif kind is str and isinstance(value, bool | int | float):
            raise ConfigError(
                f"{source}: key '{key}' is text, but YAML reads what is there as {value!r}; put it"
                ' in quotes'
            )
        elif str(kind).startswith('list') and not _is_flat_list(value):
            raise ConfigError(
                f"{source}: key '{key}' is {value!r}; expected a list, such as [{value}]"
                f' (expected {kind})'
            )


def _is_flat_list(value):
    return isinstance(value, list) and not any(isinstance(item, list | dict) for item in value)


def _type_of(schema, key):
    """The type of a dotted key, str for one inside a free dict; None for one that is not there."""
    where = schema
    for part in key.split('.'):
        if is_dataclass(where):
            where = {each.name: each.type for each in fields(where)}.get(part)
        else:
            where = str if where == dict[str, str] else None
    return where


def _type_hint(schema, key):
    found = _type_of(schema, '.'.join(part.split('[')[0] for part in key.split('.')))
    # list[int] is no type: its name is just list
    expected = found.__name__ if isinstance(found, type) else found
    return f' (expected {expected})' if found else ''


# ------------------------------------------------------------------------------------- dotted keys


def keys_of(path):
    """The dotted keys that a YAML file, or one of its bases, sets; raises ConfigError."""
    return {
        key for _, tree in yaml_layers(path) for key, value in flatten(tree).items() if value != {}
    }


def flatten(tree, prefix='', separator='.'):
    """Nested dicts as one dict of dotted keys; an empty dict stays a value."""
    flat = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            flat.update(flatten(value, f'{prefix}{key}{separator}', separator))
        else:
            flat[f'{prefix}{key}'] = value
    return flat
