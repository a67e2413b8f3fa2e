"""The stage `encode`: the test split's visual items and captions, as evaluation encodes them."""

from dataclasses import replace

from data_provider import build_loaders
from evaluation import encode
from util.benchmark.measure import PRODUCTS, Operations, forget_peak, peak
from util.benchmark.training import BATCHES
from util.benchmark.window import Window, size_of


def encode_split(bench):
    """Encoding the test split's visual items and captions, in batches as at test time."""
    run, clock, parts = bench.run, bench.clock, ('visuals', 'captions')
    eval_set = build_loaders(
        bench.config, bench.root, bench.tokenizer, splits=('test',), device=bench.device
    )['test']

    def encode_part(batches):
        # No order: the embeddings of a part cannot be put into that of the whole split.
        encode(
            run.model,
            replace(eval_set, order={}, **batches),
            bench.device,
            bench.config.compute.precision,
        )

    firsts = {
        part: [batch for _, batch in zip(range(BATCHES), getattr(eval_set, part))] for part in parts
    }
    counted = Operations()
    with counted:
        encode_part({part: within(counted(part), firsts[part]) for part in parts})
    with bench.products():
        floors = counted.floors(clock)
    forget_peak(bench.device)
    windows = {
        part: Window(getattr(eval_set, part), clock, warm=2, seconds=bench.seconds)
        for part in parts
    }
    encode_part(windows)
    for part, what in (('visuals', 'visual items'), ('captions', 'captions, either branch')):
        items = sum(map(size_of, firsts[part]))
        bench.add(
            'encode',
            what,
            windows[part].flow,
            'items/s',
            floor=items / floors[part],
            floor_is=PRODUCTS,
            note=f'batches of {bench.config.eval.test_batch_size}, loading them included',
        )
    bench.add('encode', 'peak memory', peak(bench.device), 'GiB')


def within(context, items):
    """The items, the time between the first one and the end spent in a context."""
    with context:
        yield from items
