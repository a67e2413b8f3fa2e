"""Every reader of files and options, on damaged and on foreign ones: it returns, or raises a
documented error, soon.

Each test starts from a valid file, and changes its bytes, or the values in it. The same examples
come every time. FUZZ=100000 tries so many per reader, new ones each time: python -m pytest
tests/test_fuzz.py -q
"""

import io
import json
import os
import resource
import sys
import time
import zipfile

import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

from basic.bigfile import BigFile
from basic.cache import cached_array
from basic.caption import read_captions
from basic.checkpoint import load_checkpoint
from basic.config import config_from_dict, config_to_dict, load_config
from basic.exported import MODEL, NEEDED, WEIGHTS, write_model
from basic.features import FrameSource, PooledSource
from basic.ids import read_ids
from basic.images import ImageSource, Preprocessing
from basic.pretrained.tokenizer import load_tokenizer
from basic.print_config import describe_config
from basic.run_folder import read_config, read_log, record_start
from model import build_model, refuse_misfit
from roots import CONFIGS, make_video_root
from standin import make_index, paint
from test_released import released  # noqa: F401  (a fixture)
from test_table import make_run
from util.make_demo.corpus import options_there
from util.search.index import Index
from util.search.manifest import ITEMS, MANIFEST
from util.search.media import decode
from util.search.searcher import Searcher
from util.table.runs import read_runs

FUZZ = os.environ.get('FUZZ')
EXAMPLES = int(FUZZ or 60)  # per reader; a slow one gets fewer
SECONDS, GROWTH = 10, 2**29  # that one reading may take, in time and in bytes of memory
UNCLEAR = (UnicodeError, json.JSONDecodeError)  # they do not name the file


class Case:
    """An example, shown in short: what is tried may be endless, or have millions of digits."""

    def __init__(self, content):
        self.content = content

    def __repr__(self):
        if isinstance(self.content, bytes):
            return repr(self.content[:400])
        return (
            repr(self.content)[:400]
            if isinstance(self.content, list)
            and all(isinstance(item, str) for item in self.content)
            else type(self.content).__name__
        )


