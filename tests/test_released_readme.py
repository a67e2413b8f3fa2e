"""The original README's folders, built as it draws them, and each of its commands, run on them.

A driver runs for real, with a stand-in for Python; what it asks Python for then runs in this
process. The pretrained encoders are small ones under the released names, in a cache of the hub's
form.
"""

import json
import subprocess
import tarfile

import numpy as np
import pytest
import torch

from basic import runtime  # noqa: F401  (lets transformers import beside another torchvision)

from transformers import BertConfig, BertModel, CLIPVisionConfig, CLIPVisionModelWithProjection

import evaluation
from drivers import REPOSITORY, Recorder
from PIL import Image
from util import do_all
from util.make_demo.visuals import write_frame_index
from util.verify_parity import write_released_checkpoint

WORDS = (
    'a red blue green dog cat bird house tree car runs sleeps rot blau hund katze haus 狗 猫 人'
).split()
GOLDEN = REPOSITORY / 'tests' / 'data' / 'golden'
DIM = 40  # width of the features that the golden models read
SIZES = {'train': 6, 'val': 3, 'test': 3}
# the README trains on a GPU
SMALL = [
    'train.epochs=1',
    'train.workers=0',
    'train.batch_size=4',
    'text.hidden=16',
    'text.qk_width=16',
    'visual.hidden=16',
    'visual.qk_width=16',
    'space.dim=16',
]


# ---------------------------------------------------------------------------------------------- the
# folders, as drawn there


def caption_files(folder, files):
    """files: dict split -> (prefix of the visual ids, list of (file name, tag))."""
    folder.mkdir(parents=True)
    random = np.random.RandomState(0)
    for split, (name, branches) in files.items():
        for file, tag in branches:
            lines = [
                f'{name}{i}#{tag}#{n} {" ".join(random.choice(WORDS, 4))}\n'
                for i in range(SIZES[split])
                for n in range(2)
            ]
            (folder / f'{file}.caption.txt').write_text(''.join(lines), encoding='utf-8')


def video_collection(folder, feature, prefix):
    caption_files(
        folder / 'TextData',
        {
            'train': (
                'video_train',
                [
                    (f'{prefix}train', 'enc'),
                    (f'{prefix}train_google_enc2zh', 'enc2zh'),
                    (f'{prefix}train_google_enc2zh2enc', 'enc2zh2enc'),
                ],
            ),
            **{
                split: (
                    f'video_{split}',
                    [(f'{prefix}{split}_google_zh2enc', 'zh2enc'), (f'{prefix}{split}_zh', 'zh')],
                )
                for split in ('val', 'test')
            },
        },
    )
    features = folder / 'FeatureData' / feature
    features.mkdir(parents=True)
    counts = {f'video_{split}{i}': 2 + i for split, size in SIZES.items() for i in range(size)}
    write_frame_index(features, counts, DIM)
    np.random.RandomState(1).randn(sum(counts.values()), DIM).astype('<f4').tofile(
        features / 'feature.bin'
    )


def image_lists(folder, names):
    folder.mkdir(parents=True)
    for split, file in names:
        (folder / file).write_text(''.join(f'{split}{i}.jpg\n' for i in range(SIZES[split])))


