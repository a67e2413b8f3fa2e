"""Zero-shot baselines: dual encoders of two kinds on raw images, against features computed one by
one."""

import json
import shutil

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from roots import CONFIGS, IMAGES, make_image_root
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch.nn import functional as F

from basic.metric import retrieval_metrics
from basic.pretrained import hub
from basic.scoring import fuse
from util import zero_shot
from util.table.runs import read_runs
from util.zero_shot import main, zero_shot_config

from transformers import (
    BertConfig,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipModel,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
    ViTConfig,
)

WORDS = [
    '[PAD]',
    '[UNK]',
    '[CLS]',
    '[SEP]',
    'a',
    'man',
    'dog',
    'runs',
    'eats',
    'red',
    'un',
    'chien',
    '狗',
    '人',
]
SMALL = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
TEXT, VISION = dict(SMALL, vocab_size=len(WORDS)), dict(SMALL, image_size=16, patch_size=8)
LONGEST = 6  # tokens of the text towers: some captions must be cut


def clip():
    return CLIPModel(
        CLIPConfig(
            text_config=dict(TEXT, max_position_embeddings=LONGEST, eos_token_id=3),
            vision_config=VISION,
            projection_dim=12,
        )
    )


def siglip():
    return SiglipModel(
        SiglipConfig(text_config=dict(TEXT, max_position_embeddings=LONGEST), vision_config=VISION)
    )


def vision_text():
    """A BERT and a ViT side by side."""
    config = VisionTextDualEncoderConfig.from_vision_text_configs(
        ViTConfig(**VISION), BertConfig(**TEXT, max_position_embeddings=LONGEST), projection_dim=12
    )
    return VisionTextDualEncoderModel(config)


