"""A fingerprint of a run's data, by which `--resume` detects other data."""

import hashlib

import numpy as np

LOOKED_AT = 64  # feature rows or image files in the fingerprint, evenly spaced


def data_fingerprint(loaders):
    """Counts and hashes of the splits' ids, tokenised captions and some features.

    Paths and file times are not part of it.

    Args:
        loaders: dict split -> data_provider.TrainLoader or EvalSet.
    Returns:
        dict split -> dict of plain data.
    """
    return {
        split: _of_pairs(loader.dataset) if split == 'train' else _of_eval_set(loader)
        for split, loader in loaders.items()
    }


def changes(before, now):
    """The differences, as a list of texts such as 'train captions: 12 -> 11'."""
    found = []
    for split in sorted(before.keys() | now.keys()):
        old, new = before.get(split, {}), now.get(split, {})
        for name in sorted(old.keys() | new.keys()):
            if old.get(name) != new.get(name):
                counts = isinstance(old.get(name), int) and isinstance(new.get(name), int)
                found.append(
                    f'{split} {name}'
                    + (f': {old[name]:,} -> {new[name]:,}' if counts else ' changed')
                )
    return found


def _of_pairs(dataset):
    return {
        'captions': len(dataset),
        'visual items': len(dataset.visual_ids),
        'ids': _hash(dataset.visual_ids, dataset.visual_of),
        **_of_tokens(dataset.tokens),
        'features': _of_source(dataset.source, dataset.visual_ids),
    }


def _of_eval_set(split):
    return {
        'captions': len(split.caption_ids),
        'visual items': len(split.visual_ids),
        'ids': _hash(split.caption_ids, split.visual_ids, split.visual_of),
        **_of_tokens(split.captions.dataset.tokens),
        'features': _of_source(split.visuals.dataset.source, split.visual_ids),
    }


def _of_tokens(tokens):
    return {
        f'captions of {branch}': _hash(packed.ids, packed.offsets)
        for branch, packed in tokens.items()
    }


def _of_source(source, ids):
    """The hash of a visual source: shape and some rows of features, or sizes of some images."""
    features = getattr(source, 'features', None)
    if features is not None:
        rows = _spread(len(features))
        return _hash(str((features.shape, features.dtype.str)), np.asarray(features[rows]))
    images = getattr(source, 'images', source)  # of cached images, those they were made from
    sizes = (
        [images.path(ids[i]).stat().st_size for i in _spread(len(ids))]
        if hasattr(images, 'path')
        else []
    )
    return _hash(np.array(sizes, dtype=np.int64))


def _spread(count):
    return np.unique(np.linspace(0, max(count - 1, 0), min(count, LOOKED_AT)).astype(np.int64))


def _hash(*parts):
    found = hashlib.blake2b(digest_size=16)
    for part in parts:
        if isinstance(part, np.ndarray):
            found.update(np.ascontiguousarray(part))
        elif isinstance(part, str):
            found.update(part.encode('utf-8', 'surrogatepass'))
        else:
            found.update('\0'.join(part).encode('utf-8', 'surrogatepass'))
        found.update(b'\0\0')
    return found.hexdigest()
