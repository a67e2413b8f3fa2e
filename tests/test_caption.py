"""basic/caption.py: files, joins, cleaning, packed tokens."""

import numpy as np
import pytest
from test_tokenizer import VOCABULARY, vocabulary  # noqa: F401  (a fixture)

from basic.caption import CaptionFile, PackedTokens, clean_english, join_captions, read_captions
from basic.errors import DataError
from basic.pretrained.tokenizer import load_tokenizer


def write(tmp_path, content, name='c.caption.txt'):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode('utf-8'))
    return path


# -------------------------------------------------------------------------------------------- files


def test_reads_ids_and_texts_in_file_order(tmp_path):
    file = read_captions(
        write(tmp_path, 'b.jpg#enc#1 two words\na.mp4#enc2zh#0 一 只\nb.jpg#enc#0 x\n')
    )
    assert file.ids == [('b', '1'), ('a', '0'), ('b', '0')]
    assert file.texts == ['two words', '一 只', 'x']
    assert file.visual_ids == ['b', 'a'] and len(file) == 3


@pytest.mark.parametrize(
    'content',
    [
        b'v#enc#0 a man\nv#enc#1 a dog\n',
        b'v#enc#0 a man\nv#enc#1 a dog',
        b'v#enc#0 a man\r\nv#enc#1 a dog\r\n',
        b'\xef\xbb\xbfv#enc#0 a man\nv#enc#1 a dog\n\n',
        b'v#enc#0 a man\n\nv#enc#1 a dog',
    ],
)
def test_tolerates_line_ends_bom_and_blank_lines(tmp_path, content):
    file = read_captions(write(tmp_path, content))
    assert file.ids == [('v', '0'), ('v', '1')] and file.texts == ['a man', 'a dog']


def test_lines_end_at_newline_alone(tmp_path):
    text = 'one\u2028two\u0085three\x0bfour\x1cfive\rsix'
    assert read_captions(write(tmp_path, f'v#enc#0 {text}\n')).texts == [text]


@pytest.mark.parametrize(
    'space', ['\t', '\xa0', '\u3000', '\u2003', '\x0b', '\x1f', '\u2028', '\t ', '  ']
)
def test_any_white_space_ends_the_id(tmp_path, space):
    """No first word is lost: it is the caption's, whatever stands between."""
    file = read_captions(write(tmp_path, f'v#enc#0{space}Two dogs\n'))
    assert file.ids == [('v', '0')] and file.texts[0].split() == ['Two', 'dogs']


@pytest.mark.parametrize(
    'line, message',
    [
        ('v#enc#1\u200bTwo dogs', r'invisible character, '),
        ('\ufeffv#enc#1 Two', 'invisible character'),
        ('v#enc#1,Two dogs', "ends with '#1,Two'; expected a number and then a space"),
        ('v#enc #1 Two', "white space in the caption's id"),
        ('v #enc#1 Two', "no '#'"),
        ('#enc#1 Two', "no visual id before the '#'"),
        ('.jpg#enc#1 Two', 'no visual id before'),
        ('\tv#enc#1 Two', 'white space before'),
        ('\u3000v#enc#1 Two', 'white space before'),
        ('v#enc#1 a man\rv#enc#2 a dog', 'a second caption in the line, after a carriage return'),
    ],
)
def test_ids_that_could_be_read_in_two_ways(tmp_path, line, message):
    with pytest.raises(DataError, match='c.caption.txt:2: ') as error:
        read_captions(write(tmp_path, f'v#enc#0 fine\n{line}\n'))
    assert message in str(error.value)


def test_old_macs_lines(tmp_path):
    file = read_captions(write(tmp_path, 'v#enc#0 a man\rv#enc#1 a dog\r\r'))
    assert file.ids == [('v', '0'), ('v', '1')] and file.texts == ['a man', 'a dog']
    assert len(read_captions(write(tmp_path, 'v#enc#0 a\r\nv#enc#1 b\n \t\r\nv#enc#2 c'))) == 3


def test_utf_16_is_named(tmp_path):
    with pytest.raises(DataError, match='the file is UTF-16; expected UTF-8'):
        read_captions(write(tmp_path, 'v#enc#0 a man\n'.encode('utf-16')), problems=[])


def test_empty_captions_are_kept_and_counted(tmp_path):
    file = read_captions(write(tmp_path, 'v#enc#0 \nv#enc#1   \nv#enc#2 a\n'))
    assert len(file) == 3 and file.empty == 2


def test_one_suffix_is_taken_off_the_visual_id(tmp_path):
    file = read_captions(write(tmp_path, 'a.jpg.jpg#0 x\nb.jpeg#0 x\nc.mp4x#0 x\n'))
    assert file.visual_ids == ['a.jpg', 'b.jpeg', 'c.mp4x']


BAD_LINES = [
    ('v#enc#1', 'no space'),
    ('v.enc.1 text', "no '#'"),
    (' v#enc#1 text', 'white space before'),
    ('v#enc#0 again', 'first in line 1'),
    (b'v#enc#1 caf\xe9', 'byte 12 of the line, 0xe9, is not UTF-8'),
]


