"""util.benchmark: made data like real data, baselines that compute the same, clocks, floors, the
whole command."""

import json
import mmap
import shutil
import time
from collections import namedtuple
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import train
from basic import runtime, scoring
from basic.bigfile import BigFile
from basic.config import load_config
from basic.pretrained.tokenizer import load_tokenizer
from basic.schedule import build_schedule
from data_provider import build_loaders
from evaluation import evaluate
from loss import build_loss
from model import build_model
from util.benchmark import bench
from util.benchmark.baselines import SampleBySample, collate, score_as_released, train_as_released
from util.benchmark.bench import STAGES, Figure
from util.benchmark.data import (
    CONFIGS,
    LENGTHS,
    MBERT,
    SECOND_PIECE,
    Sizes,
    make_captions,
    make_data,
    sizes_of,
)
from util.benchmark.measure import Clock, Operations, Phases, forget_peak, peak
from util.benchmark.scoring import made_embeddings
from util.benchmark.window import Window

CPU = torch.device('cpu')
FLOAT32_RATE = 'util.benchmark.scoring.float32_rate'
TINY = Sizes(
    train=6,
    val=2,
    test=3,
    captions=2,
    dim=12,
    vocabulary=14000,
    queries=12,
    gallery=3,
    batch_size=4,
    bert={
        **MBERT,
        'hidden_size': 32,
        'num_hidden_layers': 2,
        'num_attention_heads': 2,
        'intermediate_size': 48,
    },
    options=(
        'text.trained_layers=[1]',
        'text.hidden=24',
        'text.heads=2',
        'text.qk_width=8',
        'visual.hidden=16',
        'visual.heads=2',
        'visual.qk_width=8',
        'space.dim=14',
    ),
)
SMALL_TOWER = dict(
    hidden_size=32,
    intermediate_size=48,
    projection_dim=24,
    num_hidden_layers=1,
    num_attention_heads=2,
    image_size=64,
    patch_size=32,
)
NO_DROPOUT = ['text.bert_dropout=0', 'text.dropout=0', 'visual.dropout=0', 'space.dropout=0']


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    """ROOTPATH of made data."""
    return make_data(tmp_path_factory.mktemp('made') / 'data', 'vatex', TINY)


@pytest.fixture(scope='module')
def tokenizer(root):
    return load_tokenizer(str(root / 'bert'), True)


def config_of(root, *options):
    return load_config(
        CONFIGS / 'vatex.yaml',
        [
            *TINY.options,
            f'text.bert={root}/bert',
            'text.pretrained=false',
            'train.batch_size=4',
            'train.workers=0',
            *options,
        ],
    )


# ---------------------------------------------------------------------------------------- made data


def test_made_data_are_of_the_sizes_asked_for(root, tokenizer):
    loaders = build_loaders(config_of(root), root, tokenizer, splits=('train', 'val', 'test'))
    assert loaders['train'].dataset_size == 6 * 2 and loaders['train'].feature_dim == 12
    assert (len(loaders['val'].visual_ids), len(loaders['test'].visual_ids)) == (2, 3)
    assert len(loaders['test'].visual_of) == 3 * 2 and tokenizer.vocab_size == 14000
    file = BigFile(root / 'vatex/FeatureData/i3d_kinetics')
    _, counts, _ = file.read_videos()
    assert len(counts) == 11 and counts.min() >= 24 and counts.max() <= 36
    assert 0.9 < file.map().std() < 1.1


@pytest.mark.parametrize('kind', LENGTHS)
def test_captions_have_as_many_tokens_as_real_ones(tokenizer, kind):
    captions = make_captions(kind, 3000, np.random.default_rng(0))
    ids = [tokenizer(text)['input_ids'] for text in captions]
    assert not any(tokenizer.unk_token_id in caption for caption in ids)
    lengths = np.array([len(caption) - 2 for caption in ids])
    mean, deviation = LENGTHS[kind]
    if kind == 'english':
        words = np.array([len(text.split()) for text in captions])
        assert lengths.sum() / words.sum() == pytest.approx(1 + SECOND_PIECE, rel=0.02)
        lengths = words
    assert lengths.mean() == pytest.approx(mean, rel=0.02) and lengths.std() == pytest.approx(
        deviation, rel=0.1
    )
    assert len(set(captions)) > 2900


