"""load_model and basic/retriever.py: a vector is the item's own, whatever it is encoded with;
what models of each kind and layout take, and what they refuse."""

import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tiny
import torch
from conftest import FEATURE_DIM, IMAGE_SIZE, WORDS
from PIL import Image
from test_released import released  # noqa: F401  (a fixture)

from basic.caption import Tokens
from basic.checkpoint import BEST, CheckpointError
from basic.pretrained.tokenizer import load_tokenizer, save_tokenizer
from basic.rescoring import frozen
from evaluation import load_model
from model import build_model

TEXTS = [' '.join(WORDS[start : start + 1 + start % 5]) for start in range(14)]
ROUNDING = {'rtol': 0, 'atol': 1e-6}


@pytest.fixture
def make_run(make_config, bert_folder, tmp_path):
    """make_run(kind, *options, **more) -> a run folder with a random model; more: see
    tiny.save_model."""

    def make(kind='frames', *options, name='run/seed_1', **more):
        # not read from a file, which takes long
        config = make_config(
            kind, 'text.pretrained=false', 'visual.clip_pretrained=false', *options
        )
        tokenizer = load_tokenizer(bert_folder, False)
        torch.manual_seed(3)
        model = build_model(config, FEATURE_DIM)
        for part in (model.text_projection, model.visual_projection):  # as after some training
            torch.nn.init.normal_(part.norm.running_mean, std=0.1)
        folder = tmp_path / name
        folder.mkdir(parents=True)
        save_tokenizer(tokenizer, folder / 'tokenizer')
        tiny.save_model(folder / BEST, config, model, **more)
        return folder

    return make


_MODELS = {}


@pytest.fixture
def make_model(make_run):
    """make_model(kind, *options) -> its Retriever, made once and not to be changed."""

    def make(*how):
        if how not in _MODELS:
            _MODELS[how] = load_model(make_run(*how, name=f'{len(_MODELS)}/seed_1'))
        return _MODELS[how]

    return make


def videos(*counts):
    generator = np.random.default_rng(1)
    return [generator.normal(size=(count, FEATURE_DIM)).astype(np.float32) for count in counts]


def images(folder, count):
    """Image files of different shapes, kinds and endings."""
    generator, paths = np.random.default_rng(2), []
    for number in range(count):
        pixels = generator.integers(0, 255, (20 + number, 31 - number, 3), dtype=np.uint8)
        image = Image.fromarray(pixels).convert(('RGB', 'L', 'RGBA')[number % 3])
        paths.append(folder / f'{number}.{"png" if number % 2 or number % 3 == 2 else "jpg"}')
        image.save(paths[-1])
    return paths


def is_alone(encode, items):
    """Whether each item's vector is that of the item alone: but for rounding, and to the last bit
    where each is encoded by itself."""
    together, one_by_one = encode(items), encode(items, batch_size=1)
    torch.testing.assert_close(together, one_by_one, **ROUNDING)
    torch.testing.assert_close(encode(items[::-1], batch_size=3).flip(0), together, **ROUNDING)
    assert torch.equal(one_by_one, torch.cat([encode([item]) for item in items]))
    torch.testing.assert_close(together.norm(dim=1), torch.ones(len(items)), **ROUNDING)
    assert together.dtype == torch.float32 and len({*map(str, together.tolist())}) == len(items)
    return True


# ------------------------------------------------------------------------------------------- texts


@pytest.mark.parametrize('pooling', ['padded_mean', 'mean', 'max'])
def test_a_text_has_its_own_vector(make_model, pooling):
    model = make_model('pooled', f'text.pooling={pooling}')
    assert is_alone(model.encode_text, TEXTS)
    assert is_alone(lambda texts, **more: model.encode_text(texts, 'en', **more), TEXTS)


def test_a_text_is_encoded_at_its_own_length(make_model):
    """Without the padding that a batch of a test would have; released models count that."""
    model = make_model('pooled')
    ids = torch.tensor([model.tokenizer('rot blau hund')['input_ids']])
    with torch.no_grad():
        alone, padded = (
            model.model.encode_text(
                Tokens(
                    torch.nn.functional.pad(ids, (0, more)),
                    torch.nn.functional.pad(torch.ones(ids.shape), (0, more)),
                )
            )
            for more in (0, 4)
        )
    found = model.encode_text(['rot blau hund', 'ein hund', ' '.join(WORDS[:12])])[:1]
    torch.testing.assert_close(found, alone, **ROUNDING)
    assert (alone - padded).abs().max() > 1e-3


