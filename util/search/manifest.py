"""The manifest of an index, and the records beside its vectors: their forms, written and checked.

A manifest may come from a stranger: it is read as plain data, and names files of its folder only.
"""

import json
import re
from pathlib import Path

import numpy as np

from basic.errors import DataError, listing
from basic.files import write_atomically
from basic.foreign import expect, parse_json, read_text, shown

FORMAT = 'nrccr-index-1'
MANIFEST = 'manifest.json'
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


def read_manifest(folder):
    """The manifest of an index, see FORM; DataError if there is none, or a damaged one."""
    path = Path(folder) / MANIFEST
    if not path.is_file():
        there = path.parent.is_dir()
        reason = f'no {MANIFEST} among {listing(folder)}' if there else 'no such folder'
        raise DataError(f'{folder} is no index ({reason}): `python -m util.search index` makes one')
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


def new_manifest(model, source, uri, kind):
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


def check_columns(columns, form, entry, following, path):
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


def form_of(name):
    """The form of the records of a part, see COLUMNS."""
    return COLUMNS['items' if name == ITEMS else 'captions']


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
