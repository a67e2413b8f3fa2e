"""basic/pretrained/hub.py: code of a model's own is never run; a cache that holds a part of a model
is a cache miss."""

import ast
import json
import shutil
import subprocess
import sys
import time

import pytest
import tiny
from conftest import REPOSITORY
from huggingface_hub import constants
from roots import complaint

from basic.errors import UnreachableError
from basic.pretrained import hub
from basic.pretrained.encoders import build_bert, build_dual_encoder, text_limits
from basic.pretrained.towers import build_clip, clip_preprocessing
from basic.pretrained.tokenizer import load_tokenizer

from transformers import AutoConfig, AutoTokenizer, BertConfig, BertModel

NAME = 'somebody/some-bert'
AUTO_MAP = {
    'AutoConfig': 'code.Config',
    'AutoModel': 'code.Model',
    'AutoTokenizer': ['code.Slow', None],
    'AutoImageProcessor': 'code.Processor',
}


# ---------------------------------------------------------------------------------- code of its own


@pytest.fixture
def stranger(tmp_path):
    """A model that only its own code could load; the code would leave a file."""
    folder = tmp_path / 'stranger'
    folder.mkdir()
    for name, more in (
        ('config.json', {'model_type': 'strange'}),
        ('tokenizer_config.json', {'tokenizer_class': 'Slow'}),
        ('preprocessor_config.json', {'image_processor_type': 'Processor'}),
    ):
        (folder / name).write_text(json.dumps({'auto_map': AUTO_MAP, **more}))
    (folder / 'vocab.txt').write_text('[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n')
    (folder / 'code.py').write_text(f'open({str(tmp_path / "touched")!r}, "w")\n')
    return folder


def test_code_of_a_model_is_never_run(stranger):
    for function, arguments in (
        (load_tokenizer, (stranger, False)),
        (text_limits, (stranger, True)),
        (build_dual_encoder, (str(stranger),)),
        (clip_preprocessing, (stranger, True)),
    ):
        with pytest.raises(ValueError, match='needs code of its own') as error:
            function(*arguments)
        assert 'stranger' in str(error.value) and 'never run' in str(error.value)
    for build, options in ((build_bert, {'dropout': 0.1}), (build_clip, {})):
        for pretrained in (True, False):
            with pytest.raises(ValueError, match='needs code of its own'):
                build(name=str(stranger), pretrained=pretrained, **options)
    assert not stranger.with_name('touched').exists()


def test_a_model_that_transformers_knows_loads_without_its_code(stranger):
    tiny.make_bert(stranger)
    (stranger / 'tokenizer_config.json').write_text(
        json.dumps({'auto_map': AUTO_MAP, 'tokenizer_class': 'BertTokenizer'})
    )
    config = json.loads((stranger / 'config.json').read_text())
    (stranger / 'config.json').write_text(json.dumps({**config, 'auto_map': AUTO_MAP}))
    assert len(load_tokenizer(stranger, True)) == 25
    assert build_bert(name=str(stranger), pretrained=True, dropout=0.1).config.hidden_size == 32
    assert (
        build_bert(
            name='', pretrained=True, dropout=0.1, architecture={**config, 'auto_map': AUTO_MAP}
        ).config.hidden_size
        == 32
    )
    assert not stranger.with_name('touched').exists()


