"""What an index is made of: the visual items of a split, a folder of images, or a features folder,
and their captions.

E common space.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch

from basic.caption import join_captions, read_captions
from basic.collection import Collection
from basic.errors import DataError, first_five
from basic.features import FrameSource, PooledSource
from basic.ids import IMAGE_ENDINGS, did_you_mean, visual_id
from basic.thumbnails import Media
from data_provider import join_split
from util.search.media import is_turned, upright

READS = {'clip': 'images', 'frames': 'the features of frames', 'pooled': 'one feature an image'}


class Captions(NamedTuple):
    """The captions of some items in one language."""

    lang: str
    items: list[str]  # the visual id of each
    texts: list[str]
    translations: list[str] | None  # into English


@dataclass
class Source:
    """What is to be indexed.

    Attributes:
        where: it comes from, for messages.
        ids: of the visual items.
        encode: function list of ids -> (n, E) tensor; DataError for an item that cannot be read.
        file: function id -> path of something to look at, '' if there is none.
        captions: list of Captions.
    """

    where: str
    ids: list[str]
    encode: Callable
    file: Callable
    captions: list[Captions] = field(default_factory=list)


def of_split(model, rootpath, split, media=None):
    """The visual items of a split, and its captions in each language of the model.

    Args:
        model: Retriever; rootpath: folder that holds the collection's folder.
        split: train, val or test.
        media: what to look at, see `opened_media`; None: what the config says.
    Returns:
        Source.
    """
    sources, shown, captions = {}, {}, []
    given = opened_media(media)
    for lang, part in Collection(model.config, rootpath).in_languages().items():
        translated = any(path.exists() for path in part.caption_paths(split, 'en'))
        joined = join_split(
            part,
            split,
            preprocessing=model.model.preprocessing,
            weights=[0.5] if translated else [0],
        )
        tgt, en = joined.files['tgt'], joined.files.get('en')
        looked_at = given or part.media(split)
        for name in joined.visual_ids:
            sources.setdefault(name, joined.source)
            shown.setdefault(name, looked_at)
        items = [visual for visual, _ in tgt.ids]
        captions.append(Captions(lang, items, tgt.texts, en and en.texts))
    return Source(
        where=f'{split} of {model.config.data.collection}',
        ids=list(sources),
        encode=_encoder(model, lambda name: sources[name]),
        file=lambda name: _path(shown[name], name),
        captions=captions,
    )


def of_images(model, folder):
    """The images in a folder and the folders below it.

    An id is the path below `folder`, without a final .jpg. Hidden files are omitted.
    """
    _check_kind(model, '--images', 'clip')
    root = Path(folder)
    if not root.is_dir():
        raise DataError(f'--images: no folder {root}')
    paths = {}
    for place, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith('.'))
        for name in sorted(names):
            if name.lower().endswith(IMAGE_ENDINGS) and not name.startswith('.'):
                path = Path(place) / name
                paths[visual_id(path.relative_to(root).as_posix())] = os.path.abspath(path)
    if not paths:
        raise DataError(f'{root} has no images ({", ".join(IMAGE_ENDINGS)})')
    return Source(
        where=str(root),
        ids=_readable(list(paths), root),
        encode=lambda ids: upright_vectors(model, [paths[name] for name in ids]),
        file=paths.__getitem__,
    )


def of_features(model, path, media=None):
    """Features that exist: a BigFile folder of frames, or a .npy with its id list beside it.

    Args:
        media: what to look at, see `opened_media`.
    """
    path = Path(path)
    if path.is_dir():
        _check_kind(model, f'--features {path}, a folder of frame features', 'frames')
        source = FrameSource(path, max_frames=model.config.visual.max_frames)
    else:
        _check_kind(model, f'--features {path}', 'pooled')
        listed = path.with_suffix('.txt')
        if not path.is_file() or not listed.is_file():
            raise DataError(
                f'--features: expected {path} and its id list {listed}, one id per line'
            )
        source = PooledSource(path, listed)
    looked_at = opened_media(media)
    wanted = model.model.architecture['feature_dim']
    if source.dim != wanted:
        raise DataError(f'{path} has features {source.dim} wide, but the model reads {wanted}')
    return Source(
        where=str(path),
        ids=_readable(source.ids, path),
        encode=_encoder(model, lambda _: source),
        file=lambda name: _path(looked_at, name),
    )


def opened_media(media):
    """What to look at for each id, as basic.thumbnails.Media.

    Args:
        media: folder of images or videos, or of folders of frames, named by the ids; or a template
            with {id}; None: nothing.
    """
    if not media:
        return None
    template = media if '{id}' in media else str(Path(media) / '{id}.mp4')
    if not Path(template.partition('{id}')[0] + 'x').parent.is_dir():
        raise DataError(f'--media: no folder {media}')
    return Media(template)


def read_pair(captions, translations, lang):
    """The captions of a file, and their translations of another, as Captions.

    Args:
        captions: caption file; translations: caption file in English with the same ids, or None.
    """
    first = read_captions(captions)
    texts = None
    if translations:
        other = read_captions(translations)
        texts = [other.texts[row] for row in join_captions(first, other)]
    return Captions(lang, [visual for visual, _ in first.ids], first.texts, texts)


def of_known(captions, known, where):
    """The captions whose item is known, and how many were omitted; DataError if all were.

    Args:
        known: set of ids.
    """
    rows = [row for row, name in enumerate(captions.items) if name in known]
    if not rows:
        items = list(dict.fromkeys(captions.items))
        raise DataError(
            f'none of the {len(items):,} items of the captions is in {where}: {first_five(items)}'
            f'{did_you_mean(items, sorted(known))}'
        )
    translations = captions.translations
    kept = Captions(
        captions.lang,
        [captions.items[row] for row in rows],
        [captions.texts[row] for row in rows],
        translations and [translations[row] for row in rows],
    )
    return kept, len(captions.items) - len(rows)


def _encoder(model, source_of):
    """The function ids -> vectors for a model; source_of(id) is the visual source of an item."""

    def images(ids):
        return model.encode_images([str(source_of(name).path(name)) for name in ids])

    def videos(ids):
        frames = [source_of(name).batch([name])[0][0] for name in ids]  # (F, D) each
        return model.encode_videos(frames)

    def features(ids):
        return model.encode_features([source_of(name).batch([name])[0][0].numpy() for name in ids])

    return {'clip': images, 'frames': videos, 'pooled': features}[model.kind]


def upright_vectors(model, paths):
    """The vectors (n, E) of image files, turned as their EXIF data say.

    Training and tests ignore this turn, as released; photos of phones need it.
    """
    turned = [row for row, path in enumerate(paths) if is_turned(path)]
    straight = [row for row in range(len(paths)) if row not in set(turned)]
    vectors = torch.empty(len(paths), model.dim)
    if straight:
        vectors[straight] = model.encode_images([paths[row] for row in straight])
    if turned:
        vectors[turned] = model.encode_images([upright(paths[row]) for row in turned])
    return vectors


def _path(media, name):
    path = media and media.path(name)
    return os.path.abspath(path) if path else ''


def _check_kind(model, what, kind):
    if model.kind != kind:
        advice = {'clip': '--images FOLDER', 'frames': '--features FOLDER'}
        raise DataError(
            f'{what}: this model reads {READS[model.kind]}, not {READS[kind]}: give'
            f' {advice.get(model.kind, "--features FILE.npy")}, or --split'
        )


def _readable(ids, where):
    """The ids, if all are valid text; file names need not be."""
    for name in ids:
        try:
            name.encode('utf-8')
        except UnicodeEncodeError:
            raise DataError(f'{where}: the name {name!a} is not UTF-8: rename the file') from None
    return ids
