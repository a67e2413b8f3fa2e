"""The arguments of train.py and evaluation.py, checked without importing torch.

Importing torch and transformers takes seconds; a wrong option should be reported before that.
"""

import argparse
import os
import re
import sys
from pathlib import Path

from basic.command import command
from basic.config import ConfigError, load_config
from basic.print_config import describe_config

DEVICE = (
    'auto: the first GPU, or the CPU if there is none (default); cpu; the index of a GPU, such as'
    ' 0, or several, with one process on each: 0,1,2 (cpu:2: two processes on the CPU)'
)
DEPTH = 1000  # items of a query in a TREC run file, as is usual


def training_arguments(argv=None):
    """Parse and check the words; argparse ends the program where they make no sense.

    Args:
        argv: list of words; None: those of the command line.
    Returns:
        argparse.Namespace: configs (files), overrides (all options, as key=value), config (the
            Config they make), rootpath, device, run_dir, resume, overwrite, other_data, no_test,
            no_report.
    Raises:
        ValueError: (ConfigError) a wrong config or device.
    """
    parser = argparse.ArgumentParser(
        prog='train.py',
        description='Train NRCCR on one collection, keep the best model, test it.',
        epilog='--print-config lists the options.',
    )
    parser.add_argument(
        '--config',
        dest='configs',
        required=True,
        action='append',
        metavar='FILE',
        help=(
            'such as configs/vatex.yaml; a second one, such as configs/ablation/no_adversary.yaml, '
            'replaces values of the first'
        ),
    )
    parser.add_argument(
        '--rootpath', metavar='ROOT', help="folder that holds the collections' folders"
    )
    parser.add_argument('--device', default='auto', help=DEVICE)
    parser.add_argument(
        '--run-dir',
        metavar='DIR',
        help='run folder (default: ROOT/<collection>/runs/<config>_<lang>/seed_<n>)',
    )
    parser.add_argument(
        '--resume', action='store_true', help='continue after the last finished epoch of the run'
    )
    parser.add_argument(
        '--overwrite',
        action='store_true',
        help=(
            'replace the run in the run folder, which is kept until the new run has finished its '
            'first epoch'
        ),
    )
    parser.add_argument(
        '--other-data', action='store_true', help='let --resume continue with other data'
    )
    parser.add_argument(
        '--no-test', action='store_true', help='do not test the best model at the end'
    )
    parser.add_argument(
        '--no-report', action='store_true', help='do not write report.html and curves.png'
    )
    parser.add_argument(
        '--print-config',
        action='store_true',
        help='show every option with its meaning, its value and its default, and train nothing',
    )
    parser.add_argument('--seed', type=int, metavar='N', help='short for train.seed=N')
    parser.add_argument('--workers', type=int, metavar='N', help='short for train.workers=N')
    parser.add_argument(
        'overrides', nargs='*', metavar='key=value', help='options over the config file'
    )
    args = parser.parse_intermixed_args(argv)
    args.overrides += [
        f'train.{key}={value}'
        for key in ('seed', 'workers')
        if (value := getattr(args, key)) is not None
    ]
    args.config = load_config(args.configs, args.overrides)
    if args.print_config:
        print(describe_config(args.config), end='')
        parser.exit(0)
    if args.rootpath is None:
        parser.error('the following arguments are required: --rootpath')
    _check_device(args.device)
    if args.resume and args.overwrite:
        raise ConfigError('--resume and --overwrite contradict each other: give one')
    return args