def test_nobody_is_asked_whether_to_run_it(stranger):
    """With a silent stdin, transformers would wait for an answer, and with `yes |` take it."""
    script = (
        'import sys; from basic.pretrained.tokenizer import load_tokenizer\n'
        'try: load_tokenizer(sys.argv[1], True)\nexcept ValueError as error: print(error)'
    )
    started = subprocess.Popen(
        [sys.executable, '-c', script, str(stranger)],
        cwd=REPOSITORY,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    begin = time.monotonic()
    started.stdin.write('yes\n' * 9)
    started.stdin.flush()
    said = started.stdout.read()  # until it ends, with stdin open all the while
    assert 'needs code of its own' in said and 'Do you wish' not in said
    assert started.wait() == 0 and time.monotonic() - begin < 60
    started.stdin.close()
    assert not stranger.with_name('touched').exists()


def test_every_call_says_that_code_is_not_to_be_run():
    """Nothing of this project loads a model past `trust_remote_code=False`."""
    loaders = ('from_pretrained', 'from_config')
    for path in [
        path
        for pattern in ('*.py', 'basic/**/*.py', 'util/**/*.py')
        for path in REPOSITORY.glob(pattern)
    ]:
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            if isinstance(node, ast.Call) and getattr(node.func, 'attr', '') in loaders:
                options = {option.arg: option.value for option in node.keywords}
                trusted = getattr(options.get('trust_remote_code'), 'value', None)
                assert trusted is False, f'{path}:{node.lineno}'


def test_an_attention_kernel_from_the_hub_is_code_too(stranger):
    tiny.make_bert(stranger)
    config = json.loads((stranger / 'config.json').read_text())
    (stranger / 'config.json').write_text(
        json.dumps({**config, '_attn_implementation': 'some/kernel'})
    )
    with pytest.raises(ValueError, match="attention kernel 'some/kernel'"):
        build_bert(name=str(stranger), pretrained=True, dropout=0.1)
    with pytest.raises(ValueError, match="attention kernel 'some/kernel'"):
        build_bert(
            name='',
            pretrained=True,
            dropout=0.1,
            architecture={**config, 'attn_implementation': 'some/kernel'},
        )


# ---------------------------------------------------------------------------------- the local cache


class Hub:
    """A stand-in for the hub's cache: a snapshot folder, into which `download` puts the rest."""

    def __init__(self, cache, whole, monkeypatch):
        self.whole, self.asked, self.there = whole, [], True
        self.snapshot = cache / f'models--{NAME.replace("/", "--")}/snapshots/{"0" * 40}'
        self.snapshot.mkdir(parents=True)
        (self.snapshot.parent.parent / 'refs').mkdir()
        (self.snapshot.parent.parent / 'refs/main').write_text('0' * 40)
        monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(cache))
        monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)  # what is not there is not to be had
        monkeypatch.setattr(hub, 'get_hf_file_metadata', self.ask)

    def hold(self, *names):
        for name in names:
            shutil.copy(self.whole / name, self.snapshot / name)

    def ask(self, url, timeout):
        """The short question; a download follows, which is over at once."""
        self.asked.append(url)
        if not self.there:
            raise ConnectionError('no route to host')
        self.hold(*(path.name for path in self.whole.iterdir()))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    whole = tmp_path / 'whole'
    whole.mkdir()
    tiny.make_bert(whole)
    (whole / 'tokenizer_config.json').write_text('{"tokenizer_class": "BertTokenizer"}')
    return Hub(tmp_path / 'cache', whole, monkeypatch)


@pytest.mark.parametrize('held', [[], ['config.json'], ['config.json', 'tokenizer_config.json']])
def test_a_download_that_was_cut_short_heals(cache, held):
    cache.hold(*held)
    assert len(load_tokenizer(NAME, True)) == 25 and len(cache.asked) == 1
    assert len(load_tokenizer(NAME, True)) == 25 and len(cache.asked) == 1  # now from the cache


def test_a_part_of_a_model_without_network_is_unreachable(cache):
    cache.hold('config.json', 'tokenizer_config.json')
    cache.there = False
    with pytest.raises(UnreachableError, match=f"no tokenizer '{NAME}'.*no route to host"):
        load_tokenizer(NAME, True)
    with pytest.raises(UnreachableError, match='no route to host'):
        text_limits(NAME, pretrained=True)  # its weights
    assert text_limits(NAME, pretrained=False).layers == 2
    with pytest.raises(UnreachableError):
        text_limits('somebody/unknown', pretrained=False)


