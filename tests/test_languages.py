"""One model for several languages: data.lang=de,fr."""

import json
import shutil
import subprocess

import numpy as np
import pytest
import tiny
import torch
from roots import complaint
from test_train import arguments, assert_equal, comparable

import train
from basic.checkpoint import load_checkpoint
from basic.config import load_config
from basic.errors import ConfigError
from basic.languages import languages
from basic.pretrained.tokenizer import load_tokenizer
from data_provider import EpochBatches, build_loaders, eval_sets
from evaluation import evaluate_checkpoint
from train import main, train_step
from util.check_data import check_data
from util.rescore import main as rescore
from util.table.runs import read_runs
from util.table.statistics import difference

CONFIG = str(train.__file__).replace('train.py', 'configs/multi30k.yaml')
BOTH = 'data.lang=de,fr'


def add_french(root):
    """The same collection in French, other captions, in another order; two a validation image."""
    folder, random = root / 'multi30k/TextData', np.random.RandomState(5)
    for source, target in (
        ('train_google_enc2de', 'train_google_enc2fr'),
        ('train_google_enc2de2enc', 'train_google_enc2fr2enc'),
        ('val_google_de2enc_task1', 'val_google_fr2enc'),
        ('val_de_task1', 'val_fr'),
        ('test_google_de2enc_2016_task1', 'test_google_fr2enc_2016'),
        ('test_de_2016_task1', 'test_fr_2016'),
    ):
        lines = (folder / f'multi30k{source}.caption.txt').read_text().splitlines()
        if target.startswith('val'):
            lines += [line.replace('#0 ', '#1 ') for line in lines]
        lines = [
            f'{line.split()[0]} {" ".join(random.choice(tiny.WORDS, random.randint(3, 7)))}\n'
            for line in reversed(lines)
        ]
        (folder / f'multi30k{target}.caption.txt').write_text(''.join(lines))
    return root


@pytest.fixture(scope='module')
def world(tmp_path_factory):
    folder, threads = tmp_path_factory.mktemp('world'), torch.get_num_threads()
    torch.set_num_threads(1)
    yield add_french(tiny.make_collection(folder / 'root')), tiny.make_bert(folder / 'bert')
    torch.set_num_threads(threads)


def build(world, *options, splits=('train', 'val')):
    root, bert = world
    config = load_config(CONFIG, [*tiny.options(bert), *options])
    return build_loaders(config, root, load_tokenizer(str(bert), True), splits=splits)


# ------------------------------------------------------------------------------------- the option


@pytest.mark.parametrize('text', ['de,fr', '[de,fr]', '[de, fr]', '["de", \'fr\']', ' de , fr'])
def test_the_option_is_text_or_a_list(tmp_path, text):
    config = load_config(CONFIG, [f'data.lang={text}'])
    assert config.data.lang == 'de,fr' and languages(config) == ('de', 'fr')
    path = tmp_path / 'x.yaml'
    path.write_text('data: {collection: x, lang: [de, fr]}')
    assert languages(load_config(path)) == ('de', 'fr')
    assert languages(load_config(CONFIG)) == ('de',)


@pytest.mark.parametrize(
    'text, words',
    [('de,de', 'listed twice'), ('de,', 'expected a language'), ('[]', 'expected a language')],
)
def test_a_wrong_list_is_refused(text, words):
    with pytest.raises(ConfigError, match=f"key 'data.lang' .*{words}"):
        load_config(CONFIG, [f'data.lang={text}'])


def test_a_language_that_yaml_takes_for_something_else(tmp_path):
    path = tmp_path / 'x.yaml'
    path.write_text('data: {collection: x, lang: [de, no]}')
    with pytest.raises(ConfigError, match='reads one as False; put it in quotes'):
        load_config(path)


def test_the_run_folder_is_named_by_all(world):
    config = load_config(CONFIG, [BOTH, 'name=x'])
    assert train.default_run_folder(config, world[0]).parent.name == 'x_de+fr'


# ------------------------------------------------------------------------------------ the drawing


def drawn(epoch, size=10, **options):
    batches = EpochBatches(size, batch_size=4, seed=1, **options)
    batches.epoch = epoch
    rows = np.concatenate(list(batches))
    return rows % size, rows // size  # pairs, and their languages


