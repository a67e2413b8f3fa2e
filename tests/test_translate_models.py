"""util.translate's models: language codes, and tiny random Marian, NLLB, M2M-100 and MADLAD."""

import json

import pytest
import torch

from basic import runtime  # noqa: F401  (lets transformers import beside a torchvision of another build)
from basic.errors import ConfigError, DataError
from util.translate import languages
from util.translate.engines import Setup, build, translate

sentencepiece = pytest.importorskip('sentencepiece')

WORDS = 'a man dog runs eats red ball in the park two children play with water on grass'.split()
TEXTS = ['a man runs', 'two children play with a red ball in the park', 'water', 'a dog eats']
SIZES = dict(
    d_model=16,
    encoder_layers=1,
    decoder_layers=1,
    encoder_attention_heads=2,
    decoder_attention_heads=2,
    encoder_ffn_dim=16,
    decoder_ffn_dim=16,
    max_position_embeddings=64,
)


@pytest.fixture(scope='module')
def pieces(tmp_path_factory):
    """A sentence-piece model, and its pieces."""
    folder = tmp_path_factory.mktemp('pieces')
    lines = [' '.join(WORDS[i:] + WORDS[:i]) for i in range(len(WORDS))]
    (folder / 'text').write_text('\n'.join(lines * 5))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / 'text'),
        model_prefix=str(folder / 'spm'),
        vocab_size=70,
        hard_vocab_limit=False,
        minloglevel=2,
        num_threads=1,
    )
    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / 'spm.model'))
    return folder / 'spm.model', [model.id_to_piece(i) for i in range(model.get_piece_size())]


def save(folder, model, files, **settings):
    model.save_pretrained(folder)
    for name, content in files.items():
        if isinstance(content, bytes):
            (folder / name).write_bytes(content)
        else:
            (folder / name).write_text(json.dumps(content))
    (folder / 'tokenizer_config.json').write_text(json.dumps(settings))
    return str(folder)


def vocabulary(pieces, *more):
    """token -> id; <pad> is the last one, as in OPUS-MT."""
    special = ('</s>', '<unk>')
    names = [piece for piece in dict.fromkeys([*special, *more, *pieces]) if piece != '<s>']
    return {piece: i for i, piece in enumerate([*names, '<pad>'])}


@pytest.fixture(scope='module')
def marian(pieces, tmp_path_factory):
    """A function that makes a Marian model of a direction."""
    from transformers import MarianConfig, MarianMTModel

    def make(source='en', target='es', codes=()):
        spm, names = pieces
        vocab = vocabulary(names, *codes)
        torch.manual_seed(0)
        model = MarianMTModel(
            MarianConfig(
                vocab_size=len(vocab),
                decoder_start_token_id=vocab['<pad>'],
                pad_token_id=vocab['<pad>'],
                eos_token_id=0,
                forced_eos_token_id=0,
                **SIZES,
            )
        )
        return save(
            tmp_path_factory.mktemp('marian'),
            model,
            {'source.spm': spm.read_bytes(), 'target.spm': spm.read_bytes(), 'vocab.json': vocab},
            tokenizer_class='MarianTokenizer',
            source_lang=source,
            target_lang=target,
        )

    return make


def m2m_model(tokens):
    from transformers import M2M100Config, M2M100ForConditionalGeneration

    torch.manual_seed(0)
    config = M2M100Config(
        vocab_size=tokens,
        pad_token_id=1,
        eos_token_id=2,
        bos_token_id=0,
        decoder_start_token_id=2,
        init_std=0.5,
        **SIZES,
    )
    return M2M100ForConditionalGeneration(config)


@pytest.fixture(scope='module')
def nllb(pieces, tmp_path_factory):
    from transformers import NllbTokenizer

    vocab = {'<s>': 0, '<pad>': 1, '</s>': 2, '<unk>': 3}
    for piece in pieces[1]:
        vocab.setdefault(piece, len(vocab))
    tokenizer = NllbTokenizer(vocab=vocab, merges=[])
    folder = tmp_path_factory.mktemp('nllb')
    tokenizer.save_pretrained(folder)
    m2m_model(len(tokenizer)).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope='module')
def m2m(pieces, tmp_path_factory):
    vocab = {'<s>': 0, '<pad>': 1, '</s>': 2, '<unk>': 3}
    for piece in pieces[1]:
        vocab.setdefault(piece, len(vocab))
    return save(
        tmp_path_factory.mktemp('m2m'),
        m2m_model(len(vocab) + 108),
        {'vocab.json': vocab, 'sentencepiece.bpe.model': pieces[0].read_bytes()},
        tokenizer_class='M2M100Tokenizer',
    )


@pytest.fixture(scope='module')
def madlad(pieces, tmp_path_factory):
    from transformers import T5Config, T5ForConditionalGeneration, T5Tokenizer

    vocab = [('<pad>', 0.0), ('</s>', 0.0), ('<unk>', 0.0), ('<2es>', 0.0), ('<2en>', 0.0)]
    vocab += [(piece, -1.0 - i) for i, piece in enumerate(pieces[1][3:])]
    tokenizer = T5Tokenizer(vocab=vocab, extra_ids=0)
    folder = tmp_path_factory.mktemp('madlad')
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    T5ForConditionalGeneration(
        T5Config(
            vocab_size=len(tokenizer),
            d_model=16,
            d_kv=8,
            d_ff=16,
            num_layers=1,
            num_heads=2,
            decoder_start_token_id=0,
        )
    ).save_pretrained(folder)
    return str(folder)


