"""Checkpoints: written whole, read without running anything, and what is refused."""

import argparse
import gzip
import io
import os
import pickle
import stat
import tarfile
import time
import zipfile

import pytest
import torch

from basic.checkpoint import (
    CheckpointError,
    find_checkpoint,
    load_checkpoint,
    save_checkpoint,
    training_of,
)
from basic.config import ConfigError, config_to_dict


@pytest.fixture
def content(make_config):
    return {
        'config': config_to_dict(make_config()),
        'architecture': {'bert': None, 'clip': None, 'feature_dim': 10},
        'model': {'a.weight': torch.arange(6.0).reshape(2, 3)},
        'epoch': 4,
        'val': {'SumR': 1.5, 't2v': [1, None]},
    }


class Evil:
    """Unpickled carelessly, it makes a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.system, (f'touch "{self.path}"',)


# --------------------------------------------------------------------------------------- our layout


def test_what_is_saved_is_read_again(content, tmp_path):
    save_checkpoint(
        tmp_path / 'model_best.pt',
        {**content, 'training': {'counters': [1, 2], 'state': torch.ones(3)}},
    )
    checkpoint = load_checkpoint(tmp_path, ['eval.ties=mean'])
    assert checkpoint.path == tmp_path / 'model_best.pt' and not checkpoint.released
    assert config_to_dict(checkpoint.config) == {
        **content['config'],
        'eval': {**content['config']['eval'], 'ties': 'mean'},
    }
    assert checkpoint.architecture == content['architecture']
    assert torch.equal(checkpoint.model['a.weight'], content['model']['a.weight'])
    assert (checkpoint.epoch, checkpoint.val) == (4, content['val'])
    assert checkpoint.training['counters'] == [1, 2] and torch.equal(
        checkpoint.training['state'], torch.ones(3)
    )


def test_an_override_that_does_not_fit_is_a_config_error(content, tmp_path):
    save_checkpoint(tmp_path / 'model_best.pt', content)
    with pytest.raises(ConfigError, match="unknown key 'eval.tie'"):
        load_checkpoint(tmp_path, ['eval.tie=mean'])


@pytest.mark.parametrize('interruption', [OSError('disk full'), KeyboardInterrupt()])
def test_a_save_that_fails_leaves_the_old_file_whole(content, tmp_path, monkeypatch, interruption):
    path = tmp_path / 'last.pt'
    save_checkpoint(path, content)
    old = path.read_bytes()

    def fail(_, file):
        file.write(b'half')
        raise interruption

    monkeypatch.setattr(torch, 'save', fail)
    with pytest.raises(type(interruption)):
        save_checkpoint(path, {**content, 'epoch': 5})
    assert path.read_bytes() == old and [p.name for p in tmp_path.iterdir()] == ['last.pt']


def test_a_save_replaces_the_old_file_and_others_may_read_it(content, tmp_path):
    for epoch in (1, 2):
        save_checkpoint(tmp_path / 'last.pt', {**content, 'epoch': epoch})
    assert load_checkpoint(tmp_path / 'last.pt').epoch == 2
    assert [p.name for p in tmp_path.iterdir()] == ['last.pt']
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE((tmp_path / 'last.pt').stat().st_mode) == 0o666 & ~umask


@pytest.mark.parametrize('place', ['top', 'config', 'namespace', 'state'])
def test_code_in_a_file_is_refused_and_does_not_run(content, tmp_path, place):
    mark = tmp_path / 'it ran'
    evil = {
        'top': {**content, 'format': 'nrccr-1', 'extra': Evil(mark)},
        'config': {**content, 'format': 'nrccr-1', 'config': Evil(mark)},
        'namespace': {'model': [{}] * 5, 'opt': argparse.Namespace(collection=Evil(mark))},
        'state': {'model': [Evil(mark)] * 5, 'opt': argparse.Namespace()},
    }[place]
    path = tmp_path / 'evil.pth.tar'
    torch.save(evil, path)
    with pytest.raises(
        CheckpointError, match=r'cannot be read safely .*\(it needs posix\.system\)'
    ) as error:
        load_checkpoint(path)
    assert str(path) in str(error.value) and not mark.exists()
    torch.load(path, weights_only=False)  # the trap is live: read carelessly, it does run
    assert mark.exists()


@pytest.mark.parametrize('damage', ['truncated', 'noise', 'start'])
def test_a_damaged_file_is_named(content, tmp_path, damage):
    path = tmp_path / 'model_best.pt'
    save_checkpoint(path, content)
    whole = path.read_bytes()
    path.write_bytes(
        {
            'truncated': whole[: len(whole) // 2],
            'noise': bytes(range(128, 256)) * 9,
            'start': whole[:600],
        }[damage]
    )
    with pytest.raises(CheckpointError, match='damaged') as error:
        load_checkpoint(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    'foreign, found',
    [
        ({'state_dict': {}, 'arch': 'resnet'}, 'state_dict, arch'),
        ([1, 2], 'list'),
        (torch.ones(2), 'Tensor'),
        ({'format': 'nrccr-99', 'model': {}}, 'format, model'),
    ],
)
def test_a_foreign_file_is_named_with_what_it_holds(tmp_path, foreign, found):
    path = tmp_path / 'other.pt'
    torch.save(foreign, path)
    with pytest.raises(
        CheckpointError, match=f'neither a checkpoint of this project nor a released one.*{found}'
    ):
        load_checkpoint(path)


@pytest.mark.parametrize('key', ['config', 'architecture', 'model', 'epoch'])
def test_an_incomplete_file_says_what_is_missing(content, tmp_path, key):
    del content[key]
    save_checkpoint(tmp_path / 'model_best.pt', content)
    with pytest.raises(CheckpointError, match=f'incomplete: it has no {key}'):
        load_checkpoint(tmp_path)


def test_finding_the_file_that_a_path_means(tmp_path):
    with pytest.raises(CheckpointError, match=f'no checkpoint at {tmp_path}/run'):
        find_checkpoint(tmp_path / 'run')
    with pytest.raises(
        CheckpointError, match='model_best.pt.*model_best.pth.tar.*which has: nothing'
    ):
        find_checkpoint(tmp_path)
    (tmp_path / 'log.jsonl').touch()
    with pytest.raises(CheckpointError, match='which has: log.jsonl'):
        find_checkpoint(tmp_path)
    (tmp_path / 'model_best.pth.tar').touch()
    assert find_checkpoint(str(tmp_path)) == tmp_path / 'model_best.pth.tar'
    (tmp_path / 'model_best.pt').touch()
    assert find_checkpoint(tmp_path) == tmp_path / 'model_best.pt'
    assert find_checkpoint(tmp_path / 'log.jsonl') == tmp_path / 'log.jsonl'


def test_a_flipped_bit_is_found(tmp_path, make_config):
    path = tmp_path / 'model_best.pt'
    save_checkpoint(
        path,
        {
            'config': config_to_dict(make_config()),
            'architecture': {},
            'epoch': 1,
            'val': None,
            'model': {'weight': torch.arange(4096.0)},
        },
    )
    assert load_checkpoint(path).epoch == 1
    content = bytearray(path.read_bytes())
    place = content.index(torch.tensor(1234.0).numpy().tobytes())
    content[place + 3] ^= 0x80
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match='is damaged .*: copy or download it again'):
        load_checkpoint(path)


def test_the_advice_to_load_unsafely_is_left_out(tmp_path):
    path = tmp_path / 'model_best.pt'
    path.write_text('text: {bert: x}')
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(path)
    assert 'weights_only' not in str(error.value)


# --------------------------------------------------------------------------------- strangers' files


def packed(function):
    file = io.BytesIO()
    function(file)
    return file.getvalue()


def zip_of(names, compression=zipfile.ZIP_STORED, text='x' * 900):
    def write(file):
        with zipfile.ZipFile(file, 'w', compression) as archive:
            for name in names:
                archive.writestr(name, text)

    return packed(write)


def tar_of(name):
    def write(file):
        with tarfile.open(fileobj=file, mode='w') as archive:
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())

    return packed(write)


KINDS_OF_FILES = {
    'empty': (b'', 'is empty: copy or download it again'),
    'html': (b'\n<!DOCTYPE html><html><title>Quota exceeded</title>', r'is a web page \(HTML\)'),
    'error page': (b'<html>404</html>', 'is a web page'),
    'lfs': (
        b'version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n',
        'git-lfs pointer.*git lfs pull',
    ),
    'gzip': (
        gzip.compress(b'x' * 5000),
        'is a gzip archive: tar zxf it first, then give the folder .* runs_0',
    ),
    'tar': (tar_of('runs_0/model_best.pth.tar'), 'is a tar archive: tar xf it first'),
    'zip': (
        zip_of(['runs_0/opt.txt']),
        'is a zip archive of runs_0/opt.txt, not a checkpoint: unzip it',
    ),
    'compressed': (zip_of(['a/data.pkl'], zipfile.ZIP_DEFLATED), 'is a compressed zip archive'),
    'no zip': (zip_of([]), 'is an empty zip archive'),
    'safetensors': (b'\x10\0\0\0\0\0\0\0{"a":{}}        ', 'is a safetensors file'),
    'pickle': (pickle.dumps({'model': 1}), 'is a pickle that torch.save did not write'),
    'text': ('模型\n在这里\n'.encode(), "is text, not a checkpoint: '模型'"),
    'npy': (b'\x93NUMPY\x01\0', 'is a NumPy array'),
    'png': (b'\x89PNG\r\n', 'is an image'),
}


@pytest.mark.parametrize('kind', KINDS_OF_FILES)
def test_another_file_in_a_checkpoints_place_is_called_what_it_is(tmp_path, kind):
    path = tmp_path / 'model_best.pth.tar'
    content, expected = KINDS_OF_FILES[kind]
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=expected):
        load_checkpoint(path)


def test_pipes_and_devices_are_no_checkpoints(tmp_path):
    os.mkfifo(tmp_path / 'model_best.pt')
    for path in (tmp_path / 'model_best.pt', '/dev/zero'):
        with pytest.raises(CheckpointError, match='is a pipe or a device'):
            load_checkpoint(path)
    with pytest.raises(CheckpointError, match='no model_best.pt'):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize('damage', ['larger', 'name'])
def test_a_zip_that_says_wrong_things_is_damaged(content, tmp_path, damage):
    path = tmp_path / 'x.pt'
    save_checkpoint(path, content)
    data = bytearray(path.read_bytes())
    start = data.index(b'PK\x01\x02')  # of the first entry in the list of members
    if damage == 'larger':
        data[start + 20 : start + 28] = b'\xff\xff\xff\x0f' * 2
    else:
        data[start + 8 : start + 10] = b'\0\x08'  # the name is said to be UTF-8 ...
        data[start + 46] = 0xFF  # ... and is not
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match='is damaged'):
        load_checkpoint(path)


def expanded():
    return torch.zeros(1).expand(10**12)


WRONG = {
    'config': ([1], "key 'config' is a list; expected keys and values"),
    'model': ([1], "key 'model' is a list"),
    'epoch': ('x', "key 'epoch' is 'x'; expected a whole number"),
    'val': (3, "key 'val' is 3"),
    'training': ([], "key 'training' is a list"),
    'architecture': ([], "key 'architecture' is a list"),
    'choice': (
        {'chosen_weight': 'a', 'chosen_from': []},
        "key 'choice.chosen_weight' is 'a'; expected a number",
    ),
}


@pytest.mark.parametrize('key', WRONG)
def test_a_value_of_a_wrong_kind_is_named(content, tmp_path, key):
    value, expected = WRONG[key]
    save_checkpoint(tmp_path / 'model_best.pt', {**content, key: value})
    with pytest.raises(CheckpointError, match=expected):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    'training, expected',
    [
        (None, 'it is None'),
        ({}, "key 'optimizer' is None"),
        ({'optimizer': {'state': {}, 'param_groups': [3]}}, r'param_groups\[0\]'),
    ],
)
def test_the_state_of_a_training_is_checked_before_it_is_used(
    content, tmp_path, training, expected
):
    save_checkpoint(tmp_path / 'last.pt', {**content, 'training': training})
    checkpoint = load_checkpoint(tmp_path / 'last.pt')
    with pytest.raises(CheckpointError, match=f"last.pt: key 'training': .*{expected}"):
        training_of(checkpoint)


@pytest.mark.parametrize(
    'name, value, expected',
    [
        ('a', 'x', "the weight 'a' is 'x'; expected a tensor"),
        (3, torch.ones(1), 'expected keys that are text'),
        ('a', torch.ones(2).to_sparse(), 'not a plain dense tensor'),
        ('a', torch.ones(2, dtype=torch.complex64), 'real'),
        ('a', torch.ones(2, device='meta'), 'not a plain dense tensor'),
        (
            'a',
            torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
            'not a plain dense tensor',
        ),
        ('a', torch.ones(2, dtype=torch.int64), 'is torch.int64; expected floats'),
        ('a', torch.ones(2, dtype=torch.bool), 'is torch.bool; expected floats'),
        ('a', expanded(), 'larger than the file'),
    ],
    ids=str,
)
def test_a_weight_that_is_none_is_named(content, tmp_path, name, value, expected):
    content['model'][name] = value
    save_checkpoint(tmp_path / 'model_best.pt', content)
    with pytest.raises(CheckpointError, match=expected):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    'architecture, expected',
    [
        ({'bert': {'vocab_size': 10**12}}, 'architecture.bert.vocab_size'),
        ({'feature_dim': 10**9}, 'architecture.feature_dim'),
        ({'bert': {'num_hidden_layers': 10**5}}, 'num_hidden_layers'),
        ({'clip': {'x': [[10**7]]}}, 'architecture.clip.x.0.0'),
        ({'bert': {'model_type': torch.ones(1)}}, 'bert.model_type'),
    ],
)
def test_an_absurd_architecture_is_refused(content, tmp_path, architecture, expected):
    save_checkpoint(tmp_path / 'model_best.pt', {**content, 'architecture': architecture})
    with pytest.raises(CheckpointError, match=expected):
        load_checkpoint(tmp_path)


def test_a_stored_config_is_bounded_and_nothing_in_it_is_filled_in(content, tmp_path, monkeypatch):
    monkeypatch.setenv('NRCCR_SECRET', 'hunter2')
    content['config']['name'] = '${oc.env:NRCCR_SECRET}'
    save_checkpoint(tmp_path / 'model_best.pt', content)
    assert load_checkpoint(tmp_path).config.name == '${oc.env:NRCCR_SECRET}'
    shared = []
    for _ in range(25):
        shared = [shared, shared]
    content['config']['data']['aliases'] = shared
    save_checkpoint(tmp_path / 'model_best.pt', content)
    start = time.monotonic()
    with pytest.raises(CheckpointError, match='its config: it has too many values'):
        load_checkpoint(tmp_path)
    assert time.monotonic() - start < 5