def save(folder, model, inputs):
    """Model, tokenizer and image processor, as transformers saves them; `inputs`: what the
    tokenizer returns."""
    model.save_pretrained(folder)
    backend = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token='[UNK]')
    )
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single='[CLS] $A [SEP]', special_tokens=[('[CLS]', 2), ('[SEP]', 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token='[UNK]', pad_token='[PAD]', model_input_names=inputs
    ).save_pretrained(folder)
    CLIPImageProcessor(
        size={'shortest_edge': 16}, crop_size={'height': 16, 'width': 16}
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    return make_image_root(tmp_path_factory.mktemp('root'))


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    base = tmp_path_factory.mktemp('models')
    torch.manual_seed(0)
    plain = ['input_ids', 'attention_mask']
    return {
        'clip': save(base / 'clip', clip(), plain),
        'siglip': save(base / 'siglip', siglip(), ['input_ids']),
        'vision_text': save(base / 'vision_text', vision_text(), [*plain, 'token_type_ids']),
    }


def arguments(root, model, *more):
    return [
        '--config',
        str(CONFIGS / 'multi30k.yaml'),
        '--rootpath',
        str(root),
        '--model',
        str(model),
        '--batch-size',
        '2',
        'train.workers=0',
        *more,
    ]


def captions(root, name):
    lines = (
        (root / f'multi30k/TextData/multi30k{name}.caption.txt')
        .read_text(encoding='utf-8')
        .splitlines()
    )
    return {line.split('#')[0]: line.partition(' ')[2] for line in lines}


@torch.no_grad()
def one_by_one(kind, folder, root):
    """Test scores of both branches, and owner: each caption and image by itself, written out."""
    model = {'clip': CLIPModel, 'siglip': SiglipModel, 'vision_text': VisionTextDualEncoderModel}[
        kind
    ]
    model, processor = (
        model.from_pretrained(folder).eval(),
        CLIPImageProcessor.from_pretrained(folder),
    )
    images = [
        model.get_image_features(
            **processor(
                Image.open(root / f'multi30k/flickr30k-images/{name}.jpg').convert('RGB'),
                return_tensors='pt',
            )
        ).pooler_output[0]
        for name in IMAGES['test']
    ]
    scores = []
    for name in ('test_google_de2enc_2016_task1', 'test_de_2016_task1'):
        rows = []
        for text in captions(root, name).values():
            inner = [WORDS.index(word) if word in WORDS else 1 for word in text.split()][
                : LONGEST - 2
            ]
            ids = [2, *inner, 3] + [0] * (LONGEST - 2 - len(inner)) * (kind == 'siglip')
            rows.append(model.get_text_features(input_ids=torch.tensor([ids])).pooler_output[0])
        scores.append(
            F.normalize(torch.stack(rows), dim=1) @ F.normalize(torch.stack(images), dim=1).T
        )
    owner = [IMAGES['test'].index(name) for name in captions(root, 'test_de_2016_task1')]
    return *scores, owner


@pytest.mark.parametrize('kind', ['clip', 'siglip', 'vision_text'])
def test_the_figures_are_those_of_the_model(root, folders, kind, capsys):
    name = f'zero_{kind}'
    assert main(arguments(root, folders[kind], f'name={name}')) == 0
    folder = root / f'multi30k/runs/{name}_de/seed_1'
    report = json.loads((folder / 'metrics.json').read_text())
    en, tgt, owner = one_by_one(kind, folders[kind], root)
    assert [row['weight'] for row in report['rows']] == [1.0, 0.8, 0.5, 0.2, 0.0]
    for row in report['rows']:
        expected = retrieval_metrics(fuse(en, tgt, row['weight']), owner)
        assert row['t2v'] == pytest.approx(expected['t2v']) and row['v2t'] == pytest.approx(
            expected['v2t']
        )
    assert 'SumR' in capsys.readouterr().out
    (run,) = read_runs([folder])  # as the table reads it
    assert run.chosen and run.config.name == name and run.config.visual.clip == str(folders[kind])
    assert run.hits(run.weight)['t2v'].shape == (2,)


def test_the_embeddings_are_those_of_the_model(root, folders):
    """Closer than ranks of a few images can show."""
    for kind, folder in folders.items():
        config = zero_shot_config([CONFIGS / 'multi30k.yaml'], ['train.workers=0'], folder)
        model, tokenizer, processor = zero_shot.build_dual_encoder(str(folder))
        encoder = zero_shot.DualEncoder(model, tokenizer, torch.device('cpu'))
        assert encoder.max_tokens == LONGEST
        visual, en, tgt = zero_shot.encode(
            encoder, zero_shot.open_split(config, root, 'test', processor, 2)
        )
        expected = one_by_one(kind, folder, root)
        for ours, theirs in zip((en, tgt), expected):
            assert torch.allclose(
                F.normalize(ours, dim=1) @ F.normalize(visual, dim=1).T, theirs, atol=1e-5
            ), kind
        assert theirs.std() > 1e-4


def test_another_split_goes_beside_it_and_another_model_does_not(root, folders, capsys):
    assert main(arguments(root, folders['clip'], '--no-val')) == 0
    folder = root / 'multi30k/runs/zero_shot_de/seed_1'
    assert json.loads((folder / 'metrics.json').read_text())['chosen_weight'] is None
    assert main(arguments(root, folders['clip'], '--split', 'val')) == 0
    assert {path.name for path in folder.iterdir()} == {
        'config.yaml',
        'run.json',
        'metrics.json',
        'ranks.npz',
        'metrics_val.json',
        'ranks_val.npz',
        'report.html',
        'report_val.html',
    }
    page = (folder / 'report.html').read_text()
    assert 'By noise' in page and 'By length' not in page
    assert yaml.safe_load((folder / 'config.yaml').read_text())['name'] == 'zero_shot'
    before = (folder / 'metrics.json').read_bytes()
    assert main(arguments(root, folders['siglip'])) == 2
    message = capsys.readouterr().err
    assert (
        'visual.clip' in message
        and 'name=NAME' in message
        and (folder / 'metrics.json').read_bytes() == before
    )


def test_videos_have_no_images_to_read(root, folders, capsys):
    argv = arguments(root, folders['clip'])
    argv[1] = str(CONFIGS / 'vatex.yaml')
    assert main(argv) == 2
    assert 'visual.kind=clip needs a template' in capsys.readouterr().err


def test_missing_and_broken_images_are_named(folders, tmp_path, capsys):
    root = make_image_root(tmp_path / 'root')
    images = root / 'multi30k/flickr30k-images'
    (images / 'g.jpg').write_bytes(b'no image')
    assert main(arguments(root, folders['clip'])) == 2
    assert f'{images}/g.jpg: cannot be read as an image' in capsys.readouterr().err
    (images / 'g.jpg').unlink()
    assert main(arguments(root, folders['clip'])) == 2
    assert '1 of the 2 images' in capsys.readouterr().err
    assert not (root / 'multi30k/runs').exists()


def test_what_is_no_dual_encoder_is_refused(
    root, bert_folder, folders, tmp_path, monkeypatch, capsys
):
    assert main(arguments(root, bert_folder, 'name=refused')) == 2
    assert f"cannot use '{bert_folder}': it is a BertModel" in capsys.readouterr().err
    shutil.copytree(folders['clip'], tmp_path / 'half')
    (tmp_path / 'half/preprocessor_config.json').unlink()
    assert main(arguments(root, tmp_path / 'half', 'name=refused')) == 2
    assert 'tokenizer and image processor' in capsys.readouterr().err

    def ask(*args, **kwargs):
        raise ConnectionError('no route to host')

    monkeypatch.setattr(hub, 'get_hf_file_metadata', ask)
    assert main(arguments(root, 'some/hub-name', 'name=refused')) == 2
    message = capsys.readouterr().err
    assert 'no route to host' in message and 'a local folder' in message


def test_one_device(root, folders, capsys):
    assert main(arguments(root, folders['clip'], '--device', 'cpu:2')) == 2
    assert 'one device' in capsys.readouterr().err


def test_owner_of_captions_is_kept(root, folders):
    config = zero_shot_config([CONFIGS / 'multi30k.yaml'], ['train.workers=0'], folders['clip'])
    eval_set = zero_shot.open_split(
        config, root, 'val', zero_shot.build_dual_encoder(str(folders['clip']))[2], 2
    )
    assert eval_set.visual_ids == IMAGES['val']  # e, which has no caption, included
    assert eval_set.visual_of.tolist() == [2, 0] and eval_set.caption_ids == ['f#0', 'd#0']
    assert np.concatenate([inputs['pixel_values'] for inputs, _ in eval_set.visuals]).shape == (
        3,
        3,
        16,
        16,
    )
