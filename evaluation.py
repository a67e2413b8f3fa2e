"""Evaluate a trained model: encode a split, score, fuse the two text branches, measure.

    python evaluation.py --checkpoint RUN_DIR_OR_FILE [--rootpath ROOT] [--split val|test] [key=value ...]

Q captions, V visual items, E common space.
"""
import argparse
import json
import os
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional as F

from basic.caption import load_tokenizer
from basic.checkpoint import load_checkpoint
from basic.config import config_from_dict, config_to_dict
from basic.logger import METRICS, TOKENIZER, write_atomically
from basic.metric import retrieval_metrics
from basic.runtime import choose_device
from data_provider import build_loaders
from model import build_model

COLUMNS = ('R@1', 'R@5', 'R@10', 'MedR', 'MeanR', 'mAP')


class Embeddings(NamedTuple):
    """A split in the common space, float32, L2-normalised."""
    visual: torch.Tensor   # (V, E)
    en: torch.Tensor       # (Q, E)
    tgt: torch.Tensor      # (Q, E)


@torch.no_grad()
def encode(model, eval_set, device):
    """Encode a split in evaluation mode; the model is left in the mode that it was in.

    Args:
        model: model.NRCCR on `device`.
        eval_set: data_provider.EvalSet. With `padded_mean` pooling its batches matter.
    Returns:
        Embeddings on `device`.
    """
    was_training = model.training
    model.eval()
    visual, en, tgt = [], [], []
    for batch, mask in eval_set.visuals:
        mask = None if mask is None else mask.to(device)
        visual.append(model.encode_visual(batch.to(device), mask))
    for en_tokens, tgt_tokens in eval_set.captions:
        for tokens, branch in ((en_tokens.to(device), en), (tgt_tokens.to(device), tgt)):
            branch.append(model.encode_text(tokens.ids, tokens.mask))
    model.train(was_training)
    return Embeddings(*(torch.cat(parts) for parts in (visual, en, tgt)))


def similarity(captions, visual):
    """Cosine scores: captions (Q, E), visual (V, E) -> (Q, V)."""
    return F.normalize(captions, dim=-1) @ F.normalize(visual, dim=-1).T


def normalise(scores):
    """Min-max over the whole matrix, to [0, 1]; a constant matrix says nothing and becomes zeros."""
    low, high = scores.min(), scores.max()
    return (scores - low) / (high - low) if high > low else torch.zeros_like(scores)


def fuse(en, tgt, weight):
    """Mix the branches' scores, each normalised on its own.

    Args:
        en, tgt: (Q, V) cosine scores of the English and of the target-language branch.
        weight: share w of the English branch.
    Returns:
        w * normalise(en) + (1 - w) * normalise(tgt), (Q, V).
    """
    return weight * normalise(en) + (1 - weight) * normalise(tgt)


def evaluate(embeddings, eval_set, config, weights=None):
    """Metrics of a split at each weight of the English branch.

    Args:
        embeddings: Embeddings of the split.
        eval_set: data_provider.EvalSet, for its ground truth.
        config: basic.config.Config, for the tie rule and the weights.
        weights: list of w; None: those of `eval.weights`, and the one that validation uses.
    Returns:
        dict: split, captions, visuals (counts), ties, val_weight, and rows: for each w a dict of weight, t2v, v2t and
        SumR as `basic.metric.retrieval_metrics` gives them.
    """
    used = float(config.train.val_weight)
    if weights is None:
        weights = sorted({*config.eval.weights, used}, reverse=True)
    en, tgt = (similarity(captions, embeddings.visual) for captions in (embeddings.en, embeddings.tgt))
    rows = [{'weight': weight, **retrieval_metrics(fuse(en, tgt, weight), eval_set.owner, ties=config.eval.ties)}
            for weight in map(float, weights)]
    return {'split': eval_set.split, 'captions': len(embeddings.en), 'visuals': len(embeddings.visual),
            'ties': config.eval.ties, 'val_weight': used, 'rows': rows}


