"""data_provider.py: files found, sources, batches, orders, loaders; on made data."""

import logging
import os
import threading

import numpy as np
import pytest
import torch
from PIL import Image
from conftest import IMAGE_SIZE
from roots import (
    CONFIGS,
    IMAGES,
    VIDEOS,
    complaint,
    make_image_root,
    make_tokenizer,
    make_video_root,
    multi30k,
    numbers,
    vatex,
)

from basic import distributed
from basic.collection import Collection
from basic.config import load_config
from basic.errors import DataError
from basic.features import FrameSource, PooledSource
from basic.images import CLIP_MEAN, CLIP_STD, ImageSource, Preprocessing
from basic.loader import Loader
from data_provider import EpochBatches, build_loaders
from model import build_model


@pytest.fixture
def tokenizer(tmp_path):
    return make_tokenizer(tmp_path)


# --------------------------------------------------------------------------------- training batches


def test_a_training_batch_joins_the_branches_and_the_frames(tmp_path, tokenizer):
    root = make_video_root(tmp_path)
    config = vatex('text.clean_en=false')
    loader = build_loaders(config, root, tokenizer, splits=('train',))['train']
    files = Collection(config, root).captions('train')
    by_id = {}
    for branch in ('', '_google_enc2zh', '_google_enc2zh2enc'):
        for line in (
            (root / 'vatex/TextData' / f'vatextrain{branch}.caption.txt')
            .read_text('utf-8')
            .splitlines()
        ):
            name, _, text = line.partition(' ')
            by_id.setdefault((name.split('#')[0], name.split('#')[2]), []).append(text)
    assert (loader.dataset_size, loader.feature_dim, len(loader)) == (15, 4, 4)
    rows = list(VIDEOS['train'])
    first_row = dict(zip(rows, np.cumsum([0, *VIDEOS['train'].values()]).tolist()))
    seen = []
    for batch in loader:
        for place, row in enumerate(batch.index.tolist()):
            video, n = files['en'].ids[row]
            for branch, text in zip((batch.en, batch.tgt, batch.back), by_id[video, n]):
                expected = tokenizer(text)['input_ids']
                length = int(branch.mask[place].sum())
                assert branch.ids[place, :length].tolist() == expected
                assert branch.mask[place, :length].all() and not branch.ids[place, length:].any()
            count = VIDEOS['train'][video]
            expected = 10 * (first_row[video] + np.arange(count))[:, None] + np.arange(4)
            assert batch.visual[place, :count].tolist() == expected.tolist()
            assert not batch.visual[place, count:].any()
            assert batch.visual_mask[place].tolist() == [1.0] * count + [0.0] * (
                batch.visual.shape[1] - count
            )
            seen.append(row)
        for tensor in (batch.en.mask, batch.tgt.mask, batch.back.mask, batch.visual_mask):
            assert tensor.sum(1).max() == tensor.shape[1]  # each is padded to its own longest
        assert batch.index.dtype == torch.int64 and batch.visual.dtype == torch.float32
    assert sorted(seen) == list(range(15))


def test_english_is_cleaned_and_the_other_branches_are_not(tmp_path, tokenizer):
    root = make_image_root(tmp_path)
    for path in (root / 'multi30k/TextData').glob('multi30ktrain*'):
        path.write_text(
            ''.join(f'{name}#t#0 a-狗,man\n' for name in IMAGES['train']), encoding='utf-8'
        )
    batch = next(
        iter(
            build_loaders(multi30k('visual.kind=pooled'), root, tokenizer, splits=('train',))[
                'train'
            ]
        )
    )
    words = [
        tokenizer.convert_ids_to_tokens(branch.ids[0].tolist())
        for branch in (batch.en, batch.tgt, batch.back)
    ]
    assert words[0] == ['[CLS]', 'a', 'man', '.', '[SEP]']
    assert words[1] == words[2] == ['[CLS]', 'a', '[UNK]', '狗', '[UNK]', 'man', '[SEP]']


def test_back_translations_are_not_needed_without_their_loss(tmp_path, tokenizer):
    root = make_video_root(tmp_path)
    (root / 'vatex/TextData/vatextrain_google_enc2zh2enc.caption.txt').unlink()
    loader = build_loaders(
        vatex('loss.weights.triplet_back=0'), root, tokenizer, splits=('train',)
    )['train']
    batch = next(iter(loader))
    assert batch.back is None and batch.to('cpu').back is None
    assert "branch 'back'" in complaint(build_loaders, vatex(), root, tokenizer, splits=('train',))


