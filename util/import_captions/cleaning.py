"""Captions as single lines of plain text, and ids without white space."""

import html
import re
from collections import Counter

from basic.errors import DataError
from basic.ids import JOINERS, visual_id
from util.check_captions import ENTITY

BREAK = re.compile('[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]')
CONTROL = re.compile('[\x00-\x08\x0e-\x1b\x1f\x7f-\x84\x86-\x9f]')


def clean(text, counts):
    """A caption as one line: no line breaks, HTML entities, byte order marks, control characters.

    Entities that were escaped twice (`&amp;quot;`) are resolved too. Runs of white space become one
    space.

    Args:
        text: the caption.
        counts: Counter of captions by what was removed from them; it is updated.
    """
    found, plain = [], text.strip()
    for _ in range(3):
        if not ENTITY.search(plain):
            break
        plain = ENTITY.sub(lambda match: html.unescape(match[0]), plain)
    if plain != text.strip():
        found.append('HTML entities')
    if '\ufeff' in plain:
        found.append('byte order marks')
        plain = plain.replace('\ufeff', '')
    if BREAK.search(plain.strip()):
        found.append('line breaks')
        plain = BREAK.sub(' ', plain)
    if CONTROL.search(plain):
        found.append('control characters')
        plain = CONTROL.sub('', plain)
    counts.update(found)
    return ' '.join(plain.split())


class Ids:
    """Makes ids of the names in a source, and remembers them.

    An id is a name without folders and without a final .jpg or .mp4. White space and '#', which end
    an id in a caption file, and invisible characters become '_'.

    Args:
        keep_folders: the folders become part of the id: a/b.jpg is a_b.
    Attributes:
        names: dict id -> the name that it was made of.
        counts: Counter of ids that differ from their names, by the reason.
    """

    def __init__(self, keep_folders=False):
        self.keep_folders, self.names, self.counts = keep_folders, {}, Counter()
        self._known = {}  # an item is named once per caption

    def of(self, name, where):
        """The id of a name; DataError if there is none, or another name has the same id."""
        if name in self._known:
            return self._known[name]
        given, name = name, name.strip().removeprefix('./').strip('/\\')
        parts = re.split(r'[/\\]', name)
        stem = visual_id('_'.join(parts) if self.keep_folders else parts[-1])
        made = ''.join(c if c.isprintable() or c in JOINERS else '_' for c in stem)
        made = re.sub(r'[\s#]+', '_', made)
        if not made.strip('._'):
            raise DataError(
                f'{where}: no id in {name[:60]!r}; expected the name of an image or video'
            )
        new = made not in self.names
        other = self.names.setdefault(made, name)
        if visual_id(other) != visual_id(name):
            advice = '' if self.keep_folders else ', or give --keep-folders'
            raise DataError(
                f"{where}: {name!r} and {other!r} would both have the id '{made}': rename one"
                + advice * (len(parts) > 1)
            )
        if new and made != stem:
            self.counts["ids: white space or '#' became '_'"] += 1
        self._known[given] = made
        return made
