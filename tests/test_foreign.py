"""Foreign files of a run folder, a cache and the demo: what is not as it should be is named, and
nothing is inflated."""

import json
import os
import zipfile

import numpy as np
import pytest

from basic.cache import cached_array
from basic.config import ConfigError
from basic.errors import DataError, UnreachableError
from basic.foreign import expect, read_json, read_npz, shown
from basic.run_folder import read_config, read_log, record_start
from util.make_demo.corpus import options_there


@pytest.mark.parametrize(
    'value, form, expected',
    [
        (True, int, 'it is True; expected a whole number'),
        (1.5, int, 'it is 1.5; expected a whole number'),
        (float('nan'), float, 'it is nan; expected a number'),
        (10**5000, float, 'it is a number of 16,610 bits'),
        ('1', (int, None), "it is '1'; expected a whole number"),
        ({'a': {'b': 'x'}}, {'a': {'b': float}}, "key 'a.b' is 'x'"),
        ({'a': [1, 'x']}, {'a': [int]}, r"key 'a\[1\]' is 'x'"),
        ({}, {'a': int}, "key 'a' is None; expected a whole number"),
        ({'a': {'b': 1}}, {'a': ({'b': str}, None)}, "key 'a.b' is 1; expected text"),
        ([], dict, 'it is a list'),
        ({1: 2}, {str: int}, 'it is keys and values; expected keys that are text'),
        ({'a': 'x' * 999}, {str: int}, r"key 'a' is 'x+\.\.\.'"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_value_of_another_form_is_named(value, form, expected):
    with pytest.raises(DataError, match=f'^file: {expected}'):
        expect(value, form, 'file')


def test_values_of_the_form_are_passed_on():
    value = {'a': 1, 'b': [{'c': 2}, {'c': 1.5}], 'more': object()}
    assert expect(value, {'a': float, 'b': [{'c': float}], 'd': (str, None)}, 'file') is value
    assert shown({'a': object()}) == 'keys and values' and shown(object()) == 'of type object'


@pytest.mark.parametrize(
    'text, expected',
    [
        ('[' * 100_000, 'too deep'),
        ('{"epoch": ' + '9' * 5000 + '}', 'not JSON'),
        ('{', 'not JSON'),
        ('[]', 'it is a list'),
        ('{"epoch": NaN}', "key 'epoch' is nan"),
        ('\xff', 'not JSON'),
    ],
)
def test_json_that_is_none(tmp_path, text, expected):
    (tmp_path / 'a.json').write_text(text)
    with pytest.raises(DataError, match=expected) as error:
        read_json(tmp_path / 'a.json', {'epoch': int})
    assert len(str(error.value)) < 500 + len(str(tmp_path))


def test_what_is_no_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / 'pipe')
    for name, kind in (('pipe', 'a pipe or a device'), ('.', 'a folder')):
        with pytest.raises(DataError, match=f'is {kind}, not a file'):
            read_json(tmp_path / name, dict)


def test_a_message_longer_than_a_screen_loses_its_middle():
    for kind in (ConfigError, DataError, UnreachableError):
        assert str(kind('short')) == 'short' and kind('short').args == ('short',)
        assert str(kind('the key ' + 'x' * 10**6 + ' is unknown')).startswith('the key xxx')
        assert len(str(kind('x' * 10**6))) < 3000 and str(kind('x' * 10**6 + ' unknown')).endswith(
            'unknown'
        )


# ----------------------------------------------------------------------------------- the run folder

LINE = '{"epoch": 1, "best_epoch": 1, "speed": {"train_seconds": 1, "val_seconds": 2.5}}\n'


@pytest.mark.parametrize(
    'line, expected',
    [
        ('[1]', 'line 2: it is a list'),
        ('{}', "line 2: key 'epoch' is None"),
        ('{"epoch": "2"}', "key 'epoch' is '2'"),
        ('{"epoch": 2, "best_epoch": []}', "key 'best_epoch'"),
        ('{"epoch": 1e999}', "key 'epoch' is inf"),
        ('{"epoch": 2, "speed": {"train_seconds": 1}}', "key 'speed.val_seconds' is None"),
        ('', 'line 2: not JSON'),
    ],
)
def test_a_line_of_the_log_that_is_no_record_is_named(tmp_path, line, expected):
    (tmp_path / 'log.jsonl').write_text(LINE + line + '\n' + LINE)
    with pytest.raises(DataError, match=expected):
        read_log(tmp_path)


def test_a_last_line_cut_off_is_left_out(tmp_path):
    for text, count in (
        ('', 0),
        (LINE, 1),
        (LINE.strip(), 1),
        (LINE + LINE[:30], 1),
        (LINE + LINE[:30] + '\n', 1),
    ):
        (tmp_path / 'log.jsonl').write_text(text)
        assert len(read_log(tmp_path)) == count


@pytest.mark.parametrize(
    'text', ['[]', 'text: {bert: [1]}', '\x00', 'a: &a [*a]', '- x', 'text: ' + '[' * 999]
)
def test_a_stored_config_that_is_none_is_named(tmp_path, text):
    (tmp_path / 'config.yaml').write_text(text)
    with pytest.raises(ConfigError, match='config.yaml is not a config of train.py'):
        read_config(tmp_path)


@pytest.mark.parametrize('text', ['[]', '{"resumed": 3}', '{"resumed": [1]}', '{'])
def test_a_run_json_that_is_none_is_named(tmp_path, text):
    (tmp_path / 'run.json').write_text(text)
    with pytest.raises(ConfigError, match='run.json is damaged .*move it away'):
        record_start(tmp_path, {}, {}, resumed_after=1)


# ------------------------------------------------------------------------------------------- arrays


def test_an_npz_that_would_fill_the_memory_is_refused_unread(tmp_path):
    path = tmp_path / 'ranks.npz'
    with (
        zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as file,
        file.open('a.npy', 'w', force_zip64=True) as member,
    ):
        for _ in range(100):
            member.write(bytes(2**20))
    with pytest.raises(DataError, match=r'ranks.npz is damaged \(it would unpack to 0.1 GiB\)'):
        read_npz(path, {'a': ((3,), 'f')})


def npy(header, data=b''):
    header = header.encode() + b'\n'
    return b'\x93NUMPY\x01\x00' + len(header).to_bytes(2, 'little') + header + data


@pytest.mark.parametrize(
    'member, expected',
    [
        (
            npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,)}"),
            r'expected shape \(3,\)',
        ),
        (
            npy("{'descr': '|O', 'fortran_order': False, 'shape': (3,)}", bytes(24)),
            'a is object of shape',
        ),
        (npy("{'descr': '<f4', 'fortran_order': False, 'shape': (3,)}", bytes(11)), 'a is cut off'),
        (npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-3,)}"), 'expected shape'),
        (
            npy("{'descr': '<U4', 'fortran_order': False, 'shape': (3,)}", bytes(48)),
            'expected shape',
        ),
        (npy('[' * 300), 'is damaged'),
        (npy('x'), 'is damaged'),
        (b'rubbish', 'is damaged'),
        (None, 'it has no a'),
    ],
)
def test_an_array_of_another_kind_is_refused(tmp_path, member, expected):
    with zipfile.ZipFile(tmp_path / 'x.npz', 'w') as file:
        if member is not None:
            file.writestr('a.npy', member)
    with pytest.raises(DataError, match=expected):
        read_npz(tmp_path / 'x.npz', {'a': ((3,), 'f')})


