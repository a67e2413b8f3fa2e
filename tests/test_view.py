"""What people see: lines that fit the terminal, one result, TensorBoard's pages, tables on a
terminal."""

import fcntl
import json
import os
import pty
import re
import signal
import struct
import sys
import termios
import time
from io import BytesIO
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from test_table import make_ranks, make_run

import train
from basic.arguments import evaluation_arguments, without_folder
from basic.board import add_queries, forget_later
from basic.command import command
from basic.config import load_config
from basic.examples import Example, Found, search_examples
from basic.logger import (
    RunLog,
    _Line,
    close_progress,
    counted,
    epoch_progress,
    progress,
    summary_line,
)
from basic.pretrained import hub
from basic.report import result_line, result_of, table
from evaluation import Embeddings, evaluate
from util.make_demo.picture import draw_demo
from util.table import table as tables

MULTI30K = os.path.join(os.path.dirname(train.__file__), 'configs', 'multi30k.yaml')


# ------------------------------------------------------------------------------ lines on a terminal


class Terminal:
    """A terminal of some columns in the place of stderr; `screen` is what is on its line after all
    that was written."""

    def __init__(self, monkeypatch, columns):
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack('HHHH', 24, columns, 0, 0))
        self.file = os.fdopen(slave, 'w')
        monkeypatch.setattr(sys, 'stderr', self.file)

    def pieces(self):
        """What was written from one carriage return to the next."""
        self.file.flush()
        os.set_blocking(self.master, False)
        text = b''
        while True:
            try:
                text += os.read(self.master, 65536)
            except BlockingIOError:
                return text.decode().split('\r')


class Steps(list):
    dataset_size = 120_000


@pytest.mark.parametrize('columns', [60, 80, 100])
def test_the_progress_line_fits_and_leaves_nothing(monkeypatch, columns):
    terminal = Terminal(monkeypatch, columns)
    bar = epoch_progress(Steps(range(9400)), epoch=12, epochs=30, last=8000.0)
    steps = iter(bar)  # as an exception leaves them: begun, and not at the end
    next(steps)
    bar.n, bar.loss, bar.start_t = 200, 12345.678, bar.start_t - 100
    bar.refresh()
    close_progress()
    pieces = terminal.pieces()
    assert max(map(len, pieces)) < columns and '\n' not in ''.join(pieces)
    line = next(piece for piece in pieces if 'step 200/9400' in piece)
    assert line.startswith('epoch 12/30  step 200/9400') and re.search(
        r'at most \d+:\d\d:\d\d left *$', line
    )
    assert ('samples/s' in line) == (columns >= 80) and (
        columns < 80 or '  loss 12346  25.5 samples/s  ' in line
    )
    # the line is blank, the cursor at its beginning
    assert pieces[-1] == '' and pieces[-2].strip() == ''


def test_the_time_left_is_that_of_the_run():
    shown = []
    bar = epoch_progress(Steps(range(10)), epoch=2, epochs=5, last=100.0, shown=False)
    for done, seconds in ((5, 40.0), (10, 80.0)):
        shown.append(bar.parts(done, 10, seconds)[-1])
    # the epoch will take its 80 s and the others 100 s each, with a validation of 20 s
    assert shown == ['at most 6:00 left', 'at most 5:20 left']
    first = epoch_progress(Steps(range(10)), epoch=1, epochs=3, shown=False)
    assert first.parts(5, 10, 30.0)[-1] == 'at most 2:30 left' and len(first.parts(0, 10, 0.0)) == 2


def test_encoding_shows_where_it_is(monkeypatch):
    terminal = Terminal(monkeypatch, 80)
    bar = progress(range(7), 'encoding val: captions, batch')
    batches = iter(bar)
    next(batches)
    bar.n = 3
    bar.refresh()
    close_progress()
    assert any(
        piece.startswith('encoding val: captions, batch 3/7  ') for piece in terminal.pieces()
    )


def test_scoring_shows_where_it_is(monkeypatch):
    terminal = Terminal(monkeypatch, 80)
    report = counted('scoring test: block')
    for done in range(1, 9):
        report(done, 8)
        for line in _Line.shown:
            line.refresh()
    pieces = terminal.pieces()
    assert (
        any(piece.startswith('scoring test: block 5/8  ') for piece in pieces)
        and pieces[-2].strip() == ''
    )


