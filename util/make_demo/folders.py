"""A demo collection's folder: its manifest, and the recovery of what a killed process left."""

import json
import os
import re
import shutil
from functools import partial

from basic.command import telling
from basic.files import replace_folder, write_atomically
from basic.foreign import read_json
from util.make_demo.items import picture_folder
from util.make_demo.visuals import SHEETS, VISUALS

MANIFEST = 'demo.json'  # a folder without it is not ours
# what it holds, in the forms of basic.foreign
FORM = {'options': {str: int}, 'noise': {str: float}, 'unfinished': ([str], None)}
LOCK = '.make_demo.lock'


def read_manifest(folder):
    """The manifest of a collection made here; None if there is no folder.

    Returns:
        dict: options; noise, of each language; unfinished, what was being made when it was written.
    Raises:
        ValueError: the folder is not ours, or its manifest is damaged.
    """
    path = folder / MANIFEST
    if path.is_file():
        return {'unfinished': [], **read_json(path, FORM)}
    if folder.exists():
        raise ValueError(
            f'{folder} is in the way: it has no {MANIFEST}, so the demo did not make it and leaves'
            ' it as it is. Give another --rootpath, or move it'
        )
    return None


def write_manifest(folder, manifest):
    content = {key: value for key, value in manifest.items() if value or key != 'unfinished'}
    write_atomically(folder / MANIFEST, json.dumps(content, indent=2, sort_keys=True) + '\n')


def is_made(folder, options, lang, noise):
    """Whether the collection is whole, with these options, in this language."""
    manifest = read_manifest(folder)
    return (
        manifest is not None
        and manifest['options'] == options
        and manifest['noise'].get(lang) == noise
        and not {VISUALS, lang} & set(manifest['unfinished'])
    )


def begin(folder, options, lang, noise):
    """Make a collection's folder with a manifest that calls everything unfinished; returns the
    manifest."""
    manifest = {'options': options, 'noise': {lang: noise}, 'unfinished': [VISUALS, lang]}
    replace_folder(folder, partial(write_manifest, manifest=manifest))
    return manifest


def make_once(folder, write, report):
    """Let write(new folder) fill a folder, unless it is there; it appears whole or not at all."""
    if folder.exists():
        return
    report(f'making {folder}')
    with telling(f'making {folder}', plain=False):
        replace_folder(folder, write)
    report(f'made {folder}')


def leftovers(folder):
    """What killed processes of older versions left beside a collection's folder, and beside the
    encoders'."""
    old = re.compile(rf'\.({re.escape(folder.name)}|bert|clip)\.([0-9]+)')
    found = [(path, old.fullmatch(path.name)) for path in sorted(folder.parent.glob('.*'))]
    return [path for path, match in found if match and not _is_alive(int(match[2]))]


def recover(folder, wanted, report):
    """Remove what killed processes left; runs among it, which older versions moved there, are put
    back.

    Where the collection has other runs by now, they are named and stay where they are.

    Args:
        wanted: options, lang and noise, should the collection's folder have to be made for its
            runs.
    """
    for left in leftovers(folder):
        runs = left / 'runs'
        if _holds_something(runs):
            if _holds_something(folder / 'runs'):
                report(
                    f'{runs} holds runs that an interrupted make_demo left there; {folder / "runs"}'
                    f' has others. Move those that you want, then delete {left}'
                )
                continue
            _adopt(folder, wanted)
            if (folder / 'runs').is_dir():
                (folder / 'runs').rmdir()  # empty
            os.replace(runs, folder / 'runs')
            report(
                f'put back {folder / "runs"}, which an interrupted make_demo had moved to {left}'
            )
        elif left.name.startswith(f'.{folder.name}.') and folder.is_dir():
            _adopt(folder, wanted)
        shutil.rmtree(left, ignore_errors=True)
    for path in half_written(folder):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def half_written(folder):
    """Hidden files and folders in a collection's folder and beside it that are being written, or
    were by a killed one."""
    file = re.compile(r'\..+\.([0-9a-f]{8}\.tmp|[0-9]+)')
    new = re.compile(rf'\.({VISUALS}|{re.escape(folder.name)}|bert|clip)\.[0-9a-f]{{8}}\.(tmp|old)')
    parts = (folder.parent, folder, folder / 'TextData', folder / 'FeatureData')
    hidden = [path for part in parts for path in part.glob('.*')]
    return [
        path
        for path in hidden
        if new.fullmatch(path.name)
        or path.parent != folder.parent
        and file.fullmatch(path.name)
        and path.is_file()
    ]


def _adopt(folder, wanted):
    """Give the folder a manifest if it has none: a killed process was replacing it, and began with
    its removal."""
    if not folder.exists():
        begin(folder, **wanted)
    elif not (folder / MANIFEST).exists():
        ours = {'TextData', 'FeatureData', SHEETS, 'runs', 'cache', *picture_folder(folder.name)}
        if {path.name for path in folder.iterdir()} <= ours:
            write_manifest(
                folder, {'options': wanted['options'], 'noise': {}, 'unfinished': [VISUALS]}
            )


def _holds_something(folder):
    return folder.is_symlink() or folder.is_dir() and any(folder.iterdir())


def _is_alive(number):
    try:
        os.kill(number, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # another user's
        return True
    return True
