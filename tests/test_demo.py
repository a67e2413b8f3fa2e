"""The demo's corpus: sound in every collection and language, a function of its options, noisy where
it should be."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from basic.config import load_config
from basic.files import locked
from util.check_data import check_data
from util.make_demo import features
from util.make_demo.corpus import main, make_demo
from util.make_demo.folders import LOCK

CONFIGS = Path(__file__).resolve().parent.parent / 'configs' / 'demo'
SIZES = {'train': 6, 'val': 3, 'test': 4}
CAPTIONS = {'vatex': 2, 'msrvttcn': 2, 'multi30k': 1, 'mscoco': 2}


@pytest.fixture(scope='module')
def shared(tmp_path_factory, demo_root):
    """A ROOTPATH where the encoders, which are the same for every corpus, are made already."""
    root = demo_root(tmp_path_factory.mktemp('shared'))
    make(root)
    return root


@pytest.fixture
def new_root(shared, tmp_path):
    """new_root(name) -> a ROOTPATH of its own, with the shared encoders."""

    def make_root(name='root'):
        (tmp_path / name).mkdir()
        for part in ('bert', 'clip'):
            (tmp_path / name / part).symlink_to(shared / part)
        return tmp_path / name

    return make_root


def make(root, collection='vatex', lang='zh', **options):
    return make_demo(
        **{
            'root': root,
            'collection': collection,
            'lang': lang,
            'report': lambda line: None,
            **SIZES,
            **options,
        }
    )


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob('*')
        if path.is_file()
    }


def words(path):
    return [
        line.partition(' ')[2].split() for line in path.read_text(encoding='utf-8').splitlines()
    ]


@pytest.mark.parametrize(
    'collection, lang, options',
    [
        ('vatex', 'zh', []),
        ('msrvttcn', 'zh', []),
        ('multi30k', 'de', []),
        ('multi30k', 'fr', []),
        ('multi30k', 'cs', []),
        ('multi30k', 'de', ['data.task=2']),
        ('multi30k', 'de', ['visual.kind=pooled']),
        ('mscoco', 'zh', []),
        ('mscoco', 'ja', []),
    ],
)
def test_every_collection_and_language_is_sound(shared, collection, lang, options):
    make(shared, collection, lang)
    config = load_config(
        CONFIGS / f'{collection}.yaml', [f'data.lang={lang}', f'text.bert={shared}/bert', *options]
    )
    report = check_data(config, shared)
    assert report.problems == [] and report.warnings == []
    for split, size in SIZES.items():
        column = report.table[split]
        each = 5 if split == 'train' and 'data.task=2' in options else CAPTIONS[collection]
        assert (column['visual items'], column['captions'].split(' / ')[0]) == (
            str(size),
            str(size * each),
        )
        # the vocabulary knows every language
        assert set(column['unknown tokens, %'].split(' / ')) == {'0.0'}


@pytest.mark.parametrize('collection, lang', [('vatex', 'zh'), ('multi30k', 'cs')])
def test_it_is_a_function_of_its_options(new_root, collection, lang):
    one, two, other = (
        contents(make(new_root(name), collection, lang, seed=seed))
        for name, seed in (('one', 1), ('two', 1), ('other', 2))
    )
    assert one == two and len(one) > 10
    same = {name for name in one if one[name] == other.get(name)}
    assert same <= {'FeatureData/demo_grid/shape.txt'}


def test_a_corpus_that_is_there_is_left_alone_and_runs_survive_a_new_one(new_root):
    root, lines = new_root(), []
    folder = make(root)
    (folder / 'runs').mkdir()
    (folder / 'runs/mine').write_text('kept')
    before = {path: path.stat().st_mtime_ns for path in folder.rglob('*.txt')}
    make(root, report=lines.append)
    assert 'is there already' in lines[0] and before == {
        path: path.stat().st_mtime_ns for path in before
    }
    make(root, seed=2)
    assert (folder / 'runs/mine').read_text() == 'kept' and before != {
        path: path.stat().st_mtime_ns for path in before
    }


def test_noise_is_in_the_machine_translations_and_nowhere_else(new_root):
    text = {}
    for noise in (0, 0.3, 0.9):
        folder = make(new_root(str(noise)), 'multi30k', 'de', noise=noise, train=20)
        text[noise] = {path.name: words(path) for path in (folder / 'TextData').iterdir()}
    human = {
        'multi30ktrain_enc',
        'multi30kval_de_task1',
        'multi30ktest_de_2016_task1',
        'multi30kval_de',
        'multi30ktest_de_2016',
        'Flickr30ktrain_enc',
    }
    for name, clean in text[0].items():
        assert (
            (name.split('.')[0] in human)
            == (text[0.3][name] == clean)
            == (text[0.9][name] == clean)
        ), name

    def lost(noise):
        """The share of the clean translation's words that the noisy one lacks."""
        pairs = list(
            zip(
                text[0]['multi30ktrain_google_enc2de.caption.txt'],
                text[noise]['multi30ktrain_google_enc2de.caption.txt'],
            )
        )
        return sum(len(set(clean) - set(noisy)) for clean, noisy in pairs) / sum(
            len(set(clean)) for clean, _ in pairs
        )

    assert 0.05 < lost(0.3) < lost(0.9) - 0.1


