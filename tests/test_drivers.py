"""The drivers: usage texts, wrong arguments, and the commands that they run, recorded by a stand-in
for Python."""

import os
import shlex
from pathlib import Path

import pytest

from drivers import REPOSITORY, Recorder

ALL = ['do_all_vatex.sh', 'do_all_msrvttcn.sh', 'do_all_multi30k.sh', 'do_all_mscoco.sh']
TESTS = ['do_test_vatex.sh', 'do_test_msrvttcn.sh', 'do_test_multi30k.sh', 'do_test_mscoco.sh']
ARGUMENTS = {
    'do_all_vatex.sh': ['ROOT', 'cpu'],
    'do_all_msrvttcn.sh': ['ROOT', 'cpu'],
    'do_all_multi30k.sh': ['ROOT', '1', 'cpu'],
    'do_all_mscoco.sh': ['ROOT', 'cpu'],
    'do_test_vatex.sh': ['ROOT', 'ROOT', 'cpu'],
    'do_test_msrvttcn.sh': ['ROOT', 'ROOT', 'cpu'],
    'do_test_multi30k.sh': ['ROOT', 'ROOT', 'None', 'cpu'],
    'do_test_mscoco.sh': ['ROOT', 'ROOT', 'cpu'],
}


class Driver:
    """Runs a driver from a folder with a space in its name, below which ROOT lies."""

    def __init__(self, folder):
        self.here = folder / 'some where'
        self.root = self.here / 'my data'
        self.root.mkdir(parents=True)
        self.recorder = Recorder(folder)

    def __call__(self, name, *arguments, fail=''):
        """(completed process, recorded commands); ROOT among the arguments is the folder, relative
        to here."""
        words = [word.replace('ROOT', 'my data') for word in arguments]
        return self.recorder.run([str(REPOSITORY / name), *words], self.here, fail)


@pytest.fixture
def driver(tmp_path):
    return Driver(tmp_path)


@pytest.mark.parametrize('name', ALL + TESTS)
@pytest.mark.parametrize('arguments', [['--help'], ['-h'], ['a', '--help', 'b']])
def test_help(driver, name, arguments):
    done, commands = driver(name, *arguments)
    assert done.returncode == 0 and not commands and not done.stderr
    usage, *rest = done.stdout.replace('\n       [', ' [').splitlines()
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert usage.startswith(f'Usage: ./{name} ROOTPATH')
    explained = {line.split()[0] for line in rest if line.startswith('  ') and line.strip()}
    for word in usage.split()[2:]:
        if word.strip('[]').isupper():
            assert word.strip('[]') in explained, word


@pytest.mark.parametrize('name', ALL + TESTS)
def test_missing_arguments(driver, name):
    for given in ([], ARGUMENTS[name][:-1]):
        done, commands = driver(name, *given)
        assert done.returncode == 2 and not commands and not done.stdout
        needed = len(ARGUMENTS[name])
        assert (
            f'expected at least {needed} arguments, found {len(given)}' in done.stderr
            and 'Usage: ' in done.stderr
        )


@pytest.mark.parametrize('name', ALL + TESTS)
def test_wrong_arguments(driver, name):
    right = ARGUMENTS[name]
    wrong = [
        (['absent', *right[1:]], "no folder 'absent'"),
        ([*right[:-1], 'gpu0'], "found 'gpu0'"),
        ([*right, 'xx', 'yy'], 'is neither key=value nor an option'),
        ([*right, '--seed'], '--seed needs a value'),
    ]
    if name in TESTS:
        wrong.append(
            ([right[0], 'absent', *right[2:]], "MODELDIR: no such folder or file 'absent'")
        )
    for arguments, message in wrong:
        done, commands = driver(name, *arguments)
        assert done.returncode == 2 and not commands, arguments
        assert message in done.stderr and 'Usage: ' in done.stderr, arguments


def test_wrong_task_and_image_path(driver):
    done, commands = driver('do_all_multi30k.sh', 'ROOT', '3', 'cpu')
    assert (
        done.returncode == 2 and "TASK: expected 1 or 2; found '3'" in done.stderr and not commands
    )
    done, commands = driver('do_test_multi30k.sh', 'ROOT', 'ROOT', 'absent', 'cpu')
    assert done.returncode == 2 and "IMAGE_PATH: no folder 'absent'" in done.stderr and not commands


def expected(config, gpu, overrides, options=()):
    return [
        [
            'util.do_all',
            '--config',
            str(REPOSITORY / 'configs' / config),
            '--rootpath',
            'my data',
            '--device',
            gpu,
            *options,
            *overrides,
        ]
    ]


