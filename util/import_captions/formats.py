"""Readers of the files in which captions are published."""

import gzip
from dataclasses import dataclass, field
from pathlib import Path

from basic.caption import caption_lines, split_line
from basic.errors import DataError, first_five
from basic.foreign import expect, refuse_special
from basic.ids import lines_of, read_bytes
from util.import_captions.splits import json_of, read_list, split_name
from util.import_captions.tables import Caption, read_records, read_table

ONE_LANGUAGE = ('coco', 'karpathy', 'token', 'lines', 'msrvtt')
MOST = 2**31  # bytes that a .gz file may unpack to
# Names in Multi30K's repository, of tasks 1 and 2.
TEST = ('test_2016_flickr', 'test_2016')
IMAGES = ('', '_images')


@dataclass
class Source:
    """The captions of one file, and what else is worth saying about it."""

    path: Path
    format: str
    captions: list[Caption]
    notes: list[str] = field(default_factory=list)


def read_source(path, options, *, lang=None):
    """Read one file, or the folder of Multi30K.

    Args:
        path: the file.
        options: the command line's arguments: format (None: by the file), lang (the target
            language), column (dict), tag, lists (dict split -> files), task.
        lang: language of a file that has one.
    Raises:
        DataError: a file of another form; names the file and the line or key.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f'no file {path}')
    kind = options.format or guess(path, lang)
    if kind in ONE_LANGUAGE and lang is None:
        raise DataError(
            f'{path}: in which language are its captions? Write en={path} or {options.lang}={path}'
        )
    if kind not in ONE_LANGUAGE and lang is not None:
        raise DataError(f'{path}: format {kind} knows its languages; write {path} without {lang}=')
    if kind != 'multi30k':
        refuse_special(path, DataError)
    source = Source(path, kind, [])
    source.captions = list(READERS[kind](source, options, lang))
    if not source.captions:
        raise DataError(f'{path}: no captions found (format {kind}; --format names another)')
    return source


def guess(path, lang):
    """The format of a file, from its ending, the keys of its JSON, or its first line.

    A table has the languages in its header, so text that is given with one is lines.
    """
    if path.is_dir():
        return 'multi30k'
    ending = path.suffix.lower()
    if ending in ('.csv', '.tsv'):
        return 'csv'
    if ending in ('.jsonl', '.ndjson'):
        return 'jsonl'
    if ending == '.json':
        tree = json_of(path)
        first = tree[0] if isinstance(tree, list) and tree else tree
        keys = set(first) if isinstance(first, dict) else set()
        if isinstance(tree, list):
            return 'vatex' if 'videoID' in keys else 'jsonl'
        if {'videos', 'sentences'} <= keys:
            return 'msrvtt'
        return 'coco' if 'annotations' in keys else 'karpathy'
    line = next((line for _, line in lines_of(unpacked(path)) if line.strip()), b'')
    if b'#' in b''.join(line.split()[:1]):
        return 'token'
    return 'lines' if lang else 'csv'


def unpacked(path):
    """The bytes of a text file, which may be gzipped."""
    if path.suffix.lower() != '.gz':
        return read_bytes(path)
    try:
        with gzip.open(path) as file:
            data = file.read(MOST + 1)
    except (OSError, EOFError) as error:
        raise DataError(f'{path}: not a whole .gz file ({error}); download it again') from None
    if len(data) > MOST:
        raise DataError(f'{path} would unpack to more than {MOST / 2**30:.0f} GiB')
    return data.removeprefix(b'\xef\xbb\xbf')


def coco(source, options, lang):
    form = {
        'images': [{'id': (int, str), 'file_name': str}],
        'annotations': [{'image_id': (int, str), 'caption': str}],
    }
    tree = expect(json_of(source.path), form, source.path)
    names = {image['id']: image['file_name'] for image in tree['images']}
    for i, annotation in enumerate(tree['annotations']):
        if annotation['image_id'] not in names:
            raise DataError(
                f'{source.path}: annotations[{i}] is of image {annotation["image_id"]}, which is '
                'not among its images'
            )
        yield Caption(
            names[annotation['image_id']], lang, annotation['caption'], None, f'annotations[{i}]'
        )


def karpathy(source, options, lang):
    form = {'images': [{'filename': str, 'split': str, 'sentences': [{'raw': str}]}]}
    restval = 0
    for i, image in enumerate(expect(json_of(source.path), form, source.path)['images']):
        restval += image['split'] == 'restval'
        split = split_name(image['split'], f'{source.path}: images[{i}]')
        for sentence in image['sentences']:
            yield Caption(image['filename'], lang, sentence['raw'], split, f'images[{i}]')
    if restval:
        source.notes.append(f'{restval:,} images of its split restval are training images')


def token(source, options, lang):
    tags = {}
    for number, line in caption_lines(source.path):
        where = f'{source.path}:{number}'
        try:
            name, text = split_line(line)
        except ValueError as error:
            raise DataError(f'{where}: {error}') from None
        visual, *tag, n = name.split('#')
        if not visual or len(tag) > 1 or '#' not in name:
            raise DataError(
                f'{where}: expected <id>#<n> or <id>#<tag>#<n> and a caption; found {name[:60]!r}'
            )
        tag = ''.join(tag)
        tags[tag] = tags.get(tag, 0) + 1
        if options.tag in (None, tag):
            yield Caption(visual, lang, text, None, str(number))
    if len(tags) > 1:
        counts = first_five([f'{tag or "(none)"} {count:,}' for tag, count in tags.items()])
        source.notes.append(f'tags: {counts}; --tag TAG selects one')


def vatex(source, options, lang):
    form = [{'videoID': str, 'enCap': ([str], None), 'chCap': ([str], None)}]
    for i, video in enumerate(expect(json_of(source.path), form, source.path)):
        for key, language in (('enCap', 'en'), ('chCap', 'zh')):
            for text in video.get(key) or ():
                yield Caption(video['videoID'], language, text, None, f'[{i}].{key}')


def msrvtt(source, options, lang):
    form = {
        'videos': [{'video_id': str, 'split': str}],
        'sentences': [{'video_id': str, 'caption': str}],
    }
    tree = expect(json_of(source.path), form, source.path)
    splits = {
        video['video_id']: split_name(video['split'], f'{source.path}: videos[{i}]')
        for i, video in enumerate(tree['videos'])
    }
    for i, sentence in enumerate(tree['sentences']):
        if sentence['video_id'] not in splits:
            raise DataError(
                f'{source.path}: sentences[{i}] is of {sentence["video_id"]!r}, which is not among '
                'its videos'
            )
        name = sentence['video_id']
        yield Caption(name, lang, sentence['caption'], splits[name], f'sentences[{i}]')


def lines(source, options, lang):
    if len(options.lists) != 1 or len(next(iter(options.lists.values()))) != 1:
        raise DataError(
            f'{source.path}: line i of format lines belongs to line i of an id list; give one, '
            'such as --ids train=train.txt'
        )
    ((split, (ids,)),) = options.lists.items()
    yield from aligned(source.path, read_list(ids, split), lang, split, ids)


def aligned(path, names, lang, split, where):
    """The captions of a file whose line i belongs to names[i]."""
    data = unpacked(path)
    texts = [line for _, line in lines_of(data.removesuffix(b'\n'))]
    if len(texts) != len(names):
        raise DataError(
            f'{path} has {len(texts):,} lines, but {where} {len(names):,}: line i of both must '
            'belong together'
        )
    for number, (name, line) in enumerate(zip(names, texts), start=1):
        try:
            yield Caption(name, lang, line.decode('utf-8'), split, f'{path.name}:{number}')
        except UnicodeDecodeError:
            raise DataError(f'{path}:{number}: not UTF-8; convert the file, with iconv') from None


def multi30k(source, options, lang):
    root = source.path / 'data' if (source.path / 'data').is_dir() else source.path
    for split, stems in (('train', ('train',)), ('val', ('val',)), ('test', TEST)):
        language = 'en' if split == 'train' else options.lang
        # Task 2 has no French and Czech: its validation and test sets are those of task 1.
        task = 1 if split != 'train' and language != 'de' else options.task
        folder = root / f'task{task}'
        ids = _one(
            [folder / 'image_splits' / f'{stem}{end}.txt' for stem in stems for end in IMAGES]
        )
        found = [
            path
            for stem in stems
            for middle in ('', *(f'.{n}' for n in range(1, 6)))
            for gz in ('', '.gz')
            if (path := folder / 'raw' / f'{stem}{middle}.{language}{gz}').is_file()
        ]
        if not found:
            raise DataError(
                f'{folder / "raw"} has no {stems[0]}.{language} nor {stems[0]}.1.{language} (.gz)'
            )
        # A file and its .gz are the same captions.
        once = {}
        for path in found:
            once.setdefault(path.name.removesuffix('.gz'), path)
        for path in once.values():
            yield from aligned(path, read_list(ids, split), language, split, ids)


def _one(paths):
    for path in paths:
        if path.is_file():
            return path
    raise DataError(
        f'no id list {paths[0]}: give the folder of the data repository, or import each split '
        'with --format lines --ids SPLIT=FILE'
    )


READERS = {
    'csv': read_table,
    'jsonl': read_records,
    'coco': coco,
    'karpathy': karpathy,
    'token': token,
    'lines': lines,
    'multi30k': multi30k,
    'vatex': vatex,
    'msrvtt': msrvtt,
}
