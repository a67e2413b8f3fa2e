"""The demo's visual items on disk: frame features of videos; images, and features of them."""

import os

import numpy as np
from PIL import Image

from basic.command import telling
from basic.config import load_config
from basic.files import temporary_folder
from basic.thumbnails import GAP, contact_sheet, jpeg_of
from util.make_demo import drawing, features
from util.make_demo.items import CONFIGS, bar, is_video, picture_folder
from util.make_demo.world import scene_rng

VISUALS = 'visuals'  # in the manifest's list of what is unfinished, beside languages
SHEETS = 'contact_sheets'  # the folder of what there is to look at of videos, see data.media


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
            write_frames(new, collection, seed, splits)
        else:
            write_images(new, collection, seed, splits)
        before()
        for part in sorted(new.iterdir()):
            there = folder / part.name
            if there.is_symlink() or there.exists():
                os.replace(there, new / f'old {part.name}')
            os.replace(part, there)


def write_frames(new, collection, seed, splits):
    """A BigFile folder of frame features; and four frames of each video of val and test, to look
    at: the videos themselves are not kept, as in the real collections."""
    folder, sheets = new / 'FeatureData' / 'demo_grid', new / SHEETS
    folder.mkdir(parents=True)
    sheets.mkdir()
    with telling('preparing the features', plain=False):
        bank = features.frame_bank()
    items, videos = [item for part in splits.values() for item in part], {}
    unseen = {name for name, _ in splits['train']}
    with open(folder / 'feature.bin', 'wb') as file:
        for name, scene in bar(items, 'drawing', 'videos'):
            frames = drawing.draw_video(scene, scene_rng(seed, collection, name))
            file.write(bank(frames).astype('<f4').tobytes())
            videos[name] = len(frames)
            if name not in unseen:
                (sheets / f'{name}.jpg').write_bytes(jpeg_of(sheet_of(frames)))
    write_frame_index(folder, videos, features.FEATURE_DIM)


def sheet_of(frames):
    """Four frames of a video (F, S, S, 3) uint8, from the first to the last, as one picture."""
    shown = frames[np.linspace(0, len(frames) - 1, 4).round().astype(int)]
    return contact_sheet([Image.fromarray(frame) for frame in shown], 2 * frames.shape[1] + GAP)


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


def write_images(folder, collection, seed, splits):
    """JPEGs; for multi30k also one pooled feature an image, computed from the JPEG."""
    config = load_config(CONFIGS / f'{collection}.yaml')
    pictures = folder / picture_folder(collection)[0]
    pictures.mkdir()
    (folder / 'FeatureData').mkdir()
    bank = None
    if collection == 'multi30k':
        with telling('preparing the features', plain=False):
            bank = features.image_bank()
    for split, items in splits.items():
        small = []
        for name, scene in bar(items, f'drawing {split}', 'images'):
            picture = drawing.draw_image(scene, scene_rng(seed, collection, name))
            picture.save(pictures / f'{name}.jpg', quality=90)
            small.append(features.small(picture))
        if bank is not None:
            feature = config.visual.feature
            path = folder / config.data.pooled[split][0].format(feature=feature)
            path.parent.mkdir(exist_ok=True)
            np.save(path, bank(np.stack(small)))
