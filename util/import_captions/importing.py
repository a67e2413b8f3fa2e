"""Bring captions into the layout of the data.

    python -m util.import_captions captions.csv --collection photos --lang es
        --rootpath ROOT --images PHOTOS --draw val=10,test=10,train=rest
    python -m util.import_captions en=dataset_coco.json
        --config configs/mscoco.yaml --rootpath ROOT
    python -m util.import_captions zh=imageid.human-written-caption.txt
        --config configs/mscoco.yaml --rootpath ROOT
        --ids val=coco-cn_val.txt --ids test=coco-cn_test.txt

The training split takes the English captions, validation and test take those of
the target language. A file with captions of one language is given as en=FILE or
zh=FILE. With --collection, the collection's YAML is written too
(ROOT/NAME/NAME.yaml, of configs/custom.yaml); for videos, add
visual.kind=frames visual.feature=NAME data.images=. A file is never replaced
without --overwrite. Formats:
"""

import argparse
import re
import shlex
from collections import Counter
from pathlib import Path

from basic.command import command, telling
from basic.config import SPLITS, ConfigError, load_config
from basic.errors import DataError, first_five

LANGUAGE = re.compile(r'([A-Za-z]{2,3}(?:[-_][A-Za-z]+)?)=(.+)', re.DOTALL)
OPTION = re.compile(r'[a-z_]+(\.[a-z_]+)+=')
FORMATS = {
    'csv': 'own table with a header; comma, semicolon, tab or | between fields',
    'jsonl': 'own JSON objects, one a line, or a list of them',
    'coco': 'captions_*.json of COCO and STAIR Captions',
    'karpathy': 'dataset_coco.json, dataset_flickr30k.json, dataset_flickr8k.json',
    'token': '<id>#<n> or <id>#<tag>#<n>, and a caption: COCO-CN, Flickr30k,\n'
    '              Flickr8k-CN, Flickr30k-CN, MSR-VTT-CN',
    'lines': 'one caption a line; line i belongs to line i of the --ids file',
    'multi30k': "the folder of Multi30K's data repository",
    'vatex': 'vatex_*.json, with enCap and chCap',
    'msrvtt': 'videodatainfo.json of MSR-VTT',
}


