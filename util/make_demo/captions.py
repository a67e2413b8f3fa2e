"""The demo's caption files: what a person wrote, and what the translator made of it."""

from basic.command import telling
from basic.config import SPLITS, load_config
from basic.files import write_atomically
from util.make_demo.items import COLLECTIONS, CONFIGS, bar
from util.make_demo.language import describe, mention, render
from util.make_demo.translation import translate
from util.make_demo.world import scene_rng

FLICKR_CAPTIONS = 5  # of a training image in Multi-30K's task 2


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
    lines = {branch: [] for branch in tags}
    for name, scene in bar(items, f'describing {split}', 'items'):
        for n in range(count):
            original = scene_rng(seed, name, n, 'en' if split == 'train' else lang)
            machine = scene_rng(seed, name, n, lang, 'machine')
            for branch, text in caption(scene, split, lang, original, machine, noise).items():
                lines[branch].append(f'{name}#{tags[branch]}#{n} {text}\n')
    for branch, text in lines.items():
        write_branch(files, split, branch, text)


def caption_tags(split, lang):
    """dict branch -> the tag in its captions' ids, for the branches that a split has."""
    if split == 'train':
        return {'en': 'enc', 'tgt': f'enc2{lang}', 'back': f'enc2{lang}2enc'}
    return {'en': f'{lang}2enc', 'tgt': lang}


def write_branch(files, split, branch, lines):
    """Write a branch's lines under the name that the collection's config gives it; the file appears
    whole."""
    path = next(files.paths(f'TextData/{files.config.data.captions[split][branch]}', split))
    write_atomically(path, ''.join(lines))


def caption(scene, split, lang, original, machine, noise):
    """One caption in every branch: dict branch -> text.

    Args:
        original: generator of what a person writes, the same for every noise; machine: of what the
            translation does.
    """
    mentioned = mention(scene, original)
    human = 'en' if split == 'train' else lang
    text = render(describe(scene, human, original, mentioned), human)
    if split != 'train':
        return {'tgt': text, 'en': translate(scene, mentioned, 'en', machine, noise)[0]}
    tgt, meant, still = translate(scene, mentioned, lang, machine, noise)
    return {'en': text, 'tgt': tgt, 'back': translate(meant, still, 'en', machine, noise)[0]}
