"""Fill an index: encode what is not in it yet."""

import time
from dataclasses import dataclass, field

import numpy as np

from basic.errors import DataError, first_five
from basic.logger import progress
from util.search.manifest import CAPTIONS, ITEMS
from util.search.items import of_known

CHUNK = 256  # items, or captions, that are encoded at a time
COMMIT_ROWS, COMMIT_SECONDS = 8192, 60  # what a kill can lose, at most


@dataclass
class Added:
    """What `fill` did."""

    items: int = 0
    known: int = 0  # items that were in the index before
    captions: int = 0
    omitted: int = 0  # captions of items that are not in the index
    bad: list[str] = field(default_factory=list)  # why items could not be read


def fill(writer, model, source, *, skip_bad=False):
    """Add the items and captions of a source that are not in the index yet.

    They are written in parts: after a kill, the same command adds the rest.

    Args:
        writer: util.search.writer.Writer; model: Retriever; source: items.Source.
        skip_bad: omit items that cannot be read.
    Returns:
        Added.
    Raises:
        DataError: items that cannot be read; all others have been added.
    """
    added = Added()
    _add_items(writer, source, added)
    if added.bad and not skip_bad:
        raise DataError(
            f'{len(added.bad):,} of {len(source.ids):,} items cannot be read:'
            f' {first_five(added.bad)}; repair them, or omit them with --skip-bad (the others are'
            ' in the index: the same command continues)'
        )
    known = set(writer.index.items.columns['id']) if ITEMS in writer.index.parts else set()
    if not known:
        raise DataError(f'nothing to index in {source.where}')
    for captions in source.captions:
        kept, omitted = of_known(captions, known, source.where)
        added.omitted += omitted
        _add_captions(writer, model, kept, added)
    writer.finish()
    return added


def _add_items(writer, source, added):
    part = writer.index.parts.get(ITEMS)
    there = set(part.columns['id']) if part else set()
    new = [name for name in source.ids if name not in there]
    added.known = len(source.ids) - len(new)

    def add(vectors, names):
        writer.append(ITEMS, vectors, {'id': names, 'file': [source.file(name) for name in names]})
        added.items += len(names)

    with _Pending(add) as pending:
        for names in progress(_chunks(new), 'encoding items, part'):
            for vectors, readable in _encoded(source, names, added.bad):
                pending.add(vectors, readable)


def _add_captions(writer, model, captions, added):
    name = CAPTIONS + captions.lang
    part, fused = writer.index.parts.get(name), captions.translations is not None
    if part and part.count and part.fused != fused:
        raise DataError(
            f'the captions in the index ({captions.lang}) have {"" if part.fused else "no "}'
            f'translations, but these have {"" if fused else "none"}: '
            'give both, or neither (--translations)'
        )
    seen = set(zip(part.columns['item'], part.columns['text'])) if part else set()
    rows = []
    for row, key in enumerate(zip(captions.items, captions.texts)):
        if key not in seen:
            rows.append(row)
            seen.add(key)

    def add(vectors, some):
        columns = {
            'item': [captions.items[row] for row in some],
            'text': [captions.texts[row] for row in some],
            'translation': [captions.translations[row] if fused else '' for row in some],
        }
        writer.append(name, vectors, columns, fused=fused)
        added.captions += len(some)

    with _Pending(add) as pending:
        for some in progress(_chunks(rows), f'encoding captions ({captions.lang}), part'):
            texts = [captions.texts[row] for row in some]
            if fused:
                english = [captions.translations[row] for row in some]
                vectors = model.query(texts, english, lang=captions.lang)
            else:
                vectors = model.query(texts, lang=captions.lang)
            pending.add(vectors.numpy(), some)


class _Pending:
    """Collects vectors and what they belong to, and adds them in large parts.

    Args:
        write: function of (vectors (n, E), list of n).
    """

    def __init__(self, write):
        self.write, self.vectors, self.names = write, [], []
        self.since = time.monotonic()

    def add(self, vectors, names):
        self.vectors.append(vectors)
        self.names += names
        late = time.monotonic() - self.since > COMMIT_SECONDS
        if late or len(self.names) >= COMMIT_ROWS:
            self.flush()

    def flush(self):
        if self.names:
            self.write(np.concatenate(self.vectors), self.names)
        self.vectors, self.names, self.since = [], [], time.monotonic()

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if kind is None:
            self.flush()


def _encoded(source, names, bad):
    """Yield (vectors, names) of readable items; `bad` gets the reasons of the others."""
    try:
        yield source.encode(names).numpy(), names
    except DataError as error:
        if len(names) == 1:
            bad.append(str(error))
            return
        half = len(names) // 2
        for some in (names[:half], names[half:]):
            yield from _encoded(source, some, bad)


def _chunks(items):
    return [items[start : start + CHUNK] for start in range(0, len(items), CHUNK)]
