"""Retrieval extras at test time: what a trained model reaches when its scores are corrected.

    python -m util.rescore RUN_OR_FILE [--rootpath ROOT] [--split test] [--w 0.2] [--bank 10000]
                           [--beta 20] [--device 0] [key=value ...]

The paper scores every query on its own, except that min-max normalisation looks at the whole score
matrix. Each extra changes this protocol, so its result is no result of the run: it is printed in a
table of its own, and written to rescored.json beside the run's metrics.json. See basic/rescoring.py
for the methods:

    frozen ranges   normalised with the lowest and highest cosine of the validation split, so that a
                    query's score does not depend on the other queries
    querybank       the same, and corrected for items that many training captions find (training
                    images or videos, for v2t)
    dual softmax    the paper's scores, corrected by all other test queries (transductive)

It needs one device, and memory for the score matrices: bank x gallery and queries x gallery, 4
bytes each.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch

from basic import distributed, runtime
from basic.checkpoint import load_checkpoint
from basic.collection import Collection
from basic.command import command
from basic.errors import DataError
from basic.files import write_atomically
from basic.languages import one_language
from basic.logger import tell
from basic.metric import recall_sum, retrieval_metrics
from basic.report import column_names, columns
from basic.rescoring import BETA, dual_softmax, frozen, querybank
from basic.run_folder import RESCORED
from basic.scoring import fuse, similarity
from data_provider import Split, eval_set, join_split, pack_split
from evaluation import assemble, branches_for, encode, root_of


def rescore(checkpoint, rootpath, *, split, device, weight=None, bank=10_000, beta=BETA):
    """The metrics of a split by the paper's scores, and by each extra.

    Args:
        checkpoint: basic.checkpoint.Checkpoint.
        rootpath: folder that holds the collection's folder.
        split: val or test.
        device: torch.device.
        weight: share w of the English branch; None: the one that validation uses.
        bank: training captions in the querybank at most, evenly spread.
        beta: inverse temperature of the querybank.
    Returns:
        dict: split, weight, bank (captions, visuals: counts), beta, and rows, for each method a
            dict of name and what `basic.metric.retrieval_metrics` gives.
    Raises:
        ValueError: (ConfigError, DataError, CheckpointError) something that the user can put right.
    """
    config = checkpoint.config
    one_language(config, 'util.rescore')
    runtime.set_precision(config.compute.precision)
    weight = float(config.train.val_weight if weight is None else weight)
    config, tokenizer, model, loaders = assemble(
        config,
        rootpath,
        splits=tuple(dict.fromkeys((split, 'val'))),
        device=device,
        checkpoint=checkpoint,
        weights=[weight],
    )
    loaders['bank'] = bank_set(config, rootpath, tokenizer, model.preprocessing, weight, bank)

    embeddings = {}
    for name, loader in loaders.items():
        tell(f'encoding {len(loader.caption_ids):,} captions of the {name} set')
        embeddings[name] = encode(model, loader, device, config.compute.precision)
    rows = metrics_of_all(
        test=embeddings[split],
        val=embeddings['val'],
        bank=embeddings['bank'],
        visual_of=loaders[split].visual_of,
        weight=weight,
        ties=config.eval.ties,
        beta=beta,
    )
    sizes = {
        'captions': len(loaders['bank'].caption_ids),
        'visuals': len(loaders['bank'].visual_ids),
    }
    return {'split': split, 'weight': weight, 'bank': sizes, 'beta': beta, 'rows': rows}


def bank_set(config, rootpath, tokenizer, preprocessing, weight, most):
    """An EvalSet of at most so many training captions, evenly spread, and their visual items."""
    joined = join_split(
        Collection(config, rootpath), 'train', preprocessing=preprocessing, weights=[weight]
    )
    total = len(joined.visual_of)
    rows = np.unique(np.linspace(0, total - 1, min(most, total)).round().astype(int))
    items, visual_of = np.unique(joined.visual_of[rows], return_inverse=True)
    part = Split(
        files={branch: file.take(rows) for branch, file in joined.files.items()},
        source=joined.source,
        visual_ids=[joined.visual_ids[i] for i in items],
        visual_of=visual_of,
        left_out=None,
    )
    tokens = pack_split(config, part.files, tokenizer)
    return eval_set(config, 'train', part, tokens, None, number=0, of=1, pin_memory=False)


@torch.no_grad()
def metrics_of_all(*, test, val, bank, visual_of, weight, ties, beta):
    """The rows of `rescore`.

    Args:
        test, val, bank: evaluation.Embeddings.
        visual_of: (Q,), the visual item of each caption of the test.
        weight, ties, beta: as `rescore` has.
    """

    def cosines(captions, visual):  # (2, Q, V): the English and the target branch
        return [similarity(branch, visual) for branch in branches_for([weight], captions)]

    def by_way(t2v, v2t):  # (Q, V) and (V, Q) scores, which may differ
        found = {
            't2v': retrieval_metrics(t2v, visual_of, ties)['t2v'],
            'v2t': retrieval_metrics(v2t.T, visual_of, ties)['v2t'],
        }
        return {**found, 'SumR': sum(map(recall_sum, found.values()))}

    ranges = [(float(part.min()), float(part.max())) for part in cosines(val, val.visual)]
    own = cosines(test, test.visual)
    plain, fixed = fuse(*own, weight), frozen(*own, weight, ranges)
    captions = frozen(*cosines(bank, test.visual), weight, ranges)  # (K, V)
    visuals = frozen(*cosines(test, bank.visual), weight, ranges).T  # (K, Q)
    scores = {
        'paper': (plain, plain.T),
        'frozen ranges': (fixed, fixed.T),
        'querybank': (querybank(fixed, captions, beta), querybank(fixed.T, visuals, beta)),
        'dual softmax': (dual_softmax(plain), dual_softmax(plain.T)),
    }
    return [{'name': name, **by_way(*pair)} for name, pair in scores.items()]


def table(report):
    """The report as aligned text for people."""
    lines = [
        f"{report['split']}, w = {report['weight']:g}; other protocols than the paper's below"
        ' its row'
    ]
    for way, title in (('t2v', 'text to visual (t2v)'), ('v2t', 'visual to text (v2t)')):
        heading = '    SumR' if way == 'v2t' else ''
        lines += ['', title, f'{"":<14}{column_names()}{heading}']
        for row in report['rows']:
            total = f'{row["SumR"]:8.1f}' if way == 'v2t' else ''
            lines.append(f'{row["name"]:<14}{columns(row[way])}{total}')
    return '\n'.join(lines)


@command('rescore')
def main(argv=None):
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog='python -m util.rescore',
        description='Test a trained model with corrected scores: other protocols than the paper.',
        epilog='Example: python -m util.rescore demo/vatex/runs/vatex_zh/seed_1',
    )
    parser.add_argument('checkpoint', metavar='RUN_OR_FILE', help='run folder or checkpoint')
    parser.add_argument('--rootpath', metavar='ROOT', help="default: found from the run's place")
    parser.add_argument('--split', choices=('val', 'test'), default='test', help='default: test')
    parser.add_argument(
        '--w',
        type=float,
        metavar='W',
        help='share of the English branch (default: that of validation)',
    )
    parser.add_argument(
        '--bank', type=int, default=10_000, metavar='N', help='training captions at most (10,000)'
    )
    parser.add_argument(
        '--beta', type=float, default=BETA, help=f'inverse temperature of the querybank ({BETA:g})'
    )
    parser.add_argument('--device', default='auto', help='auto (default), cpu, or a GPU index')
    parser.add_argument('overrides', nargs='*', metavar='key=value', help='options over the run')
    args = parser.parse_intermixed_args(argv)
    if args.bank < 1 or args.beta <= 0 or not 0 <= (args.w or 0) <= 1:
        parser.error('expected --bank of at least 1, --beta above 0, --w from 0 to 1')
    devices = runtime.choose_devices(args.device)
    if len(devices) > 1:
        raise DataError(f'--device {args.device}: expected one device')
    runtime.keep_logs_tidy()
    checkpoint = load_checkpoint(args.checkpoint, args.overrides)
    rootpath = Path(args.rootpath) if args.rootpath else root_of(checkpoint.path, checkpoint.config)
    report = rescore(
        checkpoint,
        rootpath,
        split=args.split,
        device=distributed.start(devices),
        weight=args.w,
        bank=args.bank,
        beta=args.beta,
    )
    print(table(report))
    path = checkpoint.path.parent / RESCORED
    write_atomically(path, json.dumps(report, indent=2) + '\n')
    print(f'written: {path}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