def fuzz(strategy, read, cost=1):
    """read(example) returns, or raises an error that a user can understand, in bounded time and
    memory."""

    @settings(
        max_examples=max(EXAMPLES // cost, 10),
        derandomize=FUZZ is None,
        database=None,
        deadline=None,
        phases=[Phase.generate] if FUZZ else [Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy.map(Case))
    def run(example):
        start, memory = time.process_time(), peak()  # the machine may be busy with something else
        try:
            read(example.content)
        except (ValueError, OSError) as error:
            assert not isinstance(error, UNCLEAR), repr(error)
            assert len(str(error)) < 5000
        assert time.process_time() - start < SECONDS
        assert peak() - memory < GROWTH

    run()


def peak():
    """The most bytes of memory in use so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == 'darwin' else 1024
    )


# ------------------------------------------------------------------------------------ what is tried

ODD_BYTES = st.sampled_from(
    [
        b'',
        b'\0',
        b'\xff',
        b'\n',
        b'\r',
        b' ',
        b'\t',
        b'#',
        b'"',
        b"'",
        b'{',
        b'[' * 3000,
        b'-',
        b':',
        b'&a ',
        b'*a',
        b'${x}',
        b'9' * 5000,
        b'1e999',
        b'NaN',
        b'\xef\xbb\xbf',
        b'\xff\xfe',
        b'\xe2\x80\xa8',
        b'???',
        b'\\',
        b'!!python/name:os.system ',
        b'PK\x03\x04',
        b'\x7f\xff\xff\xff',
        b'\xff' * 8,
    ]
) | st.binary(max_size=8)
ODD_TEXT = st.sampled_from(
    [
        '',
        ' ',
        '${oc.env:HOME}',
        '${',
        '\\${a}',
        '???',
        '{c:>3000000000}',
        '{0}',
        '{c.x}',
        '../..',
        'a/b',
        '\0',
        '\ud800',
        '9' * 5000,
        'null',
        'no',
        '[',
        '&a [*a]',
        "'",
        '"',
        '#',
        'a: b',
        '\n',
        '\u2028',
        '1e999',
        '-1',
        'x' * 3000,
    ]
) | st.text(max_size=8)
ODD_NUMBERS = (
    st.sampled_from([0, -1, 1, 2**31, 2**63, 10**30, 0.5, -0.0, 1e308, float('nan'), float('inf')])
    | st.integers()
    | st.builds(lambda: 10**5000)
)
SCALARS = st.none() | st.booleans() | ODD_NUMBERS | ODD_TEXT


def looped():
    items = []
    items.append(items)
    return items


def laughs():
    items = ['x']
    for _ in range(60):
        items = [items, items]
    return items


def nested():
    items = []
    for _ in range(300):
        items = [items]
    return items


PLAIN = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(ODD_TEXT | st.integers(), inner, max_size=3)
    ),
    max_leaves=6,
)
SHAPES = st.builds(looped) | st.builds(laughs) | st.builds(nested)
TENSORS = st.sampled_from(
    [
        lambda: torch.ones(3),
        lambda: torch.tensor(1),
        lambda: torch.zeros(1).expand(10**12),
        lambda: torch.ones(0),
        lambda: torch.ones(2).to_sparse(),
        lambda: torch.ones(2, 2).to_sparse_csr(),
        lambda: torch.ones(2, device='meta'),
        lambda: torch.ones(2, dtype=torch.complex64),
        lambda: torch.ones(2, dtype=torch.bool),
        lambda: torch.nn.Parameter(torch.ones(2)),
        lambda: torch.full((2, 2), float('nan')),
        lambda: torch.ones(2, 2, dtype=torch.float64).t(),
        lambda: torch.Size([1]),
        lambda: torch.float32,
        lambda: torch.device('cuda'),
        lambda: np.float64(1),
        lambda: np.int16(3),
        lambda: np.arange(3),
        lambda: np.str_('x'),
        lambda: b'x',
        lambda: {1, 2},
        lambda: (1, 2),
        lambda: 1j,
    ]
).map(lambda make: make())


def changed_bytes(valid):
    """The bytes with one to four pieces cut out, doubled, or replaced; or something else
    altogether."""

    def change(edits):
        data = valid
        for kind, place, length, piece in edits:
            at = int(place * len(data))
            end = at + min(length, len(data) - at)
            data = {
                'cut': data[:at] + data[end:],
                'replace': data[:at] + piece + data[at + len(piece) :],
                'insert': data[:at] + piece + data[at:],
                'double': data[:end] + data[at:],
                'end': data[:at],
            }[kind]
        return data

    edit = st.tuples(
        st.sampled_from(['cut', 'replace', 'replace', 'insert', 'insert', 'double', 'end']),
        st.floats(0, 1, exclude_max=True),
        st.integers(0, 40),
        ODD_BYTES,
    )
    return st.lists(edit, min_size=1, max_size=4).map(change) | st.binary(max_size=60)


def changed_tree(valid, values):
    """The tree with one to three of its values, anywhere, replaced, removed or added to; or another
    altogether."""

    def places(tree, path=()):
        yield path
        for key in (
            tree if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ()
        ):
            yield from places(tree[key], (*path, key))

    everywhere = [path for path in places(valid) if path]

    def change(edits):
        tree = shallow(valid)
        for path, kind, value, key in edits:
            holder = tree
            for step in path[:-1]:
                if (
                    not isinstance(holder, dict | list)
                    or isinstance(holder, list)
                    and not (isinstance(step, int) and step < len(holder))
                    or isinstance(holder, dict)
                    and step not in holder
                ):
                    break
                holder = holder[step]
            else:
                _put(holder, path[-1], kind, value, key)
        return tree

    edit = st.tuples(
        st.sampled_from(everywhere),
        st.sampled_from(['replace', 'replace', 'replace', 'remove', 'add']),
        values,
        ODD_TEXT | st.integers(),
    )
    return st.lists(edit, min_size=1, max_size=3).map(change) | values


def shallow(tree):
    """A copy of the dicts and lists alone: tensors stay the same."""
    if isinstance(tree, dict):
        return {key: shallow(value) for key, value in tree.items()}
    return [shallow(value) for value in tree] if isinstance(tree, list) else tree


def _put(holder, step, kind, value, key):
    if isinstance(holder, dict):
        if kind == 'remove':
            holder.pop(step, None)
        else:
            holder[step if kind == 'replace' else key] = value
    elif isinstance(holder, list) and isinstance(step, int) and step < len(holder):
        holder[step : step + (kind != 'add')] = [] if kind == 'remove' else [value]


def as_json(tree):
    try:
        return json.dumps(tree).encode('utf-8', errors='surrogatepass')
    except (ValueError, TypeError, RecursionError):  # a tree that JSON cannot hold
        return b'[' * 2000


# ------------------------------------------------------------------------------------------ configs

VATEX = CONFIGS / 'vatex.yaml'
KEYS = (
    st.sampled_from(
        [
            'name',
            'data.lang',
            'data.aliases',
            'data.suffix',
            'data.suffix.1/zh',
            'data.captions.train.en',
            'data.frames',
            'data.pooled.train',
            'text.bert',
            'text.heads',
            'text.trained_layers',
            'train.lr',
            'eval.weights',
            'text',
            'visual.kind',
            'text.pretrained',
            'data.task',
            'train.seed',
            'loss.weights',
            'eval.ties',
        ]
    )
    | ODD_TEXT
)


def test_options():
    def read(options):
        config = load_config(VATEX, options)
        assert config_from_dict(config_to_dict(config)) == config
        describe_config(config)

    fuzz(
        st.lists(
            st.tuples(KEYS, ODD_TEXT | st.text('[]{}:,#\'"&*!|>-?%@$\\ \n1a', max_size=12)).map(
                '='.join
            ),
            min_size=1,
            max_size=2,
        ),
        read,
        cost=2,
    )


def test_config_files(tmp_path):
    valid = config_to_dict(load_config(VATEX))
    short = (
        b'base: below.yaml\nname: x\ndata:\n  collection: vatex\n  aliases: [a, "b"]\ntext: {heads:'
        b' 4, hidden: 8}\n'
    )
    (tmp_path / 'below.yaml').write_text('train: {lr: 1e-3}\n')
    path = tmp_path / 'a.yaml'

    def as_yaml(tree):
        try:
            return yaml.safe_dump(tree).encode('utf-8', errors='surrogatepass')
        except (yaml.YAMLError, RecursionError, ValueError):
            return b'{' * 500

    def read(data):
        path.write_bytes(data)
        config = load_config(path)
        assert config_from_dict(config_to_dict(config)) == config
        (tmp_path / 'config.yaml').write_bytes(data)
        read_config(tmp_path)

    fuzz(changed_bytes(short), read)
    fuzz(
        changed_tree({key: valid[key] for key in ('name', 'data', 'eval')}, PLAIN).map(as_yaml),
        read,
        cost=4,
    )


def test_stored_configs():
    valid = config_to_dict(load_config(VATEX))

    def read(tree):
        config = config_from_dict(tree)
        assert config_from_dict(config_to_dict(config)) == config

    fuzz(changed_tree(valid, PLAIN | SHAPES), read, cost=2)


# --------------------------------------------------------------------------------------------- data


def test_captions_and_id_lists(tmp_path):
    path = tmp_path / 'a.txt'

    def captions(data):
        path.write_bytes(data)
        read_captions(path, [])
        read_captions(path)

    def ids(data):
        path.write_bytes(data)
        read_ids(path)

    fuzz(
        changed_bytes('v0#enc#0 a dog runs\nv0#enc#1 ein Hund\nv1.mp4#enc#0 狗 在 跑\n'.encode()),
        captions,
    )
    fuzz(changed_bytes('a.jpg\nb.jpg\n狗.jpg\nd\n'.encode()), ids)


@pytest.mark.parametrize('name', ['shape.txt', 'id.txt', 'feature.bin', 'video2frames.txt'])
def test_frame_features(tmp_path, name):
    folder = make_video_root(tmp_path) / 'vatex/FeatureData/i3d_kinetics'

    def read(data):
        (folder / name).write_bytes(data)
        source = FrameSource(folder, max_frames=4)
        if source.ids:
            source.batch(source.ids[:2])
        BigFile(folder).read_ids()

    fuzz(changed_bytes((folder / name).read_bytes()), read, cost=2)


def test_pooled_features(tmp_path):
    np.save(tmp_path / 'a.npy', np.arange(6, dtype=np.float32).reshape(3, 2))
    valid = (tmp_path / 'a.npy').read_bytes()
    (tmp_path / 'ids.txt').write_text('a\nb\nc\n')

    def read(data):
        (tmp_path / 'a.npy').write_bytes(data)
        PooledSource(tmp_path / 'a.npy', tmp_path / 'ids.txt').batch(['a', 'c'])

    fuzz(changed_bytes(valid), read)


@pytest.mark.parametrize('kind', ['png', 'jpeg', 'gif', 'tiff', 'bmp', 'webp'])
def test_images(tmp_path, kind):
    packed = io.BytesIO()
    Image.fromarray(np.arange(300, dtype=np.uint8).reshape(10, 10, 3)).save(packed, kind)
    source = ImageSource(
        str(tmp_path / '{id}.jpg'), ['a'], preprocessing=Preprocessing(8), where='ids.txt'
    )

    def read(data):
        (tmp_path / 'a.jpg').write_bytes(data)
        source.load('a')

    fuzz(changed_bytes(packed.getvalue()), read, cost=4)


def test_caches(tmp_path):
    def read(data):
        (tmp_path / 'c').mkdir(exist_ok=True)
        (tmp_path / 'c/made_from.json').write_bytes(data)
        cached_array(tmp_path / 'c', ids=['a'], made_from={'x': 1}, parts=lambda: [np.ones((1, 2))])

    fuzz(changed_bytes(b'{"x": 1}') | PLAIN.map(as_json), read, cost=2)


def test_tokenizer_folders(tmp_path):
    vocabulary = '[PAD] [UNK] [CLS] [SEP] [MASK] . a dog ##s runs'.split()
    (tmp_path / 'vocab.txt').write_text('\n'.join(vocabulary) + '\n')
    (tmp_path / 'whole').mkdir()
    load_tokenizer(tmp_path, True).save_pretrained(tmp_path / 'whole')
    valid = json.loads((tmp_path / 'whole/tokenizer.json').read_text())

    def read_vocabulary(data):
        (tmp_path / 'vocab.txt').write_bytes(data)
        load_tokenizer(tmp_path, True).backend_tokenizer.encode('a dog')

    def read_folder(data):
        (tmp_path / 'whole/tokenizer.json').write_bytes(data)
        load_tokenizer(tmp_path / 'whole', True).backend_tokenizer.encode('a dog')

    fuzz(changed_bytes((tmp_path / 'vocab.txt').read_bytes()), read_vocabulary, cost=2)
    fuzz(changed_tree(valid, PLAIN).map(as_json), read_folder, cost=4)


# -------------------------------------------------------------------------------------- checkpoints


@pytest.fixture
def ours(make_config):
    config = make_config()
    model = build_model(config, feature_dim=10)
    return {
        'format': 'nrccr-1',
        'config': config_to_dict(config),
        'architecture': model.architecture,
        'model': model.state_dict(),
        'epoch': 4,
        'val': {'SumR': 1.5, 't2v': [1, None]},
        'choice': {
            'chosen_weight': 0.5,
            'chosen_from': [{'weight': 0.5, 'SumR': 2.0}],
            'val_ranges': {'zh': {'en': {'low': -0.5, 'high': 0.5}}},
        },
        'training': {'random': [1, 2], 'state': torch.ones(3)},
    }


def saved(content, legacy=False):
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=not legacy)
    return file.getvalue()


def reader_of(path, legacy=False):
    """A function that reads a checkpoint of these bytes, or of this content, and looks whether a
    model fits it."""

    def read(content):
        if not isinstance(content, bytes):
            try:
                content = saved(content, legacy)
            except Exception:  # what cannot be saved is no file
                return
        path.write_bytes(content)
        checkpoint = load_checkpoint(path)
        refuse_misfit(checkpoint.config, checkpoint)

    return read


@pytest.mark.parametrize('kind', ['ours', 'released', 'legacy'])
def test_checkpoints(tmp_path, ours, released, kind):  # noqa: F811
    content = ours if kind == 'ours' else released('video')
    if kind != 'ours':
        content['opt'] = vars(content['opt'])
    read = reader_of(tmp_path / 'a.pt', kind == 'legacy')
    valid = saved(content, kind == 'legacy')
    read(valid)
    fuzz(changed_bytes(valid), read, cost=3)
    fuzz(changed_tree(content, PLAIN | SHAPES | TENSORS), read, cost=3)


def test_pickles_inside_checkpoints(tmp_path, ours):
    """The pickle in the zip is changed, and the zip is whole."""
    with zipfile.ZipFile(io.BytesIO(saved({**ours, 'training': None}))) as archive:
        parts = {member.filename: archive.read(member) for member in archive.infolist()}
    pickle = next(name for name in parts if name.endswith('data.pkl'))
    read = reader_of(tmp_path / 'a.pt')

    def read_changed(data):
        file = io.BytesIO()
        with zipfile.ZipFile(file, 'w') as archive:
            for name, part in {**parts, pickle: data}.items():
                archive.writestr(name, part)
        read(file.getvalue())

    fuzz(changed_bytes(parts[pickle]), read_changed, cost=3)


def test_exported_models(tmp_path, ours):
    write_model(tmp_path, ours)
    parts = {name: (tmp_path / name).read_bytes() for name in NEEDED}

    def reader(name):
        def read(data):
            (tmp_path / name).write_bytes(data)
            checkpoint = load_checkpoint(tmp_path)
            refuse_misfit(checkpoint.config, checkpoint)

        read(parts[name])
        return read

    def with_header(tree):
        head = as_json(tree)
        return len(head).to_bytes(8, 'little') + head + weights[8 + length :]

    weights = parts[WEIGHTS]
    length = int.from_bytes(weights[:8], 'little')
    header = json.loads(weights[8 : 8 + length])
    fuzz(changed_bytes(weights), reader(WEIGHTS), cost=6)
    fuzz(changed_tree(header, PLAIN).map(with_header), reader(WEIGHTS), cost=6)
    reader(WEIGHTS)
    fuzz(changed_bytes(parts[MODEL]), reader(MODEL), cost=6)
    fuzz(changed_tree(json.loads(parts[MODEL]), PLAIN).map(as_json), reader(MODEL), cost=6)


# ------------------------------------------------------------------------------------------ search


def test_indexes(tmp_path):
    folder = make_index(tmp_path / 'index', paint(tmp_path))
    manifest = json.loads((folder / MANIFEST).read_text())
    items = manifest['parts'][ITEMS]
    query = np.ones((1, manifest['dim']), dtype=np.float32)

    parts = {
        name: (folder / name).read_bytes()
        for name in (MANIFEST, items['records'], items['vectors'])
    }

    def reader(name):
        def read(data):
            (folder / name).write_bytes(data)
            searcher = Searcher(Index(folder))
            searcher.similar(query, 3)
            searcher.captions_for(query, 'de', 3)

        read(parts[name])
        return read

    for name in parts:
        fuzz(changed_bytes(parts[name]), reader(name))
        if name.endswith('.json'):
            tree = json.loads(parts[name])
            fuzz(changed_tree(tree, PLAIN).map(as_json), reader(name))
        reader(name)


@pytest.mark.parametrize('kind', ['png', 'jpeg', 'gif', 'bmp', 'webp'])
def test_uploads(kind):
    packed = io.BytesIO()
    Image.fromarray(np.arange(300, dtype=np.uint8).reshape(10, 10, 3)).save(packed, kind)
    fuzz(changed_bytes(packed.getvalue()), decode, cost=4)


# -------------------------------------------------------------------------------------- run folders


def test_logs(tmp_path):
    record = {
        'epoch': 1,
        'best_epoch': 1,
        'train': {'total': 1.5},
        'speed': {'train_seconds': 2.0, 'val_seconds': 1},
    }
    line = as_json(record) + b'\n'

    def read(data):
        (tmp_path / 'log.jsonl').write_bytes(data)
        read_log(tmp_path)

    fuzz(changed_bytes(3 * line), read)
    fuzz(changed_tree(record, PLAIN).map(lambda tree: line + as_json(tree) + b'\n' + line), read)


def test_reports_and_ranks(tmp_path):
    make_run(tmp_path / 'run')
    report, ranks = (
        (tmp_path / 'run' / name).read_bytes() for name in ('metrics.json', 'ranks.npz')
    )

    def read_all():
        run = read_runs([tmp_path], lambda line: None)[0]
        run.hits(run.weight)
        run.value('minutes', run.weight)

    def read_report(data):
        (tmp_path / 'run/metrics.json').write_bytes(data)
        read_all()

    def read_ranks(data):
        (tmp_path / 'run/ranks.npz').write_bytes(data)
        read_all()

    fuzz(changed_bytes(report), read_report, cost=6)
    fuzz(changed_tree(json.loads(report), PLAIN).map(as_json), read_report, cost=6)
    read_report(report)
    fuzz(changed_bytes(ranks), read_ranks, cost=6)


def test_records_of_starts_and_of_the_demo(tmp_path):
    (tmp_path / 'vatex').mkdir()

    def read_run(data):
        (tmp_path / 'run.json').write_bytes(data)
        record_start(tmp_path, {'device': 'cpu'}, {}, resumed_after=1)

    def read_demo(data):
        (tmp_path / 'vatex/demo.json').write_bytes(data)
        options_there(tmp_path, 'vatex', 'zh')

    start = {'device': 'cpu', 'resumed': [{'after_epoch': 1}]}
    fuzz(changed_bytes(as_json(start)) | changed_tree(start, PLAIN).map(as_json), read_run)
    demo = {'options': {'version': 1, 'seed': 1, 'train': 4}, 'noise': {'zh': 0.3}}
    fuzz(changed_bytes(as_json(demo)) | changed_tree(demo, PLAIN).map(as_json), read_demo)
