"""Make a small corpus laid out as one of the collections is, to try everything without data.

    python -m util.make_demo --rootpath demo --collection vatex --lang zh [--noise 0.3] [--seed 1]
    [--train 1500 ...]

Scenes of a little world (world.py) are drawn as images or videos (drawing.py) and described in six
languages (language.py). Their training translations and back-translations are corrupted at the rate
--noise (translation.py), as is the English side of validation and test; the target-language queries
of validation and test are clean. Everything is a function of the options. Beside the collections
lie `bert/`, an architecture and a vocabulary without weights (bert.py), and `clip/`, a small image
tower (clip.py).

Whatever stops it, a kill included, the collection's `runs/` stays where it is, and the corpus is
whole, or its manifest says what is unfinished and the next call makes that again.
"""

import argparse
from functools import partial
from pathlib import Path

from basic.command import command
from basic.config import SPLITS
from basic.files import locked
from util.make_demo.bert import write_bert
from util.make_demo.captions import write_captions
from util.make_demo.clip import clip_tower
from util.make_demo.folders import (
    LOCK,
    MANIFEST,
    begin,
    half_written,
    is_made,
    leftovers,
    make_once,
    read_manifest,
    recover,
    write_manifest,
)
from util.make_demo.items import COLLECTIONS, check_options, is_video, sample_items
from util.make_demo.visuals import VISUALS, make_visuals
from util.make_demo.words import LANGUAGES

VERSION = 1  # raise it when the same options make another corpus


def make_demo(
    *,
    root,
    collection,
    lang,
    seed=1,
    noise=0.3,
    train=1500,
    val=200,
    test=300,
    report=print,
    encoders=True,
):
    """Make one collection in one language, or do nothing where it is already made with the same
    options.

    Args:
        root: ROOTPATH of the demo; made if need be.
        collection: vatex, msrvttcn, multi30k or mscoco.
        lang: target language, one of words.LANGUAGES but en. Languages lie side by side
            over the same visual items.
        seed: of scenes, pictures and captions.
        noise: share of content words corrupted in each machine translation, 0 to 1.
        train, val, test: visual items of each split.
        report: called with a line of text for each thing made.
        encoders: also make bert/ and clip/ in ROOTPATH.
    Returns:
        the collection's folder.
    Raises:
        ValueError: unknown collection or language, a size or rate that cannot be, or a folder in
            the way that this program did not make.
    """
    sizes = {'train': train, 'val': val, 'test': test}
    check_options(collection, lang, noise, sizes)
    root = Path(root)
    folder = root / collection
    wanted = {'options': {'version': VERSION, 'seed': seed, **sizes}, 'lang': lang, 'noise': noise}
    there = not encoders or (root / 'bert').exists() and (root / 'clip').exists()
    if there and not leftovers(folder) and not half_written(folder) and is_made(folder, **wanted):
        report(f'{folder} is there already, in {lang}, noise {noise:g}')
        return folder
    root.mkdir(parents=True, exist_ok=True)
    with locked(root / LOCK, wait=True, waiting=partial(_say_waiting, root, report)):
        recover(folder, wanted, report)
        read_manifest(folder)  # whether the folder is ours, before any work
        if encoders:
            make_once(root / 'bert', write_bert, report)
            make_once(root / 'clip', clip_tower, report)
        make_collection(root, collection, **wanted, report=report)
    return folder


def make_collection(root, collection, *, options, lang, noise, report):
    """Make what is missing, unfinished, or of other options; the manifest says so before and after
    each step."""
    folder = root / collection
    if is_made(folder, options, lang, noise):
        report(f'{folder} is there already, in {lang}, noise {noise:g}')
        return
    seed, sizes = options['seed'], {split: options[split] for split in SPLITS}
    splits = sample_items(collection, seed, sizes)
    manifest = read_manifest(folder) or begin(folder, options, lang, noise)
    if manifest['options'] != options or VISUALS in manifest['unfinished']:
        items = f'{sum(sizes.values()):,} {"videos" if is_video(collection) else "images"}'
        report(f'drawing {items} in {folder}')
        manifest = {'options': options, 'noise': {lang: noise}, 'unfinished': [VISUALS, lang]}
        make_visuals(
            folder, collection, seed, splits, before=partial(write_manifest, folder, manifest)
        )
        manifest['unfinished'].remove(VISUALS)
        write_manifest(folder, manifest)
        report(f'made {items} in {folder}')
    manifest['noise'][lang] = noise
    manifest['unfinished'] = sorted({*manifest['unfinished'], lang})
    write_manifest(folder, manifest)
    write_captions(root, folder, collection, lang, seed=seed, noise=noise, splits=splits)
    manifest['unfinished'].remove(lang)
    write_manifest(folder, manifest)
    report(f'made captions in English and {lang}, noise {noise:g}, in {folder / "TextData"}')


def _say_waiting(root, report, holder):
    report(f'waiting for {holder}, which makes a corpus in {root}')


def options_there(root, collection, lang):
    """The options of `make_demo` that the corpus at hand was made with; {} if there is none."""
    folder = Path(root) / collection
    recoverable = folder.exists() and not (folder / MANIFEST).exists() and leftovers(folder)
    manifest = None if recoverable else read_manifest(folder)
    manifest = manifest or {'options': {}, 'noise': {}}
    found = {key: value for key, value in manifest['options'].items() if key in ('seed', *SPLITS)}
    return {**found, **({'noise': manifest['noise'][lang]} if lang in manifest['noise'] else {})}


@command('make_demo')
def main(argv=None):
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog='python -m util.make_demo',
        description=__doc__.splitlines()[0],
        epilog='An option that is not given is that of the corpus which is there.',
    )
    parser.add_argument(
        '--rootpath',
        '--root',
        dest='root',
        required=True,
        metavar='ROOT',
        help='folder to make it in, such as demo',
    )
    parser.add_argument('--collection', required=True, choices=list(COLLECTIONS))
    parser.add_argument(
        '--lang',
        required=True,
        help='target language: ' + ', '.join(name for name in LANGUAGES if name != 'en'),
    )
    parser.add_argument(
        '--seed', type=int, metavar='N', help='of scenes, pictures and captions (1)'
    )
    parser.add_argument(
        '--noise',
        type=float,
        metavar='RATE',
        help='share of content words that each machine translation corrupts (0.3)',
    )
    for split, size, what in (
        ('train', 1500, 'training'),
        ('val', 200, 'validation'),
        ('test', 300, 'test'),
    ):
        parser.add_argument(
            f'--{split}', type=int, metavar='N', help=f'visual items of {what} ({size})'
        )
    args = parser.parse_args(argv)
    given = {name: value for name, value in vars(args).items() if value is not None}
    make_demo(
        **{**options_there(args.root, args.collection, args.lang), **given},
        report=partial(print, flush=True),
    )
    return 0
