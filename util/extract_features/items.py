"""The items of an extraction: their ids, and the file of each."""

import os
from pathlib import Path

from basic.caption import read_captions
from basic.errors import DataError, first_five
from basic.ids import (
    IMAGE_ENDINGS,
    did_you_mean,
    hidden,
    lines_of,
    read_bytes,
    read_ids,
    repeated,
    visual_id,
)
from basic.images import CLIP, ImageSource
from basic.videos import VIDEO_ENDINGS


def listed_ids(path):
    """The ids of an id list, or the visual items of a caption file in order of appearance."""
    if not Path(path).is_file():
        raise DataError(f'--ids: no file {path}; expected an id list or a caption file')
    first = next((line for _, line in lines_of(read_bytes(path)) if line.strip()), b'')
    if b'#' in (first.split() or [b''])[0]:
        return read_captions(path).visual_ids
    return read_ids(path)


def collection_ids(collection, split):
    """The ids of a split: of its id list, or else of its captions (English first in training).

    The captions of the other branches need not exist yet.

    Returns:
        (ids, the file they come from).
    """
    templates = list(getattr(collection.config.data.ids, split))
    for template in templates if collection.config.visual.kind != 'frames' else ():
        for path in collection.paths(template, split):
            if path.exists():
                return read_ids(path), path
    missing = None
    for branch in ('en', 'tgt') if split == 'train' else ('tgt', 'en'):
        try:
            path = collection.caption_path(split, branch)
        except DataError as error:
            missing = missing or error
            continue
        return read_captions(path).visual_ids, path
    missing.add_note(f'To extract the features of other splits alone: --split, not {split}')
    raise missing


def find_images(place, ids=None, where=''):
    """The images of these ids, or of a folder.

    Args:
        place: folder, or a template with {id}.
        ids: None: those of the file names in the folder, sorted.
        where: what the ids come from, for messages.
    Returns:
        (ids, ImageSource), which finds an image also with another ending.
    """
    template = place if '{id}' in place else str(Path(place) / '{id}.jpg')
    folder = Path(template.partition('{id}')[0] + 'x').parent
    if not folder.is_dir():
        raise DataError(f'no folder {folder}; expected the folder of the images')
    if ids is None:
        names = [name for name in sorted(os.listdir(folder)) if _has(name, IMAGE_ENDINGS)]
        ids = ids_of_names(names, folder, 'images')
    return ids, ImageSource(template, ids, preprocessing=CLIP, where=where or folder)


def find_videos(place, ids=None, where=''):
    """The videos of these ids, or of a folder and the folders in it.

    A video is a file, or a folder of images: its frames.

    Args, returns: as `find_images`, but a dict id -> Path instead of a source. Ids whose video
        does not exist are not in it.
    """
    root = Path(place)
    if not root.is_dir():
        raise DataError(f'no folder {root}; expected the folder of the videos')
    paths = {}
    for path in _videos_below(root):
        name = path.name if path.is_dir() else _stem(path.name, VIDEO_ENDINGS)
        paths.setdefault(name, []).append(path)
    if ids is None:
        ids = ids_of_names([path.name for each in paths.values() for path in each], root, 'videos')
    twice = [name for name in ids if len(paths.get(name, ())) > 1]
    if twice:
        some = ' and '.join(str(path) for path in paths[twice[0]][:2])
        raise DataError(f'{len(twice):,} ids have two videos: {some}; remove the wrong ones')
    found = {name: paths[name][0] for name in ids if name in paths}
    if not found:
        missing = did_you_mean(list(ids), paths)
        raise DataError(f'{root} has none of the {len(ids):,} videos of {where or root}{missing}')
    return ids, found


def _videos_below(root):
    """Yield the video files, and the folders of frames, below a folder, sorted."""
    seen = set()
    for folder, folders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        folders[:] = [] if real in seen else sorted(f for f in folders if not f.startswith('.'))
        seen.add(real)
        videos = [name for name in sorted(names) if _has(name, VIDEO_ENDINGS, ('.gif',))]
        yield from (Path(folder) / name for name in videos)
        if not videos and folder != str(root) and any(_has(n, IMAGE_ENDINGS) for n in names):
            yield Path(folder)


def _has(name, endings, without=()):
    lower = name.lower()
    return not name.startswith('.') and lower.endswith(endings) and not lower.endswith(without)


def _stem(name, endings):
    return os.path.splitext(name)[0] if name.lower().endswith(endings) else name


def ids_of_names(names, folder, what):
    """The ids of file names; DataError for names that ids must not have, or duplicates."""
    if not names:
        raise DataError(f'{folder} has no {what}')
    ids = [visual_id(_stem(name, (*IMAGE_ENDINGS, *VIDEO_ENDINGS))) for name in names]
    odd = [name for name in ids if '#' in name or any(map(str.isspace, name)) or hidden(name)]
    if odd:
        raise DataError(
            f"{folder}: {len(odd):,} names have white space, '#' or invisible characters, which "
            f'ids must not have: {first_five(odd)}; rename these files'
        )
    if len(set(ids)) != len(ids):
        raise DataError(
            f'{folder}: {what} of the same name with two endings: {first_five(repeated(ids))}; '
            'remove one of each'
        )
    return ids
