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

import json
import re
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from basic.errors import DataError, first_five, listing
from basic.files import locked, remove_leftovers, write_atomically
from basic.foreign import expect, parse_json, read_text, shown
from basic.ids import did_you_mean
from util.search.exact import NpyVectors
from util.search.milvus import MilvusVectors, clean_uri, connect

FORMAT = 'nrccr-index-1'
MANIFEST, LOCK = 'manifest.json', '.lock'
ITEMS, CAPTIONS = 'items', 'captions_'
LONGEST = 1_000_000  # width of the common space, at most
FORM = {
    'format': str,
    'model': {'source': str, 'name': str, 'fingerprint': str, 'kind': str, 'languages': [str]},
    'dim': int,
    'weight': float,
    'ranges': {str: {'en': [float], 'tgt': [float]}},
    'milvus': ({'uri': str, 'kind': str}, None),
    'complete': bool,
    'next': int,
    'generation': int,
    'parts': {
        str: {'count': int, 'records': str, 'vectors': str, 'fused': bool, 'dropped': ([int], None)}
    },
}
COLUMNS = {
    'items': {'number': [int], 'id': [str], 'file': [str]},
    'captions': {'number': [int], 'item': [str], 'text': [str], 'translation': [str]},
}
OWN_FILE = re.compile(r'(items|captions_[\w-]{1,20})\.\d{1,15}\.(json|npy)')


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
    """An index folder, open for reading; `writing` opens it for changes.

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
        form = COLUMNS['items' if name == ITEMS else 'captions']
        columns = parse_json(read_text(path), form, path)
        _check_columns(columns, form, entry, self.manifest['next'], path)
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


class Writer:
    """Changes an index; from `writing` or `creating`, which hold its lock."""

    def __init__(self, index):
        self.index, self.folder = index, index.folder
        self.manifest = index.manifest
        self._remove_strays()

    def append(self, name, vectors, columns, *, fused=False):
        """Add vectors and what they belong to; all or nothing.

        Args:
            name: of the part; vectors: (n, E) float32.
            columns: dict of lists as COLUMNS has, without the numbers.
            fused: whether the vectors are of both text branches.
        """
        vectors = np.asarray(vectors, dtype=np.float32)
        if not np.isfinite(vectors).all():
            raise DataError('the model gave NaN or infinity for some of the items: is it trained?')
        first = self.manifest['next']
        numbers = list(range(first, first + len(vectors)))
        part, entry = self.index.parts.get(name), self.manifest['parts'].get(name)
        if entry is None:
            store, entry = self._new_store(name)
            part = Part(name, {key: [] for key in _form(name)}, store, fused)
        store = part._vectors
        store.append(numbers, vectors)
        joined = {
            key: [*old, *(numbers if key == 'number' else columns[key])]
            for key, old in part.columns.items()
        }
        entry = {
            **entry,
            'count': store.count,
            'records': self._write_records(name, joined),
            'fused': fused,
        }
        self._commit({name: entry}, first + len(vectors))

    def remove(self, rows):
        """Remove items, by their rows, and their captions; all or nothing."""
        gone = {self.index.items.columns['id'][row] for row in rows}
        entries, dropped = {}, []
        for name, part in self.index.parts.items():
            ids = part.columns['id' if name == ITEMS else 'item']
            kept = np.flatnonzero([each not in gone for each in ids])
            if len(kept) < part.count:
                entries[name] = self._kept(name, part, kept)
                numbers = np.delete(part.numbers, kept)
                dropped.append((name, [int(number) for number in numbers]))
        if self.manifest.get('milvus'):  # if this process is killed, the next one deletes them
            for name, numbers in dropped:
                entries[name]['dropped'] = numbers
        self._commit(entries, self.manifest['next'])
        self._remove_strays()

    def finish(self):
        """Mark the index as complete."""
        if not self.manifest['complete']:
            self._commit({}, self.manifest['next'], complete=True)

    # ---------------------------------------------------------------------------------- inside

    def _kept(self, name, part, rows):
        entry = self.manifest['parts'][name]
        columns = {key: [values[row] for row in rows] for key, values in part.columns.items()}
        vectors = entry['vectors']
        if not self.manifest.get('milvus'):
            vectors = self._file(name, 'npy')
            part._vectors.kept(rows, self.folder / vectors)
        return {
            **entry,
            'count': len(rows),
            'records': self._write_records(name, columns),
            'vectors': vectors,
        }

    def _new_store(self, name):
        dim, milvus = self.manifest['dim'], self.manifest.get('milvus')
        if milvus:
            store = MilvusVectors.create(self.index.client(), name, dim, milvus['kind'])
            return store, {'vectors': store.name}
        file = self._file(name, 'npy')
        return NpyVectors.create(self.folder / file, dim), {'vectors': file}

    def _file(self, name, ending):
        return f'{name}.{self.manifest["generation"] + 1}.{ending}'

    def _write_records(self, name, columns):
        file = self._file(name, 'json')
        write_atomically(self.folder / file, json.dumps(columns, ensure_ascii=False) + '\n')
        return file

    def _commit(self, entries, number, complete=None):
        old = self.manifest
        manifest = {
            **old,
            'next': number,
            'generation': old['generation'] + 1,
            'parts': {**old['parts'], **entries},
            'complete': old['complete'] if complete is None else complete,
        }
        write_manifest(self.folder, manifest)
        self.index.load()
        self.manifest = self.index.manifest
        self._remove_files()

    def _remove_files(self):
        """Remove the files that no longer count."""
        named = {
            entry[key]
            for entry in self.manifest['parts'].values()
            for key in ('records', 'vectors')
        }
        for path in self.folder.iterdir():
            if OWN_FILE.fullmatch(path.name) and path.name not in named:
                path.unlink()

    def _remove_strays(self):
        """Remove what killed processes have left: files, and vectors in Milvus."""
        for name in (MANIFEST, *(entry['records'] for entry in self.manifest['parts'].values())):
            remove_leftovers(self.folder / name)
        self._remove_files()
        entries = {}
        for name, entry in self.manifest['parts'].items():
            if entry.get('dropped'):
                self.index.parts[name]._vectors.remove(entry['dropped'])
                entries[name] = {**entry, 'dropped': None}
        if entries:
            self._commit(entries, self.manifest['next'])


@contextmanager
def writing(folder):
    """A Writer for an index that exists; Locked if another process changes it."""
    read_manifest(folder)  # before a lock file is made in what is no index
    with locked(Path(folder) / LOCK):
        index = Index(folder)
        try:
            yield Writer(index)
        finally:
            index.close()


@contextmanager
def creating(folder, model, source, *, milvus=None, kind='FLAT'):
    """A Writer for a new index, or for one that the same command did not finish.

    Args:
        folder: is made; it may be empty or have an unfinished index of the same model.
        model: Retriever; source: where it was loaded from, for the manifest.
        milvus: 'milvus:URI', to keep the vectors there; kind: FLAT or HNSW.
    Raises:
        DataError: the folder has something else.
    """
    folder = Path(folder)
    uri = clean_uri(milvus) if milvus else None
    if folder.exists() and not folder.is_dir():
        raise DataError(f'--output {folder} is a file; expected a new folder')
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / LOCK):
        if not (folder / MANIFEST).exists():
            others = [path.name for path in folder.iterdir() if path.name != LOCK]
            others = [name for name in others if not OWN_FILE.fullmatch(name)]
            if [name for name in others if not name.startswith(f'.{MANIFEST}.')]:
                raise DataError(
                    f'--output {folder} is not empty ({listing(folder)}): name a new folder'
                )
            write_manifest(folder, _new_manifest(model, source, uri, kind))
        index = Index(folder)
        try:
            if index.manifest['complete']:
                raise DataError(
                    f'{folder} is an index of {index.items.count:,} items already: add to it with'
                    ' `add`, or name a new folder'
                )
            index.check_model(model)
            asked = uri and {'uri': uri, 'kind': kind}
            if index.manifest.get('milvus') != asked:
                raise DataError(
                    f'{folder} was begun with --index {_place(index.manifest.get("milvus"))}, not'
                    f' {_place(asked)}: give the same, or name a new folder'
                )
            yield Writer(index)
        finally:
            index.close()


def _place(milvus):
    return f'milvus:{milvus["uri"]} ({milvus["kind"]})' if milvus else 'of files'


def _new_manifest(model, source, uri, kind):
    return {
        'format': FORMAT,
        'model': {
            'source': str(source),
            'name': model.name,
            'fingerprint': model.fingerprint,
            'kind': model.kind,
            'languages': list(model.languages),
        },
        'dim': int(model.dim),
        'weight': float(model.weight),
        'ranges': {
            lang: {branch: [float(end) for end in ends] for branch, ends in both.items()}
            for lang, both in model.ranges.items()
        },
        'milvus': {'uri': uri, 'kind': kind} if uri else None,
        'complete': False,
        'next': 0,
        'generation': 0,
        'parts': {},
    }


def read_manifest(folder):
    """The manifest of an index, see FORM; DataError if there is none, or a damaged one."""
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise DataError(
            f'{folder} is no index: it has no {MANIFEST}, but {listing(folder)};'
            ' `python -m util.search index` makes one'
        )
    if path.stat().st_size > 2**26:
        raise DataError(f'{path} is too large to be a manifest: {path.stat().st_size:,} bytes')
    manifest = parse_json(read_text(path), {'format': str}, path)
    if manifest['format'] != FORMAT:
        raise DataError(f'{path}: format {shown(manifest["format"])}; expected {FORMAT!r}')
    expect(manifest, FORM, path)
    if not 0 < manifest['dim'] <= LONGEST or not 0 <= manifest['weight'] <= 1:
        raise DataError(f"{path}: expected 'dim' above 0, and 'weight' from 0 to 1")
    if any(len(ends) != 2 for both in manifest['ranges'].values() for ends in both.values()):
        raise DataError(f"{path}: 'ranges': expected a lowest and a highest score of each branch")
    if (
        not manifest['model']['languages']
        or manifest['complete']
        and ITEMS not in manifest['parts']
    ):
        raise DataError(f'{path}: it has no languages, or no items')
    for name, entry in manifest['parts'].items():
        _check_entry(name, entry, manifest.get('milvus'), path)
    return manifest


def write_manifest(folder, manifest):
    """Write the manifest of an index atomically."""
    text = json.dumps(manifest, indent=2, ensure_ascii=False)
    write_atomically(Path(folder) / MANIFEST, text + '\n')


def _check_entry(name, entry, milvus, path):
    """DataError for a part of the manifest that names anything but files of the index."""
    files = [entry['records'], *([] if milvus else [entry['vectors']])]
    for file in files:
        if not OWN_FILE.fullmatch(file) or not file.startswith(f'{name}.'):
            raise DataError(
                f"{path}: part '{name[:60]}' names {shown(file)}, which is no file of it"
            )
    if milvus and not re.fullmatch(r'\w{1,200}', entry['vectors']):
        raise DataError(f'{path}: {shown(entry["vectors"])} is no name of a Milvus collection')
    if entry['count'] < 0:
        raise DataError(f"{path}: part '{name}' has a negative count")


def _check_columns(columns, form, entry, following, path):
    """DataError unless the columns are as long as the manifest says, and the numbers rise."""
    lengths = {key: len(columns[key]) for key in form}
    if set(lengths.values()) != {entry['count']}:
        raise DataError(
            f'{path}: expected {entry["count"]:,} values of each kind, found {lengths}: the files'
            ' belong to different indexes'
        )
    numbers = np.array(columns['number'], dtype=np.int64)
    if len(numbers) and (
        numbers[0] < 0 or numbers[-1] >= following or (np.diff(numbers) <= 0).any()
    ):
        raise DataError(f'{path}: the numbers do not rise from 0 to below {following:,}')
    if 'id' in columns and len(set(columns['id'])) < entry['count']:
        raise DataError(f'{path}: duplicate ids')


def _form(name):
    return COLUMNS['items' if name == ITEMS else 'captions']


def _state(path):
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
