"""configs/ablation/: each file fits every collection, changes exactly what it names, and can be
trained."""

from pathlib import Path

import pytest
import torch
import yaml
from conftest import FEATURE_DIM, TINY, VOCABULARY

from basic.collection import Collection
from basic.config import config_to_dict, load_config
from basic.merge import flatten, keys_of
from loss import build_loss
from model import build_model, build_teacher
from train import build_optimizers, train_step
from util.ablate import ABLATIONS, without

from transformers import BertConfig, BertModel

CONFIGS = Path(ABLATIONS).parent
COLLECTIONS = [
    f'{folder}{name}.yaml'
    for folder in ('', 'demo/')
    for name in ('vatex', 'msrvttcn', 'multi30k', 'mscoco')
]
EVERY_TERM = {'triplet_en', 'triplet_tgt', 'kd_sim', 'kd_feat', 'triplet_back', 'adversarial'}
DISTILLATION = {'kd_sim', 'kd_feat'}
LEFT_OUT = {  # terms
    'two_triplets': {*DISTILLATION, 'triplet_back', 'adversarial'},
    'en_only': EVERY_TERM - {'triplet_en'},
    'translate_test': EVERY_TERM - {'triplet_en'},
    'no_sim_distillation': {'kd_sim'},
    'no_feat_distillation': {'kd_feat'},
    'no_distillation': DISTILLATION,
    'no_back_translation': {'triplet_back'},
    'no_adversary': {'adversarial'},
}
KEYS = {  # what a file changes beside terms
    'translate_test': {'train.val_weight', 'eval.weights'},
    'masked_mean': {'text.pooling', 'visual.pooling', 'discriminator.pooling'},
    'detached_teacher': {'loss.detach_teacher_visual'},
    'layers_7_11': {'text.trained_layers'},
    **{f'disc_{kind}': {'discriminator.kind'} for kind in ('weak', 'not_so_weak', 'strong')},
    'frozen_text': {'text.trained_layers', 'text.train_embeddings'},
    'finetune_all': {'text.train_all'},
    'infonce': {'loss.contrastive'},
    'momentum_teacher': {'loss.teacher'},
}
NAMES = sorted(path.stem for path in ABLATIONS.glob('*.yaml'))


def test_all_are_known_here():
    assert set(NAMES) == {'full', *LEFT_OUT, *KEYS}


@pytest.mark.parametrize('name', NAMES)
def test_a_file_says_what_it_shows(name):
    first, *rest = (ABLATIONS / f'{name}.yaml').read_text(encoding='utf-8').splitlines()
    assert first.startswith('# ') and len([line for line in rest if not line.startswith('#')]) <= 3


@pytest.mark.parametrize('collection', COLLECTIONS)
@pytest.mark.parametrize('name', NAMES)
def test_it_changes_what_it_names_and_nothing_else(name, collection):
    base, file = CONFIGS / collection, ABLATIONS / f'{name}.yaml'
    full, config = (
        flatten(config_to_dict(load_config([base, path])))
        for path in (ABLATIONS / 'full.yaml', file)
    )
    named = {f'loss.weights.{term}' for term in LEFT_OUT.get(name, ())} | KEYS.get(name, set())
    assert keys_of(file) == named
    assert config['name'] == f'{Path(collection).stem}_{name}'
    changed = {key for key in full if full[key] != config[key]} - {'name'}
    said = flatten(yaml.safe_load(file.read_text(encoding='utf-8')))
    assert {key: config[key] for key in named} == said
    # A collection's own choice may be the ablation's, such as the discriminator; else it is a
    # change.
    assert changed == {key for key in named if full[key] != said[key]}
    assert changed or name in ('full', 'disc_strong', 'disc_not_so_weak')


@pytest.fixture(scope='module')
def deep_bert(tmp_path_factory):
    """A random BERT of twelve layers, 32 wide."""
    folder = tmp_path_factory.mktemp('deep')
    BertModel(
        BertConfig(
            vocab_size=len(VOCABULARY),
            hidden_size=32,
            num_hidden_layers=12,
            num_attention_heads=2,
            intermediate_size=16,
            max_position_embeddings=40,
        )
    ).save_pretrained(folder)
    return folder


@pytest.fixture
def make(deep_bert, clip_folder):
    """make(name, collection) -> (config, model in training mode) of an ablation, small."""

    def make_model(name, collection='vatex'):
        file = ABLATIONS / f'{name}.yaml'
        options = [
            *TINY,
            f'text.bert={deep_bert}',
            f'visual.clip={clip_folder}',
            'loss.teacher_momentum=0.5',
        ]
        config = load_config(
            [CONFIGS / f'{collection}.yaml', file], without(options, keys_of(file), file)
        )
        torch.manual_seed(0)
        return config, build_model(config, feature_dim=FEATURE_DIM).train()

    return make_model


@pytest.mark.parametrize(
    'name, collection',
    [
        *((name, 'vatex') for name in NAMES),
        ('infonce', 'multi30k'),
        ('momentum_teacher', 'mscoco'),
        ('masked_mean', 'multi30k'),
    ],
)
def test_it_takes_steps(make, make_batch, name, collection):
    config, model = make(name, collection)
    teacher = build_teacher(config, model)
    optimizer, discriminator_optimizer = build_optimizers(model, config)
    branches = Collection.branches.__get__(type('', (), {'config': config})())('train')
    for seed in (0, 1):
        batch = make_batch('frames' if collection == 'vatex' else 'clip', seed)
        for branch in {'tgt', 'back'} - set(branches):  # as the data give it
            setattr(batch, branch, None)
        before = [p.detach().clone() for p in model.main_parameters()]
        values = train_step(
            batch,
            model=model,
            criterion=build_loss(config),
            optimizer=optimizer,
            grad_clip=2.0,
            discriminator_optimizer=discriminator_optimizer,
            teacher=teacher,
        )
        terms = {key.removeprefix('train/') for key in values} & EVERY_TERM
        assert terms == EVERY_TERM - LEFT_OUT.get(name, set())
        moved = [not torch.equal(p, old) for p, old in zip(model.main_parameters(), before)]
        assert sum(moved) > 0.8 * len(moved)


def test_how_much_of_bert_is_trained(make):
    def trained(name):
        bert = make(name)[1].text_encoder.bert
        return {
            number
            for number, layer in enumerate(bert.encoder.layer)
            if all(p.requires_grad for p in layer.parameters())
        }

    assert trained('layers_7_11') == {7, 8, 9, 10, 11} and trained('frozen_text') == set()
    assert trained('finetune_all') == set(range(12)) and trained('full') == {1, 2}
    frozen, everything = (
        make(name)[1].text_encoder.bert for name in ('frozen_text', 'finetune_all')
    )
    assert not any(p.requires_grad for p in frozen.parameters())
    assert all(p.requires_grad for p in everything.parameters())


def test_layers_that_a_small_bert_has_not_are_refused(bert_folder):
    config = load_config(
        [CONFIGS / 'vatex.yaml', ABLATIONS / 'layers_7_11.yaml'], [f'text.bert={bert_folder}']
    )
    with pytest.raises(
        ValueError, match=r"'text.trained_layers' names layer 7, but this BERT has 3"
    ):
        build_model(config, feature_dim=FEATURE_DIM)


def test_translated_queries_alone_are_scored_in_translate_test():
    config = load_config([CONFIGS / 'vatex.yaml', ABLATIONS / 'translate_test.yaml'])
    assert (
        list(config.eval.weights) == [config.train.val_weight] == [1.0]
        and not config.eval.weight_grid
    )