def record(**changes):
    recalls = {'R@1': 100.0, 'R@5': 100.0, 'R@10': 99.9}
    return {
        'epoch': 123,
        'train': {'total': 98765.4},
        'val': {'t2v': recalls, 'SumR': 599.9},
        'improved': True,
        'best_epoch': 123,
        'speed': {'train_seconds': 5000.0, 'val_seconds': 300.0, 'samples_per_s': 12.0},
        **changes,
    }


def test_an_epoch_is_one_line_of_80_characters():
    line = summary_line(record())
    # three recalls of 100 after 100 epochs
    assert len(line) <= 84 and line.endswith('88 min  best')
    usual = summary_line(
        record(
            epoch=12,
            train={'total': 123.456},
            val={'t2v': {'R@1': 45.21, 'R@5': 70.1, 'R@10': 80.3}, 'SumR': 390.14},
        )
    )
    assert (
        usual == 'epoch  12  loss 123.5  val t2v R@1/5/10 45.2 70.1 80.3  SumR 390.1  88 min  best'
    )
    assert len(usual) <= 80 and not summary_line(record(improved=False)).endswith('best')


# --------------------------------------------------------------------------------------- one result


def big_report(**changes):
    way = {
        'R@1': 100.0,
        'R@5': 100.0,
        'R@10': 100.0,
        'MedR': 12345.5,
        'MeanR': 12345.6,
        'mAP': 0.57567,
    }
    rows = [
        {'weight': weight, 't2v': way, 'v2t': {**way, 'R@1': 50.25}, 'SumR': 600.0}
        for weight in (1.0, 0.35, 0.2)
    ]
    return {
        'collection': 'multi30k',
        'lang': 'de',
        'split': 'test',
        'captions': 123_456,
        'visuals': 123_456,
        'epoch': 99,
        'ties': 'pessimistic',
        'val_weight': 0.2,
        'chosen_weight': 0.35,
        'rows': rows,
        'result': result_of(rows, 0.2),
        **changes,
    }


def test_the_table_fits_80_columns_and_marks_the_result():
    lines = table(big_report()).splitlines()
    assert max(map(len, lines)) < 80
    marked = {line.split()[0]: line.partition('  <- ')[2] for line in lines if '<-' in line}
    assert marked == {'0.35': 'chosen', '0.2': 'result'}
    # mAP in per cent
    assert [line.split()[6] for line in lines if line.startswith('0.2')] == ['57.57', '57.57']
    assert (
        'best SumR on validation' in ' '.join(lines)
        and max(map(len, table(big_report(chosen_weight=0.2)).splitlines())) < 80
    )
    assert '"chosen"' not in table(big_report(chosen_weight=None))
    left_out = big_report(left_out={'captions': 23_456, 'of_captions': 123_456}, val_weight=0.5)
    assert max(
        map(len, table(left_out).splitlines())
    ) < 80 and 'without the queries that w = 0.5' in table(left_out)


def test_the_result_is_that_of_the_papers_weight():
    assert result_line(big_report()) == 'Result: SumR 600.0 (t2v R@1 100.0, v2t 50.2) at w = 0.2'
    config = load_config(overrides=['data.collection=x', 'eval.weights=[0]', 'train.val_weight=1'])
    generator = torch.Generator().manual_seed(0)
    embeddings = Embeddings(*(torch.randn(n, 4, generator=generator) for n in (2, 3, 3)))
    eval_set = SimpleNamespace(split='test', visual_of=np.array([0, 1, 1]))
    report = evaluate(embeddings, eval_set, config)
    assert report['result']['weight'] == 1.0 and report['units']['mAP'] == 'from 0 to 1'
    # all that there is
    assert evaluate(embeddings, eval_set, config, weights=[0.0])['result']['weight'] == 0.0


