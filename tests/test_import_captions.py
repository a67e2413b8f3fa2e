"""util.import_captions: files of the forms in which captions are published, and own tables."""

import gzip
import json

import pytest
import tiny
from PIL import Image
from roots import CONFIGS

import train
from basic.caption import read_captions
from basic.config import load_config
from util.check_data import check_data
from util.import_captions.importing import main

EN, ES = 'a red dog', 'ein hund'


def run(root, *words):
    root.mkdir(exist_ok=True)
    return main([*map(str, words), '--rootpath', str(root)])


def config(name):
    return ('--config', str(CONFIGS / f'{name}.yaml'))


def text(path):
    return path.read_text(encoding='utf-8')


def save(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding='utf-8')
    return path


@pytest.fixture
def photos(tmp_path):
    """A folder of 20 photos, one with a space in its name, and a CSV of them."""
    folder, rows = tmp_path / 'photos', ['photo,English,es']
    folder.mkdir()
    for i in range(20):
        name = 'my photo.JPG' if i == 7 else f'p{i}.jpg'
        Image.linear_gradient('L').rotate(18 * i).save(folder / name)
        rows.append(f'{name},{EN},{ES}')
    rows[1] = 'p0.jpg,"a &amp;quot;red\ndog",\ufeffein  hund'
    return folder, save(tmp_path / 'captions.csv', '\ufeff' + '\n'.join(rows) + '\n')


OWN = ('--collection', 'photos', '--lang', 'es', '--column', 'en=English', '--column', 'id=photo')
DRAW = ('--draw', 'val=4,test=4,train=rest')


def test_from_photos_and_a_table_to_a_trained_model(tmp_path, photos, clip_folder, capsys):
    (folder, table), root = photos, tmp_path / 'root'
    words = (table, *OWN, *DRAW, '--images', folder)
    assert run(root, *words) == 0
    out = capsys.readouterr().out
    for part in (
        'HTML entities removed from 1',
        'line breaks removed from 1',
        'train         12        12',
    ):
        assert part in out, out
    assert (
        'byte order marks removed from 1' in out and "1 ids: white space or '#' became '_'" in out
    )
    data = root / 'photos'
    assert all(path.exists() for path in (data / 'images').iterdir())
    captions = text(data / 'TextData/photostrain_enc.caption.txt')
    assert captions.count(f'#enc#0 {EN}\n') + captions.count('#enc#0 a "red dog\n') == 12
    before = {path: path.read_bytes() for path in data.rglob('*') if path.is_file()}
    assert run(root, *words) == 0  # the same again changes nothing
    assert run(root, *words, '--seed', '2') == 2  # and another draw is refused
    assert {path: path.read_bytes() for path in data.rglob('*') if path.is_file()} == before

    for name in ('train_google_enc2es', 'train_google_enc2es2enc'):
        save(data / f'TextData/photos{name}.caption.txt', captions.replace('red', 'rot'))
    for split in ('val', 'test'):
        human = text(data / f'TextData/photos{split}_es.caption.txt')
        save(data / f'TextData/photos{split}_google_es2enc.caption.txt', human)
    bert = tmp_path / 'bert'
    bert.mkdir()
    options = [
        *(option for option in tiny.options(tiny.make_bert(bert)) if 'visual' not in option),
        f'visual.clip={clip_folder}',
        'train.epochs=1',
    ]
    yaml = data / 'photos.yaml'
    report = check_data(load_config(yaml, options), root)
    assert not [line for line in report.problems if 'identical' not in line and 'tag' not in line]
    words = ['--config', str(yaml), '--rootpath', str(root), '--device', 'cpu', *options]
    assert train.main(words) == 0
    assert (data / 'runs/photos_es/seed_1/metrics.json').exists()


COCO = {
    'images': [{'id': i, 'file_name': f'COCO_val2014_{i}.jpg'} for i in range(6)],
    'annotations': [
        {'image_id': i, 'caption': f'{EN} {i} {n}'} for i in range(6) for n in range(2)
    ],
}
KARPATHY = {
    'images': [
        {'filename': f'COCO_val2014_{i}.jpg', 'split': split, 'sentences': [{'raw': EN}] * 2}
        for i, split in enumerate(['train', 'restval', 'val', 'val', 'test', 'test'])
    ]
}


def test_mscoco_from_karpathy_and_coco_cn(tmp_path, capsys):
    root = tmp_path / 'root'
    cn = '\n'.join(f'COCO_val2014_{i}#zh{"mb"[i > 3]}#0\t一只狗' for i in range(1, 6))
    cn = save(tmp_path / 'imageid.human-written-caption.txt', cn)
    val = save(tmp_path / 'val.txt', 'COCO_val2014_1\n')
    test = save(tmp_path / 'test.txt', 'COCO_val2014_3\n')
    words = (*config('mscoco'), '--lang', 'zh')
    lists = ('--ids', f'val={val}', '--ids', f'test={test}')
    assert run(root, f'zh={cn}', *words, *lists) == 0
    assert 'tags: zhm 3, zhb 2' in capsys.readouterr().out
    dataset = save(tmp_path / 'dataset_coco.json', KARPATHY)
    assert run(root, f'en={dataset}', *words, '--ids', f'train={dataset}') == 2
    assert '--drop-from-train' in capsys.readouterr().err
    more = ('--ids', f'train={dataset}', '--drop-from-train')
    assert run(root, f'en={dataset}', *words, *more) == 0
    folder = root / 'mscoco'
    assert text(folder / 'FeatureData/train_id.txt') == 'COCO_val2014_0\n'
    assert text(folder / 'TextData/mscocotest_zh.caption.txt') == 'COCO_val2014_3#zh#0 一只狗\n'
    # STAIR Captions have the form of COCO; the splits are those of Karpathy.
    stair = save(tmp_path / 'stair_captions_v1.2_val.json', COCO)
    lists = ('--ids', f'val={dataset}', '--ids', f'test={dataset}')
    assert run(root, f'ja={stair}', *config('mscoco'), '--lang', 'ja', *lists) == 0
    assert len(read_captions(folder / 'TextData/mscocoval_ja.caption.txt')) == 4


