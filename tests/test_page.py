"""report.html: its figures are those of the test, and it is one safe, bounded, readable file."""

import base64
import io
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

import basic.page
import evaluation
from basic import gallery, run_folder
from basic.breakdown import Ranks, chance, chance_recall, cutoffs, grouped, histogram, recall
from basic.charts import HEIGHT, WIDTH, Series, bar_chart, line_chart
from basic.config import load_config
from basic.curves import training_curves, write_curves
from basic.examples import EACH, KINDS, example_rows
from basic.pretrained.tokenizer import load_tokenizer, save_tokenizer
from evaluation import main
from model import build_model

MULTI30K = Path(evaluation.__file__).parent / 'configs/multi30k.yaml'
LANGUAGES = ('de', 'fr', 'cs', 'zh', 'ja')
NASTY = '<script>alert(1)</script> "rot" & \'blau\' <img src=x onerror=y>'
LOG = [
    {
        'epoch': epoch,
        'train': {'total': 9.0 / epoch},
        'val': {way: {'R@1': 10.0 * epoch, 'R@10': 20.0 * epoch} for way in ('t2v', 'v2t')},
        'best_epoch': 2,
        'speed': None,
    }
    for epoch in (1, 2, 3)
]


# ----------------------------------------------------------------------- a test in five languages


@pytest.fixture(scope='module')
def world(tmp_path_factory):
    """A collection in five languages with pictures, one of them broken, and an untrained model of
    it in a run folder."""
    folder, threads = tmp_path_factory.mktemp('world'), torch.get_num_threads()
    torch.set_num_threads(1)
    root, bert = tiny.make_collection(folder / 'root'), tiny.make_bert(folder / 'bert')
    for seed, lang in enumerate(LANGUAGES[1:]):
        tiny.add_language(root, lang, seed)
    path = root / 'multi30k/TextData/multi30ktest_de_2016_task1.caption.txt'
    lines = path.read_text().splitlines()
    lines[3] = f'{lines[3].split()[0]} {NASTY}'
    path.write_text(''.join(f'{line}\n' for line in lines))

    pictures = root / 'multi30k/pictures'
    pictures.mkdir()
    for number in range(tiny.SIZES['test']):
        Image.new('RGB', (300, 200), (40 * number, 0, 0)).save(pictures / f'test{number}.png')
    (pictures / 'test2.png').write_bytes(b'no picture')

    run = root / 'multi30k/runs/x/seed_1'
    run.mkdir(parents=True)
    options = [f'data.lang={",".join(LANGUAGES)}', 'data.media=pictures/{id}.png']
    config = load_config(
        MULTI30K, [*tiny.options(bert), *options, f'visual.feature_dim={tiny.DIM}']
    )
    torch.manual_seed(0)
    tiny.save_model(run / 'model_best.pt', config, build_model(config, tiny.DIM))
    save_tokenizer(load_tokenizer(str(bert), True), run / 'tokenizer')
    (run / run_folder.LOG).write_text(''.join(f'{json.dumps(record)}\n' for record in LOG))
    yield SimpleNamespace(root=root, run=run, bert=bert)
    torch.set_num_threads(threads)


def run_test(world, *options):
    """Test the model; returns the run folder."""
    assert main(['--checkpoint', str(world.run), '--rootpath', str(world.root), *options]) == 0
    return world.run