def pictures(folder):
    folder.mkdir(parents=True)
    for split, size in SIZES.items():
        for i in range(size):
            pixels = np.random.RandomState(i).randint(0, 255, (40, 50, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f'{split}{i}.jpg')


def multi30k(folder):
    branches = {'train': [], 'val': [], 'test': []}
    for train in ('multi30k', 'Flickr30k'):
        branches['train'] += [(f'{train}train_enc', 'enc')]
        for lang in ('de', 'fr', 'cs'):
            branches['train'] += [
                (f'{train}train_google_enc2{lang}', f'enc2{lang}'),
                (f'{train}train_google_enc2{lang}2enc', f'enc2{lang}2enc'),
            ]
    for split, year in (('val', ''), ('test', '_2016')):
        for lang, task in (('de', '_task1'), ('de', ''), ('fr', ''), ('cs', '')):
            branches[split] += [
                (f'multi30k{split}_google_{lang}2enc{year}{task}', f'{lang}2enc'),
                (f'multi30k{split}_{lang}{year}{task}', lang),
            ]
    caption_files(folder / 'TextData', {split: (split, files) for split, files in branches.items()})
    image_lists(
        folder / 'FeatureData',
        [('train', 'train_id.txt'), ('val', 'val_id.txt'), ('test', 'test_id_2016.txt')],
    )
    (folder / 'resnet_152').mkdir()
    for split, name in (('train', 'train'), ('val', 'val'), ('test', 'test_2016_flickr')):
        np.save(
            folder / 'resnet_152' / f'{name}-resnet_152-avgpool.npy',
            np.random.RandomState(2).randn(SIZES[split], DIM).astype(np.float32),
        )
    pictures(folder / 'flickr30k-images')


def mscoco(folder):
    branches = {'train': [('mscocotrain_enc', 'enc')], 'val': [], 'test': []}
    for lang in ('zh', 'ja'):
        branches['train'] += [
            (f'mscocotrain_google_enc2{lang}', f'enc2{lang}'),
            (f'mscocotrain_google_enc2{lang}2enc', f'enc2{lang}2enc'),
        ]
        for split in ('val', 'test'):
            branches[split] += [
                (f'mscoco{split}_google_{lang}2enc', f'{lang}2enc'),
                (f'mscoco{split}_{lang}', lang),
            ]
    caption_files(folder / 'TextData', {split: (split, files) for split, files in branches.items()})
    image_lists(
        folder / 'FeatureData',
        [
            ('train', 'train_id.txt'),
            ('val', 'ja_val_id.txt'),
            ('val', 'zh_val_id.txt'),
            ('test', 'ja_test_id.txt'),
            ('test', 'zh_test_id.txt'),
        ],
    )
    pictures(folder / 'all_pics')
    (folder / 'image_ids.txt').write_text('train0\n')


def cached_model(hub, name, save):
    """A model in the hub's local cache, in the form that a download leaves there."""
    folder = hub / f'models--{name.replace("/", "--")}'
    (folder / 'refs').mkdir(parents=True)
    (folder / 'refs' / 'main').write_text('0' * 40)
    save(folder / 'snapshots' / ('0' * 40))


def save_bert(folder):
    vocabulary = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', '.', *WORDS]
    BertModel(
        BertConfig(
            vocab_size=len(vocabulary),
            hidden_size=24,
            num_hidden_layers=12,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=64,
        )
    ).save_pretrained(folder)
    (folder / 'vocab.txt').write_text('\n'.join(vocabulary) + '\n', encoding='utf-8')
    (folder / 'tokenizer_config.json').write_text(
        '{"do_lower_case": false, "tokenizer_class": "BertTokenizer"}'
    )


def save_clip(folder):
    CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=24,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=16,
            patch_size=8,
            projection_dim=12,
        )
    ).save_pretrained(folder)


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    """$HOME, with VisualSearch/ as the README draws it and the pretrained encoders in the hub's
    cache."""
    home = tmp_path_factory.mktemp('home')
    root = home / 'VisualSearch'
    torch.manual_seed(0)
    video_collection(root / 'VATEX', 'i3d_kinetics', 'vatex')
    video_collection(root / 'msrvttcn', 'resnext101-resnet152', 'msrvttcn')
    multi30k(root / 'multi30k')
    mscoco(root / 'mscoco')
    cached_model(home / 'hub', 'bert-base-multilingual-cased', save_bert)
    cached_model(home / 'hub', 'openai/clip-vit-base-patch32', save_clip)
    return home


# ------------------------------------------------------------------------------------- the commands