@pytest.mark.parametrize('line, message', BAD_LINES)
def test_a_bad_line_raises_with_its_file_and_number(tmp_path, line, message):
    line = line if isinstance(line, bytes) else line.encode()
    path = write(tmp_path, b'v#enc#0 fine\n' + line + b'\n')
    with pytest.raises(DataError) as error:
        read_captions(path)
    assert str(error.value).startswith(f'{path}:2: ') and message in str(error.value)


def test_all_problems_can_be_collected(tmp_path):
    lines = [line if isinstance(line, bytes) else line.encode() for line, _ in BAD_LINES]
    problems = []
    file = read_captions(
        write(tmp_path, b'\n'.join([b'v#enc#0 fine', *lines, b'w#enc#0 fine'])), problems=problems
    )
    assert file.visual_ids == ['v', 'w'] and len(problems) == len(BAD_LINES)
    for number, (problem, (_, message)) in enumerate(zip(problems, BAD_LINES), start=2):
        assert f':{number}: ' in problem and message in problem


def test_empty_and_missing_files(tmp_path):
    path = write(tmp_path, '\n')
    with pytest.raises(DataError, match='the file is empty'):
        read_captions(path)
    problems = ['an older problem']
    assert len(read_captions(path, problems)) == 0 and len(problems) == 2
    with pytest.raises(DataError, match='no caption file'):
        read_captions(tmp_path / 'none.txt')


# -------------------------------------------------------------------------------------------- joins


def test_joins_by_visual_id_and_number(tmp_path):
    first = read_captions(write(tmp_path, 'a#enc#0 x\nb#enc#0 x\na#enc#1 x\n', 'first'))
    other = read_captions(write(tmp_path, 'a#zh#1 x\nc#zh#0 x\nb#zh#0 x\na#zh#0 x\n', 'other'))
    rows = join_captions(first, other)
    assert rows.dtype == np.int64 and rows.tolist() == [3, 2, 0]


def test_missing_counterparts_are_counted_and_named():
    first = CaptionFile('first.txt', [(f'v{i}', '0') for i in range(9)], ['x'] * 9)
    other = CaptionFile('other.txt', [('v1', '0'), ('v0', '1')], ['x'] * 2)
    with pytest.raises(DataError) as error:
        join_captions(first, other)
    message = str(error.value)
    assert '8 of the 9 captions of first.txt' in message and 'other.txt' in message
    assert 'v0#0, v2#0, v3#0, v4#0, v5#0 and 3 more' in message
    other = CaptionFile('other.txt', [(f'v{i}.avi', '0') for i in range(9)], ['x'] * 9)
    with pytest.raises(DataError, match=r"did you mean 'v0.avi' for 'v0'\? They differ in ending"):
        join_captions(first, other)


# ----------------------------------------------------------------------------------------- cleaning


@pytest.mark.parametrize(
    'text, cleaned',
    [
        ('Two dogs!', 'Two dogs.'),
        ('  spaces   everywhere  ', 'spaces everywhere.'),
        ('Café-crème', 'Caf cr me.'),
        ('...', ''),
        ('', ''),
        ("a man's 3 dogs", 'a man s 3 dogs.'),
        ('tab\tand\u2028line', 'tab and line.'),
        ('one_two', 'one two.'),
        ('一 A', 'A.'),
    ],
)
def test_clean_english(text, cleaned):
    assert clean_english(text) == cleaned


# ------------------------------------------------------------------------------------ packed tokens


def test_packed_tokens_equal_one_by_one_tokenising(vocabulary):  # noqa: F811
    tokenizer = load_tokenizer(vocabulary, True)
    random = np.random.default_rng(0)
    texts = [' '.join(random.choice(VOCABULARY[5:], size=random.integers(0, 9))) for _ in range(50)]
    packed = PackedTokens(texts, tokenizer, max_tokens=99, batch_size=7)
    expected = [tokenizer(text)['input_ids'] for text in texts]
    assert packed.ids.dtype == np.int32 and len(packed) == 50
    assert (packed.cut, packed.longest_uncut) == (0, max(map(len, expected)))
    rows = random.permutation(50)[:20]
    tokens = packed.padded(rows)
    width = max(len(expected[row]) for row in rows)
    assert tokens.ids.shape == tokens.mask.shape == (20, width)
    assert (str(tokens.ids.dtype), str(tokens.mask.dtype)) == ('torch.int64', 'torch.float32')
    for row, ids, mask in zip(rows, tokens.ids.tolist(), tokens.mask.tolist()):
        padding = width - len(expected[row])
        assert ids == expected[row] + [0] * padding
        assert mask == [1.0] * len(expected[row]) + [0.0] * padding


def test_long_captions_keep_their_final_separator(vocabulary):  # noqa: F811
    tokenizer = load_tokenizer(vocabulary, True)
    packed = PackedTokens(['a man runs', 'a', '', 'a man'], tokenizer, max_tokens=4)
    pieces = [
        tokenizer.convert_ids_to_tokens(packed.ids[i:j].tolist())
        for i, j in zip(packed.offsets, packed.offsets[1:])
    ]
    assert pieces == [
        ['[CLS]', 'a', 'man', '[SEP]'],
        ['[CLS]', 'a', '[SEP]'],
        ['[CLS]', '[SEP]'],
        ['[CLS]', 'a', 'man', '[SEP]'],
    ]
    assert (packed.cut, packed.longest_uncut) == (1, 5)
    assert packed.padded([2]).ids.tolist() == [[2, 3]]
