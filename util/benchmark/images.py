"""The stage `images` of util.benchmark: raw images on their way to CLIP, and what keeping them
spares.

N images, P width of CLIP's embeddings. It needs no collection: it makes images of its own, of a
photograph's size.
"""

import io
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from basic.config import load_config
from basic.images import ImageSource, Preprocessing
from basic.loader import Loader
from basic.pretrained.towers import build_clip
from basic.runtime import autocast
from data_provider import VisualBatches, store_images
from model import ClipEncoder
from util.benchmark.data import CONFIGS
from util.benchmark.measure import COPY, PRODUCTS, Clock, Operations, copy_seconds_one_core
from util.benchmark.window import Window, bytes_of, drain

MOST = 512  # images made
BATCH = 64  # images at once
WIDTH, HEIGHT, QUALITY = 500, 375, 90  # about 100 KB, like Flickr's
TOWER = dict(  # ViT-B/32
    hidden_size=768,
    intermediate_size=3072,
    projection_dim=512,
    num_hidden_layers=12,
    num_attention_heads=12,
    image_size=224,
    patch_size=32,
)
DECODING = 'decoding the files alone, one core'


def images(bench):
    """Images a second: decoded and resized; kept as pixels and as embeddings; through CLIP's
    tower."""
    count = min(MOST, bench.sizes.train)
    with tempfile.TemporaryDirectory(prefix='benchmark_') as folder:
        ids = make_images(Path(folder), count)
        clip = build_clip(name='', pretrained=False, architecture=TOWER)
        shape = Preprocessing(image_size=TOWER['image_size'])
        encoder = ClipEncoder(clip=clip, hidden=1024, train_clip=False, preprocessing=shape)
        encoder.to(bench.device).eval()
        source = ImageSource(f'{folder}/{{id}}.jpg', ids, preprocessing=shape, where=folder)
        decoded = count / Clock(torch.device('cpu')).best(lambda: decode(source), rounds=2)
        for workers in dict.fromkeys((0, bench.config.train.workers)):
            flow = flow_of(bench, source, workers)
            what = f'{workers} workers' if workers else 'one core'
            bench.add(
                'images',
                f'decoded and resized, {what}',
                flow,
                'images/s',
                floor=decoded,
                floor_is=DECODING,
                note=f'{WIDTH} x {HEIGHT}, {mean_size(source) / 1024:.0f} KiB each',
            )
        through = tower_flow(bench, source, encoder)
        for kind in ('pixels', 'embeddings'):
            kept_flow(
                bench,
                source,
                kind,
                encoder,
                alone=1 / (1 / flow + (kind == 'embeddings') / through),
            )


def make_images(folder, count):
    """`count` JPEGs, blurred blots with grain on them; returns their ids."""
    rng = np.random.default_rng(0)
    for number in range(count):
        blots = Image.fromarray(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8))
        pixels = np.asarray(
            blots.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC), dtype=np.float32
        )
        grain = rng.standard_normal(pixels.shape, dtype=np.float32) * 12
        Image.fromarray((pixels + grain).clip(0, 255).astype(np.uint8)).save(
            folder / f'{number}.jpg', quality=QUALITY
        )
    return [str(number) for number in range(count)]


def mean_size(source):
    """Bytes of an image's file."""
    return sum(source.path(name).stat().st_size for name in source.ids) / len(source.ids)


def decode(source):
    """Decode every image and do nothing with it: what the JPEG itself costs."""
    for name in source.ids:
        with Image.open(io.BytesIO(source.path(name).read_bytes())) as image:
            image.load()


def flow_of(bench, source, workers):
    """Images a second that a loader delivers, as training has it."""
    batches = Loader(
        VisualBatches(source, source.ids, batch_size=BATCH),
        workers=workers,
        keep_workers=True,
        processes=source.in_processes,
    )
    return drain(Window(batches, bench.clock, warm=2 * workers, least=2, seconds=bench.seconds))


def tower_flow(bench, source, encoder):
    """Measure CLIP's tower alone; images a second."""
    pixels = source.batch(source.ids[:BATCH])[0].to(bench.device)
    precision, counted = bench.config.compute.precision, Operations()

    def embed():
        with autocast(bench.device, precision):
            return encoder.embed(pixels)

    with counted:
        embed()
    with bench.products():
        floors = counted.floors(bench.clock)
        took = bench.clock.best(embed, rounds=2)
    bench.add(
        'images',
        "CLIP's tower, random weights",
        len(pixels) / took,
        'images/s',
        floor=len(pixels) / floors['all'],
        floor_is=PRODUCTS,
        note=f'batches of {len(pixels)}',
    )
    return len(pixels) / took


def kept_flow(bench, source, kind, encoder, *, alone):
    """Measure compute.image_cache=`kind`: making it, and what it delivers afterwards; `alone`,
    images/s without it."""
    config = load_config(
        CONFIGS / 'multi30k.yaml', [f'compute.image_cache={kind}', 'text.pretrained=false']
    )
    with tempfile.TemporaryDirectory(prefix='benchmark_') as folder:
        started = time.perf_counter()
        kept = store_images(
            source,
            source.ids,
            Path(folder),
            split='train',
            config=config,
            device=bench.device,
            encoder=encoder,
        )
        bench.add(
            'images',
            f'made once: {kind}',
            len(source.ids) / (time.perf_counter() - started),
            'images/s',
        )
        flow = flow_of(bench, kept, 0)
        batch = kept.batch(source.ids[:BATCH])
        copied = len(batch[0]) / copy_seconds_one_core(bytes_of(batch[0]))
    bench.add(
        'images',
        f'kept as {kind}, one core',
        flow,
        'images/s',
        floor=copied,
        floor_is=f'{COPY}, one core',
        note=f'{bytes_of(batch[0]) / len(batch[0]) / 1024:.3g} KiB an image',
    )
    spared = 'decoding' if kind == 'pixels' else 'decoding and tower'
    bench.add('images', f'kept as {kind} / {spared}', flow / alone, 'times')
