"""The index folder: vectors, what they belong to, and a manifest.

    manifest.json             model, weight w, score ranges, and the files of each part
    items.<n>.json            number, id and file of each visual item
    items.<n>.npy             their vectors, float32 (N, E), row i belonging to item i
    captions_<lang>.<n>.json  number, visual item, text and translation of each caption
    captions_<lang>.<n>.npy   their vectors

The manifest is written last and atomically, so an index is at any time the old or the new one,
whatever is killed. It names the files that count; others are removed by the next process that
writes. A number is never used a second time. Vectors can also lie in Milvus, see
util.search.milvus.
"""

from pathlib import Path

import numpy as np

from basic.errors import DataError, first_five
from basic.foreign import parse_json, read_text
from basic.ids import did_you_mean
from util.search.exact import NpyVectors
from util.search.manifest import CAPTIONS, ITEMS, MANIFEST, check_columns, form_of, read_manifest
from util.search.milvus import MilvusVectors, connect


class Part:
    """The items of an index, or its captions in one language.

    Attributes:
        count: N.
        numbers: (N,) int64, rising.
        columns: dict of lists, see COLUMNS.
        fused: whether the captions' vectors are of both branches.
    """

    def __init__(self, name, columns, vectors, fused):
        self.name, self.columns, self._vectors, self.fused = name, columns, vectors, fused
        self.numbers = np.array(columns['number'], dtype=np.int64)
        self.count = len(self.numbers)

    def search(self, queries, k, memory):
        """For each query (Q, E) the rows and the scores of the k best, see `exact.NpyVectors`."""
        return self._vectors.search(queries, min(k, max(self.count, 1)), self.numbers, memory)

    def vectors(self, rows):
        """The vectors (n, E) of some rows."""
        store = self._vectors
        return store.take(self.numbers[rows] if isinstance(store, MilvusVectors) else rows)

    def row_of(self, number):
        """The row of a number, or None."""
        row = int(np.searchsorted(self.numbers, number))
        return row if row < self.count and self.numbers[row] == number else None


class Index:
    """An index folder, open for reading; `util.search.writer.writing` opens it for changes.

    Args:
        folder: of the index.
    Attributes:
        manifest: see FORM.
        parts: dict name -> Part: items, and captions_<lang> for each language that has captions.
    Raises:
        DataError: no index, or a damaged one.
    """

    def __init__(self, folder):
        self.folder = Path(folder)
        self._client = None
        self.load()

    def load(self):
        """Read the manifest and what it names."""
        for last in (False, False, True):
            self._state = _state(self.folder / MANIFEST)
            self.manifest = read_manifest(self.folder)
            try:
                self.parts = {name: self._part(name) for name in self.manifest['parts']}
                return
            except FileNotFoundError:  # replaced by another process since the manifest was read
                if last:
                    raise

    @property
    def changed(self):
        """Whether another process has changed the index since it was loaded."""
        return _state(self.folder / MANIFEST) != self._state

    @property
    def items(self):
        """The Part of the visual items."""
        return self.parts[ITEMS]

    def captions(self, lang):
        """The Part of the captions in a language, or None."""
        return self.parts.get(CAPTIONS + lang)

    @property
    def caption_languages(self):
        """The languages that have captions."""
        return [name.removeprefix(CAPTIONS) for name in self.parts if name != ITEMS]

    def item_rows(self):
        """dict id -> row of the items."""
        return {name: row for row, name in enumerate(self.items.columns['id'])}

    def rows_of_ids(self, ids):
        """The items' rows of these ids; DataError if one is not in the index."""
        row = self.item_rows()
        absent = [name for name in ids if name not in row]
        if absent:
            raise DataError(
                f'{self.folder} has no item {first_five(absent)}'
                f'{did_you_mean(absent, self.items.columns["id"])}'
            )
        return [row[name] for name in ids]

    def check_complete(self):
        """Raise DataError if the command that makes the index has not finished."""
        if not self.manifest['complete']:
            raise DataError(
                f'{self.folder} is not complete: give the command that made it again, it continues'
                ' (--skip-bad omits files that cannot be read)'
            )

    def check_model(self, model):
        """Raise DataError unless the index was made with this model (a Retriever)."""
        made = self.manifest['model']
        if model.fingerprint != made['fingerprint']:
            raise DataError(
                f'{self.folder} was made with model {made["name"]} (fingerprint'
                f' {made["fingerprint"]}), but this is {model.name} ({model.fingerprint}): use'
                ' that model (--model), or make the index again'
            )

    # ------------------------------------------------------------------------------- its files

    def _part(self, name):
        entry = self.manifest['parts'][name]
        path = self.folder / entry['records']
        form = form_of(name)
        columns = parse_json(read_text(path), form, path)
        check_columns(columns, form, entry, self.manifest['next'], path)
        return Part(name, columns, self._store(entry), entry['fused'])

    def _store(self, entry):
        count, dim, milvus = entry['count'], self.manifest['dim'], self.manifest.get('milvus')
        if milvus:
            return MilvusVectors(self.client(), entry['vectors'], count, dim, milvus['kind'])
        return NpyVectors(self.folder / entry['vectors'], count, dim)

    def client(self):
        """The connection to Milvus."""
        if self._client is None:
            self._client = connect(self.manifest['milvus']['uri'])
        return self._client

    def close(self):
        """Close the connection to Milvus."""
        if self._client is not None:
            self._client.close()
            self._client = None


def _state(path):
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
