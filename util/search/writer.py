"""Changes to an index: made, added to, removed from; each change whole or not at all."""

import json
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from basic.errors import DataError, listing
from basic.files import locked, remove_leftovers, write_atomically
from util.search.exact import NpyVectors
from util.search.index import Index, Part
from util.search.manifest import ITEMS, MANIFEST, OWN_FILE, form_of, new_manifest, read_manifest
from util.search.manifest import write_manifest
from util.search.milvus import MilvusVectors, clean_uri

LOCK = '.lock'


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
            part = Part(name, {key: [] for key in form_of(name)}, store, fused)
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
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / LOCK):
        check_new(folder)
        if not (folder / MANIFEST).exists():
            write_manifest(folder, new_manifest(model, source, uri, kind))
        index = Index(folder)
        try:
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


def check_new(folder):
    """Raise DataError unless an index can be made, or finished, in a folder."""
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise DataError(f'--output {folder} is a file; expected a new folder')
    if not folder.exists():
        return
    if (folder / MANIFEST).exists():
        if read_manifest(folder)['complete']:
            raise DataError(
                f'{folder} is an index already: add to it with `add`, or name a new folder'
            )
        return
    own = (LOCK, f'.{MANIFEST}.')  # and what a killed process has left
    others = [path.name for path in folder.iterdir() if not path.name.startswith(own)]
    if others:
        raise DataError(f'--output {folder} is not empty ({listing(folder)}): name a new folder')


def _place(milvus):
    return f'milvus:{milvus["uri"]} ({milvus["kind"]})' if milvus else 'of files'
