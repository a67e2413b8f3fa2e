"""Read checkpoint files from anywhere, without running code from them.

torch's `weights_only` unpickler accepts tensors and plain data. We also accept what the options of
a training script contain: `argparse.Namespace`, defaultdicts, paths, and NumPy's numbers, which
become Python's. NumPy arrays are not needed and are replaced by a placeholder.
"""

import argparse
import os
import pathlib
import re
import struct
import zipfile

import torch

from basic.errors import UserError, first_five
from basic.foreign import DAMAGE, expect, refuse_special, shown

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
# Endings of the names of integer tensors.
COUNTS = ('num_batches_tracked', 'position_ids', 'token_type_ids')
AGAIN = 'copy or download it again'
MOST_LAYERS, LARGEST_SIZE = 1000, 100_000  # of an architecture, whatever the weights are


class CheckpointError(UserError):
    """An unusable checkpoint; the message names the file, what was found and what to do."""


def read_content(path):
    """The content of a file of `torch.save`, with its tensors on the CPU; no code is run.

    Raises:
        CheckpointError: another kind of file, a damaged file, or one that contains code.
    """
    refuse_special(path, CheckpointError)
    with open(path, 'rb') as file:
        head = file.read(512)
    _refuse_other_kinds(path, head)
    if head.startswith(b'PK'):
        _refuse_odd_zip(path)
    try:
        with torch.serialization.safe_globals(HARMLESS):
            return torch.load(path, map_location='cpu', weights_only=True)
    # torch raises many kinds of errors: unpickling, zip, end of file, a forbidden class.
    except Exception as error:
        # Omit torch's advice to load the file unsafely.
        asked = re.search(r'GLOBAL ([\w.]+)', str(error))
        reason = (
            f'it needs {asked[1]}'
            if asked
            else next(
                (
                    line
                    for line in str(error).splitlines()
                    if line.strip() and 'weights_only' not in line
                ),
                type(error).__name__,
            )[:300]
        )
        raise CheckpointError(
            f'{path} cannot be read safely as a checkpoint ({reason}). It may be damaged or contain'
            ' code; only tensors, plain data and argparse.Namespace are read. Its author can save'
            " it without other objects: content['opt'] = dict of plain values, then"
            ' torch.save(content, FILE)'
        ) from None


# -------------------------------------------------------------------------------- the kind of file

ARCHIVES = (
    (b'\x1f\x8b', 'a gzip archive: tar zxf'),
    (b'BZh', 'a bzip2 archive: tar jxf'),
    (b'\xfd7zXZ', 'an xz archive: tar Jxf'),
    (b'7z\xbc\xaf', 'a 7z archive: 7z x'),
    (b'Rar!', 'a rar archive: unrar x'),
    (b'(\xb5/\xfd', 'a zstd archive: unzstd'),
)
OTHERS = (
    (b'\x93NUMPY', 'a NumPy array'),
    (b'\x89HDF', 'an HDF5 file'),
    (b'\x89PNG', 'an image'),
    (b'\xff\xd8\xff', 'an image'),
    (b'%PDF', 'a PDF document'),
    (b'\x7fELF', 'a program'),
)
LEGACY = b'\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.'  # start of torch.save's files before torch 1.6


def _refuse_other_kinds(path, head):
    """Raise CheckpointError if the first bytes are not those of a file of torch.save."""
    found = other_kind(head)
    if found:
        raise CheckpointError(f'{path} is {found}')


def is_safetensors(head):
    """Whether a file with these first bytes may be one of safetensors: the length of a header."""
    return len(head) > 9 and struct.unpack('<Q', head[:8])[0] < 2**32 and head[8:9] == b'{'


def other_kind(head):
    """The kind of a file with these first 512 bytes, for a message; None for one of torch.save."""
    if not head:
        return f'empty: {AGAIN}'
    if head.startswith((b'PK\x03\x04', LEGACY)):
        return None
    for start, name in ARCHIVES:
        if head.startswith(start):
            return f'{name} it first, then give the folder that has the checkpoint, such as runs_0'
    if head[257:262] == b'ustar':
        return (
            'a tar archive: tar xf it first, then give the folder that has the checkpoint, such as'
            ' runs_0'
        )
    if head.startswith(b'version https://git-lfs'):
        return 'a git-lfs pointer, not the file itself: download it with git lfs pull'
    if re.match(
        rb'\s*<(!doctype|html|head|\?xml|!--)', head.removeprefix(b'\xef\xbb\xbf'), re.IGNORECASE
    ):
        return (
            'a web page (HTML), perhaps an error or a login, not the file: download it with a'
            ' browser, and check its size'
        )
    if is_safetensors(head):
        return (
            'a safetensors file, which has weights but no config: give a run folder of train.py or'
            ' a folder of util.export'
        )
    for start, name in OTHERS:
        if head.startswith(start):
            return f'{name}, not a checkpoint'
    if head.startswith(b'PK'):
        return 'an empty zip archive, not a checkpoint'
    if head.startswith(b'\x80'):
        return 'a pickle that torch.save did not write; it may contain code and is not read'
    text = head.decode('utf-8', errors='ignore').strip()  # the last character may be incomplete
    if not head.strip():
        return f'blank: {AGAIN}'
    if text and len(head.strip()) - len(text.encode()) < 4 and ' '.join(text.split()).isprintable():
        return f'text, not a checkpoint: {shown(text.splitlines()[0])}'
    return f'not a checkpoint, and of unknown kind; it may be damaged: {AGAIN}'


