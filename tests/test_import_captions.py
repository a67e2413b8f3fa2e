"""util.import_captions: files of the forms in which captions are published, and own tables."""

import errno
import gzip
import json

import pytest
import tiny
from PIL import Image
from roots import CONFIGS

import train
from basic.caption import read_captions
from basic.config import load_config
from basic.files import write_atomically
from basic.images import ImageSource, Preprocessing
from util.check_data import check_data
from util.import_captions.importing import main
from util.translate import translate

EN = 'a red dog'


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
        what = f'{("red", "blue")[i % 2]} {("dog", "cat", "house", "tree", "car")[i % 5]}'
        does = 'runs' if i > 9 else 'sleeps'
        rows.append(f'{name},a {what} {does},ein {what} {does} ein')
    rows[1] = 'p0.jpg,"a &amp;quot;red\ndog",\ufeffein  red dog'
    return folder, save(tmp_path / 'captions.csv', '\ufeff' + '\n'.join(rows) + '\n')


OWN = ('--collection', 'photos', '--lang', 'es', '--column', 'en=English', '--column', 'id=photo')
DRAW = ('--draw', 'val=4,test=4,train=rest')


def test_from_photos_and_a_table_to_a_trained_model(tmp_path, photos, clip_folder, capsys):
    (folder, table), root = photos, tmp_path / 'root'
    words = (table, *OWN, *DRAW, '--images', folder)
    assert run(root, *words) == 0
    out = capsys.readouterr().out
    for part in (
        'captions with HTML entities, now removed: 1\n',
        'captions with line breaks, now removed: 1\n',
        'captions with byte order marks, now removed: 1\n',
        "ids: white space or '#' became '_': 1\n",
        'captions not used, es of train: 12\n',
        'train         12        12\n',
        f'--config {root}/photos/photos.yaml --rootpath {root} --model',
    ):
        assert part in out, out
    data = root / 'photos'
    assert all(path.exists() for path in (data / 'images').iterdir())
    captions = text(data / 'TextData/photostrain_enc.caption.txt')
    assert 'p0#enc#0 a "red dog\n' in captions and captions.count('#enc#0 a ') == 12
    before = {path: path.read_bytes() for path in data.rglob('*') if path.is_file()}
    assert run(root, *words) == 0  # the same again changes nothing
    assert f'kept: {root}/photos/photos.yaml' in capsys.readouterr().out
    assert run(root, *words, '--seed', '2') == 2  # and another draw is refused
    assert {path: path.read_bytes() for path in data.rglob('*') if path.is_file()} == before

    yaml = data / 'photos.yaml'
    words = ['--config', str(yaml), '--rootpath', str(root)]
    command = ['--command', "sed 's/a /ein /;s/red/rot/;s/dog/hund/'"]
    back = ['--back-command', "sed 's/ein /a /;s/rot/red/;s/hund/dog/;s/runs/sleeps/'"]
    assert translate.main([*words, '--engine', 'command', *command, *back]) == 0
    bert = tmp_path / 'bert'
    bert.mkdir()
    options = [
        *(option for option in tiny.options(tiny.make_bert(bert)) if 'visual' not in option),
        f'visual.clip={clip_folder}',
        'train.epochs=1',
    ]
    report = check_data(load_config(yaml, options), root)
    assert not report.problems
    assert train.main([*words, '--device', 'cpu', *options]) == 0
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


def test_json_lines_in_folders_without_all_images(tmp_path, capsys):
    folder, root = tmp_path / 'photos', tmp_path / 'root'
    for i, name in enumerate(['a/1.png', 'b/1.png', 'a/2.webp', 'a/3.JPG']):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.linear_gradient('L').rotate(9 * i).convert('RGB').save(folder / name)
    names = ['a/1.png', 'b/1.png', 'a/2.webp', 'a/3.JPG', '../captions.jsonl', 'b/9.png']
    records = [{'file': name, 'caption': [EN, f'{EN} {i}']} for i, name in enumerate(names)]
    table = save(tmp_path / 'captions.jsonl', '\n'.join(map(json.dumps, records)) + '\n')
    words = (table, '--collection', 'photos', '--lang', 'es', '--column', 'en=caption')
    more = ('--images', folder, '--split', 'train')
    assert run(root, *words, *more) == 2
    assert (
        "'a/1.png' would both have the id '1.png': rename one, or give --keep-folders"
        in capsys.readouterr().err
    )
    assert run(root, *words, *more, '--keep-folders') == 2
    assert '2 items have no image' in capsys.readouterr().err and not list(root.iterdir())
    assert run(root, *words, *more, '--keep-folders', '--skip-missing') == 0
    ids = text(root / 'photos/FeatureData/train_id.txt').split()
    assert ids == ['a_1.png', 'b_1.png', 'a_2.webp', 'a_3.JPG']
    template = root / 'photos' / load_config(root / 'photos/photos.yaml').data.images
    source = ImageSource(str(template), ids, preprocessing=Preprocessing(8), where='ids')
    for name, original in zip(ids, names):
        assert source.path(name).resolve() == (folder / original).resolve()
        assert source.load(name).shape == (3, 8, 8)
    assert len(read_captions(root / 'photos/TextData/photostrain_enc.caption.txt')) == 8