def test_data_are_made_once_and_others_are_left_alone(root, capsys):
    before = {path: path.stat().st_mtime_ns for path in root.rglob('*') if path.is_file()}
    make_data(root, 'vatex', TINY)
    assert 'there already' in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in root.rglob('*') if path.is_file()} == before
    with pytest.raises(ValueError, match='in the way.*--folder'):
        make_data(root, 'vatex', TINY, seed=2)


def test_a_disk_too_small_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    usage = namedtuple('usage', 'total used free')
    monkeypatch.setattr(shutil, 'disk_usage', lambda _: usage(0, 0, 2**30))
    with pytest.raises(ValueError, match=r'take 3\.\d+ GiB.*has only 1\.00 GiB free.*--folder'):
        make_data(tmp_path / 'data', 'vatex', sizes_of('vatex', 'paper'))
    assert not (tmp_path / 'data').exists()


def test_sizes():
    paper = sizes_of('vatex', 'paper')
    assert (paper.train, paper.queries, paper.gallery, paper.vocabulary) == (
        25991,
        15000,
        1500,
        119547,
    )
    million = sizes_of('vatex', 'million')
    assert (million.train * million.captions, million.queries, million.gallery) == (
        10**6,
        10**6,
        10**5,
    )


# ---------------------------------------------------------------------------------------- baselines


def test_the_released_way_loads_the_same_batch(root, tokenizer):
    config = config_of(root)
    ours = next(iter(build_loaders(config, root, tokenizer, splits=('train',))['train']))
    theirs = SampleBySample(config, root, tokenizer)
    theirs = collate([theirs[int(index)] for index in ours.index])
    for name in ('visual', 'visual_mask', 'index'):
        assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
    for role in ('en', 'tgt', 'back'):
        assert torch.equal(getattr(ours, role).ids, getattr(theirs, role).ids), role
        assert torch.equal(getattr(ours, role).mask, getattr(theirs, role).mask), role


def test_the_released_way_takes_the_same_step(root, tokenizer):
    config = config_of(root, *NO_DROPOUT)
    loader = build_loaders(config, root, tokenizer, splits=('train',))['train']
    means = []
    for change in (lambda run: run, train_as_released):
        torch.manual_seed(0)
        model = build_model(config, feature_dim=TINY.dim)
        optimizer, discriminator_optimizer = train.build_optimizers(model, config)
        run = train.Run(
            config=config,
            rootpath=root,
            folder=None,
            device=CPU,
            loaders={'train': loader},
            model=model,
            criterion=build_loss(config),
            optimizer=optimizer,
            schedule=build_schedule(config, steps=len(loader)),
            discriminator_optimizer=discriminator_optimizer,
        )
        run = change(run)
        train.train_one_epoch(run, 1)
        means.append(train.train_one_epoch(run, 1))
    assert means[0]['train'] == pytest.approx(means[1]['train'], rel=1e-4)
    assert run.model.text_encoder.bert.config._attn_implementation == 'eager'
    assert run.optimizer.defaults['foreach'] is False


def scored(queries, gallery):
    """Made embeddings and their owners."""
    owner = np.arange(queries) * gallery // queries
    return made_embeddings(owner, gallery, 16, CPU), owner


def test_the_released_way_scores_the_same(root):
    embeddings, owner = scored(60, 20)
    report = evaluate(
        embeddings,
        SimpleNamespace(split='test', visual_of=owner, visual_ids=range(20), caption_ids=range(60)),
        config_of(root),
        weights=[0.2],
    )
    arrays = [part.numpy() for part in embeddings]
    metrics, took, done = score_as_released(*arrays, owner, 0.2)
    for way in ('t2v', 'v2t'):
        for name, value in metrics[way].items():
            assert report['rows'][0][way][name] == pytest.approx(value), (way, name)
    assert done == 1 and set(took) == {'lists', 'scores', 't2v', 'v2t'}
    assert 5 < metrics['t2v']['R@1'] < 100