def test_no_visual_item_is_in_two_splits(shared):
    folder = make(shared, 'mscoco', 'ja')
    ids = [
        (folder / 'FeatureData' / f'{name}_id.txt').read_text().split()
        for name in ('train', 'ja_val', 'ja_test')
    ]
    assert len(set(sum(ids, []))) == sum(SIZES.values())


@pytest.mark.parametrize(
    'options, message',
    [
        (['--lang', 'xx'], "lang is 'xx'; the demo has: zh, ja, de, fr, cs"),
        (['--noise', '1.5'], 'a rate from 0 to 1'),
        (['--test', '1'], 'test is 1; expected at least 2'),
    ],
)
def test_wrong_options(tmp_path, capsys, options, message):
    assert main(['--root', str(tmp_path), '--collection', 'vatex', '--lang', 'zh', *options]) == 2
    assert message in capsys.readouterr().err


def test_a_folder_of_somebody_elses_is_left_as_it_is(new_root, capsys):
    root = new_root()
    (root / 'vatex').mkdir()
    assert main(['--root', str(root), '--collection', 'vatex', '--lang', 'zh']) == 2
    assert 'is in the way' in capsys.readouterr().err and list((root / 'vatex').iterdir()) == []


def test_what_is_not_said_again_stays(new_root, capsys):
    root, words = new_root(), ['--collection', 'vatex', '--lang', 'zh']
    folder = make(root, noise=0.6)
    before = contents(folder)
    assert main(['--root', str(root), *words]) == 0  # as the drivers call it
    assert (
        'is there already, in zh, noise 0.6' in capsys.readouterr().out
        and contents(folder) == before
    )
    assert main(['--root', str(root), *words, '--noise', '0']) == 0
    assert 'made captions in English and zh, noise 0,' in capsys.readouterr().out
    assert len(contents(folder)) == len(before)  # of the same sizes


# ------------------------------------------------------------------------------------ interruptions


@pytest.fixture
def quick_root(tmp_path, monkeypatch):
    """quick_root(name) -> a ROOTPATH of its own: features and encoders that take no time to
    make."""

    def make_root(name='root'):
        for part in ('bert', 'clip'):
            (tmp_path / name / part).mkdir(parents=True)
        return tmp_path / name

    monkeypatch.setattr(features, 'frame_bank', lambda: lambda frames: np.ones((len(frames), 192)))
    monkeypatch.setattr(features, 'image_bank', lambda: lambda images: np.ones((len(images), 192)))
    return make_root


def corpus(folder):
    """What is there of the corpus itself, by name."""
    return {
        name: content for name, content in contents(folder).items() if not name.startswith('runs/')
    }


def killed_at(nth, function):
    """Whether a forked process that calls the function was killed before its nth os.replace."""
    process = os.fork()
    if process == 0:
        replace, calls = os.replace, iter(range(nth, -1, -1))

        def counted(*paths):
            if next(calls) == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            replace(*paths)

        os.replace = counted
        try:
            function()
        finally:
            os._exit(0)
    return os.waitpid(process, 0)[1] == signal.SIGKILL


@pytest.mark.parametrize('collection, lang, step', [('vatex', 'zh', 2), ('multi30k', 'de', 8)])
def test_a_kill_at_any_moment_loses_no_runs_and_is_made_good(quick_root, collection, lang, step):
    sizes = dict.fromkeys(SIZES, 2)
    wanted = corpus(make(quick_root('wanted'), collection, lang, seed=2, noise=0.5, **sizes))
    old = quick_root('old')
    before = corpus(make(old, collection, lang, **sizes))
    nth, going_on = 0, True
    while going_on:
        root = old.with_name(f'at_{nth}')
        shutil.copytree(old, root, symlinks=True)
        folder = root / collection
        (folder / 'runs/mine').mkdir(parents=True)
        (folder / 'runs/mine/model_best.pt').write_text('kept')
        going_on = killed_at(nth, lambda: make(root, collection, lang, seed=2, noise=0.5, **sizes))
        assert (folder / 'runs/mine/model_best.pt').read_text() == 'kept', nth
        manifest = json.loads((folder / 'demo.json').read_text())
        found = {
            name: content for name, content in corpus(folder).items() if not name.startswith('.')
        }
        assert 'unfinished' in manifest or found in (before, wanted), nth
        make(root, collection, lang, seed=2, noise=0.5, **sizes)
        assert (
            corpus(folder) == wanted and (folder / 'runs/mine/model_best.pt').read_text() == 'kept'
        ), nth
        assert {path.name for path in root.iterdir()} == {'bert', 'clip', collection, LOCK}, nth
        nth += step
    assert nth > 10