@pytest.mark.parametrize(
    'name, arguments, config, gpu, overrides',
    [
        ('do_all_vatex.sh', ['0'], 'vatex.yaml', '0', []),
        (
            'do_all_vatex.sh',
            ['cpu', 'train.lr=1', 'text.bert=a b'],
            'vatex.yaml',
            'cpu',
            ['train.lr=1', 'text.bert=a b'],
        ),
        ('do_all_msrvttcn.sh', ['0,1'], 'msrvttcn.yaml', '0,1', []),
        ('do_all_vatex.sh', ['cpu:2'], 'vatex.yaml', 'cpu:2', []),
        ('do_all_mscoco.sh', ['0'], 'mscoco.yaml', '0', ['data.lang=zh']),
        (
            'do_all_mscoco.sh',
            ['0', 'ja', 'train.lr=1'],
            'mscoco.yaml',
            '0',
            ['data.lang=ja', 'train.lr=1'],
        ),
        ('do_all_multi30k.sh', ['1', '0'], 'multi30k.yaml', '0', ['data.task=1', 'data.lang=de']),
        (
            'do_all_multi30k.sh',
            ['1', '0', 'train.lr=1'],
            'multi30k.yaml',
            '0',
            ['data.task=1', 'data.lang=de', 'train.lr=1'],
        ),
        (
            'do_all_multi30k.sh',
            ['2', '0', 'cs', 'name=own'],
            'multi30k.yaml',
            '0',
            ['name=multi30k_task2', 'data.task=2', 'data.lang=cs', 'name=own'],
        ),
    ],
)
def test_do_all(driver, name, arguments, config, gpu, overrides):
    done, commands = driver(name, 'ROOT', *arguments)
    assert done.returncode == 0, done.stderr
    assert commands == expected(config, gpu, overrides)


@pytest.mark.parametrize(
    'name, arguments, config, overrides',
    [
        ('do_all_vatex.sh', ['cpu'], 'vatex.yaml', []),
        (
            'do_all_multi30k.sh',
            ['2', 'cpu'],
            'multi30k.yaml',
            ['name=multi30k_task2_{}', 'data.task=2', 'data.lang=de'],
        ),
    ],
)
@pytest.mark.parametrize(
    'words, top',
    [
        (['--ablation', 'no_adversary'], 'ablation/no_adversary.yaml'),
        (['--recommended'], 'recommended.yaml'),
    ],
)
def test_an_ablation_or_the_recommended_options_are_one_more_config(
    driver, name, arguments, config, overrides, words, top
):
    _, commands = driver(name, 'ROOT', *arguments, *words)
    files = [str(REPOSITORY / 'configs' / file) for file in (config, top)]
    overrides = [word.format(Path(top).stem) for word in overrides]
    common = ['--config', files[0], '--config', files[1], '--rootpath', 'my data']
    assert commands == [['util.do_all', *common, '--device', 'cpu', *overrides]]


def test_a_test_takes_the_config_of_its_run(driver, tmp_path):
    for words in (['--recommended'], ['--ablation', 'infonce']):
        done, commands = driver('do_test_vatex.sh', 'ROOT', str(tmp_path), 'cpu', *words)
        assert done.returncode == 2 and not commands
        assert 'a test takes the config of its run' in done.stderr


def test_an_unknown_ablation_names_those_that_there_are(driver):
    for words in (['--ablation', 'absent'], ['--ablation']):
        done, commands = driver('do_all_vatex.sh', 'ROOT', 'cpu', *words)
        assert done.returncode == 2 and not commands and 'disc_weak en_only ' in done.stderr


def test_options_go_to_training_only(driver):
    _, commands = driver(
        'do_all_vatex.sh',
        'ROOT',
        'cpu',
        '--resume',
        'train.lr=1',
        '--run-dir',
        'a=b',
        '--seed',
        '4',
    )
    assert commands == expected(
        'vatex.yaml', 'cpu', ['train.lr=1'], ['--resume', '--run-dir', 'a=b', '--seed', '4']
    )


def test_a_demo_that_cannot_be_made_stops_before_training(driver):
    done, commands = driver('do_all_vatex.sh', 'demo', 'cpu', fail='util.make_demo')
    assert done.returncode == 3 and len(commands) == 1


@pytest.mark.parametrize(
    'words',
    [['ROOT', 'cpu'], ['ROOT', 'cpu', "name=it's a #1 ${x}", 'text.bert=C:\\狗', '--seed', '2']],
)
def test_what_was_typed_can_be_pasted_again(driver, words):
    driver('do_all_vatex.sh', *words)
    assert shlex.split(driver.recorder.typed) == [
        str(REPOSITORY / 'do_all_vatex.sh'),
        *(word.replace('ROOT', 'my data') for word in words),
    ]