def test_an_npz_is_read(tmp_path):
    np.savez_compressed(tmp_path / 'x.npz', a=np.arange(6.0).reshape(2, 3), b=np.array(['x', 'yz']))
    found = read_npz(tmp_path / 'x.npz', {'a': ((2, None), 'f'), 'b': ((2,), 'U')})
    assert found['a'].tolist() == [[0, 1, 2], [3, 4, 5]] and found['b'].tolist() == ['x', 'yz']


# ---------------------------------------------------------------------------------------- elsewhere


@pytest.mark.parametrize('damage', ['[' * 100_000, '{"x": ' + '9' * 5000 + '}', '\xff', None])
def test_a_cache_whose_record_is_damaged_is_made_anew(tmp_path, damage):
    def make():
        return np.load(
            cached_array(
                tmp_path / 'c', ids=['a'], made_from={'x': 1}, parts=lambda: [np.ones((1, 2))]
            )
        )

    make()
    (tmp_path / 'c/made_from.json').unlink()
    if damage is None:
        (tmp_path / 'c/made_from.json').mkdir()
    else:
        (tmp_path / 'c/made_from.json').write_bytes(damage.encode('latin-1'))
    assert make().tolist() == [[1, 1]] and json.loads(
        (tmp_path / 'c/made_from.json').read_text()
    ) == {'x': 1}


@pytest.mark.parametrize(
    'text', ['[]', '{}', '{"options": {"seed": "x"}, "noise": {}}', '{"options": {}, "noise": []}']
)
def test_a_manifest_of_the_demo_that_is_none_is_named(tmp_path, text):
    (tmp_path / 'vatex').mkdir()
    (tmp_path / 'vatex/demo.json').write_text(text)
    with pytest.raises(ValueError, match='demo.json: '):
        options_there(tmp_path, 'vatex', 'zh')


def test_half_of_a_character_is_refused_before_it_is_written_again(tmp_path):
    path = tmp_path / 'run.json'
    path.write_text('{"resumed": [{"note": "\\ud800"}]}')
    with pytest.raises(ConfigError, match='run.json.*half of a character'):
        record_start(tmp_path, {'device': 'cpu'}, {}, resumed_after=1)
    path.write_text('{"resumed": [{"note": "\\ud83d\\ude00"}]}')  # a whole one
    record_start(tmp_path, {'device': 'cpu'}, {}, resumed_after=1)
    assert json.loads(path.read_text(encoding='utf-8'))['resumed'][0]['note'] == '\U0001f600'
