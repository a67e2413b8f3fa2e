"""The arguments of util.translate, checked without importing torch."""

import argparse

from basic.arguments import DEVICE
from basic.config import SPLITS, ConfigError, load_config
from util import cluster
from util.translate.engines import ENGINES, Command, Setup


def parse(argv, doc):
    """Parse and check the words.

    Returns:
        argparse.Namespace, with `config` (or None), `langs`, and the Setups `into` and `back`
        (None where the arguments name none).
    Raises:
        ConfigError: options that do not fit together.
    """
    parser = argparse.ArgumentParser(
        prog='python -m util.translate',
        description=doc.partition('\n\n')[0],
        epilog=doc.partition('\n\n')[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_files(parser)
    _add_engines(parser)
    _add_work(parser)
    cluster.add_arguments(parser)
    args = parser.parse_intermixed_args(argv)
    _check(args)
    args.config = load_config(args.configs, args.options) if args.configs else None
    args.langs = (args.source or 'en', args.to or (args.config.data.lang if args.config else ''))
    args.into, args.back = (_setup(args, back) for back in (False, True))
    return args


def _add_files(parser):
    files = parser.add_argument_group('files')
    files.add_argument(
        '--config',
        dest='configs',
        action='append',
        metavar='FILE',
        help='translate what this collection lacks, such as configs/multi30k.yaml',
    )
    files.add_argument(
        '--rootpath', metavar='ROOT', help="folder that holds the collection's folder"
    )
    files.add_argument(
        '--split',
        '--splits',
        dest='splits',
        default=','.join(SPLITS),
        metavar='SPLIT,...',
        help='default: %(default)s',
    )
    files.add_argument('--input', metavar='FILE', help='translate this caption file instead')
    files.add_argument('--output', metavar='FILE', help='the file to write, with --input')
    files.add_argument(
        '--from', dest='source', metavar='LANG', help='source language (default: en)'
    )
    files.add_argument('--to', metavar='LANG', help='target language (default: data.lang)')
    files.add_argument(
        '--overwrite', action='store_true', help='replace translations made in another way'
    )
    files.add_argument(
        'options', nargs='*', metavar='key=value', help='of the config, such as data.lang=es'
    )


def _add_engines(parser):
    engine = parser.add_argument_group('engine')
    engine.add_argument(
        '--engine', choices=ENGINES, default='transformers', help='default: %(default)s'
    )
    engine.add_argument('--model', metavar='NAME_OR_FOLDER', help='Marian, NLLB, M2M-100 or MADLAD')
    engine.add_argument(
        '--back-model',
        metavar='NAME_OR_FOLDER',
        help='the model into English (default: --model, if it knows both directions)',
    )
    engine.add_argument(
        '--command', metavar='COMMAND', help="such as 'apertium -u -f line eng-spa'"
    )
    engine.add_argument(
        '--back-command',
        metavar='COMMAND',
        help='the command into English (default: --command, if it has {from} and {to})',
    )
    engine.add_argument('--revision', default='', metavar='REV', help='of the models on the hub')
    engine.add_argument('--device', default='auto', help=DEVICE.partition(',')[0] + '; cpu; or 0')
    engine.add_argument(
        '--precision',
        default='auto',
        help='auto (default), fp32 or bf16; with ctranslate2: auto, int8, float32, ...',
    )
    engine.add_argument('--beams', type=int, default=4, metavar='N', help='default: 4')
    engine.add_argument(
        '--batch-size', type=int, default=0, metavar='N', help='default: 128 on a GPU, 32 on a CPU'
    )


def _add_work(parser):
    work = parser.add_argument_group('work')
    work.add_argument(
        '--part-size',
        type=int,
        default=1000,
        metavar='N',
        help='captions written at a time; a kill loses at most so many (default: 1000)',
    )
    work.add_argument(
        '--shards', type=int, default=1, metavar='N', help='number of processes that share the work'
    )
    work.add_argument(
        '--shard', type=int, default=0, metavar='I', help="this process's number, from 0 to N - 1"
    )
    work.add_argument(
        '--report', action='store_true', help='also report on translations that exist already'
    )
    work.add_argument(
        '--drop-flagged',
        action='store_true',
        help='leave out suspicious captions: of --output; or of a copy of the training captions',
    )


def _check(args):
    plain = args.input or args.output
    if bool(plain) == bool(args.configs):
        raise ConfigError('give either --config and --rootpath, or --input and --output')
    if plain and not (args.input and args.output and args.to):
        raise ConfigError('--input FILE also needs --output FILE and --to LANG')
    if plain and args.options:
        raise ConfigError(f'{args.options[0]}: options of a config need --config')
    if args.configs and not args.rootpath:
        raise ConfigError('--config also needs --rootpath')
    for name, least in (('shards', 1), ('part_size', 1), ('beams', 1), ('batch_size', 0)):
        if getattr(args, name) < least:
            option = name.replace('_', '-')
            raise ConfigError(f'--{option} {getattr(args, name)}: expected at least {least}')
    cluster.check_arguments(args)
    cluster.check_shards(args, args.device)
    if not 0 <= args.shard < args.shards:
        raise ConfigError(f'--shard {args.shard}: expected 0 to {args.shards - 1} (--shards - 1)')
    args.splits = args.splits.split(',')
    if not args.splits or set(args.splits) - {*SPLITS}:
        raise ConfigError(f'--split {",".join(args.splits)}: expected some of {", ".join(SPLITS)}')
    given = [args.command, args.back_command]
    if args.engine == 'command' and (args.model or args.back_model):
        raise ConfigError('--model is for the engines transformers and ctranslate2')
    if args.engine != 'command' and any(given):
        raise ConfigError('--command needs --engine command')


def _setup(args, back):
    """The Setup of a direction; None if the arguments name no model or command for it."""
    if args.engine == 'command':
        both = args.command and '{from}' in args.command and '{to}' in args.command
        named = (args.back_command or (args.command if both else None)) if back else args.command
    else:
        named = (args.back_model or args.model) if back else args.model
    if not named:
        return None
    found = Setup(
        engine=args.engine,
        model=named,
        revision=args.revision,
        beams=args.beams,
        batch_size=args.batch_size,
        precision=args.precision,
        device=args.device,
    )
    if args.engine == 'command':
        Command(named, *(args.langs[::-1] if back else args.langs))  # raises at once
    return found