def evaluation_arguments(argv=None):
    """Parse and check the words; argparse ends the program where they make no sense.

    Args:
        argv: list of words; None: those of the command line.
    Returns:
        argparse.Namespace: checkpoint, rootpath, split, device, tokenizer, images, output,
            save_embeddings (None: no; '': into the default folder), trec, trec_depth, no_report,
            print_config, overrides.
    Raises:
        ValueError: a wrong device, or a file or folder that does not exist.
    """
    parser = argparse.ArgumentParser(
        prog='evaluation.py', description='Test a trained or a released model.'
    )
    parser.add_argument(
        '--checkpoint',
        required=True,
        metavar='RUN_DIR_OR_FILE',
        help='run folder, released (model_best.pth.tar) or exported folder, or checkpoint file',
    )
    parser.add_argument(
        '--rootpath',
        metavar='ROOT',
        help=(
            "folder that holds the collections' folders "
            '(default: that of the run folder, ROOT/<collection>/runs/NAME/SEED)'
        ),
    )
    parser.add_argument('--split', choices=('val', 'test'), default='test', help='default: test')
    parser.add_argument('--device', default='auto', help=DEVICE)
    parser.add_argument(
        '--tokenizer',
        metavar='NAME_OR_FOLDER',
        help="default: the run folder's tokenizer/, else text.bert",
    )
    parser.add_argument('--images', metavar='DIR', help='read raw images from here (CLIP models)')
    parser.add_argument(
        '--output',
        metavar='FILE',
        help=(
            'JSON file for the metrics (default: metrics.json, for val metrics_val.json, beside '
            'the checkpoint); the ranks of each query and the report are written beside it'
        ),
    )
    parser.add_argument(
        '--save-embeddings',
        nargs='?',
        const='',
        metavar='DIR',
        help=(
            'write embeddings and ids (default: embeddings_<split>/ beside the checkpoint); a DIR '
            'with "=" in its name only as --save-embeddings=DIR'
        ),
    )
    parser.add_argument(
        '--trec',
        metavar='PREFIX',
        help=(
            'write TREC run and qrels files of both directions: PREFIX.t2v.run, PREFIX.t2v.qrels, '
            'PREFIX.v2t.run, PREFIX.v2t.qrels'
        ),
    )
    parser.add_argument(
        '--trec-depth',
        type=int,
        default=DEPTH,
        metavar='N',
        help=f'items of each query in the run files (default: {DEPTH:,}; 0: all)',
    )
    parser.add_argument('--no-report', action='store_true', help='do not write report.html')
    parser.add_argument(
        '--print-config',
        action='store_true',
        help='show every option with its meaning, its value and its default, and test nothing',
    )
    parser.add_argument(
        'overrides', nargs='*', metavar='key=value', help='options over the stored config'
    )
    args = parser.parse_intermixed_args(without_folder(sys.argv[1:] if argv is None else argv))
    _check_device(args.device)
    if not Path(args.checkpoint).exists():
        raise ValueError(
            f'no checkpoint at {args.checkpoint}: give a run folder or a checkpoint file'
        )
    if args.output and (
        args.output.endswith(('.npz', '.html')) or not Path(args.output).absolute().parent.is_dir()
    ):
        raise ValueError(
            f'--output {args.output}: expected the name of a JSON file in an existing folder; the'
            ' ranks are written beside it as .npz, the report as .html'
        )
    if args.trec is not None and not (
        Path(args.trec).name and Path(args.trec).absolute().parent.is_dir()
    ):
        raise ValueError(
            f"--trec '{args.trec}': expected the start of the files' names, in an existing folder"
        )
    if args.trec_depth < 0:
        raise ValueError(
            f'--trec-depth {args.trec_depth}: expected a number of items, or 0 for all'
        )
    return args


def without_folder(words):
    """The words of the command line, where --save-embeddings does not take a key=value as DIR."""
    return [
        '--save-embeddings=' if word == '--save-embeddings' and '=' in following else word
        for word, following in zip(words, [*words[1:], ''])
    ]


def _check_device(name):
    """Raise ValueError for a malformed device; whether the GPU exists is checked later."""
    if not re.fullmatch('auto|cpu(:[1-9][0-9]?)?|(cuda:)?[0-9]+(,[0-9]+)*', name.strip()):
        raise ValueError(
            f"device '{name}': expected auto, cpu, cpu:N for N processes, or the indices of GPUs,"
            ' such as 0 or 0,1'
        )


def begin(name, script, parse):
    """Check the command line before the slow imports, and start several processes if requested.

    This ends the program if the command line is wrong, or, if it has started other processes, when
    they have ended.

    Args:
        name: of the command in messages.
        script: its file.
        parse: function that raises, or returns an argparse.Namespace with a `device`.
    """

    @command(name)
    def first(_):
        processes = _processes(parse().device)
        if processes > 1 and 'TORCHELASTIC_RUN_ID' not in os.environ:
            from basic import distributed

            sys.exit(distributed.launch(script, sys.argv[1:], processes))

    status = first()
    if status:
        sys.exit(status)
    if os.environ.get('RANK', '0') == '0':
        print('loading PyTorch ...', file=sys.stderr, flush=True)


def _processes(device):
    """The number of processes that a --device argument requests."""
    return int(device.partition(':')[2] or 1) if device.startswith('cpu') else device.count(',') + 1