@pytest.mark.parametrize(
    'words, expected',
    [
        (['--save-embeddings', 'eval.ties=mean'], ['--save-embeddings=', 'eval.ties=mean']),
        (['--save-embeddings', 'folder', 'a=b'], ['--save-embeddings', 'folder', 'a=b']),
        (['--save-embeddings=a=b', 'c=d'], ['--save-embeddings=a=b', 'c=d']),
        (['--save-embeddings'], ['--save-embeddings']),
    ],
)
def test_a_folder_for_embeddings_is_no_option(words, expected):
    assert without_folder(words) == expected
    args = evaluation_arguments(['--checkpoint', '.', *words])
    assert (
        args.save_embeddings
        == {'folder': 'folder', '': '', 'a=b': 'a=b'}[
            (
                expected[0].partition('=')[2] or (expected[1:] or [''])[0]
                if '=' not in expected[0]
                else expected[0].partition('=')[2]
            )
        ]
    )
    assert args.overrides == [word for word in words[1:] if '=' in word]


# -------------------------------------------------------------------------------------- a whole run


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """(run folder, what a training of two epochs with its test printed on stdout and stderr)."""
    folder = tmp_path_factory.mktemp('run')
    root, bert = tiny.make_collection(folder / 'root'), tiny.make_bert(folder / 'bert')
    argv = [
        '--config',
        MULTI30K,
        '--rootpath',
        str(root),
        '--run-dir',
        str(folder / 'run'),
        *tiny.options(bert),
        'train.patience=50',
        'train.epochs=2',
    ]
    printed = {}
    with pytest.MonkeyPatch.context() as patch:
        for name in ('stdout', 'stderr'):
            printed[name] = open(folder / name, 'w+')
            patch.setattr(sys, name, printed[name])
        status = train.main(argv)
    texts = []
    for file in printed.values():
        file.seek(0)
        texts.append(file.read())
        file.close()
    assert status == 0, texts[1]
    return folder / 'run', *texts, argv


def test_all_lines_of_a_run_fit_80_columns(run):
    folder, out, err, _ = run
    # paths are as they are
    lines = [line for line in (out + err).splitlines() if str(folder.parent) not in line]
    assert len(lines) > 20 and max(map(len, lines)) <= 80
    assert 'Loading weights' not in err and '\r' not in err


def test_the_last_line_is_the_result_of_metrics_json(run):
    folder, out, _, _ = run
    report = json.loads((folder / 'metrics.json').read_text())
    row = next(row for row in report['rows'] if row['weight'] == 0.2)
    assert out.splitlines()[-1] == result_line(report)
    assert report['result'] == {
        'weight': 0.2,
        'SumR': row['SumR'],
        't2v R@1': row['t2v']['R@1'],
        'v2t R@1': row['v2t']['R@1'],
    }
    from util.ablate import result

    assert result(SimpleNamespace(folder=folder)).startswith(f'SumR {row["SumR"]:.1f} (w = 0.2, ')


def board_of(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(folder), size_guidance={'scalars': 0, 'tensors': 0, 'images': 0})
    board.Reload()
    return board


def text_of(board, tag):
    return [
        event.tensor_proto.string_val[0].decode() for event in board.Tensors(f'{tag}/text_summary')
    ]


def test_tensorboard_has_steps_epochs_config_test_and_queries(run):
    folder, out, _, _ = run
    board = board_of(folder / 'tb')
    tags = set(board.Tags()['scalars'])
    assert {
        'step/loss',
        'step/lr',
        'step/grad_norm',
        'step/triplet_en',
        'step/kd_sim',
        'train/total',
        'val/SumR',
        'test/SumR',
        'test/t2v/R@1',
    } <= tags
    assert not tags & {'val/weight', 'best_epoch', 'epoch', 'test/weight'}
    # three an epoch
    assert [event.step for event in board.Scalars('step/loss')] == list(range(1, 7))
    assert [event.step for event in board.Scalars('val/SumR')] == [1, 2]
    log = [json.loads(line) for line in (folder / 'log.jsonl').read_text().splitlines()]
    mean = np.mean([event.value for event in board.Scalars('step/loss')][:3])
    assert mean == pytest.approx(log[0]['train']['total'], rel=1e-5)
    assert board.Scalars('val/t2v/mAP')[0].value == pytest.approx(
        100 * log[0]['val']['t2v']['mAP'], rel=1e-5
    )
    report = json.loads((folder / 'metrics.json').read_text())
    assert board.Scalars('test/SumR')[0].value == pytest.approx(report['result']['SumR'], rel=1e-5)
    assert (
        'batch_size: 5' in text_of(board, 'config')[0] and '<- result' in text_of(board, 'test')[0]
    )
    assert '**right**' in text_of(board, 'queries')[0] and 'val0#0' in text_of(board, 'queries')[0]


