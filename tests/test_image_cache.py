"""compute.image_cache: images kept on disk as pixels or as the frozen tower's embeddings."""

import json
import os

import numpy as np
import pytest
import torch
from conftest import IMAGE_SIZE
from PIL import Image
from roots import IMAGES, complaint, make_image_root, make_tokenizer
from torch import multiprocessing

from basic.cache import cached_array
from basic.images import ImageSource, Preprocessing
from basic.pretrained.encoders import weights_fingerprint
from data_provider import build_loaders
from evaluation import encode
from model import build_model


@pytest.fixture
def root(tmp_path):
    return make_image_root(tmp_path)


@pytest.fixture
def setting(root, tmp_path, make_config):
    """setting(kind, *options) -> (loaders of train and val, model), always of the same weights."""
    tokenizer = make_tokenizer(tmp_path)

    def make(kind, *options, seed=0, splits=('train', 'val')):
        config = make_config(
            'clip', f'compute.image_cache={kind}', 'train.workers=0', 'train.batch_size=2', *options
        )
        torch.manual_seed(seed)
        model = build_model(config)
        return build_loaders(
            config,
            root,
            tokenizer,
            splits=splits,
            preprocessing=Preprocessing(IMAGE_SIZE),
            model=model,
        ), model

    return make


def caches(root):
    """dict name -> (inode of the array, what it was made from)."""
    return {
        path.name: (
            (path / 'array.npy').stat().st_ino,
            json.loads((path / 'made_from.json').read_text()),
        )
        for path in (root / 'multi30k/cache').iterdir()
        if path.is_dir()
    }


def count_decoding(monkeypatch):
    """A list that grows by each image that this process decodes."""
    decoded, load = [], ImageSource.load
    monkeypatch.setattr(
        ImageSource, 'load', lambda source, name: decoded.append(name) or load(source, name)
    )
    monkeypatch.setattr('data_provider.cpu_count', lambda: 0)  # no worker processes
    return decoded


def test_pixels_are_the_same_and_decoded_once(root, setting, monkeypatch):
    plain, _ = setting('none')
    decoded = count_decoding(monkeypatch)
    cached, _ = setting('pixels')
    assert sorted(decoded) == IMAGES['train'] + IMAGES['val']
    for one, other in zip(plain['train'], cached['train'], strict=True):
        assert torch.equal(one.visual, other.visual) and one.visual.dtype == torch.uint8
    decoded.clear()
    cached, _ = setting('pixels', seed=1)  # pixels do not depend on the tower
    for (one, _), (other, mask) in zip(plain['val'].visuals, cached['val'].visuals, strict=True):
        assert torch.equal(one, other) and mask is None
    assert sorted(decoded) == ['d', 'e', 'f']  # by the loader without a cache
    found = {name.rpartition('_')[0]: made_from for name, (_, made_from) in caches(root).items()}
    assert set(found) == {'train_pixels', 'val_pixels'}
    (path,) = (root / 'multi30k/cache').glob('val_pixels*')
    assert (path / 'ids.txt').read_text().split() == ['d', 'e', 'f']
    assert np.load(path / 'array.npy').shape == (3, 3, IMAGE_SIZE, IMAGE_SIZE)


def test_embeddings_equal_those_of_the_uncached_path(root, setting, monkeypatch):
    plain, model = setting('none')
    expected = encode(model, plain['val'], torch.device('cpu'))
    decoded = count_decoding(monkeypatch)
    cached, model = setting('embeddings')
    assert model.training and sorted(decoded) == IMAGES['train'] + IMAGES['val']
    decoded.clear()
    for loaders in (cached, setting('embeddings')[0]):
        found = encode(model, loaders['val'], torch.device('cpu'))
        torch.testing.assert_close(found.visual, expected.visual, atol=1e-5, rtol=0)
        for one, other in zip(loaders['train'], plain['train'], strict=True):
            assert one.visual.shape == (len(one.index), 12) and one.visual.dtype == torch.float32
            torch.testing.assert_close(
                model.visual_encoder(one.visual),
                model.visual_encoder(other.visual),
                atol=1e-5,
                rtol=0,
            )
        assert set(decoded) == set(IMAGES['train'])  # by the loader without a cache alone


def test_embeddings_belong_to_a_tower(root, setting):
    options = ('visual.clip_pretrained=false',)
    first, _ = setting('embeddings', *options, splits=('val',))
    other, _ = setting('embeddings', *options, splits=('val',), seed=1)
    visual, changed = (next(iter(loaders['val'].visuals))[0] for loaders in (first, other))
    assert len(caches(root)) == 2 and not torch.allclose(visual, changed)
    before = caches(root)
    again, model = setting('embeddings', *options, splits=('val',))
    assert caches(root) == before and torch.equal(next(iter(again['val'].visuals))[0], visual)
    fingerprint = weights_fingerprint(model.visual_encoder.clip)
    model.visual_encoder.clip.config.hidden_act = 'gelu'  # no weight tells it
    assert weights_fingerprint(model.visual_encoder.clip) != fingerprint


