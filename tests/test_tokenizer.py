"""basic/pretrained/tokenizer.py: tokenizers by name, folder and vocabulary; what is refused."""

import json
from pathlib import Path

import pytest
import tiny
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from basic.caption import PackedTokens
from basic.errors import DataError, UnreachableError
from basic.pretrained import hub
from basic.pretrained.tokenizer import load_tokenizer, save_tokenizer

VOCABULARY = [
    '[PAD]',
    '[UNK]',
    '[CLS]',
    '[SEP]',
    '[MASK]',
    '.',
    ',',
    'a',
    'man',
    'dog',
    '##s',
    'cafe',
    'Cafe',
    'café',
    'Café',
    'A',
    '狗',
    '人',
    'runs',
    'x',
]


@pytest.fixture
def vocabulary(tmp_path):
    path = tmp_path / 'vocabulary' / 'vocab.txt'
    path.parent.mkdir()
    path.write_text('\n'.join(VOCABULARY) + '\n', encoding='utf-8')
    return path


def words(tokenizer, text):
    return tokenizer.convert_ids_to_tokens(
        PackedTokens([text], tokenizer, max_tokens=99).ids.tolist()
    )


def test_lowercase_strips_accents_whatever_the_tokenizer_says(vocabulary):
    for name in (vocabulary, vocabulary.parent):
        assert words(load_tokenizer(name, True), 'A Café, 狗人') == [
            '[CLS]',
            'a',
            'cafe',
            ',',
            '狗',
            '人',
            '[SEP]',
        ]
        assert words(load_tokenizer(name, False), 'A Café') == ['[CLS]', 'A', 'Café', '[SEP]']


def test_a_bare_vocabulary_obeys_the_config_beside_it(vocabulary):
    (vocabulary.parent / 'tokenizer_config.json').write_text('{"do_lower_case": true}')
    assert words(load_tokenizer(vocabulary.parent, False), 'A Café') == [
        '[CLS]',
        'a',
        'cafe',
        '[SEP]',
    ]


@pytest.mark.parametrize('lowercase', [True, False])
def test_a_saved_tokenizer_gives_the_same_ids(vocabulary, tmp_path, lowercase):
    texts = ['A Café', 'dogs 狗', '', 'unknown words']
    tokenizer = load_tokenizer(vocabulary, lowercase)
    save_tokenizer(tokenizer, tmp_path / 'saved')
    vocabulary.unlink()  # the saved folder stands alone
    again = load_tokenizer(tmp_path / 'saved', lowercase)
    first, second = (PackedTokens(texts, each, max_tokens=9) for each in (tokenizer, again))
    assert (
        first.ids.tolist() == second.ids.tolist()
        and first.offsets.tolist() == second.offsets.tolist()
    )


def test_a_tokenizers_own_truncation_and_padding_are_off(vocabulary, tmp_path):
    tokenizer = load_tokenizer(vocabulary, True)
    tokenizer.backend_tokenizer.enable_truncation(3)
    tokenizer.backend_tokenizer.enable_padding(length=7)
    save_tokenizer(tokenizer, tmp_path / 'saved')
    assert len(words(load_tokenizer(tmp_path / 'saved', True), 'a man a dog')) == 6
    assert len(words(tokenizer, 'a man a dog')) == 6  # PackedTokens switches them off, too


def test_other_tokenizers_work_without_lowercase(tmp_path):
    backend = Tokenizer(models.WordLevel({'[PAD]': 0, '[UNK]': 1, 'A': 2}, unk_token='[UNK]'))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    save_tokenizer(
        PreTrainedTokenizerFast(tokenizer_object=backend, unk_token='[UNK]', pad_token='[PAD]'),
        tmp_path,
    )
    assert words(load_tokenizer(tmp_path, False), 'A a') == ['A', '[UNK]']
    with pytest.raises(DataError, match='WordLevel; set text.lowercase=auto'):
        load_tokenizer(tmp_path, True)


def test_what_is_no_tokenizer(tmp_path, vocabulary):
    short = tmp_path / 'short.txt'
    short.write_text('[PAD]\n[CLS]\n[SEP]\n[MASK]\n')
    with pytest.raises(DataError, match=r'has no \[UNK\]'):
        load_tokenizer(short, True)
    (tmp_path / 'none').mkdir()
    with pytest.raises(DataError, match='holds no tokenizer.*text.bert=FOLDER'):
        load_tokenizer(tmp_path / 'none', True)
    with pytest.raises(DataError, match='no such folder here') as error:
        load_tokenizer(tmp_path / 'not there', True)
    assert not isinstance(error.value, UnreachableError)


def test_an_unreachable_hub_is_said_to_be_one(monkeypatch):
    def refuse(*args, **kwargs):
        raise ConnectionError('no route to host')

    monkeypatch.setattr(hub, 'get_hf_file_metadata', refuse)
    with pytest.raises(UnreachableError, match=r'no route to host.*text\.bert=FOLDER') as error:
        load_tokenizer('somebody/a-model-that-nobody-cached', True)
    assert isinstance(error.value, OSError) and isinstance(error.value, DataError)


def test_a_folder_without_a_vocabulary_has_no_tokenizer(tmp_path):
    tiny.make_bert(tmp_path)
    (tmp_path / 'vocab.txt').unlink()
    with pytest.raises(
        DataError, match=f'{tmp_path}: its tokenizer has . tokens, none of them a word'
    ):
        load_tokenizer(tmp_path, False)


