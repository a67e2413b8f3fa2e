"""util.export and basic/exported.py: the folder gives the run's numbers to the last bit, on the hub
too; what is damaged in it is named."""

import json
import re
import shutil

import numpy as np
import pytest
import tiny
import torch
import yaml
from conftest import FEATURE_DIM, REPOSITORY
from safetensors.torch import load_file, save_file
from test_released import released  # noqa: F401  (a fixture)
from test_retriever import CHOICE

from basic.checkpoint import BEST, CheckpointError, load_checkpoint
from basic.config import config_to_dict, load_config
from basic.pretrained import hub
from basic.pretrained.tokenizer import load_tokenizer, save_tokenizer
from evaluation import load_model
from evaluation import main as evaluate
from model import build_model
from util import export as tool
from util.export import main

TEXTS = ['ein rot hund', 'katze', 'blau haus baum ein']
OPTIONS = ['text.pretrained=false', 'visual.clip_pretrained=false']  # not read: that takes long


def write_run(folder, config, bert, **more):
    torch.manual_seed(5)
    model = build_model(config, FEATURE_DIM)
    folder.mkdir(parents=True)
    save_tokenizer(load_tokenizer(bert, False), folder / 'tokenizer')
    (folder / 'config.yaml').write_text(yaml.safe_dump(config_to_dict(config)))
    tiny.save_model(folder / BEST, config, model, **more)
    return folder


@pytest.fixture(scope='module')
def world(tmp_path_factory):
    """(ROOTPATH, a tested run folder in it, its exported folder)."""
    folder = tmp_path_factory.mktemp('world')
    root, bert = tiny.make_collection(folder / 'root'), tiny.make_bert(folder / 'bert')
    config = load_config(REPOSITORY / 'configs/multi30k.yaml', [*tiny.options(bert), *OPTIONS])
    run = write_run(root / 'multi30k/runs/tiny/seed_1', config, bert, choice=CHOICE)
    assert evaluate(['--checkpoint', str(run), '--save-embeddings', str(folder / 'before')]) == 0
    assert main([str(run), str(folder / 'exported'), '--licence', 'cc-by-4.0']) == 0
    bert.rename(folder / 'gone')  # another machine does not have it
    return root, run, folder / 'exported'


@pytest.fixture
def exported(world, tmp_path):
    """A copy, to be damaged."""
    shutil.copytree(world[2], tmp_path / 'copy')
    return tmp_path / 'copy'


# -------------------------------------------------------------------------------- the same numbers


def test_a_test_gives_the_numbers_of_the_run(world, exported, tmp_path, capsys):
    root, run, folder = world
    arguments = ['--rootpath', str(root), '--save-embeddings', str(tmp_path / 'after')]
    assert evaluate(['--checkpoint', str(exported), *arguments]) == 0
    assert 'not the test of the run as it was trained' not in capsys.readouterr().out
    before, after = (json.loads((each / 'metrics.json').read_text()) for each in (run, exported))
    assert after.pop('checkpoint') == str(exported / 'model.safetensors')
    assert before.pop('checkpoint') == str(run / BEST) and before == after
    for name in ('visual', 'en', 'tgt'):
        found, expected = (
            np.load(each / f'{name}.npy') for each in (tmp_path / 'after', folder.parent / 'before')
        )
        assert np.array_equal(found, expected)


def test_the_loaded_model_is_that_of_the_run(world):
    _, run, folder = world
    before, after = load_model(run), load_model(folder / 'model.safetensors')
    assert torch.equal(after.encode_text(TEXTS), before.encode_text(TEXTS))
    assert torch.equal(after.encode_text(TEXTS, 'en'), before.encode_text(TEXTS, 'en'))
    features = np.eye(FEATURE_DIM)[:3]
    assert torch.equal(after.encode_features(features), before.encode_features(features))
    assert after.fingerprint == before.fingerprint and after.name == 'exported'
    assert after.ranges == before.ranges != {} and after.weight == before.weight == 0.3