def test_overwrite_replaces_all_files_or_none(tmp_path, monkeypatch, photos, capsys):
    (folder, table), root = photos, tmp_path / 'root'
    words = (table, *OWN, '--images', folder)
    assert run(root, *words, *DRAW) == 0
    data = root / 'photos'
    made = save(data / 'TextData/photosval_google_es2enc.caption.txt', 'p0#es2enc#0 a dog\n')
    yaml = save(data / 'photos.yaml', text(data / 'photos.yaml') + '# my own\n')
    link = data / 'images/p3.jpg'
    link.unlink()
    link.symlink_to(folder / 'p4.jpg')
    assert run(root, *words, *DRAW) == 2
    assert 'p3.jpg: a link to another image; --overwrite' in capsys.readouterr().err

    def files():
        return {path: path.read_bytes() for path in data.rglob('*') if not path.is_dir()}

    before, count = files(), []

    def full_disk(path, content):
        count.append(path)
        if len(count) == 3:
            raise OSError(errno.ENOSPC, 'No space left on device')
        write_atomically(path, content)

    again = (*words, *DRAW, '--seed', '2', '--overwrite')
    with monkeypatch.context() as patch:
        patch.setattr('util.import_captions.writing.write_atomically', full_disk)
        assert run(root, *again) == 2
    assert files() == before and 'No space left' in capsys.readouterr().err
    assert run(root, *again) == 0
    out = capsys.readouterr().out
    assert f'warning: {made} was made of other captions' in out and ' --overwrite --model' in out
    assert link.resolve() == (folder / 'p3.jpg').resolve()
    assert text(yaml).endswith('# my own\n') and f'kept: {yaml}' in out
    assert not [path for path in data.iterdir() if path.name.startswith('.')]


def test_lines_with_an_id_list(tmp_path, capsys):
    root = tmp_path / 'root'
    lines, ids = (
        save(tmp_path / 'my.fr', 'un\ndeux\n'),
        save(tmp_path / 'val.txt', '1.jpg\n2.jpg\n'),
    )
    words = (f'fr={lines}', *config('multi30k'), '--lang', 'fr')
    assert run(root, *words) == 2 and '--ids train=train.txt' in capsys.readouterr().err
    assert run(root, *words, '--ids', f'val={ids}') == 0
    assert text(root / 'multi30k/TextData/multi30kval_fr.caption.txt') == '1#fr#0 un\n2#fr#0 deux\n'
    save(ids, '1.jpg\n')
    assert run(root, *words, '--ids', f'val={ids}') == 2
    assert f'{lines} has 2 lines, but {ids} 1' in capsys.readouterr().err
    several = (f'en={lines}', *config('multi30k'), '--lang', 'fr,de')
    assert run(root, *several) == 2
    assert 'one language at a time' in capsys.readouterr().err


def test_multi30k_task_2_takes_french_of_task_1(tmp_path):
    data, root = tmp_path / 'dataset/data', tmp_path / 'root'
    save(data / 'task2/image_splits/train_images.txt', '1.jpg\n')
    for n in range(1, 6):
        save(data / f'task2/raw/train.{n}.en', f'one {n}\n')
    for split, name in (('val', '2.jpg'), ('test_2016_flickr', '3.jpg')):
        save(data / f'task1/image_splits/{split}.txt', f'{name}\n')
        save(data / f'task1/raw/{split}.fr', f'{split}\n')
    words = (data.parent, *config('multi30k'), '--lang', 'fr', 'data.task=2')
    assert run(root, *words) == 0
    folder = root / 'multi30k/TextData'
    assert read_captions(folder / 'Flickr30ktrain_enc.caption.txt').texts[4] == 'one 5'
    assert text(folder / 'multi30kval_fr.caption.txt') == '2#fr#0 val\n'


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
        ('photo,en,es\na,b,c\n', ('--draw', 'val=5'), '--draw val=5: of the 1 items'),
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


@pytest.mark.parametrize(
    'encoding, message',
    [
        ('cp1252', 'captions.csv:2: not UTF-8; save it'),
        ('utf-16', 'captions.csv: the file is UTF-16'),
    ],
)
def test_tables_of_other_encodings(tmp_path, capsys, encoding, message):
    table = tmp_path / 'captions.csv'
    table.write_bytes('image,en,es\na.jpg,a caf\u00e9,un caf\u00e9\n'.encode(encoding))
    assert run(tmp_path / 'root', table, *OWN[:4], '--split', 'val') == 2
    assert message in capsys.readouterr().err


def test_the_yaml_of_videos_and_of_odd_values(tmp_path):
    table = save(tmp_path / 'x.csv', 'video,split,en,es\na.mp4,train,a dog,\nb.mp4,val,,un perro\n')
    options = ['visual.kind=frames', 'visual.feature=a: b # c', 'data.images=', 'train.lr=1e-4']
    assert run(tmp_path, table, '--collection', 'clips', '--lang', 'es', *options) == 0
    found = load_config(tmp_path / 'clips/clips.yaml')
    assert found.visual.kind == 'frames' and found.visual.feature == 'a: b # c'
    assert found.data.images == '' and found.train.lr == 1e-4
