"""Writes what was imported: caption files, id lists, links to images, the collection's YAML."""

import json
import os
import re
import tempfile
from operator import attrgetter
from pathlib import Path

from basic.config import SPLITS, ConfigError, load_config
from basic.errors import DataError, first_five
from basic.files import write_atomically
from basic.ids import IMAGE_ENDINGS, did_you_mean, visual_id

TEMPLATE = Path(__file__).resolve().parents[2] / 'configs/custom.yaml'


def caption_lines_of(captions, tag):
    """A caption file's text; captions of an item are numbered in their order.

    Args:
        captions: list of (id, text).
    """
    counts, lines = {}, []
    for visual, text in captions:
        n = counts[visual] = counts.get(visual, -1) + 1
        lines.append(f'{visual}#{tag}#{n} {text}\n')
    return ''.join(lines)


def targets(collection, chosen):
    """dict path -> content of the caption files and id lists.

    Args:
        collection: basic.collection.Collection.
        chosen: dict split -> list of (id, text).
    """
    data, found = collection.config.data, {}
    for split, captions in chosen.items():
        branch, tag = ('en', 'enc') if split == 'train' else ('tgt', data.lang)
        template = getattr(getattr(data.captions, split), branch)
        path = next(collection.paths(f'TextData/{template}', split))
        found[path] = caption_lines_of(captions, tag)
        if data.ids[split]:
            ids = dict.fromkeys(visual for visual, _ in captions)
            path = next(collection.paths(data.ids[split][0], split))
            found[path] = ''.join(f'{name}\n' for name in ids)
    return found


def existing(collection, splits):
    """dict split -> ids of the splits that the collection already has."""
    from basic.caption import read_captions

    found = {}
    for split in splits:
        branch = 'en' if split == 'train' else 'tgt'
        template = getattr(getattr(collection.config.data.captions, split), branch)
        for path in collection.paths(f'TextData/{template}', split):
            if path.is_file():
                found[split] = set(read_captions(path).visual_ids)
                break
    return found


def refuse_existing(contents):
    """Raise ConfigError if a file exists with other content."""
    other = [
        path
        for path, content in contents.items()
        if os.path.lexists(path) and not _same(path, content)
    ]
    if other:
        raise ConfigError(
            f'{first_five(other)}: the file exists with other content; --overwrite replaces it. '
            'Nothing was written'
        )


def write(contents, images, folder):
    """Write the files that are not there with this content, and link the images.

    All files are written before the first one is moved to its place. So a full disk leaves no new
    training captions beside old test captions, which may share items.

    Args:
        contents: dict path -> text.
        images: dict path of the link -> image.
        folder: the collection's folder.
    Returns:
        list of the paths written.
    """
    written = [path for path, content in contents.items() if not _same(path, content)]
    with tempfile.TemporaryDirectory(dir=folder, prefix='.import_captions.') as stage:
        for i, path in enumerate(written):
            write_atomically(Path(stage) / str(i), contents[path])
        _make_links(images)
        for path in written:
            path.parent.mkdir(parents=True, exist_ok=True)
        for i, path in enumerate(written):
            os.replace(Path(stage) / str(i), path)
    return written


def _same(path, content):
    return path.is_file() and path.read_bytes() == content.encode()


def stale(collection, written):
    """The machine translations that exist of caption files which were now written."""
    data, found = collection.config.data, []
    for split in SPLITS:
        files = getattr(data.captions, split)
        first = files.en if split == 'train' else files.tgt
        made = [files.tgt, files.back] if split == 'train' else [files.en]
        if next(collection.paths(f'TextData/{first}', split)) in written:
            paths = [next(collection.paths(f'TextData/{name}', split)) for name in made]
            found += [path for path in paths if path.exists()]
    return found


# ------------------------------------------------------------------------------------------ images