@pytest.mark.parametrize('workers, clean', [(0, False), (2, True)])
def test_the_english_branch_reads_back_translations(tmp_path, tokenizer, workers, clean):
    root = make_video_root(tmp_path)

    def epochs(*options):
        loader = build_loaders(
            vatex('train.batch_size=2', f'train.workers={workers}', *options),
            root,
            tokenizer,
            splits=('train',),
        )['train']
        found = []
        for epoch in range(12):
            loader.set_epoch(epoch)
            found.append([numbers(batch) for batch in loader])
        return found, loader

    weights = ('loss.weights.triplet_back=0', f'text.clean_back={clean}')
    (human, _), (both, plain) = epochs(), epochs('train.back_as_en=0.5')
    machine, _ = epochs('train.back_as_en=1', *weights)
    mixed, loader = epochs('train.back_as_en=0.5', *weights)
    assert next(iter(loader)).back is None and next(iter(plain)).back is not None
    assert epochs('train.back_as_en=0.5', *weights)[0] == mixed  # a function of seed and epoch
    assert loader.dataset_size == plain.dataset_size == len(loader.dataset)

    def captions(found):  # (epoch, pair) -> the English branch's token ids
        return {
            (epoch, pair): [token for token, real in zip(ids, mask) if real]
            for epoch, batches in enumerate(found)
            for _, _, index, en_ids, en_mask, *_ in batches
            for pair, ids, mask in zip(index, en_ids, en_mask)
        }

    own, back, drawn = captions(human), captions(machine), captions(mixed)
    assert own.keys() == back.keys() == drawn.keys()
    differ = [key for key in own if own[key] != back[key]]
    taken = [drawn[key] == back[key] for key in differ]
    assert all(drawn[key] in (own[key], back[key]) for key in own)
    assert 0.25 < sum(taken) / len(taken) < 0.75
    for pair in {pair for _, pair in differ}:  # drawn anew in each epoch
        assert len({tuple(drawn[epoch, pair]) for epoch in range(12)}) == 2
    assert captions(both).keys() == own.keys()