def test_threads_share_a_model(make_model):
    model = make_model('pooled')
    expected = [model.encode_text([text]) for text in TEXTS]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda text: model.encode_text([text]), TEXTS * 8))
    assert all(map(torch.equal, found, expected * 8))


def test_branches_and_languages(make_model):
    model = make_model('pooled', 'data.lang=de,fr')
    assert model.languages == ('de', 'fr')
    given = ['A dog,runs!']
    en, tgt = model.encode_text(given, 'en'), model.encode_text(given)
    assert torch.equal(en, model.encode_text(['A dog runs.'])) and not torch.equal(en, tgt)
    assert torch.equal(tgt, model.encode_text(given, lang='fr'))
    with pytest.raises(
        ValueError, match="lang='zh': this model was trained for de, fr, and for en"
    ):
        model.encode_text(given, 'zh')


def test_long_and_empty_texts(make_model, caplog):
    model = make_model('pooled', 'text.positions=6')
    long, empty = ['hund'] * 9, ''
    cut = model.encode_text([' '.join(long)])
    assert torch.equal(cut, model.encode_text([' '.join(long[:4])]))  # and [CLS], [SEP]
    assert '1 texts are longer than 6 tokens' in caplog.text
    assert model.encode_text([empty], 'en').isfinite().all()


@pytest.mark.parametrize(
    'texts, message',
    [
        ([], 'an empty list'),
        ('ein Hund', 'expected a list of texts'),
        (None, 'expected a list of texts, such as .text.; found NoneType'),
        (['ein', 3], r'texts\[1\] is int 3'),
        (['\ud83d'], 'half of a surrogate pair at character 1'),
    ],
)
def test_what_is_no_list_of_texts(make_model, texts, message):
    model = make_model('pooled')
    with pytest.raises(ValueError, match=message):
        model.encode_text(texts)


# ------------------------------------------------------------------------------------ visual items


def test_images_from_paths_and_from_pil(make_model, tmp_path):
    model, paths = make_model('clip'), images(tmp_path, 7)
    assert is_alone(model.encode_images, paths)
    opened = [Image.open(path) for path in paths]
    found = model.encode_images(paths)
    assert torch.equal(model.encode_images(opened), found)
    mixed = [str(path) if number % 2 else opened[number] for number, path in enumerate(paths)]
    assert torch.equal(model.encode_images(mixed), found)
    # as the model itself reads pixels
    side = np.asarray(Image.new('RGB', (IMAGE_SIZE, IMAGE_SIZE), 'teal'))
    pixels = torch.from_numpy(side.copy()).permute(2, 0, 1)[None]
    with torch.no_grad():
        own = model.model.encode_visual(pixels)
    torch.testing.assert_close(model.encode_images([Image.fromarray(side)]), own, **ROUNDING)


def test_what_is_no_image(make_model, tmp_path):
    model, (good, *_) = make_model('clip'), images(tmp_path, 1)
    text = tmp_path / 'text.jpg'
    text.write_text('no image')
    cut = tmp_path / 'cut.jpg'
    Image.effect_noise((99, 99), 50).save(cut)
    cut.write_bytes(cut.read_bytes()[:1000])
    for given, message in (
        ([], 'images: an empty list'),
        (good, 'expected a list of paths or PIL images'),
        (Image.open(good), 'expected a list of paths or PIL images'),
        ([good, np.zeros((9, 9, 3))], r'images\[1\] is ndarray'),
        ([good, tmp_path / 'none.jpg'], 'none.jpg: cannot be read as an image'),
        ([good, text], 'text.jpg: cannot be read as an image'),
        ([good, cut], 'cut.jpg: cannot be read'),
        ([Image.open(cut)], 'JpegImageFile.*cannot be decoded'),
    ):
        with pytest.raises(ValueError, match='batch_size=0; expected 1 or more'):
            model.encode_images([good], batch_size=0)
        for size in (1, 64):  # with processes that read ahead, and without
            with pytest.raises(ValueError, match=message):
                model.encode_images(given, batch_size=size)


@pytest.mark.parametrize('pooling', ['padded_mean', 'mean'])
def test_videos(make_model, pooling):
    model = make_model('frames', f'visual.pooling={pooling}')
    given = videos(3, 1, 12, 3, 7, 5, 12)
    assert is_alone(model.encode_videos, given)
    found = model.encode_videos(given)
    assert torch.equal(model.encode_videos([torch.from_numpy(video) for video in given]), found)
    assert torch.equal(model.encode_videos([given[0].tolist()]), model.encode_videos(given[:1]))
    (long,) = videos(40)  # cut to 12 frames
    assert torch.equal(model.encode_videos([long]), model.encode_videos([long[:12]]))


