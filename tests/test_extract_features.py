"""util.extract_features: images, video made with PyAV, shards, kills, converted features."""

import json
import os
import shutil
import time
from fractions import Fraction
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from basic import runtime  # noqa: F401  (lets transformers import beside a torchvision of another build)

import transformers

from basic.errors import DataError
from basic.features import FrameSource, PooledSource
from kills import killed_before
from roots import make_video_root
from util.extract_features import convert as convert_module
from util.extract_features import shards
from util.extract_features.encoders import build_encoder
from util.extract_features.extract import Options, open_shares, run_share
from util.extract_features.main import main
from util.extract_features.shards import BadFiles
from basic.videos import natural, sampled

REPOSITORY = Path(__file__).resolve().parent.parent
TOWER = dict(
    hidden_size=16,
    intermediate_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    image_size=16,
    patch_size=8,
)
TEXT = dict(
    vocab_size=30,
    hidden_size=16,
    intermediate_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    max_position_embeddings=8,
)
PROCESSOR = {
    'image_processor_type': 'CLIPImageProcessor',
    'size': {'shortest_edge': 16},
    'crop_size': {'height': 16, 'width': 16},
    'image_mean': [0.5, 0.5, 0.5],
    'image_std': [0.5, 0.5, 0.5],
}


def save(model, folder, processor=PROCESSOR):
    model.save_pretrained(folder)
    (folder / 'preprocessor_config.json').write_text(json.dumps(processor))
    return folder


@pytest.fixture(scope='module')
def clip(tmp_path_factory):
    torch.manual_seed(0)
    config = transformers.CLIPVisionConfig(**TOWER, projection_dim=6)
    model = transformers.CLIPVisionModelWithProjection(config)
    return str(save(model, tmp_path_factory.mktemp('tower')))


def photo(seed, size=(40, 30)):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / 'photos'
    folder.mkdir()
    for i in range(10):
        photo(i).save(folder / f'p{i}{".png" if i % 2 else ".jpg"}')
    return folder


def run(*arguments):
    return main([*map(str, arguments), '--workers', '0', '--device', 'cpu'])


# ------------------------------------------------------------------------------------------- images


def test_images_of_a_folder(photos, clip, tmp_path, capsys):
    output = tmp_path / 'out/photos.npy'
    command = ['--images', photos, '--encoder', clip, '--output', output]
    assert run(*command, '--shard-size', 4, '--batch-size', 3) == 0
    source = PooledSource(output, output.with_suffix('.txt'))
    assert source.ids == [f'p{i}' for i in range(10)] and source.dim == 6
    model = transformers.CLIPVisionModelWithProjection.from_pretrained(clip).eval()
    processor = transformers.AutoImageProcessor.from_pretrained(clip)
    with torch.no_grad(), Image.open(photos / 'p3.png') as image:
        expected = model(**processor(images=[image], return_tensors='pt')).image_embeds[0]
    assert torch.allclose(source.batch(['p3'])[0][0], expected, atol=1e-5)
    record = json.loads(output.with_suffix('.json').read_text())
    assert (record['rows'], record['dim'], record['skipped']) == (10, 6, {})
    assert record['made_from']['encoder']['preprocessing']['image_mean'] == [0.5, 0.5, 0.5]
    assert not list(output.parent.glob('.*.shards'))
    before = output.stat().st_mtime_ns
    assert run(*command) == 0 and 'complete already' in capsys.readouterr().out
    assert run(*command, '--precision', 'bf16') == 2  # never overwritten silently
    assert '--overwrite' in capsys.readouterr().err and output.stat().st_mtime_ns == before
    assert run(*command, '--precision', 'bf16', '--overwrite') == 0
    assert np.abs(np.load(output) - source.features).max() < 0.1