def test_a_continuation_leaves_no_point_twice(run, tmp_path):
    steps = {'train/total': 1.0, 'train/grad_norm': 2.0}
    val = {'t2v': {'R@1': 1.0, 'R@5': 1.0, 'R@10': 1.0}, 'SumR': 3.0, 'weight': 0.2}
    (tmp_path / 'config.yaml').write_text('name: x\n')
    with RunLog(tmp_path, steps=4) as log:
        for epoch in (1, 2):
            for step in range(1, 5):
                log.step(steps, epoch=epoch, step=step, lr=0.1)
            log.add(record(epoch=epoch, val=val))
        log.step(steps, epoch=3, step=1, lr=0.1)
    with RunLog(tmp_path, epoch=1, steps=4) as log:
        for step in range(1, 5):
            log.step(steps, epoch=2, step=step, lr=0.2)
        log.add(record(epoch=2, val=val))
    board = board_of(tmp_path / 'tb')
    assert [(event.step, round(event.value, 3)) for event in board.Scalars('step/lr')] == [
        *((step, 0.1) for step in range(1, 5)),
        *((step, 0.2) for step in range(5, 9)),
    ]
    assert [event.step for event in board.Scalars('val/SumR')] == [1, 2]


def test_a_long_epoch_has_some_200_points(tmp_path):
    with RunLog(tmp_path, steps=2000) as log:
        for step in range(1, 2001):
            log.step({'train/total': 1.0}, epoch=2, step=step, lr=0.1)
    steps = [event.step for event in board_of(tmp_path / 'tb').Scalars('step/loss')]
    assert len(steps) == 200 and steps[-1] == 4000


def test_no_tensorboard_no_harm(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, 'torch.utils.tensorboard', None)
    with RunLog(tmp_path, steps=2) as log:
        log.step({'train/total': 1.0}, epoch=1, step=1, lr=0.1)
        log.add(record(epoch=1))
    assert log.board is None and len((tmp_path / 'log.jsonl').read_text().splitlines()) == 1
    assert capsys.readouterr().out.startswith('note: TensorBoard logging stopped (')


def test_a_view_that_fails_is_left_out(tmp_path, capsys):
    with RunLog(tmp_path, steps=2) as log:
        log.show(lambda board: 1 / 0)
        log.add(record(epoch=1))
    assert log.board is None and 'ZeroDivisionError' in capsys.readouterr().out


def test_forgetting_leaves_what_cannot_be_read_alone(tmp_path):
    (tmp_path / 'events.out.tfevents.1.x').write_bytes(b'')
    forget_later(tmp_path, 1, 4)
    assert (tmp_path / 'events.out.tfevents.1.x').read_bytes() == b''


# ------------------------------------------------------------------------------------------- what a
# few queries find


def test_examples_are_the_ranks_of_the_test():
    generator = torch.Generator().manual_seed(3)
    embeddings = Embeddings(*(torch.randn(n, 4, generator=generator) for n in (7, 9, 9)))
    eval_set = SimpleNamespace(
        split='val',
        visual_of=np.array([0, 0, 1, 2, 3, 4, 5, 6, 6]),
        caption_ids=[f'c{i}' for i in range(9)],
        visual_ids=list('abcdefg'),
        texts={'en': [f'en {i}' for i in range(9)], 'tgt': [f'tgt {i}' for i in range(9)]},
    )
    config = load_config(overrides=['data.collection=x'])
    examples = search_examples(embeddings, eval_set, config, queries=9, top=3)
    ranks = evaluate(embeddings, eval_set, config, weights=[0.2], with_ranks=True)['ranks']
    assert [example.rank for example in examples] == ranks['t2v'][0].tolist()
    for number, example in enumerate(examples):
        assert (
            example.texts == [f'tgt {number}', f'en {number}']
            and example.caption_id == f'c{number}'
        )
        assert [found.rank for found in example.found if found.right] == [example.rank]
        assert len(example.found) == (3 if example.rank <= 3 else 4)
        scores = [found.score for found in example.found]
        assert scores == sorted(scores, reverse=True)


