"""Extract features of images or videos with a frozen encoder, or convert others.

    python -m util.extract_features --config configs/multi30k.yaml
        --rootpath ROOT [--encoder resnet152] [--split train,val,test]
        [key=value ...]
    python -m util.extract_features --config configs/vatex.yaml --rootpath ROOT
        --videos DIR --encoder openai/clip-vit-base-patch32 [--fps 1]
    python -m util.extract_features --images DIR --output FILE.npy [--ids FILE]
    python -m util.extract_features --videos DIR --output FOLDER [--ids FILE]
    python -m util.extract_features --from PATH --output FOLDER [--ids FILE]

Images give a .npy and its id list. Videos give one feature per sampled frame,
in a BigFile folder. A JSON file beside them records encoder, weights, options
and counts. The same command again resumes after a stop. Several processes share
the work with --shards N --shard I; with --shards N --cluster slurm (or local),
this command starts all N as jobs.

The exit status is 0 if all was done, 1 if files cannot be read, 2 for a wrong
command.
"""

import argparse
import math
import re
import sys
from fractions import Fraction
from pathlib import Path

from basic.arguments import DEVICE
from basic.command import command
from basic.errors import ConfigError
from util import cluster

SPLITS = ('train', 'val', 'test')


def parse(argv=None):
    """The arguments, checked without importing torch; argparse ends the program if one is wrong."""
    parser = argparse.ArgumentParser(
        prog='python -m util.extract_features',
        description=__doc__.partition('\n\n')[0],
        epilog=__doc__.partition('\n\n')[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument_group('what').add_argument
    add(
        '--config',
        dest='configs',
        action='append',
        default=[],
        metavar='FILE',
        help='a collection: its ids, data.images, and where its features belong',
    )
    add('--rootpath', metavar='ROOT', help="folder that holds the collections' folders")
    add('--split', default=','.join(SPLITS), metavar='SPLIT,...', help='default: %(default)s')
    add('--images', metavar='DIR', help='folder of images, or a template with {id}')
    add('--videos', metavar='DIR', help='folder of videos: files, or folders of frames')
    add(
        '--from',
        dest='source',
        metavar='PATH',
        help='features to convert: a folder of one .npy or .pt per video, an HDF5 file, or a .pt',
    )
    add('--ids', metavar='FILE', help='id list or caption file (default: the file names)')
    add('--output', metavar='PATH', help='a .npy for images, else a folder')
    add = parser.add_argument_group('features').add_argument
    add(
        '--encoder',
        default='resnet152',
        metavar='NAME',
        help='a ResNet of torchvision, or hub name or folder of a CLIP-like model '
        '(default: resnet152)',
    )
    add(
        '--weights',
        metavar='FILE',
        help="a ResNet's file, or IMAGENET1K_V2 (default: IMAGENET1K_V1)",
    )
    add(
        '--fps',
        default='1',
        metavar='RATE',
        help='sampled frames per second, such as 2 or 0.5 (default: 1)',
    )
    add(
        '--folder-fps',
        metavar='RATE',
        help='frames per second of the frames in folders (default: take all)',
    )
    add('--max-frames', type=int, default=0, metavar='N', help='of a video, at most (default: all)')
    add('--precision', choices=('fp32', 'tf32', 'bf16'), default='fp32', help='default: fp32')
    add = parser.add_argument_group('work').add_argument
    add('--device', default='auto', help=DEVICE.partition(', or several')[0])
    add('--batch-size', type=int, default=32, metavar='N', help='images at a time (default: 32)')
    add('--workers', type=int, default=2, metavar='N', help='processes that read (default: 2)')
    add(
        '--shard-size',
        type=int,
        default=0,
        metavar='N',
        help='items that a stop can lose (default: 512 images, 32 videos)',
    )
    add('--shards', type=int, default=1, metavar='N', help='processes that share the work')
    add('--shard', type=int, metavar='I', help='which of them this is, from 0')
    add('--skip-bad', action='store_true', help='omit files that cannot be read')
    add('--overwrite', action='store_true', help='replace features of other data or options')
    cluster.add_arguments(parser)
    parser.add_argument('overrides', nargs='*', metavar='key=value', help='options of the config')
    args = parser.parse_intermixed_args(argv)
    _check(args)
    return args


def _check(args):
    """Raise ConfigError for arguments that contradict each other."""
    given = [name for name in ('images', 'videos', 'source') if getattr(args, name)]
    if len(given) > 1:
        raise ConfigError('give one of --images, --videos and --from')
    if args.configs and (args.output or args.ids):
        raise ConfigError('--config has its own ids and places: omit --output and --ids')
    if args.configs and not args.rootpath:
        raise ConfigError('--config needs --rootpath')
    if not args.configs:
        if args.overrides or args.rootpath:
            raise ConfigError('--rootpath and key=value need --config')
        if not given or not args.output:
            raise ConfigError('give --config, or --output with --images, --videos or --from')
        if args.images and not args.output.endswith('.npy'):
            raise ConfigError(
                f'--output {args.output}: for images, expected a name that ends in .npy'
            )
    cluster.check_arguments(args)
    cluster.check_shards(args, args.device)
    if args.cluster and args.source:
        raise ConfigError('--from converts in one process: omit --cluster')
    given = args.shard is not None or bool(args.cluster)
    if (
        args.shards > 1
        and not given
        or args.shard is not None
        and not 0 <= args.shard < args.shards
    ):
        raise ConfigError('expected --shards N with --shard I, from 0 to N - 1, or with --cluster')
    args.splits = tuple(dict.fromkeys(args.split.split(',')))
    if not set(args.splits) <= set(SPLITS):
        raise ConfigError(f'--split {args.split}: expected some of {", ".join(SPLITS)}')
    for name, least in (('batch_size', 1), ('workers', 0), ('shard_size', 0), ('max_frames', 0)):
        if getattr(args, name) < least:
            raise ConfigError(f'--{name.replace("_", "-")}: expected at least {least}')
    for name in ('fps', 'folder_fps'):
        if getattr(args, name) is not None:
            setattr(args, name, _rate(getattr(args, name), name))
    if args.videos and '{id}' in args.videos:
        raise ConfigError('--videos: expected a folder; the files in it are found by their names')


def _rate(text, name):
    """A rate as a canonical fraction, such as '1/2' of '0.5'."""
    if not re.fullmatch(r'\d{1,9}(\.\d{1,9}|/\d{1,9})?', text) or not _positive(text):
        raise ConfigError(f'--{name.replace("_", "-")} {text}: expected a rate such as 2 or 0.5')
    return str(Fraction(text))


def _positive(text):
    top, _, bottom = text.partition('/')
    return float(top) > 0 and (not bottom or float(bottom) > 0) and math.isfinite(float(top))


@command('extract_features')
def main(argv=None):
    """The command line; returns the exit status."""
    words = sys.argv[1:] if argv is None else list(argv)
    args = parse(words)
    if args.source:
        return _convert(args)
    from util.extract_features.extract import Options, open_shares, run_share, told

    names = Options.__dataclass_fields__
    options = Options(**{key: value for key, value in vars(args).items() if key in names})
    if args.cluster:
        shares = open_shares(options, args.shards)
        tasks = cluster.share_tasks('extract_features', args, words, shares)
        failed = cluster.run('extract_features', tasks, args, words=words)
        for line in [] if failed else told(options):
            print(line)
        return 1 if failed else 0
    for line in run_share(options, args.shard or 0, args.shards):
        print(line)
    return 0


def _convert(args):
    from basic.errors import DataError
    from util.extract_features.convert import convert
    from util.extract_features.items import collection_ids, listed_ids

    ids, output = listed_ids(args.ids) if args.ids else None, Path(args.output or '')
    if args.configs:
        from basic.collection import Collection
        from basic.config import load_config

        config = load_config(args.configs, [*args.overrides, 'visual.kind=frames'])
        collection = Collection(config, args.rootpath)
        output = next(collection.paths(config.data.frames, args.splits[0]))
        lists = [collection_ids(collection, split)[0] for split in args.splits]
        ids = list(dict.fromkeys(name for each in lists for name in each))
    if output.exists() and not args.overwrite:
        raise DataError(f'{output} exists: --overwrite replaces it')
    videos, bad = convert(
        args.source, output, ids=ids, skip_bad=args.skip_bad, max_frames=args.max_frames
    )
    print(f'written: {output}  ({videos:,} videos)')
    for name, reason in list(bad.items())[:5]:
        print(f'  skipped {name}: {reason}')
    if len(bad) > 5:
        print(f'  {len(bad):,} skipped, all listed in {output / "extracted.json"}')
    return 0