def test_workers_do_not_change_the_features(photos, clip, tmp_path):
    found = []
    for workers in (0, 2):
        output = tmp_path / f'{workers}.npy'
        options = Options(clip, images=str(photos), output=str(output), workers=workers)
        options.device, options.batch_size = 'cpu', 4
        run_share(options)
        found.append(np.load(output))
    assert np.array_equal(*found)


def test_bad_images_are_listed_and_skipped_only_on_request(photos, clip, tmp_path, capsys):
    (photos / 'p4.jpg').write_bytes((photos / 'p4.jpg').read_bytes()[:300])
    output = tmp_path / 'x.npy'
    command = ['--images', photos, '--encoder', clip, '--output', output, '--shard-size', 3]
    assert run(*command) == 1
    error = capsys.readouterr().err
    assert 'p4' in error and '--skip-bad' in error and not output.exists()
    assert (tmp_path / 'x.npy.bad.txt').read_text().startswith('p4\t')
    assert run(*command, '--skip-bad') == 0
    assert 'p4' not in output.with_suffix('.txt').read_text().split() and len(np.load(output)) == 9
    assert list(json.loads(output.with_suffix('.json').read_text())['skipped']) == ['p4']


def test_a_repaired_image_is_tried_again(photos, clip, tmp_path):
    whole, output = tmp_path / 'whole.npy', tmp_path / 'x.npy'
    assert run('--images', photos, '--encoder', clip, '--output', whole) == 0
    kept = (photos / 'p5.png').read_bytes()
    (photos / 'p5.png').write_bytes(b'no image')
    command = ['--images', photos, '--encoder', clip, '--output', output]
    assert run(*command) == 1
    (photos / 'p5.png').write_bytes(kept)
    assert run(*command) == 0
    assert np.allclose(np.load(output), np.load(whole), atol=1e-5)


def test_ids_of_a_list_and_absent_images(photos, clip, tmp_path, capsys):
    captions = tmp_path / 'c.caption.txt'
    captions.write_text('p7.jpg#enc#0 a dog\np7.jpg#enc#1 a cat\np2.jpg#enc#0 a bird\n')
    output = tmp_path / 'x.npy'
    command = ['--images', photos, '--encoder', clip, '--output', output, '--ids', captions]
    assert run(*command) == 0
    assert output.with_suffix('.txt').read_text() == 'p7\np2\n'
    captions.write_text('p7.jpg#enc#0 a dog\np99.jpg#enc#0 a cat\n')
    assert run(*command, '--overwrite') == 2
    assert '1 of 2 images do not exist' in capsys.readouterr().err
    photo(1).save(photos / 'with space.jpg')
    assert run('--images', photos, '--encoder', clip, '--output', tmp_path / 'y.npy') == 2
    assert 'with space' in capsys.readouterr().err


@pytest.mark.parametrize('family', ['clip', 'siglip', 'siglip2', 'metaclip_2', 'chinese_clip'])
def test_families_of_towers(family, tmp_path):
    torch.manual_seed(1)
    size = {'projection_dim': 6}
    if family == 'siglip2':
        vision = transformers.Siglip2VisionConfig(**TOWER, num_patches=4)
        config = transformers.Siglip2Config(text_config=TEXT, vision_config=vision.to_dict())
        processor = {'image_processor_type': 'Siglip2ImageProcessor', 'patch_size': 8}
        processor |= {'max_num_patches': 4}
    else:
        kind = {
            'clip': transformers.CLIPConfig,
            'siglip': transformers.SiglipConfig,
            'metaclip_2': transformers.MetaClip2Config,
            'chinese_clip': transformers.ChineseCLIPConfig,
        }[family]
        more = {} if family == 'siglip' else size
        text = {**TEXT, 'eos_token_id': 2, 'bos_token_id': 1, 'pad_token_id': 0}
        config = kind(text_config={**text, **more}, vision_config={**TOWER, **more}, **more)
        processor = PROCESSOR
    model = transformers.AutoModel.from_config(config).eval()
    encoder = build_encoder(str(save(model, tmp_path / family, processor)))
    images = [photo(1, (16, 16)), photo(2, (16, 16))]
    found = encoder(encoder.prepare(images))
    inputs = transformers.AutoImageProcessor.from_pretrained(tmp_path / family)(
        images=images, return_tensors='pt'
    )
    with torch.no_grad():
        expected = model.get_image_features(**inputs).pooler_output
    assert torch.allclose(found, expected, atol=1e-5) and found.shape[0] == 2
    assert json.dumps(encoder.describe())


