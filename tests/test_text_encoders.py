"""Text encoders of each family, small and random, from their configs: a training step, a
checkpoint; and the casing of their tokenizers."""

import json
import logging

import pytest
import tiny
import torch
import transformers
from roots import complaint
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from basic.checkpoint import load_checkpoint
from basic.config import config_changes, config_to_dict, load_config
from basic.pretrained import tokenizer as tokenizers_of
from basic.pretrained.encoders import bert_layers, build_bert, text_limits
from basic.pretrained.tokenizer import load_tokenizer, save_tokenizer
from evaluation import with_casing
from model import build_model, load_weights, refuse_misfit

SIZES = {
    'hidden_size': 16,
    'intermediate_size': 24,
    'num_hidden_layers': 2,
    'num_attention_heads': 2,
    'vocab_size': 30,
    'max_position_embeddings': 40,
    'pad_token_id': 0,
    'bos_token_id': 1,
    'eos_token_id': 2,
    'cls_token_id': 1,
    'sep_token_id': 2,
    'mask_token_id': 3,
}
# family -> (model type, what its config says beside, positions)
FAMILIES = {
    'BERT, LaBSE': ('bert', {}, 40),
    'DistilBERT': ('distilbert', {'dim': 16, 'n_layers': 2, 'n_heads': 2, 'hidden_dim': 24}, 40),
    'XLM-R, multilingual-e5': ('xlm-roberta', {'pad_token_id': 1}, 38),
    'mDeBERTa': (
        'deberta-v2',
        {
            'relative_attention': True,
            'position_biased_input': False,
            'pos_att_type': ['p2c', 'c2p'],
            'position_buckets': 8,
            'share_att_key': True,
            'norm_rel_ebd': 'layer_norm',
        },
        float('inf'),
    ),
    'ModernBERT, mmBERT': ('modernbert', {'local_attention': 4}, float('inf')),
    'EuroBERT': ('eurobert', {'num_key_value_heads': 2}, float('inf')),
    'NomicBERT': ('nomic_bert', {}, float('inf')),
    'MPNet': ('mpnet', {'pad_token_id': 1}, 38),
}


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    """folders(family) -> the folder of its model, which is made once."""
    root, made = tmp_path_factory.mktemp('text'), {}

    def get(family):
        if family not in made:
            kind, more, _ = FAMILIES[family]
            torch.manual_seed(0)
            config = transformers.AutoConfig.for_model(kind, **{**SIZES, **more})
            made[family] = root / kind
            transformers.AutoModel.from_config(config).save_pretrained(made[family])
        return made[family]

    return get


@pytest.mark.parametrize('family', FAMILIES)
def test_an_encoder_is_trained_and_rebuilt_from_its_checkpoint(
    family, folders, tmp_path, make_config, make_batch
):
    folder = folders(family)
    limits = text_limits(str(folder), pretrained=True)
    assert (limits.layers, limits.tokens, limits.positions) == (2, 30, FAMILIES[family][-1])
    options = ('text.trained_layers=[1]', 'text.train_embeddings=true', 'text.bert_dropout=0')
    config = make_config('pooled', f'text.bert={folder}', *options)
    torch.manual_seed(0)
    model = build_model(config, 10)
    bert, batch = model.text_encoder.bert, make_batch('pooled')
    loss = model(batch).tgt.square().cumsum(1).sum()
    loss.backward()
    first, second = (list(layer.parameters()) for layer in bert_layers(bert))
    assert all(parameter.grad is None for parameter in first)
    assert all(parameter.grad is not None for parameter in second)
    assert bert.get_input_embeddings().weight.grad.abs().sum() > 0
    torch.optim.Adam(model.main_parameters(), lr=0.01).step()

    tiny.save_model(tmp_path / 'model.pt', config, model)
    gone = make_config('pooled', 'text.bert=nowhere/at-all', *options)
    checkpoint = load_checkpoint(tmp_path / 'model.pt')
    refuse_misfit(gone, checkpoint)
    again = build_model(gone, architecture=checkpoint.architecture)
    load_weights(again, checkpoint)
    model.eval(), again.eval()
    for branch in (batch.en, batch.tgt):
        assert torch.equal(again.encode_text(branch), model.encode_text(branch))


