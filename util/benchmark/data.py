"""Made data for util.benchmark: a video collection of true sizes in its own files, random in
content.

Only what costs time is true to life: numbers of videos, frames and captions, the width of features,
the lengths of captions in WordPieces, the size of the vocabulary, the dimensions of BERT. Nothing
can be learnt from it.
"""

import json
import os
import shutil
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np

from basic.collection import Collection
from basic.config import SPLITS, load_config
from util.make_demo.bert import BERT, write_text_encoder
from util.make_demo.captions import caption_tags, write_branch
from util.make_demo.items import make_ids
from util.make_demo.visuals import write_frame_index
from util.make_demo.world import scene_rng

VERSION = 1  # raise it when the same options make other data
MANIFEST = 'benchmark.json'  # written last: a folder without it is unfinished, or not ours
CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
FRAMES = (24, 36)  # of a video, evenly drawn: 30 in the mean
CHUNK = 2**22  # numbers drawn and written at once
LINE_BYTES = 130  # of a caption's line, generously, for the disk check

# Captions' lengths, mean and deviation, as measured once on the 15,000 VATEX validation captions of
# each kind: words of the English ones, characters (one WordPiece each) of their machine translation
# and of the human Chinese ones.
LENGTHS = {'english': (14.22, 3.64), 'machine': (20.45, 5.85), 'human': (22.36, 5.28)}
SECOND_PIECE = 0.167  # share of the English words there that are two WordPieces
CHARACTERS = 2652  # different characters there; 10,567 different English words
# the sample has no back-translation
KINDS = {
    'train': {'en': 'english', 'tgt': 'machine', 'back': 'english'},
    'val': {'en': 'english', 'tgt': 'human'},
    'test': {'en': 'english', 'tgt': 'human'},
}

SYLLABLES = [a + b for a, b in product('bcdfghjklmnpqrstvwxz', 'aeiou')]
WORDS = [*SYLLABLES, *map(''.join, product(SYLLABLES, SYLLABLES))]  # 10,100 of one WordPiece each
MBERT = {
    **BERT,
    'hidden_size': 768,
    'num_hidden_layers': 12,
    'num_attention_heads': 12,
    'intermediate_size': 3072,
    'max_position_embeddings': 512,
}


@dataclass(frozen=True)
class Sizes:
    """How much data is made, and for which model.

    Attributes:
        train, val, test: videos; captions: of each video; dim: width of a frame's feature.
        vocabulary: WordPieces; bert: BERT's config but for that.
        queries, gallery: captions and visual items that are scored.
        options: key=value of the model, under those of the command line.
        batch_size: caption pairs, where none is asked for.
    """

    train: int
    val: int
    test: int
    captions: int
    dim: int
    vocabulary: int
    bert: dict
    queries: int
    gallery: int
    options: tuple = ()
    batch_size: int = 128


# Official splits; captions a video; width of the released features.
COLLECTIONS = {
    'vatex': dict(train=25991, val=1500, test=1500, captions=10, dim=1024),
    'msrvttcn': dict(train=6513, val=497, test=2990, captions=20, dim=4096),
}
SMALL_BERT = {
    **MBERT,
    'hidden_size': 256,
    'num_hidden_layers': 4,
    'num_attention_heads': 4,
    'intermediate_size': 1024,
}
SMALL_MODEL = (
    'text.trained_layers=[2,3]',
    'text.hidden=256',
    'text.qk_width=256',
    'visual.hidden=256',
    'visual.qk_width=256',
    'space.dim=512',
)


def sizes_of(collection, name):
    """The Sizes `small`, `paper` or `million` of a collection."""
    counts = COLLECTIONS[collection]
    paper = Sizes(
        **counts,
        vocabulary=119547,
        bert=MBERT,
        queries=counts['test'] * counts['captions'],
        gallery=counts['test'],
    )
    if name == 'small':
        return replace(
            paper,
            train=400,
            val=40,
            test=300,
            vocabulary=16000,
            bert=SMALL_BERT,
            options=SMALL_MODEL,
            queries=300 * counts['captions'],
            gallery=300,
            batch_size=16,
        )
    if name == 'million':
        return replace(paper, train=100_000, captions=10, queries=1_000_000, gallery=100_000)
    return paper