@pytest.mark.parametrize(
    'beside',
    [
        {'tokenizer_config.json': {'tokenizer_class': 'BertTokenizerFast'}},
        {'tokenizer_config.json': {'tokenizer_class': 'PreTrainedTokenizerFast'}},
        {'config.json': {'model_type': 'distilbert'}},
        {'config.json': {'model_type': 'somebodys'}},
        {
            'config.json': {'model_type': 'bert'},
            'tokenizer_config.json': {'tokenizer_class': 'ElectraTokenizer'},
        },
    ],
)
def test_a_vocabulary_of_a_bert_is_read(vocabulary, beside):
    for name, content in beside.items():
        vocabulary.with_name(name).write_text(json.dumps(content))
    for name in (vocabulary, vocabulary.parent):
        assert words(load_tokenizer(name, False), 'A Café') == ['[CLS]', 'A', 'Café', '[SEP]']


@pytest.mark.parametrize(
    'beside',
    [
        {'tokenizer_config.json': {'tokenizer_class': 'BertJapaneseTokenizer'}},
        {
            'tokenizer_config.json': {
                'word_tokenizer_type': 'mecab',
                'subword_tokenizer_type': 'wordpiece',
            }
        },
        {'config.json': {'model_type': 'bert', 'tokenizer_class': 'BertJapaneseTokenizer'}},
    ],
)
def test_a_vocabulary_of_another_tokenizer_is_refused_by_name(vocabulary, beside):
    for name, content in beside.items():
        vocabulary.with_name(name).write_text(json.dumps(content))
    for name in (vocabulary, vocabulary.parent):
        for lowercase in (True, False):
            with pytest.raises(DataError, match='BertJapaneseTokenizer') as error:
                load_tokenizer(name, lowercase)
            assert str(vocabulary.parent) in str(error.value)


def test_a_vocabulary_whose_config_names_another_kind_is_read_as_that(tmp_path):
    (tmp_path / 'vocab.txt').write_text(
        '\n'.join(['<s>', '<pad>', '</s>', '[UNK]', '<mask>', 'a', 'dog']) + '\n'
    )
    (tmp_path / 'tokenizer_config.json').write_text('{"tokenizer_class": "MPNetTokenizer"}')
    assert words(load_tokenizer(tmp_path, False), 'a dog') == ['<s>', 'a', 'dog', '</s>']
    with pytest.raises(DataError, match='MPNetTokenizer'):
        load_tokenizer(tmp_path / 'vocab.txt', False)


def test_a_tokenizer_without_a_fast_form_is_refused(tmp_path, monkeypatch, vocabulary):
    vocabulary.with_name('tokenizer_config.json').write_text(
        json.dumps({'tokenizer_class': 'BertJapaneseTokenizer', 'word_tokenizer_type': 'basic'})
    )
    with pytest.raises(DataError, match='BertJapaneseTokenizer, has no fast form'):
        load_tokenizer(vocabulary.parent, False)
    slow = AutoTokenizer.from_pretrained(vocabulary.parent)
    monkeypatch.setattr(hub, '_from_pretrained', lambda *_, **__: slow)
    with pytest.raises(
        DataError, match='somebody/japanese: its tokenizer, BertJapaneseTokenizer, has no fast form'
    ):
        load_tokenizer('somebody/japanese', False)


def test_settings_beside_a_vocabulary_are_obeyed(vocabulary):
    own = vocabulary.with_name('tokenizer_config.json')
    own.write_text('{"do_lower_case": true, "strip_accents": false}')
    assert words(load_tokenizer(vocabulary.parent, False), 'Café') == ['[CLS]', 'café', '[SEP]']
    own.write_text('{"tokenize_chinese_chars": false}')
    assert words(load_tokenizer(vocabulary.parent, False), '狗人') == ['[CLS]', '[UNK]', '[SEP]']


@pytest.mark.parametrize(
    'content',
    [
        '{',
        '[]',
        '{"model": 3}',
        '"text"',
        '{"version": "1.0", "model": {}}',
        '[' * 1000 + ']' * 1000,
    ],
)
def test_a_damaged_tokenizer_json_is_named(tmp_path, content):
    (tmp_path / 'tokenizer.json').write_text(content)
    with pytest.raises(DataError, match=f'{tmp_path} holds no tokenizer'):
        load_tokenizer(tmp_path, False)


def test_a_full_disk_is_an_error_of_the_system(vocabulary, tmp_path, monkeypatch):
    def full(folder):
        # as the tokenizers library says it
        raise Exception('No space left on device (os error 28)')

    tokenizer = load_tokenizer(vocabulary, True)
    monkeypatch.setattr(tokenizer, 'save_pretrained', full)
    with pytest.raises(OSError, match='No space left') as error:
        save_tokenizer(tokenizer, tmp_path)
    assert error.value.errno == 28


def test_a_broken_config_beside_the_vocabulary_is_named(vocabulary, tmp_path):
    (tmp_path / 'vocab.txt').write_text(Path(vocabulary).read_text('utf-8'), encoding='utf-8')
    (tmp_path / 'tokenizer_config.json').write_text('{')
    with pytest.raises(DataError, match='tokenizer_config.json: not JSON'):
        load_tokenizer(tmp_path, True)


def test_a_tokenizer_json_that_contradicts_itself_is_named(tmp_path):
    """The library loads it, and panics when it encodes: it lacks a token of its template."""
    (tmp_path / 'vocab.txt').write_text('\n'.join('[PAD] [UNK] [CLS] [SEP] [MASK] . a'.split()))
    load_tokenizer(tmp_path, True).save_pretrained(tmp_path / 'whole')
    path = tmp_path / 'whole/tokenizer.json'
    tree = json.loads(path.read_text())
    del tree['post_processor']['special_tokens']['[CLS]']
    path.write_text(json.dumps(tree))
    with pytest.raises(DataError, match='whole: its tokenizer.json contradicts itself .Panic'):
        load_tokenizer(tmp_path / 'whole', True)
