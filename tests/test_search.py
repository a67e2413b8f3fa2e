"""util.search without its page: the index folder, exact search, Milvus, and the command line."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from standin import COLOURS, StandIn, make_index, paint
from test_retriever import make_run  # noqa: F401  (a fixture)

from basic.bigfile import BigFile
from basic.errors import ConfigError, DataError
from basic.files import Locked
from evaluation import load_model
from util.search import manifest as manifest_module
from util.search import writer as writer_module
from util.search.exact import NpyVectors, block_size, settle
from util.search.index import Index
from util.search.main import main, parse
from util.search.manifest import ITEMS, read_manifest
from util.search.milvus import clean_uri
from util.search.searcher import Searcher, Text, fused_offset
from util.search.writer import writing

REPOSITORY = Path(__file__).resolve().parent.parent
BY_HAND = {'rtol': 0, 'atol': 1e-6}


def unit(rows, dim, seed=0):
    vectors = np.random.default_rng(seed).standard_normal((rows, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def saved(path, vectors):
    store = NpyVectors.create(path, vectors.shape[1])
    store.append([], vectors)
    return store


def by_brute_force(vectors, queries, k):
    found = []
    for query in queries.astype(np.float64):
        scores = (vectors.astype(np.float64) * query).sum(axis=1)
        rows = sorted(range(len(vectors)), key=lambda row: (-scores[row], row))[:k]
        found.append((rows, scores[rows]))
    return found


def equal(found, expected):
    for (rows, scores), (rows_, scores_) in zip(found, expected, strict=True):
        assert list(rows) == list(rows_)
        assert np.array_equal(scores, scores_)


@pytest.fixture
def painted(tmp_path):
    folder = tmp_path / 'images'
    folder.mkdir()
    return paint(folder)


@pytest.fixture
def made(tmp_path, painted):
    return make_index(tmp_path / 'index', painted)


# -------------------------------------------------------------------------------- exact search


@pytest.mark.parametrize('memory', [1, 1024])
def test_exact_search_is_brute_force(tmp_path, memory, monkeypatch):
    """Ties included: a third of the vectors are there three times, in different blocks."""
    monkeypatch.setattr('util.search.exact.BLOCK', 4096 if memory > 1 else 100)
    some = unit(700, 33)
    vectors = np.concatenate([some, some[:350], some[:350]])
    store = saved(tmp_path / 'x.npy', vectors)
    queries = np.concatenate([3 * some[:4], unit(5, 33, seed=1)])
    expected = by_brute_force(vectors, queries, 10)
    equal(store.search(queries, 10, None, memory), expected)
    for query, alone in zip(queries, expected):  # and does not depend on the other queries
        equal(store.search(query[None], 10, None, memory), [alone])


def test_all_vectors_equal(tmp_path):
    store = saved(tmp_path / 'x.npy', np.repeat(unit(1, 8), 5000, axis=0))
    ((rows, scores),) = store.search(unit(1, 8), 7, None)
    assert list(rows) == list(range(7)) and len(set(scores)) == 1


def test_small_indexes_and_block_sizes(tmp_path):
    store = saved(tmp_path / 'x.npy', unit(3, 8))
    ((rows, _),) = store.search(unit(1, 8), 10, None)
    assert sorted(rows) == [0, 1, 2]
    assert NpyVectors.create(tmp_path / 'y.npy', 8).search(unit(1, 8), 5, None)[0][0].size == 0
    assert block_size(1, 1536, 1) * 4 * 1536 < 2**20 and block_size(10**6, 1536, 1) == 1
    assert settle(unit(1, 8)[0], np.array([4, 2]), np.repeat(unit(1, 8), 2, 0), 5)[0].tolist() == [
        2,
        4,
    ]


def test_rows_are_added_in_place(tmp_path):
    vectors = unit(10, 6)
    store = saved(tmp_path / 'x.npy', vectors[:4])
    early = NpyVectors(tmp_path / 'x.npy', 4, 6)
    early.map()
    store.append([], vectors[4:])
    assert np.array_equal(early.map(), vectors[:4])  # an open reader is not disturbed
    assert np.array_equal(np.load(tmp_path / 'x.npy'), vectors)  # an ordinary .npy file
    with open(tmp_path / 'x.npy', 'ab') as file:  # what a killed addition left
        file.write(b'\1' * 30)
    again = NpyVectors(tmp_path / 'x.npy', 10, 6)
    again.append([], vectors[:1])
    assert np.array_equal(np.load(tmp_path / 'x.npy'), np.concatenate([vectors, vectors[:1]]))


def test_a_truncated_file_kills_nobody(tmp_path):
    store = saved(tmp_path / 'x.npy', unit(1000, 64))
    store.map()
    os.truncate(tmp_path / 'x.npy', 5000)
    with pytest.raises(DataError, match='truncated'):
        store.search(unit(1, 64), 3, None)
    with pytest.raises(DataError, match='5,000 bytes, expected 256,'):
        NpyVectors(tmp_path / 'x.npy', 1000, 64)


def test_vectors_that_are_no_numbers(tmp_path):
    vectors = unit(10, 6)
    vectors[3, 3] = np.nan
    with pytest.raises(DataError, match='NaN'):
        saved(tmp_path / 'x.npy', vectors).search(unit(1, 6), 3, None)


# ---------------------------------------------------------------------------------- the folder


def content(folder):
    """What an index has: ids, captions and vectors of each part."""
    index = Index(folder)
    found = {}
    for name, part in index.parts.items():
        vectors = part.vectors(np.arange(part.count))
        found[name] = {**part.columns, 'vectors': vectors.round(5).tolist()}
    index.close()
    return found


def test_an_index_describes_itself(made, painted):
    manifest = json.loads((made / 'manifest.json').read_text())
    assert manifest['model']['name'] == 'stand-in' and manifest['weight'] == 0.25
    assert manifest['ranges'] == {'de': {'en': [-0.4, 0.9], 'tgt': [-0.3, 0.8]}}
    vectors = np.load(made / manifest['parts']['items']['vectors'])
    assert vectors.shape == (6, 48) and vectors.dtype == np.float32
    index = Index(made)
    assert index.items.columns['id'] == list(COLOURS) and index.caption_languages == ['de']
    assert index.items.columns['file'][0] == str(painted['red'])


def test_adding_and_removing(tmp_path, painted):
    some = {name: painted[name] for name in list(painted)[:4]}
    folder = make_index(tmp_path / 'index', some)
    model, before = StandIn(), content(folder)
    from standin import Captions, Source, fill

    source = Source(
        'more',
        list(painted),
        lambda ids: model.encode_images([painted[name] for name in ids]),
        lambda name: str(painted[name]),
        [Captions('de', ['white', 'nobody'], ['ganz weiß', 'x'], ['white', 'x'])],
    )
    with writing(folder) as writer:
        added = fill(writer, model, source)
    assert (added.items, added.known, added.captions, added.omitted) == (2, 4, 1, 1)
    now = content(folder)
    for name in before:
        for key, values in before[name].items():
            assert now[name][key][:4] == values  # nothing was encoded again
    assert now['items']['number'][4:] == [8, 9]

    with writing(folder) as writer:
        writer.remove(writer.index.rows_of_ids(['green', 'white']))
    left = content(folder)
    assert left['items']['id'] == ['red', 'blue', 'yellow', 'black']
    assert left['captions_de']['item'] == ['red', 'blue', 'yellow']
    assert left['items']['number'] == [0, 2, 3, 9]
    names = [path.name for path in folder.iterdir() if path.name != '.lock']
    assert len(names) == 5, names  # nothing of the old ones is left
    (hits,) = Searcher(Index(folder), model).by_text([Text('rot', 'de')], 2)
    assert Index(folder).items.columns['id'][hits[0].row] == 'red'


STAGES = ['vectors', 'records', 'manifest', 'after']


def die_at(stage, monkeypatch):
    """Make this process end at a stage of a change, as by SIGKILL."""

    def die(*_, **__):
        os._exit(9)

    def half(path, content, own=writer_module.write_atomically):
        if ('manifest' in str(path)) == (stage == 'manifest'):
            (path.parent / f'.{path.name}.abcdef12.tmp').write_text('half')
            die()
        own(path, content)

    if stage == 'vectors':
        monkeypatch.setattr(os, 'fsync', die)
    elif stage == 'after':
        own = writer_module.write_manifest
        monkeypatch.setattr(writer_module, 'write_manifest', lambda *args: (own(*args), die()))
    else:
        for module in (writer_module, manifest_module):
            monkeypatch.setattr(module, 'write_atomically', half)


@pytest.mark.parametrize('stage', STAGES)
@pytest.mark.parametrize('change', ['add', 'remove'])
def test_a_kill_leaves_the_old_index_or_the_new_one(made, stage, change, monkeypatch):
    old = content(made)

    def work():
        with writing(made) as writer:
            if change == 'add':
                columns = {'id': ['new'], 'file': ['']}
                writer.append(ITEMS, np.ones((1, 48), np.float32), columns)
            else:
                writer.remove([1, 3])

    child = os.fork()
    if not child:
        try:
            with writing(made):
                die_at(stage, monkeypatch)
            work()
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    now = content(made)
    if stage == 'after':
        ids = now['items']['id']
        assert ('new' in ids) if change == 'add' else ('green' not in ids)
    else:
        assert now == old
        work()
        ids = content(made)['items']['id']
        assert len(ids) == (7 if change == 'add' else 4)
    with writing(made):
        pass
    names = sorted(path.name for path in made.iterdir() if path.name != '.lock')
    assert len(names) == 5, names  # what was left is removed


def test_two_at_once(made):
    with writing(made):
        with pytest.raises(Locked, match='in use by process'):
            with writing(made):
                pass
        Index(made)  # but reading goes on


def test_an_unfinished_index_continues(tmp_path, painted, monkeypatch):
    model = StandIn()
    monkeypatch.setattr('util.search.build.CHUNK', 2)
    monkeypatch.setattr('util.search.build.COMMIT_ROWS', 2)
    encode, calls = model.encode_images, []

    def interrupted(images, **_):
        calls.append(len(images))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return encode(images)

    model.encode_images = interrupted
    with pytest.raises(KeyboardInterrupt):
        make_index(tmp_path / 'index', painted, model)
    with pytest.raises(DataError, match='not complete'):
        Searcher(Index(tmp_path / 'index'), model)
    with pytest.raises(DataError, match='was made with model stand-in .*but this is other'):
        make_index(tmp_path / 'index', painted, StandIn('other'))
    make_index(tmp_path / 'index', painted, model)
    assert sum(calls) == 2 + 2 + 2 + 2  # four were kept
    assert content(tmp_path / 'index')['items']['id'] == list(COLOURS)
    with pytest.raises(DataError, match='is an index already'):
        make_index(tmp_path / 'index', painted, model)
    (tmp_path / 'other').mkdir()
    (tmp_path / 'other/x').write_text('x')
    with pytest.raises(DataError, match='not empty'):
        make_index(tmp_path / 'other', painted, model)


def damage(folder, change):
    path = folder / 'manifest.json'
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    'change, message',
    [
        (lambda m: m.update(format='other'), "format 'other'"),
        (lambda m: m.update(dim=-1), "'dim' above 0"),
        (lambda m: m.update(dim='48'), "key 'dim'"),
        (lambda m: m['model'].pop('fingerprint'), "key 'model.fingerprint'"),
        (lambda m: m['parts']['items'].update(records='../../etc/passwd'), 'no file of it'),
        (lambda m: m['parts']['items'].update(vectors='/dev/zero'), 'no file of it'),
        (lambda m: m['parts']['items'].update(vectors='captions_de.2.npy'), 'no file of it'),
        (lambda m: m['parts'].update({'../x': m['parts']['items']}), 'no file of it'),
        (lambda m: m['parts']['items'].update(count=5), 'expected 5 values'),
        (lambda m: m['parts']['items'].update(count=-1), 'negative'),
        (lambda m: m.update(next=3), 'do not rise'),
        (lambda m: m['ranges']['de'].update(en=[1.0]), 'lowest and a highest'),
        (lambda m: m.update(parts={}), 'no items'),
        (lambda m: m.update(weight=float('nan')), 'weight'),
    ],
)
def test_manifests_of_strangers(made, change, message):
    damage(made, change)
    with pytest.raises(DataError, match=message):
        Index(made)


def test_records_and_vectors_of_strangers(made):
    manifest = read_manifest(made)
    records = made / manifest['parts']['items']['records']
    whole = records.read_text()
    for text, message in (
        ('[' * 100_000, 'nested'),
        ('{"number": [0], "id": ["a"], "file": [1]}', r'file\[0\]'),
        (whole.replace('"red"', '"green"'), 'duplicate ids'),
        (whole.replace('"red"', '"\\ud800"'), 'half of a character'),
    ):
        records.write_text(text)
        with pytest.raises(DataError, match=message):
            Index(made)
    records.write_text(whole)
    vectors = made / manifest['parts']['items']['vectors']
    np.save(vectors, np.array([{'a': 1}] * 6, dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match='expected float32'):
        Index(made)
    np.save(vectors, np.zeros((6, 48), np.float64))
    with pytest.raises(DataError, match='expected float32 of shape'):
        Index(made)


def test_another_model_is_refused_by_name(made):
    other = StandIn('newer')
    with pytest.raises(DataError) as error:
        Searcher(Index(made), other)
    for part in ('stand-in', 'newer', StandIn().fingerprint, other.fingerprint):
        assert part in str(error.value)


# --------------------------------------------------------------------------------------- scores


def test_fused_scores_are_those_of_the_method(made):
    """w * minmax(en) + (1 - w) * minmax(tgt), with the ranges of the manifest."""
    model, index = StandIn(), Index(made)
    searcher = Searcher(index, model)
    for weight in (None, 0.0, 0.6, 1.0):
        query = Text('rot blau', 'de', 'red yellow', weight)
        (hits,) = searcher.by_text([query], 6)
        w = 0.25 if weight is None else weight
        vectors = torch.from_numpy(index.items.vectors(np.arange(6)))
        en = (vectors @ model.encode_text(['red yellow'], 'en')[0] + 0.4) / 1.3
        tgt = (vectors @ model.encode_text(['rot blau'], 'de')[0] + 0.3) / 1.1
        expected = w * en + (1 - w) * tgt
        order = expected.argsort(descending=True).tolist()
        assert [hit.row for hit in hits] == order
        np.testing.assert_allclose([hit.score for hit in hits], expected[order], **BY_HAND)
    assert fused_offset(None, 0.3) == 0


def test_captions_and_similar_items(made, painted):
    searcher = Searcher(Index(made), StandIn())
    vectors = searcher.images([Image.open(painted['blue'])])
    (captions,) = searcher.captions_for(vectors, 'de', 3)
    assert searcher.caption('de', captions[0].row) == ('blue', 'ganz blau', 'blue')
    (similar,) = searcher.similar(vectors, 3, own=[2])
    assert 2 not in [hit.row for hit in similar] and [hit.rank for hit in similar] == [1, 2, 3]
    (all_,) = searcher.similar(vectors, 3)
    assert all_[0].row == 2 and all_[0].score == pytest.approx(1, abs=1e-6)


def test_texts_are_encoded_once(made):
    model = StandIn()
    searcher = Searcher(Index(made), model)
    first = searcher.by_text([Text('rot', 'de', 'red', 0.2), Text('rot', 'de')], 3)
    count = sum(model.calls)
    again = searcher.by_text([Text('rot', 'de', 'red', 0.2), Text('rot', 'de')], 3)
    searcher.by_text([Text('rot', 'de', 'red', 0.9)], 3)
    assert first == again and sum(model.calls) == count == 2


def test_queries_that_are_refused(made):
    searcher = Searcher(Index(made), StandIn())
    for query, message in (
        (Text('rot', 'xx'), 'knows de, en'),
        (Text('  ', 'de'), 'empty'),
        (Text('red', 'en', 'red'), 'needs no translation'),
        (Text('rot', 'de', 'red', 2.0), '0 to 1'),
    ):
        with pytest.raises(DataError, match=message):
            searcher.check(query)


# --------------------------------------------------------------------------------------- Milvus


@pytest.fixture(scope='module')
def server(tmp_path_factory):
    """A milvus-lite server on 127.0.0.1: its URI."""
    pytest.importorskip('pymilvus')
    program = shutil.which('milvus-lite', path=os.path.dirname(sys.executable)) or shutil.which(
        'milvus-lite'
    )
    if not program:
        pytest.skip('no milvus-lite')
    with socket.create_server(('127.0.0.1', 0)) as free:
        port = free.getsockname()[1]
    data = tmp_path_factory.mktemp('milvus')
    words = ['server', '--data-dir', data, '--host', '127.0.0.1', '--port', port]
    log = (data.parent / 'milvus.log').open('w')
    process = subprocess.Popen([sys.executable, program, *map(str, words)], stdout=log, stderr=log)
    try:
        for _ in range(300):
            with socket.socket() as probe:
                if probe.connect_ex(('127.0.0.1', port)) == 0:
                    break
            time.sleep(0.1)
        yield f'http://127.0.0.1:{port}'
    finally:
        process.terminate()
        process.wait(20)


@pytest.mark.parametrize('kind', ['FLAT', 'HNSW'])
@pytest.mark.parametrize('place', ['file', 'server'])
def test_milvus_gives_what_exact_search_gives(tmp_path, painted, place, kind, request):
    pytest.importorskip('milvus_lite')
    uri = request.getfixturevalue('server') if place == 'server' else tmp_path / 'x.db'
    exact = make_index(tmp_path / 'exact', painted)
    milvus = make_index(tmp_path / 'milvus', painted, milvus=f'milvus:{uri}', kind=kind)
    assert not list(milvus.glob('*.npy'))
    more = {'id': [f'n{i}' for i in range(200)], 'file': [''] * 200}
    vectors = np.concatenate([unit(190, 48), unit(10, 48)])  # ten of them twice
    searchers = []
    for folder in (exact, milvus):
        with writing(folder) as writer:
            writer.append(ITEMS, vectors, more)
            writer.remove([0, 7, 100])
            if folder == milvus:  # what a killed addition leaves: closer than all others
                part = writer.index.items
                part._vectors.append(range(5000, 5040), np.repeat(unit(1, 48) * 2, 40, 0))
        searchers.append(Searcher(Index(folder), StandIn()))
    queries = [Text('blau grün', 'de'), Text('rot', 'de', 'white', 0.4)]
    assert searchers[0].by_text(queries, 12) == searchers[1].by_text(queries, 12)
    near = unit(3, 48)
    assert searchers[0].similar(near, 15) == searchers[1].similar(near, 15)
    assert searchers[0].captions_for(near, 'de', 9) == searchers[1].captions_for(near, 'de', 9)
    rows = np.array([0, 50, 4])
    assert np.array_equal(*(each.index.items.vectors(rows) for each in searchers))
    searchers[1].index.close()


def test_where_milvus_may_be():
    assert clean_uri('milvus:http://127.0.0.1:19530') == 'http://127.0.0.1:19530'
    assert clean_uri('milvus:x.db') == os.path.abspath('x.db')
    for wrong in ('milvus:x', 'milvus:ftp://x', 'milvus:http://user:word@x'):
        with pytest.raises(DataError, match='expected milvus:FILE.db'):
            clean_uri(wrong)


def test_a_server_that_is_not_there(tmp_path, painted):
    pytest.importorskip('pymilvus')
    with socket.create_server(('127.0.0.1', 0)) as free:
        port = free.getsockname()[1]
    from util.search.milvus import connect

    with pytest.raises(DataError, match='does not answer'):
        connect(f'http://127.0.0.1:{port}', seconds=1)


# ----------------------------------------------------------------------------- the command line


def test_images_of_a_folder(make_run, tmp_path, capsys):  # noqa: F811
    run = make_run('clip')
    folder = tmp_path / 'photos'
    (folder / 'below').mkdir(parents=True)
    random = np.random.default_rng(0)
    for name in ('a.jpg', 'b.PNG', 'below/c d.jpg'):
        Image.fromarray(random.integers(0, 255, (40, 30, 3), dtype=np.uint8)).save(folder / name)
    turned = Image.open(folder / 'a.jpg')
    exif = turned.getexif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    turned.save(folder / 'turned.jpg', exif=exif, quality=100)
    (folder / 'broken.jpg').write_bytes(b'\xff\xd8nothing')
    (folder / '.hidden.jpg').write_bytes(b'x')
    words = ['index', str(run), '--images', str(folder), '--output', str(tmp_path / 'index')]
    words += ['--device', 'cpu']
    assert main(words) == 2
    assert '1 of 5 items cannot be read' in capsys.readouterr().err
    captions = tmp_path / 'captions.txt'
    captions.write_text('a#de#0 rot hund\nx#de#0 haus\n')
    assert main([*words, '--skip-bad', '--captions', str(captions)]) == 0
    out = capsys.readouterr().out
    assert '4 items; captions: 1 de' in out and 'broken.jpg: cannot be read' in out
    assert 'omitted: 1 captions' in out

    index = Index(tmp_path / 'index')
    assert index.items.columns['id'] == ['a', 'b.PNG', 'turned', 'below/c d']
    model = load_model(run)
    paths = [folder / name for name in ('a.jpg', 'b.PNG', 'below/c d.jpg')]
    vectors = index.items.vectors([0, 1, 3])
    np.testing.assert_allclose(vectors, model.encode_images(paths).numpy(), **BY_HAND)
    upright = Image.open(folder / 'turned.jpg').transpose(Image.Transpose.ROTATE_270)
    np.testing.assert_allclose(
        index.items.vectors([2]), model.encode_images([upright]).numpy(), **BY_HAND
    )

    page = tmp_path / 'out.html'
    words = ['query', str(tmp_path / 'index')]
    assert main([*words, 'rot katze', '--lang', 'de', '--top', '2', '--html', str(page)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == 'rot katze  (de; score: cosine)'
    assert lines[4].split()[0] == '1' and len([line for line in lines if '/photos/' in line]) == 2
    assert page.read_text().count('data:image/jpeg;base64,') == 2
    assert main([*words, '--image', str(folder / 'b.PNG')]) == 0
    out = capsys.readouterr().out
    assert 'captions (de)' in out and ' 1.000  b.PNG ' in out
    assert main([*words, '--item', 'a', '--top', '1']) == 0
    assert 'rot hund' in capsys.readouterr().out
    assert main([*words, '--item', 'nothing']) == 2 and main([*words, 'x', '--lang', 'xx']) == 2

    assert main(['remove', str(tmp_path / 'index'), 'a', 'turned']) == 0
    assert 'removed: 2 items, 1 captions; 2 items left' in capsys.readouterr().out
    assert main(['remove', str(tmp_path / 'index'), 'A']) == 2
    add = ['add', str(tmp_path / 'index'), '--images', str(folder), '--skip-bad', '--device', 'cpu']
    assert main(add) == 0
    assert 'added: 2 items' in capsys.readouterr().out
    other = make_run('clip', 'space.dim=10', name='other/seed_1')
    assert main([*add, '--model', str(other)]) == 2
    err = capsys.readouterr().err
    assert 'run/seed_1' not in err or 'other/seed_1' in err
    assert model.fingerprint in err and load_model(other).fingerprint in err
    assert main([*words, 'rot', '--model', str(other)]) == 2


def test_frame_features(make_run, tmp_path, capsys):  # noqa: F811
    run, folder = make_run('frames'), tmp_path / 'features'
    folder.mkdir()
    frames = unit(7, 10)
    frames.astype('<f4').tofile(folder / 'feature.bin')
    names = [f'v{i // 3}_{i}' for i in range(7)]
    (folder / 'shape.txt').write_text('7 10')
    (folder / 'id.txt').write_text(' '.join(names))
    videos = {f'v{i}': names[3 * i : 3 * i + 3] for i in range(3)}
    (folder / 'video2frames.txt').write_text(repr(videos))
    media = tmp_path / 'media'
    media.mkdir()
    Image.new('RGB', (9, 9)).save(media / 'v1.png')
    words = ['index', str(run), '--features', str(folder), '--output', str(tmp_path / 'index')]
    assert main([*words, '--media', str(media), '--device', 'cpu']) == 0
    index, model = Index(tmp_path / 'index'), load_model(run)
    assert index.items.columns['file'] == ['', str(media / 'v1.png'), '']
    expected = model.encode_videos([frames[:3], frames[3:6], frames[6:]])
    np.testing.assert_allclose(index.items.vectors(np.arange(3)), expected.numpy(), **BY_HAND)
    assert BigFile(folder).rows == 7
    assert main(['query', str(tmp_path / 'index'), 'rot']) == 0
    assert main(['query', str(tmp_path / 'index'), '--image', str(media / 'v1.png')]) == 2
    assert 'frames' in capsys.readouterr().err
    assert main(['index', str(run), '--images', str(media), '--output', str(tmp_path / 'x')]) == 2
    assert 'reads the features of frames, not images' in capsys.readouterr().err


def test_a_split(tmp_path, make_run, capsys):  # noqa: F811
    """The test split of a run at ROOTPATH/<collection>/runs/<name>/<seed>, with both branches."""
    from roots import make_image_root

    root = make_image_root(tmp_path)
    run = make_run('clip', name='multi30k/runs/x/seed_1')
    assert main(['index', str(run), '--output', str(tmp_path / 'index'), '--device', 'cpu']) == 0
    index, model = Index(tmp_path / 'index'), load_model(run)
    assert index.items.columns['id'] == ['g', 'h'] and index.captions('de').fused
    assert index.items.columns['file'][0] == str(root / 'multi30k/flickr30k-images/g.jpg')
    columns = index.captions('de').columns
    expected = model.query(columns['text'], columns['translation'], lang='de')
    np.testing.assert_allclose(
        index.captions('de').vectors(np.arange(2)), expected.numpy(), **BY_HAND
    )
    assert 'captions: 2 de' in capsys.readouterr().out


@pytest.mark.parametrize(
    'words, message',
    [
        (['index', 'r', '--output', 'o', '--images', 'x', '--split', 'val'], 'give one of'),
        (['index', 'r', '--output', 'o', '--hnsw'], '--hnsw goes with'),
        (['index', 'r', '--output', 'o', '--captions', 'x'], 'its own captions'),
        (['index', 'r', '--output', 'o', '--images', 'x', '--media', 'y'], 'omit --media'),
        (['add', 'i'], 'give --images'),
        (['query', 'i'], 'give one of TEXT'),
        (['query', 'i', 'x', '--image', 'y'], 'give one of TEXT'),
        (['query', 'i', 'x', '--top', '0'], 'expected 1 to'),
        (['query', 'i', 'x', '--weight', '0.1'], 'give --translation'),
        (['serve', 'i', '--memory', '0'], 'at least 1'),
    ],
)
def test_wrong_words(words, message):
    with pytest.raises(ConfigError, match=message):
        parse(words)


@pytest.mark.parametrize('missing', ['fastapi', 'uvicorn', 'pymilvus'])
def test_extras_are_asked_for_by_name(made, missing, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, missing, None)  # as if it were not installed
    words = ['serve', str(made)]
    if missing == 'pymilvus':
        damage(made, lambda m: m.update(milvus={'uri': '/tmp/x.db', 'kind': 'FLAT'}))
        for part in ('items', 'captions_de'):
            damage(made, lambda m, part=part: m['parts'][part].update(vectors='x'))
        words = ['query', str(made), '--item', 'red']
    assert main(words) == 2
    err = capsys.readouterr().err
    assert missing in err and 'pip install -r util/requirements-search.txt' in err


def test_a_port_that_is_taken(made, capsys):
    pytest.importorskip('fastapi')
    with socket.create_server(('127.0.0.1', 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(['serve', str(made), '--port', port]) == 2
    assert f'cannot listen at 127.0.0.1:{port}' in capsys.readouterr().err


MAKES_ONE = """
import sys
from types import SimpleNamespace
import numpy as np
from util.search.writer import creating

