"""The demo's corpus: sound in every collection and language, a function of its options, noisy where it should be."""
from pathlib import Path

import pytest

from basic.config import load_config
from util.check_data import check_data
from util.make_demo import main, make_demo

CONFIGS = Path(__file__).resolve().parent.parent / 'configs' / 'demo'
SIZES = {'train': 6, 'val': 3, 'test': 4}
CAPTIONS = {'vatex': 2, 'msrvttcn': 2, 'multi30k': 1, 'mscoco': 2}


@pytest.fixture(scope='module')
def shared(tmp_path_factory):
    """A ROOTPATH where the encoders, which are the same for every corpus, are made already."""
    root = tmp_path_factory.mktemp('shared')
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
    return make_demo(**{'root': root, 'collection': collection, 'lang': lang, 'report': lambda line: None, **SIZES,
                        **options})


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob('*') if path.is_file()}


def words(path):
    return [line.partition(' ')[2].split() for line in path.read_text(encoding='utf-8').splitlines()]


@pytest.mark.parametrize('collection, lang, options', [
    ('vatex', 'zh', []), ('msrvttcn', 'zh', []), ('multi30k', 'de', []), ('multi30k', 'fr', []), ('multi30k', 'cs', []),
    ('multi30k', 'de', ['data.task=2']), ('multi30k', 'de', ['visual.kind=pooled']), ('mscoco', 'zh', []),
    ('mscoco', 'ja', [])])
def test_every_collection_and_language_is_sound(shared, collection, lang, options):
    make(shared, collection, lang)
    config = load_config(CONFIGS / f'{collection}.yaml', [f'data.lang={lang}', f'text.bert={shared}/bert', *options])
    report = check_data(config, shared)
    assert report.problems == [] and report.warnings == []
    for split, size in SIZES.items():
        column = report.table[split]
        each = 5 if split == 'train' and 'data.task=2' in options else CAPTIONS[collection]
        assert (column['visual items'], column['captions'].split(' / ')[0]) == (str(size), str(size * each))
        assert set(column['unknown tokens, %'].split(' / ')) == {'0.0'}        # the vocabulary knows every language


@pytest.mark.parametrize('collection, lang', [('vatex', 'zh'), ('multi30k', 'cs')])
def test_it_is_a_function_of_its_options(new_root, collection, lang):
    one, two, other = (contents(make(new_root(name), collection, lang, seed=seed))
                       for name, seed in (('one', 1), ('two', 1), ('other', 2)))
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
    assert 'is there already' in lines[0] and before == {path: path.stat().st_mtime_ns for path in before}
    make(root, seed=2)
    assert (folder / 'runs/mine').read_text() == 'kept' and before != {path: path.stat().st_mtime_ns for path in before}


def test_noise_is_in_the_machine_translations_and_nowhere_else(new_root):
    text = {}
    for noise in (0, 0.3, 0.9):
        folder = make(new_root(str(noise)), 'multi30k', 'de', noise=noise, train=20)
        text[noise] = {path.name: words(path) for path in (folder / 'TextData').iterdir()}
    human = {'multi30ktrain_enc', 'multi30kval_de_task1', 'multi30ktest_de_2016_task1', 'multi30kval_de',
             'multi30ktest_de_2016', 'Flickr30ktrain_enc'}
    for name, clean in text[0].items():
        assert (name.split('.')[0] in human) == (text[0.3][name] == clean) == (text[0.9][name] == clean), name

    def lost(noise):
        """The share of the clean translation's words that the noisy one lacks."""
        pairs = list(zip(text[0]['multi30ktrain_google_enc2de.caption.txt'],
                         text[noise]['multi30ktrain_google_enc2de.caption.txt']))
        return sum(len(set(clean) - set(noisy)) for clean, noisy in pairs) / sum(len(set(clean)) for clean, _ in pairs)
    assert 0.05 < lost(0.3) < lost(0.9) - 0.1


def test_no_visual_item_is_in_two_splits(shared):
    folder = make(shared, 'mscoco', 'ja')
    ids = [(folder / 'FeatureData' / f'{name}_id.txt').read_text().split() for name in ('train', 'ja_val', 'ja_test')]
    assert len(set(sum(ids, []))) == sum(SIZES.values())


@pytest.mark.parametrize('options, message', [
    (['--lang', 'xx'], "lang is 'xx'; the demo has: zh, ja, de, fr, cs"), (['--noise', '1.5'], 'a rate from 0 to 1'),
    (['--test', '1'], 'test is 1; expected at least 2')])
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
    assert main(['--root', str(root), *words]) == 0                    # as the drivers call it
    assert 'is there already, in zh, noise 0.6' in capsys.readouterr().out and contents(folder) == before
    assert main(['--root', str(root), *words, '--noise', '0']) == 0
    assert 'made captions in English and zh, noise 0,' in capsys.readouterr().out
    assert len(contents(folder)) == len(before)                        # of the same sizes
