"""Noise in training translations: every kind, any script, the new file, and what the command
says."""

import random
import shlex
from pathlib import Path

import pytest
import tiny

from basic.caption import read_captions
from basic.config import load_config
from util.add_noise import KINDS, add_noise, corrupt, join_words, main, split_words, with_suffix
from util.check_data import check_data

CONFIG = str(Path(__file__).resolve().parent.parent / 'configs/multi30k.yaml')
TEXTS = [
    'Ein großer Hund rennt am Strand.',
    "L'eau est là-bas, hein ?",
    '一只红色的大狗在海滩上跑。',
    '赤い iPhone 15 が机の上にある。',
    'ชายคนหนึ่งวิ่ง',
    'एक लाल किताब मेज पर है।',
    '개가 달린다',
    '  ',
    '',
]


@pytest.fixture
def root(tmp_path):
    return tiny.make_collection(tmp_path / 'root')


def original(root):
    return root / 'multi30k/TextData/multi30ktrain_google_enc2de.caption.txt'


@pytest.mark.parametrize('text', TEXTS)
def test_words_and_what_is_between_make_the_text(text):
    words, gaps = split_words(text)
    assert join_words(words, gaps) == text and len(gaps) == len(words) + 1
    assert all(word and not set(word) & set(' 。.।?,') for word in words)


def test_words_of_scripts_with_and_without_spaces():
    assert split_words(TEXTS[1])[0] == ["L'eau", 'est', 'là-bas', 'hein']
    assert split_words('大狗 runs 15。')[0] == ['大', '狗', 'runs', '15']
    assert split_words(TEXTS[5])[0] == ['एक', 'लाल', 'किताब', 'मेज', 'पर', 'है']


@pytest.mark.parametrize('text', TEXTS[:7])
def test_what_each_kind_does(text):
    words, other = split_words(text)[0], '猫鳥'
    for seed in range(20):

        def words_of(kind, share=0.3):
            return split_words(KINDS[kind](text, other, random.Random(seed), share))[0]

        some = max(1, round(0.3 * len(words)))
        left = iter(words)
        kept = words_of('drop')
        # in their order
        assert len(kept) == len(words) - some and all(word in left for word in kept)
        assert sorted(words_of('swap')) == sorted(words) and len(words_of('swap')) == len(words)
        replaced = words_of('replace')
        changed = [new for new, old in zip(replaced, words, strict=True) if new != old]
        assert len(changed) == some and set(changed) <= {'猫', '鳥'}
        assert KINDS['caption'](text, other, random.Random(seed), 0.3) == other
        # something always stays
        assert words_of('drop', share=1) and len(words_of('drop', share=1)) == 1


def test_punctuation_and_the_space_before_it_stay_where_they_are():
    text = KINDS['drop'](TEXTS[1], '', random.Random(0), 0.3)
    assert text.endswith(' ?') and '  ' not in text
    assert KINDS['swap']('rot, blau.', '', random.Random(0), 0.3) == 'blau, rot.'


class Captions:
    """Forty captions, two a visual item, the last two without words."""

    ids = [(f'v{i // 2}', str(i % 2)) for i in range(40)]
    texts = [f'wort{i} und noch vier mehr' for i in range(38)] + ['', '...']

    def __len__(self):
        return 40


def test_the_rate_is_exact_and_the_kinds_are_as_asked():
    for kinds in (['drop'], ['caption', 'swap'], list(KINDS)):
        found = corrupt(Captions(), rate=0.5, kinds=kinds, seed=1, share=0.3)
        assert len(found) == 20 and {kind for kind, _ in found.values()} == set(kinds)
        assert all(text != Captions.texts[row] for row, (_, text) in found.items())


def test_other_captions_are_other_visual_items():
    found = corrupt(Captions(), rate=0.9, kinds=['caption'], seed=3, share=0.3)
    for row, (_, text) in found.items():
        assert Captions.ids[Captions.texts.index(text)][0] != Captions.ids[row][0]


def test_a_higher_rate_keeps_what_a_lower_one_did_and_another_seed_does_not():
    few, many, other = (
        corrupt(Captions(), rate=rate, kinds=list(KINDS), seed=seed, share=0.3)
        for rate, seed in ((0.2, 1), (0.6, 1), (0.2, 2))
    )
    assert few.items() <= many.items() and few != other
    assert few == corrupt(Captions(), rate=0.2, kinds=list(KINDS), seed=1, share=0.3)


