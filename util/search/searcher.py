"""Queries against an index: texts, images and items of the index itself.

E common space.
"""

from collections import OrderedDict
from typing import NamedTuple

import numpy as np

from basic.errors import DataError
from util.search.exact import MEMORY
from util.search.manifest import CAPTIONS, ITEMS

REMEMBERED = 2000  # encoded texts that are kept: 6 KiB each for E = 1,536
COSINE = 'cosine'


class Text(NamedTuple):
    """A query in words.

    `lang` is one of the model's languages, or en for its English branch. `translation` is the same
    in English, or ''; `weight` is the share w of its branch.
    """

    text: str
    lang: str
    translation: str = ''
    weight: float | None = None


class Hit(NamedTuple):
    """A result: an item, or a caption, of the index."""

    rank: int
    score: float
    row: int  # of the part


class Searcher:
    """An index with its model.

    Args:
        index: util.search.index.Index.
        model: Retriever; None: only items of the index can be searched with.
        memory: MiB for a block of vectors and its scores.
    Raises:
        DataError: another model than that of the index; the index is not complete.
    """

    def __init__(self, index, model=None, memory=MEMORY):
        index.check_complete()
        if model is not None:
            index.check_model(model)
        self.index, self.model, self.memory = index, model, memory
        self._encoded = OrderedDict()  # (branch, text) -> (E,), the last used last
        self._note()

    def refresh(self):
        """Read the index again, if another process has changed it."""
        if self.index.changed:
            self.index.load()
            self._note()

    def _note(self):
        self._row_of = self.index.item_rows()
        self._captions_of = {
            lang: _rows_by_item(self.index.captions(lang)) for lang in self.index.caption_languages
        }

    # -------------------------------------------------------------------------------- vectors

    def check(self, query):
        """Raise DataError for a Text that the model cannot read."""
        languages = (*self.model.languages, 'en')
        if query.lang not in languages:
            raise DataError(
                f"language '{query.lang[:20]}': this model knows {', '.join(languages)}"
            )
        if not query.text.strip():
            raise DataError('the query is empty')
        if query.lang == 'en' and query.translation:
            raise DataError('a query in English needs no translation: omit it')
        if query.weight is not None and not 0 <= query.weight <= 1:
            raise DataError(f'weight {query.weight:g}; expected 0 to 1')

    def texts(self, queries):
        """The vectors (Q, E) of a list of Texts."""
        wanted = {}
        for query in queries:
            wanted['en' if query.lang == 'en' else 'tgt', query.text] = query.lang
            if query.translation:
                wanted['en', query.translation] = 'en'
        self._encode(wanted)
        vectors = [self._vector(query) for query in queries]
        while len(self._encoded) > REMEMBERED:
            self._encoded.popitem(last=False)
        return np.stack(vectors)

    def _encode(self, wanted):
        """Encode the texts that are not remembered: dict (branch, text) -> language."""
        for branch in ('en', 'tgt'):
            new = [key for key in wanted if key[0] == branch and key not in self._encoded]
            if new:
                # All target languages share one branch.
                vectors = self.model.encode_text([text for _, text in new], wanted[new[0]])
                self._encoded.update(zip(new, vectors))
        for key in wanted:
            self._encoded.move_to_end(key)

    def _vector(self, query):
        first = self._encoded['en' if query.lang == 'en' else 'tgt', query.text]
        if not query.translation:
            return first.numpy()
        second = self._encoded['en', query.translation]
        return self.model.fuse(second[None], first[None], query.lang, query.weight)[0].numpy()

    def images(self, images):
        """The vectors (Q, E) of PIL images, or of paths; ValueError if the model reads none."""
        return self.model.encode_images(images).numpy()

    # --------------------------------------------------------------------------------- search

    def find(self, name, vectors, top, offsets=None):
        """The best of a part for each vector (Q, E).

        Args:
            name: items, or captions_<lang>.
            top: results, at most.
            offsets: (Q,), subtracted from the scores.
        Returns:
            list of lists of Hits.
        """
        part = self.index.parts.get(name)
        if part is None or not part.count or not len(vectors):
            return [[] for _ in vectors]
        found = part.search(vectors, top, self.memory)
        offsets = np.zeros(len(vectors)) if offsets is None else offsets
        return [
            [
                Hit(rank, float(score) - float(offset), int(row))
                for rank, (row, score) in enumerate(zip(rows, scores), start=1)
            ]
            for (rows, scores), offset in zip(found, offsets)
        ]

    def by_text(self, queries, top):
        """The best items for each Text."""
        offsets = [self.offset(query) for query in queries]
        return self.find(ITEMS, self.texts(queries), top, offsets)

    def offset(self, query):
        """What turns a score of a fused vector into that of the method, see `fused_offset`."""
        if not query.translation:
            return 0.0
        weight = self.model.weight if query.weight is None else query.weight
        return fused_offset(self.index.manifest['ranges'].get(query.lang), weight)

    def captions_for(self, vectors, lang, top):
        """The best captions in a language for each vector (Q, E) of a visual item."""
        part = self.index.captions(lang)
        offset = 0.0
        if part is not None and part.fused:
            manifest = self.index.manifest
            offset = fused_offset(manifest['ranges'].get(lang), manifest['weight'])
        return self.find(CAPTIONS + lang, vectors, top, [offset] * len(vectors))

    def similar(self, vectors, top, own=None):
        """The items most similar to each vector (Q, E) of a visual item.

        Args:
            own: (Q,), the row of each in the index, which is not a result; None: they are new.
        """
        found = self.find(ITEMS, vectors, top if own is None else top + 1)
        if own is None:
            return found
        others = [[hit for hit in hits if hit.row != row] for hits, row in zip(found, own)]
        return [
            [hit._replace(rank=rank) for rank, hit in enumerate(hits[:top], start=1)]
            for hits in others
        ]

    def scale(self, query):
        """What the scores of a Text are, in words."""
        if not query.translation:
            return COSINE
        weight = self.model.weight if query.weight is None else query.weight
        return f'fused at w = {weight:g}'

    # -------------------------------------------------------------------------- what they are

    def item(self, row):
        """(number, id, file) of an item."""
        columns = self.index.items.columns
        return columns['number'][row], columns['id'][row], columns['file'][row]

    def caption(self, lang, row):
        """(item's id, text, translation) of a caption."""
        columns = self.index.captions(lang).columns
        return columns['item'][row], columns['text'][row], columns['translation'][row]

    def captions_of(self, item, lang):
        """[(text, translation)] of an item's own captions in a language."""
        rows = self._captions_of.get(lang, {}).get(item, ())
        return [self.caption(lang, row)[1:] for row in rows]

    def row_of(self, item):
        """The row of an item's id, or None."""
        return self._row_of.get(item)

    @property
    def default_language(self):
        """The language of captions that are shown if none is asked for."""
        made_for = self.index.manifest['model']['languages']
        return next((lang for lang in made_for if self.index.captions(lang)), made_for[0])


def fused_offset(ranges, weight):
    """The constant by which the inner product with a fused vector exceeds the method's score.

    w * (en - low_en) / range_en + (1 - w) * (tgt - low_tgt) / range_tgt is the inner product with
    w / range_en * en + (1 - w) / range_tgt * tgt, less this. With unknown ranges it is 0.

    Args:
        ranges: {'en': (low, high), 'tgt': (low, high)}, or None.
    """
    if not ranges:
        return 0.0
    shares = {'en': weight, 'tgt': 1 - weight}
    return sum(
        share * low / (high - low if high > low else 1)
        for share, (low, high) in ((shares[branch], ranges[branch]) for branch in shares)
    )


def _rows_by_item(part):
    rows = {}
    for row, item in enumerate(part.columns['item']):
        rows.setdefault(item, []).append(row)
    return rows