def test_the_released_way_stops_when_its_time_is_up():
    embeddings, owner = scored(60, 20)
    _, took, done = score_as_released(*(part.numpy() for part in embeddings), owner, 0.2, seconds=0)
    assert done == 1 / 60 and min(took.values()) > 0


# -------------------------------------------------------------------------------- clocks and floors


class Ticks:
    """A clock that stands still until it is told to go on."""

    device = CPU

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def go(self, seconds):
        self.now += seconds


def test_a_window_tells_waiting_from_work(monkeypatch):
    ticks = Ticks()
    monkeypatch.setattr(time, 'perf_counter', ticks)

    def batches():
        for number in range(3):
            ticks.go(1)
            yield SimpleNamespace(index=[0] * 5, number=number)

    class Loader:
        def __iter__(self):
            return batches()

    window, seen = Window(Loader(), ticks, warm=2, least=4), []
    for batch in window:
        seen.append(batch.number)
        ticks.go(2 if len(seen) != 4 else 3)
    assert seen == [0, 1, 2, 0, 1, 2]  # begun anew; two to warm up, then four
    assert (window.batches, window.items, window.elapsed, window.waited) == (4, 20, 13, 4)
    assert window.work == 2 and window.flow == 20 / 13
    window = Window(Loader(), ticks, warm=0, least=2, seconds=7)
    assert sum(1 for _ in window) == 7 and window.elapsed == 7
    # far too slow: it does not insist
    window = Window(Loader(), ticks, warm=0, least=20, seconds=2)
    assert sum(1 for _ in window) == 6


def test_phases_count_a_part_within_another_once():
    ticks = Ticks()
    phases = Phases(ticks)
    with phases('forward'):
        ticks.go(1)
        with phases('inner'):
            ticks.go(5)
        ticks.go(1)
    with phases('forward'):
        ticks.go(3)
    assert phases.seconds == {'forward': 5, 'inner': 5}


def test_operations_are_counted_by_part():
    first, second, batched = (
        torch.randn(3, 4, requires_grad=True),
        torch.randn(4, 5),
        torch.randn(2, 3, 4),
    )
    counted = Operations()
    with counted:
        with counted('forward'):
            out = torch.nn.functional.linear(first, second.T, torch.zeros(5))
        with counted('backward'):
            out.sum().backward()
        batched @ batched.transpose(1, 2)
        torch.conv1d(torch.randn(1, 2, 7), torch.randn(3, 2, 5))
    shape = (3, 4), (4, 5), torch.float32
    assert counted.products['forward'] == {shape: 1}
    assert counted.products['backward'] == {((3, 5), (5, 4), torch.float32): 1}
    assert counted.products[''] == {((2, 3, 4), (2, 4, 3), torch.float32): 1}
    convolution = 2 * 3 * 3 * 2 * 5
    assert counted.flops == {'forward': 120, 'backward': 120, '': 2 * 2 * 3 * 4 * 3 + convolution}
    floors = counted.floors(Clock(CPU))
    assert floors['all'] == pytest.approx(
        sum(seconds for part, seconds in floors.items() if part != 'all')
    )
    assert all(0 < seconds < 1 for seconds in floors.values())


def test_fused_attention_is_counted_on_a_cpu():
    query = torch.randn(1, 2, 8, 16, requires_grad=True)
    with Operations() as counted:
        torch.nn.functional.scaled_dot_product_attention(query, query, query).sum().backward()
    forward = 2 * (2 * 2 * 8 * 16 * 8)
    # products written out, or recomputed by the kernel
    assert counted.flops[''] in (3 * forward, 3.5 * forward)