def test_resnet_from_a_file(photos, tmp_path, capsys):
    from torchvision import models

    torch.manual_seed(0)
    resnet = models.resnet18().eval()
    torch.save(resnet.state_dict(), tmp_path / 'r.pth')
    encoder = build_encoder('resnet18', str(tmp_path / 'r.pth'))
    found = encoder(encoder.prepare([photo(3, (300, 260))]))
    pixels = models.ResNet18_Weights.IMAGENET1K_V1.transforms()(photo(3, (300, 260)))
    resnet.fc = torch.nn.Identity()
    with torch.no_grad():
        assert torch.allclose(found, resnet(pixels[None]), atol=1e-5) and found.shape == (1, 512)
    command = ['--images', photos, '--output', tmp_path / 'x.npy', '--weights', tmp_path / 'r.pth']
    assert run(*command, '--encoder', 'resnet34') == 2
    assert 'does not have the weights of resnet34' in capsys.readouterr().err


# ------------------------------------------------------------------------------------------- videos


def make_video(path, times, codec='mpeg4', size=(64, 48), rotation=0, options=None):
    """A video whose frame i has grey level 10 * i % 250 and is shown at times[i] seconds."""
    av = pytest.importorskip('av')
    with av.open(str(path), 'w', options=options or {}) as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = *size, 'yuv420p'
        stream.codec_context.time_base = stream.time_base = Fraction(1, 1000)
        if rotation:
            stream.set_display_rotation(rotation)
        for i, seconds in enumerate(times):
            pixels = np.full((size[1], size[0], 3), 10 * i % 250, np.uint8)
            pixels[: size[1] // 2, : size[0] // 2] = (250, 0, 0)  # top left: red
            frame = av.VideoFrame.from_ndarray(pixels)
            frame.pts, frame.time_base = round(1000 * seconds), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def levels(path, fps, **options):
    """(k, number of the frame) of the sampled frames."""
    found = sampled(path, fps=Fraction(fps), **options)
    return [(k, round(image.getpixel((50, 40))[1] / 10)) for k, image in found]


CODECS = [('mpeg4', '.mp4'), ('libx264', '.mkv'), ('libvpx-vp9', '.webm'), ('libsvtav1', '.mp4')]


@pytest.mark.parametrize('codec, ending', CODECS)
def test_the_first_frame_at_or_after_each_time(codec, ending, tmp_path):
    av = pytest.importorskip('av')
    if codec not in av.codecs_available:
        pytest.skip(f'no {codec} here')
    path = make_video(tmp_path / f'v{ending}', [i / 10 for i in range(21)], codec)
    assert levels(path, 2) == [(0, 0), (1, 5), (2, 10), (3, 15), (4, 20)]
    assert levels(path, 2, max_frames=2) == [(0, 0), (1, 5)]


def test_variable_frame_rate(tmp_path):
    # 1.04 is the first at or after 1; the one at 4.2 is the first for 2, 3 and 4: taken once
    path = make_video(tmp_path / 'v.mkv', [0, 0.5, 0.96, 1.04, 1.5, 4.2, 4.3, 5], 'libx264')
    assert levels(path, 1) == [(0, 0), (1, 3), (4, 5), (5, 7)]


@pytest.mark.parametrize('rotation, corner', [(90, (4, 60)), (-90, (44, 4)), (180, (60, 44))])
def test_rotated_video_is_upright(rotation, corner, tmp_path):
    path = make_video(tmp_path / 'v.mp4', [0, 1], rotation=rotation)
    image = next(sampled(path, fps=Fraction(1)))[1]
    assert image.size == ((48, 64) if abs(rotation) == 90 else (64, 48))
    red, green, _ = image.getpixel(corner)
    assert red > 150 and green < 100  # where the red quarter lies once it is turned


def test_unreadable_videos(tmp_path):
    pytest.importorskip('av')
    fast = {'movflags': 'faststart'}
    whole = make_video(tmp_path / 'v.mp4', [i / 10 for i in range(60)], options=fast).read_bytes()
    for name, data, words in (
        ('cut.mp4', whole[: len(whole) * 2 // 3], 'incomplete|cannot be decoded'),
        ('text.mp4', b'no video', 'cannot be decoded'),
        ('empty.mp4', b'', 'cannot be decoded'),
        ('list.mp4', b'#EXTM3U\n#EXTINF:1,\nv.mp4\n#EXT-X-ENDLIST\n', 'cannot be decoded'),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DataError, match=words):
            list(sampled(tmp_path / name, fps=Fraction(1)))


def test_a_folder_of_frames(tmp_path):
    for i in range(1, 13):
        photo(i, (8, 8)).save(tmp_path / f'frame_{i}.png')
    assert sorted(['f10', 'f9', 'f1'], key=natural) == ['f1', 'f9', 'f10']
    assert [k for k, _ in sampled(tmp_path, fps=Fraction(1))] == list(range(12))
    found = list(sampled(tmp_path, fps=Fraction(2), folder_fps=Fraction(5)))
    assert [k for k, _ in found] == [0, 1, 2, 3, 4]  # frames 1, 4, 6, 9, 11: at 0, .6, 1, 1.6, 2
    assert np.array_equal(np.asarray(found[1][1]), np.asarray(photo(4, (8, 8))))


def test_videos_of_a_collection(clip, tmp_path, capsys):
    pytest.importorskip('av')
    make_video_root(tmp_path)
    shutil.rmtree(tmp_path / 'vatex/FeatureData')
    for path in (tmp_path / 'vatex/TextData').glob('*google*'):
        path.unlink()  # not translated yet
    folder = tmp_path / 'videos'
    (folder / 'class a').mkdir(parents=True)
    for i, name in enumerate(['v0', 'v1', 'v2', 'v3', 'w0', 'w1', 'x0', 'x1', 'other']):
        make_video(folder / 'class a' / f'{name}.mp4', [k / 5 for k in range(5 * (i + 1))])
    (folder / 'v4').mkdir()
    for i in range(3):
        photo(i).save(folder / f'v4/{i}.jpg')
    command = ['--config', REPOSITORY / 'configs/vatex.yaml', '--rootpath', tmp_path]
    command += ['--videos', folder, '--encoder', clip, 'visual.feature=tower', '--fps', 2]
    assert run(*command, '--shard-size', 2, '--batch-size', 2) == 0
    assert 'visual.feature=tower' in capsys.readouterr().out
    source = FrameSource(tmp_path / 'vatex/FeatureData/tower', max_frames=64)
    assert sorted(source.ids) == ['v0', 'v1', 'v2', 'v3', 'v4', 'w0', 'w1', 'x0', 'x1']
    assert dict(zip(source.ids, source.counts.tolist()))['v3'] == 8
    assert source.names([0, 1]) == ['v0_0', 'v0_1']
    features, mask = source.batch(['v1', 'v4'])
    assert features.shape == (2, 4, 6) and mask.sum(1).tolist() == [4, 3]
    (folder / 'v4/1.jpg').write_bytes(b'x')
    again = [*command, '--overwrite', '--fps', 3]
    assert run(*again) == 1 and 'v4' in capsys.readouterr().err
    assert run(*again, '--skip-bad') == 0
    assert 'data.missing=skip' in capsys.readouterr().out
    assert 'v4' not in FrameSource(source.where, max_frames=64)


# ------------------------------------------------------------------------------------------- shards


def test_shares_of_several_processes(photos, clip, tmp_path, capsys):
    whole, output = tmp_path / 'whole.npy', tmp_path / 'x.npy'
    command = ['--images', photos, '--encoder', clip, '--shard-size', 2]
    assert run(*command, '--output', whole) == 0
    for share in (2, 0):
        assert run(*command, '--output', output, '--shards', 3, '--shard', share) == 0
        assert 'are missing' in capsys.readouterr().out and not output.exists()
    options = Options(clip, images=str(photos), output=str(output), shard_size=2)
    assert open_shares(options, 3) == [1]  # what --cluster submits
    assert run(*command, '--output', output, '--shards', 3, '--shard', 1) == 0
    assert np.array_equal(np.load(output), np.load(whole))
    assert run(*command, '--output', output, '--shards', 3, '--shard', 1) == 0  # started again
    assert run(*command, '--output', output, '--shards', 3) == 2


def test_other_options_are_refused_by_name(photos, clip, tmp_path, capsys):
    command = ['--images', photos, '--encoder', clip, '--output', tmp_path / 'x.npy']
    shares = ['--shards', 2, '--shard', 0]
    assert run(*command, '--shard-size', 4, *shares) == 0
    assert run(*command, '--shard-size', 4, '--precision', 'bf16') == 2
    assert 'precision: fp32 -> bf16' in capsys.readouterr().err
    assert run(*command, '--shard-size', 4) == 0 and len(np.load(tmp_path / 'x.npy')) == 10


def run_with_one_thread(options):
    """Of a forked process: the threads of its parent are not in it, and would be waited for."""
    torch.set_num_threads(1)
    run_share(options)


def test_killed_at_random_moments(clip, tmp_path):
    photos, random = tmp_path / 'many', np.random.default_rng(0)
    photos.mkdir()
    for i in range(300):
        photo(i, (60, 50)).save(photos / f'{i:03}.jpg')
    output, whole = tmp_path / 'x.npy', tmp_path / 'whole.npy'
    options = Options(clip, images=str(photos), output=str(output), shard_size=10, workers=0)
    options.device, work, kills = 'cpu', tmp_path / '.x.npy.shards', 0
    for _ in range(5):
        process = get_context('fork').Process(target=run_with_one_thread, args=(options,))
        done = len(list(work.glob('*.npz')))
        process.start()
        while process.is_alive() and len(list(work.glob('*.npz'))) == done:
            time.sleep(0.001)
        time.sleep(float(random.uniform(0, 0.02)))
        process.kill()
        process.join()
        kills += process.exitcode == -9
    assert kills and not output.exists() and list(work.glob('*.npz'))
    assert run_share(options) and not work.exists()
    assert output.with_suffix('.txt').read_text().split() == [f'{i:03}' for i in range(300)]
    options.output = str(whole)
    run_share(options)
    assert np.array_equal(np.load(output), np.load(whole))


@pytest.mark.parametrize('kind, more', [('images', []), ('videos', ['--overwrite'])])
def test_killed_before_each_change(kind, more, clip, tmp_path):
    for i in range(2):
        (tmp_path / f'photos/v{i}').mkdir(parents=True)
        photo(i).save(tmp_path / f'photos/{i}.png')
        photo(i).save(tmp_path / f'photos/v{i}/0.png')
    output = tmp_path / 'x' / ('x.npy' if kind == 'images' else 'x')
    words = [f'--{kind}', tmp_path / 'photos', '--output', output, '--encoder', clip]
    words += ['--shard-size', 1, '--workers', 0, '--device', 'cpu']

    def content():
        found = {path.relative_to(tmp_path): path for path in output.parent.rglob('*')}
        return {name: b'' if path.is_dir() or path.suffix == '.json' else path.read_bytes()
                for name, path in found.items()}  # fmt: skip

    run(*words)
    whole, kills = content(), 0
    while True:
        shutil.rmtree(output.parent)
        if more:
            run(*words, '--precision', 'bf16')
        if not killed_before(kills + 1, lambda: run(*words, *more)):
            break
        kills += 1
        assert run(*words, *more) == 0, kills
        assert content() == whole, kills
    assert kills > 20


def test_a_share_whose_output_another_process_has_written(photos, clip, tmp_path, monkeypatch):
    command = ['--images', photos, '--encoder', clip, '--output', tmp_path / 'x.npy']
    write, wrote = shards.Work.write, []

    def late(work, shard, results):
        if not wrote:
            wrote.append(shard)
            assert run(*command, '--shard-size', 4) == 0  # another start of the same command
        write(work, shard, results)

    monkeypatch.setattr(shards.Work, 'write', late)
    assert run(*command, '--shard-size', 4) == 0
    assert not (tmp_path / '.x.npy.shards').exists() and len(np.load(tmp_path / 'x.npy')) == 10
    (tmp_path / 'x.npy').unlink()  # but not its record
    assert run(*command, '--shard-size', 4) == 0 and len(np.load(tmp_path / 'x.npy')) == 10


# --------------------------------------------------------------------------------------- converting


def features(rows, seed, width=7):
    return np.random.default_rng(seed).standard_normal((rows, width)).astype(np.float32)


def test_converting_a_folder_of_npy(tmp_path, capsys):
    folder, output = tmp_path / 'i3d', tmp_path / 'out/i3d'
    folder.mkdir()
    for i in range(4):
        array = features(i + 1, i)[None] if i % 2 else features(i + 1, i).astype(np.float64)
        np.save(folder / f'v{i}.npy', array)
    assert main(['--from', str(folder), '--output', str(output)]) == 0
    source = FrameSource(output, max_frames=64)
    assert source.ids == ['v0', 'v1', 'v2', 'v3'] and source.counts.tolist() == [1, 2, 3, 4]
    assert np.array_equal(source.batch(['v3'])[0][0], features(4, 3))
    assert main(['--from', str(folder), '--output', str(output)]) == 2
    assert '--overwrite' in capsys.readouterr().err
    np.save(folder / 'v2.npy', np.array([{'a': 1}], dtype=object))
    np.save(folder / 'v1.npy', features(2, 1, width=8))
    again = ['--from', str(folder), '--output', str(output), '--overwrite']
    assert main(again) == 1
    error = capsys.readouterr().err
    assert 'v1' in error and 'v2' in error and len(FrameSource(output, max_frames=64).ids) == 4
    assert main([*again, '--skip-bad']) == 0
    assert FrameSource(output, max_frames=64).ids == ['v0', 'v3']


def test_converting_an_hdf5_file(tmp_path, capsys):
    h5py = pytest.importorskip('h5py')
    with h5py.File(tmp_path / 'f.h5', 'w') as file:
        for i in range(3):
            file.create_dataset(f'split/v{i}', data=features(i + 1, i), compression='gzip')
        file['elsewhere'] = h5py.ExternalLink('other.h5', '/x')
    ids = tmp_path / 'ids.txt'
    ids.write_text('v2.mp4\nv0.mp4\n')
    command = ['--from', str(tmp_path / 'f.h5'), '--output', str(tmp_path / 'o')]
    assert main([*command, '--ids', str(ids)]) == 0
    source = FrameSource(tmp_path / 'o', max_frames=64)
    assert source.ids == ['v2', 'v0']
    assert np.array_equal(source.batch(['v2'])[0][0], features(3, 2))
    ids.write_text('v2\nv9\n')
    assert main([*command, '--ids', str(ids), '--overwrite']) == 2
    assert 'v9' in capsys.readouterr().err
    with h5py.File(tmp_path / 'g.h5', 'w') as file:
        for i in range(2):
            file[f'v{i}/features'] = features(2, i)
        bomb = file.create_dataset('v2/features', (2**28, 7), 'f4', chunks=True, compression='gzip')
        assert bomb.nbytes > 2**32
    assert main(['--from', str(tmp_path / 'g.h5'), '--output', str(tmp_path / 'p')]) == 1
    assert 'unpack' in capsys.readouterr().err


def test_converting_tensors(tmp_path, capsys):
    tensors = {f'v{i}': torch.from_numpy(features(i + 1, i)) for i in range(3)}
    torch.save({**tensors, 'v1': tensors['v1'].half()}, tmp_path / 'f.pt')
    assert main(['--from', str(tmp_path / 'f.pt'), '--output', str(tmp_path / 'o')]) == 0
    source = FrameSource(tmp_path / 'o', max_frames=64)
    assert source.ids == ['v0', 'v1', 'v2']
    assert torch.equal(source.batch(['v2'])[0][0], tensors['v2'])
    torch.save({'v0': os.system}, tmp_path / 'code.pt')
    assert main(['--from', str(tmp_path / 'code.pt'), '--output', str(tmp_path / 'p')]) == 2
    assert 'code' in capsys.readouterr().err and not (tmp_path / 'p').exists()
    with pytest.raises(DataError, match='expected a folder'):
        (tmp_path / 'x.mat').write_bytes(b'x')
        convert_module.open_source(tmp_path / 'x.mat')


@pytest.mark.parametrize(
    'words, message',
    [
        (['--images', 'x'], '--output'),
        (['--images', 'x', '--output', 'folder'], '.npy'),
        (['--images', 'x', '--videos', 'y', '--output', 'z'], 'one of'),
        (['--videos', 'x', '--output', 'y', '--fps', '0'], 'rate'),
        (['--config', 'configs/vatex.yaml'], '--rootpath'),
        (['--images', 'x', '--output', 'x.npy', '--shards', '2', '--shard', '2'], '--shard'),
    ],
)
def test_wrong_commands(words, message, capsys):
    assert main(words) == 2
    assert message in capsys.readouterr().err


def test_bad_files_end_with_status_1():
    assert BadFiles('x').status == 1


def test_images_of_a_collection(clip, tmp_path, capsys):
    text = tmp_path / 'multi30k/TextData'
    folder = tmp_path / 'multi30k/flickr30k-images'
    text.mkdir(parents=True)
    folder.mkdir()
    (tmp_path / 'multi30k/FeatureData').mkdir()
    (tmp_path / 'multi30k/FeatureData/train_id.txt').write_text('b\na\nc\n')
    (text / 'multi30kval_de.caption.txt').write_text('d.jpg#de#0 x\nb.jpg#de#0 y\n')
    for i, name in enumerate('abcd'):
        photo(i).save(folder / f'{name}.jpg')
    command = ['--config', REPOSITORY / 'configs/multi30k.yaml', '--rootpath', tmp_path]
    command += ['--encoder', clip, '--split', 'train,val', 'visual.feature=tower', 'data.task=2']
    assert run(*command) == 0
    features = tmp_path / 'multi30k/FeatureData/tower'
    train = PooledSource(features / 'train-tower-avgpool.npy', features.parent / 'train_id.txt')
    val = np.load(features / 'val-tower-avgpool.npy')
    assert train.ids == ['b', 'a', 'c'] and np.allclose(val[1], train.features[0], atol=1e-5)
    printed = capsys.readouterr().out  # val has no id list yet: the one beside the features
    assert 'data.ids.val=["FeatureData/tower/val-tower-avgpool.txt"]' in printed
    assert 'data.ids.train' not in printed
    (folder / 'a.jpg').unlink()
    again = [*command, '--precision', 'bf16', '--overwrite']
    assert run(*again) == 2 and '1 of 3 images do not exist' in capsys.readouterr().err
    assert run(*again, '--skip-bad') == 0
    assert 'data.ids.train=["FeatureData/tower/train-tower-avgpool.txt"]' in capsys.readouterr().out
    assert (features / 'train-tower-avgpool.txt').read_text() == 'b\nc\n'