def find_images(folders, names):
    """The image file of each item.

    Args:
        folders: where the images are.
        names: dict id -> name in the source.
    Returns:
        (dict id -> path, list of ids without an image).
    """
    by_stem = {}
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise ConfigError(f'--images {folder}: no such folder')
        for path in sorted(folder.iterdir()):
            if path.suffix.lower() in IMAGE_ENDINGS:
                by_stem.setdefault(path.stem, []).append(path)
    found, missing = {}, []
    for visual, name in names.items():
        inside = '..' not in Path(name).parts
        exact = [path for folder in folders if inside and (path := Path(folder) / name).is_file()]
        exact = exact or [p for p in by_stem.get(Path(name).stem, ()) if p.name == Path(name).name]
        near = exact or by_stem.get(visual_id(re.split(r'[/\\]', name)[-1]), [])
        if len(near) > 1:
            raise DataError(f"two images for '{name}': {near[0]} and {near[1]}; remove one")
        if near:
            found[visual] = near[0].resolve()
        else:
            missing.append(visual)
    return found, missing


def missing_images(missing, folders):
    """The message about items without an image."""
    there = [path.name for folder in folders for path in Path(folder).iterdir()]
    return (
        f'{len(missing):,} items have no image in {", ".join(map(str, folders))}: '
        f'{first_five(missing)}{did_you_mean(missing, there)}'
    )


def links(collection, images):
    """dict path -> image: where `data.images` expects each image."""
    template = str(next(collection.paths(collection.config.data.images, 'train')))
    folder = Path(template.replace('{id}', 'x')).parent
    found = {}
    for visual, image in images.items():
        own = Path(visual).suffix.lower() in IMAGE_ENDINGS
        found[folder / (visual if own else visual + image.suffix)] = image
    return found


def refuse_links(wanted):
    """Raise ConfigError if an image is a link to another one than wanted."""
    other = [path for path, image in wanted.items() if _leads_elsewhere(path, image)]
    if other:
        raise ConfigError(
            f'{first_five(other)}: a link to another image; --overwrite replaces it. '
            'Nothing was written'
        )


def _leads_elsewhere(path, image):
    return path.is_symlink() and path.resolve() != image


def _make_links(wanted):
    """Link the images; files that are there already stay, unless they are links to others."""
    for path, image in wanted.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        if _leads_elsewhere(path, image):
            path.unlink()
        if not path.exists():
            path.symlink_to(image)


# ------------------------------------------------------------------------------------------ YAML


def yaml_text(collection, config, options):
    """The YAML of a new collection: configs/custom.yaml with its name, its language and options.

    Args:
        collection: its name.
        config: the Config with these options, which has their values.
        options: list of key=value.
    Raises:
        ConfigError: an option that the template does not have.
    """
    text = TEMPLATE.read_text(encoding='utf-8')
    text = text[text.index('data:\n') :]
    for key in ['data.collection', 'data.lang', *(option.split('=', 1)[0] for option in options)]:
        *groups, last = key.split('.')
        pattern = rf'(?m)(^{re.escape(groups[0])}:.*\n(?:[ #].*\n)*?  {re.escape(last)}: ).*$'
        value = attrgetter(key)(config)
        # JSON is YAML, whatever is in a text.
        shown = json.dumps(value, ensure_ascii=False, default=list)
        text, count = re.subn(pattern, lambda match: match[1] + shown, text, count=1)
        if len(groups) != 1 or not count:
            raise ConfigError(
                f'{key}: not in {TEMPLATE.name}; edit the new YAML, or give it to train.py'
            )
    return f'# {collection}: made of configs/custom.yaml by util.import_captions\n{text}'


def collection_config(rootpath, name, lang, options):
    """(path of the collection's YAML, its new text or None if it exists, its Config).

    A YAML that exists is never replaced, because it is meant to be edited.
    """
    path = Path(rootpath) / name / f'{name}.yaml'
    if path.exists():
        words = [f'data.lang={lang}'] * (lang is not None)
        return path, None, load_config(path, [*words, *options])
    if lang is None:
        raise ConfigError(
            '--lang is required for a new collection: the target language, such as es'
        )
    config = load_config(TEMPLATE, [f'data.collection={name}', f'data.lang={lang}', *options])
    return path, yaml_text(name, config, options), config