def setup(model, engine='transformers', **options):
    return Setup(engine=engine, model=model, device='cpu', **{'beams': 2, **options})


def check(model, engine='transformers'):
    """As many lines as captions, the same each time and in another order; returns the engine."""
    engine = build(setup(model, engine, batch_size=8), 'en', 'es')
    found = translate(engine, [*TEXTS, ' '])
    assert len(found) == 5 and found[4] == '' and any(found)
    assert found == translate(engine, [*TEXTS, ' '])
    assert translate(engine, TEXTS[::-1]) == found[3::-1]
    return engine


def test_marian(marian):
    engine = check(marian())
    assert engine.record['family'] == 'marian' and engine.record['precision'] == 'fp32'
    with pytest.raises(ConfigError, match="translates from 'en', but 'es' is needed.*--back-model"):
        build(setup(engine.setup.model), 'es', 'en')


def test_marian_with_language_tokens(marian):
    model = marian('eng', 'roa', codes=('>>spa<<', '>>fra<<'))
    engine = check(model)
    assert engine.languages.prefix == '>>spa<< '
    token = engine.tokenizer.get_vocab()['>>spa<<']
    assert [ids[0][0] for _, ids in engine.batches(['a dog'])] == [token]
    with pytest.raises(ConfigError, match="does not know the language 'de'.*fra, spa"):
        build(setup(model), 'en', 'de')


def test_nllb(nllb):
    engine = check(nllb)
    assert engine.languages.codes == ('eng_Latn', 'spa_Latn')
    spanish = engine.tokenizer.convert_tokens_to_ids('spa_Latn')
    assert engine.generation.forced_bos_token_id == spanish
    with pytest.raises(ConfigError, match="'spx_Latn' .did you mean '[a-z]+_Latn' for"):
        build(setup(nllb), 'en', 'spx_Latn')


def test_m2m(m2m):
    engine = check(m2m)
    assert engine.record['family'] == 'm2m_100' and engine.languages.token == '__es__'


def test_madlad(madlad):
    engine = check(madlad)
    assert engine.languages.prefix == '<2es> '
    token = engine.tokenizer.convert_tokens_to_ids('<2es>')
    assert token in next(engine.batches(['a dog']))[1][0]


@pytest.mark.parametrize('family', ['marian', 'nllb', 'm2m'])
def test_ctranslate2_agrees_with_transformers(family, request, tmp_path, monkeypatch):
    pytest.importorskip('ctranslate2')
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    model = request.getfixturevalue(family)
    model = model() if family == 'marian' else model
    ours = build(setup(model, beams=1, batch_size=1), 'en', 'es')
    theirs = build(
        setup(model, 'ctranslate2', beams=1, batch_size=1, precision='float32'), 'en', 'es'
    )
    # A random model repeats itself up to the limit, which the two engines count differently.
    pairs = list(zip(translate(ours, TEXTS), translate(theirs, TEXTS), strict=True))
    for one, other in pairs:
        shared = min(len(one), len(other))
        assert one[:shared] == other[:shared] and abs(len(one) - len(other)) < 40
    assert any(one and other for one, other in pairs)
    assert list((tmp_path / 'nrccr/ctranslate2').glob('*/model.bin'))


def test_long_captions_are_cut(marian):
    engine = build(setup(marian(), beams=1), 'en', 'es')
    assert len(engine.lines([' '.join(WORDS * 20)])) == 1 and engine.cut == 1


def test_other_models_are_refused(tmp_path, marian):
    with pytest.raises(DataError, match='cannot load the model .*nothing'):
        build(setup(str(tmp_path / 'nothing')), 'en', 'es')
    with pytest.raises(ConfigError, match='--precision int3: expected auto, fp32 or bf16'):
        build(setup(marian(), precision='int3'), 'en', 'es')


def test_codes():
    from transformers.models.m2m_100.tokenization_m2m_100 import FAIRSEQ_LANGUAGE_CODES as M2M
    from transformers.models.nllb.tokenization_nllb import FAIRSEQ_LANGUAGE_CODES as NLLB

    assert set(languages.NLLB.values()) <= set(NLLB)
    for lang, nllb, m2m in (
        ('zh', 'zho_Hans', 'zh'),
        ('cn', 'zho_Hans', 'zh'),
        ('pt-BR', 'por_Latn', 'pt'),
        ('spa', 'spa_Latn', 'es'),
        ('deu_Latn', 'deu_Latn', 'de'),
        ('enc', 'eng_Latn', 'en'),
        ('no', 'nob_Latn', 'no'),
    ):
        assert languages.model_code(lang, NLLB, 'NLLB') == nllb
        assert languages.model_code(lang, M2M['m2m100'], 'M2M') == m2m
    assert languages.model_code('zh-Hant', NLLB, 'NLLB') == 'zho_Hant'