@pytest.mark.parametrize('task', [1, 2])
def test_multi30k_from_its_repository(tmp_path, task):
    data, root = tmp_path / 'dataset/data', tmp_path / 'root'
    end, middles = ('', ['']) if task == 1 else ('_images', [f'.{n}' for n in range(1, 6)])
    test = 'test_2016_flickr' if task == 1 else 'test_2016'
    for split in ('train', 'val', test):
        save(data / f'task{task}/image_splits/{split}{end}.txt', f'{split}0.jpg\n{split}1.jpg\n')
        for middle in middles:
            path = data / f'task{task}/raw/{split}{middle}.{"en" if split == "train" else "de"}'
            save(path, f'eins{middle}\nzwei')
            if split == 'train':
                path.with_name(path.name + '.gz').write_bytes(gzip.compress(path.read_bytes()))
                path.unlink()
    words = (data.parent, *config('multi30k'), '--lang', 'de', f'data.task={task}')
    assert run(root, *words) == 0
    t = '_task1' if task == 1 else ''
    name = 'multi30k' if task == 1 else 'Flickr30k'
    folder = root / 'multi30k/TextData'
    assert len(read_captions(folder / f'{name}train_enc.caption.txt')) == 2 * len(middles)
    found = read_captions(folder / f'multi30ktest_de_2016{t}.caption.txt')
    assert found.ids[0] == (f'{test}0', '0') and found.texts[0] == f'eins{middles[0]}'


def test_vatex_and_msrvtt(tmp_path, capsys):
    root = tmp_path / 'root'
    videos = [{'videoID': f'v{i}_000_010', 'enCap': [EN] * 2, 'chCap': ['狗']} for i in range(6)]
    source = save(tmp_path / 'vatex_training_v1.0.json', videos[:2])
    assert run(root, source, *config('vatex'), '--split', 'train') == 0
    source = save(tmp_path / 'vatex_validation_v1.0.json', videos[2:])
    assert run(root, source, *config('vatex'), '--draw', 'val=2,test=2') == 0
    assert len(read_captions(root / 'vatex/TextData/vatextrain.caption.txt')) == 4
    assert len(read_captions(root / 'vatex/TextData/vatexval_zh.caption.txt')) == 2
    tree = {
        'videos': [
            {'video_id': 'video0', 'split': 'train'},
            {'video_id': 'video1', 'split': 'test'},
        ],
        'sentences': [{'video_id': f'video{i}', 'caption': EN} for i in (0, 1)],
    }
    source = save(tmp_path / 'videodatainfo.json', tree)
    assert run(root, f'en={source}', *config('msrvttcn')) == 0
    assert text(root / 'msrvttcn/TextData/msrvttcntrain.caption.txt') == f'video0#enc#0 {EN}\n'
    tree['videos'][1]['split'] = 'nonsense'
    save(source, tree)
    assert run(root, f'en={source}', *config('msrvttcn')) == 2
    assert "videos[1]: split 'nonsense'" in capsys.readouterr().err


@pytest.mark.parametrize(
    'content, words, message',
    [
        ('photo,en,es\na,b\n', (), 'captions.csv:2: 2 fields, but the header has 3'),
        ('photo,en,es\na,"b,c\n', (), 'captions.csv:2: not a row'),
        ('photo,en,es\n,b,c\n', (), "captions.csv:2: column 'photo' has no id"),
        ('photo,x,y\na,b,c\n', (), 'which columns are captions'),
        ('photo,en,es\na b,c,d\na_b,c,d\n', (), "would both have the id 'a_b'"),
        ('photo,en,es,split\na,b,c,train\na,b,c,val\n', (), 'in two splits, train and val'),
        ('photo,en,es\na,b,c\n', (), 'give --split, --ids or --draw'),
        ('photo,en,es\na,b,c\n', ('--draw', 'val=5'), '5 items of 1'),
        ('photo,en,es\na,b,\n', ('--split', 'val'), 'nothing to write'),
        ('photo,en,es\na,b,c\n', ('--split', 'val', '--images', '.'), 'have no image'),
    ],
)
def test_what_is_wrong_is_said_and_nothing_is_written(
    tmp_path, monkeypatch, capsys, content, words, message
):
    monkeypatch.chdir(tmp_path)
    table, root = save(tmp_path / 'captions.csv', content), tmp_path / 'root'
    own = ('--collection', 'photos', '--lang', 'es', '--column', 'id=photo')
    assert run(root, table, *own, *words) == 2
    assert message in capsys.readouterr().err
    assert not list(root.iterdir())
