"""util/check_data.py: everything that is wrong, in one run."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from roots import CONFIGS, WORDS, make_image_root, make_video_root, multi30k, vatex

from basic.command import telling
from basic.pretrained import hub

from transformers import BertConfig, BertModel, CLIPVisionConfig
from util.check_data import Report, check_data, main, print_report
from util.check_visuals import CHUNK, bad_rows

VOCABULARY = '\n'.join(['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', '.', *WORDS]) + '\n'


@pytest.fixture
def vocab(tmp_path):
    path = tmp_path / 'vocab.txt'
    path.write_text(VOCABULARY, encoding='utf-8')
    return f'text.bert={path}'


@pytest.fixture(scope='session')
def bert(tmp_path_factory):
    """Options for a whole BERT, two layers, 40 positions."""
    folder = tmp_path_factory.mktemp('bert')
    BertModel(
        BertConfig(
            vocab_size=16,
            hidden_size=8,
            num_hidden_layers=2,
            num_attention_heads=1,
            intermediate_size=8,
            max_position_embeddings=40,
        )
    ).save_pretrained(folder)
    (folder / 'vocab.txt').write_text(VOCABULARY, encoding='utf-8')
    return [f'text.bert={folder}', 'text.trained_layers=[1]']


@pytest.fixture
def root(tmp_path):
    return make_video_root(tmp_path / 'root')


def test_sound_data_have_no_problems(root, bert, capsys):
    report = check_data(vatex(*bert, 'text.lowercase=true'), root)
    assert report.problems == [] and report.warnings == []
    train = report.table['train']
    assert train['branches'] == 'en / tgt / back' and train['captions'] == '15 / 15 / 15'
    assert (
        train['visual items'] == '5' and train['feature width'] == '4' and train['status'] == 'ok'
    )
    assert train['captions per item (min/mean/max)'] == '3 / 3.0 / 3'
    assert train['frames per video (min/mean/max)'] == '1 / 3.0 / 5'
    assert train['empty captions'] == '0 / 0 / 0' and train['cut to 250 tokens'] == '0 / 0 / 0'
    assert train['unknown tokens, %'] == '0.0 / 0.0 / 0.0'
    assert report.table['val']['captions'] == '4 / 4'
    assert 'WordPiece, 16 tokens, lower-cased' in report.tokenizer
    text = str(report)
    assert text.endswith('no problems found')
    lines = text.splitlines()[: len(train) + 1]
    assert len({len(line) for line in lines}) == 1 and lines[0].split() == ['train', 'val', 'test']
    assert max(map(len, text.splitlines()[: len(train) + 1])) <= 80
    assert 'BertModel, 2 layers, 40 positions, 16 tokens' in report.bert and report.clip == ''
    told = capsys.readouterr().err.split(' ...\n')
    assert told[0] == 'checking the tokenizer' and told.index('checking BERT') < told.index(
        'checking captions of train'
    )


def test_images_count_those_without_captions(tmp_path, vocab):
    root = make_image_root(tmp_path / 'root')
    for kind, width in (('clip', 'images'), ('pooled', '6')):
        report = check_data(multi30k(vocab, f'visual.kind={kind}'), root)
        assert report.problems == []
        assert report.table['val']['captions per item (min/mean/max)'] == '0 / 0.7 / 1'
        assert report.table['val']['feature width'] == width
        assert 'frames per video (min/mean/max)' not in report.table['val']


def test_every_problem_is_reported_not_the_first_alone(root, vocab):
    text, features = root / 'vatex/TextData', root / 'vatex/FeatureData/i3d_kinetics'
    (text / 'vatextrain_google_enc2zh.caption.txt').unlink()
    with open(text / 'vatextrain.caption.txt', 'a') as file:
        file.write('no-space\nno-mark text\n')
    zh = text / 'vatexval_zh.caption.txt'
    zh.write_text('\n'.join(zh.read_text('utf-8').splitlines()[1:]), encoding='utf-8')
    videos = features / 'video2frames.txt'
    videos.write_text(videos.read_text().replace("'x1'", "'y1'"))
    values = np.fromfile(features / 'feature.bin', dtype='<f4')
    values[[0, 5]] = np.nan
    values.tofile(features / 'feature.bin')
    report = check_data(vatex(vocab), root)
    expected = [
        "branch 'tgt') of split 'train'",
        'vatextrain.caption.txt:16: no space',
        "caption.txt:17: no '#'",
        '2 of 23 rows have NaN or infinity: v0_0, v0_1',
        'w0#0',
        '1 of the 2 visual items of',
    ]
    for words in expected:
        assert sum(words in problem for problem in report.problems) == 1, words
    assert len(report.problems) == len(expected)
    assert [column['status'] for column in report.table.values()] == ['PROBLEMS'] * 3
    assert str(report).endswith(f'\n{len(expected)} problems')


def test_a_folder_in_place_of_a_caption_file_is_one_problem(root, vocab):
    path = root / 'vatex/TextData/vatextrain.caption.txt'
    path.unlink()
    path.mkdir()
    report = check_data(vatex(vocab), root)
    assert report.problems == [f'no caption file {path}'] and report.table['val']['status'] == 'ok'


def test_a_problem_of_all_splits_is_reported_once(root, vocab):
    (root / 'vatex/FeatureData/i3d_kinetics/shape.txt').write_text('wrong')
    report = check_data(vatex(vocab), root)
    assert len(report.problems) == 1 and 'shape.txt:1:' in report.problems[0]
    assert [column['status'] for column in report.table.values()] == ['PROBLEMS'] * 3


def test_many_problems_of_a_file_are_counted(root, vocab):
    with open(root / 'vatex/TextData/vatextrain.caption.txt', 'a') as file:
        file.write('bad\n' * 100)
    problems = check_data(vatex(vocab), root, splits=('train',)).problems
    assert len(problems) == 6 and problems[-1].startswith('... and 95 more problems in')


def test_broken_images_are_found_unless_quick(tmp_path, vocab):
    root = make_image_root(tmp_path / 'root')
    folder = root / 'multi30k/flickr30k-images'
    for name in 'ag':
        (folder / f'{name}.jpg').write_bytes(b'nothing')
    (folder / 'b.jpg').unlink()
    problems = check_data(multi30k(vocab), root).problems
    assert len(problems) == 3 and sum('cannot be read' in problem for problem in problems) == 2
    problems = check_data(multi30k(vocab), root, quick=True).problems
    assert len(problems) == 1 and 'b.jpg' in problems[0]


def test_warnings(root, vocab):
    text = root / 'vatex/TextData'
    with open(text / 'vatexval_google_zh2enc.caption.txt', 'a') as file:
        file.write('v0#zh2enc#0 \n')
    with open(text / 'vatexval_zh.caption.txt', 'a', encoding='utf-8') as file:
        file.write('v0#zh#0 人\nv0#zh#1 人\n')
    report = check_data(vatex(vocab), root)
    assert report.problems == [] and len(report.warnings) == 3
    for warning, words in zip(
        report.warnings, ('1 captions of', '1 captions of', "both in 'train' and in 'val': v0")
    ):
        assert words in warning
    assert report.table['val']['empty captions'] == '1 / 0'


def test_missing_items_are_a_warning_where_they_are_left_out(root, vocab):
    for path in (root / 'vatex/TextData').glob('vatextrain*'):
        path.write_text(path.read_text('utf-8').replace('v1#', 'v9#'), encoding='utf-8')
    (problem,) = check_data(vatex(vocab), root).problems
    assert '1 of the 5 visual items' in problem and 'data.missing=skip' in problem
    report = check_data(vatex(vocab, 'data.missing=skip'), root)
    assert report.problems == [] and report.table['train']['visual items'] == '4'
    (warning,) = report.warnings
    assert (
        "'train' is without 3 of its 15 captions: 1 of its 5 visual items are missing: v9"
        in warning
    )


def test_images_that_could_be_two_are_one_problem(tmp_path, vocab):
    folder = make_image_root(tmp_path / 'root') / 'multi30k/flickr30k-images'
    (folder / 'a.png').write_bytes((folder / 'a.jpg').read_bytes())
    (folder / 'a.jpg').rename(folder / 'a.jpeg')
    (problem,) = check_data(multi30k(vocab), tmp_path / 'root').problems
    assert 'but a.jpeg and a.png in the same folder' in problem


def test_the_tokenizer_need_not_be_there(root, monkeypatch):
    def refuse(*args, **kwargs):
        raise ConnectionError('no route')

    monkeypatch.setattr(hub, 'get_hf_file_metadata', refuse)
    report = check_data(vatex('text.bert=somebody/nobody-cached-this'), root)
    assert (
        report.problems == []
        and report.tokenizer.startswith('NOT CHECKED')
        and 'no route' in report.tokenizer
    )
    assert 'longest caption, tokens' not in report.table['train']


def test_a_wrong_tokenizer_is_a_problem(root, tmp_path):
    report = check_data(vatex(f'text.bert={tmp_path / "not there"}'), root)
    assert len(report.problems) == 1 and 'no such folder here' in report.problems[0]


def test_no_collection(tmp_path, vocab):
    report = check_data(vatex(vocab), tmp_path / 'none')
    assert len(report.problems) == 1 and report.table == {} and 'ROOTPATH' in str(report)


def test_bad_rows_looks_into_every_chunk():
    width = CHUNK // 4 // 3
    features = np.zeros((10, width), dtype=np.float32)  # three rows a chunk
    features[[2, 3, 9], [0, width - 1, 5]] = np.nan, np.inf, -np.inf
    assert bad_rows(features).tolist() == [2, 3, 9]
    assert bad_rows(np.zeros((4, 2), np.float32)).tolist() == []


# --------------------------------------------------------------------------------- the command line


def test_exit_codes(root, vocab, capsys):
    command = ['--config', str(CONFIGS / 'vatex.yaml'), '--rootpath', str(root)]
    assert main([*command, vocab]) == 0
    assert main([*command, '--split', 'val', vocab, '--split', 'test', '--quick']) == 0
    assert capsys.readouterr().out.count(' train ') == 1  # the second run left it out
    assert main([*command, vocab, 'data.lang=fr']) == 1
    assert 'vatexval_fr.caption.txt' in capsys.readouterr().out
    capsys.readouterr()
    for wrong in (['data.langg=fr'], ['train.lr'], ['--config', 'none.yaml']):
        assert main([*command, vocab, *wrong]) == 2
        assert capsys.readouterr().err.startswith('check_data: error: ')
    with pytest.raises(SystemExit) as stop:
        main([*command, '--split', 'dev'])
    assert stop.value.code == 2


def test_as_a_program(root, vocab):
    done = subprocess.run(
        [
            sys.executable,
            '-m',
            'util.check_data',
            '--config',
            'configs/vatex.yaml',
            '--rootpath',
            str(root),
            '--split',
            'val',
            vocab,
        ],
        cwd=CONFIGS.parent,
        capture_output=True,
        text=True,
    )
    assert (
        done.returncode == 0
        and 'no problems in what could be checked; NOT checked: BERT' in done.stdout
    )
    lines = [line for line in done.stderr.splitlines() if line.startswith('checking')]
    assert lines == [
        f'checking {what} ...'
        for what in ('the tokenizer', 'BERT', 'the data', 'captions of val', 'features of val')
    ]


def test_captions_that_the_tokenizer_does_not_know(root, vocab, tmp_path):
    (tmp_path / 'other.txt').write_text('[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nxylophone\n')
    text = str(check_data(vatex(f'text.bert={tmp_path / "other.txt"}'), root))
    assert 'are unknown to the tokenizer: does the tokenizer belong to text.bert' in text
    assert 'no problems found' not in text and 'vatextrain.caption.txt' in text


def test_captions_of_which_cleaning_leaves_nothing_are_empty(root, vocab):
    path = root / 'vatex/TextData/vatexval_google_zh2enc.caption.txt'
    lines = path.read_text('utf-8').splitlines()
    lines[0] = lines[0].partition(' ')[0] + ' \u4e00\u53ea\u72d7'
    path.write_text('\n'.join(lines), encoding='utf-8')
    report = check_data(vatex(vocab), root)
    assert report.table['val']['empty captions'] == '1 / 0'
    assert any(
        str(path) in text and 'or are empty after cleaning' in text for text in report.warnings
    )


def test_numbers_too_large_for_float32_are_found():
    features = np.ones((3, 4))
    features[1, 2] = 1e300
    assert bad_rows(features).tolist() == [1]


def test_interrupted(root, vocab, monkeypatch, capsys):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr('util.check_data.check_data', interrupt)
    assert main(['--config', str(CONFIGS / 'vatex.yaml'), '--rootpath', str(root), vocab]) == 130
    assert capsys.readouterr().err == 'check_data: interrupted\n'


# ------------------------------------------------------------------------------------ the encoders,
# before the data


def with_long_captions(root):
    path = root / 'vatex/TextData/vatextrain.caption.txt'
    path.write_text(
        ''.join(f'{line} {"a " * 45}\n' for line in path.read_text('utf-8').splitlines()), 'utf-8'
    )


def test_what_train_would_refuse_of_the_text_is_refused(root, bert, tmp_path):
    with_long_captions(root)
    folder = bert[0].partition('=')[2]
    problems = check_data(vatex(bert[0], 'text.trained_layers=[0,2]'), root).problems
    assert len(problems) == 2
    assert "'text.trained_layers' names layer 2, but this BERT has 2 (0 to 1)" in problems[0]
    limit = 'tokens, but this BERT has only 40 positions: set text.positions=40 or less'
    assert limit in problems[1]
    assert check_data(vatex(*bert, 'text.positions=40'), root).problems == []
    assert (
        len(
            check_data(
                vatex(
                    bert[0], 'text.trained_layers=[2]', 'text.train_all=true', 'text.positions=40'
                ),
                root,
            ).problems
        )
        == 0
    )
    (tmp_path / 'vocab.txt').write_text(VOCABULARY + 'more\n', encoding='utf-8')
    (tmp_path / 'config.json').write_text((Path(folder) / 'config.json').read_text())
    options = [f'text.bert={tmp_path}', 'text.trained_layers=[1]', 'text.positions=40']
    report = check_data(vatex(*options, 'text.pretrained=false'), root)
    assert report.problems == [
        "the tokenizer has 17 tokens, but the model's BERT only 16: use the tokenizer "
        'of this BERT (text.bert)'
    ]
    assert any('holds no weights' in text for text in check_data(vatex(*options), root).problems)


def test_one_caption_is_too_few(tmp_path, bert):
    root = make_image_root(tmp_path / 'root', images=False)
    for path in (root / 'multi30k/TextData').glob('*train*'):
        path.write_text(path.read_text('utf-8').splitlines()[0] + '\n', encoding='utf-8')
    report = check_data(multi30k('visual.kind=pooled', *bert), root)
    assert (
        len(report.problems) == 1
        and 'has one caption; training needs at least two' in report.problems[0]
    )


def test_the_size_of_images_is_that_of_clip(tmp_path, bert, monkeypatch):
    root = make_image_root(tmp_path / 'root')
    clip = tmp_path / 'clip'
    CLIPVisionConfig(image_size=16, patch_size=8).save_pretrained(clip)
    options = [*bert, f'visual.clip={clip}', 'visual.clip_pretrained=false']
    report = check_data(multi30k(*options), root)
    assert report.problems == [] and report.clip == f'{clip}: images of 16 x 16'
    assert str(report).endswith('no problems found')
    report = check_data(multi30k(*options, 'visual.clip_pretrained=true'), root)
    assert len(report.problems) == 1 and "'visual.clip': cannot load" in report.problems[0]
    assert f'CLIP: not usable, see the problems: {clip}' in str(report)


def test_encoders_that_cannot_be_had_are_said_before_the_data_are_read(root, monkeypatch, capsys):
    def refuse(*args, **kwargs):
        raise ConnectionError('no route')

    monkeypatch.setattr(hub, 'get_hf_file_metadata', refuse)
    report = check_data(vatex('text.bert=somebody/nobody-cached-this'), root)
    told = capsys.readouterr().err
    assert told.index('tokenizer: NOT CHECKED') < told.index('checking captions of train')
    assert 'no problems found' not in str(report)
    assert str(report).endswith(
        'no problems in what could be checked; NOT checked: tokenizer, BERT'
    )


def test_what_was_left_out_is_said(root, bert):
    text = str(check_data(vatex(*bert), root, quick=True))
    assert text.endswith('no problems found (features and images were not read)')


# ----------------------------------------------------------------------------------------------- on
# the screen


def test_a_table_too_wide_is_one_per_split():
    report = Report(
        table={
            split: {'captions': ' / '.join(f'{n},000,000' for n in range(3)), 'status': 'ok'}
            for split in ('train', 'val', 'test')
        }
    )
    assert max(map(len, report.lines(80))) <= 80 and len(report.lines(80)) == 10
    assert len(report.lines(120)) == 4


def test_a_terminal_is_shown_that_it_goes_on(monkeypatch, capsys):
    monkeypatch.setattr('sys.stderr.isatty', lambda: True, raising=False)
    with telling('checking much'):
        time.sleep(1.2)
    assert capsys.readouterr().err.split('\r') == [
        '',
        'checking much ...',
        'checking much ... 1 s',
        'checking much ... 1 s\n',
    ]
    with pytest.raises(KeyError), telling('checking nothing'):
        raise KeyError
    assert capsys.readouterr().err.endswith('\rchecking nothing ...\n')


def test_long_messages_are_indented_in_a_terminal_only(monkeypatch, capsys):
    report = Report(
        warnings=[f'{"x" * 30}/{"y" * 60}.txt: ' + 'words and ' * 30], problems=['a\n  b']
    )
    print_report(report)
    assert len(capsys.readouterr().out.splitlines()) == 4
    monkeypatch.setattr('shutil.get_terminal_size', lambda *_, **__: os.terminal_size((80, 24)))
    monkeypatch.setattr('sys.stdout.isatty', lambda: True, raising=False)
    print_report(report)
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith('    ') for line in lines) > 3
    assert lines[0].startswith('warning: xxx')
    assert all(len(line) <= 80 for line in lines if '/' not in line)