def use_memory(mib):
    """Touch fresh pages, which no earlier use of this process has left over, and give them back."""
    with mmap.mmap(-1, mib * 2**20) as pages:
        for _ in range(mib):
            pages.write(bytes([1]) * 2**20)


def test_peak_memory_is_counted_anew():
    use_memory(200)
    forget_peak(CPU)
    before = peak(CPU)
    use_memory(80)
    assert 0.05 < peak(CPU) - before < 0.12


def test_tf32_ends_with_its_block():
    before = torch.get_float32_matmul_precision()
    with runtime.matrix_precision('tf32'):
        assert torch.get_float32_matmul_precision() == 'high'
    assert torch.get_float32_matmul_precision() == before


# -------------------------------------------------------------------------------------- the command


def test_a_figure_knows_how_far_from_its_floor_it_is():
    slow = Figure('step', 'a step', 30.0, 'ms', floor=10.0, floor_is='products', note='16 pairs')
    assert (
        slow.ratio == 3
        and '30 ms' in slow.line()
        and '3x' in slow.line()
        and 'products; 16 pairs' in slow.line()
    )
    assert Figure('loader', 'pairs', 10.0, 'pairs/s', floor=25.0).ratio == 2.5
    assert Figure('loader', 'pairs', 10.0, 'pairs/s').ratio is None
    assert [bench.show(n) for n in (0.01234, 12.34, 123.4, 12345.6)] == [
        '0.0123',
        '12.3',
        '123',
        '12,346',
    ]


@pytest.fixture
def tiny(monkeypatch):
    """A function that runs the command on tiny sizes; returns the figures by (stage, figure)."""
    monkeypatch.setattr(bench, 'sizes_of', lambda *_: TINY)
    # a large product takes long on a small machine
    monkeypatch.setattr(bench, 'ceiling', lambda *_: 1e12)
    monkeypatch.setattr('util.benchmark.images.TOWER', SMALL_TOWER)

    def call(path, *words):
        assert bench.main(['--seconds', '0.01', '--workers', '1', '--json', str(path), *words]) == 0
        context, *figures = map(json.loads, path.read_text().splitlines())
        assert context['benchmark'] == 'small' and context['sizes']['train'] == 6
        return {(figure['stage'], figure['figure']): figure for figure in figures}

    return call


def test_every_stage(tiny, tmp_path, capsys):
    figures = tiny(
        tmp_path / 'figures.json', '--profile', str(tmp_path / 'trace.json'), 'train.lr=1e-5'
    )
    assert {stage for stage, _ in figures} == {'ceiling', *STAGES}
    assert all(
        figure['value'] >= 0
        for figure in figures.values()
        if figure['figure'] != 'of it not marked'
    )
    with_floor = [figure for figure in figures.values() if figure['floor'] is not None]
    assert len(with_floor) > 15 and all(
        figure['ratio'] > 0 and figure['floor_is'] for figure in with_floor
    )
    assert figures['loader', 'ours / released style, one core']['value'] > 1
    parts = {name.removeprefix('of it ') for _, name in figures if name.startswith('of it')}
    assert parts == {'forward', 'discriminator', 'loss', 'backward', 'optimizer', 'not marked'}
    assert all(figures['step', f'of it {part}']['floor'] > 0 for part in parts - {'not marked'})
    assert 0 <= figures['training', 'share that waits for data']['value'] <= 100
    images = {name for stage, name in figures if stage == 'images'}
    assert images == {
        'decoded and resized, one core',
        'decoded and resized, 1 workers',
        "CLIP's tower, random weights",
        'made once: pixels',
        'kept as pixels, one core',
        'kept as pixels / decoding',
        'made once: embeddings',
        'kept as embeddings, one core',
        'kept as embeddings / decoding and tower',
    }
    assert '12 KiB' in figures['images', 'kept as pixels, one core']['note']  # 3 x 64 x 64 bytes
    # 24 float32 numbers
    assert '0.0938 KiB' in figures['images', 'kept as embeddings, one core']['note']
    assert figures['images', 'kept as embeddings / decoding and tower']['value'] > 1
    assert json.loads((tmp_path / 'trace.json').read_text())['traceEvents']
    out, err = capsys.readouterr()
    assert 'Self CPU' in err and 'released style / ours' in out and 'ratio' in out


