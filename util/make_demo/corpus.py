"""Make a small corpus in the file layout of one of the collections, for trying everything without
any data.

    python -m util.make_demo --rootpath demo --collection vatex --lang zh [--noise 0.3] [--seed 1]
    [--train 1500 ...]

Scenes of a little world (world.py) are drawn as images or videos, described in the languages of
language.py, and their training translations and back-translations are corrupted at the rate
--noise, as is the English side of validation and test; the target-language queries of validation
and test are clean. Everything is a function of the options. Beside the collections lie `bert/`, an
architecture and a vocabulary without weights, and `clip/`, a small image tower (vision.py).

Whatever stops it, a kill included, the collection's `runs/` stays where it is, and the corpus is
whole, or its manifest says what is unfinished and the next call makes that again.
"""

import argparse
import json
import os
import re
import shutil
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from basic.command import command, telling
from basic.config import SPLITS, load_config
from basic.files import locked, replace_folder, temporary_folder, write_atomically
from basic.foreign import read_json
from util.make_demo import language, vision, world

VERSION = 1  # raise it when the same options make another corpus
CONFIGS = Path(__file__).resolve().parents[2] / 'configs' / 'demo'
COLLECTIONS = {'vatex': 2, 'msrvttcn': 2, 'multi30k': 1, 'mscoco': 2}  # captions a visual item
FLICKR_CAPTIONS = 5  # of a training image in Multi-30K's task 2
MANIFEST = 'demo.json'  # a folder without it is not ours
# of the manifest
FORM = {'options': {str: int}, 'noise': {str: float}, 'unfinished': ([str], None)}
VISUALS = 'visuals'  # in its list of what is unfinished, beside languages
LOCK = '.make_demo.lock'
BERT = {
    'model_type': 'bert',
    'hidden_size': 128,
    'num_hidden_layers': 2,
    'num_attention_heads': 4,
    'intermediate_size': 384,
    'max_position_embeddings': 128,
    'type_vocab_size': 2,
    'hidden_act': 'gelu',
    'hidden_dropout_prob': 0.1,
    'attention_probs_dropout_prob': 0.1,
    'layer_norm_eps': 1e-12,
    'initializer_range': 0.02,
    'pad_token_id': 0,
}


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
        lang: target language, one of language.LANGUAGES but en. Languages lie side by side
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
            make_once(root / 'clip', vision.clip_tower, report)
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


def check_options(collection, lang, noise, sizes):
    languages = [name for name in language.LANGUAGES if name != 'en']
    for name, value, valid in (
        ('collection', collection, list(COLLECTIONS)),
        ('lang', lang, languages),
    ):
        if value not in valid:
            raise ValueError(f"{name} is '{value}'; the demo has: {', '.join(valid)}")
    if not 0 <= noise <= 1:
        raise ValueError(f'noise is {noise}; expected a rate from 0 to 1')
    for split, size in sizes.items():
        if size < 2:
            raise ValueError(f'{split} is {size}; expected at least 2 visual items')


def is_video(collection):
    return collection in ('vatex', 'msrvttcn')


# ---------------------------------------------------------------------------- folders and manifests


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
        ours = {'TextData', 'FeatureData', 'runs', 'cache', *_picture_folder(folder.name)}
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


def _say_waiting(root, report, holder):
    report(f'waiting for {holder}, which makes a corpus in {root}')


# ----------------------------------------------------------------------------------------- progress


def bar(items, what, unit, total=None):
    """The items, with a progress bar where stderr is a terminal."""
    return tqdm(items, desc=what, unit=f' {unit}', total=total, leave=False, disable=None)


# ------------------------------------------------------------------------------------- visual items


def sample_items(collection, seed, sizes):
    """dict split -> list of (visual id, Scene); no scene and no id occurs twice."""
    scenes = world.sample_scenes(tuple(sizes.values()), world.scene_rng(seed, collection, 'scenes'))
    names = make_ids(collection, sum(sizes.values()), world.scene_rng(seed, collection, 'ids'))
    return {split: [(names.pop(), scene) for scene in part] for split, part in zip(sizes, scenes)}