def test_a_signal_in_the_middle_of_tensorboards_queue(tmp_path, capsys):
    """Its thread is not woken then, and to close the board took two minutes."""

    @command('tool')
    def main(argv=None):
        with RunLog(tmp_path, steps=3) as log:
            log.step({'train/total': 1.0}, epoch=1, step=1, lr=0.1)
            queue = log.board.file_writer.event_writer._async_writer._byte_queue
            queue.join()
            notify = queue.not_empty.notify

            def interrupted(n=1):
                queue.not_empty.notify = notify
                os.kill(os.getpid(), signal.SIGUSR1)
                notify(n)

            time.sleep(0.1)  # the thread waits again
            queue.not_empty.notify = interrupted
            log.step({'train/total': 2.0}, epoch=1, step=2, lr=0.1)
            raise AssertionError('not interrupted')

    started = time.monotonic()
    assert main([]) == 128 + signal.SIGUSR1
    assert time.monotonic() - started < 60
    assert capsys.readouterr().err == 'tool: stopped by SIGUSR1\n'
    events = board_of(tmp_path / 'tb').Scalars('step/loss')
    assert [event.value for event in events] == [1, 2]


class Pictures:
    """In place of Media: plain colours; one that cannot be read."""

    def thumbnail(self, name, side):
        return None if name == 'broken' else Image.new('RGB', (side, side // 2), name)


def test_pictures_of_a_search(tmp_path):
    found = [
        Found(rank, 1 / rank, name, name == 'blue', 'a | caption')
        for rank, name in enumerate(('red', 'broken', 'blue'), 1)
    ]
    example = Example('x#0', ['ein grünes Häuschen', 'a green house'], 3, found)
    with RunLog(tmp_path) as log:
        log.show(add_queries, [example], 1, Pictures())
        assert log.board
    board = board_of(tmp_path / 'tb')
    image = Image.open(BytesIO(board.Images('queries/1')[0].encoded_image_string))
    pixels = np.asarray(image.convert('RGB'))
    assert (
        image.size[0] == 3 * 170
        and (pixels == (255, 0, 0)).all(-1).any()
        and (pixels == (0, 0, 255)).all(-1).any()
    )
    green = (pixels == (0x1A, 0x96, 0x41)).all(-1)
    assert green[:, 340:].any() and not green[:, :340].any()  # the frame of the right one alone
    assert '| 3 | 0.333 | blue **right** | a \\| caption |' in text_of(board, 'queries')[0]


def test_picture_of_the_demo():
    """Training scenes above with their captions, below a search whose right item alone is
    framed."""
    found = [Found(1, 0.9, 'blue', True, ''), Found(2, 0.5, 'red', False, '')]
    scenes = [('lime', 'a green scene', 'eine grüne Szene'), ('red', 'a red one', 'eine rote')]
    sheet = draw_demo(
        scenes, Pictures(), Example('x#0', ['ein Haus', 'a house'], 1, found), Pictures()
    )
    pixels = np.asarray(sheet)
    lime, blue = ((pixels == colour).all(-1) for colour in ((0, 255, 0), (0, 0, 255)))
    assert sheet.width == 5 * 170 and np.argwhere(lime)[:, 0].max() < np.argwhere(blue)[:, 0].min()
    frame = (pixels == (0x1A, 0x96, 0x41)).all(-1)
    assert frame[:, :170].any() and not frame[:, 170:].any()


# --------------------------------------------------------------------------- transformers' own bars


def test_transformers_bars_are_hidden_on_a_terminal_too(monkeypatch, bert_folder):
    from transformers import AutoModel
    from transformers.utils import logging

    terminal = Terminal(monkeypatch, 80)
    logging.enable_progress_bar()
    hub.load_pretrained(AutoModel, str(bert_folder))
    assert (
        'Loading weights' not in ''.join(terminal.pieces())
        and not logging.is_progress_bar_enabled()
    )
    from huggingface_hub.utils import are_progress_bars_disabled

    assert not are_progress_bars_disabled()  # a download takes minutes


# ----------------------------------------------------------------------------- tables on a terminal


@pytest.fixture
def runs(tmp_path):
    for number, name in enumerate(
        ('multi30k_no_back_translation', 'multi30k_full', f'multi30k_{"x" * 60}')
    ):
        for seed in (1, 2):
            make_run(
                tmp_path / name / f'seed_{seed}', name, seed, make_ranks(seed + 10 * number, 20)
            )
    return tmp_path


def on_terminal(monkeypatch, capsys, columns, *argv):
    monkeypatch.setenv('COLUMNS', str(columns))
    monkeypatch.setattr(sys.stdout, 'isatty', lambda: True, raising=False)
    assert tables.main([str(word) for word in argv]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize('columns', [60, 80, 100])
@pytest.mark.parametrize(
    'more', [[], ['--all-columns'], ['--base', 'multi30k_full', '--resamples', '50']]
)
def test_a_table_on_a_terminal_fits(runs, monkeypatch, capsys, columns, more):
    text = on_terminal(monkeypatch, capsys, columns, runs, *more)
    assert max(map(len, text.splitlines())) <= columns and '| ' not in text
    zero = 'w = 0' in ' '.join(text.split())
    assert ('w=0' in text and zero) == (more == ['--all-columns']) == zero
    assert ('MedR' in text) == (more == ['--all-columns']) and ('Δ SumR' in text) == bool(more[1:])
    heads = re.findall('(?:t2v|v2t) R@1(?= |\n)|SumR', text.partition('\n\nMean ±')[0])
    assert len(heads) >= 3 and '..' + 30 * 'x' in text


def test_the_figures_on_a_terminal_are_those_of_the_file(runs, monkeypatch, capsys):
    text = on_terminal(monkeypatch, capsys, 300, runs)
    rows = {
        line.split()[0]: line.split()[1:]
        for line in text.splitlines()
        if line.startswith('multi30k_')
    }
    assert tables.main([str(runs), '--metric', 't2v/R@1,SumR', '--format', 'markdown']) == 0
    (line,) = [
        line for line in capsys.readouterr().out.splitlines() if line.startswith('| multi30k_full ')
    ]
    cells = [cell.strip().replace(' ± ', '±') for cell in line.strip('|').split('|')]
    assert (
        rows['multi30k_full'][:3] == ['2', '0.2', cells[3]]
        and rows['multi30k_full'][-1] == cells[4]
    )
    assert on_terminal(monkeypatch, capsys, 80, runs, '--format', 'markdown').startswith(
        '|  | seeds | w |'
    )


def test_which_w_a_table_takes(tmp_path, capsys):
    rows = make_run(tmp_path / '1', chosen=0.5)
    found = {}
    for weight in ('val', 'chosen'):
        assert (
            tables.main([str(tmp_path), '--metric', 'SumR', '--format', 'csv', '--weight', weight])
            == 0
        )
        found[weight] = capsys.readouterr().out.splitlines()[1].split(',')
    assert found['val'][2] == '0.2' and float(found['val'][3]) == pytest.approx(rows[1]['SumR'])
    assert found['chosen'][2] == '0.5' and float(found['chosen'][3]) == pytest.approx(
        rows[0]['SumR']
    )


def test_nothing_is_said_twice_where_w_is_0(tmp_path, capsys):
    make_run(tmp_path / '1', 'a', chosen=0.0)
    assert tables.main([str(tmp_path / '1'), '--metric', 'SumR', '--weight', 'chosen']) == 0
    assert capsys.readouterr().out.splitlines()[0] == '|  | seeds | w | SumR |'
    make_run(tmp_path / '2', 'b', chosen=0.5)
    assert tables.main([str(tmp_path), '--metric', 'SumR', '--weight', 'chosen']) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == '|  | seeds | w | SumR | w = 0: SumR |'
    assert (
        lines[2].startswith('| a | 1 | 0 | ')
        and lines[2].endswith(' | – |')
        and not lines[3].endswith(' | – |')
    )
