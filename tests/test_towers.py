"""Image towers of each family, small and random, from their configs: preprocessing, a training
step, a checkpoint."""

import json

import numpy as np
import pytest
import tiny
import torch
import transformers
from PIL import Image
from roots import make_image_root, make_tokenizer

from basic.checkpoint import load_checkpoint
from basic.images import CLIP_MEAN, CLIP_STD, ImageSource, Preprocessing
from basic.pretrained.encoders import weights_fingerprint
from basic.pretrained.towers import build_clip, clip_preprocessing, preprocessing_of, vision_config
from data_provider import build_loaders
from model import build_model, load_weights, refuse_misfit

SIZES = {
    'hidden_size': 16,
    'intermediate_size': 24,
    'num_hidden_layers': 1,
    'num_attention_heads': 2,
}
VISION = {**SIZES, 'image_size': 16, 'patch_size': 8}
TEXT = {**SIZES, 'vocab_size': 30, 'bos_token_id': 1, 'eos_token_id': 2, 'pad_token_id': 0}
HALF = {'image_mean': [0.5, 0.5, 0.5], 'image_std': [0.5, 0.5, 0.5]}
SQUARE = {'size': {'height': 16, 'width': 16}}
CROPPED = {'size': {'shortest_edge': 16}, 'crop_size': {'height': 16, 'width': 16}}
# family -> (model type, class that is saved, image processor, what it says, the Preprocessing)
FAMILIES = {
    'CLIP': ('clip', 'CLIPModel', 'CLIPImageProcessor', CROPPED, Preprocessing(16)),
    'a tower alone': (
        'clip_vision_model',
        'CLIPVisionModelWithProjection',
        'CLIPImageProcessor',
        {**CROPPED, **HALF, 'size': {'shortest_edge': 20}},
        Preprocessing(16, resize=20, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
    ),
    'MetaCLIP 2': (
        'metaclip_2',
        'MetaClip2Model',
        'CLIPImageProcessor',
        CROPPED,
        Preprocessing(16),
    ),
    'SigLIP': (
        'siglip',
        'SiglipModel',
        'SiglipImageProcessor',
        SQUARE,
        Preprocessing(16, squeeze=True, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
    ),
    # of a fixed size, it has SigLIP's architecture
    'SigLIP 2': (
        'siglip',
        'SiglipModel',
        'SiglipImageProcessor',
        {**SQUARE, 'resample': 2},
        Preprocessing(
            16, squeeze=True, resample='bilinear', mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)
        ),
    ),
    'Chinese-CLIP': (
        'chinese_clip',
        'ChineseCLIPModel',
        'ChineseCLIPImageProcessor',
        {**SQUARE, 'do_center_crop': False},
        Preprocessing(16, squeeze=True),
    ),
    'AltCLIP': ('altclip', 'AltCLIPModel', 'CLIPImageProcessor', CROPPED, Preprocessing(16)),
}


def complaint(function, *args, **options):
    return str(pytest.raises(ValueError, function, *args, **options).value)


def make_folder(family, folder, seed=0):
    """A whole model of a family, random, as transformers saves it."""
    kind, name, processor, says, _ = FAMILIES[family]
    torch.manual_seed(seed)
    if kind.endswith('vision_model'):
        config = transformers.AutoConfig.for_model(kind, **VISION, projection_dim=12)
    else:
        project = {} if kind == 'siglip' else {'projection_dim': 12}
        text = {**TEXT, 'project_dim': 12} if kind == 'altclip' else TEXT
        config = transformers.AutoConfig.for_model(
            kind, vision_config={**VISION, **project}, text_config=text, **project
        )
    getattr(transformers, name)(config).save_pretrained(folder)
    getattr(transformers, processor)(**says).save_pretrained(folder)
    return folder


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    """folders(family) -> the folder of its model, which is made once."""
    root, made = tmp_path_factory.mktemp('towers'), {}

    def get(family):
        if family not in made:
            made[family] = make_folder(family, root / family)
        return made[family]

    return get


@pytest.fixture
def images(tmp_path):
    """An ImageSource's folder: two images, one wide, one high."""
    numbers = np.random.default_rng(0)
    for name, shape in (('a', (40, 60, 3)), ('b', (70, 30, 3))):
        coarse = Image.fromarray(numbers.integers(0, 256, (5, 5, 3), dtype=np.uint8))
        coarse.resize(shape[1::-1], Image.Resampling.BICUBIC).save(tmp_path / f'{name}.png')
    return tmp_path


@pytest.mark.parametrize('family', FAMILIES)
def test_a_tower_gives_what_transformers_gives(family, folders, images, make_config):
    """From the files to the embeddings: class, projection or pooled output, size, mean."""
    folder, expected = folders(family), FAMILIES[family][-1]
    assert clip_preprocessing(str(folder), pretrained=True) == expected
    encoder = build_model(make_config('clip', f'visual.clip={folder}')).visual_encoder.eval()
    assert encoder.preprocessing == expected
    source = ImageSource(
        str(images / '{id}.png'), ['a', 'b'], preprocessing=expected, where='images'
    )
    ours = encoder.embed(source.batch(['a', 'b'])[0])  # (2, P)
    assert ours.shape == (2, encoder.linear.in_features)

    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    pixels = processor(
        images=[Image.open(images / f'{name}.png') for name in 'ab'], return_tensors='pt'
    )
    with torch.no_grad():
        if 'vision_model' in FAMILIES[family][0]:
            whole = transformers.CLIPVisionModelWithProjection.from_pretrained(folder).eval()
            theirs = whole(**pixels).image_embeds
        else:
            whole = transformers.AutoModel.from_pretrained(folder).eval()
            theirs = whole.get_image_features(**pixels).pooler_output
        mean, std = (
            torch.tensor(values)[:, None, None] for values in (expected.mean, expected.std)
        )
        own = source.batch(['a', 'b'])[0] / 255
        # PIL's resizing and that of torchvision differ by a grey level here and there
        assert ((own - mean) / std - pixels['pixel_values']).abs().max() < 0.05
    torch.testing.assert_close(ours, theirs, atol=0.05 * float(theirs.std()), rtol=0)


@pytest.mark.parametrize('family', FAMILIES)
def test_a_tower_is_trained_and_rebuilt_from_its_checkpoint(
    family, folders, tmp_path, make_config, make_batch
):
    config = make_config('clip', f'visual.clip={folders(family)}', 'visual.train_clip=true')
    torch.manual_seed(0)
    model = build_model(config)
    batch = make_batch('clip')
    before = weights_fingerprint(model.visual_encoder.clip)
    optimizer = torch.optim.Adam(model.main_parameters(), lr=0.01)
    loss = (model(batch).visual @ torch.ones(model.visual_projection.linear.out_features)).sum()
    loss.backward()
    unused = [
        name
        for name, parameter in model.visual_encoder.named_parameters()
        if parameter.grad is None and 'vision_model' in name
    ]
    assert unused == []
    optimizer.step()
    assert weights_fingerprint(model.visual_encoder.clip) != before
    assert not any('text_model' in name for name in model.visual_encoder.state_dict())

    tiny.save_model(tmp_path / 'model.pt', config, model)
    gone = make_config('clip', 'visual.clip=nowhere/at-all', 'visual.train_clip=true')
    checkpoint = load_checkpoint(tmp_path / 'model.pt')
    refuse_misfit(gone, checkpoint)
    again = build_model(gone, architecture=checkpoint.architecture)
    load_weights(again, checkpoint)
    assert again.architecture == model.architecture and again.preprocessing == model.preprocessing
    pixels = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    model.eval(), again.eval()
    assert torch.equal(again.encode_visual(pixels), model.encode_visual(pixels))


def test_an_older_checkpoint_has_the_preprocessing_of_clip(folders, make_config):
    config = make_config('clip', f'visual.clip={folders("a tower alone")}')
    architecture = dict(build_model(config).architecture)
    assert build_model(config, architecture=architecture).preprocessing.resize == 20
    del architecture['preprocessing']
    assert build_model(config, architecture=architecture).preprocessing == Preprocessing(16)
    for wrong in ({'mean': [0, 0]}, {'std': [0, 1, 1]}, {'image_size': -1}, {'resample': 'best'}):
        architecture['preprocessing'] = wrong
        assert next(iter(wrong)) in complaint(build_model, config, architecture=architecture)


def test_caches_tell_preprocessings_apart(folders, tmp_path, make_config, monkeypatch):
    monkeypatch.setattr('data_provider.cpu_count', lambda: 0)  # no worker processes
    root, tokenizer = make_image_root(tmp_path), make_tokenizer(tmp_path)

    def names(family, kind):
        config = make_config(
            'clip',
            f'compute.image_cache={kind}',
            f'visual.clip={folders(family)}',
            'train.workers=0',
        )
        model = build_model(config)
        build_loaders(
            config, root, tokenizer, splits=('val',), preprocessing=model.preprocessing, model=model
        )
        return {path.name for path in (root / 'multi30k/cache').iterdir() if path.is_dir()}

    clip = names('CLIP', 'pixels')
    assert len(clip) == 1 == len(names('MetaCLIP 2', 'pixels'))  # the same pixels
    assert len(names('SigLIP', 'pixels')) == 2 and len(names('SigLIP 2', 'pixels')) == 3
    assert len(names('SigLIP', 'embeddings')) == 4
    # The same weights, but another mean.
    says = folders('SigLIP') / 'preprocessor_config.json'
    kept = says.read_text()
    says.write_text(json.dumps({**json.loads(kept), 'image_mean': [0.4, 0.5, 0.5]}))
    assert len(names('SigLIP', 'embeddings')) == 5 and len(names('SigLIP', 'pixels')) == 5
    says.write_text(kept)


def test_what_is_no_such_tower_is_refused_by_name(folders, tmp_path):
    def refusal(folder):
        said = complaint(build_clip, name=str(folder), pretrained=True)
        assert "key 'visual.clip': cannot load" in said and str(folder) in said
        assert (
            said.split('\n')[0] == complaint(clip_preprocessing, str(folder), True).split('\n')[0]
        )
        return said

    def rewritten(family, **changes):
        folder = make_folder(family, tmp_path / f'{family} {len(list(tmp_path.iterdir()))}')
        tree = json.loads((folder / 'config.json').read_text())
        tree['vision_config'] |= changes
        (folder / 'config.json').write_text(json.dumps(tree))
        return folder

    naflex = tmp_path / 'naflex'
    naflex.mkdir()
    (naflex / 'config.json').write_text('{"model_type": "siglip2"}')
    assert 'NaFlex' in refusal(naflex)
    (naflex / 'config.json').write_text('{"model_type": "chinese_clip_vision_model"}')
    assert 'give the whole Chinese-CLIP' in refusal(naflex)
    (naflex / 'config.json').write_text(
        '{"model_type": "jina_clip", "auto_map": {"AutoConfig": "jina--configuration.Config"}}'
    )
    assert 'needs code of its own' in refusal(naflex) and 'never run' in refusal(naflex)
    assert 'pooled output' in refusal(rewritten('SigLIP', vision_use_head=False))
    assert 'expected one size' in refusal(rewritten('SigLIP', image_size=[16, 16]))


def test_a_preprocessing_that_cannot_be_done_is_refused(folders, tmp_path):
    whole = transformers.SiglipImageProcessor(**SQUARE).to_dict()
    assert preprocessing_of(whole, 16).squeeze
    for change in (
        {'do_resize': False},
        {'do_normalize': False},
        {'rescale_factor': 1 / 127.5},
        {'size': {'height': 16, 'width': 18}},
        {'size': {'shortest_edge': 16}},
        {'size': {}},
        {'resample': 9},
        {'resample': None},
    ):
        assert 'something else than' in complaint(preprocessing_of, {**whole, **change}, 16), change
    assert 'found None' in complaint(preprocessing_of, {**whole, 'image_mean': None}, 16)
    assert 'makes images of 16' in complaint(preprocessing_of, whole, 24)

    folder = make_folder('SigLIP', tmp_path / 'without')
    (folder / 'preprocessor_config.json').unlink()
    assert 'has no preprocessor_config.json' in complaint(clip_preprocessing, str(folder), True)
    folder = make_folder('CLIP', tmp_path / 'clip')
    (folder / 'preprocessor_config.json').unlink()
    assert clip_preprocessing(str(folder), True) == Preprocessing(16)


def test_the_tower_of_the_paper_has_the_numbers_of_clip(tmp_path):
    assert Preprocessing().unlike_clip('resize', 'squeeze', 'resample', 'mean', 'std') == {}
    assert (Preprocessing().mean, Preprocessing().std) == (CLIP_MEAN, CLIP_STD)
    assert str(Preprocessing()) == 'images of 224 x 224'
    assert preprocessing_of(transformers.CLIPImageProcessor().to_dict(), 224) == Preprocessing()
    config = transformers.AutoConfig.for_model('clip')
    assert vision_config(config).image_size == 224
    # as the file of openai/clip-vit-base-patch32 says it
    (tmp_path / 'preprocessor_config.json').write_text(
        json.dumps(
            {
                'crop_size': 224,
                'do_center_crop': True,
                'do_normalize': True,
                'do_resize': True,
                'feature_extractor_type': 'CLIPFeatureExtractor',
                'image_mean': CLIP_MEAN,
                'image_std': CLIP_STD,
                'resample': 3,
                'size': 224,
            }
        )
    )
    config.save_pretrained(tmp_path)
    assert clip_preprocessing(str(tmp_path), pretrained=False) == Preprocessing()