@pytest.fixture
def shell(home, tmp_path, monkeypatch):
    """shell(script) runs the README's lines, and then what they asked Python for -> exit
    statuses."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(home / 'hub'))
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    recorder = Recorder(tmp_path)

    def run(script, options=()):
        done, commands = recorder.run(['bash', '-euc', script], REPOSITORY, HOME=str(home))
        assert done.returncode == 0, done.stderr
        mains = {'util.do_all': do_all.main, str(REPOSITORY / 'evaluation.py'): evaluation.main}
        return [mains[name]([*words, *options]) for name, *words in commands]

    return run


def result(folder):
    return json.loads((folder / 'metrics.json').read_text(encoding='utf-8'))


@pytest.mark.parametrize(
    'command, folder, visuals',
    [
        ('./do_all_vatex.sh $ROOTPATH cpu', 'VATEX/runs/vatex_zh', 3),
        ('./do_all_msrvttcn.sh $ROOTPATH cpu', 'msrvttcn/runs/msrvttcn_zh', 3),
        ('./do_all_multi30k.sh $ROOTPATH 1 cpu', 'multi30k/runs/multi30k_de', 3),
        ('./do_all_multi30k.sh $ROOTPATH 2 cpu', 'multi30k/runs/multi30k_task2_de', 3),
        (
            './do_all_multi30k.sh $ROOTPATH 1 cpu cs visual.kind=pooled name=resnet',
            'multi30k/runs/resnet_cs',
            3,
        ),
        ('./do_all_mscoco.sh $ROOTPATH cpu', 'mscoco/runs/mscoco_zh', 3),
        ('./do_all_mscoco.sh $ROOTPATH cpu cn --seed 2', 'mscoco/runs/mscoco_zh', 3),
        ('./do_all_mscoco.sh $ROOTPATH cpu ja', 'mscoco/runs/mscoco_ja', 3),
    ],
)
def test_training(home, shell, command, folder, visuals):
    assert shell(f'ROOTPATH=$HOME/VisualSearch\n{command}', SMALL) == [0]
    # finished: nothing to do
    assert shell(f'ROOTPATH=$HOME/VisualSearch\n{command} --resume', SMALL) == [0]
    seed = 'seed_2' if 'seed 2' in command else 'seed_1'
    assert result(home / 'VisualSearch' / folder / seed)['visuals'] == visuals


@pytest.mark.parametrize(
    'golden, driver, place, arguments',
    [
        ('video', 'do_test_vatex.sh', 'VATEX', ''),
        ('video', 'do_test_msrvttcn.sh', 'msrvttcn', ''),
        ('resnet', 'do_test_multi30k.sh', 'multi30k', 'None'),
        ('clip', 'do_test_multi30k.sh', 'multi30k', '$HOME/VisualSearch/multi30k/flickr30k-images'),
        ('clip', 'do_test_mscoco.sh', 'mscoco', ''),
    ],
)
def test_a_provided_checkpoint(home, shell, tmp_path, golden, driver, place, arguments):
    """The download is unpacked with `tar zxf`, and its folder runs_0 is tested."""
    spec = json.loads((GOLDEN / f'{golden}.json').read_text())
    spec['opt'].update(
        {'collection': place.lower(), 'data_type': 'google_enc2zh'}
        if place != 'multi30k'
        else {'collection': place, 'data_type': 'google_enc2fr', 'task': 1}
    )
    if golden == 'video':
        spec['opt']['visual_feature'] = {
            'VATEX': 'i3d_kinetics',
            'msrvttcn': 'resnext101-resnet152',
        }[place]
    model = tmp_path / 'model_best.pth.tar'
    write_released_checkpoint(spec, model)
    inside = f'{driver}_{golden}_run/runs_0'
    with tarfile.open(home / 'VisualSearch' / 'best_model.pth.tar', 'w:gz') as archive:
        archive.add(model, f'{inside}/model_best.pth.tar')
    assert shell(f"""ROOTPATH=$HOME/VisualSearch/
tar zxf $ROOTPATH/best_model.pth.tar -C $ROOTPATH
MODELDIR=$ROOTPATH/{inside}
./{driver} $ROOTPATH $MODELDIR {arguments} cpu""") == [0]
    report = result(home / 'VisualSearch' / inside)
    assert report['visuals'] == 3 and [row['weight'] for row in report['rows']] == [
        1.0,
        0.8,
        0.5,
        0.2,
        0.0,
    ]


def test_the_readme_of_today_knows_these_commands():
    text = (REPOSITORY / 'README.md').read_text(encoding='utf-8')
    for name in sorted(REPOSITORY.glob('do_*.sh')):
        assert f'./{name.name}' in text, name.name
    assert (
        'tar zxf' in text
        and subprocess.run(['bash', '-n', str(REPOSITORY / 'util/drivers.sh')]).returncode == 0
    )