def table(report):
    """The rows of a report (see `evaluate_checkpoint`) as aligned text, for people."""
    def row(first, cells, last):
        return f'{first:<9}' + ''.join(f' |{"".join(cells[i:i + 6])}' for i in (0, 6)) + f' | {last:>6}'.rstrip()

    head = [f'{name:>7}' for name in COLUMNS] * 2
    lines = [(f'{report["collection"]} ({report["lang"]}), {report["split"]}: {report["captions"]:,} captions, '
             f'{report["visuals"]:,} visual items; ties {report["ties"]}; model of epoch {report["epoch"]}'),
             row('', [f'{"text to visual (t2v)":^42}', *[''] * 5, f'{"visual to text (v2t)":^42}', *[''] * 5], ''),
             row('w(en)', head, 'SumR')]
    for entry in report['rows']:
        cells = [f'{entry[way][name]:7.4f}' if name == 'mAP' else f'{entry[way][name]:7.1f}'
                 for way in ('t2v', 'v2t') for name in COLUMNS]
        mark = '  <- val' if entry['weight'] == report['val_weight'] else ''
        lines.append(row(f'{entry["weight"]:<4g}', cells, f'{entry["SumR"]:.1f}') + mark)
    lines.append('w: share of the English branch in the score; "<- val": the share that validation uses. '
                 'R@k in per cent, mAP from 0 to 1.')
    return '\n'.join(lines)


def evaluate_checkpoint(path, *, rootpath=None, split='test', device='cpu', tokenizer=None, images=None,
                        embeddings_folder=None, overrides=()):
    """Evaluate a run folder or a checkpoint file, ours or a released one, on one split.

    Args:
        path: run folder or file.
        rootpath: where the data lie; None: found from the run folder's place, see `root_of`.
        split: `val` or `test`.
        device: `cpu` or the index of a GPU.
        tokenizer: hub name or folder; None: the one saved with the run, else `text.bert`.
        images: folder of raw images that replaces that of `data.images`; CLIP models only.
        embeddings_folder: write embeddings and ids there.
        overrides: `key=value` strings over the stored config.
    Returns:
        dict, the content of metrics.json: checkpoint, epoch, config, collection, lang, and what `evaluate` returns.
    Raises:
        ValueError: (ConfigError, DataError, CheckpointError) something that the user can put right; says what.
    """
    device = choose_device(device)
    checkpoint = load_checkpoint(path, overrides)
    config = with_images(checkpoint.config, images) if images else checkpoint.config
    rootpath = Path(rootpath) if rootpath else root_of(checkpoint.path, config)
    saved = checkpoint.path.parent / TOKENIZER
    tokenizer = load_tokenizer(tokenizer or (str(saved) if saved.is_dir() else config.text.bert),
                               config.text.lowercase)
    model = build_model(config, architecture=checkpoint.architecture)
    load_weights(model, checkpoint)
    model.to(device)
    eval_set = build_loaders(config, rootpath, tokenizer, splits=(split,), image_size=model.image_size,
                             device=device)[split]
    embeddings = encode(model, eval_set, device)
    if embeddings_folder:
        save_embeddings(embeddings_folder, embeddings, eval_set)
    return {'checkpoint': str(checkpoint.path), 'epoch': checkpoint.epoch, 'config': config.name,
            'collection': config.data.collection, 'lang': config.data.lang, **evaluate(embeddings, eval_set, config)}


def load_weights(model, checkpoint):
    """Put a checkpoint's weights into a model; ValueError where an option has changed the model's shape."""
    try:
        model.load_state_dict(checkpoint.model)
    except RuntimeError as error:
        details = ' '.join(str(error).split())[:400]
        raise ValueError(f'{checkpoint.path} does not fit the model that its config describes; does an option on the '
                         f'command line change the model? {details}') from None


def root_of(path, config):
    """ROOTPATH of a run that lies at ROOTPATH/<collection>/runs/<name>/<seed>/<file>; else ValueError."""
    folders = Path(os.path.abspath(path)).parents
    spellings = [config.data.collection, *config.data.aliases]
    if len(folders) > 4 and folders[2].name == 'runs' and folders[3].name in spellings:
        return folders[4]
    raise ValueError(f'--rootpath is needed: {folders[0]} does not lie at ROOTPATH/{config.data.collection}/runs/NAME/'
                     'SEED, which would tell where the data are')


