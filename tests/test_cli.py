"""The entry points, for real: drivers, preflight, training, testing, on small demos of each visual
kind."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from basic import runtime  # noqa: F401  (lets transformers import beside a torchvision of another build)

from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

import evaluation
import train
from util.make_demo.corpus import make_demo

REPOSITORY = Path(__file__).resolve().parent.parent
SIZES = {'train': 96, 'val': 24, 'test': 32}
SMALL = [
    'text.hidden=32',
    'text.qk_width=32',
    'text.heads=4',
    'visual.hidden=32',
    'visual.qk_width=32',
    'visual.heads=4',
    'space.dim=32',
    'train.batch_size=24',
    'train.workers=0',
    'text.trained_layers=[1]',
]


@pytest.fixture(scope='module')
def root(tmp_path_factory, demo_root):
    """A ROOTPATH, with a space in its name, that holds small demos; CLIP is a random one, saved
    here."""
    root = demo_root(tmp_path_factory.mktemp('root path'))
    torch.manual_seed(0)
    CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=64,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=1,
            image_size=32,
            patch_size=16,
            projection_dim=24,
        )
    ).save_pretrained(root / 'random clip')
    make_demo(root=root, collection='vatex', lang='zh', **SIZES)
    make_demo(root=root, collection='multi30k', lang='de', **SIZES)
    return root


def options(root, *more):
    return [
        *SMALL,
        'text.pretrained=false',
        'visual.feature=demo_grid',
        f'text.bert={root}/bert',
        f'visual.clip={root}/random clip',
        *more,
    ]


def run(script, *arguments):
    """Run a driver from another folder; returns the finished process."""
    return subprocess.run(
        [str(REPOSITORY / script), *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd='/',
        env={**os.environ, 'PYTHON': sys.executable, 'OMP_NUM_THREADS': '1'},
        timeout=300,
    )


def config(collection):
    return str(REPOSITORY / f'configs/demo/{collection}.yaml')


def assert_sound(folder, *, epochs, captions, visuals):
    """A finished run folder: its record, its test metrics at every weight, within their ranges."""
    log = [json.loads(line) for line in (folder / 'log.jsonl').read_text().splitlines()]
    assert [record['epoch'] for record in log] == list(range(1, epochs + 1))
    report = json.loads((folder / 'metrics.json').read_text())
    assert (report['captions'], report['visuals']) == (captions, visuals)
    assert [row['weight'] for row in report['rows']] == [1.0, 0.8, 0.5, 0.2, 0.0]
    for row in report['rows']:
        both = [row[way] for way in ('t2v', 'v2t')]
        assert all(0 <= way['R@1'] <= way['R@5'] <= way['R@10'] <= 100 for way in both)
        assert sum(way[f'R@{k}'] for way in both for k in (1, 5, 10)) == pytest.approx(row['SumR'])
    return log, report


def test_video_from_driver_to_table(root):
    done = run('do_all_vatex.sh', root, 'cpu', *options(root, 'train.epochs=2', 'name=tiny'))
    assert done.returncode == 0, done.stderr
    folder = root / 'vatex/runs/tiny_zh/seed_1'
    log, report = assert_sound(
        folder, epochs=2, captions=report_captions(root), visuals=SIZES['test']
    )
    assert set(log[0]['train']) >= {
        'total',
        'triplet_en',
        'triplet_tgt',
        'kd_sim',
        'kd_feat',
        'triplet_back',
        'adversarial',
    }
    assert list((folder / 'tb').glob('events*'))
    assert 'SumR' in done.stdout

    (folder / 'metrics.json').rename(folder / 'metrics of training.json')
    tested = run('do_test_vatex.sh', root, folder, 'cpu')
    assert tested.returncode == 0, tested.stderr
    again = json.loads((folder / 'metrics.json').read_text())
    assert again['rows'] == json.loads((folder / 'metrics of training.json').read_text())['rows']


def report_captions(root):
    return len(
        (root / 'vatex/TextData/vatextest_zh.caption.txt').read_text(encoding='utf-8').splitlines()
    )


def test_a_run_is_not_written_over(root):
    again = run('do_all_vatex.sh', root, 'cpu', *options(root, 'train.epochs=2', 'name=tiny'))
    assert again.returncode == 2 and '--resume' in again.stderr


def test_a_missing_file_stops_before_training(root, tmp_path):
    done = run('do_all_vatex.sh', root, 'cpu', *options(root, 'data.lang=xx', 'name=missing'))
    assert done.returncode == 2
    assert 'vatextrain_google_enc2xx.caption.txt' in done.stdout + done.stderr
    assert not (root / 'vatex/runs/missing_xx').exists()


def test_images_through_clip(root):
    folder = root / 'clip run'
    arguments = ['--config', config('multi30k'), '--rootpath', str(root), '--run-dir', str(folder)]
    assert train.main([*arguments, *options(root, 'train.epochs=1', 'data.lang=de')]) == 0
    assert_sound(folder, epochs=1, captions=SIZES['test'], visuals=SIZES['test'])
    tested = run(
        'do_test_multi30k.sh',
        root,
        folder,
        root / 'multi30k/flickr30k-images',
        'cpu',
        '--output',
        root / 'again.json',
    )
    assert tested.returncode == 0, tested.stderr
    assert (
        json.loads((root / 'again.json').read_text())['rows']
        == json.loads((folder / 'metrics.json').read_text())['rows']
    )


def test_frozen_features(root):
    folder = root / 'pooled run'
    assert (
        train.main(
            [
                '--config',
                config('multi30k'),
                '--rootpath',
                str(root),
                '--run-dir',
                str(folder),
                *options(root, 'train.epochs=1', 'visual.kind=pooled'),
            ]
        )
        == 0
    )
    assert_sound(folder, epochs=1, captions=SIZES['test'], visuals=SIZES['test'])
    tested = run('do_test_multi30k.sh', root, folder, 'None', 'cpu', '--split', 'val')
    assert tested.returncode == 0, tested.stderr
    assert json.loads((folder / 'metrics_val.json').read_text())['visuals'] == SIZES['val']


def test_embeddings_on_request(root):
    folder = root / 'pooled run'
    assert (
        evaluation.main(
            [
                '--checkpoint',
                str(folder),
                '--rootpath',
                str(root),
                '--save-embeddings',
                str(root / 'embeddings'),
            ]
        )
        == 0
    )
    ids = (root / 'embeddings/visual_ids.txt').read_text().splitlines()
    assert len(ids) == SIZES['test'] == len(set(ids))
