"""The stage `score` of util.benchmark: ranks and metrics from embeddings, as large as the memory
allows and larger.

Q captions, V visual items, E common space.
"""

import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch.nn import functional as F

from basic.scoring import scored
from evaluation import Embeddings, evaluate
from util.benchmark.baselines import score_as_released
from util.benchmark.measure import GIB, forget_peak, peak, product_flops, product_seconds

NOISE = 8.0  # length of what a made caption adds to its visual item's vector
PRODUCTS = 'two float32 matrix products'
RANDOM_ROWS = 4096  # of a made file


def score(bench):
    """Scoring given embeddings, `evaluation.evaluate`, and the released way of it.

    Where the whole would take too long, a part of it is scored, both captions and visual items cut
    by one factor, at three sizes, and the whole extrapolated from the largest in proportion to
    captions x visual items; and then at the full size, from files on disk, as far as one block of
    captions.
    """
    sizes, width = bench.sizes, bench.config.space.dim
    products = 4 * sizes.queries * sizes.gallery * width  # operations of the two branches' scores
    factor = min(1.0, (bench.seconds * float32_rate(bench) / products) ** 0.5)
    for share in (factor / 4, factor / 2, factor) if factor < 1 else (1.0,):
        score_part(
            bench,
            max(1, round(sizes.queries * share)),
            max(1, round(sizes.gallery * share)),
            baseline=share == factor,
        )
    if factor < 1:
        score_from_disk(bench)


def float32_rate(bench):
    """Floating-point operations a second of scores in float32, measured on a small product."""
    shapes = (2048, bench.config.space.dim), (bench.config.space.dim, 2048), torch.float32
    return product_flops(*shapes) / product_seconds(*shapes, clock=bench.clock)


def score_part(bench, queries, gallery, *, baseline):
    """Score (queries, gallery) made embeddings; with `baseline` the released way too, and the whole
    extrapolated."""
    clock, config, sizes = bench.clock, bench.config, bench.sizes
    owner = np.arange(queries) * gallery // queries  # as many captions for each visual item
    embeddings = made_embeddings(owner, gallery, config.space.dim, bench.device)
    eval_set = SimpleNamespace(
        split='test', visual_of=owner, visual_ids=range(gallery), caption_ids=range(queries)
    )
    floor = clock.best(
        lambda: [captions @ embeddings.visual.T for captions in (embeddings.en, embeddings.tgt)],
        rounds=2,
    )
    what, in_memory = f'{queries:,} x {gallery:,}', sum(part.nbytes for part in embeddings) / GIB
    forget_peak(bench.device)
    took = clock.best(
        lambda: evaluate(embeddings, eval_set, config, weights=[config.train.val_weight]), rounds=2
    )
    bench.add('score', f'{what}, one weight', took, 's', floor=floor, floor_is=PRODUCTS)
    bench.add(
        'score',
        'peak memory',
        peak(bench.device),
        'GiB',
        note=f'{in_memory:.2f} of it the embeddings',
    )
    if not baseline:
        return
    started = clock()
    rows = evaluate(embeddings, eval_set, config)['rows']
    bench.add(
        'score',
        f'{what}, {len(rows)} weights',
        clock() - started,
        's',
        floor=floor,
        floor_is=PRODUCTS,
    )
    if queries < sizes.queries:
        factor = sizes.queries * sizes.gallery / (queries * gallery)
        bench.add(
            'score',
            f'{sizes.queries:,} x {sizes.gallery:,}',
            took * factor,
            's',
            floor=floor * factor,
            floor_is=PRODUCTS,
            note='extrapolated from the part above',
        )
    arrays = [part.cpu().numpy() for part in embeddings]
    _, parts, done = score_as_released(
        *arrays, owner, config.train.val_weight, seconds=bench.seconds
    )
    theirs = sum(parts.values())
    bench.add(
        'score',
        f'{what}, released style',
        theirs,
        's',
        floor=floor,
        floor_is=PRODUCTS,
        note=', '.join(f'{part} {seconds:.2f}' for part, seconds in parts.items())
        + (f'; extrapolated from {100 * done:.0f} per cent or more' if done < 1 else ''),
    )
    bench.add(
        'score', 'released style / ours', theirs / took, 'times', note='goal on a GPU: at least 50'
    )


def score_from_disk(bench):
    """Both passes over one block of captions of the full size, from memory-mapped files that
    nothing has to hold.

    The other blocks cost the same: the whole takes as many times as long. Its peak memory is
    measured, for all that grows with the number of captions, some numbers for each, is there from
    the start.
    """
    clock, config, sizes = bench.clock, bench.config, bench.sizes
    queries, gallery, width = sizes.queries, sizes.gallery, config.space.dim
    what = f'{queries:,} x {gallery:,} from disk'
    with tempfile.TemporaryDirectory(prefix='benchmark_') as folder:
        arrays = [
            made_file(Path(folder) / f'{name}.npy', rows, width)
            for name, rows in zip(Embeddings._fields, (gallery, queries, queries))
        ]
        forget_peak(bench.device)
        started = clock()
        scoring = scored(
            *arrays,
            np.arange(queries) * gallery // queries,
            [config.train.val_weight],
            ties=config.eval.ties,
            memory=config.compute.score_memory,
            device=bench.device,
            blocks=1,
        )
        share = scoring.blocks_in_all
        took = (clock() - started) * share
        scoring.metrics()
        highest = peak(bench.device)
    floor = 4 * queries * gallery * width / float32_rate(bench)
    bench.add(
        'score',
        what,
        took,
        's',
        floor=floor,
        floor_is=PRODUCTS,
        note=(
            f'extrapolated from one of {share:,} blocks of captions; reading the disk not included'
        ),
    )
    bench.add(
        'score',
        'peak memory',
        highest,
        'GiB',
        note=(
            f'of {queries * gallery * 4 / GIB:,.0f} GiB of scores a branch, and'
            f' {sum(array.nbytes for array in arrays) / GIB:.1f} GiB of embeddings on disk'
        ),
    )


def made_file(path, rows, width):
    """A memory-mapped .npy (rows, E): random numbers, then a hole: zeros that take no room, nor
    time to be read."""
    array = np.lib.format.open_memmap(path, mode='w+', dtype=np.float32, shape=(rows, width))
    some = array[:RANDOM_ROWS]
    some[:] = np.random.default_rng(0).standard_normal(some.shape, dtype=np.float32)
    array.flush()
    return np.load(path, mmap_mode='r')


def made_embeddings(owner, gallery, width, device):
    """Embeddings (gallery, E), (queries, E) twice: each caption lies near its visual item."""
    generator = torch.Generator(device).manual_seed(0)

    def draw(rows):
        return torch.randn(rows, width, generator=generator, device=device)

    visual = F.normalize(draw(gallery), dim=-1)
    own = torch.from_numpy(owner).to(device)
    en, tgt = (
        F.normalize(draw(len(owner)).mul_(NOISE / width**0.5).add_(visual[own]), dim=-1)
        for _ in range(2)
    )
    return Embeddings(visual=visual, en=en, tgt=tgt)