def test_features(make_model):
    model = make_model('pooled')
    given = np.concatenate(videos(7))
    assert is_alone(model.encode_features, given)
    double = torch.from_numpy(given.astype(np.float64))
    assert torch.equal(model.encode_features(double), model.encode_features(given))


def test_the_wrong_kind_of_visual_item(make_model, tmp_path):
    paths = images(tmp_path, 1)
    calls = {
        'frames': ('encode_videos', videos(2)),
        'pooled': ('encode_features', videos(2)[0]),
        'clip': ('encode_images', paths),
    }
    for kind, (right, given) in calls.items():
        model = make_model(kind)
        assert getattr(model, right)(given).shape == (len(given), model.dim) and model.kind == kind
        for other, (wrong, some) in calls.items():
            if other != kind:
                with pytest.raises(ValueError, match=f'this model reads .*: call {right}'):
                    getattr(model, wrong)(some)


def test_what_are_no_features(make_model):
    frames, pooled = make_model(), make_model('pooled')
    (good,) = videos(3)
    broken = good.copy()
    broken[2, 1] = np.nan
    for given, message in (
        ([], 'videos: an empty list'),
        (good, r'videos\[0\]: expected an array of shape \(frames, 10\).*found shape \(10,\)'),
        ([good, good[:, :9]], r'videos\[1\]: .*found shape \(3, 9\)'),
        ([good[:0]], r'found shape \(0, 10\)'),
        ([good, broken], r'videos\[1\]: NaN or infinity'),
        ([good.astype(str)], 'found <U'),
        ([[[1.0] * 10, [1.0]]], 'rows of different lengths'),
        ('video.npy', 'expected a list of arrays'),
        (['video.npy'], r"videos\[0\]: .*found str 'video.npy'"),
    ):
        with pytest.raises(ValueError, match=message):
            frames.encode_videos(given)
    for given, message in (
        (good[0], r'features: expected an array of shape \(items, 10\).*found shape \(10,\)'),
        (good[:0], r'found shape \(0, 10\)'),
        (broken, 'features: NaN or infinity'),
        (None, 'found object'),
    ):
        with pytest.raises(ValueError, match=message):
            pooled.encode_features(given)


# ------------------------------------------------------------------------------------------ search

CHOICE = {
    'chosen_weight': 0.3,
    'chosen_from': [{'weight': 0.3, 'SumR': 50.0}],
    'val_ranges': {
        'de': {'en': {'low': -0.2, 'high': 0.9}, 'tgt': {'low': 0.1, 'high': 0.4}},
        'fr': {'en': {'low': 0.0, 'high': 0.5}, 'tgt': {'low': 0.5, 'high': 0.5}},
    },
}


def test_a_query_ranks_as_the_fused_score_with_fixed_ranges(make_run):
    model = load_model(make_run('pooled', 'data.lang=de,fr', choice=CHOICE))
    assert model.weight == 0.3 and model.ranges['de'] == {'en': (-0.2, 0.9), 'tgt': (0.1, 0.4)}
    visual = model.encode_features(np.concatenate(videos(30)))
    texts, translations = TEXTS[:6], TEXTS[6:12]
    en, tgt = model.encode_text(translations, 'en'), model.encode_text(texts, 'de')
    for lang, weight in (('de', None), ('de', 0.8), ('de', 1), ('de', 0), ('fr', 0.5)):
        query = model.query(texts, translations, lang, weight)
        share, ranges = model.weight if weight is None else weight, model.ranges[lang]
        fused = frozen(
            en @ visual.T,
            tgt @ visual.T,
            share,
            [tuple(map(torch.tensor, ranges[branch])) for branch in ('en', 'tgt')],
        )
        difference = fused - model.score(query, visual)  # the same for all items
        torch.testing.assert_close(difference, difference[:, :1].expand(6, 30), **ROUNDING)
        assert difference.std(dim=1).max() < fused.std(dim=1).min() / 1000
    assert torch.equal(model.query(texts, lang='de'), tgt)
    assert torch.equal(model.query(translations, lang='en'), en)


def test_a_query_where_the_ranges_are_unknown(make_model):
    model = make_model('pooled')
    assert model.ranges == {} and model.weight == 0.2  # train.val_weight
    en, tgt = model.encode_text(['a dog'], 'en'), model.encode_text(['ein hund'])
    torch.testing.assert_close(model.query(['ein hund'], ['a dog']), 0.2 * en + 0.8 * tgt)