def _refuse_odd_zip(path):
    """Raise CheckpointError for a zip file that torch did not write or that is damaged.

    torch itself does not check this.
    """
    try:
        with zipfile.ZipFile(path) as file:
            members = file.infolist()
            names = [member.filename for member in members]
            if not any(name.endswith('/data.pkl') for name in names):
                raise CheckpointError(
                    f'{path} is a zip archive of {first_five(names)}, not a checkpoint: unzip it '
                    'first, then give the folder that has the checkpoint'
                )
            if any(member.compress_type != zipfile.ZIP_STORED for member in members):
                raise CheckpointError(
                    f'{path} is a compressed zip archive, which torch does not write: {AGAIN} from '
                    'its source'
                )
            if sum(member.file_size for member in members) > os.path.getsize(path):
                raise CheckpointError(
                    f'{path} is damaged: its parts are larger than the file; {AGAIN}'
                )
            damaged = file.testzip()
    except CheckpointError:
        raise
    except (*DAMAGE, OSError) as error:
        damaged = str(error) or type(error).__name__
    if damaged:
        raise CheckpointError(f'{path} is damaged ({shown(damaged)}): {AGAIN}')


# -------------------------------------------------------------------------------------- the content


class NotRead:
    """A placeholder for an object that is not needed."""

    def __init__(self, *_):
        pass

    def __setstate__(self, _):
        pass


def _empty(*_):
    """A dict in the place of a defaultdict; the unpickler adds its items."""
    return {}


class _NumberType:
    """A replacement for numpy.dtype: its kind, size in bytes and byte order."""

    def __init__(self, code='', *_):
        self.code, self.order = str(code), '<'

    def __setstate__(self, state):
        self.order = '>' if isinstance(state, tuple) and state[1:2] == ('>',) else '<'


NUMBER_CODES = {
    'b1': '?',
    'i1': 'b',
    'u1': 'B',
    'i2': 'h',
    'u2': 'H',
    'i4': 'i',
    'u4': 'I',
    'i8': 'q',
    'u8': 'Q',
    'f2': 'e',
    'f4': 'f',
    'f8': 'd',
}  # numpy's name -> struct's


def _number(kind, data):
    """The Python number of a NumPy scalar, which is pickled as its dtype and its bytes."""
    code = NUMBER_CODES.get(kind.code) if isinstance(kind, _NumberType) else None
    if code is None:
        raise ValueError('a NumPy scalar that is not a number')
    return struct.unpack(kind.order + code, data)[0]


HARMLESS = [
    argparse.Namespace,
    (_empty, 'collections.defaultdict'),
    (NotRead, 'numpy.ndarray'),
    *((NotRead, f'builtins.{name}') for name in ('int', 'float', 'str', 'list', 'dict', 'bool')),
    *(
        (item, f'numpy.{package}.multiarray.{name}')
        for package in ('core', '_core')
        for item, name in ((_number, 'scalar'), (NotRead, '_reconstruct'))
    ),
    (_NumberType, 'numpy.dtype'),
    *(
        (pathlib.PurePosixPath, f'{module}.{name}')
        for module in ('pathlib', 'pathlib._local')
        for name in ('PurePosixPath', 'PosixPath')
    ),
    *(
        (pathlib.PureWindowsPath, f'{module}.{name}')
        for module in ('pathlib', 'pathlib._local')
        for name in ('PureWindowsPath', 'WindowsPath')
    ),
]


def tensors_of(state, where, size):
    """The tensors of a state dict, checked not to be larger than the file.

    Args:
        state: what the file has in the place of a state dict.
        where: the file, for messages.
        size: its size in bytes.
    Returns:
        dict name -> tensor, plain, dense and without gradient.
    Raises:
        CheckpointError: not a dict of text -> such tensors.
    """
    expect(state, {str: object}, f'{where}: a state dict', CheckpointError)
    tensors, total = {}, 0
    for name, value in state.items():
        if type(value) not in (torch.Tensor, torch.nn.Parameter):
            raise CheckpointError(
                f'{where}: the weight {shown(name)} is {shown(value)}; expected a tensor'
            )
        if (
            value.layout != torch.strided
            or value.is_quantized
            or value.is_nested
            or value.device.type != 'cpu'
        ):
            raise CheckpointError(f'{where}: the weight {shown(name)} is not a plain dense tensor')
        if value.is_complex():
            raise CheckpointError(
                f'{where}: the weight {shown(name)} is {value.dtype}; expected real numbers'
            )
        total += value.numel() * value.element_size()
        # With stride 0, a tensor of any size can be stored as one number.
        if total > 4 * size + 2**16:
            raise CheckpointError(
                f'{where} is damaged: the weight {shown(name)} of shape {list(value.shape)} is'
                f' larger than the file; {AGAIN}'
            )
        tensors[name] = value.detach()
    return tensors


def refuse_whole_numbers(model, where):
    """Raise CheckpointError for a weight of integers or booleans where floats are needed."""
    for name, value in model.items():
        if value.dtype not in FLOATS and not name.endswith(COUNTS):
            raise CheckpointError(
                f'{where}: the weight {shown(name)} is {value.dtype}; expected floats'
            )


def refuse_absurd_sizes(architecture, numbers, path, name='architecture'):
    """Raise CheckpointError for a size too large for a model of `numbers` numbers."""
    for key, value in (
        architecture.items() if isinstance(architecture, dict) else enumerate(architecture)
    ):
        if isinstance(value, dict | list):
            refuse_absurd_sizes(value, numbers, path, f'{name}.{key}')
        elif isinstance(value, int):
            most = MOST_LAYERS if 'layers' in str(key) else max(numbers, LARGEST_SIZE)
            if not -most <= value <= most:
                raise CheckpointError(
                    f"{path}: key '{name}.{key}' is {value:,}; its weights are {numbers:,} numbers"
                )
