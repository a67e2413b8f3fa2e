"""Small collections in the layout of the data, with known features and images; for the tests of the
data path."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from basic.config import load_config
from basic.errors import DataError
from basic.pretrained.tokenizer import load_tokenizer

CONFIGS = Path(__file__).resolve().parent.parent / 'configs'
WORDS = ['a', 'man', 'dog', 'runs', 'eats', 'red', 'un', 'chien', '狗', '人']
VIDEOS = {
    'train': {'v0': 3, 'v1': 1, 'v2': 5, 'v3': 2, 'v4': 4},
    'val': {'w0': 2, 'w1': 3},
    'test': {'x0': 1, 'x1': 2},
}


def make_tokenizer(folder):
    path = folder / 'vocab.txt'
    path.write_text(
        '\n'.join(['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', '.', *WORDS]) + '\n',
        encoding='utf-8',
    )
    return load_tokenizer(path, True)


def write_captions(path, tag, ids, seed=0):
    """Captions of 1 to 6 words, the last line first: the branches' files are in different
    orders."""
    random = np.random.default_rng(seed)
    lines = [
        f'{name}#{tag}#{n} {" ".join(random.choice(WORDS, size=random.integers(1, 7)))}'
        for name, n in ids
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('\n'.join(lines) + '\n', encoding='utf-8')


def make_video_root(root, name='vatex', prefix='vatex'):
    """The video layout: the rows of feature.bin count up, number 10 * row + column."""
    text, folder = root / name / 'TextData', root / name / 'FeatureData' / 'i3d_kinetics'
    ids = [(video, n) for video in VIDEOS['train'] for n in range(3)]
    write_captions(text / f'{prefix}train.caption.txt', 'enc', ids)
    write_captions(text / f'{prefix}train_google_enc2zh.caption.txt', 'enc2zh', ids[::-1], seed=1)
    write_captions(
        text / f'{prefix}train_google_enc2zh2enc.caption.txt',
        'enc2zh2enc',
        ids[3:] + ids[:3],
        seed=2,
    )
    for split in ('val', 'test'):
        ids = [(video, n) for n in range(2) for video in reversed(VIDEOS[split])]
        write_captions(text / f'{prefix}{split}_google_zh2enc.caption.txt', 'zh2enc', ids, seed=3)
        write_captions(text / f'{prefix}{split}_zh.caption.txt', 'zh', sorted(ids), seed=4)
    folder.mkdir(parents=True)
    videos = {
        video: [f'{video}_{i}' for i in range(count)]
        for split in VIDEOS.values()
        for video, count in split.items()
    }
    frames = [frame for names in videos.values() for frame in names]
    (10 * np.arange(len(frames))[:, None] + np.arange(4)).astype('<f4').tofile(
        folder / 'feature.bin'
    )
    (folder / 'shape.txt').write_text(f'{len(frames)} 4')
    (folder / 'id.txt').write_text(' '.join(frames))
    (folder / 'video2frames.txt').write_text(repr({**videos, 'empty': []}))
    return root


IMAGES = {'train': ['a', 'b', 'c'], 'val': ['d', 'e', 'f'], 'test': ['g', 'h']}


def make_image_root(root, images=True, lang='de', t='_task1'):
    """The image layout, both kinds: features `resnet_152` of 6 numbers, and raw images of different
    shapes."""
    text, features = root / 'multi30k' / 'TextData', root / 'multi30k' / 'FeatureData'
    roles = {
        'train': ('train_enc', f'train_google_enc2{lang}', f'train_google_enc2{lang}2enc'),
        'val': (f'val_google_{lang}2enc{t}', f'val_{lang}{t}'),
        'test': (f'test_google_{lang}2enc_2016{t}', f'test_{lang}_2016{t}'),
    }
    (features / 'resnet_152').mkdir(parents=True)
    (root / 'multi30k' / 'flickr30k-images').mkdir()
    for split, names in roles.items():
        ids = [(name, 0) for name in reversed(IMAGES[split])]
        if split == 'val':  # e has no caption
            ids = [item for item in ids if item[0] != 'e']
        for name in names:
            write_captions(text / f'multi30k{name}.caption.txt', 'tag', ids)
        (features / ('test_id_2016.txt' if split == 'test' else f'{split}_id.txt')).write_text(
            ''.join(f'{name}.jpg\n' for name in IMAGES[split])
        )
        np.save(
            features
            / 'resnet_152'
            / f'{"test_2016_flickr" if split == "test" else split}-resnet_152-avgpool.npy',
            np.arange(6 * len(IMAGES[split]), dtype=np.float32).reshape(-1, 6),
        )
    for i, name in enumerate(sum(IMAGES.values(), []) if images else []):
        pixels = np.random.default_rng(i).integers(
            0, 255, size=(40 + 7 * i, 60 - 3 * i, 3), dtype=np.uint8
        )
        image = Image.fromarray(pixels).convert('L' if i == 1 else 'RGB')
        image.save(root / 'multi30k' / 'flickr30k-images' / f'{name}.jpg')
    return root


def vatex(*options):
    return load_config(CONFIGS / 'vatex.yaml', ['train.workers=0', 'train.batch_size=4', *options])


def multi30k(*options):
    return load_config(
        CONFIGS / 'multi30k.yaml', ['train.workers=0', 'train.batch_size=2', *options]
    )


def complaint(function, *args, **kwargs):
    with pytest.raises(DataError) as error:
        function(*args, **kwargs)
    return str(error.value)


def numbers(batch):
    """Everything in a Batch, as plain lists."""
    tokens = [
        part
        for branch in (batch.en, batch.tgt, batch.back)
        if branch
        for part in (branch.ids, branch.mask)
    ]
    return [
        None if part is None else part.tolist()
        for part in (batch.visual, batch.visual_mask, batch.index, *tokens)
    ]