@pytest.mark.parametrize('kind', ['frames', 'clip', 'released'])
def test_every_kind_of_model(make_config, released, bert_folder, tmp_path, kind):  # noqa: F811
    run, options = tmp_path / 'run', []
    if kind == 'released':
        run.mkdir()
        torch.save(released('clip'), run / 'model_best.pth.tar')
        options = ['--tokenizer', str(bert_folder)]
    else:
        config = make_config(kind, *OPTIONS, 'loss.contrastive=infonce', 'data.lang=de,no')
        write_run(run, config, bert_folder, val={'SumR': 12.5, 't2v': {'R@1': None}})
    assert main([str(run), str(tmp_path / 'new/out'), *options]) == 0
    before, after = load_checkpoint(run), load_checkpoint(tmp_path / 'new/out')
    assert {*after.model} == {*before.model} and all(
        torch.equal(after.model[name], tensor) and after.model[name].dtype == tensor.dtype
        for name, tensor in before.model.items()
    )
    assert (after.architecture, after.epoch, after.val) == (
        json.loads(json.dumps(before.architecture)),
        before.epoch,
        before.val,
    )
    model, card = load_model(tmp_path / 'new/out'), card_of(tmp_path / 'new/out')
    assert model.kind == before.config.visual.kind and len(model.encode_text(TEXTS)) == 3
    assert card[0]['language'] == [*model.languages, 'en']
    # only the folders of the encoders are left out
    trees = [config_to_dict(each.config) for each in (before, after)]
    for tree in trees:
        del tree['text']['bert'], tree['visual']['clip']
    assert trees[0] == trees[1]


# ------------------------------------------------------------------------------------ what is in it


def card_of(folder):
    """(the header of the model card, its text)."""
    _, head, text = (folder / 'README.md').read_text().split('---\n', 2)
    return yaml.safe_load(head), text


def test_the_model_card(world):
    _, run, folder = world
    head, text = card_of(folder)
    assert head == {
        'license': 'cc-by-4.0',
        'language': ['de', 'en'],
        'tags': ['cross-modal-retrieval', 'text-to-image-retrieval', 'nrccr'],
    }
    report = json.loads((run / 'metrics.json').read_text())
    assert re.search(rf'(?m)^0\.2 .* {report["result"]["SumR"]:.1f}  <- result$', text)
    for line in ('| collection | multi30k |', "model = load_model('FOLDER')", 'cc-by-4.0. The'):
        assert line in text
    assert sorted(path.name for path in folder.iterdir()) == [
        'README.md',
        'config.yaml',
        'model.json',
        'model.safetensors',
        'tokenizer',
    ]
    for path in folder.rglob('*'):  # nothing of this machine
        if path.is_file():
            assert str(run.parents[4]).encode() not in path.read_bytes(), path


def test_notes_on_what_others_see_and_miss(world, tmp_path, capsys):
    run = tmp_path / 'run'
    shutil.copytree(world[1], run)
    content = torch.load(run / BEST, weights_only=True)
    content['config']['data']['images'] = '/home/me/{id}.jpg'
    content['config']['text']['bert'] = 'owner/some-bert'
    content['epoch'] = 2  # metrics.json is of the first
    torch.save(content, run / BEST)
    assert main([str(run), str(tmp_path / 'out')]) == 0
    told = capsys.readouterr().err
    assert 'names a folder of this machine: data.images=/home/me/{id}.jpg' in told
    assert 'is that of another epoch' in told and 'state one with --licence' in told
    head, text = card_of(tmp_path / 'out')
    assert head['license'] == 'unknown' and head['base_model'] == 'owner/some-bert'
    assert 'No test result.' in text and 'Not stated.' in text


def test_what_lies_there_is_not_lost(world, tmp_path, capsys):
    _, run, folder = world
    mine = tmp_path / 'mine'
    mine.mkdir()
    assert main([str(run), str(mine)]) == 0  # an empty one
    (mine / 'README.md').write_text('mine')
    assert main([str(run), str(mine)]) == 2 and (mine / 'README.md').read_text() == 'mine'
    assert 'holds an exported model: --overwrite replaces it' in capsys.readouterr().err
    assert main([str(run), str(mine), '--overwrite']) == 0 and card_of(mine)
    (mine / 'notes.txt').write_text('mine')
    for other in (run, run.parent, mine, mine / 'notes.txt'):
        assert main([str(run), str(other), '--overwrite']) == 2
        assert re.search('holds other files|is a file', capsys.readouterr().err)
    assert load_checkpoint(run)
    assert main([str(mine), str(tmp_path / 'again')]) == 0  # an exported one is a model, too
    assert load_model(tmp_path / 'again').fingerprint == load_model(folder).fingerprint