def make_ids(collection, count, rng):
    """`count` different ids as the collection's own look."""
    letters = 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_'
    if collection == 'msrvttcn':
        return [f'video{number}' for number in rng.sample(range(10 * count), count)]
    if collection == 'multi30k':
        return [str(number) for number in rng.sample(range(10**7, 10**10), count)]
    if collection == 'mscoco':
        return [f'COCO_train2014_{number:012}' for number in rng.sample(range(10**6), count)]
    starts = [rng.randrange(200) for _ in range(count)]
    return [
        f'{"".join(rng.choices(letters, k=10))}{letters[i % 64]}_{start:06}_{start + 10:06}'
        for i, start in enumerate(starts)
    ]


def make_visuals(folder, collection, seed, splits, before):
    """Draw every item beside what is there, then put it in its place, folder by folder; captions
    are gone after it.

    Args:
        folder: of the collection, which is there.
        before: function called when everything is drawn, before the first folder is replaced.
    """
    with temporary_folder(folder / VISUALS) as new:
        (new / 'TextData').mkdir()
        if is_video(collection):
            write_frames(new / 'FeatureData' / 'demo_grid', collection, seed, splits)
        else:
            write_images(new, collection, seed, splits)
        before()
        for part in sorted(new.iterdir()):
            there = folder / part.name
            if there.is_symlink() or there.exists():
                os.replace(there, new / f'old {part.name}')
            os.replace(part, there)


def write_frames(folder, collection, seed, splits):
    """A BigFile folder of frame features: the pictures themselves are not kept, as in the real
    collections."""
    folder.mkdir(parents=True)
    with telling('preparing the features', plain=False):
        bank = vision.frame_bank()
    items, videos = [item for part in splits.values() for item in part], {}
    with open(folder / 'feature.bin', 'wb') as file:
        for name, scene in bar(items, 'drawing', 'videos'):
            frames = world.draw_video(scene, world.scene_rng(seed, collection, name))
            file.write(bank(frames).astype('<f4').tobytes())
            videos[name] = len(frames)
    write_frame_index(folder, videos, vision.FEATURE_DIM)


def write_frame_index(folder, counts, dim):
    """What a BigFile folder needs beside feature.bin.

    Args:
        folder: the BigFile folder.
        counts: dict video id -> its number of frames, in the order of the rows.
        dim: width of a row.
    """
    videos = {name: [f'{name}_{i}' for i in range(count)] for name, count in counts.items()}
    (folder / 'shape.txt').write_text(f'{sum(counts.values())} {dim}')
    (folder / 'id.txt').write_text(
        ' '.join(frame for frames in videos.values() for frame in frames), encoding='iso-8859-1'
    )
    (folder / 'video2frames.txt').write_text(repr(videos), encoding='iso-8859-1')


def _picture_folder(collection):
    """[the name of the folder of images], [] for a collection of videos."""
    if is_video(collection):
        return []
    return [str(Path(load_config(CONFIGS / f'{collection}.yaml').data.images).parent)]


def write_images(folder, collection, seed, splits):
    """JPEGs and id lists; for multi30k also one pooled feature an image, computed from the JPEG."""
    config = load_config(CONFIGS / f'{collection}.yaml')
    pictures = folder / _picture_folder(collection)[0]
    features = folder / 'FeatureData'
    pictures.mkdir()
    features.mkdir()
    bank = None
    if collection == 'multi30k':
        with telling('preparing the features', plain=False):
            bank = vision.image_bank()
    for split, items in splits.items():
        small = []
        for name, scene in bar(items, f'drawing {split}', 'images'):
            picture = world.draw_image(scene, world.scene_rng(seed, collection, name))
            picture.save(pictures / f'{name}.jpg', quality=90)
            small.append(vision.small(picture))
        if bank is not None:
            feature = config.visual.feature
            path = folder / config.data.pooled[split][0].format(feature=feature)
            path.parent.mkdir(exist_ok=True)
            np.save(path, bank(np.stack(small)))


# ----------------------------------------------------------------------------------------- captions


def write_captions(root, folder, collection, lang, *, seed, noise, splits):
    """Every caption file of a language, and the id lists, under the names that the collection's
    config gives them."""
    with telling('loading PyTorch', plain=False):
        from basic.collection import Collection  # imports torch, which takes seconds
    tasks = (1, 2) if collection == 'multi30k' else (1,)
    for task in tasks:
        config = load_config(
            CONFIGS / f'{collection}.yaml', [f'data.lang={lang}', f'data.task={task}']
        )
        files = Collection(config, root)
        for split in SPLITS:
            count = FLICKR_CAPTIONS if task == 2 and split == 'train' else COLLECTIONS[collection]
            write_split(
                files,
                split,
                splits[split],
                lang,
                count=count,
                seed=f'{seed}/{collection}',
                noise=noise,
            )
            if config.data.ids[split]:
                path = next(files.paths(config.data.ids[split][0], split))
                write_atomically(path, ''.join(f'{name}\n' for name, _ in splits[split]))


