"""The demo's collections, and their visual items: an id and a scene each."""

from pathlib import Path

from tqdm import tqdm

from basic.config import load_config
from util.make_demo.words import LANGUAGES
from util.make_demo.world import sample_scenes, scene_rng

CONFIGS = Path(__file__).resolve().parents[2] / 'configs' / 'demo'
COLLECTIONS = {'vatex': 2, 'msrvttcn': 2, 'multi30k': 1, 'mscoco': 2}  # captions a visual item


def check_options(collection, lang, noise, sizes):
    languages = [name for name in LANGUAGES if name != 'en']
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


def picture_folder(collection):
    """[the name of the folder of images], [] for a collection of videos."""
    if is_video(collection):
        return []
    return [str(Path(load_config(CONFIGS / f'{collection}.yaml').data.images).parent)]


def sample_items(collection, seed, sizes):
    """dict split -> list of (visual id, Scene); no scene and no id occurs twice."""
    scenes = sample_scenes(tuple(sizes.values()), scene_rng(seed, collection, 'scenes'))
    names = make_ids(collection, sum(sizes.values()), scene_rng(seed, collection, 'ids'))
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


def bar(items, what, unit, total=None):
    """The items, with a progress bar where stderr is a terminal."""
    return tqdm(items, desc=what, unit=f' {unit}', total=total, leave=False, disable=None)
