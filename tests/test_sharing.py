"""Several processes share the data, and what does not depend on padding is sorted by length."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from roots import (
    VIDEOS,
    make_image_root,
    make_tokenizer,
    make_video_root,
    multi30k,
    numbers,
    vatex,
    write_captions,
)
from torch import multiprocessing

from basic import distributed
from basic.caption import Tokens
from basic.images import Preprocessing
from data_provider import build_loaders
from evaluation import encode
from model import build_model


@pytest.fixture
def tokenizer(tmp_path):
    return make_tokenizer(tmp_path)


def parts(batch):
    """The tensors of a Batch that have a row a pair."""
    found = [
        batch.visual,
        batch.visual_mask,
        batch.index,
        batch.en.ids,
        batch.en.mask,
        batch.tgt.ids,
        batch.tgt.mask,
    ]
    found += [batch.back.ids, batch.back.mask] if batch.back else []
    return [part for part in found if part is not None]


@pytest.mark.parametrize('of', [2, 3, 5])
@pytest.mark.parametrize('kind', ['frames', 'pooled', 'clip'])
def test_the_shares_of_a_batch_are_the_batch_of_one_process(tmp_path, tokenizer, of, kind):
    if kind == 'frames':
        root, config = make_video_root(tmp_path), vatex()
    else:
        root, config = (
            make_image_root(tmp_path),
            multi30k(f'visual.kind={kind}', 'train.batch_size=3'),
        )
    build = partial(
        build_loaders, config, root, tokenizer, splits=('train',), preprocessing=Preprocessing(16)
    )
    alone = build()['train']
    shared = [build(number=number, of=of)['train'] for number in range(of)]
    for loader in (alone, *shared):
        loader.set_epoch(2)
    assert {len(loader) for loader in shared} == {len(alone)}
    least = []
    for whole, *shares in zip(alone, *shared, strict=True):
        assert {share.total for share in shares} == {whole.total} == {len(whole.index)}
        for expected, *found in zip(parts(whole), *map(parts, shares), strict=True):
            assert len({part.shape[1:] for part in found}) == 1  # all padded as the whole is
            assert torch.equal(torch.cat(found), expected) and found[0].dtype == expected.dtype
        sizes = [len(share.index) for share in shares]
        least.append(min(sizes))
        assert max(sizes) - min(sizes) <= 1
    # a process may get nothing
    assert (min(least) == 0) == (of > min(batch.total for batch in alone))


def test_a_batch_is_split_into_views(tmp_path, tokenizer):
    batch = next(
        iter(
            build_loaders(
                vatex('train.batch_size=5'), make_video_root(tmp_path), tokenizer, splits=('train',)
            )['train']
        )
    )
    pieces = batch.split(2)
    assert [len(piece.index) for piece in pieces] == [2, 2, 1] and {
        piece.total for piece in pieces
    } == {5}
    for whole, *found in zip(parts(batch), *map(parts, pieces), strict=True):
        assert torch.equal(torch.cat(found), whole)
        assert {part.untyped_storage().data_ptr() for part in found} == {
            whole.untyped_storage().data_ptr()
        }
    assert numbers(batch.split(9)[0]) == numbers(batch)
    (empty,) = pieces[0].split(2)[0].each(lambda tensor: tensor[:0]).split(4)
    assert len(empty.index) == 0 and empty.visual.shape[1:] == batch.visual.shape[1:]


@pytest.mark.parametrize('of', [2, 5])
def test_an_evaluation_split_is_dealt_out_by_batches(tmp_path, tokenizer, of):
    root, config = make_video_root(tmp_path), vatex('eval.val_batch_size=1')
    alone, *shared = (
        build_loaders(config, root, tokenizer, splits=('val',), number=number, of=size)['val']
        for number, size in ((0, 1), *((number, of) for number in range(of)))
    )
    for kind, count in (('visuals', 2), ('captions', 4)):
        whole = list(getattr(alone, kind))
        assert len(whole) == count == len(getattr(alone, kind))
        seen = {}
        for eval_set in shared:
            loader = getattr(eval_set, kind)
            seen.update(zip(loader.indices, loader, strict=True))
        assert str([seen[i] for i in sorted(seen)]) == str(whole)  # the same numbers, each once
        assert sum(len(getattr(eval_set, kind)) for eval_set in shared) == count
    assert all(eval_set.visual_ids == alone.visual_ids for eval_set in shared)


class Identity(torch.nn.Module):
    """What is encoded is what is given."""

    def encode_visual(self, visual, mask):
        return visual

    def encode_text(self, captions):
        return captions.ids.float()


def numbered_set(number, of):
    """Two batches of visual items and seven of captions, of uneven sizes; items are numbered
    rows."""

    def deal(sizes, make):
        ends = np.cumsum(sizes)
        return [
            make(torch.arange(end - size, end)[:, None] * torch.ones(1, 3, dtype=torch.long))
            for size, end in zip(sizes, ends)
        ][number::of]

    captions = deal(
        [4, 1, 3, 2, 5, 1, 2], lambda rows: (Tokens(rows, rows), Tokens(rows + 100, rows))
    )
    order = np.random.default_rng(0).permutation(18)
    return (
        SimpleNamespace(
            split='val',
            visuals=deal([2, 3], lambda rows: (rows.float(), None)),
            captions=captions,
            order={'tgt': order},
            branches=('en', 'tgt'),
        ),
        order,
    )


def gathering_process(number, of, path):
    torch.distributed.init_process_group(
        'gloo', init_method=f'file://{path}', rank=number, world_size=of
    )
    eval_set, order = numbered_set(number, of)
    found = encode(Identity(), eval_set, torch.device('cpu'))
    assert found.visual[:, 0].tolist() == list(range(5)) and found.en[:, 2].tolist() == list(
        range(18)
    )
    # what was in place i is item order[i]
    assert found.tgt[order, 0].tolist() == list(range(100, 118))
    expected = encode(Identity(), eval_set, torch.device('cpu'))
    assert all(torch.equal(one, other) for one, other in zip(found, expected))
    if number == of - 1:
        assert len(eval_set.visuals) == 0  # this process had none
    torch.distributed.destroy_process_group()


def test_every_process_ends_up_with_all_embeddings(tmp_path):
    multiprocessing.start_processes(
        gathering_process, args=(3, tmp_path / 'meeting'), nprocs=3, start_method='fork'
    )


def test_one_process_gathers_nothing():
    eval_set, order = numbered_set(0, 1)
    found = encode(Identity(), eval_set, torch.device('cpu'))
    assert found.visual[:, 0].tolist() == list(range(5)) and found.tgt[order, 0].tolist() == list(
        range(100, 118)
    )
    assert distributed.gather_batches([torch.ones(2, 3)], 'cpu').shape == (2, 3)


# ------------------------------------------------------------------------------------------ sorting


@pytest.mark.parametrize('pooling', ['mean', 'max', 'padded_mean'])
def test_sorting_by_length_changes_the_padding_not_the_embeddings(
    tmp_path, tokenizer, make_config, pooling
):
    root = make_video_root(tmp_path)
    for seed, name in enumerate(('google_zh2enc', 'zh')):
        write_captions(
            root / f'vatex/TextData/vatexval_{name}.caption.txt',
            name,
            [(video, n) for n in range(8) for video in VIDEOS['val']],
            seed=seed,
        )
    options = ['visual.feature_dim=4', 'train.workers=0', 'eval.val_batch_size=3']
    config = make_config('frames', *options, f'text.pooling={pooling}', f'visual.pooling={pooling}')
    model = build_model(config, feature_dim=4)
    eval_set, in_file_order = (
        build_loaders(one, root, tokenizer, splits=('val',))['val']
        for one in (config, make_config('frames', *options))
    )
    assert set(eval_set.order) == ({'visual', 'en', 'tgt'} if pooling != 'padded_mean' else set())
    for found, expected in zip(
        *(encode(model, one, torch.device('cpu')) for one in (eval_set, in_file_order))
    ):
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    padding, before = (
        sum((tokens.mask == 0).sum().item() for pair in one.captions for tokens in pair)
        for one in (eval_set, in_file_order)
    )
    assert padding < before / 2 if pooling != 'padded_mean' else padding == before
    assert (
        eval_set.caption_ids == in_file_order.caption_ids
        and eval_set.visual_ids == in_file_order.visual_ids
    )


def test_pooled_features_have_nothing_to_sort(tmp_path, tokenizer):
    config = multi30k('visual.kind=pooled', 'visual.pooling=mean', 'text.pooling=max')
    eval_set = build_loaders(config, make_image_root(tmp_path), tokenizer, splits=('val',))['val']
    assert set(eval_set.order) == {'en', 'tgt'}