def write_split(files, split, items, lang, *, count, seed, noise):
    """The caption files of one split: `count` captions an item in every branch that the split
    has."""
    tags = caption_tags(split, lang)
    lines = {role: [] for role in tags}
    for name, scene in bar(items, f'describing {split}', 'items'):
        for n in range(count):
            original = world.scene_rng(seed, name, n, 'en' if split == 'train' else lang)
            machine = world.scene_rng(seed, name, n, lang, 'machine')
            for role, text in caption(scene, split, lang, original, machine, noise).items():
                lines[role].append(f'{name}#{tags[role]}#{n} {text}\n')
    for role, text in lines.items():
        write_branch(files, split, role, text)


def caption_tags(split, lang):
    """dict role -> the tag in its captions' ids, for the branches that a split has."""
    if split == 'train':
        return {'en': 'enc', 'tgt': f'enc2{lang}', 'back': f'enc2{lang}2enc'}
    return {'en': f'{lang}2enc', 'tgt': lang}


def write_branch(files, split, role, lines):
    """Write a branch's lines under the name that the collection's config gives it; the file appears
    whole."""
    path = next(files.paths(f'TextData/{files.config.data.captions[split][role]}', split))
    write_atomically(path, ''.join(lines))


def caption(scene, split, lang, original, machine, noise):
    """One caption in every branch: dict role -> text.

    Args:
        original: generator of what a person writes, the same for every noise; machine: of what the
            translation does.
    """
    mentioned = language.mention(scene, original)
    human = 'en' if split == 'train' else lang
    text = language.render(language.describe(scene, human, original, mentioned), human)
    if split != 'train':
        return {'tgt': text, 'en': language.translate(scene, mentioned, 'en', machine, noise)[0]}
    tgt, meant, still = language.translate(scene, mentioned, lang, machine, noise)
    return {
        'en': text,
        'tgt': tgt,
        'back': language.translate(meant, still, 'en', machine, noise)[0],
    }


# ---------------------------------------------------------------------------------------------- the
# text encoder's folder


def write_bert(folder):
    """config.json and vocab.txt of a small BERT without weights; the vocabulary covers every
    language of the demo."""
    write_text_encoder(folder, BERT, build_vocabulary())


def write_text_encoder(folder, architecture, vocabulary):
    """A folder for `text.bert` without weights: architecture (a BERT config but for its size),
    vocabulary."""
    (folder / 'vocab.txt').write_text(
        ''.join(f'{token}\n' for token in vocabulary), encoding='utf-8'
    )
    (folder / 'config.json').write_text(
        json.dumps({**architecture, 'vocab_size': len(vocabulary)}, indent=2) + '\n'
    )
    (folder / 'tokenizer_config.json').write_text(
        json.dumps({'do_lower_case': True, 'tokenizer_class': 'BertTokenizer'}, indent=2) + '\n'
    )


def build_vocabulary():
    """WordPiece tokens: special ones, every character alone and inside a word, then words by
    falling frequency."""
    from tokenizers import normalizers, pre_tokenizers

    normalizer = normalizers.BertNormalizer(
        lowercase=True, strip_accents=True, handle_chinese_chars=True
    )
    splitter = pre_tokenizers.BertPreTokenizer()
    words = Counter()
    for lang in language.LANGUAGES:
        for text in language.corpus(lang):
            words.update(
                word for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text))
            )
    characters = sorted(set(''.join(words)) | set('abcdefghijklmnopqrstuvwxyz0123456789.,'))
    ranked = sorted(
        (word for word in words if len(word) > 1), key=lambda word: (-words[word], word)
    )
    return [
        '[PAD]',
        '[UNK]',
        '[CLS]',
        '[SEP]',
        '[MASK]',
        *characters,
        *(f'##{c}' for c in characters),
        *ranked,
    ]


# --------------------------------------------------------------------------------- the command line


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
        help='target language: ' + ', '.join(name for name in language.LANGUAGES if name != 'en'),
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