def test_what_is_no_query(make_run):
    model = load_model(make_run('pooled', 'data.lang=de,fr', choice=CHOICE))
    for arguments, message in (
        ((['a'], ['b', 'c'], 'de'), '1 texts, but 2 translations'),
        ((['a'], [], 'de'), 'translations: an empty list'),
        ((['a'], None, 'de', 0.5), 'give these, too'),
        ((['a'], ['b'], 'de', 1.5), 'weight=1.5; expected 0 to 1'),
        ((['a'], ['b'], 'de', float('nan')), 'weight=nan'),
        ((['a'], ['b'], 'en'), 'has no translations'),
        ((['a'], ['b']), 'give lang, of de, fr'),
        ((['a'], ['b'], 'zh'), "lang='zh'"),
    ):
        with pytest.raises(ValueError, match=message):
            model.query(*arguments)


def test_scores(make_model, tmp_path, monkeypatch):
    model = make_model('pooled')
    generator = torch.Generator().manual_seed(0)
    queries, visual = (torch.randn(n, model.dim, generator=generator) for n in (5, 23))
    expected = queries @ visual.T
    np.save(tmp_path / 'visual.npy', visual.numpy())
    mapped = np.load(tmp_path / 'visual.npy', mmap_mode='r')
    monkeypatch.setattr('basic.retriever.BLOCK', 4)
    for given in (visual, visual.numpy(), mapped):
        torch.testing.assert_close(model.score(queries, given), expected, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match=r'visual: expected shape \(items, 14\), found \(23, 3\)'):
        model.score(queries, visual[:, :3])
    with pytest.raises(ValueError, match=r'queries: expected shape \(items, 14\), found \(14,\)'):
        model.score(queries[0], visual)


# --------------------------------------------------------------------------------- where it lies


def test_another_folder_than_that_of_the_training(make_run, tmp_path):
    """A run that was copied to a machine that has neither the BERT nor the data."""
    folder = make_run('pooled')
    model = load_model(folder)
    assert model.name == 'run/seed_1'
    moved = tmp_path / 'elsewhere/german'
    shutil.copytree(folder, moved)
    content = torch.load(moved / BEST, weights_only=True)
    content['config']['text']['bert'] = '/gone/bert'
    torch.save(content, moved / BEST)
    found = load_model(moved / BEST)
    assert found.name == 'german' and found.fingerprint == model.fingerprint
    assert torch.equal(found.encode_text(TEXTS), model.encode_text(TEXTS))


def test_the_fingerprint_is_that_of_the_vectors(make_model, make_run):
    others = ['text.pooling=max'], ['visual.max_frames=5'], ['text.clean_en=false']
    found = [make_model('frames', *options).fingerprint for options in ([], *others)]
    assert len({*found}) == 4
    same = make_run('frames', 'train.lr=0.5', 'data.collection=mine')
    assert load_model(same).fingerprint == found[0]
    content = torch.load(same / BEST, weights_only=True)
    content['model']['text_projection.linear.bias'][0] += 1
    torch.save(content, same / BEST)
    assert load_model(same).fingerprint != found[0]


@pytest.mark.parametrize('kind', ['video', 'clip', 'features'])
def test_the_released_layout(released, tmp_path, kind):  # noqa: F811
    torch.save(released(kind), tmp_path / 'model_best.pth.tar')
    model = load_model(tmp_path, tokenizer=tiny.make_bert(tmp_path / 'bert'))
    assert model.ranges == {} and model.weight == 0.25 and model.languages == ('fr',)
    assert model.config.text.pooling == 'padded_mean' and is_alone(model.encode_text, TEXTS)
    width = model.model.architecture['feature_dim']
    found = {
        'video': lambda: model.encode_videos([np.ones((3, width))]),
        'clip': lambda: model.encode_images([Image.new('RGB', (50, 40), 'teal')]),
        'features': lambda: model.encode_features(np.ones((1, width))),
    }[kind]()
    assert found.shape == (1, model.dim) and model.score(found, found).item() == pytest.approx(1)


def test_no_model(make_run, bert_folder, tmp_path):
    with pytest.raises(CheckpointError, match='no checkpoint at'):
        load_model(tmp_path / 'none')
    folder = make_run('pooled')
    with pytest.raises(ValueError, match='the tokenizer has .* tokens, but'):
        big = tmp_path / 'big'
        shutil.copytree(bert_folder, big)
        with open(big / 'vocab.txt', 'a') as file:
            file.write('more\n')
        load_model(folder, tokenizer=big)
    with pytest.raises(ValueError, match="device 'gpu': expected auto, cpu"):
        load_model(folder, device='gpu')
