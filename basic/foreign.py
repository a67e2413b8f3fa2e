"""Read files from outside, which may be damaged: only as plain data, with bounded time and memory.

The expected content of a file is given as a *form*:

    int, float (finite), str, bool, dict, list    a value of this type
    (form, form)     one of several; None among them: the value may be None, or its key missing
    [form]           a list of such values
    {'key': form}    a dict with these keys; it may have others
    {str: form}      a dict with any text keys and such values
"""

import json
import math
import os
import re
import stat
import tokenize
import zipfile
import zlib
from pathlib import Path

import yaml

from basic.errors import DataError

LARGEST = 2**63  # limit of integers: far above any count or size, and fast to print
DEEPEST, MOST = 30, 20_000  # most levels and values of a config
YAML_SIZE = 2**18  # most bytes of a config file; ours have some hundreds
MAY_INFLATE = 2**26  # bytes that any .npz may unpack to; larger files: to 100 times their size

KINDS = {
    int: 'a whole number',
    float: 'a number',
    str: 'text',
    bool: 'true or false',
    dict: 'keys and values',
    list: 'a list',
    None: 'nothing',
}
# What the readers of JSON, YAML, zip and npy raise for damaged files, apart from OSError.
DAMAGE = (
    ValueError,
    KeyError,
    IndexError,
    TypeError,
    AttributeError,
    RecursionError,
    OverflowError,
    MemoryError,
    EOFError,
    NotImplementedError,
    RuntimeError,
    SyntaxError,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
    yaml.YAMLError,
)


# ---------------------------------------------------------------------------------------- the shape


def expect(value, form, where, error=DataError):
    """Return the value if it has the form.

    Args:
        value: anything that a reader of JSON, YAML or checkpoints returns.
        form: see the module's docstring.
        where: the file, for the message.
        error: the class to raise.
    Raises:
        error: the value has another form; names the key, what was found and what was expected.
    """
    found = _misfit(value, form, '')
    if found:
        key, value, form = found
        raise error(
            f'{where}: '
            + (f"key '{key}' is {shown(value)}; " if key else f'it is {shown(value)}; ')
            + f'expected {_name(form)}'
        )
    return value


def _misfit(value, form, key):
    """(key, value, form) of the first value that does not have its form, or None."""
    if isinstance(form, tuple):
        return (
            None
            if any(not _misfit(value, one, key) for one in form)
            else _nearest(value, form, key)
        )
    if isinstance(form, dict):
        if not isinstance(value, dict):
            return key, value, dict
        if list(form) == [str]:
            for name, item in value.items():
                if not isinstance(name, str):
                    return key, value, form
                if found := _misfit(item, form[str], f'{key}.{name[:60]}'.lstrip('.')):
                    return found
            return None
        for name, inner in form.items():
            if found := _misfit(value.get(name), inner, f'{key}.{name}'.lstrip('.')):
                return found
        return None
    if isinstance(form, list):
        if not isinstance(value, list | tuple):
            return key, value, list
        return next(
            (
                found
                for i, item in enumerate(value)
                if (found := _misfit(item, form[0], f'{key}[{i}]'))
            ),
            None,
        )
    return None if _is(value, form) else (key, value, form)


def _nearest(value, forms, key):
    """The misfit within the one of several forms that has the value's type."""
    for form in forms:
        if isinstance(value, type(form)) and isinstance(form, dict | list):
            return _misfit(value, form, key)
    return key, value, forms


def _is(value, kind):
    if kind is None:
        return value is None
    if kind in (int, float):
        if isinstance(value, float):
            return kind is float and math.isfinite(value)
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) < LARGEST
    return isinstance(value, kind)


def _name(form):
    if isinstance(form, tuple):
        return ' or '.join(_name(one) for one in form if one is not None)
    if isinstance(form, dict) and list(form) == [str]:
        return 'keys that are text'
    return KINDS[type(form) if isinstance(form, dict | list) else form]


def shown(value):
    """A value from outside, as short text for a message; large objects are not searched."""
    if isinstance(value, str):
        return repr(value if len(value) <= 60 else value[:57] + '...')
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= LARGEST:
        return f'a number of {value.bit_length():,} bits'
    if value is None or type(value) in (bool, int, float):
        return repr(value)
    return {dict: 'keys and values', list: 'a list', tuple: 'a list', bytes: 'bytes'}.get(
        type(value), f'of type {type(value).__name__}'
    )


