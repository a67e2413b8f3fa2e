"""compute.frozen_cache: outputs of BERT's frozen lower layers, computed once, kept on disk."""

import shutil
from collections import namedtuple

import pytest
import torch
from tiny import make_bert, make_collection, options

from basic.caption import Tokens
from basic.config import load_config
from basic.errors import ConfigError, DataError
from basic.pretrained.encoders import build_bert, lower_layers, upper_layers
from basic.pretrained.tokenizer import load_tokenizer
from basic.run_folder import read_log
from data_provider import build_loaders
from evaluation import encode
from model import build_model
from train import main

SIZES = dict(
    vocab_size=30,
    hidden_size=8,
    num_hidden_layers=3,
    num_attention_heads=2,
    intermediate_size=8,
    max_position_embeddings=24,
)
# `mean` poolings, and BERT without dropout: then the cache changes nothing but rounding.
EXACT = (
    'text.pooling=mean',
    'discriminator.pooling=mean',
    'text.bert_dropout=0',
    'train.workers=0',
    'train.batch_size=5',
)


@pytest.fixture(scope='module')
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp('frozen')
    return make_collection(folder / 'root'), make_bert(folder / 'bert')


def caches(root):
    return {path.name: path.stat().st_ino for path in (root / 'multi30k/cache').glob('*_layers_*')}


@pytest.mark.parametrize('kind', ['bert', 'camembert', 'roberta', 'xlm-roberta'])
@pytest.mark.parametrize('count', [1, 3])
def test_lower_and_upper_layers_are_the_whole(kind, count):
    architecture = {'model_type': kind, **SIZES}
    bert = build_bert(name='', pretrained=False, dropout=0.1, architecture=architecture).eval()
    ids, mask = torch.randint(5, 30, (4, 7)), torch.ones(4, 7, dtype=torch.long)
    whole = bert(input_ids=ids, attention_mask=mask).last_hidden_state
    lower = lower_layers(bert, count)(input_ids=ids, attention_mask=mask).last_hidden_state
    upper = upper_layers(bert, count)(inputs_embeds=lower, attention_mask=mask)
    assert torch.equal(upper.last_hidden_state, whole)
    assert count == 3 or not torch.equal(lower, whole)
    assert len(bert.encoder.layer) == 3 and bert.embeddings is not None  # as it was


def test_a_model_that_cannot_be_divided_is_refused():
    architecture = {'model_type': 'electra', **SIZES}
    bert = build_bert(name='', pretrained=False, dropout=0.1, architecture=architecture)
    with pytest.raises(ValueError, match='a ElectraModel cannot be divided.*valid value then: f'):
        lower_layers(bert, 1)


@pytest.mark.parametrize(
    'more', [(), ('train.back_as_en=0.5', 'loss.weights.back_visual=0.5', 'compute.micro_batch=2')]
)
def test_the_same_training_but_for_rounding(world, tmp_path, more):
    root, bert = world
    words = ['--config', 'configs/multi30k.yaml', '--rootpath', str(root), '--device', 'cpu']
    words += [*options(bert), *EXACT, 'train.epochs=2', *more]
    logs = []
    for cached in ('false', 'true'):
        folder = tmp_path / cached
        assert main([*words, '--run-dir', str(folder), f'compute.frozen_cache={cached}']) == 0
        logs.append(read_log(folder))
    for without, cached in zip(*logs):
        assert cached['train'] == pytest.approx(without['train'], rel=1e-3, abs=1e-5)
        assert cached['val']['SumR'] == without['val']['SumR']
    assert caches(root)


def test_made_once_and_anew_for_other_weights_or_captions(world):
    root, bert = world
    shutil.rmtree(root / 'multi30k/cache', ignore_errors=True)
    tokenizer = load_tokenizer(str(bert), True)

    def loaders(*more, splits=('train', 'val'), seed=0):
        words = [*options(bert), *EXACT, 'compute.frozen_cache=true', *more]
        config = load_config('configs/multi30k.yaml', words)
        torch.manual_seed(seed)
        model = build_model(config, 10)
        made = build_loaders(config, root, tokenizer, splits=splits, model=model)
        return made, model

    made, model = loaders()
    first = caches(root)
    assert len(first) == 5  # train: en, tgt, back; val: en, tgt
    batch = next(iter(made['train']))
    model.eval()
    with torch.no_grad():
        plain = model.encode_text(Tokens(batch.tgt.ids, batch.tgt.mask))
        assert torch.allclose(model.encode_text(batch.tgt), plain, atol=1e-6)
    embeddings = encode(model, made['val'], torch.device('cpu'))
    loaders()
    assert caches(root) == first
    loaders('text.pretrained=false', seed=7)  # other weights
    assert len(caches(root)) == 10 and first.items() <= caches(root).items()

    # A test reads its captions once: they are not kept.
    tested, _ = loaders(splits=('val',))
    assert len(caches(root)) == 10 and next(iter(tested['val'].captions))[0].lower is None
    assert torch.allclose(encode(model, tested['val'], 'cpu').tgt, embeddings.tgt, atol=1e-6)


def test_a_full_disk_is_found_before_anything_is_computed(world, monkeypatch):
    root, bert = world
    words = [*options(bert), *EXACT, 'compute.frozen_cache=true']
    config = load_config('configs/multi30k.yaml', words)
    shutil.rmtree(root / 'multi30k/cache', ignore_errors=True)
    usage = namedtuple('usage', 'total used free')(9, 9, 0)
    monkeypatch.setattr('basic.cache.shutil.disk_usage', lambda path: usage)
    with pytest.raises(DataError, match='it needs .* GB, and the disk has 0.0 GB left.*=false'):
        build_loaders(config, root, load_tokenizer(str(bert), True), model=build_model(config, 10))
    assert not caches(root)


@pytest.mark.parametrize(
    'option, reason',
    [
        ('text.pooling=padded_mean', 'text.pooling=padded_mean reads .*try text.pooling=mean'),
        ('discriminator.pooling=padded_mean', 'discriminator.pooling=padded_mean reads'),
        ('text.train_all=true', 'text.train_all leaves no frozen layer'),
        ('text.train_embeddings=true', 'text.train_embeddings leaves no frozen layer'),
        ('text.trained_layers=[0,1]', 'text.trained_layers leaves no frozen layer'),
        ('compute.compile=true', 'compute.compile compiles all'),
    ],
)
def test_what_does_not_go_with_it(option, reason):
    words = ['text.pooling=mean', 'discriminator.pooling=mean', 'compute.frozen_cache=true']
    with pytest.raises(ConfigError, match=f"'compute.frozen_cache' is True; .*{reason}"):
        load_config('configs/multi30k.yaml', [*words, option])
