"""Search your pictures with a trained model: on the command line, or on a local web page.

    python -m util.search index RUN --output INDEX [--split test | --images FOLDER]
    python -m util.search add INDEX --images FOLDER
    python -m util.search remove INDEX ID ...
    python -m util.search query INDEX 'ein Hund rennt' [--lang de] [--translation 'a dog runs']
    python -m util.search query INDEX --image dog.jpg
    python -m util.search serve INDEX

RUN is what `evaluation.load_model` reads: a run folder, a checkpoint file, a folder of
util.export, or a hub name. The exit status is 0, or 2 if something is wrong.
"""

import argparse
import sys
from pathlib import Path

from basic.arguments import DEVICE
from basic.command import command, telling
from basic.errors import ConfigError

SPLITS = ('train', 'val', 'test')
MOST = 1000  # results, at most


def parse(argv=None):
    """The arguments, checked without importing torch; argparse ends the program if one is wrong."""
    parser = argparse.ArgumentParser(
        prog='python -m util.search',
        description=__doc__.partition('\n\n')[0],
        epilog=__doc__.partition('\n\n')[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest='command', required=True, metavar='COMMAND')
    _index_arguments(commands)
    _add_arguments(commands)
    _remove_arguments(commands)
    _query_arguments(commands)
    _serve_arguments(commands)
    args = parser.parse_args(argv)
    if args.command in ('index', 'add'):
        _check_items(args)
    if args.command == 'query':
        _check_query(args)
    if getattr(args, 'memory', 1) < 1:
        raise ConfigError('--memory: expected at least 1')
    return args


def _index_arguments(commands):
    add = _command(commands, 'index', 'encode a split, or a folder, into a new index')
    add('run', metavar='RUN', help='run folder, checkpoint, exported folder, or hub name')
    add('--output', required=True, metavar='INDEX', help='folder of the index, which is made')
    _items_arguments(add)
    add(
        '--index',
        metavar='milvus:URI',
        help='keep the vectors in Milvus: milvus:FILE.db (embedded), or milvus:http://HOST:PORT',
    )
    add(
        '--hnsw',
        action='store_true',
        help='with Milvus: an approximate graph (HNSW) instead of exact search (FLAT)',
    )


def _add_arguments(commands):
    add = _command(commands, 'add', 'add items that are not in an index yet')
    add('index_folder', metavar='INDEX')
    _items_arguments(add)
    _model_argument(add)


def _remove_arguments(commands):
    add = _command(commands, 'remove', 'remove items and their captions from an index')
    add('index_folder', metavar='INDEX')
    add('ids', nargs='*', metavar='ID')
    add('--ids', dest='id_list', metavar='FILE', help='a list of them, one per line')


def _query_arguments(commands):
    add = _command(commands, 'query', 'find items by a text, or captions by an image')
    add('index_folder', metavar='INDEX')
    add('text', nargs='?', metavar='TEXT')
    add('--image', metavar='FILE', help='find the captions of an image, and similar ones')
    add('--item', metavar='ID', help='the same for an item of the index')
    add('--lang', help="of the text, or en (default: the model's first); of the captions found")
    add('--translation', default='', metavar='TEXT', help='the text in English, to score both')
    add('--weight', type=float, metavar='W', help="share of the translation (default: the index's)")
    add('--top', type=int, default=10, metavar='N', help='results (default: 10)')
    add('--html', metavar='FILE', help='also write them as a page with pictures')
    _search_arguments(add)


def _serve_arguments(commands):
    add = _command(commands, 'serve', 'a search page on this machine')
    add('index_folder', metavar='INDEX')
    add('--host', default='127.0.0.1', help='address to listen at (default: 127.0.0.1)')
    add('--port', type=int, default=8000, help='default: 8000; 0: any that is free')
    add(
        '--allow-host',
        action='append',
        default=[],
        metavar='NAME',
        help='another name by which browsers may call this machine; may be repeated',
    )
    _search_arguments(add)


def _command(commands, name, text):
    return commands.add_parser(name, help=text, description=text[0].upper() + text[1:]).add_argument


def _items_arguments(add):
    add('--split', choices=SPLITS, help="of the run's collection (default: test)")
    add('--rootpath', metavar='ROOT', help="with --split (default: found from the run's place)")
    add('--images', metavar='FOLDER', help='the images in a folder and the folders below it')
    add(
        '--features',
        metavar='PATH',
        help='features that exist: a folder of frame features, or a .npy with its .txt of ids',
    )
    add('--media', metavar='FOLDER', help='images or videos to look at, named by the ids')
    add('--captions', metavar='FILE', help='caption file, with --images or --features')
    add('--translations', metavar='FILE', help='of the captions, into English')
    add('--lang', help="language of --captions (default: the model's first)")
    add('--skip-bad', action='store_true', help='omit files that cannot be read')
    add('--device', default='auto', help=DEVICE.partition(', or several')[0])


def _search_arguments(add):
    _model_argument(add)
    add('--memory', type=int, default=1024, metavar='MIB', help='for scores (default: 1024)')
    add('--device', default='cpu', help='cpu (default), auto, or the index of a GPU')


def _model_argument(add):
    add('--model', metavar='RUN', help='where the model is, if it was moved')


def _check_items(args):
    """Raise ConfigError for arguments that contradict each other."""
    given = [name for name in ('split', 'images', 'features') if getattr(args, name)]
    if len(given) > 1:
        raise ConfigError('give one of --split, --images and --features')
    if args.command == 'add' and not given:
        raise ConfigError('give --images, --features or --split')
    args.split = args.split or (None if given else 'test')
    if args.split and (args.captions or args.translations):
        raise ConfigError('a split has its own captions: omit --captions and --translations')
    if args.rootpath and not args.split:
        raise ConfigError('--rootpath goes with --split')
    if args.media and args.images:
        raise ConfigError('--images are looked at themselves: omit --media')
    if args.translations and not args.captions:
        raise ConfigError('--translations goes with --captions')
    if args.command == 'index' and args.hnsw and not args.index:
        raise ConfigError('--hnsw goes with --index milvus:URI')


def _check_query(args):
    if sum(value is not None for value in (args.text, args.image, args.item)) != 1:
        raise ConfigError('give one of TEXT, --image and --item')
    if not 1 <= args.top <= MOST:
        raise ConfigError(f'--top {args.top}: expected 1 to {MOST:,}')
    if args.weight is not None and not args.translation:
        raise ConfigError('--weight is the share of the translation: give --translation, too')
    if args.text is None and args.translation:
        raise ConfigError('--translation goes with TEXT')


@command('search')
def main(argv=None):
    """The command line; returns the exit status."""
    args = parse(argv)
    if args.command == 'serve':
        _need_extras()
    if args.command != 'remove':
        with telling('loading PyTorch'):
            import torch  # noqa: F401
    try:
        return COMMANDS[args.command](args)
    except KeyboardInterrupt as error:
        if args.command in ('index', 'add'):
            error.add_note('What was written stays; the same command continues.')
        raise


def _open_model(source, device):
    with telling('loading the model'):
        from basic import runtime
        from evaluation import load_model

        runtime.keep_logs_tidy()
        return load_model(source, device=device)


def _source(args, model, run):
    """What is to be indexed, see util.search.items."""
    from util.search import items

    if args.images:
        source = items.of_images(model, args.images)
    elif args.features:
        source = items.of_features(model, args.features, args.media)
    else:
        source = items.of_split(model, args.rootpath or _root(run, model), args.split, args.media)
    if args.captions:
        lang = args.lang or model.languages[0]
        if lang not in model.languages:
            raise ConfigError(f'--lang {lang}: expected one of {", ".join(model.languages)}')
        source.captions.append(items.read_pair(args.captions, args.translations, lang))
    return source


def _root(run, model):
    from basic.checkpoint import find_checkpoint
    from evaluation import root_of

    if not Path(run).exists():
        raise ConfigError(f'--rootpath is needed: {run} is not on this machine')
    return root_of(find_checkpoint(run), model.config)


def _index(args):
    from util.search.build import fill
    from util.search.writer import check_new, creating

    check_new(args.output)  # before the model is loaded, which takes long
    model = _open_model(args.run, args.device)
    run = str(Path(args.run).absolute()) if Path(args.run).exists() else args.run
    source = _source(args, model, args.run)
    kind = 'HNSW' if args.hnsw else 'FLAT'
    with creating(args.output, model, run, milvus=args.index, kind=kind) as writer:
        added = fill(writer, model, source, skip_bad=args.skip_bad)
        _tell(args.output, writer.index, added)
    if not model.ranges:
        print('note: the model has no score ranges of validation: fused scores mix plain cosines')
    print(f"to search: python -m util.search query {args.output} 'TEXT'")
    print(f'a page:    python -m util.search serve {args.output}')
    return 0


def _add(args):
    from util.search.build import fill
    from util.search.manifest import read_manifest
    from util.search.writer import writing

    run = args.model or read_manifest(args.index_folder)['model']['source']
    model = _open_model(run, args.device)
    source = _source(args, model, run)
    with writing(args.index_folder) as writer:
        writer.index.check_model(model)
        added = fill(writer, model, source, skip_bad=args.skip_bad)
        _tell(args.index_folder, writer.index, added)
    return 0


def _remove(args):
    from basic.ids import read_ids
    from util.search.writer import writing

    ids = [*args.ids, *(read_ids(args.id_list) if args.id_list else [])]
    if not ids:
        raise ConfigError('name the ids of the items to remove')
    with writing(args.index_folder) as writer:
        before = {name: part.count for name, part in writer.index.parts.items()}
        writer.remove(sorted(set(writer.index.rows_of_ids(ids))))
        gone = {name: before[name] - part.count for name, part in writer.index.parts.items()}
        print(
            f'removed: {gone["items"]:,} items, {sum(gone.values()) - gone["items"]:,} captions;'
            f' {writer.index.items.count:,} items left'
        )
    return 0


def _tell(folder, index, added):
    """Print what an index has now."""
    captions = [f'{index.captions(lang).count:,} {lang}' for lang in index.caption_languages]
    place = index.manifest.get('milvus')
    size = sum(part.count for part in index.parts.values()) * index.manifest['dim'] * 4 / 2**20
    print(
        f'index: {folder}  ({index.items.count:,} items; captions: {", ".join(captions) or "none"};'
        f' {size:,.1f} MiB{" in Milvus" if place else ""})'
    )
    print(f'added: {added.items:,} items, {added.captions:,} captions')
    if added.known:
        print(f'in it before: {added.known:,} items')
    if added.omitted:
        print(f'omitted: {added.omitted:,} captions of items that are not in the index')
    for reason in added.bad[:5]:
        print(f'skipped: {reason}')
    if len(added.bad) > 5:
        print(f'skipped: {len(added.bad) - 5:,} more')


def _query(args):
    from util.search.query import run_query

    return run_query(args, lambda run: _open_model(run, args.device))


def _need_extras():
    """Raise ConfigError without the packages that `serve` needs."""
    try:
        import fastapi  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f'util.search serves its page with FastAPI and uvicorn ({error}): pip install -r'
            ' util/requirements-search.txt'
        ) from None


def _serve(args):
    from util.search.serve import serve

    return serve(args, lambda run: _open_model(run, args.device))


COMMANDS = {'index': _index, 'add': _add, 'remove': _remove, 'query': _query, 'serve': _serve}


if __name__ == '__main__':
    sys.exit(main())