def plain_tree(value, where, error=DataError):
    """A copy of nested dicts with text keys, lists, text, numbers, true, false and None.

    Raises:
        error: the value has anything else, is too deep or too large for a config, or contains
            itself.
    """
    left = [MOST]

    def copy(value, key, depth):
        left[0] -= 1
        if left[0] < 0 or depth > DEEPEST:
            raise error(
                f'{where}: it has '
                + ('too many values' if left[0] < 0 else 'groups inside groups too deep')
                + ' to be a config'
            )
        if isinstance(value, dict):
            for name in value:
                if not isinstance(name, str):
                    raise error(
                        f'{where}: the key {shown(name)}{f" in {key}" if key else ""} is not text: '
                        'put it in quotes'
                    )
            return {
                name: copy(item, f'{key}.{name[:60]}'.lstrip('.'), depth + 1)
                for name, item in value.items()
            }
        if isinstance(value, list | tuple):
            return [copy(item, f'{key}[{i}]', depth + 1) for i, item in enumerate(value)]
        if isinstance(value, str):
            if not value.isascii() and not _is_unicode(value):
                raise error(f"{where}: key '{key}' has bytes that are not UTF-8: {shown(value)!a}")
            return value
        if value is not None and type(value) not in (bool, int, float):
            raise error(
                f"{where}: key '{key}' is {shown(value)}; expected text, a number, true, false or a"
                ' list'
            )
        if type(value) is int and abs(value) >= LARGEST:
            raise error(f"{where}: key '{key}' is {shown(value)}; no number here is that large")
        return value

    return copy(value, '', 0)


def _is_unicode(text):
    try:
        text.encode('utf-8')
    except UnicodeEncodeError:
        return False
    return True


# ---------------------------------------------------------------------------------------- the files


def refuse_special(path, error=DataError):
    """Raise `error` if `path` is a folder, or a pipe, from which reading would never end."""
    kind = os.stat(path).st_mode
    if not stat.S_ISREG(kind):
        raise error(
            f'{path} is a '
            + ('folder' if stat.S_ISDIR(kind) else 'pipe or a device')
            + ', not a file'
        )


def read_text(path, error=DataError):
    """The text of a UTF-8 file, without a byte-order mark; raises `error` or OSError."""
    refuse_special(path, error)
    try:
        return Path(path).read_bytes().decode('utf-8').removeprefix('\ufeff')
    except UnicodeDecodeError as reason:
        raise error(f'{path}: byte {reason.start + 1:,} is not UTF-8') from None


def read_json(path, form, error=DataError):
    """The content of a JSON file with this form; raises `error` or OSError."""
    return parse_json(read_text(path, error), form, path, error)


def parse_json(text, form, where, error=DataError):
    """The value of JSON text with this form; raises `error`."""
    try:
        value = json.loads(text)
    except RecursionError:
        raise error(f'{where}: lists nested too deep') from None
    except ValueError as reason:  # not JSON, or a number with thousands of digits
        raise error(f'{where}: not JSON ({_one_line(reason)}): {shown(text)}') from None
    if '\\ud' in text.lower() and not _is_text(value):
        raise error(
            f'{where}: half of a character (an escape from \\ud800 to \\udfff): {shown(text)}'
        )
    return expect(value, form, where, error)


def _is_text(value):
    """Whether all text in a value from JSON can be encoded as UTF-8."""
    try:
        json.dumps(value, ensure_ascii=False).encode('utf-8')
    except UnicodeEncodeError:
        return False
    return True


def is_json(text):
    """Whether text is valid JSON."""
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


class _Loader(yaml.SafeLoader):
    """A YAML loader for configs, of bounded size.

    A duplicate key is an error, 1e-4 is a number, and 2024-01-02 is text.
    """

    def __init__(self, text):
        super().__init__(text)
        # Number of values of each node; an alias counts as its target.
        self.sizes, self.depth = {}, 0

    def compose_node(self, parent, index):
        self.depth += 1
        if self.depth > DEEPEST:
            raise ValueError('groups inside groups too deep to be a config')
        node = super().compose_node(parent, index)
        self.depth -= 1
        if id(node) not in self.sizes:
            parts = node.value if isinstance(node, yaml.CollectionNode) else []
            if isinstance(node, yaml.MappingNode):
                _refuse_doubles(key for key, _ in parts)
                parts = [part for pair in parts for part in pair]
            # A node without a size is still being composed: it contains an alias of itself.
            self.sizes[id(node)] = 1 + sum(self.sizes.get(id(part), MOST) for part in parts)
        if max(len(self.sizes), self.sizes[id(node)]) > MOST:
            raise ValueError('too many values, or aliases, to be a config')
        return node