def test_changed_images_are_read_anew(root, setting):
    before, _ = setting('pixels', splits=('val',))
    old = next(iter(before['val'].visuals))[0]
    ((name, (inode, _)),) = caches(root).items()
    path = root / 'multi30k/flickr30k-images/e.jpg'
    Image.new('RGB', (30, 30), (200, 10, 10)).save(path)
    after, _ = setting('pixels', splits=('val',))
    new = next(iter(after['val'].visuals))[0]
    assert list(caches(root)) == [name] and caches(root)[name][0] != inode  # in the old one's place
    assert torch.equal(new[[0, 2]], old[[0, 2]]) and 190 < new[1, 0].float().mean() < 210
    # a run that uses the old one goes on
    assert torch.equal(next(iter(before['val'].visuals))[0], old)


def test_the_size_of_images_tells_caches_apart(root, setting, tmp_path, make_config):
    setting('pixels', splits=('val',))
    loaders = build_loaders(
        make_config('clip', 'compute.image_cache=pixels', 'train.workers=0'),
        root,
        make_tokenizer(tmp_path),
        splits=('val',),
        preprocessing=Preprocessing(8),
    )
    assert next(iter(loaders['val'].visuals))[0].shape == (3, 3, 8, 8) and len(caches(root)) == 2


def test_a_folder_that_cannot_be_written(root, setting):
    (root / 'multi30k/cache').write_text(
        'a file: nothing can be written below it, not even by root'
    )
    message = complaint(setting, 'pixels')
    assert 'compute.image_cache=pixels' in message and str(root / 'multi30k/cache') in message
    assert 'compute.image_cache=none' in message


def test_a_broken_image_leaves_no_cache(root, setting):
    (root / 'multi30k/flickr30k-images/f.jpg').write_bytes(b'<html>')
    assert 'f.jpg: cannot be read as an image' in complaint(setting, 'pixels', splits=('val',))
    assert [path.name for path in (root / 'multi30k/cache').iterdir()] == ['.lock']


def make_one(number, folder):
    def parts():
        with open(folder / 'makers', 'a') as file:
            file.write(f'{number}\n')
        for _ in range(20):
            yield np.full((5, 2), number, dtype=np.float32)

    path = cached_array(
        folder / 'cache/x', ids=list(map(str, range(100))), made_from={'a': 1}, parts=parts
    )
    array = np.load(path)
    assert array.shape == (100, 2) and len(np.unique(array)) == 1


def test_one_process_computes_and_the_others_wait(tmp_path):
    multiprocessing.start_processes(make_one, args=(tmp_path,), nprocs=4, start_method='fork')
    assert len((tmp_path / 'makers').read_text().split()) == 1
    cached_array(
        tmp_path / 'cache/x', ids=['0'], made_from={'a': 1}, parts=lambda: [np.zeros((1, 2))]
    )
    assert np.load(tmp_path / 'cache/x/array.npy').shape == (1, 2)  # other ids: made anew


def test_what_a_killed_process_left_is_removed(tmp_path):
    (tmp_path / 'cache/.x.abc').mkdir(parents=True)
    (tmp_path / 'cache/.x.abc/array.npy').write_bytes(b'half')
    (tmp_path / 'cache/x').mkdir()
    (tmp_path / 'cache/x/made_from.json').write_text('{"a": 1')
    make_one(0, tmp_path)
    assert sorted(path.name for path in (tmp_path / 'cache').iterdir()) == ['.lock', 'x']


def test_the_lock_is_not_written_through_a_link(tmp_path):
    (tmp_path / 'precious').write_text('kept')
    (tmp_path / 'cache').mkdir()
    (tmp_path / 'cache/.lock').symlink_to('../precious')
    with pytest.raises(OSError, match='cache/.lock is a symbolic link'):
        make_one(0, tmp_path)
    assert (tmp_path / 'precious').read_text() == 'kept'


@pytest.mark.parametrize(
    'name, content',
    [
        ('made_from.json', b'[]'),
        ('made_from.json', b'[' * 5000),
        ('made_from.json', b'9' * 5000),
        ('made_from.json', b'\xff'),
        ('made_from.json', None),
        ('ids.txt', b'\xff'),
        ('array.npy', b''),
        ('array.npy', b'\x93NUMPY\x01\x00v\x00{'),
        ('array.npy', None),
    ],
)
def test_what_is_damaged_is_a_cache_miss(tmp_path, name, content):
    make_one(0, tmp_path)
    (tmp_path / 'cache/x' / name).unlink()
    if content is None:
        os.mkfifo(tmp_path / 'cache/x' / name)
    else:
        (tmp_path / 'cache/x' / name).write_bytes(content)
    make_one(1, tmp_path)
    assert np.load(tmp_path / 'cache/x/array.npy')[0, 0] == 1


def test_a_full_disk_leaves_the_old_array(tmp_path):
    make_one(0, tmp_path)

    def parts():
        yield np.zeros((1, 2))
        raise OSError(28, 'No space left on device')

    with pytest.raises(OSError, match='No space'):
        cached_array(tmp_path / 'cache/x', ids=['0', '1'], made_from={}, parts=parts)
    assert sorted(path.name for path in (tmp_path / 'cache').iterdir()) == ['.lock', 'x']
    make_one(1, tmp_path)  # there already
    assert np.load(tmp_path / 'cache/x/array.npy')[0, 0] == 0