class Page(HTMLParser):
    """What a page has: tags with their attributes, tables as lists of rows, the visible text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.tables, self.text = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == 'table':
            self.tables.append([])
        elif tag == 'tr':
            self.tables[-1].append([])
        elif tag in ('td', 'th'):
            self.tables[-1][-1].append('')

    def handle_data(self, data):
        inside = self.tags and self.tags[-1][0]
        if inside == 'style':
            return
        self.text.append(data)
        if self.tables and self.tables[-1] and self.tables[-1][-1] and inside in ('td', 'th'):
            self.tables[-1][-1][-1] += data

    def of(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


@pytest.fixture(scope='module')
def tested(world):
    """(page, its text, metrics.json) of a test in five languages."""
    folder = run_test(world)
    text = (folder / 'report.html').read_text(encoding='utf-8')
    return Page(text), text, json.loads((folder / 'metrics.json').read_text())


def test_the_metrics_are_those_of_metrics_json(tested):
    page, _, metrics = tested
    for table, way in zip(page.tables, ('t2v', 'v2t')):
        header, *rows = table
        names = header[1:]
        assert names == ['R@1', 'R@5', 'R@10', 'MedR', 'mAP'] + ['SumR'] * (way == 'v2t')
        by_name = {row[0]: row[1:] for row in rows}
        assert [*by_name] == ['mean, w = 0.2', *LANGUAGES, 'chance']
        parts = {'mean, w = 0.2': metrics, **metrics['languages']}
        for name, part in parts.items():
            row = next(row for row in part['rows'] if row['weight'] == 0.2)
            figures = {**row[way], 'SumR': row['SumR'], 'mAP': 100 * row[way]['mAP']}
            assert by_name[name] == [f'{figures[key]:.1f}' for key in names]
        # 6 images; each has two of the 12 captions
        assert by_name['chance'][:3] == (
            ['16.7', '83.3', '100.0'] if way == 't2v' else ['16.7', '68.2', '98.5']
        )


def test_the_recall_curve_goes_through_the_metrics(tested):
    page, _, metrics = tested
    table = next(table for table in page.tables if table[0][1:3] == ['R@1', 'R@2'])
    rows = {row[0]: dict(zip(table[0], row)) for row in table}
    for lang, part in metrics['languages'].items():
        row = next(row for row in part['rows'] if row['weight'] == 0.2)
        for way in ('t2v', 'v2t'):
            for k in (1, 5, 10):
                assert rows[f'{lang} {way}'][f'R@{k}'] == f'{row[way][f"R@{k}"]:.1f}'


def test_nothing_is_loaded_and_nothing_runs(tested):
    page, text, _ = tested
    policy = next(each['content'] for each in page.of('meta') if 'http-equiv' in each)
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-")
    assert not page.of('script') and not page.of('link') and not page.of('iframe')
    assert not any(name.startswith('on') or name == 'style' for _, a in page.tags for name in a)
    assert all(each['src'].startswith('data:image/jpeg;base64,') for each in page.of('img'))
    assert not page.of('a') and 'http://' not in text and 'https://' not in text
    assert '<script' not in text and NASTY not in text
    assert NASTY in ''.join(page.text)  # shown as text, once it is among the examples


def test_it_can_be_read_without_seeing_it(tested):
    page, text, _ = tested
    assert page.of('html')[0]['lang'] == 'en' and len(page.of('h1')) == 1
    assert all(each.get('alt') for each in page.of('img'))
    assert all(each['scope'] in ('row', 'col') for each in page.of('th'))
    charts = [each for each in page.of('svg') if each.get('role') == 'img']
    assert len(charts) == 7 and all(each['aria-label'] for each in charts)
    assert text.count('<caption>') == len(page.tables)
    spoken = [each['lang'] for each in page.of('span') if 'lang' in each]
    assert set(spoken) == {*LANGUAGES, 'en'}


def test_the_examples_have_pictures_and_one_right_item(tested):
    page, text, _ = tested
    articles = re.findall('<article>.*?</article>', text)
    assert 10 <= len(articles) <= 3 * EACH
    assert all(article.count('class=right') == 1 for article in articles)
    assert '<span class="noimage">test2</span>' in text and len(page.of('img')) > 20
    for article in articles:
        rank = float(re.search(r'at rank <b>([\d.]+)</b>', article)[1])
        items = re.findall('<li.*?</li>', article)
        assert len(items) == (5 if rank <= 5 else 6)
        place = next(number for number, item in enumerate(items, 1) if 'class=right' in item)
        assert place == min(rank, 6)


def test_the_training_is_shown(tested):
    assert 'best: epoch 2' in tested[1] and 'Training loss after each epoch' in tested[1]


def test_no_report(world):
    folder = run_test(world, '--split', 'val')
    assert (folder / 'report_val.html').exists()
    run_test(world, '--split', 'val', '--no-report')
    assert not (folder / 'report_val.html').exists()  # it would be of another test


def test_an_altered_test_has_a_page_of_its_own(world, capsys, tmp_path):
    folder = run_test(world)
    before = (folder / 'report.html').read_bytes()
    run_test(world, 'data.lang=fr', 'eval.weights=[0.2]', 'data.noise=0.2')
    text = (folder / 'report_altered.html').read_text()
    assert 'Not the test of the run as it was trained: ' in text and 'data.lang: ' in text
    assert '20 % of the training translations corrupted' in text
    assert (folder / 'report.html').read_bytes() == before
    assert 'metrics_altered.json, report_altered.html' in capsys.readouterr().out
    run_test(world, '--output', str(tmp_path / 'mine.json'))
    assert {path.name for path in tmp_path.iterdir()} == {'mine.json', 'mine.npz', 'mine.html'}


def test_without_pictures_and_translations(world, tmp_path):
    run_test(world, '--output', str(tmp_path / 'x.json'), 'data.media=', 'eval.weights=[0]')
    text = (tmp_path / 'x.html').read_text()
    assert '<img' not in text and 'data.media names where they lie' in text
    options = ['data.lang=fr', 'eval.weights=[0]', 'train.val_weight=0', 'data.media=']
    no_english = 'data.captions.test.en=none_{lang}'
    run_test(world, '--output', str(tmp_path / 'y.json'), *options, no_english)
    text = (tmp_path / 'y.html').read_text()
    assert 'agreement' not in text and 'weight w' not in text and 'By length' in text


@pytest.mark.parametrize('place', ['basic.page.page', 'evaluation.details_of'])
def test_a_page_that_fails_does_not_fail_the_test(world, monkeypatch, capsys, tmp_path, place):
    def fail(*_):
        raise RuntimeError('no page today')

    monkeypatch.setattr(place, fail)
    run_test(world, '--output', str(tmp_path / 'x.json'))
    assert {path.name for path in tmp_path.iterdir()} == {'x.json', 'x.npz'}
    out, error = capsys.readouterr()
    assert 'html (RuntimeError: no page today)' in error and 'Result: SumR' in out


def test_trec_files_of_each_language(world, tmp_path):
    pytest.importorskip('pytrec_eval')
    from test_trec import judged

    folder = run_test(world, '--trec', str(tmp_path / 'x'), '--no-report')
    metrics = json.loads((folder / 'metrics.json').read_text())
    assert len([*tmp_path.iterdir()]) == 4 * len(LANGUAGES)
    for lang, part in metrics['languages'].items():
        row = next(row for row in part['rows'] if row['weight'] == 0.2)
        for way in ('t2v', 'v2t'):
            theirs, _ = judged(tmp_path / f'x.{lang}', way)
            assert theirs['map'] == pytest.approx(row[way]['mAP'])
            assert 100 * theirs['success_5'] == pytest.approx(row[way]['R@5'])


@pytest.mark.parametrize('options', [['--trec', 'no/folder/x'], ['--trec-depth', '-1']])
def test_wrong_trec_options(world, options):
    assert main(['--checkpoint', str(world.run), *options]) == 2


# ----------------------------------------------------------------------------------------- the size


def test_pictures_stop_at_a_size_and_after_a_time(monkeypatch):
    noise = np.random.default_rng(0).integers(0, 255, (200, 200, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, 'JPEG')
    media = SimpleNamespace(jpeg=lambda name, side: file.getvalue() if name != 'none' else None)
    pictures = gallery.Pictures()
    sources = [pictures.source(media, f'{number}') for number in range(200)]
    shown = [source for source in sources if source]
    assert 0 < len(shown) < 200 and pictures.left_out == 200 - len(shown)
    assert sum(map(len, shown)) <= gallery.PICTURE_BYTES < 3 * 2**20
    assert base64.b64decode(shown[0].partition(',')[2]) == file.getvalue()
    monkeypatch.setattr(gallery, 'PICTURE_SECONDS', -1)
    late = gallery.Pictures()
    assert late.source(media, 'a') is None and late.left_out == 1
    assert gallery.Pictures().source(None, 'a') is None


def test_long_texts_are_cut():
    assert gallery.short('x' * 10_000) == 'x' * 239 + '…'
    assert gallery.short(' a\n\tb <') == 'a b &lt;'


# ---------------------------------------------------------------------------------------- numbers


def test_chance_is_the_mean_over_random_orders():
    random = np.random.default_rng(1)
    counts = np.array([1, 3, 3, 5])
    total, visuals, trials = counts.sum(), 30, 20_000
    ranks = Ranks(np.zeros(total), np.zeros(4), counts, visuals)
    row = chance(ranks)
    assert row['t2v']['R@5'] == pytest.approx(100 * 5 / 30)
    assert row['t2v']['mAP'] == pytest.approx(np.mean(1 / np.arange(1, 31)))
    recalls, precisions = {1: 0, 5: 0, 10: 0}, 0
    for count in counts:
        places = np.sort(
            random.permuted(np.tile(np.arange(1, total + 1), (trials, 1)), axis=1)[:, :count]
        )
        precisions += np.mean(np.arange(1, count + 1) / places)
        for k in recalls:
            recalls[k] += 100 * np.mean(places[:, 0] <= k)
    for k, value in recalls.items():
        assert row['v2t'][f'R@{k}'] == pytest.approx(value / 4, abs=0.5)
    assert row['v2t']['mAP'] == pytest.approx(precisions / 4, abs=0.005)
    median = row['v2t']['MedR']
    assert chance_recall(ranks, 'v2t', median) >= 50 > chance_recall(ranks, 'v2t', median - 1)
    assert row['SumR'] == pytest.approx(
        sum(row[w][f'R@{k}'] for w in ('t2v', 'v2t') for k in recalls)
    )


def test_histogram_and_recall():
    ranks = np.array([1, 1, 2, 5, 5.5, 10, 11, 50, 100, 101, 5000])
    assert histogram(ranks) == pytest.approx([100 * n / 11 for n in (2, 2, 2, 2, 1, 2)])
    assert recall(ranks, 5) == pytest.approx(400 / 11)
    assert cutoffs(1) == [1] and cutoffs(7) == [*range(1, 8)]
    many = cutoffs(100_000)
    assert len(many) <= 60 and many[0] == 1 and many[-1] == 100_000


def test_groups_keep_equal_values_together():
    values = np.array([3, 1, 1, 1, 1, 1, 2, 9])
    ranks = np.array([1, 1, 2, 3, 4, 20, 7, 1])
    found = grouped(values, ranks)
    assert [(each.low, each.high, each.queries) for each in found] == [
        (1, 1, 5),
        (2, 2, 1),
        (3, 9, 2),
    ]
    assert found[0].figures == {'R@1': 20, 'R@5': 80, 'R@10': 80, 'MedR': 3}
    assert sum(each.queries for each in grouped(np.arange(101.0), np.ones(101))) == 101
    assert len(grouped(np.zeros(5), np.ones(5))) == 1


def test_examples_are_best_median_and_worst():
    ranks = np.array([5, 1, 9, 1, 3, 2, 8, 1, 7, 30.0])
    rows = example_rows(ranks, np.arange(10), 2)
    assert [*rows] == [*KINDS]
    assert {ranks[row] for row in rows['best']} == {1}
    assert [ranks[row] for row in rows['worst']] == [30, 9]
    assert sorted(ranks[row] for row in rows['median']) == [3, 5]
    same_item = example_rows(ranks, np.zeros(10, int), 8)
    assert same_item == {kind: [] for kind in KINDS}
    few = example_rows(ranks[:6], np.arange(6), 8)
    assert sorted(row for some in few.values() for row in some) == [*range(6)]


# ----------------------------------------------------------------------------------------- charts


@pytest.mark.parametrize(
    'points',
    [
        [(1, 3.0)],
        [(1, 5.0), (2, 5.0)],
        [(1, -1e-9), (2, 1e9), (3, 0)],
        [(epoch, 1 / epoch) for epoch in range(1, 5000)],
    ],
)
@pytest.mark.parametrize('log', [False, True])
def test_a_line_stays_in_its_chart(points, log):
    series = [Series('<a & b>', points, 0, dots=len(points) < 5), Series('b', points, 9)]
    marks = [(points[-1][0], '<best>')]
    html = line_chart(series, title='"<x>"', x='<x>', y='&', log=log, marks=marks)
    tree = ElementTree.fromstring(f'<div>{html}</div>')
    assert len(html) < 60_000
    lines = [each.get('points') for each in tree.iter('polyline')]
    assert len(lines) == 2
    for x, y in (map(float, pair.split(',')) for line in lines for pair in line.split()):
        assert 0 <= x <= WIDTH and 0 <= y <= HEIGHT and math.isfinite(x)
    assert '<a & b>' in [item.tail or ''.join(item.itertext()) for item in tree.iter('li')]
    assert line_chart([Series('a', [])], title='', x='', y='') == ''


def test_bars_are_as_high_as_their_numbers():
    html = bar_chart([Series('a', [50, 25])], ['<1', '2'], title='t', x='x', y='y')
    tree = ElementTree.fromstring(f'<div>{html}</div>')
    first, second = (float(each.get('height')) for each in tree.iter('rect'))
    assert first == pytest.approx(2 * second, abs=0.2) and first > 50
    assert ''.join(next(tree.iter('title')).itertext()) == 'a, <1: 50.0 %'
    assert bar_chart([Series('a', [0, 0])], ['1', '2'], title='t', x='x', y='y')


# ----------------------------------------------------------------------------------------- curves


def test_curves_of_a_training(tmp_path):
    curves = training_curves(LOG)
    assert curves['loss'] == [(1, 9.0), (2, 4.5), (3, 3.0)] and curves['best'] == 2
    assert curves['recalls']['v2t R@10'] == [(1, 20.0), (2, 40.0), (3, 60.0)]
    assert write_curves(tmp_path) is None
    odd = [{'epoch': 1}, {'epoch': 2, 'train': {'total': math.nan}, 'val': None}]
    assert training_curves(odd) == {
        'loss': [],
        'recalls': dict.fromkeys(curves['recalls'], []),
        'best': None,
    }
    (tmp_path / run_folder.LOG).write_text(''.join(f'{json.dumps(record)}\n' for record in LOG))
    with Image.open(write_curves(tmp_path)) as image:
        assert image.format == 'PNG' and image.width == 1200


def test_the_files_belong_to_a_run():
    names = {'report.html', 'report_val.html', 'report_altered.html', 'report_val_altered.html'}
    assert names | {'curves.png'} <= set(run_folder.REPORTS) <= set(run_folder.RUN_FILES)
    assert basic.page.STYLE.is_file()