model = SimpleNamespace(name='x', fingerprint='y', kind='clip', languages=['de'])
vars(model).update(dim=8, weight=0.2, ranges={})
with creating(sys.argv[1], model, 'nowhere', milvus=sys.argv[2]) as writer:
    writer.append('items', np.eye(8), {'id': list('abcdefgh'), 'file': [''] * 8})
    writer.finish()
"""


def test_a_milvus_file_from_process_to_process(tmp_path):
    """It can be read by another process when the first has ended, and by one at a time."""
    pytest.importorskip('milvus_lite')
    folder, uri = str(tmp_path / 'index'), f'milvus:{tmp_path}/x.db'
    words = [sys.executable, '-c', MAKES_ONE, folder, uri]
    subprocess.run(words, cwd=REPOSITORY, check=True)
    index = Index(folder)
    ((rows, scores),) = index.items.search(np.eye(8, dtype=np.float32)[2:3], 1, None)
    assert (rows.tolist(), scores.tolist()) == ([2], [1.0])
    words = [sys.executable, '-m', 'util.search', 'remove', folder, 'c']
    other = subprocess.run(words, capture_output=True, text=True, cwd=REPOSITORY)
    assert other.returncode == 2 and 'one process at a time' in other.stderr
    assert other.stderr.count('\n') == 1
    index.close()


def test_what_is_no_index(tmp_path, capsys):
    assert main(['query', str(tmp_path), 'x']) == 2
    assert 'is no index' in capsys.readouterr().err and not list(tmp_path.iterdir())
    assert main(['remove', str(tmp_path), 'x']) == 2
    assert not list(tmp_path.iterdir())
