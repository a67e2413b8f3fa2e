"""The configuration: every file loads, every mistake is named, every field is read."""

import ast
import json
import subprocess
import sys
import time
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest
from omegaconf.errors import ReadonlyConfigError

from basic.config import (
    TERMS,
    Config,
    SplitFiles,
    Weights,
    config_from_dict,
    config_to_dict,
    keys_with,
    load_config,
)
from basic.errors import ConfigError
from basic.merge import keys_of
from basic.option import EFFECTS, options_of
from basic.print_config import describe_config, field_comments

REPOSITORY = Path(__file__).resolve().parent.parent
CONFIGS = REPOSITORY / 'configs'
RUNNABLE = sorted(
    path
    for path in CONFIGS.rglob('*.yaml')
    if path.name not in ('common.yaml', 'recommended.yaml') and path.parent.name != 'ablation'
)
VATEX, MULTI30K = CONFIGS / 'vatex.yaml', CONFIGS / 'multi30k.yaml'


def message(path, *options):
    with pytest.raises(ConfigError) as error:
        load_config(path, options)
    return str(error.value)


def write(folder, name, text):
    path = folder / name
    path.write_text(text, encoding='utf-8')
    return path


# ---------------------------------------------------------------------------------------- the files


@pytest.mark.parametrize('path', RUNNABLE, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_every_config_file_loads(path):
    config = load_config(path)
    assert config.name == config_from_dict(config_to_dict(config)).name != ''


@pytest.mark.parametrize('path', RUNNABLE, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_the_recommended_options_go_on_top_of_any(path):
    paper, config = load_config(path), load_config([path, CONFIGS / 'recommended.yaml'])
    assert config.name == f'{paper.name}_recommended'
    terms = {name for name, weight in config.loss.weights.items() if weight}
    assert terms == {'triplet_en', 'triplet_tgt'} and config.loss.contrastive == 'infonce'
    assert (config.text.pooling, config.visual.pooling) == ('mean', 'mean')
    assert (config.train.lr, config.train.bert_lr, config.train.back_as_en) == (5e-4, 1e-4, 0.5)
    assert config.text.trained_layers == paper.text.trained_layers


def test_there_is_a_config_and_a_demo_for_each_collection():
    names = {str(path.relative_to(CONFIGS)) for path in RUNNABLE}
    for collection in ('vatex', 'msrvttcn', 'multi30k', 'mscoco'):
        assert {f'{collection}.yaml', f'demo/{collection}.yaml'} <= names
        assert load_config(CONFIGS / f'{collection}.yaml').data.collection == collection


@pytest.mark.parametrize(
    'name, kind, disc, first',
    [
        ('vatex', 'frames', 'strong', 5),
        ('msrvttcn', 'frames', 'not-so-weak', 5),
        ('multi30k', 'clip', 'not-so-weak', 3),
        ('mscoco', 'clip', 'not-so-weak', 3),
    ],
)
def test_the_papers_settings(name, kind, disc, first):
    config = load_config(CONFIGS / f'{name}.yaml')
    assert (config.visual.kind, config.discriminator.kind) == (kind, disc)
    assert list(config.text.trained_layers) == list(range(first, 12))
    assert (config.text.pooling, config.visual.pooling, config.text.score_scale) == (
        'padded_mean',
        'padded_mean',
        'value_width',
    )
    assert (
        config.train.lr,
        config.train.batch_size,
        config.train.grad_clip,
        config.train.val_weight,
    ) == (1e-4, 128, 2, 0.2)
    assert (config.text.hidden, config.text.qk_width, config.visual.hidden, config.space.dim) == (
        768,
        512,
        1024,
        1536,
    )
    assert list(config.eval.weights) == [1.0, 0.8, 0.5, 0.2, 0.0]
    assert dict(config.loss.weights) == {
        'triplet_en': 1.0,
        'triplet_tgt': 0.6,
        'kd_sim': 0.4,
        'kd_feat': 0.1,
        'triplet_back': 0.5,
        'back_visual': 0.0,
        'adversarial': 0.001,
    }
    # options that are not the paper's
    train = config.train
    assert (train.bert_lr, train.schedule, train.back_as_en, train.select) == (
        0,
        'released',
        0,
        't2v',
    )
    assert config.loss.contrastive == 'triplet' and not config.text.clean_back


# ------------------------------------------------------------------------------------------ merging


def test_options_win_over_the_file_and_the_file_over_the_schema(tmp_path):
    assert load_config(VATEX).train.lr == 1e-4
    path = write(tmp_path, 'mine.yaml', 'data: {collection: x}\ntrain: {lr: 5e-3, epochs: 7}\n')
    config = load_config(
        path, ['train.lr=2e-2', 'text.trained_layers=[2, 3]', 'eval.weights=[0.5]']
    )
    assert (config.train.lr, config.train.epochs, config.train.lr_decay) == (0.02, 7, 0.99)
    assert list(config.text.trained_layers) == [2, 3] and list(config.eval.weights) == [0.5]
    assert config.name == 'mine'
    assert load_config(path, ['train.lr=1', 'train.lr=2']).train.lr == 2


def test_bases_are_read_first_in_their_order(tmp_path):
    (tmp_path / 'below').mkdir()
    write(
        tmp_path / 'below',
        'ground.yaml',
        'data: {collection: x}\ntrain: {lr: 1, epochs: 1, seed: 1}\n',
    )
    write(
        tmp_path, 'first.yaml', 'base: below/ground.yaml\ntrain: {epochs: 2, seed: 2, workers: 2}\n'
    )
    write(tmp_path, 'second.yaml', 'train: {seed: 3}\ntext: {heads: 4}\n')
    config = load_config(
        write(tmp_path, 'top.yaml', 'base: [first.yaml, second.yaml]\ntrain: {workers: 4}\n')
    )
    assert (config.train.lr, config.train.epochs, config.train.seed, config.train.workers) == (
        1,
        2,
        3,
        4,
    )
    assert (config.data.collection, config.text.heads, config.name) == ('x', 4, 'top')


def test_further_files_win_in_their_order_and_name_the_config(tmp_path):
    write(tmp_path, 'ground.yaml', 'train: {lr: 1, epochs: 1}\n')
    first = write(
        tmp_path,
        'first.yaml',
        'base: ground.yaml\nname: mine\ndata: {collection: x}\ntrain: {seed: 1}\n',
    )
    second = write(tmp_path, 'second.yaml', 'train: {seed: 2, epochs: 2}\n')
    third = write(tmp_path, 'third.yaml', 'name: own\ntrain: {seed: 3}\n')
    config = load_config([first, second, third], ['train.workers=5'])
    assert (config.train.lr, config.train.epochs, config.train.seed, config.train.workers) == (
        1,
        2,
        3,
        5,
    )
    assert config.name == 'mine_second_own'
    assert load_config([first, second], ['name=other']).name == 'other'
    assert load_config([str(first)]).name == load_config(first).name == 'mine'
    assert load_config([VATEX, second]).name == 'vatex_second'
    assert keys_of(first) == {'train.lr', 'train.epochs', 'train.seed', 'name', 'data.collection'}
    assert "unknown key 'colour'" in message(
        [VATEX, write(tmp_path, 'wrong.yaml', 'colour: red\n')]
    )


def test_two_files_may_share_a_base(tmp_path):
    write(tmp_path, 'ground.yaml', 'data: {collection: x}\n')
    for name in ('a', 'b'):
        write(tmp_path, f'{name}.yaml', 'base: ground.yaml\n')
    assert (
        load_config(write(tmp_path, 'top.yaml', 'base: [a.yaml, b.yaml]\n')).data.collection == 'x'
    )


def test_a_cycle_of_bases_is_refused(tmp_path):
    write(tmp_path, 'a.yaml', 'base: b.yaml\n')
    write(tmp_path, 'b.yaml', 'base: a.yaml\n')
    text = message(tmp_path / 'a.yaml')
    assert '`base:` leads back' in text and 'b.yaml' in text


def test_a_missing_file_or_base_names_what_is_there(tmp_path):
    path = write(tmp_path, 'a.yaml', 'base: nothing.yaml\n')
    assert f'no config file {tmp_path / "nothing.yaml"}' in message(path) and 'a.yaml' in message(
        path
    )
    assert 'vatex.yaml' in message(CONFIGS / 'vatx.yaml')
    assert 'no .yaml files' in message(tmp_path / 'no' / 'such.yaml')


@pytest.mark.parametrize(
    'text, expected',
    [
        ('base: 5', "key 'base' is 5"),
        ('base: [a.yaml, 3]', "key 'base'"),
        ('- a', 'expected keys and values'),
        ('just text', 'expected keys and values'),
        ('5', 'expected keys and values'),
        ('data: [', 'not valid YAML'),
        ('data: {collection: x}\ndata: {lang: de}', 'duplicate key data'),
        ('', "'data.collection' is not set"),
        ('data: !!python/object/apply:os.getcwd []', 'not valid YAML'),
        ('text:', "key 'text' is a group, found None; set one of its keys: bert, pretrained"),
    ],
)
def test_a_file_that_is_no_config_is_refused(tmp_path, text, expected):
    path = write(tmp_path, 'a.yaml', text)
    assert expected in message(path)


def test_a_file_of_another_encoding_is_refused_by_name(tmp_path):
    path = tmp_path / 'latin.yaml'
    path.write_bytes('data: {collection: café}'.encode('latin-1'))
    assert str(path) in message(path) and 'UTF-8' in message(path)


def test_the_config_is_frozen_and_survives_the_round_trip():
    config = load_config(MULTI30K, ['data.task=2', 'data.lang=fr', 'train.lr=0.5'])
    tree = config_to_dict(config)
    again = config_from_dict(tree)
    assert config_to_dict(again) == tree and again == config
    assert isinstance(tree['text']['trained_layers'], list) and tree['data']['train_prefix'] == {
        '2': 'Flickr30k'
    }
    for frozen in (config, again):
        with pytest.raises(ReadonlyConfigError):
            frozen.train.lr = 1.0
    assert config_from_dict(tree, ['eval.ties=mean']).eval.ties == 'mean'
    tree['train']['lr'] = 0.25  # the dict is a copy
    assert config.train.lr == 0.5


@pytest.mark.parametrize(
    'options', [['train.foo=1'], ['train.lr=x'], ['eval.weights=['], ['foo'], ['train.lr=-1']]
)
def test_a_stored_config_is_checked_like_a_file(options):
    tree = config_to_dict(load_config(VATEX))
    with pytest.raises(ConfigError) as error:
        config_from_dict(tree, options)
    assert options[0].split('=')[0] in str(error.value)
    with pytest.raises(
        ConfigError, match="stored config: unknown key 'text.colour'.*text has: bert"
    ):
        config_from_dict({'data': {'collection': 'x'}, 'text': {'colour': 'red'}})


# ----------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    'option, key, valid',
    [
        ('colour=red', 'colour', 'name, data, text, visual'),
        ('text.colour=red', 'text.colour', 'bert, pretrained'),
        ('loss.weights.tri=1', 'loss.weights.tri', 'triplet_en, triplet_tgt, kd_sim'),
        ('data.captions.train.zh=x', 'data.captions.train.zh', 'en, tgt, back'),
        ('data.captions.dev.en=x', 'data.captions.dev', 'train, val, test'),
        ('text=3', 'text', 'bert, pretrained'),
        ('train.lr =3', 'train.lr ', 'seed, epochs'),
    ],
)
def test_an_unknown_key_is_named_with_its_neighbours(option, key, valid):
    text = message(VATEX, option)
    assert f"'{key}'" in text and valid in text and f"option '{option}'" in text


def test_an_unknown_key_of_a_file_is_named_with_the_file(tmp_path):
    path = write(tmp_path, 'a.yaml', 'data: {collection: x}\ntrain: {learning_rate: 1}\n')
    text = message(path)
    assert str(path) in text and "'train.learning_rate'" in text and 'lr, bert_lr' in text


@pytest.mark.parametrize(
    'option, key, expected',
    [
        ('train.lr=fast', 'train.lr', 'float'),
        ('text.heads=eight', 'text.heads', 'int'),
        ('text.heads=8.5', 'text.heads', 'int'),
        ('text.heads=null', 'text.heads', 'int'),
        ('visual.train_clip=maybe', 'visual.train_clip', 'bool'),
        ('train.seed=true', 'train.seed', 'int'),
        ('text.trained_layers=3', 'text.trained_layers', 'list[int]'),
        ('text.trained_layers=[a]', 'text.trained_layers[0]', 'list[int]'),
        ('eval.weights=[x]', 'eval.weights[0]', 'list[float]'),
    ],
)
def test_a_wrong_type_is_named_with_the_right_one(option, key, expected):
    text = message(VATEX, option)
    assert f"key '{key}'" in text and f'(expected {expected})' in text


@pytest.mark.parametrize(
    'option',
    [
        'train.lr',
        '=3',
        '--train.lr=3',
        'text.trained_layers=[',
        'text.trained_layers[0]=3',
        "name='it's'",
        'eval.weights={',
        'train.lr=' + '[' * 2000,
        'train.seed=' + '9' * 5000,
    ],
)
def test_an_option_that_cannot_be_read_is_quoted(option):
    assert f"option '{option}'"[:1000] in message(VATEX, option)


IMPOSSIBLE = [
    ('text.pooling=median', 'padded_mean, mean, max'),
    ('visual.pooling=sum', 'padded_mean, mean, max'),
    ('text.score_scale=none', 'value_width, key_width'),
    ('visual.score_scale=1', 'value_width, key_width'),
    ('visual.kind=image', 'frames, pooled, clip'),
    ('discriminator.kind=mighty', 'strong, not-so-weak, weak'),
    ('discriminator.pooling=max', 'padded_mean, mean'),
    ('eval.ties=random', 'pessimistic, mean'),
    ('text.hidden=100', 'text.heads=8'),
    ('visual.hidden=100', 'visual.heads=8'),
    ('text.qk_width=9', 'text.heads=8'),
    ('visual.qk_width=9', 'visual.heads=8'),
    ('text.heads=0', 'at least 1'),
    ('text.positions=0', 'at least 2'),
    ('space.dim=0', 'at least 1'),
    ('train.epochs=0', 'at least 1'),
    ('train.batch_size=1', 'at least 2'),
    ('text.dropout=1', '0 <= p < 1'),
    ('text.bert_dropout=-0.1', '0 <= p < 1'),
    ('visual.dropout=2', '0 <= p < 1'),
    ('space.dropout=1.5', '0 <= p < 1'),
    ('train.lr=0', 'above 0'),
    ('discriminator.lr=-1', 'above 0'),
    ('loss.temperature=0', 'above 0'),
    ('loss.smooth_l1_beta=0', 'above 0'),
    ('train.lr=inf', 'finite'),
    ('train.grad_clip=nan', 'finite'),
    ('train.lr_decay=0', '0 < f <= 1'),
    ('train.halve_factor=2', '0 < f <= 1'),
    ('train.patience=-1', '0 or more'),
    ('train.grad_clip=-2', '0 or more'),
    ('train.workers=-1', '0 or more'),
    ('train.seed=-1', '0 <= seed'),
    ('loss.margin=-0.1', '0 or more'),
    ('loss.weights.kd_sim=-1', '0 or more'),
    ('visual.feature_dim=-3', '0 or more'),
    ('train.val_weight=1.2', '[0, 1]'),
    ('eval.weights=[]', 'at least one'),
    ('eval.weights=[0.5, 1.5]', '[0, 1]'),
    ('eval.weight_grid=[-0.1]', 'weights in [0, 1]'),
    ('data.noise=1.5', 'a rate from 0 to 1'),
    ('text.trained_layers=[3, 3]', 'different layer numbers'),
    ('text.trained_layers=[-1]', 'counted from 0'),
    ('visual.max_frames=81', 'visual.positions=80'),
    ('data.task=2', 'valid values for vatex: 1'),
    ('name=a/b', 'without /'),
    ('data.captions.val.en="{c}{who}.txt"', '{c}, {p}, {lang}'),
    ('data.frames="{"', '{feature}'),
    ('data.frames="{c.up}"', '{feature}'),
    ('train.seed=4294967296', 'seed < 2^32'),
    ('text.positions=1', 'at least 2'),
    ('data.collection=..', 'without /'),
    ('data.collection=a/b', 'without /'),
    ('data.lang=../zh', 'without /'),
    ('loss.contrastive=cosine', 'triplet, infonce'),
    ('loss.teacher=other', 'self, momentum'),
    ('loss.teacher_momentum=1', '0 <= m < 1'),
    ('compute.precision=fp16', 'fp32, tf32, bf16'),
    ('compute.attention=flash', 'auto, fused, eager'),
    ('compute.image_cache=disk', 'none, pixels, embeddings'),
    ('compute.micro_batch=-1', '0 or more'),
    ('compute.score_memory=0', 'at least 1'),
    ('visual.train_clip=true', 'valid value then: false'),
    ('compute.image_cache=pixels', 'valid value then: none'),
]


@pytest.mark.parametrize('value', ['007', 'no', 'on', '1e5', '2024_01_02', '3.10'])
def test_text_stays_as_it_was_typed(value, tmp_path):
    assert load_config(VATEX, [f'name={value}', f'data.lang={value}']).name == value
    path = tmp_path / 'own.yaml'
    path.write_text(f'data: {{collection: vatex, lang: {value}}}')
    assert f"{path}: key 'data.lang' is text, but YAML reads" in message(path)
    path.write_text(f'data: {{collection: vatex, lang: "{value}", frames: f}}')
    assert load_config(path).data.lang == value


TYPED = [
    'exp #1',
    '#',
    'a: b',
    '${oc.env:HOME}',
    '${',
    'x${y}z',
    r'\${a}',
    r'a\\${b}',
    '{x}',
    '[y',
    'C:\\new\\${x}',
    "it's",
    '- a',
    '!x',
    '&a',
    '*',
    '%',
    '@',
    'null',
    '~',
    'true',
    '1e5',
    "'",
    '"',
    'a\tb',
    'x = y',
    '狗',
]


@pytest.mark.parametrize('value', TYPED)
def test_an_option_that_is_text_is_taken_as_it_was_typed(value):
    config = load_config(VATEX, [f'text.bert={value}', f'data.suffix.1/zh={value}'])
    assert (config.text.bert, config.data.suffix['1/zh']) == (value, value)
    again = config_from_dict(config_to_dict(config))
    assert again == config and config_to_dict(again)['text']['bert'] == value
    assert list(load_config(VATEX, [f'data.aliases=["x", {json.dumps(value)}]']).data.aliases) == [
        'x',
        value,
    ]


@pytest.mark.parametrize(
    'typed, value',
    [
        ("'a: b'", 'a: b'),
        ('"a b"', 'a b'),
        ("'it''s'", "it's"),
        ("''", ''),
        ('', ''),
        ('"${x}"', '${x}'),
    ],
)
def test_quotes_around_text_are_no_part_of_it(typed, value):
    assert load_config(VATEX, [f'text.bert={typed}']).text.bert == value


def test_a_list_of_text_is_taken_as_it_was_typed_too():
    for typed, value in (
        ('[exp #1, a: b,${x},007]', ['exp #1', 'a: b', '${x}', '007']),
        ('[]', []),
        ('[ ]', []),
        ('[c/{feature}.npy]', ['c/{feature}.npy']),
        ('["a, b", c]', ['a, b', 'c']),
    ):
        assert list(load_config(VATEX, [f'data.aliases={typed}']).data.aliases) == value
    assert 'expected a list' in message(VATEX, 'data.aliases=x')


def test_nothing_is_filled_in_anywhere(tmp_path, monkeypatch):
    monkeypatch.setenv('NRCCR_SECRET', 'hunter2')
    text = '${oc.env:NRCCR_SECRET}'
    path = write(
        tmp_path,
        'a.yaml',
        f'name: "{text}"\ndata: {{collection: x, frames: f, aliases: ["{text}"]}}\n',
    )
    for config in (load_config(path), config_from_dict(config_to_dict(load_config(path)))):
        assert config.name == text and list(config.data.aliases) == [text]
        assert 'hunter2' not in json.dumps(config_to_dict(config))
    assert "'???' says that a value is missing" in message(VATEX, 'text.bert=???')


# ------------------------------------------------------------------------- what strangers may write

LAUGHS = 'a: &a [x, x, x, x, x, x, x, x, x]\n' + ''.join(
    f'{new}: &{new} [{", ".join(9 * ["*" + old])}]\n' for old, new in zip('abcdefgh', 'bcdefghi')
)


@pytest.mark.parametrize(
    'text, expected',
    [
        (LAUGHS, 'too many values, or aliases'),
        ('data: &a [*a]', 'too deep'),
        ('name: ' + '[' * 2000, 'too deep'),
        ('data: {collection: x}\ntrain: {seed: ' + '9' * 5000 + '}', 'valid YAML'),
        ('train: {seed: ' + '9' * 30 + '}', "key 'train.seed' is a number of 100 bits"),
        ('1: x', 'the key 1 is not text'),
        ('? [a, b]\n: c', 'valid YAML'),
        ('name: !!binary aGk=', "key 'name' is bytes"),
        ('data: !!set {a}', "key 'data'"),
        ('name: !!bool x', 'valid YAML'),
        ('name: !!int ""', 'valid YAML'),
        ('name: !!timestamp x', 'valid YAML'),
        ('name: "\\ud800"', 'not UTF-8'),
        (
            'data: {collection: x}\ntrain: {epochs: "' + '9' * 4000 + '"}',
            'no number here is that large',
        ),
        ('data: {collection: x}\ntext: {bert_dropout: 1.0e+999}', 'finite'),
        ('name: "a\\nb"\ndata: {collection: x}', 'control'),
        ('data: {frames: "{c:>3000000000}", collection: x}', "cannot fill in 'c'"),
        ('data: {frames: "{c!r}", collection: x}', "cannot fill in 'c'"),
        ('#' * 300_000, 'too large to be a config'),
    ],
)
def test_a_strangers_file_is_refused_at_once(tmp_path, text, expected):
    path, start = write(tmp_path, 'a.yaml', text), time.monotonic()
    assert expected in message(path) and len(message(path)) < 1000
    assert time.monotonic() - start < 5


def test_aliases_of_a_reasonable_number_are_read(tmp_path):
    path = write(
        tmp_path,
        'a.yaml',
        'text: &a {heads: 4}\nvisual: {<<: *a, kind: frames}\ndata: {collection: x}\n',
    )
    assert load_config(path).visual.heads == 4


def test_a_base_that_fans_out_is_refused(tmp_path):
    for i in range(25):
        write(tmp_path, f'{i}.yaml', f'base: [{i + 1}.yaml, {i + 1}.yaml]\n')
    write(tmp_path, '25.yaml', 'data: {collection: x}\n')
    assert 'leads to more than 100 files' in message(tmp_path / '0.yaml')


def test_a_stored_config_of_lists_inside_lists_is_refused():
    shared = ['x']
    for _ in range(40):
        shared = [shared, shared]
    looped = []
    looped.append(looped)
    tree = config_to_dict(load_config(VATEX))
    for value, expected in (
        (shared, 'too'),
        (looped, 'too deep'),
        (object(), "key 'data.aliases' is of type object"),
        (10**5000, 'a number of'),
        ({1: 2}, 'the key 1'),
        (b'x', 'bytes'),
    ):
        tree['data']['aliases'] = value
        with pytest.raises(ConfigError, match=expected):
            config_from_dict(tree)
    for tree in (None, [], 'x', 3):
        with pytest.raises(ConfigError, match='stored config: expected keys and values'):
            config_from_dict(tree)


@pytest.mark.parametrize('option, valid', IMPOSSIBLE, ids=[option for option, _ in IMPOSSIBLE])
def test_an_impossible_value_is_named_with_what_is_valid(option, valid):
    text = message(VATEX, option)
    assert f"key '{option.split('=')[0]}'" in text and valid in text


@pytest.mark.parametrize(
    'path, options, parts',
    [
        (VATEX, ['visual.kind=clip'], ["key 'data.images'", 'visual.kind=frames']),
        (VATEX, ['visual.kind=pooled'], ["key 'data.pooled.train'", 'visual.kind=frames']),
        (MULTI30K, ['visual.kind=frames'], ["key 'visual.kind'", 'pooled, clip']),
        (MULTI30K, ['data.images=images/all.jpg'], ["key 'data.images'", '{id}']),
        (MULTI30K, ['data.task=3'], ["key 'data.task' is 3", '1, 2']),
        (
            VATEX,
            ['loss.weights.triplet_en=0', 'loss.weights.triplet_tgt=0'],
            ["key 'loss.weights'", 'triplet_en'],
        ),
        (None, [], ["key 'data.collection'", 'ROOTPATH']),
    ],
)
def test_an_impossible_combination_names_the_key_and_a_way_out(path, options, parts):
    text = message(path, *options)
    assert all(part in text for part in parts)


@pytest.mark.parametrize(
    'options',
    [
        ['loss.weights.triplet_en=0'],
        ['train.grad_clip=0'],
        ['text.dropout=0'],
        ['visual.hidden=1000', 'visual.heads=4'],
        ['text.trained_layers=[]'],
        ['train.val_weight=0'],
        ['name=my run'],
    ],
)
def test_edges_that_are_possible(options):
    key, _, value = options[-1].partition('=')
    group, _, leaf = key.rpartition('.')
    tree = config_to_dict(load_config(VATEX, options))
    for part in filter(None, group.split('.')):
        tree = tree[part]
    assert str(tree[leaf]) in (value, f'{value}.0')


def test_sizes_of_the_video_block_do_not_matter_to_images():
    assert load_config(MULTI30K, ['visual.hidden=100']).visual.hidden == 100


# ------------------------------------------------------------------------- what each field may hold


def test_the_defaults_are_valid():
    assert load_config(None, ['data.collection=x']).name == 'x'


def test_every_loss_term_has_a_weight():
    assert [weight.name for weight in fields(Weights)] == list(TERMS)


def test_a_list_is_no_part_of_two_configs():
    first, second = Config(), Config()
    first.eval.weights.append(0.1)
    assert second.eval.weights == [1.0, 0.8, 0.5, 0.2, 0.0]


# ----------------------------------------------------------------------- what changing a field does

ROUNDING = {'compute.attention', 'compute.compile', 'compute.micro_batch', 'compute.checkpointing'}
SPEED = {'train.workers', 'train.keep_last', 'compute.image_cache', 'compute.score_memory'}
LENGTH = {'train.epochs', 'train.patience'}
PLACE = {'data.images', 'data.media', 'text.bert', 'text.pretrained'}
PLACE |= {'visual.clip', 'visual.clip_pretrained'}


def test_the_effect_of_each_field():
    assert set(keys_with('rounding')) == ROUNDING
    assert set(keys_with('speed')) == SPEED
    assert set(keys_with('length')) == LENGTH
    assert set(keys_with('place')) == PLACE
    others = ROUNDING | SPEED | LENGTH | PLACE
    assert set(keys_with('result')) == options_of(Config).keys() - others
    assert len(keys_with(*EFFECTS)) == len(options_of(Config)) > 80


def test_what_may_differ_follows_from_the_effects():
    from basic.run_folder import MAY_DIFFER
    from evaluation import SAME_TEST
    from util.table.runs import NO_DIFFERENCE

    assert set(MAY_DIFFER) == SPEED | ROUNDING | LENGTH
    assert set(SAME_TEST) == SPEED | ROUNDING | LENGTH | PLACE
    assert set(NO_DIFFERENCE) == SPEED | {'train.seed'}


# ----------------------------------------------------------------------------------- --print-config


def test_every_option_is_described_from_the_schemas_own_comments():
    config = load_config(
        MULTI30K, ['train.lr=3e-4', 'data.aliases=[' + ', '.join(['a name'] * 30) + ']']
    )
    text = describe_config(config)
    assert max(map(len, text.splitlines())) <= 80
    flat = ' '.join(text.split())
    for key in ('.'.join(path[1:]) for path in leaf_fields()):
        assert f' {key} = ' in flat, key
    assert 'train.lr = 0.0003 (default: 0.0001) Adam, encoders and projections' in flat
    assert 'train.epochs = 50 at most' in flat
    assert (
        "data.images = flickr30k-images/{id}.jpg (default: '') raw images, for visual.kind=clip"
        in flat
    )


def test_every_option_has_a_comment():
    def missing(schema, path=''):
        for field in fields(schema):
            if is_dataclass(field.type):
                yield from missing(field.type, f'{path}{field.name}.')
            elif not field_comments(schema)[field.name] and schema is not SplitFiles:
                yield f'{path}{field.name}'

    assert list(missing(Config)) == []


def test_config_and_its_description_are_read_without_torch():
    code = (
        'import sys, basic.print_config; sys.exit("torch" in sys.modules or "numpy" in sys.modules)'
    )
    assert subprocess.run([sys.executable, '-c', code], cwd=REPOSITORY, check=False).returncode == 0


# ------------------------------------------------------------------------------ every field is read


def reads(source):
    """{(group, field)} that Python source reads: `x.group.field`, `group['field']`, `group.field`
    where `group` names a variable or was assigned `... .group`. A group taken whole (dict(group),
    group[variable], getattr) gives '*'."""
    tree, aliases = ast.parse(source), {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                pairs = [(target, node.value)]
                if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                    pairs = zip(target.elts, node.value.elts)
                for name, value in pairs:
                    if isinstance(name, ast.Name) and isinstance(value, ast.Attribute):
                        aliases.setdefault(name.id, set()).add(value.attr)

    def tails(node):
        if isinstance(node, ast.Attribute):
            return {node.attr}
        return {node.id} | aliases.get(node.id, set()) if isinstance(node, ast.Name) else set()

    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            found |= {(tail, node.attr) for tail in tails(node.value)}
        elif isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load):
            leaf = node.slice.value if isinstance(node.slice, ast.Constant) else '*'
            found |= {(tail, leaf) for tail in tails(node.value)}
        elif (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in ('getattr', 'dict')
        ):
            found |= {(tail, '*') for argument in node.args[:1] for tail in tails(argument)}
    return found


def leaf_fields(schema=Config, path=('config',)):
    for field in fields(schema):
        if is_dataclass(field.type):
            yield from leaf_fields(field.type, (*path, field.name))
        else:
            yield (*path, field.name)


def unread(found):
    """The fields that nothing reads, be it by name or together with a group that holds them."""
    return [
        '.'.join(path[1:])
        for path in leaf_fields()
        if (path[-2], path[-1]) not in found
        and not any((group, '*') in found for group in path[2:-1])
    ]


def test_every_field_of_the_schema_is_read_somewhere():
    sources = [
        path for folder in ('.', 'basic', 'util') for path in (REPOSITORY / folder).glob('*.py')
    ]
    # they handle all alike
    handlers = ('config.py', 'merge.py', 'option.py', 'checkpoint.py', 'released.py')
    sources = [path for path in sources if path.name not in handlers]
    found = set().union(*(reads(path.read_text(encoding='utf-8')) for path in sources))
    assert unread(found) == []


def test_the_search_for_unread_fields_finds_one():
    found = reads(
        'text = config.text\nwidth, lr = text.hidden, run.config.train.lr\nconfig.text.heads = 3\n'
        'w = dict(config.loss.weights)\nn = config.visual["heads"]\npath = data.captions[split]'
    )
    missing, read = (
        set(unread(found)),
        {'text.hidden', 'train.lr', 'visual.heads', 'loss.weights.kd_sim', 'data.captions.val.tgt'},
    )
    assert not read & missing
    assert {
        'text.heads',
        'visual.hidden',
        'discriminator.lr',
        'loss.margin',
        'data.pooled.train',
        'name',
    } <= missing


@pytest.mark.parametrize(
    'text', ['eval: {weights: [{a: 1}]}', 'eval: {weight_grid: [[0.2]]}', f'base: {"x" * 5000}']
)
def test_lists_of_groups_and_endless_names_are_refused(tmp_path, text):
    (tmp_path / 'x.yaml').write_text(text)
    with pytest.raises(ConfigError) as error:
        load_config(tmp_path / 'x.yaml', ['data.collection=x'])
    assert len(str(error.value)) < 1000
