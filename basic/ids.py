"""Ids of visual items, in one form everywhere, and the text files that have them.

In captions, id lists and features, an id is a file name without a final .jpg or .mp4 and without
white space. Everything else counts: names with another ending, case or Unicode form are different
ids. If an id is missing, `did_you_mean` suggests a similar one.
"""

import codecs
import difflib
import re
import unicodedata
from itertools import islice
from pathlib import Path

from basic.errors import DataError, first_five

IMAGE_ENDINGS = ('.jpg', '.jpeg', '.png', '.webp', '.bmp', '.gif', '.tif', '.tiff')
ENDINGS = (*IMAGE_ENDINGS, '.mp4', '.avi', '.webm', '.mkv', '.mov', '.flv', '.npy')
# Byte order marks. UTF-32's come first, because they begin with UTF-16's.
MARKS = {
    codecs.BOM_UTF32_LE: 'UTF-32',
    codecs.BOM_UTF32_BE: 'UTF-32',
    codecs.BOM_UTF16_LE: 'UTF-16',
    codecs.BOM_UTF16_BE: 'UTF-16',
}
JOINERS = '\u200c\u200d'  # invisible, but part of words in Persian and Indic scripts


def visual_id(name):
    """A visual item's id: its name without a final .jpg or .mp4."""
    return name[:-4] if name.endswith(('.jpg', '.mp4')) else name


def read_ids(path):
    """The ids of an id list: one per line, without a final .jpg or .mp4.

    Raises:
        DataError: an empty file or line, white space in an id, bytes that are not UTF-8, or a
            duplicate id.
    """
    ids = []
    for number, line in lines_of(read_bytes(path).rstrip()):
        try:
            ids.append(visual_id(line.decode('utf-8').strip()))
        except UnicodeDecodeError:
            raise DataError(
                f'{path}:{number}: {line[:60]!r} is not UTF-8; convert the file, for '
                'example with iconv -f THEIRS -t utf-8'
            ) from None
        if not ids[-1]:
            raise DataError(f'{path}:{number}: an empty line; expected one id per line')
        if any(map(str.isspace, ids[-1])):
            raise DataError(
                f'{path}:{number}: white space in {ids[-1][:60]!r}; expected one id per line, '
                'without white space'
            )
    if len(set(ids)) != len(ids):
        again = repeated(ids)
        line = ids.index(again[0], ids.index(again[0]) + 1) + 1
        raise DataError(
            f'{path}:{line}: duplicate ids: {first_five(again)}; remove the repeated lines, and '
            'their rows from the features'
        )
    return ids


def repeated(ids):
    """The duplicate ids of a list, each once, in the order of their second occurrence."""
    seen, again = set(), {}
    for name in ids:
        if name in seen:
            again[name] = True
        seen.add(name)
    return list(again)


# --------------------------------------------------------------------------------------- text files


def read_bytes(path):
    """The bytes of a text file, without the byte order mark that some editors write.

    Raises:
        DataError: the file is UTF-16 or UTF-32.
    """
    data = Path(path).read_bytes()
    found = next((name for mark, name in MARKS.items() if data.startswith(mark)), None)
    if found is None and b'\0' in data[:1000]:
        found = 'UTF-16 without a byte order mark, or not text'
    if found:
        raise DataError(
            f'{path}: the file is {found}; expected UTF-8: convert it, for example '
            f'with iconv -f {found[:6]} -t utf-8'
        )
    return data.removeprefix(codecs.BOM_UTF8)


def lines_of(data):
    r"""Yield (number, line) of a text file's bytes, without line endings.

    A line ends with \n or \r\n, or in a file without \n with \r. Bytes are split instead of text,
    because str.splitlines also splits at U+2028 and others, which may occur in a caption.
    """
    for number, line in enumerate(data.split(b'\n' if b'\n' in data else b'\r'), start=1):
        yield number, line.removesuffix(b'\r')


def hidden(name):
    """The first invisible character of an id, such as a zero-width space, or None."""
    return next((c for c in name if not c.isprintable() and c not in JOINERS), None)


# ---------------------------------------------------------------------------------- the nearest id


def did_you_mean(missing, known, *, sample=2000):
    """A suggestion for a message about missing ids; '' if no known id is similar.

    Args:
        missing: list of ids.
        known: the ids that exist.
        sample: how many ids of `missing`, and of `known` in the slow comparison, are tried.
    Returns:
        str, such as " (did you mean 'v0' for 'v0.avi'? They differ in ending)"
    """
    alike = {}
    for name in islice(known, 100 * sample):
        alike.setdefault(_letters(name), name)
    for name in missing[:sample]:
        found = alike.get(_letters(name))
        if found:
            return _question(found, name)
    some = list(alike)[:sample]
    numbers = [_number(alike[letters]) for letters in some]
    for name in missing[:5]:
        # Numbered ids are all similar: suggest only one with the same last number.
        of_this = [letters for letters, number in zip(some, numbers) if number == _number(name)]
        near = difflib.get_close_matches(_letters(name), of_this, n=1)
        if near:
            return _question(alike[near[0]], name)
    return ''


def _question(found, name):
    endings = {Path(each).suffix.lower() for each in (found, name)}
    if unicodedata.normalize('NFC', found) == unicodedata.normalize('NFC', name):
        found, name, how = ascii(found), ascii(name), 'Unicode form: the letters look the same'
    else:
        how = 'case' if found.casefold() == name.casefold() else 'spelling'
        if len(endings) > 1 and endings & {*ENDINGS}:
            how = 'ending'
        found, name = repr(found), repr(name)
    return f' (did you mean {found} for {name}? They differ in {how})'


def _letters(name):
    """An id's letters and digits, regardless of folder, ending, case and Unicode form."""
    return ''.join(filter(str.isalnum, _stem(name))) or name


def _number(name):
    numbers = re.findall(r'\d+', _stem(name))
    return numbers[-1].lstrip('0') if numbers else ''


def _stem(name):
    name = re.split(r'[/\\]', unicodedata.normalize('NFKC', name).casefold())[-1]
    while name.endswith(ENDINGS):
        name = name.rpartition('.')[0]
    return name
