"""basic/bigfile.py: features of frames on disk, ids, video2frames.txt."""

import numpy as np
import pytest

from basic.bigfile import BigFile, read_video2frames
from basic.ids import read_ids, repeated
from basic.errors import DataError

IDS = ['a_0', 'a_1', 'b_0', 'b_1']


def make(
    folder,
    *,
    features=None,
    ids=IDS,
    shape=None,
    videos="{'a': ['a_0', 'a_1'], 'b': ['b_1', 'b_0']}",
):
    folder.mkdir(exist_ok=True)
    features = np.arange(12).reshape(4, 3) if features is None else features
    features.astype('<f4').tofile(folder / 'feature.bin')
    (folder / 'shape.txt').write_text(shape or f'{len(features)} {features.shape[1]}\n')
    (folder / 'id.txt').write_bytes(' '.join(ids).encode('utf-8'))
    (folder / 'video2frames.txt').write_bytes(videos.encode('utf-8'))
    return folder


def complaint(function, *args):
    with pytest.raises(DataError) as error:
        function(*args)
    return str(error.value)


def test_reads_features_ids_and_videos(tmp_path):
    file = BigFile(make(tmp_path / 'f'))
    assert (file.rows, file.dim) == (4, 3)
    assert (
        file.map().dtype == np.float32
        and file.map().tolist() == np.arange(12).reshape(4, 3).tolist()
    )
    assert not file.map().flags.writeable
    assert file.read_ids() == IDS
    ids, counts, rows = file.read_videos()
    assert ids == ['a', 'b'] and counts.tolist() == [2, 2] and rows.tolist() == [0, 1, 3, 2]


@pytest.mark.parametrize('name', ['shape.txt', 'feature.bin', 'id.txt', 'video2frames.txt'])
def test_missing_files_are_named(tmp_path, name):
    (make(tmp_path / 'f') / name).unlink()
    message = complaint(lambda: BigFile(tmp_path / 'f').read_videos())
    assert f'no file {tmp_path / "f" / name}' in message and 'needs shape.txt, id.txt' in message


@pytest.mark.parametrize(
    'shape', ['9' * 5000 + ' 3', '4', '4 3 2', 'four 3', '4.0 3', '0 3', '-4 3', ' ']
)
def test_malformed_shape(tmp_path, shape):
    message = complaint(BigFile, make(tmp_path / 'f', shape=shape))
    assert 'shape.txt:1: ' in message and "'rows dims'" in message


def test_shape_that_disagrees_with_the_size(tmp_path):
    message = complaint(BigFile, make(tmp_path / 'f', shape='5 3'))
    assert '60 bytes' in message and 'feature.bin has 48' in message


def test_ids_that_disagree_with_the_shape(tmp_path):
    assert '3 ids' in complaint(BigFile(make(tmp_path / 'f', ids=IDS[:3])).read_ids)
    assert 'duplicate ids: a_0' in complaint(
        BigFile(make(tmp_path / 'f', ids=[*IDS[:3], 'a_0'])).read_ids
    )


def test_ids_beyond_ascii(tmp_path):
    folder = make(
        tmp_path / 'f', ids=['à_0', 'a_1', 'b_0', 'b_1'], videos="{'à.mp4': ['à_0'], 'b': ['b_0']}"
    )
    # UTF-8 à holds 0xA0, white space in ISO-8859-1
    assert BigFile(folder).read_videos()[0] == ['à', 'b']
    (folder / 'id.txt').write_bytes('é_0 a_1 b_0 b_1'.encode('iso-8859-1'))
    (folder / 'video2frames.txt').write_bytes("{'é': ['é_0']}".encode('iso-8859-1'))
    assert BigFile(folder).read_videos()[0] == ['é']


@pytest.mark.parametrize('name', ['shape.txt', 'id.txt', 'video2frames.txt'])
def test_byte_order_marks(tmp_path, name):
    path = make(tmp_path / 'f') / name
    path.write_bytes(b'\xef\xbb\xbf' + path.read_bytes())
    assert BigFile(tmp_path / 'f').read_videos()[0] == ['a', 'b']
    path.write_bytes(path.read_bytes().decode('utf-8').encode('utf-16'))
    message = complaint(lambda: BigFile(tmp_path / 'f').read_videos())
    assert f'{path}: the file is UTF-16' in message


@pytest.mark.parametrize(
    'videos',
    [
        "{'中A': ['中_0']}",
        "{'\\u4e2d\\x41': ['\\u4e2d_0']}",
        "{'\\xe4\\xb8\\xadA.mp4': ['\\xe4\\xb8\\xad_0']}",
        '{"中A": ["中_0"]}',
    ],
)
def test_ids_beyond_latin_and_their_escapes(tmp_path, videos):
    """Raw, as repr and json escape it, as Python 2 escaped its bytes."""
    folder = make(tmp_path / 'f', ids=['中_0', *IDS[1:]], videos=videos)
    assert BigFile(folder).read_ids()[0] == '中_0'
    ids, counts, rows = BigFile(folder).read_videos()
    assert ids == ['中A'] and counts.tolist() == [1] and rows.tolist() == [0]