def make_data(folder, collection, sizes, *, seed=1, report=print):
    """Make the data in a folder, or do nothing where the same are already there.

    Args:
        folder: becomes ROOTPATH; beside the collection it holds `bert/`, an architecture and a
            vocabulary.
        collection: a key of COLLECTIONS; sizes: its Sizes.
        seed: of everything drawn.
        report: called with a line of text for what is made.
    Returns:
        folder, as a Path.
    Raises:
        ValueError: a folder in the way that holds something else, or a disk too small; says how
            much is needed.
    """
    folder = Path(folder)
    options = {'version': VERSION, 'collection': collection, 'seed': seed, **asdict(sizes)}
    made = {
        key: value
        for key, value in options.items()
        if key not in ('queries', 'gallery', 'options', 'batch_size')
    }
    manifest = folder / MANIFEST
    if manifest.is_file() and json.loads(manifest.read_text()) == made:
        report(f'data: {folder} is there already')
        return folder
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(
            f"{folder} is in the way: it does not hold this benchmark's data of these options; give"
            ' another --folder, or delete it'
        )
    check_disk(folder, sizes, report)
    (folder / 'bert').mkdir(parents=True)
    write_text_encoder(folder / 'bert', sizes.bert, vocabulary(sizes.vocabulary))
    text = folder / collection / 'TextData'
    text.mkdir(parents=True)
    config = load_config(CONFIGS / f'{collection}.yaml')
    names = make_ids(
        collection, sizes.train + sizes.val + sizes.test, scene_rng(seed, collection, 'ids')
    )
    rng = np.random.default_rng(seed)
    frames = folder / collection / config.data.frames.format(feature=config.visual.feature)
    write_features(frames, names, sizes.dim, rng)
    files = Collection(config, folder)
    for split in SPLITS:
        videos = [names.pop() for _ in range(getattr(sizes, split))]
        for branch, tag in caption_tags(split, config.data.lang).items():
            texts = make_captions(KINDS[split][branch], len(videos) * sizes.captions, rng)
            ids = (f'{name}#{tag}#{n}' for name in videos for n in range(sizes.captions))
            write_branch(files, split, branch, [f'{id_} {text}\n' for id_, text in zip(ids, texts)])
    manifest.write_text(json.dumps(made) + '\n')
    return folder


def check_disk(folder, sizes, report):
    """Raise ValueError unless the data fit on the folder's disk; report how much they take."""
    videos = sizes.train + sizes.val + sizes.test
    features = videos * sum(FRAMES) // 2 * sizes.dim * 4
    captions = sizes.captions * LINE_BYTES * (3 * sizes.train + 2 * (sizes.val + sizes.test))
    needed = int(1.03 * (features + captions)) + 2**23
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise ValueError(
            f'the data take {needed / 2**30:.2f} GiB, but the disk of {there} has only '
            f'{free / 2**30:.2f} GiB free: give another --folder, or smaller --sizes'
        )
    report(
        f'data: making {videos:,} videos and their captions in {folder}, {needed / 2**30:.2f} GiB'
    )


def vocabulary(size):
    """WordPieces: special ones, characters, syllables as endings, words, CJK characters; filled up
    to `size`."""
    characters = list('abcdefghijklmnopqrstuvwxyz0123456789.,')
    pieces = [
        '[PAD]',
        '[UNK]',
        '[CLS]',
        '[SEP]',
        '[MASK]',
        *characters,
        *(f'##{c}' for c in characters),
        *(f'##{syllable}' for syllable in SYLLABLES),
        *WORDS,
        *(chr(0x4E00 + i) for i in range(CHARACTERS)),
    ]
    assert len(pieces) <= size, 'a vocabulary too small for the words of the captions'
    return pieces + [f'[unused{i}]' for i in range(size - len(pieces))]


def make_captions(kind, count, rng):
    """`count` captions, a list of str, as long as those of LENGTHS[kind], words by Zipf's law."""
    mean, deviation = LENGTHS[kind]
    spread = np.log1p((deviation / mean) ** 2)  # of the lognormal of this mean and deviation
    lengths = np.maximum(
        1, np.rint(rng.lognormal(np.log(mean) - spread / 2, np.sqrt(spread), count))
    ).astype(np.int64)
    ends = np.cumsum(lengths)
    if kind != 'english':
        codes = 0x4E00 + zipf(CHARACTERS, ends[-1], rng)
        text = codes.astype('<u4').tobytes().decode('utf-32-le')
        return [text[end - length : end] for end, length in zip(ends.tolist(), lengths.tolist())]
    ranks = zipf(len(WORDS), ends[-1], rng)
    long = rng.random(len(ranks)) < SECOND_PIECE
    # a word of two syllables; with a third it is no word
    ranks[long] = np.maximum(ranks[long], len(SYLLABLES))
    words = np.array(WORDS, dtype=object)[ranks]
    words[long] += np.array(SYLLABLES, dtype=object)[rng.integers(len(SYLLABLES), size=long.sum())]
    words = words.tolist()
    return [
        ' '.join(words[end - length : end]) for end, length in zip(ends.tolist(), lengths.tolist())
    ]


def zipf(kinds, count, rng):
    """(count,) int64 ranks below `kinds`, rank r with a probability in proportion to 1 / (r +
    2.7)."""
    odds = np.cumsum(1 / (np.arange(kinds) + 2.7))
    return np.searchsorted(odds, rng.random(count) * odds[-1], side='right')


def write_features(folder, names, dim, rng):
    """A BigFile folder of random features, written in chunks."""
    folder.mkdir(parents=True)
    counts = rng.integers(FRAMES[0], FRAMES[1] + 1, size=len(names)).tolist()
    left = sum(counts) * dim
    with open(folder / 'feature.bin', 'wb') as file:
        while left:
            chunk = rng.standard_normal(min(left, CHUNK), dtype=np.float32).astype(
                '<f4', copy=False
            )
            file.write(chunk)
            left -= len(chunk)
        file.flush()
        os.fsync(file.fileno())  # or the disk is busy with it while the loader is timed
    write_frame_index(folder, dict(zip(names, counts)), dim)