# ---------------------------------------------------------------------------------- what is wrong


def rewrite(name, old, new):
    def damage(folder):
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new, 1))

    return damage


def with_weights(change):
    def damage(folder):
        weights = load_file(folder / 'model.safetensors')
        change(weights)
        save_file(weights, folder / 'model.safetensors')

    return damage


def with_bytes(change):
    def damage(folder):
        path = folder / 'model.safetensors'
        path.write_bytes(change(path.read_bytes()))

    return damage


BIAS = 'text_projection.linear.bias'
DAMAGES = {
    'no weights': (lambda folder: (folder / 'model.safetensors').unlink(), 'no model_best.pt'),
    'no config': (lambda folder: (folder / 'config.yaml').unlink(), 'lacks config.yaml'),
    'no json': (lambda folder: (folder / 'model.json').unlink(), 'lacks model.json'),
    'shape': (
        with_weights(lambda weights: weights.update({BIAS: torch.zeros(3)})),
        rf'does not fit the model.*{BIAS}: expected \(12,\), found \(3,\)',
    ),
    'missing tensor': (
        with_weights(lambda weights: weights.pop(BIAS)),
        rf'{BIAS}: expected \(12,\), found none',
    ),
    'whole numbers': (
        with_weights(lambda weights: weights.update({BIAS: torch.zeros(12, dtype=torch.int64)})),
        f"the weight '{BIAS}' is torch.int64; expected floats",
    ),
    'cut': (with_bytes(lambda data: data[: len(data) // 2]), 'model.safetensors is damaged'),
    'long header': (
        with_bytes(lambda data: (2**31).to_bytes(8, 'little') + data[8:]),
        'model.safetensors is damaged',
    ),
    'empty': (with_bytes(lambda data: b''), 'model.safetensors is empty'),
    'a pointer': (
        with_bytes(lambda data: b'version https://git-lfs.github.com/spec/v1\noid sha256:0\n'),
        'git-lfs pointer',
    ),
    'a pickle': (
        with_bytes(lambda data: b'\x80\x02cos\nsystem\n(S"true"\ntR.'),
        'a pickle that torch.save did not write',
    ),
    'a checkpoint': (with_bytes(lambda data: b'PK\x03\x04' + bytes(99)), 'no safetensors file'),
    'newer': (rewrite('model.json', 'export-1', 'export-9'), "its format is 'nrccr-export-9'"),
    'not json': (rewrite('model.json', '{', '['), 'model.json: not JSON'),
    'choice': (
        rewrite('model.json', '"chosen_weight": 0.3', '"chosen_weight": "x"'),
        "key 'choice.chosen_weight' is 'x'",
    ),
    'ranges': (rewrite('model.json', '"low": -0.2', '"lo": -0.2'), 'val_ranges.de.en.low'),
    'a huge model': (
        rewrite('model.json', '"num_hidden_layers": 2', '"num_hidden_layers": 99999'),
        'num_hidden_layers',
    ),
    'code': (
        rewrite('config.yaml', 'name:', 'x: !!python/object/apply:os.system [true]\nname:'),
        'config.yaml is not valid YAML',
    ),
    'unknown key': (rewrite('config.yaml', 'lr:', 'learn:'), 'learn'),
    'large config': (
        lambda folder: (folder / 'config.yaml').write_text('#' * 2**19),
        'too large to be a config',
    ),
    'large json': (
        lambda folder: (folder / 'model.json').write_text(' ' * 2**23),
        'model.json is too large',
    ),
    'tokenizer': (
        lambda folder: (folder / 'tokenizer/tokenizer.json').write_text('{}'),
        'tokenizer',
    ),
}


@pytest.mark.parametrize('damage', DAMAGES)
def test_a_damaged_folder_is_named(exported, capsys, damage):
    spoil, message = DAMAGES[damage]
    spoil(exported)
    with pytest.raises(ValueError, match=message) as error:
        load_model(exported)
    assert str(exported) in str(error.value)
    assert main([str(exported), f'{exported} new']) == 2  # nor is it given on
    assert re.search(message, ' '.join(capsys.readouterr().err.split()))


def test_a_file_that_is_no_export(tmp_path):
    path = tmp_path / 'other.safetensors'
    save_file({'a': torch.ones(99)}, path)
    with pytest.raises(CheckpointError, match='has weights but no config: give a run folder'):
        load_model(path)


# ------------------------------------------------------------------------------------------ the hub


class FakeApi:
    """The hub as a folder: OWNER/NAME in it is a repository."""

    folder, asked, token = None, [], 'hf_secret'

    def create_repo(self, name, *, private, exist_ok):
        self.asked.append(('create', name, private, exist_ok))
        if name.startswith('locked/'):
            raise PermissionError(f'403 Forbidden for token {self.token}')
        (self.folder / name).mkdir(parents=True, exist_ok=True)
        return f'https://hub.example/{name}'

    def upload_folder(self, *, repo_id, folder_path, allow_patterns, commit_message):
        assert '*' not in allow_patterns and commit_message
        shutil.copytree(folder_path, self.folder / repo_id, dirs_exist_ok=True)


@pytest.fixture
def fake_hub(monkeypatch, tmp_path):
    monkeypatch.setattr(FakeApi, 'folder', tmp_path / 'hub')
    monkeypatch.setattr(FakeApi, 'asked', [])
    monkeypatch.setattr('huggingface_hub.HfApi', FakeApi)
    monkeypatch.setattr('huggingface_hub.get_token', lambda: FakeApi.token)
    there = []  # what the local cache has

    def snapshot_download(name, *, allow_patterns, local_files_only=False):
        assert 'model.safetensors' in allow_patterns and 'tokenizer/*' in allow_patterns
        if local_files_only and name not in there:
            raise FileNotFoundError(name)
        there.append(name)
        return str(FakeApi.folder / name)

    monkeypatch.setattr(hub, 'snapshot_download', snapshot_download)
    monkeypatch.setattr(hub, 'ask_hub', lambda name, file: there.append(f'asked for {name}'))
    return there


def test_push_and_load_by_name(world, fake_hub, tmp_path, capsys):
    _, run, folder = world
    assert main([str(run), str(tmp_path / 'out'), '--push', 'me/german-images']) == 0
    out = capsys.readouterr()
    assert 'uploaded: https://hub.example/me/german-images' in out.out
    assert "load_model('me/german-images')" in out.out
    assert FakeApi.asked == [('create', 'me/german-images', True, True)]  # private
    assert "load_model('me/german-images')" in card_of(tmp_path / 'out')[1]
    assert FakeApi.token not in out.out + out.err
    for _ in range(2):  # downloaded, then from the cache
        model = load_model('me/german-images')
        assert model.name == 'me/german-images'
        assert model.fingerprint == load_model(folder).fingerprint
    assert fake_hub == ['asked for me/german-images', 'me/german-images', 'me/german-images']


def test_an_upload_that_fails(world, fake_hub, tmp_path, capsys):
    arguments = [str(world[1]), str(tmp_path / 'out'), '--push', 'locked/model', '--public']
    assert main(arguments) == 2
    told = ''.join(capsys.readouterr())
    assert 'is written, but cannot be uploaded to locked/model (PermissionError' in told
    assert FakeApi.token not in told and '***' in told and 'hf auth login' in told
    assert load_model(tmp_path / 'out') and FakeApi.asked == [
        ('create', 'locked/model', False, True)
    ]


@pytest.mark.parametrize(
    'options, message',
    [
        (['--push', 'name'], 'expected OWNER/NAME'),
        (['--push', 'a/b/c'], 'expected OWNER/NAME'),
        (['--push', '../x'], 'expected OWNER/NAME'),
        (['--public'], '--public goes with --push'),
        (['--licence', 'a: b'], 'expected a short name'),
    ],
)
def test_wrong_options_are_told_before_anything_is_written(tmp_path, capsys, options, message):
    try:
        status = main([str(tmp_path / 'none'), str(tmp_path / 'out'), *options])
    except SystemExit as error:
        status = error.code
    assert status == 2 and message in capsys.readouterr().err and not (tmp_path / 'out').exists()


def test_a_name_that_the_hub_does_not_have(monkeypatch):
    def absent(*_, **__):
        raise FileNotFoundError

    monkeypatch.setattr(hub, 'snapshot_download', absent)
    monkeypatch.setattr(hub, 'get_hf_file_metadata', absent)
    with pytest.raises(
        ValueError, match="no model 'nobody/nothing': no such folder, not in the local cache"
    ):
        load_model('nobody/nothing')
    assert tool.UNKNOWN == 'unknown'  # as the hub spells it
