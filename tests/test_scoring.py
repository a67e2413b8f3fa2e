"""Streaming scores against the dense ones and brute force; memory; memory maps; several
processes."""

import multiprocessing
import resource

import numpy as np
import pytest
import torch
from test_metric import assert_same, brute_force
from torch import distributed
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from basic import scoring
from basic.metric import retrieval_metrics
from basic.scoring import Scoring, fuse, normalise, scored, similarity

WEIGHTS = [1.0, 0.8, 0.5, 0.2, 0.0]


def score(*args, **options):
    return scored(*args, **options).metrics()


def random_split(seed, captions, visuals, width=16):
    """Embeddings float32, half of a caption being its visual item; unequally many captions each,
    some items none."""
    generator = torch.Generator().manual_seed(seed)
    visual = torch.randn(visuals, width, generator=generator)
    owner = torch.randint(0, max(1, visuals - 3), (captions,), generator=generator)
    en, tgt = (visual[owner] + torch.randn(captions, width, generator=generator) for _ in range(2))
    return visual, en, tgt, owner


def tied_split(seed, captions, visuals, width=16):
    """As `random_split`, but of entries +-1 and with duplicates: every cosine is a multiple of 1/8
    and exact."""
    generator = torch.Generator().manual_seed(seed)
    visual, en, tgt = (
        torch.randint(0, 2, (n, width), generator=generator) * 2.0 - 1
        for n in (visuals, captions, captions)
    )
    visual[visuals // 2 :] = visual[: visuals - visuals // 2].clone()
    for branch in (en, tgt):
        branch[captions // 2 :] = branch[: captions - captions // 2].clone()
    return visual, en, tgt, torch.randint(0, max(1, visuals - 3), (captions,), generator=generator)


def dense(visual, en, tgt, owner, weights=WEIGHTS, ties='pessimistic'):
    en, tgt = similarity(en, visual), similarity(tgt, visual)
    return [retrieval_metrics(fuse(en, tgt, weight), owner, ties=ties) for weight in weights]


def in_blocks_of(monkeypatch, block, tile=None):
    monkeypatch.setattr(scoring, '_BLOCK', block)
    if tile:
        monkeypatch.setattr(scoring, 'tile_size', lambda device: tile)


def test_similarity_is_the_cosine():
    captions, visual = torch.randn(5, 7), torch.randn(4, 7)
    expected = torch.nn.functional.cosine_similarity(captions[:, None], visual[None], dim=-1)
    assert torch.allclose(similarity(captions, visual), expected, atol=1e-6)


def test_normalise_takes_the_whole_matrix():
    assert normalise(torch.tensor([[1.0, 3], [2, 5]])).tolist() == [[0, 0.5], [0.25, 1]]
    assert normalise(torch.full((2, 2), 0.7)).tolist() == [[0, 0], [0, 0]]
    assert normalise(torch.tensor([[2.0]]), torch.tensor(1.0), torch.tensor(5.0)).tolist() == [
        [0.25]
    ]
    assert normalise(torch.tensor([1.0, float('nan')])).isnan().all()


def test_fuse_weighs_the_english_branch():
    en, tgt = torch.tensor([[0.0, 2]]), torch.tensor([[30.0, 10]])
    assert fuse(en, tgt, 0.2).tolist() == [[pytest.approx(0.8), pytest.approx(0.2)]]
    assert fuse(en, tgt, 1.0).tolist() == [[0, 1]]


@pytest.mark.parametrize('ties', ['pessimistic', 'mean'])
@pytest.mark.parametrize('make', [random_split, tied_split])
@pytest.mark.parametrize('captions, visuals', [(1, 1), (7, 3), (50, 20), (90, 11)])
def test_one_block_is_the_dense_result(make, captions, visuals, ties):
    for seed in range(3):
        split = make(seed, captions, visuals)
        assert score(*split, WEIGHTS, ties=ties) == dense(*split, ties=ties)


@pytest.mark.parametrize('ties', ['pessimistic', 'mean'])
@pytest.mark.parametrize('keep', [True, False])
@pytest.mark.parametrize('block, tile', [(7, None), (13, 5), (1, 1)])
def test_blocks_do_not_matter(monkeypatch, block, tile, keep, ties):
    """Nothing divides anything; ties across blocks; cosines kept and computed again."""
    split = tied_split(1, 50, 20)
    expected = dense(*split, ties=ties)
    assert len({str(metrics) for metrics in expected}) > 1
    in_blocks_of(monkeypatch, block, tile)
    scorer = Scoring(*split, WEIGHTS, ties=ties)
    scorer._kept = [] if keep else None
    scorer.find_range()
    scorer.count()
    assert scorer.metrics() == expected


@pytest.mark.parametrize('ties', ['pessimistic', 'mean'])
def test_brute_force(monkeypatch, ties):
    in_blocks_of(monkeypatch, 9)
    for make in (random_split, tied_split):
        visual, en, tgt, owner = (
            x.double() if x.is_floating_point() else x for x in make(4, 60, 25)
        )
        for weight, found in zip(WEIGHTS, score(visual, en, tgt, owner, WEIGHTS, ties=ties)):
            scores = fuse(similarity(en, visual), similarity(tgt, visual), weight)
            assert_same(found, brute_force(scores, owner, ties))


def test_ties_are_there():
    split = tied_split(1, 50, 20)
    assert score(*split, WEIGHTS, ties='mean') != score(*split, WEIGHTS, ties='pessimistic')


def test_one_item_may_have_all_captions(monkeypatch):
    visual, en, tgt, owner = tied_split(2, 40, 6)
    in_blocks_of(monkeypatch, 8, tile=16)
    for owner in (torch.full((40,), 4), torch.arange(40) % 2 * 5):
        assert score(visual, en, tgt, owner, [0.5]) == dense(visual, en, tgt, owner, [0.5])


@pytest.mark.parametrize('ties', ['pessimistic', 'mean'])
def test_a_constant_branch_says_nothing(monkeypatch, ties):
    in_blocks_of(monkeypatch, 6)
    visual, en, tgt, owner = tied_split(3, 30, 12)
    visual[:, 0], en[:] = 1, torch.eye(16)[0]  # every English cosine is 1/4
    expected = dense(visual, en, tgt, owner, [1.0, 0.5, 0.0], ties)
    found = score(visual, en, tgt, owner, [1.0, 0.5, 0.0], ties=ties)
    assert found == expected and found[1] == found[2]
    assert found[0]['t2v']['MeanR'] == {'pessimistic': 12, 'mean': 6.5}[ties]
    nothing = score(visual, en, en, owner, [0.5], ties=ties)  # both branches constant
    assert nothing[0]['t2v'] == found[0]['t2v']


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_embeddings_are_read_as_float32(dtype):
    visual, en, tgt, owner = random_split(5, 40, 15)
    visual, en, tgt = (x.to(dtype) for x in (visual, en, tgt))
    assert score(visual, en, tgt, owner, WEIGHTS) == dense(
        visual.float(), en.float(), tgt.float(), owner
    )


def test_gradients_are_left_alone():
    visual, en, tgt, owner = random_split(5, 10, 5)
    before = torch.get_num_threads()
    found = score(visual.requires_grad_(), en.requires_grad_(), tgt, owner.numpy(), [0.2])
    assert (
        found == dense(visual.detach(), en.detach(), tgt, owner, [0.2])
        and torch.get_num_threads() == before
    )


def test_progress_counts_blocks(monkeypatch):
    in_blocks_of(monkeypatch, 8)
    seen = []
    score(*random_split(0, 20, 10), [0.2], progress=lambda *done: seen.append(done))
    # 3 blocks of captions x 2 of items, twice
    assert seen == [(number, 12) for number in range(1, 13)]


def test_memory_maps_are_read_from_their_files(tmp_path, monkeypatch):
    in_blocks_of(monkeypatch, 9)
    visual, en, tgt, owner = tied_split(6, 40, 20)
    expected = score(visual, en, tgt, owner, WEIGHTS)
    for name, array in (('visual', visual), ('en', en.half()), ('tgt', tgt.double())):
        np.save(tmp_path / f'{name}.npy', array.numpy())
    maps = [np.load(tmp_path / f'{name}.npy', mmap_mode='r') for name in ('visual', 'en', 'tgt')]
    assert score(*maps, owner, WEIGHTS) == expected

    few = owner[5:35] % 12  # parts of maps: their rows, not the file's first
    expected = score(visual[3:], en[5:35], tgt[5:35], few, WEIGHTS)
    assert score(maps[0][3:], maps[1][5:][:30], maps[2][5:35], few, WEIGHTS) == expected
    assert (
        score(np.asfortranarray(visual[3:]), np.asarray(maps[1])[5:35], tgt[5:35], few, WEIGHTS)
        == expected
    )
    reordered = maps[0][::-1]  # not as in the file: read through the map
    assert score(reordered, maps[1], maps[2], 19 - owner, WEIGHTS) == score(
        visual, en, tgt, owner, WEIGHTS
    )


class Largest(TorchDispatchMode):
    """Bytes of the largest tensor that any operation gives, and is given room for."""

    bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.bytes = max(
            [
                self.bytes,
                *(
                    leaf.untyped_storage().nbytes()
                    for leaf in tree_leaves(result)
                    if isinstance(leaf, torch.Tensor)
                ),
            ]
        )
        return result


@pytest.mark.parametrize('memory, captions, visuals', [(1, 2000, 1500), (4, 4000, 3000)])
def test_memory_bounds_the_blocks(tmp_path, memory, captions, visuals):
    visual, en, tgt, owner = random_split(7, captions, visuals, width=32)
    for name, array in (('visual', visual), ('en', en), ('tgt', tgt)):
        np.save(tmp_path / f'{name}.npy', array.numpy())
    maps = [np.load(tmp_path / f'{name}.npy', mmap_mode='r') for name in ('visual', 'en', 'tgt')]
    with Largest() as largest:
        found = score(*maps, owner, [0.2, 0.0], memory=memory)
    assert (
        memory * 2**20 / 32 < largest.bytes <= memory * 2**20 / 4
    )  # a full matrix has 11 MiB per MiB
    whole = score(visual, en, tgt, owner, [0.2, 0.0], memory=1024)
    for way in ('t2v', 'v2t'):
        # but for products' last bits
        assert found[0][way] == pytest.approx(whole[0][way], rel=1e-3)


def peak_of_a_large_gallery(folder, answer):
    """In a process of its own: how far its peak memory rises while it scores memory maps (MiB)."""
    maps = [
        np.load(folder / f'{name}.npy', mmap_mode='r')
        for name in ('visual', 'captions', 'captions')
    ]
    score(maps[0][:64], *(x[:64] for x in maps[1:]), np.arange(64), [0.5], memory=64)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    score(*maps, np.arange(512), [0.5], memory=64)
    answer.put((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)


def test_resident_memory_does_not_grow_with_memory_maps(tmp_path):
    random = np.random.RandomState(0)
    # 256 MiB; scores: 2 x 256 MiB
    np.save(tmp_path / 'visual.npy', random.rand(2**17, 512).astype(np.float32))
    np.save(tmp_path / 'captions.npy', random.rand(512, 512).astype(np.float32))
    context = multiprocessing.get_context('spawn')
    answer = context.Queue()
    process = context.Process(target=peak_of_a_large_gallery, args=(tmp_path, answer))
    process.start()
    risen = answer.get(timeout=300)
    process.join()
    assert risen < 96


def score_as_one_of_two(number, folder, answers):
    """In a process of its own: initialise gloo, score this process's share, give back the
    result."""
    distributed.init_process_group(
        'gloo', init_method=f'file://{folder}/meet', rank=number, world_size=2
    )
    scoring._BLOCK = 16
    results = [
        score(*make(8, 70, 30), WEIGHTS, ties=ties, memory=memory)
        for make, ties, memory in (
            (random_split, 'pessimistic', 64),
            (tied_split, 'mean', 64),
            (tied_split, 'pessimistic', 1),
            (tied_few, 'mean', 64),
        )
    ]
    results.append(ranks_of_a_split())
    try:
        score(*broken_split(), WEIGHTS)
    except ValueError as error:
        results.append(str(error))
    answers.put((number, results))
    distributed.destroy_process_group()


def ranks_of_a_split():
    return [
        [way.tolist() for way in ranks]
        for ranks in scored(*tied_split(8, 70, 30), WEIGHTS, ties='mean').ranks()
    ]


def tied_few(seed, captions, visuals):
    """One block of captions: the second process has none."""
    return tied_split(seed, 9, visuals)


def broken_split():
    """A NaN that only the process of the last captions sees."""
    visual, en, tgt, owner = random_split(9, 20, 10)
    tgt[19] = torch.nan
    return visual, en, tgt, owner


def test_two_processes_get_the_result_of_one(tmp_path, monkeypatch):
    in_blocks_of(monkeypatch, 16)
    context = multiprocessing.get_context('spawn')
    answers = context.Queue()
    processes = [
        context.Process(target=score_as_one_of_two, args=(number, tmp_path, answers))
        for number in range(2)
    ]
    for process in processes:
        process.start()
    results = dict(answers.get(timeout=300) for _ in processes)
    for process in processes:
        process.join()
    expected = [
        score(*make(8, 70, 30), WEIGHTS, ties=ties)
        for make, ties in (
            (random_split, 'pessimistic'),
            (tied_split, 'mean'),
            (tied_split, 'pessimistic'),
            (tied_few, 'mean'),
        )
    ]
    assert (
        results[0]
        == results[1]
        == [
            *expected,
            ranks_of_a_split(),
            '10 of 400 scores are NaN or infinite and cannot be ranked',
        ]
    )


@pytest.mark.parametrize(
    'change, message',
    [
        (
            lambda v, e, t, o: (v, e[:-1], t, o),
            r'en and tgt \(Q, E\); found \(5, 16\), \(7, 16\), \(8, 16\)',
        ),
        (lambda v, e, t, o: (v[:, :3], e, t, o), r'found \(5, 3\), \(8, 16\), \(8, 16\)'),
        (lambda v, e, t, o: (v, e[:0], t[:0], o[:0]), 'neither empty'),
        (lambda v, e, t, o: (v, e, t, o[:-1]), r'found \(8, 5\) and \(7,\)'),
        (lambda v, e, t, o: (v, e, t, o + 5), 'index the 5 visual items'),
        (lambda v, e, t, o: (v * torch.nan, e, t, o), '80 of 80 scores are NaN'),
        (
            lambda v, e, t, o: (v, e, t + torch.tensor([0, torch.inf]).repeat(8), o),
            '40 of 80 scores are NaN',
        ),
    ],
)
def test_errors(change, message):
    with pytest.raises(ValueError, match=message):
        score(*change(*random_split(0, 8, 5)), WEIGHTS)


def test_unknown_tie_rule():
    with pytest.raises(ValueError, match="unknown tie rule 'lucky'; valid: pessimistic, mean"):
        score(*random_split(0, 8, 5), WEIGHTS, ties='lucky')