def test_what_has_no_words_cannot_be_corrupted():
    assert len(corrupt(Captions(), rate=1, kinds=list(KINDS), seed=1, share=0.3)) == 38


def test_the_new_file(root):
    raw = original(root).read_bytes().splitlines()
    original(root).write_bytes(b'\xef\xbb\xbf' + b'\r\n'.join(raw) + b'\r\n\r\n')
    path, template, total, kinds = add_noise(load_config(CONFIG), root, rate=0.5, seed=4)
    assert (
        path.name == 'multi30ktrain_google_enc2de_noise0.5.caption.txt'
        and path.parent == original(root).parent
    )
    assert (total, sum(kinds.values())) == (12, 6) and set(kinds) <= set(KINDS)
    lines = path.read_bytes().split(b'\n')
    assert lines.pop() == b'' and [line.split(b' ')[0] for line in lines] == [
        line.split(b' ')[0] for line in raw
    ]
    assert sum(new != old for new, old in zip(lines, raw, strict=True)) == 6
    assert read_captions(path).ids == read_captions(original(root)).ids
    assert sorted(file.name for file in path.parent.glob('.*')) == []


def test_the_command_and_the_option_that_it_prints(root, tmp_path, capsys):
    argv = ['--rootpath', str(root), '--config', CONFIG, '--rate', '0.5']
    assert main([*argv, '--kinds', 'drop,replace', '--output-suffix', '_x']) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith('corrupted 6 of 12 captions: drop ') and 'replace' in lines[0]
    options = shlex.split(lines[-1].removeprefix('to train on it: '))
    bert = tiny.make_bert(make(tmp_path / 'bert'))
    config = load_config(
        CONFIG, ['visual.kind=pooled', f'text.bert={bert}', 'text.trained_layers=[1]', *options]
    )
    assert config.data.noise == 0.5
    assert config.data.captions.train.tgt == '{p}train_google_enc2{lang}_x.caption.txt'
    assert check_data(config, root).problems == []
    assert main([*argv, '--output-suffix', '_x']) == 2
    assert 'exists: --overwrite replaces it' in capsys.readouterr().err
    assert main([*argv, '--output-suffix', '_x', '--overwrite']) == 0
    (tmp_path / 'fr.yaml').write_text('data: {lang: fr}')
    assert main([*argv, '--config', str(tmp_path / 'fr.yaml')]) == 2  # on top of the first one
    assert 'multi30ktrain_google_enc2fr.caption.txt' in capsys.readouterr().err


def make(folder):
    folder.mkdir()
    return folder


@pytest.mark.parametrize(
    'options, message',
    [
        (['--rate', '0'], '--rate 0: expected more than 0'),
        (['--rate', '1.5'], '--rate 1.5'),
        (['--share', '2'], '--share 2'),
        (
            ['--kinds', 'drop,loss'],
            'expected one or more of drop, swap, replace, caption, each once',
        ),
        (['--kinds', 'drop,drop'], 'each once'),
        (['--output-suffix', '/x'], 'without braces'),
        (['--output-suffix', ''], 'expected a part of a file name'),
        (['data.lang=fr'], "branch 'tgt'"),
        (['data.langs=fr'], "unknown key 'data.langs'"),
        (['--config', 'absent.yaml'], 'no config file absent.yaml'),
        (['--rootpath', 'absent'], 'ROOTPATH absent is not a folder'),
    ],
)
def test_errors_name_what_is_wrong(root, capsys, options, message):
    assert main(['--rootpath', str(root), '--config', CONFIG, '--rate', '0.5', *options]) == 2
    captured = capsys.readouterr()
    assert (
        captured.err.startswith('add_noise: error: ')
        and message in captured.err
        and captured.out == ''
    )
    assert not list(original(root).parent.glob('*noise*'))


def test_suffixes():
    assert (
        with_suffix('{c}train_google_enc2{lang}.caption.txt', '_n')
        == '{c}train_google_enc2{lang}_n.caption.txt'
    )
    assert (
        with_suffix('a.b.tsv', '_n') == 'a.b_n.tsv'
        and with_suffix('enc2{lang}', '_n') == 'enc2{lang}_n'
    )
