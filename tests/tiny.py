"""A collection small enough to train on in a second: 12 + 6 + 6 images as features, a BERT of two
32-d layers.

For the tests of `train` and `evaluation`; the demo's corpus is what the entry points are tested on.
"""

import numpy as np
import torch

from basic import runtime  # noqa: F401  (lets transformers import beside a torchvision of another build)

from transformers import BertConfig, BertModel

from basic.checkpoint import save_checkpoint
from basic.config import config_to_dict

SIZES = {'train': 12, 'val': 6, 'test': 6}
DIM = 10
WORDS = (
    'a red blue green dog cat bird house tree car runs sleeps rot blau hund katze haus baum ein'
).split()


def make_bert(folder):
    """A folder as transformers saves it: config, random weights, vocab.txt."""
    vocabulary = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', '.', *WORDS]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)  # the same figures in any order of the tests
        bert = BertModel(
            BertConfig(
                vocab_size=len(vocabulary),
                hidden_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                intermediate_size=48,
                max_position_embeddings=64,
            )
        )
    bert.save_pretrained(folder)
    (folder / 'vocab.txt').write_text('\n'.join(vocabulary) + '\n')
    return folder


def make_collection(root, dim=DIM):
    """ROOTPATH/multi30k in German: captions, id lists and one feature an image; test images have
    two captions each."""
    random = np.random.RandomState(0)
    text, features = root / 'multi30k/TextData', root / 'multi30k/FeatureData'
    text.mkdir(parents=True)
    features.mkdir()
    roles = {
        'train': ['train_enc', 'train_google_enc2de', 'train_google_enc2de2enc'],
        'val': ['val_google_de2enc_task1', 'val_de_task1'],
        'test': ['test_google_de2enc_2016_task1', 'test_de_2016_task1'],
    }
    lists = {'train': 'train_id.txt', 'val': 'val_id.txt', 'test': 'test_id_2016.txt'}
    arrays = {'train': 'train', 'val': 'val', 'test': 'test_2016_flickr'}
    for split, count in SIZES.items():
        ids = [f'{split}{i}' for i in range(count)]
        (features / lists[split]).write_text(''.join(f'{name}.jpg\n' for name in ids))
        np.save(
            features / f'{arrays[split]}-resnet_152-avgpool.npy',
            random.randn(count, dim).astype(np.float32),
        )
        for role in roles[split]:
            tag = role.split('_', 1)[1]
            lines = [
                f'{name}.jpg#{tag}#{n} {" ".join(random.choice(WORDS, random.randint(3, 7)))}\n'
                for name in ids
                for n in range(2 if split == 'test' else 1)
            ]
            (text / f'multi30k{role}.caption.txt').write_text(''.join(lines))
    return root


def add_language(root, lang, seed=5):
    """The same collection in another language, other captions, in another order; two a validation
    image."""
    folder, random = root / 'multi30k/TextData', np.random.RandomState(seed)
    for source, target in (
        ('train_google_enc2de', f'train_google_enc2{lang}'),
        ('train_google_enc2de2enc', f'train_google_enc2{lang}2enc'),
        ('val_google_de2enc_task1', f'val_google_{lang}2enc'),
        ('val_de_task1', f'val_{lang}'),
        ('test_google_de2enc_2016_task1', f'test_google_{lang}2enc_2016'),
        ('test_de_2016_task1', f'test_{lang}_2016'),
    ):
        lines = (folder / f'multi30k{source}.caption.txt').read_text().splitlines()
        if target.startswith('val'):
            lines += [line.replace('#0 ', '#1 ') for line in lines]
        lines = [
            f'{line.split()[0]} {" ".join(random.choice(WORDS, random.randint(3, 7)))}\n'
            for line in reversed(lines)
        ]
        (folder / f'multi30k{target}.caption.txt').write_text(''.join(lines))
    return root


def options(bert):
    """key=value options that go with configs/multi30k.yaml."""
    return [
        f'text.bert={bert}',
        'visual.kind=pooled',
        'text.trained_layers=[1]',
        'text.hidden=16',
        'text.heads=2',
        'text.qk_width=8',
        'space.dim=12',
        'train.batch_size=5',
        'train.workers=0',
        'train.lr=1e-3',
        'eval.val_batch_size=4',
        'eval.test_batch_size=4',
    ]


def save_model(path, config, model, **more):
    """A checkpoint of a model as training would write it; more: keys such as choice."""
    content = {
        'config': config_to_dict(config),
        'architecture': model.architecture,
        'model': model.state_dict(),
        'epoch': 1,
        **more,
    }
    save_checkpoint(path, content)
