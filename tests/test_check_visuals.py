"""util/check_visuals.py: features that say nothing, in one pass; blank images."""

import numpy as np
import pytest
from PIL import Image
from roots import make_image_root, make_video_root, multi30k, vatex

from util.check_data import check_data
from util.check_visuals import CHUNK, bad_rows, scan_features


@pytest.fixture
def vocab(tmp_path):
    path = tmp_path / 'vocab.txt'
    path.write_text('[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n')
    return f'text.bert={path}'


def about_features(report):
    """(problems, warnings) that are not about captions."""
    return tuple(
        [text for text in found if '.caption.txt' not in text]
        for found in (report.problems, report.warnings)
    )


def random_features(rows, width):
    return np.random.default_rng(0).standard_normal((rows, width)).astype(np.float32)


def spoil(features, fault):
    """Features with one fault; what the message says, and whether it is a problem."""
    rows = len(features)
    if fault == 'zeros':
        features[:] = 0
        return features, f'{rows} of {rows} rows are all zeros', True
    if fault == 'few zeros':
        features[[1, 2]] = 0
        return features, f'2 of {rows} rows are all zeros', False
    if fault == 'one row for all':
        features[:] = features[0]
        return features, 'rows are identical', True
    if fault == 'one row for some':
        features[: rows // 3] = features[0]
        return features, 'rows are identical', False
    if fault == 'alike':
        features[:] = features[0] * (1 + 1e-7 * np.arange(rows)[:, None])
        return features, 'every column is constant', True
    if fault == 'one number a row':
        features[:] = 1 + np.arange(rows)[:, None]
        return features, f'{rows} of {rows} rows have the same number in all columns', True
    if fault == 'byte order':
        return features.byteswap(), 'the other byte order', True
    if fault == 'huge':
        features[3] = 3e38
        return features, f'1 of {rows} rows have numbers as large as 3.0e+38', True
    if fault == 'large':
        return features * 1e8, 'implausible in features', False
    if fault == 'tiny':
        return features * 1e-30, 'too small for the encoder', True
    raise ValueError(fault)


FAULTS = [
    'zeros',
    'few zeros',
    'one row for all',
    'one row for some',
    'alike',
    'one number a row',
    'byte order',
    'huge',
    'large',
    'tiny',
]


@pytest.mark.parametrize('fault', FAULTS)
def test_frames_that_say_nothing(tmp_path, vocab, fault):
    root = make_video_root(tmp_path / 'root')
    path = root / 'vatex/FeatureData/i3d_kinetics/feature.bin'
    rows = np.fromfile(path, '<f4').size // 4
    features, words, problem = spoil(random_features(rows, 4), fault)
    features.tofile(path)
    problems, warnings = about_features(check_data(vatex(vocab), root))
    expected, other = (problems, warnings) if problem else (warnings, problems)
    assert len(expected) == 1 and words in expected[0] and str(path.parent) in expected[0]
    assert other == []
    if fault == 'few zeros':
        assert 'v0_1, v0_2' in expected[0]
    assert about_features(check_data(vatex(vocab), root, quick=True)) == ([], [])


@pytest.mark.parametrize('dtype', ['<f4', '<f8', '<f2'])
def test_pooled_features_that_say_nothing(tmp_path, vocab, dtype):
    root = make_image_root(tmp_path / 'root', images=False)
    path = root / 'multi30k/FeatureData/resnet_152/train-resnet_152-avgpool.npy'
    config = multi30k(vocab, 'visual.kind=pooled')
    np.save(path, random_features(3, 6).astype(dtype))
    assert about_features(check_data(config, root, splits=('train',))) == ([], [])
    np.save(path, np.zeros((3, 6), dtype))
    problems, _ = about_features(check_data(config, root, splits=('train',)))
    assert len(problems) == 1 and '3 of 3 rows are all zeros: a, b, c' in problems[0]
    np.save(path, random_features(3, 6).astype(dtype.replace('<', '>')))  # its header says so
    assert about_features(check_data(config, root, splits=('train',))) == ([], [])


def test_every_chunk_is_looked_at():
    width = CHUNK // 4 // 3
    features = np.random.default_rng(0).random((10, width), dtype=np.float32)  # three rows a chunk
    features[[2, 3, 9], [0, width - 1, 5]] = np.nan, np.inf, -np.inf
    features[[4, 8]] = 0
    scan = scan_features(features)
    assert scan.bad.tolist() == [2, 3, 9] and scan.zero.tolist() == [4, 8]
    assert bad_rows(np.zeros((4, 2), np.float32)).tolist() == []


@pytest.mark.parametrize(
    'features',
    [
        np.maximum(random_features(200, 30), 0),
        np.eye(40, dtype=np.float32),
        np.exp(-60 * random_features(200, 30) ** 2),
        random_features(1, 8),
        random_features(200, 1),
        random_features(200, 4).astype(np.float16),
    ],
    ids=['rectified', 'one-hot', 'probabilities', 'one row', 'one column', 'half'],
)
def test_unusual_but_sound_features(features):
    scan = scan_features(features)
    assert not scan.swapped and not scan.alike and scan.repeated < 3
    assert [len(rows) for rows in (scan.bad, scan.huge, scan.flat)] == [0, 0, 0]


def test_blank_images(tmp_path, vocab):
    root = make_image_root(tmp_path / 'root')
    folder = root / 'multi30k/flickr30k-images'
    Image.new('RGB', (50, 60), (7, 8, 9)).save(folder / 'a.jpg')
    report = check_data(multi30k(vocab), root, splits=('train',))
    found = [text for text in report.warnings if 'of a single colour' in text]
    assert (
        len(found) == 1 and "1 of the 3 images of split 'train'" in found[0] and ': a;' in found[0]
    )
    Image.new('L', (50, 60), 0).save(folder / 'b.jpg')
    report = check_data(multi30k(vocab), root, splits=('train',))
    assert any('2 of the 3 images' in text for text in report.problems)