def test_each_language_is_drawn_equally_often():
    seen = np.zeros((10, 3), dtype=int)
    for epoch in range(1, 7):
        pairs, language = drawn(epoch, languages=3)
        assert sorted(pairs) == list(range(10))
        assert sorted(np.bincount(language, minlength=3)) == [3, 3, 4]
        np.add.at(seen, (pairs, language), 1)
        assert all((a == b).all() for a, b in zip(drawn(epoch, languages=3), (pairs, language)))
        if epoch == 3:
            assert (seen == 1).all()  # each pair once in each language
    assert (seen == 2).all()


def test_the_order_is_that_of_a_single_language():
    single = drawn(3)
    for sampling in ('balanced', 'random'):
        assert (drawn(3, languages=2, sampling=sampling)[0] == single[0]).all()
    assert (single[1] == 0).all()
    language = drawn(3, 1000, languages=2, sampling='random')[1]
    assert 400 < language.sum() < 600 and set(language) == {0, 1}


@pytest.mark.parametrize('back_as_en', [0, 0.5, 1])
def test_a_pair_has_the_captions_of_its_language(world, back_as_en):
    option = f'train.back_as_en={back_as_en}'
    alone = {lang: build(world, f'data.lang={lang}')['train'].dataset for lang in ('de', 'fr')}
    loader = build(world, BOTH, option)['train']
    counts = {'de': 0, 'fr': 0, 'machine': 0}
    for epoch in (1, 2):
        loader.set_epoch(epoch)
        for batch in loader:
            for place, row in enumerate(batch.index.tolist()):
                texts = [
                    tokens.ids[place][tokens.mask[place] > 0].tolist()
                    for tokens in (batch.en, batch.tgt, batch.back)
                ]
                found = [
                    (lang, machine)
                    for lang, dataset in alone.items()
                    for machine in (False, True)
                    if texts == captions(dataset, row, machine)
                ]
                assert len(found) == 1
                counts[found[0][0]] += 1
                counts['machine'] += found[0][1]
    assert counts['de'] == counts['fr'] == loader.dataset_size
    assert (
        counts['machine'] in {0: [0], 0.5: range(5, 30), 1: [2 * loader.dataset_size]}[back_as_en]
    )


def captions(dataset, row, machine):
    """The tokens of en (or the back-translation in its place), tgt and back of a pair."""

    def tokens(branch):
        packed = dataset.tokens[branch]
        return packed.ids[packed.offsets[row] : packed.offsets[row + 1]].tolist()

    return [tokens('back' if machine else 'en'), tokens('tgt'), tokens('back')]


def test_each_language_has_its_own_validation(world):
    loaders = build(world, BOTH)
    assert list(loaders) == ['train', 'val de', 'val fr']
    de, fr = eval_sets(loaders, 'val')
    assert (de.lang, fr.lang) == ('de', 'fr') and len(fr.caption_ids) == 2 * len(de.caption_ids)
    assert de.visuals is fr.visuals  # the same images are encoded once
    assert list(build(world, 'data.lang=fr')) == ['train', 'val']


def test_a_translation_that_is_missing_is_named(world, tmp_path):
    root, bert = add_french(tiny.make_collection(tmp_path / 'r')), world[1]
    path = root / 'multi30k/TextData/multi30ktrain_google_enc2fr.caption.txt'
    path.write_text(''.join(path.read_text().splitlines(keepends=True)[1:]))
    message = complaint(build, (root, bert), BOTH)
    assert '1 of the' in message and str(path) in message and 'no counterpart' in message
    report = check_data(load_config(CONFIG, [*tiny.options(bert), BOTH]), root, quick=True)
    assert any(str(path) in problem for problem in report.problems)


def test_languages_share_the_english_captions(world, tmp_path):
    root, bert = add_french(tiny.make_collection(tmp_path / 'r')), world[1]
    text = root / 'multi30k/TextData'
    for lang in ('de', 'fr'):
        shutil.copy(text / 'multi30ktrain_enc.caption.txt', text / f'{lang}.caption.txt')
    options = (BOTH, 'data.captions.train.en={lang}.caption.txt')
    assert 'different English training captions' in complaint(build, (root, bert), *options)
    report = check_data(load_config(CONFIG, [*tiny.options(bert), *options]), root, quick=True)
    assert any('different English' in problem for problem in report.problems)


def test_check_data_has_a_column_per_language(world):
    report = check_data(load_config(CONFIG, [*tiny.options(world[1]), BOTH]), world[0])
    assert list(report.table) == [
        f'{split} {lang}' for split in ('train', 'val', 'test') for lang in ('de', 'fr')
    ]
    assert not report.problems and {column['status'] for column in report.table.values()} == {'ok'}