def test_options_of_a_test(driver):
    for words in (
        ['--save-embeddings'],
        ['--save-embeddings', 'eval.ties=mean'],
        ['--save-embeddings', 'my folder'],
    ):
        done, commands = driver(
            'do_test_mscoco.sh', 'ROOT', 'ROOT', 'cpu', *words, '--images', 'x=y'
        )
        tail = (
            [word for word in words if '=' not in word]
            + ['--images', 'x=y']
            + [w for w in words if '=' in w]
        )
        assert done.returncode == 0 and commands[0][-len(tail) :] == tail


def test_cn_is_zh(driver):
    assert 'data.lang=zh' in driver('do_all_mscoco.sh', 'ROOT', '0', 'cn')[1][0]


@pytest.mark.parametrize(
    'name, arguments, config, lang, overrides',
    [
        ('do_all_vatex.sh', ['cpu'], 'vatex.yaml', 'zh', []),
        ('do_all_vatex.sh', ['cpu', 'data.lang=fr'], 'vatex.yaml', 'fr', ['data.lang=fr']),
        ('do_all_mscoco.sh', ['cpu', 'ja'], 'mscoco.yaml', 'ja', ['data.lang=ja']),
        (
            'do_all_multi30k.sh',
            ['2', 'cpu'],
            'multi30k.yaml',
            'de',
            ['name=multi30k_task2', 'data.task=2', 'data.lang=de'],
        ),
    ],
)
def test_demo(driver, name, arguments, config, lang, overrides):
    done, commands = driver(name, 'demo', *arguments)
    assert done.returncode == 0, done.stderr
    root = str(REPOSITORY / 'demo')
    assert commands[0] == [
        'util.make_demo',
        '--rootpath',
        root,
        '--collection',
        Path(config).stem,
        '--lang',
        lang,
    ]
    common = ['--config', str(REPOSITORY / 'configs/demo' / config), '--rootpath', root]
    name_first = [word for word in overrides[:1] if word.startswith('name=')]
    overrides = [
        *name_first,
        f'text.bert={root}/bert',
        f'visual.clip={root}/clip',
        *overrides[len(name_first) :],
    ]
    assert commands[1:] == [['util.do_all', *common, '--device', 'cpu', *overrides]]


def test_a_demo_that_records_a_rate_of_noise_has_it(driver):
    done, commands = driver('do_all_vatex.sh', 'demo', 'cpu', 'data.noise=0.4')
    assert (
        done.returncode == 0
        and commands[0][-2:] == ['--noise', '0.4']
        and 'data.noise=0.4' in commands[1]
    )


def test_an_ablation_after_an_equals_sign(driver):
    same = [
        driver('do_all_vatex.sh', 'ROOT', 'cpu', *words, '--seed', '4')[1]
        for words in (['--ablation', 'infonce'], ['--ablation=infonce'])
    ]
    assert same[0] == same[1] and 'infonce.yaml' in ' '.join(same[0][0])
    assert driver('do_all_vatex.sh', 'ROOT', 'cpu', '--ablation=absent')[0].returncode == 2


@pytest.mark.parametrize('name', ['do_test_vatex.sh', 'do_test_msrvttcn.sh'])
def test_do_test(driver, name):
    _, commands = driver(name, 'ROOT', 'ROOT/', '0', 'eval.ties=mean', '--split', 'val')
    assert commands == [
        [
            str(REPOSITORY / 'evaluation.py'),
            '--checkpoint',
            'my data/',
            '--rootpath',
            'my data',
            '--device',
            '0',
            '--split',
            'val',
            'eval.ties=mean',
        ]
    ]
    _, commands = driver(name, 'demo', 'ROOT', 'cpu')
    assert commands[0][3:5] == ['--rootpath', str(REPOSITORY / 'demo')]


@pytest.mark.parametrize('images', ['plain', 'with space', 'a=b,{c}', '$(x)', '-x'])
def test_do_test_multi30k(driver, images):
    common = [
        str(REPOSITORY / 'evaluation.py'),
        '--checkpoint',
        'my data',
        '--rootpath',
        'my data',
        '--device',
        'cpu',
    ]
    _, commands = driver('do_test_multi30k.sh', 'ROOT', 'ROOT', 'None', 'cpu')
    assert commands == [common]
    (driver.here / images).mkdir()
    done, commands = driver('do_test_multi30k.sh', 'ROOT', 'ROOT', images, 'cpu', 'eval.ties=mean')
    assert commands == [[*common, f'--images={images}', 'eval.ties=mean']], done.stderr


@pytest.mark.parametrize('name', ALL + TESTS)
def test_no_numbers_of_the_method(name):
    """What a run depends on is in configs/; a driver only says which and where."""
    text = (REPOSITORY / name).read_text()
    assert os.access(REPOSITORY / name, os.X_OK)
    for word in ('lr=', 'batch_size=', 'epochs=', 'weights', 'hidden='):
        assert word not in text
