"""basic/ids.py: one form of ids, text files of any kind, the nearest id that is there."""

import codecs

import pytest

from basic.errors import DataError
from basic.ids import did_you_mean, lines_of, read_bytes, read_ids, visual_id


def complaint(function, *args):
    with pytest.raises(DataError) as error:
        function(*args)
    return str(error.value)


def test_the_form_of_an_id():
    names = ['a.jpg', 'a.mp4', 'a', 'a.jpg.jpg', 'a.jpeg', 'a.avi', 'a.JPG']
    assert [visual_id(name) for name in names] == [
        'a',
        'a',
        'a',
        'a.jpg',
        'a.jpeg',
        'a.avi',
        'a.JPG',
    ]


# --------------------------------------------------------------------------------------- text files


@pytest.mark.parametrize(
    'content, found',
    [
        (codecs.BOM_UTF16_LE + 'a\nb'.encode('utf-16-le'), 'the file is UTF-16'),
        (codecs.BOM_UTF16_BE + 'a\nb'.encode('utf-16-be'), 'the file is UTF-16'),
        (codecs.BOM_UTF32_LE + 'a\nb'.encode('utf-32-le'), 'the file is UTF-32'),
        ('a\nb'.encode('utf-16-le'), 'UTF-16 without a byte order mark'),
    ],
)
def test_other_encodings_are_named(tmp_path, content, found):
    path = tmp_path / 'ids.txt'
    path.write_bytes(content)
    for reader in (read_bytes, read_ids):
        message = complaint(reader, path)
        assert found in message and str(path) in message and 'iconv -f UTF-' in message


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path):
    (tmp_path / 'ids.txt').write_bytes(codecs.BOM_UTF8 + b'a\nb')
    assert read_bytes(tmp_path / 'ids.txt') == b'a\nb' and read_ids(tmp_path / 'ids.txt') == [
        'a',
        'b',
    ]


@pytest.mark.parametrize(
    'data, lines',
    [
        (b'a\nb\n', [b'a', b'b', b'']),
        (b'a\r\nb', [b'a', b'b']),
        (b'a\rb', [b'a', b'b']),
        (b'a\rb\n', [b'a\rb', b'']),
        (b'a\r\nb\nc', [b'a', b'b', b'c']),
        (b'a', [b'a']),
    ],
)
def test_lines_of_any_system(data, lines):
    assert list(lines_of(data)) == list(enumerate(lines, start=1))


@pytest.mark.parametrize('space', [' ', '\t', '\u3000', '\xa0', '\r'])
def test_ids_hold_no_white_space(tmp_path, space):
    (tmp_path / 'ids.txt').write_text(f'a\nb{space}c\nd\n', encoding='utf-8', newline='')
    assert 'ids.txt:2: white space in' in complaint(read_ids, tmp_path / 'ids.txt')


# ------------------------------------------------------------------------ the nearest that is there


@pytest.mark.parametrize(
    'missing, found, how',
    [
        ('v0.avi', 'v0', 'ending'),
        ('v0.JPG', 'v0', 'ending'),
        ('V0', 'v0', 'case'),
        ('v0_', 'v0', 'spelling'),
        ('frames/v0', 'v0', 'spelling'),
        ('dog-house', 'dog_house', 'spelling'),
        ('doghouses', 'dog_house', 'spelling'),
        ('\ufeffv0', 'v0', 'spelling'),
        ('COCO_val2014_0000000391895', '000000391895', 'spelling'),
    ],
)
def test_the_nearest_is_named(missing, found, how):
    known = ['v0', 'v1', 'v10', 'dog_house', '000000391895']
    assert (
        did_you_mean(['no such thing', missing], known)
        == f' (did you mean {found!r} for {missing!r}? They differ in {how})'
    )


def test_another_unicode_form_is_shown_as_such():
    question = did_you_mean(['caf\u00e9'], ['cafe\u0301'])
    assert r"did you mean 'cafe\u0301' for 'caf\xe9'? They differ in Unicode form" in question


def test_the_neighbours_of_a_number_are_no_guess():
    assert did_you_mean(['video7011', 'x'], [f'video{i}' for i in range(7000)] + ['y']) == ''
    assert did_you_mean(['a'], []) == '' == did_you_mean([], ['a'])