def arguments(argv=None):
    """Parse the command line; ConfigError for words that make no sense."""
    parser = argparse.ArgumentParser(
        prog='python -m util.import_captions',
        description=__doc__.partition('\n\n')[0],
        epilog=__doc__.partition('\n\n')[2]
        + '\n'
        + ''.join(f'    {name:9} {text}\n' for name, text in FORMATS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add('words', nargs='+', metavar='FILE', help='FILE or LANG=FILE; or key=value for the config')
    add('--rootpath', required=True, metavar='ROOT', help="folder of the collections' folders")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument('--config', metavar='FILE', help='such as configs/mscoco.yaml')
    which.add_argument('--collection', metavar='NAME', help='own data: a new collection')
    add('--lang', metavar='xx', help="target language (default: the config's)")
    add('--format', choices=FORMATS, help='default: by the file')
    add(
        '--column',
        action='append',
        default=[],
        metavar='ROLE=NAME',
        help='a column of a table; ROLE: id, split or a language. May be repeated',
    )
    add('--tag', metavar='TAG', help='of token files: only captions with this tag, such as zhm')
    add('--split', choices=SPLITS, help='put all items into this split')
    add(
        '--ids',
        action='append',
        default=[],
        metavar='SPLIT=FILE',
        help='the items of a split: a list, a caption file, or the JSON of Karpathy or MSR-VTT',
    )
    add(
        '--draw',
        metavar='SPLIT=N,...',
        help='draw splits: numbers, shares below 1, or rest: val=0.1,test=50,train=rest',
    )
    add('--seed', type=int, default=1, metavar='N', help='of --draw (default: 1)')
    add(
        '--drop-from-train',
        action='store_true',
        help='omit training items that validation or test have too',
    )
    add('--images', action='append', metavar='DIR', help='link the images of this folder')
    add('--skip-missing', action='store_true', help='omit items without an image')
    add('--keep-folders', action='store_true', help='ids are made of folder and name')
    add('--overwrite', action='store_true', help='replace files that exist, but not a YAML')
    args = parser.parse_intermixed_args(argv)
    args.overrides = [word for word in args.words if OPTION.match(word)]
    args.files = [
        LANGUAGE.fullmatch(word).groups() if LANGUAGE.fullmatch(word) else (None, word)
        for word in args.words
        if word not in args.overrides
    ]
    if not args.files:
        parser.error('the following arguments are required: FILE')
    if sum(map(bool, (args.split, args.ids, args.draw))) > 1:
        raise ConfigError('--split, --ids and --draw contradict each other: give one')
    args.column = _pairs(args.column, '--column')
    args.lists = _pairs(args.ids, '--ids')
    args.draw = {split: parts[0] for split, parts in _pairs(_comma(args.draw), '--draw').items()}
    for option, splits in (('--ids', args.lists), ('--draw', args.draw)):
        if wrong := [split for split in splits if split not in SPLITS]:
            raise ConfigError(f'{option} {wrong[0]}=: expected {", ".join(SPLITS)}')
    args.draw = {split: _number(split, text) for split, text in args.draw.items()}
    return args


def _comma(text):
    return text.split(',') if text else []


def _pairs(words, option):
    """dict key -> list of values, of words key=value."""
    found = {}
    for word in words:
        key, mark, value = word.partition('=')
        if not (key and mark and value):
            raise ConfigError(f'{option} {word}: expected {option} KEY=VALUE')
        found.setdefault(key, []).append(value)
    return found


def _number(split, text):
    if text == 'rest':
        return text
    try:
        number = float(text)
    except ValueError:
        number = 0
    if not (0 < number < 1 or 1 <= number < 2**40 and number == int(number)):
        raise ConfigError(f'--draw {split}={text}: expected a number, a share below 1, or rest')
    return number


def import_captions(args):
    """Read, clean, split and write; prints what it found. Returns the exit status.

    Raises:
        ConfigError, DataError: nothing is written then.
    """
    root = Path(args.rootpath)
    with telling('loading'):
        from basic.collection import Collection
        from basic.languages import one_language
        from util.import_captions import writing
        from util.import_captions.cleaning import Ids
        from util.import_captions.formats import read_source
        from util.import_captions.splits import json_of
    json_of.cache_clear()
    yaml = yaml_text = None
    if args.collection:
        yaml, yaml_text, config = writing.collection_config(
            root, args.collection, args.lang, args.overrides
        )
    else:
        words = [f'data.lang={args.lang}'] * (args.lang is not None)
        config = load_config(args.config, [*words, *args.overrides])
    args.lang, args.task = one_language(config, 'import_captions'), config.data.task
    languages = {lang for lang, _ in args.files} | set(args.column) - {'id', 'split'}
    if wrong := languages - {None, 'en', args.lang}:
        raise ConfigError(f'{min(wrong)}: expected en, or the target language {args.lang} (--lang)')

    notes, ids, read = [], Ids(args.keep_folders), []
    for lang, path in args.files:
        with telling(f'reading {path}', plain=False):
            source = read_source(path, args, lang=lang)
        counts = Counter(caption.lang for caption in source.captions)
        shown = ', '.join(f'{count:,} captions ({lang})' for lang, count in counts.items())
        print(f'read {path} ({source.format}): {shown}')
        notes += source.notes
        read += [(ids.of(c.name, f'{path} {c.place}'), c) for c in source.captions]
    read = _cleaned(read, notes)
    notes += [f'{reason}: {count:,}' for reason, count in ids.counts.items()]
    splits = _splits(read, args, ids, notes)
    chosen = _chosen(read, splits, args.lang, notes)

    folder = root / (args.collection or config.data.collection)
    made = not any((root / name).is_dir() for name in (folder.name, *config.data.aliases))
    if made:
        folder.mkdir(parents=True)
    try:
        collection = Collection(config, root)
        _refuse_overlap(collection, chosen, args.drop_from_train, notes, writing)
        images = _images(args, chosen, ids, notes, writing)
        contents = writing.targets(collection, chosen)
        links = writing.links(collection, images) if images else {}
        if not args.overwrite:
            writing.refuse_existing(contents)
            writing.refuse_links(links)
        if yaml_text:
            contents[yaml] = yaml_text
        written = writing.write(contents, links, collection.folder)
    except BaseException:
        if made and not any(folder.iterdir()):
            folder.rmdir()
        raise
    _report(chosen, contents, written, notes, len(images))
    if yaml and not yaml_text:
        print(f'kept: {yaml}, which is yours to edit')
    stale = writing.stale(collection, written)
    for path in stale:
        print(f'warning: {path} was made of other captions')
    _next_steps(args, yaml, made_yaml=bool(yaml_text), again=bool(stale))
    return 0


def _cleaned(read, notes):
    """The captions (id, Caption) that have text, cleaned; counts go to notes."""
    from util.import_captions.cleaning import clean

    counts, kept, empty = Counter(), [], []
    for visual, caption in read:
        caption.text = clean(caption.text, counts)
        if caption.text:
            kept.append((visual, caption))
        else:
            empty.append(caption.place.rpartition('/')[2])
    notes += [f'captions with {reason}, now removed: {n:,}' for reason, n in counts.items()]
    if empty:
        notes.append(f'captions without text, omitted: {len(empty):,} ({first_five(empty)})')
    return kept


def _splits(read, args, ids, notes):
    """dict id -> split."""
    from util.import_captions import splits
    from util.import_captions.cleaning import Ids

    visuals = dict.fromkeys(visual for visual, _ in read)
    if args.split:
        return dict.fromkeys(visuals, args.split)
    if args.lists:
        made = Ids(args.keep_folders)
        lists = {
            split: [made.of(name, path) for path in paths for name in splits.read_list(path, split)]
            for split, paths in args.lists.items()
        }
        return splits.from_lists(visuals, lists, notes)
    if args.draw:
        pools = {
            split: {v for v, c in read if c.lang == ('en' if split == 'train' else args.lang)}
            for split in args.draw
        }
        return splits.draw(args.draw, args.seed, pools)
    found = splits.from_source(read)
    if None in found.values():
        raise DataError(
            f'{args.files[0][1]} does not name the splits: give --split, --ids or --draw '
            'val=0.1,test=0.1,train=rest'
        )
    return found


def _chosen(read, splits, lang, notes):
    """dict split -> list of (id, text): English of training, the target language of the others."""
    chosen, unused = {}, Counter()
    for visual, caption in read:
        split = splits.get(visual)
        if split and caption.lang == ('en' if split == 'train' else lang):
            chosen.setdefault(split, []).append((visual, caption.text))
        else:
            unused[f'{caption.lang} of {split or "no split"}'] += 1
    notes += [f'captions not used, {which}: {count:,}' for which, count in unused.items()]
    if not chosen:
        raise DataError(
            f'nothing to write: training takes English captions, validation and test take {lang}; '
            + '; '.join(f'found captions, {which}: {count:,}' for which, count in unused.items())
        )
    for split in (split for split in SPLITS if split in splits.values()):
        there = {visual for visual, _ in chosen.get(split, ())}
        lost = [visual for visual, one in splits.items() if one == split and visual not in there]
        if lost:
            need = 'en' if split == 'train' else lang
            notes.append(
                f'{split}: items without a caption in {need}, omitted: {len(lost):,} '
                f'({first_five(lost)})'
            )
    return {split: chosen[split] for split in SPLITS if split in chosen}


def _refuse_overlap(collection, chosen, drop, notes, writing):
    """Raise DataError if an item is in two splits, these or those of the collection."""
    there = writing.existing(collection, [split for split in SPLITS if split not in chosen])
    there |= {split: {visual for visual, _ in captions} for split, captions in chosen.items()}
    tested = there.get('val', set()) | there.get('test', set())
    if drop and 'train' in chosen and tested:
        kept = [(visual, text) for visual, text in chosen['train'] if visual not in tested]
        lost = len(there['train'] & tested)
        notes.append(f'train: items that validation or test have, omitted: {lost:,}')
        chosen['train'], there['train'] = kept, there['train'] - tested
        if not kept:
            raise DataError('no training item is left: validation and test have them all')
    for i, one in enumerate(SPLITS):
        for other in SPLITS[i + 1 :]:
            both = sorted(there.get(one, set()) & there.get(other, set()))
            if both:
                raise DataError(
                    f'{len(both):,} items are in {one} and in {other}: {first_five(both)}; import '
                    'validation and test first, then the training split with --drop-from-train'
                )


def _images(args, chosen, ids, notes, writing):
    """dict id -> image of the chosen items; items without one are removed with --skip-missing."""
    if not args.images:
        return {}
    wanted = dict.fromkeys(visual for captions in chosen.values() for visual, _ in captions)
    found, missing = writing.find_images(args.images, {name: ids.names[name] for name in wanted})
    if missing:
        text = writing.missing_images(missing, args.images)
        if not args.skip_missing:
            raise DataError(f'{text}; --skip-missing omits them')
        notes.append(f'{text}; omitted')
        for split, captions in chosen.items():
            chosen[split] = [(visual, line) for visual, line in captions if visual in found]
            if not chosen[split]:
                raise DataError(f'no item of split {split} has an image in {args.images[0]}')
    return found


def _report(chosen, contents, written, notes, images):
    for note in notes:
        print(f'  {note}')
    print(f'{"split":6}{"items":>10}{"captions":>10}')
    for split, captions in chosen.items():
        print(f'{split:6}{len({v for v, _ in captions}):>10,}{len(captions):>10,}')
    for path in contents:
        print(f'{"written" if path in written else "unchanged"}: {path}')
    if images:
        print(f'linked: {images:,} images')


def _next_steps(args, yaml, *, made_yaml, again):
    """Print the command that translates; a new YAML has the language and the options in it."""
    words = ['--config', str(yaml or args.config), '--rootpath', args.rootpath]
    words += [] if made_yaml else [f'data.lang={args.lang}', *args.overrides]
    words += ['--overwrite'] * again
    print('next: python -m util.translate', shlex.join(words), '--model NAME_OR_FOLDER')


@command('import_captions')
def main(argv=None):
    """The command line; returns the exit status."""
    return import_captions(arguments(argv))