# --------------------------------------------------------------------------------- training, test


@pytest.fixture(scope='module')
def run(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp('runs') / 'both'
    options = (BOTH, 'train.epochs=3', 'train.keep_last=true')
    assert main(arguments(world, folder, *options)) == 0
    return folder


def test_the_result_is_the_mean_over_languages(world, run):
    report = json.loads((run / 'metrics.json').read_text())
    assert report['lang'] == 'de,fr' and list(report['languages']) == ['de', 'fr']
    for lang, part in report['languages'].items():
        # ... each as a test in this language alone finds it
        alone = evaluate_checkpoint(run, rootpath=world[0], overrides=[f'data.lang={lang}'])
        assert alone['rows'] == part['rows'] and alone['altered']
    for place, row in enumerate(report['rows']):
        parts = [part['rows'][place] for part in report['languages'].values()]
        assert row['SumR'] == pytest.approx(np.mean([part['SumR'] for part in parts]))
        assert row['t2v']['mAP'] == pytest.approx(np.mean([part['t2v']['mAP'] for part in parts]))
    assert report['result']['SumR'] in [row['SumR'] for row in report['rows']]


def test_each_language_keeps_its_ranges_of_validation(world, run, tmp_path):
    evaluate_checkpoint(run, rootpath=world[0], split='val', embeddings_folder=tmp_path)
    ranges = load_checkpoint(run).choice['val_ranges']
    assert list(ranges) == ['de', 'fr'] and list(ranges['fr']) == ['en', 'tgt']
    for lang, branches in ranges.items():
        visual = np.load(tmp_path / lang / 'visual.npy')
        for branch, found in branches.items():
            cosines = np.load(tmp_path / lang / f'{branch}.npy') @ visual.T
            assert found['low'] == pytest.approx(cosines.min(), abs=1e-6)
            assert found['high'] == pytest.approx(cosines.max(), abs=1e-6)
    assert ranges['de']['tgt'] != ranges['fr']['tgt']


def test_validation_is_the_mean_over_languages(run):
    for line in (run / 'log.jsonl').read_text().splitlines():
        record = json.loads(line)
        parts = [record['val_of'][lang]['t2v']['R@5'] for lang in ('de', 'fr')]
        assert record['val']['t2v']['R@5'] == pytest.approx(np.mean(parts))


def test_the_table_reads_it_and_compares_by_query(world, run):
    # French has two captions an image in validation: there the languages count alike, not captions.
    report = evaluate_checkpoint(run, rootpath=world[0], split='val')
    (read,) = read_runs([run])
    hits = read.hits(read.weight)
    assert hits['t2v'].mean() + hits['v2t'].mean() == pytest.approx(read.value('SumR', read.weight))
    assert difference([hits], [hits]).mean == 0
    read.report = {**report, 'split': 'val'}
    np.savez(run / 'ranks.npz', **report['ranks'])
    hits = read.hits(0.2)
    captions = [part['captions'] for part in report['languages'].values()]
    assert captions[1] == 2 * captions[0]
    assert (report['ranks']['caption_lang'] == np.repeat(['de', 'fr'], captions)).all()
    assert hits['t2v'].mean() + hits['v2t'].mean() == pytest.approx(read.value('SumR', 0.2))


def test_an_interrupted_run_goes_on_exactly(world, run, tmp_path, monkeypatch):
    cut, steps = tmp_path / 'cut', []
    options = (BOTH, 'train.epochs=3', 'train.keep_last=true')

    def interrupted_step(*args, **kwargs):
        steps.append(1)
        if len(steps) == 5:
            raise KeyboardInterrupt
        return train_step(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(train, 'train_step', interrupted_step)
        assert main(arguments(world, cut, *options)) == 130
    assert main(arguments(world, cut, *options, '--resume')) == 0
    assert_equal(comparable(cut), comparable(run))


def test_a_tool_of_one_language_says_so(run, capsys):
    assert rescore([str(run), '--rootpath', str(run)]) == 2
    assert 'works on one language at a time' in capsys.readouterr().err


def test_the_drivers_know_several_languages():
    script = 'source util/drivers.sh; is_word "$1" && echo yes'
    for text, expected in (('de,fr', 'yes'), ('de', 'yes'), ('data.lang=de,fr', ''), ('--x', '')):
        found = subprocess.run(
            ['bash', '-c', script, 'x', text], capture_output=True, text=True, cwd=CONFIG[:-22]
        )
        assert found.stdout.strip() == expected
