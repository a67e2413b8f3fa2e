"""Vectors in Milvus: an embedded file.db, a server or a cluster, by its URI.

The collection has the items' numbers and their vectors. Ids, files and captions stay in the index
folder, so an index is as its manifest says, whatever a killed process has left in the collection.
"""

import logging
import os
import secrets
from pathlib import Path

import numpy as np

from basic.errors import DataError
from util.search.exact import settle

KINDS = {'FLAT': {}, 'HNSW': {'M': 32, 'efConstruction': 400}}
ROWS = 2000  # of an insertion: 12 MiB for E = 1,536; Milvus takes at most 64 MiB
MARGIN = 16  # results beyond k, among which equal scores are sorted
MOST = 16_384  # results of a search, at most: Milvus's own limit
TOKEN = 'MILVUS_TOKEN'  # of the environment: 'user:password', or an API key


class MilvusVectors:
    """The vectors of one part of an index in a collection of Milvus.

    Args:
        client: pymilvus.MilvusClient, from `connect`.
        name: of the collection; count: vectors that count; dim: E.
        kind: FLAT (exact) or HNSW (approximate).
    """

    def __init__(self, client, name, count, dim, kind='FLAT'):
        self.client, self.name, self.count, self.dim, self.kind = client, name, count, dim, kind
        self._loaded = False

    @staticmethod
    def create(client, part, dim, kind='FLAT'):
        """A new, empty collection."""
        from pymilvus import DataType

        name = f'nrccr_{part}_{secrets.token_hex(6)}'
        schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field('number', DataType.INT64, is_primary=True)
        schema.add_field('vector', DataType.FLOAT_VECTOR, dim=dim)
        index = client.prepare_index_params()
        index.add_index('vector', index_type=kind, metric_type='IP', params=KINDS[kind])
        # Strong: a search sees all that was written before it.
        made = MilvusVectors(client, name, 0, dim, kind)
        made._call(
            'create_collection', schema=schema, index_params=index, consistency_level='Strong'
        )
        return made

    def append(self, numbers, vectors):
        """Write vectors (n, E) under their numbers (n,), over those of a killed addition."""
        for start in range(0, len(numbers), ROWS):
            some = slice(start, start + ROWS)
            rows = [
                {'number': int(number), 'vector': vector}
                for number, vector in zip(numbers[some], np.asarray(vectors[some], np.float32))
            ]
            self._ask('upsert', rows)
        self.count += len(numbers)

    def remove(self, numbers):
        """Delete vectors; numbers that do not exist are no error."""
        for start in range(0, len(numbers), ROWS):
            self._ask('delete', ids=[int(n) for n in numbers[start : start + ROWS]])

    def take(self, numbers):
        """The vectors (n, E) of these numbers.

        Raises:
            DataError: the collection lacks one.
        """
        found = {}
        for start in range(0, len(numbers), ROWS):
            ids = [int(number) for number in numbers[start : start + ROWS]]
            for row in self._ask('get', ids=ids, output_fields=['vector']):
                found[row['number']] = row['vector']
        absent = [number for number in numbers if int(number) not in found]
        if absent:
            raise DataError(
                f"the Milvus collection '{self.name}' lacks {len(absent):,} vectors of the index:"
                ' make the index again'
            )
        vectors = [found[int(number)] for number in numbers]
        return np.asarray(vectors, dtype=np.float32).reshape(len(numbers), self.dim)

    def search(self, queries, k, numbers, memory=None):
        """The k best vectors of each query, as `exact.NpyVectors.search` gives them.

        With FLAT they are the same; with HNSW nearly.

        Args:
            numbers: (N,) int64, rising: row i of the part has this number. Others in the
                collection, which killed processes have left, are passed over.
        """
        if not len(queries) or not len(numbers):
            return [(np.zeros(0, np.int64), np.zeros(0))] * len(queries)
        k, limit = min(k, len(numbers)), min(k + MARGIN, MOST)
        while True:
            answers = self._search(queries, limit)
            found = [_known(answer, numbers) for answer in answers]
            full = all(len(rows) >= k for rows in found)
            if full or limit == MOST or all(len(answer) < limit for answer in answers):
                break
            limit = min(2 * limit, MOST)
        return [
            settle(query, rows, self.take(numbers[rows]), k) for query, rows in zip(queries, found)
        ]

    def _search(self, queries, limit):
        params = {'ef': max(128, 2 * limit)} if self.kind == 'HNSW' else {}
        return self._ask(
            'search',
            data=[query.tolist() for query in np.asarray(queries, np.float32)],
            limit=limit,
            search_params={'metric_type': 'IP', 'params': params},
        )

    def _ask(self, method, *args, **options):
        if not self._loaded:  # after a start, an embedded file's collections are not
            self._call('load_collection')
            self._loaded = True
        return self._call(method, *args, **options)

    def _call(self, method, *args, **options):
        from pymilvus import MilvusException

        try:
            return getattr(self.client, method)(self.name, *args, **options)
        except MilvusException as error:
            reason = ' '.join(str(error).split())[:300]
            raise DataError(f"Milvus, collection '{self.name}': {method}: {reason}") from None


def _known(answer, numbers):
    """The rows (n,) of the hits that the index knows."""
    found = np.array([hit['number'] for hit in answer], dtype=np.int64)
    rows = np.minimum(np.searchsorted(numbers, found), len(numbers) - 1)
    return rows[numbers[rows] == found]


def clean_uri(text):
    """The URI of `milvus:URI`, an embedded file's path made absolute.

    Raises:
        DataError: neither a path that ends in .db, nor an http(s) address.
    """
    uri = text.removeprefix('milvus:')
    if uri.startswith(('http://', 'https://')) and '@' not in uri:
        return uri
    if '://' not in uri and uri.endswith('.db'):
        return str(Path(uri).expanduser().absolute())
    raise DataError(
        f'--index {text}: expected milvus:FILE.db or milvus:http://HOST:PORT (the password goes'
        f' into the environment variable {TOKEN})'
    )


def connect(uri, seconds=20):
    """A pymilvus.MilvusClient for a URI of `clean_uri`, that answers within so many seconds.

    Raises:
        DataError: pymilvus is missing, nothing answers, or another process uses the file.
    """
    os.environ.setdefault('GRPC_VERBOSITY', 'NONE')
    for name in ('pymilvus', 'milvus_lite', 'grpc'):  # they log what is raised, too
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        from pymilvus import MilvusClient
    except ImportError as error:
        raise DataError(
            f'util.search keeps vectors in Milvus with pymilvus ({error}): pip install -r'
            ' util/requirements-search.txt'
        ) from None
    try:
        return MilvusClient(uri, token=os.environ.get(TOKEN, ''), timeout=seconds)
    except Exception as error:  # of many kinds: of grpc, of milvus-lite, of the system
        reason = ' '.join(str(error).split())[:300]
        advice = (
            'one process at a time can use the file: is there a server, or another query?'
            if uri.endswith('.db')
            else 'is a server running there?'
        )
        raise DataError(f'Milvus at {uri} does not answer ({reason}); {advice}') from None