def test_the_order_is_a_function_of_seed_and_epoch():
    def order(seed, epoch):
        batches = EpochBatches(10, batch_size=4, seed=seed)
        batches.epoch = epoch
        return np.concatenate(list(batches)).tolist()

    assert order(1, 0) == order(1, 0) and sorted(order(1, 3)) == list(range(10))
    assert len({tuple(order(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9


@pytest.mark.parametrize(
    'size, sizes', [(8, [4, 4]), (10, [4, 4, 2]), (9, [4, 5]), (5, [5]), (4, [4]), (2, [2])]
)
def test_the_last_batch_is_short_but_never_of_one_pair(size, sizes):
    batches = EpochBatches(size, batch_size=4, seed=0)
    assert [len(rows) for rows in batches] == sizes and len(batches) == len(sizes)


def test_workers_change_nothing(tmp_path, tokenizer):
    root, found = make_video_root(tmp_path), []
    for workers in (0, 2):
        loaders = build_loaders(vatex(f'train.workers={workers}'), root, tokenizer)
        torch.manual_seed(7)
        epochs = []
        for epoch in (0, 1, 0):  # persistent workers serve several epochs
            loaders['train'].set_epoch(epoch)
            epochs.append([numbers(batch) for batch in loaders['train']])
        visuals = [(visual.tolist(), mask.tolist()) for visual, mask in loaders['val'].visuals]
        found.append((epochs, visuals, torch.rand(1).item()))
    assert found[0] == found[1]
    assert found[0][0][0] == found[0][0][2] != found[0][0][1]
    torch.manual_seed(7)  # loading has not moved the training's random numbers
    assert torch.rand(1).item() == found[0][2]


def memory_map(array):
    """The numpy.memmap that an array is a view of, or None."""
    while array is not None and not isinstance(array, np.memmap):
        array = array.base
    return array


def test_features_are_mapped_and_read_by_threads_of_this_process(tmp_path):
    folder = make_image_root(tmp_path / 'i', images=False) / 'multi30k/FeatureData'
    pooled = PooledSource(
        folder / 'resnet_152/train-resnet_152-avgpool.npy', folder / 'train_id.txt'
    )
    frames = FrameSource(
        make_video_root(tmp_path / 'v') / 'vatex/FeatureData/i3d_kinetics', max_frames=64
    )
    for source in (frames, pooled):
        assert memory_map(source.features) is not None and not source.in_processes
        seen = [(os.getpid(), threading.current_thread().name)]

        class Noting(torch.utils.data.Dataset):
            def __len__(self):
                return 6

            def __getitem__(self, index):
                seen.append((os.getpid(), threading.current_thread().name))
                return source.batch(source.ids[:2])

        assert len(list(Loader(Noting(), workers=2))) == 6
        assert {process for process, _ in seen} == {os.getpid()} and all(
            'loader' in name for _, name in seen[1:]
        )


def test_an_iteration_that_is_left_early_leaves_no_thread(tmp_path, tokenizer):
    loader = build_loaders(
        vatex('train.workers=2', 'train.batch_size=2'),
        make_video_root(tmp_path),
        tokenizer,
        splits=('train',),
    )['train']
    for _ in loader:
        assert any('loader' in thread.name for thread in threading.enumerate())
        break
    del _
    assert not any('loader' in thread.name for thread in threading.enumerate())
    assert len(list(loader)) == 7  # and another one starts from the beginning


@pytest.mark.parametrize('workers, processes', [(0, False), (1, False), (1, True)])
def test_a_data_error_in_a_worker_arrives_as_it_was_raised(workers, processes):
    class Broken(torch.utils.data.Dataset):
        def __len__(self):
            return 1

        def __getitem__(self, index):
            raise DataError('file.bin: this is why')

    loader = Loader(Broken(), workers=workers, processes=processes)
    assert complaint(list, loader) == 'file.bin: this is why'


def test_a_batch_moves_as_a_whole(tmp_path, tokenizer):
    loader = build_loaders(vatex(), make_video_root(tmp_path), tokenizer, splits=('train',))[
        'train'
    ]
    batch = next(iter(loader)).to('meta', non_blocking=True)
    for tensor in (
        batch.visual,
        batch.visual_mask,
        batch.index,
        batch.en.ids,
        batch.tgt.mask,
        batch.back.ids,
    ):
        assert tensor.device.type == 'meta'


def test_all_of_a_batch_is_pinned(tmp_path, tokenizer, monkeypatch):
    pinned = []
    monkeypatch.setattr(torch.Tensor, 'pin_memory', lambda tensor: pinned.append(tensor) or tensor)
    loader = build_loaders(vatex(), make_video_root(tmp_path), tokenizer, splits=('train',))[
        'train'
    ]
    batch = next(iter(loader))
    again = batch.pin_memory()
    assert len(pinned) == 9 and numbers(again) == numbers(batch)


@pytest.mark.parametrize('workers', [0, 1])
def test_what_a_loader_yields_is_pinned_for_the_gpu_of_the_training(
    tmp_path, tokenizer, monkeypatch, workers
):
    pinned, chosen = [], []
    monkeypatch.setattr(torch.Tensor, 'pin_memory', lambda tensor: pinned.append(tensor) or tensor)
    monkeypatch.setattr(torch.cuda, 'current_device', lambda: 3)
    monkeypatch.setattr(torch.cuda, 'set_device', chosen.append)
    loaders = build_loaders(
        vatex(f'train.workers={workers}'), make_video_root(tmp_path), tokenizer, device='cuda:3'
    )
    for items, tensors in (
        (loaders['train'], 9 * 4),
        (loaders['val'].visuals, 2),
        (loaders['val'].captions, 4),
    ):
        pinned.clear()
        list(items)
        assert len(pinned) == tensors
    assert chosen == [3] * 3 * workers  # once a thread, before it does anything


def test_long_captions_are_cut_and_it_is_said_once(tmp_path, tokenizer, caplog, monkeypatch):
    root = make_video_root(tmp_path)
    path = root / 'vatex/TextData/vatexval_zh.caption.txt'
    path.write_text(
        path.read_text('utf-8').replace('#zh#0 ', '#zh#0 ' + 'a ' * 20), encoding='utf-8'
    )
    with caplog.at_level(logging.WARNING):
        val = build_loaders(vatex('text.positions=10'), root, tokenizer, splits=('val',))['val']
    assert [record.getMessage() for record in caplog.records] == [
        f'2 of 4 captions of {path} are longer than 10 tokens and were cut'
    ]
    assert next(iter(val.captions))[1].ids.shape[1] == 10
    caplog.clear()
    monkeypatch.setattr(distributed, 'is_main', lambda: False)  # another process of the run
    build_loaders(vatex('text.positions=10'), root, tokenizer, splits=('val',))
    assert not caplog.records


# --------------------------------------------------------------------------------------- evaluation


def test_videos_are_in_order_of_first_appearance(tmp_path, tokenizer):
    val = build_loaders(
        vatex('eval.val_batch_size=3'), make_video_root(tmp_path), tokenizer, splits=('val',)
    )['val']
    assert val.split == 'val' and val.feature_dim == 4
    assert val.caption_ids == ['w1#0', 'w0#0', 'w1#1', 'w0#1']
    assert val.visual_ids == ['w1', 'w0']
    assert val.visual_of.tolist() == [0, 1, 0, 1] and val.visual_of.dtype == np.int64
    for _ in range(2):  # may be iterated again
        assert [(len(en.ids), len(tgt.ids)) for en, tgt in val.captions] == [(3, 3), (1, 1)]
        assert [len(visual) for visual, _ in val.visuals] == [2]
    assert len(val.captions) == 2 and len(val.visuals) == 1


def test_images_are_in_order_of_the_list_with_or_without_captions(tmp_path, tokenizer):
    loaders = build_loaders(
        multi30k('visual.kind=pooled', 'eval.val_batch_size=2', 'eval.test_batch_size=1'),
        make_image_root(tmp_path, images=False),
        tokenizer,
        splits=('val', 'test'),
    )
    val = loaders['val']
    assert (
        val.visual_ids == ['d', 'e', 'f']
        and val.caption_ids == ['f#0', 'd#0']
        and val.visual_of.tolist() == [2, 0]
    )
    visuals = list(val.visuals)
    assert [len(visual) for visual, mask in visuals] == [2, 1] and all(
        mask is None for _, mask in visuals
    )
    assert (
        torch.cat([visual for visual, _ in visuals]).tolist()
        == np.arange(18).reshape(3, 6).tolist()
    )
    assert len(loaders['test'].visuals) == len(loaders['test'].captions) == 2


# ------------------------------------------------------------------------------------------ sources


def test_videos_are_cut_to_their_first_frames(tmp_path):
    folder = make_video_root(tmp_path) / 'vatex/FeatureData/i3d_kinetics'
    whole, cut = (FrameSource(folder, max_frames=n) for n in (64, 2))
    visual, mask = cut.batch(['v2', 'v1'])
    assert visual.shape == (2, 2, 4) and mask.tolist() == [[1, 1], [1, 0]]
    assert visual[0].tolist() == whole.batch(['v2'])[0][0, :2].tolist()
    assert cut.counts[cut.ids.index('v2')] == 5 and 'empty' not in cut and 'v2' in cut


def test_frames_that_do_not_follow_one_another(tmp_path):
    """The rows of a video may lie anywhere: in one piece, backwards, scattered, shared with
    another."""
    rng, folder = (
        np.random.default_rng(0),
        make_video_root(tmp_path) / 'vatex/FeatureData/i3d_kinetics',
    )
    features = np.fromfile(folder / 'feature.bin', '<f4').reshape(-1, 4)
    rows = {
        'forth': [4, 5, 6],
        'back': [6, 5, 4],
        'gap': [0, 1, 3],
        'one': [7],
        'far': rng.permutation(15).tolist(),
        'jump_at_the_end': [8, 9, 10, 2],
        'next': [11, 12],
    }
    names = (folder / 'id.txt').read_text().split()
    (folder / 'video2frames.txt').write_text(
        repr({video: [names[i] for i in of] for video, of in rows.items()})
    )
    for max_frames in (64, 3):
        visual, mask = FrameSource(folder, max_frames=max_frames).batch(list(rows))
        for item, real, of in zip(visual.numpy(), mask.numpy().astype(bool), rows.values()):
            assert (
                item[real].tolist() == features[of[:max_frames]].tolist() and not item[~real].any()
            )


def test_images_go_through_clips_preprocessing(tmp_path):
    folder = make_image_root(tmp_path) / 'multi30k/flickr30k-images'
    source = ImageSource(
        str(folder / '{id}.jpg'), ['a', 'b', 'h'], preprocessing=Preprocessing(32), where='list'
    )
    pixels, mask = source.batch(['a', 'b', 'h'])
    assert (
        pixels.shape == (3, 3, 32, 32)
        and pixels.dtype == torch.uint8
        and mask is None
        and source.dim == 0
    )
    image = Image.open(folder / 'h.jpg')
    width, height = image.size  # 39 x 89: the short side becomes 32
    height = int(32 * height / width)
    top = round((height - 32) / 2)
    image = (
        image.resize((32, height), Image.Resampling.BICUBIC)
        .crop((0, top, 32, top + 32))
        .convert('RGB')
    )
    assert pixels[2].permute(1, 2, 0).tolist() == np.asarray(image).tolist()
    # grey became RGB
    assert torch.equal(pixels[1, 0], pixels[1, 1]) and torch.equal(pixels[1, 0], pixels[1, 2])


def test_pixels_are_normalised_by_the_model(make_config):
    encoder = build_model(make_config('clip')).visual_encoder
    pixels = torch.randint(0, 256, (3, 3, IMAGE_SIZE, IMAGE_SIZE), dtype=torch.uint8)
    mean, std = (torch.tensor(values)[:, None, None] for values in (CLIP_MEAN, CLIP_STD))
    normalised = (pixels.double() / 255 - mean) / std
    torch.testing.assert_close(encoder(pixels), encoder(normalised.float()))


def test_images_without_a_list_are_those_of_the_captions(tmp_path, tokenizer):
    val = build_loaders(
        multi30k('data.ids.val=[]'),
        make_image_root(tmp_path),
        tokenizer,
        splits=('val',),
        preprocessing=Preprocessing(16),
    )['val']
    assert (
        val.visual_ids == ['f', 'd'] and val.visual_of.tolist() == [0, 1] and val.feature_dim == 0
    )
    assert [visual.shape for visual, _ in val.visuals] == [(2, 3, 16, 16)]


def test_feature_names_with_and_without_underscores(tmp_path, tokenizer):
    root = make_image_root(tmp_path, images=False)
    features = root / 'multi30k/FeatureData'
    (features / 'resnet_152').rename(features / 'resnet152')
    config = multi30k('visual.kind=pooled')
    assert len(build_loaders(config, root, tokenizer, splits=('val',))['val'].visual_ids) == 3
    name = features / 'resnet152/val-resnet_152-avgpool.npy'
    name = name.rename(features / 'val-resnet152-avgpool.npy')  # one folder up
    assert len(build_loaders(config, root, tokenizer, splits=('val',))['val'].visual_ids) == 3
    name.unlink()
    message = complaint(build_loaders, config, root, tokenizer, splits=('val',))
    for tried in (
        'resnet_152/val-resnet_152-avgpool.npy',
        'resnet_152/val-resnet152-avgpool.npy',
        'resnet152/val-resnet_152-avgpool.npy',
        'FeatureData/val-resnet152-avgpool.npy',
    ):
        assert tried in message
    assert 'data.pooled.val' in message and 'train_id.txt' in message  # what is there


@pytest.mark.parametrize(
    'folder, prefix',
    [
        ('msrvttcn', 'msrvttcn'),
        ('msrvtt10kcn', 'msrvttcn'),
        ('msrvttcn', 'msrvtt10kcn'),
        ('msrvtt10kcn', 'msrvtt10kcn'),
    ],
)
def test_both_spellings_of_a_collection(tmp_path, folder, prefix):
    make_video_root(tmp_path, name=folder, prefix=prefix)
    collection = Collection(load_config(CONFIGS / 'msrvttcn.yaml'), tmp_path)
    assert len(collection.captions('train')['back']) == 15
    assert collection.folder == tmp_path / folder


@pytest.mark.parametrize(
    'options, expected',
    [
        (
            [],
            {
                'train': 'multi30ktrain_enc',
                'val': 'multi30kval_google_de2enc_task1',
                'test': 'multi30ktest_google_de2enc_2016_task1',
            },
        ),
        (
            ['data.lang=fr'],
            {'val': 'multi30kval_google_fr2enc', 'test': 'multi30ktest_google_fr2enc_2016'},
        ),
        (['data.task=2'], {'train': 'Flickr30ktrain_enc', 'val': 'multi30kval_google_de2enc'}),
    ],
)
def test_file_names_by_task_and_language(tmp_path, options, expected):
    (tmp_path / 'multi30k').mkdir()
    collection = Collection(multi30k(*options), tmp_path)
    for split, name in expected.items():
        assert f'TextData/{name}.caption.txt;' in complaint(collection.caption_path, split, 'en')


# ----------------------------------------------------------------------------- missing visual items


def drop_captions(root, names):
    """Remove the captions of these visual items from every file."""
    for path in root.glob('*/TextData/*'):
        lines = path.read_text('utf-8').splitlines(keepends=True)
        kept = [line for line in lines if line.partition('#')[0] not in names]
        path.write_text(''.join(kept), encoding='utf-8')


def without_frames(root):
    path = root / 'vatex/FeatureData/i3d_kinetics/video2frames.txt'
    path.write_text(path.read_text().replace("'v1'", "'z1'").replace("['w0_0', 'w0_1']", '[]'))
    return vatex, {'train': (3, 15, 1, 5), 'val': (2, 4, 1, 2)}


def without_rows(root):
    folder = root / 'multi30k/FeatureData'
    for split, rows in (('train', [0, 2]), ('val', [1, 2])):
        features = folder / f'resnet_152/{split}-resnet_152-avgpool.npy'
        np.save(features, np.load(features)[rows])
        ids = ''.join(f'{IMAGES[split][row]}.jpg\n' for row in rows)
        (folder / f'{split}_id.txt').write_text(ids)
    return pooled, {'train': (1, 3, 1, 3), 'val': (1, 2, 1, 3)}


def without_images(root):
    for name in 'bef':  # e has no caption, but is on the list
        (root / f'multi30k/flickr30k-images/{name}.jpg').unlink()
    return multi30k, {'train': (1, 3, 1, 3), 'val': (1, 2, 2, 3)}


def pooled(*options):
    return multi30k('visual.kind=pooled', *options)


@pytest.mark.parametrize('damage', [without_frames, without_rows, without_images])
def test_captions_of_missing_items_are_left_out_of_every_branch(
    tmp_path, tokenizer, caplog, damage
):
    """As if nobody had written them."""
    make = make_video_root if damage is without_frames else make_image_root
    root, loaders = make(tmp_path / 'root'), {}
    make_config, expected = damage(root)
    message = complaint(build_loaders, make_config(), root, tokenizer)
    assert 'data.missing=skip' in message
    config = make_config('data.missing=skip', 'text.clean_en=false')
    with caplog.at_level(logging.WARNING):
        loaders['skipped'] = build_loaders(config, root, tokenizer, preprocessing=Preprocessing(16))
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2 and ('cannot be compared' in said[1]) > ('cannot be compared' in said[0])
    for (split, counts), text in zip(expected.items(), said):
        left_out = loaders['skipped'][split].left_out
        assert tuple(left_out.counts().values()) == counts
        assert f"'{split}' is without {counts[0]} of its {counts[1]} captions" in text
    gone = {without_frames: ['v1', 'w0'], without_rows: ['b', 'd'], without_images: ['b', 'f']}
    drop_captions(root, gone[damage])
    if damage is without_images:  # a list of what is there
        (root / 'multi30k/FeatureData/val_id.txt').write_text('d\n')
    loaders['dropped'] = build_loaders(
        make_config('text.clean_en=false'), root, tokenizer, preprocessing=Preprocessing(16)
    )
    for one, other in zip(*(loaders[name]['train'] for name in ('skipped', 'dropped'))):
        assert numbers(one) == numbers(other)
    one, other = (loaders[name]['val'] for name in ('skipped', 'dropped'))
    assert (one.visual_ids, one.caption_ids) == (other.visual_ids, other.caption_ids)
    assert one.visual_of.tolist() == other.visual_of.tolist() and other.left_out is None
    for (ours, _), (theirs, _) in zip(one.visuals, other.visuals, strict=True):
        assert torch.equal(ours, theirs)
    for pair, other_pair in zip(one.captions, other.captions, strict=True):
        assert [branch.ids.tolist() for branch in pair] == [
            branch.ids.tolist() for branch in other_pair
        ]


def test_nothing_missing_is_nothing_said(tmp_path, tokenizer, caplog):
    root = make_video_root(tmp_path)
    loaders = build_loaders(vatex('data.missing=skip'), root, tokenizer)
    assert not caplog.records and loaders['train'].left_out is loaders['val'].left_out is None


def test_nothing_left_is_an_error(tmp_path, tokenizer):
    root = make_video_root(tmp_path)
    path = root / 'vatex/FeatureData/i3d_kinetics/video2frames.txt'
    path.write_text(path.read_text().replace("'w0'", "'W0'").replace("'w1'", "'W1'"))
    message = complaint(build_loaders, vatex('data.missing=skip'), root, tokenizer)
    assert 'all of the 2 visual items of' in message and "did you mean 'W1' for 'w1'" in message


# ------------------------------------------------------------------------------- what is not needed


@pytest.mark.parametrize('weight, branch, other', [(0, 'tgt', '_google_zh2enc'), (1, 'en', '_zh')])
def test_queries_of_one_branch_need_no_other_file(tmp_path, tokenizer, weight, branch, other):
    root = make_video_root(tmp_path)
    both = build_loaders(vatex('text.pooling=mean'), root, tokenizer, splits=('val', 'test'))
    for split in ('val', 'test'):
        (root / f'vatex/TextData/vatex{split}{other}.caption.txt').unlink()
    options = [f'eval.weights=[{weight}]', f'train.val_weight={weight}', 'text.pooling=mean']
    loaders = build_loaders(vatex(*options), root, tokenizer, splits=('val', 'test'))
    for split in ('val', 'test'):
        one = loaders[split]
        assert one.branches == (branch,) and one.longest <= both[split].longest
        assert sorted(one.caption_ids) == sorted(both[split].caption_ids)
        owners = dict(zip(one.caption_ids, [one.visual_ids[row] for row in one.visual_of]))
        assert all(name.startswith(f'{visual}#') for name, visual in owners.items())
        for en, tgt in one.captions:
            assert ((en is None), (tgt is None)) == (branch == 'tgt', branch == 'en')
    for missing in ('train.val_weight=0.5', 'eval.weights=[0.5]', 'eval.weight_grid=[0.5]'):
        assert "no captions (branch '" in complaint(
            build_loaders, vatex(*options, missing), root, tokenizer, splits=('val',)
        )


def test_batches_tell_the_visual_item_for_a_loss_that_asks(tmp_path, tokenizer):
    root = make_video_root(tmp_path)
    assert next(iter(build_loaders(vatex(), root, tokenizer)['train'])).visual_of is None
    loader = build_loaders(vatex('loss.mask_same_visual=true'), root, tokenizer)['train']
    ids = Collection(vatex(), root).captions('train')['en'].ids
    for batch in loader:
        names = [ids[row][0] for row in batch.index.tolist()]
        assert [loader.dataset.visual_ids[item] for item in batch.visual_of.tolist()] == names
        assert batch.visual_of.dtype == torch.int64


# ------------------------------------------------------------------------------------------- errors


def test_no_rootpath_or_collection(tmp_path):
    (tmp_path / 'vatex10').mkdir()
    message = complaint(Collection, vatex(), tmp_path / 'none')
    assert f'ROOTPATH {tmp_path / "none"} is not a folder' in message and 'vatex10/' in message
    message = complaint(Collection, vatex('data.aliases=[vtx]'), tmp_path)
    assert 'no folder vatex or vtx' in message and 'vatex10/' in message


def test_visual_items_without_features(tmp_path, tokenizer):
    root = make_video_root(tmp_path)
    path = root / 'vatex/FeatureData/i3d_kinetics/video2frames.txt'
    path.write_text(path.read_text().replace("'w1'", "'other'").replace("['w0_0', 'w0_1']", '[]'))
    message = complaint(build_loaders, vatex(), root, tokenizer, splits=('val',))
    assert (
        '2 of the 2 visual items of' in message
        and 'w1, w0;' in message
        and 'vatexval_google_zh2enc' in message
    )
    path.write_text(path.read_text().replace("'w0'", "'W0.avi'").replace('[]', "['w0_0']"))
    message = complaint(build_loaders, vatex(), root, tokenizer, splits=('val',))
    assert "did you mean 'W0.avi' for 'w0'? They differ in ending" in message


def test_features_of_another_width(tmp_path, tokenizer):
    message = complaint(
        build_loaders, vatex('visual.feature_dim=1024'), make_video_root(tmp_path), tokenizer
    )
    assert 'visual.feature_dim=1024' in message and '4 wide' in message


def test_splits_of_different_widths(tmp_path, tokenizer):
    root = make_image_root(tmp_path)
    path = root / 'multi30k/FeatureData/resnet_152/val-resnet_152-avgpool.npy'
    np.save(path, np.ones((3, 5), np.float32))
    message = complaint(build_loaders, multi30k('visual.kind=pooled'), root, tokenizer)
    assert (
        f'{path} holds features 5 wide' in message and 'train-resnet_152-avgpool.npy 6' in message
    )


def test_no_folder_of_features(tmp_path, tokenizer):
    root = make_video_root(tmp_path)
    message = complaint(build_loaders, vatex('visual.feature=c3_d'), root, tokenizer)
    assert (
        'FeatureData/c3_d' in message
        and 'FeatureData/c3d' in message
        and 'i3d_kinetics/' in message
    )


@pytest.mark.parametrize('value', [np.nan, np.inf])
def test_features_that_are_no_numbers(tmp_path, tokenizer, value):
    root = make_video_root(tmp_path)
    path = root / 'vatex/FeatureData/i3d_kinetics/feature.bin'
    features = np.fromfile(path, dtype='<f4')
    features[-1], features[0] = value, np.finfo(np.float32).max  # large is not infinite
    features[1] = features[0]
    features.tofile(path)
    loaders = build_loaders(vatex(), root, tokenizer, splits=('train', 'test'))
    assert sum(len(batch.index) for batch in loaders['train']) == 15
    for _ in range(2):  # what is sound is not looked at again, what is not, is
        message = complaint(list, loaders['test'].visuals)
        assert 'NaN or infinite features: x1;' in message and 'i3d_kinetics' in message


@pytest.mark.parametrize(
    'array, message',
    [
        (np.zeros((2, 6), np.float32), '2 rows'),
        (np.zeros((3, 6), np.int64), 'found int64'),
        (np.zeros((3, 6, 1), np.float32), '(3, 6, 1)'),
        (np.array([None] * 3), 'not a .npy file of numbers'),
        (b'', 'not a .npy file of numbers'),
        (b'\x93NUMPY', 'not a .npy file of numbers'),
    ],
)
def test_npy_files_that_do_not_fit(tmp_path, tokenizer, array, message):
    root = make_image_root(tmp_path, images=False)
    path = root / 'multi30k/FeatureData/resnet_152/val-resnet_152-avgpool.npy'
    path.write_bytes(array) if isinstance(array, bytes) else np.save(path, array, allow_pickle=True)
    found = complaint(
        build_loaders, multi30k('visual.kind=pooled'), root, tokenizer, splits=('val',)
    )
    assert message in found and str(path) in found


@pytest.mark.parametrize('dtype', [np.float16, np.float64])
def test_npy_files_of_other_floats(tmp_path, tokenizer, dtype):
    root = make_image_root(tmp_path, images=False)
    np.save(
        root / 'multi30k/FeatureData/resnet_152/val-resnet_152-avgpool.npy', np.ones((3, 6), dtype)
    )
    val = build_loaders(multi30k('visual.kind=pooled'), root, tokenizer, splits=('val',))['val']
    assert next(iter(val.visuals))[0].dtype == torch.float32


def test_images_that_are_missing_or_broken(tmp_path, tokenizer):
    root = make_image_root(tmp_path)
    folder = root / 'multi30k/flickr30k-images'
    (folder / 'e.jpg').unlink()
    message = complaint(build_loaders, multi30k(), root, tokenizer, splits=('val',))
    assert (
        '1 of the 3 images' in message
        and str(folder / 'e.jpg') in message
        and 'data.images' in message
    )
    data = (folder / 'h.jpg').read_bytes()
    for content in (b'', b'<html>', data[: len(data) // 2]):
        (folder / 'h.jpg').write_bytes(content)
        test = build_loaders(
            multi30k(), root, tokenizer, splits=('test',), preprocessing=Preprocessing(16)
        )['test']
        assert f'{folder / "h.jpg"}: cannot be read as an image' in complaint(list, test.visuals)


def test_an_image_that_the_list_lacks(tmp_path, tokenizer):
    root = make_image_root(tmp_path)
    (root / 'multi30k/FeatureData/val_id.txt').write_text('d\ne\n')
    message = complaint(build_loaders, multi30k(), root, tokenizer, splits=('val',))
    assert '1 of the 2 visual items' in message and 'val_id.txt' in message and ': f;' in message
    (root / 'multi30k/FeatureData/val_id.txt').unlink()
    message = complaint(build_loaders, multi30k(), root, tokenizer, splits=('val',))
    assert 'no id list' in message and 'data.ids.val' in message


def test_one_pair_cannot_be_trained_on(tmp_path, tokenizer):
    root = make_video_root(tmp_path)
    for path in (root / 'vatex/TextData').glob('vatextrain*'):
        path.write_text('v0#x#0 a\n')
    assert 'training needs at least two' in complaint(build_loaders, vatex(), root, tokenizer)