def test_weights_need_not_be_read_to_be_found(cache):
    cache.hold('config.json', 'model.safetensors')
    (cache.snapshot / 'model.safetensors').write_bytes(b'')
    assert text_limits(NAME, pretrained=True).positions == 64 and cache.asked == []
    (cache.whole / 'model.safetensors').unlink()
    assert 'holds no weights' in str(
        pytest.raises(ValueError, text_limits, cache.whole, True).value
    )
    assert text_limits(cache.whole, False).tokens == 25


def test_what_is_an_empty_tokenizer(tmp_path):
    for kind in ('bert', 'xlm-roberta', 'deberta-v2', 't5', 'clip'):
        folder = tmp_path / kind
        folder.mkdir()
        (folder / 'config.json').write_text(json.dumps({'model_type': kind}))
        assert hub.is_empty_tokenizer(
            AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        ), kind
    assert not hub.is_empty_tokenizer(
        AutoTokenizer.from_pretrained(tiny.make_bert(tmp_path / 'bert'))
    )
    assert not hub.is_empty_tokenizer(AutoConfig.for_model('bert'))


# ------------------------------------------------------------------------------- limits of encoders


@pytest.mark.parametrize('kind, positions', [('bert', 20), ('roberta', 18), ('distilbert', 20)])
def test_limits_come_from_the_config_alone(tmp_path, kind, positions):
    (tmp_path / 'config.json').write_text(
        json.dumps(
            {
                'model_type': kind,
                'vocab_size': 30,
                'hidden_size': 8,
                'dim': 8,
                'num_hidden_layers': 3,
                'n_layers': 3,
                'num_attention_heads': 2,
                'n_heads': 2,
                'intermediate_size': 8,
                'max_position_embeddings': 20,
            }
        )
    )
    limits = text_limits(tmp_path, pretrained=False)
    assert (limits.tokens, limits.positions, limits.layers) == (30, positions, 3)


def test_what_is_no_config_is_said(tmp_path):
    bert = [
        '"hidden_size": "x"',
        '"vocab_size": {}',
        '"hidden_size": -8',
        '"num_attention_heads": 0',
        '"num_hidden_layers": 1000000000',
        '"num_hidden_layers": null',
        '"hidden_act": "none"',
    ]
    for text in (
        '[]',
        '{',
        '',
        '{"model_type": 3}',
        '{"model_type": ["bert"]}',
        *(f'{{"model_type": "bert", {more}}}' for more in bert),
    ):
        (tmp_path / 'config.json').write_text(text)
        with pytest.raises(ValueError, match="key 'text.bert': cannot load"):
            text_limits(tmp_path, pretrained=False)
        with pytest.raises(ValueError, match="key 'text.bert': cannot load"):
            build_bert(name=str(tmp_path), pretrained=False, dropout=0.1)
    (tmp_path / 'config.json').write_text('{"model_type": "t5", "num_layers": 1}')
    with pytest.raises(ValueError, match="'text.bert': T5Model keeps its layers in none of"):
        text_limits(tmp_path, pretrained=False)
    BertModel(
        BertConfig(
            vocab_size=9,
            hidden_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
            intermediate_size=8,
        )
    ).save_pretrained(tmp_path / 'bert')
    with pytest.raises(ValueError, match="of type 'bert', not of CLIP"):
        clip_preprocessing(tmp_path / 'bert', pretrained=False)
    with pytest.raises(ValueError, match="of type 'bert', not of CLIP"):
        build_clip(name=str(tmp_path / 'bert'), pretrained=False)


def test_names_that_no_hub_has(monkeypatch):
    def nobody(url, timeout):
        raise hub.HFValidationError('not a name')

    monkeypatch.setattr(hub, 'get_hf_file_metadata', nobody)
    assert 'no such model on the hub' in complaint(load_tokenizer, 'a//b', True)