def test_absent_frames_name_the_nearest(tmp_path):
    folder = make(tmp_path / 'f', videos="{'a': ['A_0.jpg']}")
    assert "did you mean 'a_0' for 'A_0.jpg'" in complaint(BigFile(folder).read_videos)


def test_videos_without_frames_are_as_good_as_missing(tmp_path):
    ids, counts, _ = BigFile(make(tmp_path / 'f', videos="{'a': ['a_0'], 'b': []}")).read_videos()
    assert ids == ['a'] and counts.tolist() == [1]


def test_frames_that_are_not_there(tmp_path):
    folder = make(tmp_path / 'f', videos=str({'a': ['a_0', *(f'x_{i}' for i in range(7))]}))
    message = complaint(BigFile(folder).read_videos)
    assert '7 frames are not in' in message and 'x_0, x_1, x_2, x_3, x_4 and 2 more' in message


def test_videos_that_are_the_same_but_for_the_suffix(tmp_path):
    folder = make(tmp_path / 'f', videos="{'a': ['a_0'], 'a.mp4': ['a_1']}")
    assert 'duplicate videos: a' in complaint(BigFile(folder).read_videos)


@pytest.mark.parametrize(
    'text',
    [
        "{'a': ['a_0', 'a_1'], 'b': ['b_0']}\n",
        '{"a": ["a_0", "a_1"], "b": ["b_0"]}',
        "{'a': ['a_0', 'a_1',], 'b': ('b_0',),}",
        "{u'a': [u'a_0', 'a\\x5f1'], 'b': ['b_0']}",
        "  {'a':\n ['a_0',\n 'a_1'], 'b': ['b_0']}",
    ],
)
def test_video2frames_in_any_spelling(tmp_path, text):
    path = tmp_path / 'v.txt'
    path.write_text(text)
    assert read_video2frames(path) == {'a': ['a_0', 'a_1'], 'b': ['b_0']}


def test_video2frames_keeps_quotes_in_ids(tmp_path):
    (tmp_path / 'v.txt').write_text(repr({"it's": ["it's_0"], 'say "x"': ['0']}))
    assert list(read_video2frames(tmp_path / 'v.txt')) == ["it's", 'say "x"']


@pytest.mark.parametrize(
    'text, message',
    [
        ("{'a': ['a_0']", ':1: expected a dict literal'),
        ('', 'expected a dict literal'),
        ("['a']", 'expected a dict literal'),
        ("{'a': [\nopen('x')]}", ':2: expected a dict literal'),
        ("{'a': f('x')}", 'found: code in place of data: "f(\'x\')"'),
        ("{**{'a': []}}", "found: '**' in place of data"),
        ("{'a': 'a_0'}", 'expected a list of frame ids'),
        ("{'a': [1]}", 'expected a list of frame ids'),
        ("{1: ['a_0']}", 'expected a list of frame ids'),
        ("{'a': {}}", 'expected a list of frame ids'),
        ("{['a']: ['a_0']}", 'expected a list of frame ids'),
        ("{'a': {'b': 'c'}}", 'expected a list of frame ids'),
        ("{'a': ['0'], 'a': ['1']}", 'duplicate videos: a'),
        ("{'a': ['0'], 'a': ('1',)}", 'duplicate videos: a'),
        ("{'a': ['0'],\n 'b': ['1'\n}", ':'),
    ],
)
def test_video2frames_that_is_none(tmp_path, text, message):
    path = tmp_path / 'v.txt'
    path.write_text(text)
    assert message in complaint(read_video2frames, path) and str(path) in complaint(
        read_video2frames, path
    )


def test_id_lists(tmp_path):
    path = tmp_path / 'ids.txt'
    path.write_bytes(b'\xef\xbb\xbfa.jpg\r\nb\r\nc.mp4\r\n\r\n')
    assert read_ids(path) == ['a', 'b', 'c']
    for content, message in (
        (b'a\n\nb\n', ':2: an empty line'),
        (b'', ':1: an empty line'),
        (b'a\nb\na.jpg\n', ':3: duplicate ids: a'),
        (b'a\n\xff\n', ':2: '),
    ):
        path.write_bytes(content)
        assert f'{path}{message}' in complaint(read_ids, path)


def test_repeated():
    assert repeated(['b', 'a', 'a', 'b', 'b', 'c']) == ['a', 'b']