def test_a_first_corpus_that_a_kill_left_half_made_is_ours(quick_root, capsys):
    root = quick_root()
    assert killed_at(3, lambda: make(root, noise=0.5))
    assert 'unfinished' in json.loads((root / 'vatex/demo.json').read_text())
    # says nothing else
    assert main(['--root', str(root), '--collection', 'vatex', '--lang', 'zh']) == 0
    assert corpus(root / 'vatex') == corpus(make(quick_root('other'), noise=0.5))


def dead_process():
    process = subprocess.Popen(['true'])
    process.wait()
    return process.pid


@pytest.mark.parametrize('state', ['gone', 'half removed', 'remade'])
def test_runs_that_older_versions_moved_are_put_back(quick_root, state):
    """As a kill of those left them: in a hidden folder, the collection's own folder gone or partly
    so."""
    root, lines = quick_root(), []
    folder, left = root / 'vatex', root / f'.vatex.{dead_process()}'
    if state == 'remade':
        make(root)
        (folder / 'runs').mkdir()  # empty
    (left / 'runs/mine').mkdir(parents=True)
    (left / 'TextData').mkdir()
    if state == 'half removed':
        (folder / 'TextData').mkdir(parents=True)
    assert (
        main(
            [
                '--root',
                str(root),
                '--collection',
                'vatex',
                '--lang',
                'zh',
                '--train',
                '4',
                '--val',
                '2',
                '--test',
                '2',
            ]
        )
        == 0
    )
    assert (folder / 'runs/mine').is_dir() and not left.exists()
    assert corpus(folder) == corpus(make(quick_root('other'), train=4, val=2, test=2))

    (left / 'runs/other').mkdir(parents=True)  # but the collection has runs by now
    make(root, train=4, val=2, test=2, report=lines.append)
    assert (left / 'runs/other').is_dir() and (folder / 'runs/mine').is_dir()
    assert f'{left}/runs holds runs that an interrupted make_demo left there' in lines[0]


def test_leftovers_of_killed_processes_are_removed_and_no_others(quick_root):
    root = quick_root()
    dead, alive = dead_process(), os.getpid()
    for name in (
        f'.clip.{dead}',
        f'.bert.{dead}',
        f'.vatex.{dead}',
        f'.vatex.{alive}',
        f'.other.{dead}',
    ):
        (root / name).mkdir()
    make(root)
    (root / 'vatex/.visuals.0123abcd.tmp').mkdir()
    (root / 'vatex/TextData/.x.0123abcd.tmp').write_text('')
    make(root)  # is there already
    assert {path.name for path in root.rglob('.*')} == {f'.vatex.{alive}', f'.other.{dead}', LOCK}


def test_two_at_once_wait_for_each_other(quick_root):
    root, lines = quick_root(), []
    holding = subprocess.Popen(
        [
            sys.executable,
            '-c',
            'import sys, time; from basic.files import locked\n'
            'with locked(sys.argv[1]): print(flush=True); time.sleep(60)',
            str(root / LOCK),
        ],
        cwd=CONFIGS.parent.parent,
        stdout=subprocess.PIPE,
    )
    holding.stdout.readline()

    def report(line):
        lines.append(line)
        holding.kill()

    make(root, report=report)
    holding.wait()
    holding.stdout.close()
    assert (
        f'waiting for process {holding.pid} on ' in lines[0]
        and f'makes a corpus in {root}' in lines[0]
    )
    with locked(root / LOCK):  # a corpus that is there needs no lock
        make(root)


@pytest.mark.parametrize(
    'text', ['', '[]', '{"options": {}}', '[' * 9000, '{"options": {"seed": "1"}, "noise": {}}']
)
def test_a_damaged_manifest_is_named(quick_root, capsys, text):
    root = quick_root()
    (root / 'vatex').mkdir()
    (root / 'vatex/demo.json').write_text(text)
    assert main(['--root', str(root), '--collection', 'vatex', '--lang', 'zh']) == 2
    assert 'vatex/demo.json' in capsys.readouterr().err


def test_long_work_is_announced(quick_root):
    lines = []
    make(quick_root(), report=lines.append)
    assert lines[0].startswith('drawing 13 videos in ') and lines[1].startswith(
        'made 13 videos in '
    )