def with_images(config, folder):
    """The config with raw images read from `folder`, under the names that `data.images` gives them.

    Raises:
        ValueError: no such folder, a name that a template cannot hold, a model that reads no images.
    """
    if config.visual.kind != 'clip':
        raise ValueError(f'an image folder ({folder}) was given, but this model reads features, not images '
                         f'(visual.kind={config.visual.kind}): leave it away (do_test_multi30k.sh: None)')
    folder = os.path.abspath(folder)
    if not os.path.isdir(folder):
        raise ValueError(f'no image folder {folder}')
    if '{' in folder or '}' in folder:
        raise ValueError(f'image folder {folder}: braces cannot be part of its name here; move or link it')
    tree = config_to_dict(config)
    tree['data']['images'] = f'{folder}/{Path(tree["data"]["images"]).name}'
    return config_from_dict(tree)


def save_embeddings(folder, embeddings, eval_set):
    """Write visual.npy, en.npy, tgt.npy (float32), owner.npy (int64), visual_ids.txt and caption_ids.txt."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, tensor in embeddings._asdict().items():
        np.save(folder / f'{name}.npy', tensor.cpu().numpy())
    np.save(folder / 'owner.npy', np.asarray(eval_set.owner))
    for name in ('visual_ids', 'caption_ids'):
        write_atomically(folder / f'{name}.txt', ''.join(f'{item}\n' for item in getattr(eval_set, name)))


def write_report(report, output=None):
    """Write a report as JSON, to `output` or beside its checkpoint or, where that is read-only, here.

    Returns:
        the path written.
    """
    text = json.dumps(report, indent=2, ensure_ascii=False) + '\n'
    beside = Path(report['checkpoint']).parent / METRICS[report['split']]
    path = Path(output) if output else beside
    try:
        write_atomically(path, text)
    except OSError as error:
        if output:
            raise ValueError(f'cannot write {path}: {error.strerror or error}') from None
        path = Path.cwd() / beside.name
        print(f'note: {beside.parent} cannot be written to ({error.strerror}); {beside.name} goes here',
              file=sys.stderr)
        write_atomically(path, text)
    return path


def parse_arguments(argv=None):
    parser = argparse.ArgumentParser(prog='evaluation.py', description=__doc__.splitlines()[0])
    parser.add_argument('--checkpoint', required=True, metavar='RUN_DIR_OR_FILE',
                        help='run folder, released folder (model_best.pth.tar), or checkpoint file')
    parser.add_argument('--rootpath', metavar='ROOT', help="folder that holds the collections' folders "
                        '(default: where the run folder lies, ROOT/<collection>/runs/NAME/SEED)')
    parser.add_argument('--split', choices=('val', 'test'), default='test', help='default: test')
    parser.add_argument('--device', default='cpu', help='cpu (default) or the index of a GPU, such as 0')
    parser.add_argument('--tokenizer', metavar='NAME_OR_FOLDER',
                        help="default: the run folder's tokenizer/, else text.bert")
    parser.add_argument('--images', metavar='DIR', help='read raw images from here (CLIP models)')
    parser.add_argument('--output', metavar='FILE', help='where to write the metrics as JSON (default: metrics.json, '
                        'for val metrics_val.json, beside the checkpoint)')
    parser.add_argument('--save-embeddings', nargs='?', const='', metavar='DIR',
                        help='write embeddings and ids (default: embeddings_<split>/ beside the checkpoint)')
    parser.add_argument('overrides', nargs='*', metavar='key=value', help='options over the stored config')
    args = parser.parse_intermixed_args(argv)
    if '=' in (args.save_embeddings or ''):
        parser.error(f'--save-embeddings took {args.save_embeddings!r} for its folder: name one, or put the option '
                     'last')
    return args


def main(argv=None):
    """The command line; returns the exit status: 0, or 2 for what the user can put right."""
    args = parse_arguments(argv)
    folder = args.save_embeddings
    if folder == '':
        folder = Path(args.checkpoint if Path(args.checkpoint).is_dir() else Path(args.checkpoint).parent)
        folder = folder / f'embeddings_{args.split}'
    try:
        report = evaluate_checkpoint(
            args.checkpoint, rootpath=args.rootpath, split=args.split, device=args.device, tokenizer=args.tokenizer,
            images=args.images, embeddings_folder=folder, overrides=args.overrides)
        print(table(report))
        print(f'written: {write_report(report, args.output)}' + (f', {folder}' if folder else ''))
    except (ValueError, OSError) as error:
        print(f'evaluation.py: error: {error}', file=sys.stderr)
        return 2
    return 0


if __name__ == '__main__':
    sys.exit(main())
