"""The stages `tokenise` and `loader`: captions to tokens, and training batches as they come."""

import time

from torch.utils.data import DataLoader

from basic.caption import CaptionFile, pack_texts
from basic.collection import Collection
from basic.config import load_config
from data_provider import build_loaders
from util.benchmark.baselines import SampleBySample, collate
from util.benchmark.measure import COPY, copy_seconds_one_core
from util.benchmark.window import Window, bytes_of, drain

TOKENISED = 100_000  # captions


def tokenise(bench):
    """WordPieces a second, as training tokenises: all at once, before the first epoch."""
    for branch, file in Collection(bench.config, bench.root).captions('train').items():
        part = CaptionFile(file.path, file.ids[:TOKENISED], file.texts[:TOKENISED])
        started = time.perf_counter()
        packed = pack_texts(bench.config, branch, part.texts, bench.tokenizer)
        took, tokens = time.perf_counter() - started, len(packed.ids)
        size = sum(len(text.encode()) for text in part.texts) + packed.ids.nbytes
        bench.add(
            'tokenise',
            f'branch {branch}',
            tokens / took,
            'tokens/s',
            floor=tokens / copy_seconds_one_core(size),
            floor_is=f'{COPY}, one core',
            note=f'{len(part) / took:,.0f} captions/s, {tokens / len(part):.1f} tokens each',
        )


def loader(bench):
    """Training batches: ours by one core and by all workers, and the released way by one core."""
    started = time.perf_counter()
    config = with_workers(bench, 0)
    alone = build_loaders(config, bench.root, bench.tokenizer, splits=('train',))['train']
    bench.add(
        'loader',
        'opening, joining, tokenising',
        time.perf_counter() - started,
        's',
        note=f'once a run, {alone.dataset_size:,} pairs',
    )
    size = bytes_of(next(iter(alone)))
    copied = bench.config.train.batch_size / copy_seconds_one_core(size)
    first = Window(alone, bench.clock, warm=0, least=8, seconds=bench.seconds)
    drain(first)  # brings these batches' features into the page cache; then the same ones again
    ours = drain(Window(alone, bench.clock, warm=0, least=first.batches))
    bench.add(
        'loader',
        'one core',
        ours,
        'pairs/s',
        floor=copied,
        floor_is=f'{COPY}, one core',
        note=f'{size / bench.config.train.batch_size / 1024:.0f} KiB a pair, from the page cache',
    )
    theirs = drain(
        Window(sample_by_sample(bench, 0), bench.clock, warm=1, least=2, seconds=bench.seconds)
    )
    bench.add(
        'loader',
        'one core, released style',
        theirs,
        'pairs/s',
        floor=copied,
        floor_is=f'{COPY}, one core',
    )
    bench.add(
        'loader',
        'ours / released style, one core',
        ours / theirs,
        'times',
        note='goal: at least 20',
    )
    workers = bench.config.train.workers
    if workers:
        together = build_loaders(
            bench.config, bench.root, bench.tokenizer, splits=('train',), device=bench.device
        )['train']
        flow = drain(
            Window(together, bench.clock, warm=4 * workers, least=8, seconds=bench.seconds)
        )
        bench.add(
            'loader',
            f'{workers} workers',
            flow,
            'pairs/s',
            floor=copied,
            floor_is=f'{COPY}, one core',
            note='to this process, which does nothing else',
        )


def with_workers(bench, workers):
    """The config with so many loader workers."""
    return load_config(bench.config_path, [*bench.overrides, f'train.workers={workers}'])


def sample_by_sample(bench, workers):
    """A DataLoader that loads the released way."""
    return DataLoader(
        SampleBySample(bench.config, bench.root, bench.tokenizer),
        shuffle=True,
        collate_fn=collate,
        batch_size=bench.config.train.batch_size,
        num_workers=workers,
        drop_last=True,
        pin_memory=bench.device.type == 'cuda',
    )