def test_chosen_stages_in_a_kept_folder_as_json_alone(tiny, tmp_path, monkeypatch, capsys):
    words = [
        '--seconds',
        '0.01',
        '--workers',
        '0',
        '--stages',
        'tokenise,score',
        '--json',
        '-',
        '--folder',
        str(tmp_path / 'kept'),
    ]
    assert bench.main(words) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {record['stage'] for record in records[1:]} == {'ceiling', 'tokenise', 'score'}
    assert records[1]['unit'] == 'GFLOP/s' and (tmp_path / 'kept/benchmark.json').is_file()
    assert bench.main([*words, '--seed', '5']) == 2
    assert 'in the way' in capsys.readouterr().err


def test_what_takes_too_long_is_extrapolated(tiny, tmp_path, monkeypatch):
    # two thirds
    monkeypatch.setattr(FLOAT32_RATE, lambda _: 4 * 12 * 3 * 14 / 0.01 * 4 / 9)
    figures = tiny(tmp_path / 'figures.json', '--stages', 'score')
    part, whole = figures['score', '8 x 2, one weight'], figures['score', '12 x 3']
    assert (
        whole['value'] == pytest.approx(36 / 16 * part['value']) and 'extrapolated' in whole['note']
    )


def test_the_full_size_is_scored_from_disk_a_block_at_a_time(tiny, tmp_path, monkeypatch):
    seen = []

    def watched(*args, **options):
        found = scoring.scored(*args, **options)
        sizes = [len(part) for part in (found.visual, *found.branches)]
        seen.append((sizes, found.blocks, found.wrong[0].totals))
        return found

    monkeypatch.setattr('util.benchmark.scoring.scored', watched)
    monkeypatch.setattr('util.benchmark.scoring.RANDOM_ROWS', 2)
    monkeypatch.setattr(FLOAT32_RATE, lambda _: 4 * 12 * 3 * 14 / 0.01 * 4 / 9)
    monkeypatch.setattr(scoring, '_BLOCK', 5)
    figures = tiny(tmp_path / 'figures.json', '--stages', 'score')
    ((sizes, blocks, totals),) = seen
    assert (
        sizes == [3, 12, 12]
        and blocks == [slice(0, 4)]
        and totals[0, :4].any()
        and not totals[0, 4:].any()
    )
    whole = figures['score', '12 x 3 from disk']
    assert whole['value'] > 0 and whole['floor'] > 0 and '3 blocks' in whole['note']


def test_the_temporary_folder_goes(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(bench.tempfile, 'mkdtemp', lambda **_: str(tmp_path / 'temporary'))
    monkeypatch.setitem(
        STAGES, 'tokenise', lambda bench: bench.add('tokenise', 'there', bench.root.is_dir(), '')
    )
    figures = tiny(tmp_path / 'figures.json', '--stages', 'tokenise')
    assert figures['tokenise', 'there']['value'] and not (tmp_path / 'temporary').exists()


@pytest.mark.parametrize(
    'words, message',
    [
        (['--stages', 'step,sleep'], "no stage 'sleep'; there are: tokenise, loader"),
        (['--sizes', 'huge'], 'invalid choice'),
        (['--profile', 'train.lr=1'], 'put the option last'),
    ],
)
def test_wrong_arguments(words, message, capsys):
    with pytest.raises(SystemExit):
        bench.main(words)
    assert message in capsys.readouterr().err


def test_a_wrong_option_stops_at_once(capsys):
    assert bench.main(['train.lrr=1']) == 2
    assert "unknown key 'train.lrr'" in capsys.readouterr().err