@pytest.mark.parametrize('family', FAMILIES)
def test_an_output_does_not_depend_on_padding(family, folders):
    """Nor on the other captions: each family masks what is padding."""
    bert = build_bert(name=str(folders(family)), pretrained=True, dropout=0.5).eval()
    ids = torch.tensor([[4, 9, 11, 5, 8]])
    padded = torch.cat([ids, torch.zeros(1, 4, dtype=torch.long)], dim=1)
    alone = bert(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
    beside = bert(input_ids=padded, attention_mask=(padded > 0).long()).last_hidden_state
    torch.testing.assert_close(beside[:, :5], alone, atol=1e-5, rtol=1e-4)
    # the dropout of the config is that of every part
    assert {part.p for part in bert.modules() if isinstance(part, torch.nn.Dropout)} <= {0.5, 0.0}


def test_weights_that_only_own_code_could_read_are_refused_with_the_reason(folders, tmp_path):
    """Of a type that transformers knows, but with the names of a model of its own."""
    from safetensors.torch import load_file, save_file

    folder = folders('XLM-R, multilingual-e5')
    weights = load_file(folder / 'model.safetensors')
    save_file(
        {name.replace('attention.self', 'mixer'): part for name, part in weights.items()},
        tmp_path / 'model.safetensors',
        {'format': 'pt'},
    )
    config = json.loads((folder / 'config.json').read_text())
    config['auto_map'] = {'AutoModel': 'jinaai/xlm-roberta-flash--modeling.Model'}
    (tmp_path / 'config.json').write_text(json.dumps(config))
    with pytest.raises(ValueError, match='code of its own .*never run here') as error:
        build_bert(name=str(tmp_path), pretrained=True, dropout=0)
    assert str(tmp_path) in str(error.value) and 'another model' in str(error.value)


# ------------------------------------------------------------------------------------------- casing


def words(tokenizer, text):
    return tokenizer.convert_ids_to_tokens(tokenizer(text, add_special_tokens=False)['input_ids'])


def sentencepiece(folder):
    """A tokenizer of XLM-R's kind, Unigram over blanks, as transformers saves it."""
    pieces = [('<s>', 0.0), ('<pad>', 0.0), ('</s>', 0.0), ('<unk>', 0.0), ('▁', -3.0)]
    pieces += [(f'▁{word}', -4.0) for word in ('A', 'Café', 'a', 'cafe')]
    backend = Tokenizer(models.Unigram(pieces, unk_id=3))
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token='<pad>', unk_token='<unk>', cls_token='<s>'
    ).save_pretrained(folder)
    return folder


def test_the_casing_is_that_of_the_model_but_for_the_paper_s_bert(tmp_path, monkeypatch):
    cased = tmp_path / 'vocab.txt'
    cased.write_text('\n'.join(['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', 'Café', 'cafe']))
    assert words(load_tokenizer(cased, 'auto'), 'Café') == ['Café']  # as LaBSE's
    assert words(load_tokenizer(cased, True), 'Café') == ['cafe']
    (tmp_path / 'tokenizer_config.json').write_text('{"do_lower_case": true}')
    assert words(load_tokenizer(cased, 'auto'), 'Café') == ['cafe']  # its own casing
    (tmp_path / 'tokenizer_config.json').unlink()
    # The paper's is known by the size of its vocabulary, wherever it lies.
    monkeypatch.setattr(tokenizers_of, 'MBERT_TOKENS', 7)
    paper = load_tokenizer(cased, 'auto')
    assert words(paper, 'Café') == ['cafe'] and words(load_tokenizer(cased, False), 'Café') == [
        'Café'
    ]
    save_tokenizer(paper, tmp_path / 'saved')
    assert words(load_tokenizer(tmp_path / 'saved', 'auto'), 'Café') == ['cafe']

    other = sentencepiece(tmp_path / 'pieces')
    assert words(load_tokenizer(other, 'auto'), 'A Café') == ['▁A', '▁Café']
    assert 'Unigram; set text.lowercase=auto' in complaint(load_tokenizer, other, True)


def test_a_run_stores_the_casing_that_it_found(tmp_path, monkeypatch):
    config = load_config(None, ['data.collection=x'])
    assert config.text.lowercase == 'auto'
    tokenizer = load_tokenizer(tiny.make_bert(tmp_path), 'auto')
    found = with_casing(config, tokenizer)
    assert found.text.lowercase is False
    monkeypatch.setattr(tokenizers_of, 'MBERT_TOKENS', tokenizer.vocab_size)
    assert with_casing(config, tokenizer).text.lowercase is True
    given = load_config(None, ['data.collection=x', 'text.lowercase=true'])
    assert given.text.lowercase is True and with_casing(found, tokenizer) is found
    # auto asks for what was found; something else must be said
    assert config_changes(config_to_dict(given), config_to_dict(config)) == []
    assert config_changes(config_to_dict(given), config_to_dict(found)) == [
        'text.lowercase: True -> False'
    ]
    with pytest.raises(ValueError, match="'text.lowercase' is 'maybe'; valid values: auto"):
        load_config(None, ['data.collection=x', 'text.lowercase=maybe'])


def test_loading_reports_nothing(tmp_path):
    """Neither the other weights of a file, nor how transformers would spread the model."""
    config = transformers.BertConfig(**SIZES)
    transformers.BertForMaskedLM(config).save_pretrained(tmp_path)
    reports, logger = [], logging.getLogger('transformers')
    handler = logging.Handler()
    handler.emit = reports.append
    logger.addHandler(handler)
    try:
        build_bert(name=str(tmp_path), pretrained=True, dropout=0.1)
    finally:
        logger.removeHandler(handler)
    assert [report.getMessage() for report in reports] == []