def _refuse_doubles(keys):
    """Raise ValueError for a duplicate key, of which PyYAML would silently keep the last."""
    seen = set()
    for key in keys:
        if isinstance(key, yaml.ScalarNode) and not key.tag.endswith(':merge'):
            if key.value in seen:
                raise ValueError(f'duplicate key {key.value} in line {key.start_mark.line + 1}')
            seen.add(key.value)


_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern) for tag, pattern in resolvers if not tag.endswith((':timestamp', ':float'))
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    'tag:yaml.org,2002:float',
    re.compile(
        r"""^(?:
    [-+]?[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?
    |[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+
    |\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?
    |[-+]?\.(?:inf|Inf|INF)
    |\.(?:nan|NaN|NAN))$""",
        re.X,
    ),
    list('-+0123456789.'),
)


def parse_yaml(text):
    """The value of YAML text, as plain data; raises ValueError with a one-line reason."""
    try:
        return _Loader(text).get_single_data()
    except DAMAGE as reason:
        raise ValueError(_one_line(reason)) from None


def _one_line(reason):
    text = ' '.join(str(reason).split()) or type(reason).__name__
    return 'a number of thousands of digits' if 'set_int_max_str_digits' in text else text[:300]


def read_yaml(path, error=DataError):
    """The keys and values of a YAML file, {} for an empty one; raises `error` or OSError."""
    text = read_text(path, error) if os.path.getsize(path) <= YAML_SIZE else None
    if text is None:
        raise error(f'{path} is too large to be a config: {os.path.getsize(path):,} bytes')
    try:
        tree = parse_yaml(text)
    except ValueError as reason:
        raise error(f'{path} is not valid YAML: {reason}') from None
    if tree is not None and not isinstance(tree, dict):
        raise error(f'{path}: expected keys and values at the top level, such as `data:`')
    return plain_tree(tree or {}, path, error)


def read_npz(path, shapes, error=DataError):
    """Arrays of an .npz file, whose sizes are checked before unpacking.

    Args:
        path: the file.
        shapes: dict name -> (shape, kinds): the expected shape, in which None fits any length,
            and the accepted letters of numpy's `dtype.kind`.
    Returns:
        dict name -> array.
    Raises:
        error: not an .npz file, or other arrays.
        OSError: the file cannot be read.
    """
    refuse_special(path, error)
    try:
        with zipfile.ZipFile(path) as file:
            size = sum(member.file_size for member in file.infolist())
            if size > max(MAY_INFLATE, 100 * os.path.getsize(path)):
                raise ValueError(f'it would unpack to {size / 2**30:,.1f} GiB')
            names = set(file.namelist())
            missing = [name for name in shapes if f'{name}.npy' not in names]
            if missing:
                raise ValueError(f'it has no {", ".join(missing)}')
            return {
                name: _npy(file.read(f'{name}.npy'), name, *form) for name, form in shapes.items()
            }
    except OSError:
        raise
    except DAMAGE as reason:
        lines = str(reason).splitlines() or [type(reason).__name__]
        raise error(f'{path} is damaged ({lines[0][:200]})') from None


def _npy(data, name, shape, kinds):
    import io

    import numpy as np

    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    read_header = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in read_header:
        raise ValueError(f'{name} is in version {version} of the npy format')
    found, fortran, dtype = read_header[version](file)
    fits = len(found) == len(shape) and all(
        asked in (None, length) for asked, length in zip(shape, found)
    )
    if (
        not fits
        or min(found, default=0) < 0
        or dtype.kind not in kinds
        or dtype.hasobject
        or fortran
        and len(shape) > 1
    ):
        raise ValueError(f'{name} is {dtype} of shape {found}; expected shape {shape}')
    rest = data[file.tell() :]
    if len(rest) != math.prod(found) * dtype.itemsize:
        raise ValueError(f'{name} is cut off')
    return np.frombuffer(rest, dtype=dtype).reshape(found)
