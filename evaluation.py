"""Evaluate a trained model: encode a split, score, fuse the two text branches, measure.

    python evaluation.py --checkpoint RUN_DIR_OR_FILE [--rootpath ROOT] [--split val|test]
                         [key=value ...]

With eval.weights=[0] only the target-language queries are read and encoded, with [1] only their
translations into English.

Q captions, V visual items, E common space.
"""

from basic.arguments import DEPTH, begin, evaluation_arguments

if __name__ == '__main__':
    begin('evaluation.py', __file__, evaluation_arguments)  # before the imports, which take seconds

import os
import re
import sys
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from basic import distributed, exported, run_folder, runtime
from basic.checkpoint import BEST, load_checkpoint
from basic.collection import Collection, scored_branches, validation_weights
from basic.command import command, memory_advice, telling
from basic.config import Config, config_changes, config_from_dict, config_to_dict, keys_with
from basic.errors import DataError
from basic.examples import details_of
from basic.files import write_atomically
from basic.logger import counted, progress, tell
from basic.pretrained.hub import download
from basic.pretrained.tokenizer import load_tokenizer, lowercases
from basic.print_config import describe_config
from basic.report import UNITS, join_ranks, mean_of, noted, result_line, result_of, table
from basic.report import write_report, written
from basic.retriever import Retriever
from basic.scoring import scored
from basic.trec import write_trec
from data_provider import build_loaders, eval_sets
from model import NRCCR, build_model, check_text, load_weights, refuse_misfit

# A test with another value of these is still the run's own.
SAME_TEST = keys_with('place', 'speed', 'rounding', 'length')


# ------------------------------------------------------------------------------- model and loaders


class Assembled(NamedTuple):
    """What `assemble` makes."""

    config: Config  # with the width of the features and the casing found
    tokenizer: Any
    model: NRCCR  # on the device
    loaders: dict[str, Any]  # split -> data_provider.TrainLoader or EvalSet


def assemble(config, rootpath, *, splits, device, checkpoint=None, tokenizer=None, weights=None):
    """Tokenizer, model and loaders, in this order, for a training and for a test alike.

    Args:
        config: basic.config.Config.
        rootpath: folder that holds the collection's folder.
        splits: of train, val, test.
        device: torch.device of the model.
        checkpoint: basic.checkpoint.Checkpoint whose weights the model gets; None: pretrained ones,
            as the config names them.
        tokenizer: hub name or folder; None: the one saved beside the checkpoint, else `text.bert`.
        weights: shares w that val and test are scored with, see `Collection.branches`.
    Returns:
        Assembled.
    Raises:
        ValueError: (ConfigError, DataError, CheckpointError) something that the user can put right.
    """
    with telling('loading the encoders and the data'):
        name = tokenizer or saved_tokenizer(checkpoint) or config.text.bert
        tokenizer = load_tokenizer(name, config.text.lowercase)
        config = with_casing(config, tokenizer)

        # The width of the features decides the shape of the model, ...
        config = with_feature_dim(config, rootpath, splits[0])
        model = (
            trained_model(config, checkpoint)
            if checkpoint
            else build_model(config, config.visual.feature_dim)
        ).to(device)

        # ... and the model the size of the images, and what is kept of them.
        loaders = build_loaders(
            config,
            rootpath,
            tokenizer,
            splits=splits,
            preprocessing=model.preprocessing,
            device=device,
            model=model,
            weights=weights,
        )
        check_text(model, tokenizer, loaders.values())
    return Assembled(config, tokenizer, model, loaders)


def trained_model(config, checkpoint):
    """The model of a config with a checkpoint's weights; ValueError where they do not fit."""
    refuse_misfit(config, checkpoint)
    model = build_model(config, config.visual.feature_dim, checkpoint.architecture)
    load_weights(model, checkpoint)
    return model


def saved_tokenizer(checkpoint):
    """The tokenizer's folder beside a checkpoint, as text; None if there is none."""
    folder = checkpoint and checkpoint.path.parent / run_folder.TOKENIZER
    return str(folder) if folder and folder.is_dir() else None


def with_casing(config, tokenizer):
    """The config with what text.lowercase=auto means for a tokenizer."""
    if config.text.lowercase != 'auto':
        return config
    tree = config_to_dict(config)
    tree['text']['lowercase'] = lowercases(tokenizer, 'auto')
    return config_from_dict(tree)


def with_feature_dim(config, rootpath, split):
    """The config with the width of the features on disk, where it leaves that open."""
    if config.visual.kind == 'clip' or config.visual.feature_dim:
        return config
    tree = config_to_dict(config)
    tree['visual']['feature_dim'] = Collection(config, rootpath).feature_dim(split)
    return config_from_dict(tree)


# -------------------------------------------------------------------------------------- embeddings


class Embeddings(NamedTuple):
    """A split in the common space, L2-normalised, float32; a branch that was not needed is None."""

    visual: torch.Tensor  # (V, E)
    en: torch.Tensor | None = None  # (Q, E)
    tgt: torch.Tensor | None = None  # (Q, E)


@torch.no_grad()
def encode(model, eval_set, device, precision='fp32', visual=None):
    """Encode a split in evaluation mode, a share of its batches in each process.

    Args:
        model: model.NRCCR on `device`; afterwards it is in the mode that it was in before.
        eval_set: data_provider.EvalSet. With `padded_mean` pooling its batches matter.
        precision: of the encoders, see basic.config.Compute; the projections are computed in
            float32.
        visual: the visual embeddings, if they are known.
    Returns:
        Embeddings on `device`, whole and in the split's order in every process.
    """
    was_training = model.training
    model.eval()
    parts = {branch: [] for branch in eval_set.branches}

    if visual is None:
        parts['visual'], label = [], f'encoding {eval_set.split}: visual items, batch'
        for items, mask in shown(eval_set.visuals, label):
            items = items.to(device, non_blocking=True)
            mask = None if mask is None else mask.to(device, non_blocking=True)
            with runtime.autocast(device, precision):
                parts['visual'].append(model.encode_visual(items, mask))  # (N, E)

    for pair in shown(eval_set.captions, f'encoding {eval_set.split}: captions, batch'):
        for branch, tokens in zip(('en', 'tgt'), pair):
            if branch in eval_set.branches:
                tokens = tokens.to(device, non_blocking=True)
                with runtime.autocast(device, precision):
                    parts[branch].append(model.encode_text(tokens))  # (N, E)

    model.train(was_training)
    whole = {name: distributed.gather_batches(part, device) for name, part in parts.items()}
    order = eval_set.order
    found = {name: in_order(rows, order.get(name)) for name, rows in whole.items()}
    return Embeddings(**{'visual': visual, **found})


def encode_all(model, sets, device, precision='fp32'):
    """The Embeddings of the EvalSets of a split's languages; shared visual items are encoded once.

    The other arguments are those of `encode`.
    """
    found = []
    for eval_set in sets:
        earlier = zip(sets, found)
        visual = next(
            (one.visual for each, one in earlier if each.visuals is eval_set.visuals), None
        )
        found.append(encode(model, eval_set, device, precision, visual))
    return found


def shown(batches, label):
    """Iterate batches, with a progress line in one process of several."""
    return progress(batches, label, shown=distributed.is_main())


def in_order(rows, order):
    """Sort rows (N, E), of which row i is item order[i], by item; order None: they are sorted."""
    if order is None:
        return rows
    return torch.empty_like(rows).index_copy_(0, torch.from_numpy(order).to(rows.device), rows)


# ------------------------------------------------------------------------------------------ scores


def evaluate(embeddings, eval_set, config, weights=None, *, with_ranks=False, keep=None):
    """Metrics of a split at each weight of the English branch; every process must call it.

    Args:
        embeddings: Embeddings of the split.
        eval_set: data_provider.EvalSet, for its ground truth.
        config: basic.config.Config, for the tie rule and the weights.
        weights: list of w; None: those of `eval.weights`, and the one that validation uses. A
            branch that none of them needs may be missing.
        with_ranks: also give the rank of each query.
        keep: list that gets the basic.scoring.Scoring, for what the queries find.
    Returns:
        dict: split, captions, visuals (counts), ties, units, val_weight; result: see `result_of`;
            rows: for each w a dict of weight, t2v, v2t and SumR as `basic.metric.retrieval_metrics`
            gives them; and, if wanted, ranks: see `collect_ranks`.
    """
    weights = reported_weights(config) if weights is None else [float(weight) for weight in weights]
    en, tgt = branches_for(weights, embeddings)  # (Q, E) each
    scoring = scored(
        embeddings.visual,
        en,
        tgt,
        eval_set.visual_of,
        weights,
        ties=config.eval.ties,
        memory=config.compute.score_memory,
        progress=counted(f'scoring {eval_set.split}: block', shown=distributed.is_main()),
    )
    if keep is not None:
        keep.append(scoring)
    rows = [{'weight': weight, **found} for weight, found in zip(weights, scoring.metrics())]
    val_weight = float(config.train.val_weight)
    report = {
        'split': eval_set.split,
        'captions': len(en),
        'visuals': len(embeddings.visual),
        'ties': config.eval.ties,
        'units': UNITS,
        'val_weight': val_weight,
        'result': result_of(rows, val_weight),
        'rows': rows,
    }
    if with_ranks:
        report['ranks'] = collect_ranks(scoring, weights, eval_set)
    return report


def evaluate_all(embeddings, sets, config, weights=None, *, with_ranks=False, keep=None):
    """The report of `evaluate` of a split in each of its languages, and their mean.

    Args:
        embeddings: list of Embeddings; sets: list of EvalSets, one for each language.
        config, weights, with_ranks, keep: as `evaluate` has.
    Returns:
        dict: of one language what `evaluate` gives. Of several the same, but rows has the means
            over the languages, captions and visuals count all of them, and `languages` is a dict
            language -> its own report; ranks: see `join_ranks`.
    """
    reports = [
        evaluate(one, each, config, weights, with_ranks=with_ranks, keep=keep)
        for one, each in zip(embeddings, sets)
    ]
    if len(reports) == 1:
        return reports[0]
    rows = [mean_of(same) for same in zip(*(report['rows'] for report in reports))]
    names, own = [each.lang for each in sets], ['captions', 'visuals', 'result', 'rows']
    joined = {
        **reports[0],
        'captions': sum(report['captions'] for report in reports),
        'visuals': len({name for each in sets for name in each.visual_ids}),
        'result': result_of(rows, reports[0]['val_weight']),
        'rows': rows,
        'languages': {
            name: {key: report[key] for key in own} for name, report in zip(names, reports)
        },
    }
    if with_ranks:
        joined['ranks'] = join_ranks({name: each['ranks'] for name, each in zip(names, reports)})
    return joined


def branches_for(weights, embeddings):
    """(en, tgt) embeddings to score with; for one that no weight needs the other stands in.

    Raises:
        ValueError: a weight needs a branch that was not encoded.
    """
    needed = scored_branches(weights)
    absent = [branch for branch in needed if getattr(embeddings, branch) is None]
    if absent:
        shown = ', '.join(f'{w:g}' for w in weights)
        raise ValueError(
            f"no '{absent[0]}' queries were encoded, so w = {shown} cannot be scored; "
            'put such a w into eval.weights'
        )
    en, tgt = embeddings.en, embeddings.tgt
    return (tgt if en is None else en), (en if tgt is None else tgt)


def reported_weights(config, *more, branches=('en', 'tgt')):
    """The weights of a report, falling: `eval.weights`, the one that validation uses, and more.

    Args:
        branches: of the queries that are there. The last two kinds of weights are left out where
            they need others.
    """
    others = [
        weight
        for weight in (float(config.train.val_weight), *more)
        if set(scored_branches([weight])) <= {*branches}
    ]
    return sorted({*map(float, config.eval.weights), *others}, reverse=True)


def collect_ranks(scoring, weights, eval_set):
    """What ranks.npz holds: the rank of each query's first right item.

    Returns:
        dict of arrays: weights (W,); t2v (W, Q) and v2t (W, S) float32, S visual items having
            captions; owner (Q,) int64, the place in v2t of each caption's visual item; caption_ids
            (Q,) and visual_ids (S,), text.
    """
    t2v, v2t = (torch.stack(ranks).float().cpu().numpy() for ranks in zip(*scoring.ranks()))
    searching, place = np.unique(np.asarray(eval_set.visual_of), return_inverse=True)
    return {
        'weights': np.array(weights),
        't2v': t2v,
        'v2t': v2t,
        'owner': place,
        'caption_ids': np.array(eval_set.caption_ids, dtype=str),
        'visual_ids': np.array(eval_set.visual_ids, dtype=str)[searching],
    }


def choose_weight(embeddings, sets, config):
    """Choose w on the validation split: the best SumR; of several, the nearest to `val_weight`.

    Args:
        embeddings, sets, config: as `evaluate_all` has; the weights to choose from are
            `eval.weight_grid` (or else `eval.weights`), and `val_weight`.
    Returns:
        dict: chosen_weight; chosen_from, for each w a dict of weight and SumR; val_ranges: dict
            language -> branch -> the lowest and highest cosine, `low` and `high`.
    """
    scorings = []
    report = evaluate_all(embeddings, sets, config, validation_weights(config), keep=scorings)
    rows = report['rows']

    def merit(row):
        distance = abs(row['weight'] - float(config.train.val_weight))
        return round(row['SumR'], 6), -round(distance, 6), -row['weight']

    return {
        'chosen_weight': max(rows, key=merit)['weight'],
        'chosen_from': [{'weight': row['weight'], 'SumR': row['SumR']} for row in rows],
        'val_ranges': {
            each.lang: ranges_of(scoring, one)
            for each, scoring, one in zip(sets, scorings, embeddings)
        },
    }


def ranges_of(scoring, embeddings):
    """dict branch -> its lowest and highest cosine, `low` and `high`, of the encoded branches."""
    return {
        branch: {'low': low, 'high': high}
        for branch, low, high in zip(('en', 'tgt'), scoring.low.tolist(), scoring.high.tolist())
        if getattr(embeddings, branch) is not None
    }


# ------------------------------------------------------------------------------ of a checkpoint


def evaluate_checkpoint(
    path,
    *,
    rootpath=None,
    split='test',
    device='cpu',
    tokenizer=None,
    images=None,
    embeddings_folder=None,
    trec=None,
    trec_depth=DEPTH,
    with_details=False,
    overrides=(),
):
    """Evaluate a run folder, a checkpoint file, ours or a released one, or an exported folder.

    Args:
        path: run folder or file.
        rootpath: where the data lie; None: found from the run folder's place, see `root_of`.
        split: `val` or `test`.
        device: `cpu`, the index of a GPU, or, in one of several processes, those of all: see
            basic.runtime.
        tokenizer: hub name or folder; None: the one saved with the run, else `text.bert`.
        images: folder of raw images that replaces that of `data.images`; CLIP models only.
        embeddings_folder: write embeddings and ids there.
        trec: write TREC files whose paths begin so, see `basic.trec`, at the result's w; of several
            languages each has files of its own: PREFIX.de.t2v.run.
        trec_depth: items of a query in them; 0: all.
        with_details: also give what report.html needs beside the metrics.
        overrides: `key=value` strings over the stored config.
    Returns:
        dict, the content of metrics.json: checkpoint, epoch, config, collection, lang, altered (see
            `alterations`), left_out (counts, where `data.missing=skip` left captions out),
            chosen_weight and chosen_from (None where the checkpoint has no choice), val_ranges
            (where it has them), and what `evaluate` returns, of which `ranks` has its own file. In
            the main process also `details` (basic.examples.Details), if wanted.
    Raises:
        ValueError: (ConfigError, DataError, CheckpointError) something that the user can put right;
            says what.
    """
    device = distributed.start(runtime.choose_devices(device))
    tell(f'reading {path}')
    checkpoint = load_checkpoint(path, overrides)
    config = with_images(checkpoint.config, images) if images else checkpoint.config
    rootpath = Path(rootpath) if rootpath else root_of(checkpoint.path, config)
    runtime.set_precision(config.compute.precision)

    choice = checkpoint.choice or {'chosen_weight': None, 'chosen_from': None}
    chosen = [choice['chosen_weight']] if checkpoint.choice else []
    there = [
        each.branches_there(split) for each in Collection(config, rootpath).in_languages().values()
    ]
    branches = [branch for branch in ('en', 'tgt') if all(branch in some for some in there)]
    weights = reported_weights(config, *chosen, branches=branches)

    _, _, model, loaders = assemble(
        config,
        rootpath,
        splits=(split,),
        device=device,
        checkpoint=checkpoint,
        tokenizer=tokenizer,
        weights=weights,
    )
    sets = eval_sets(loaders, split)

    captions = sum(len(each.caption_ids) for each in sets)
    items = len({name for each in sets for name in each.visual_ids})
    tell(f'encoding {captions:,} captions and {items:,} visual items of {split}')
    embeddings = encode_all(model, sets, device, config.compute.precision)
    if embeddings_folder and distributed.is_main():
        for one, each in zip(embeddings, sets):
            folder = Path(embeddings_folder, each.lang if len(sets) > 1 else '')
            save_embeddings(folder, one, each)

    tell(f'scoring at w = {", ".join(f"{w:g}" for w in weights)}')
    scorings = []
    found = evaluate_all(embeddings, sets, config, weights, with_ranks=True, keep=scorings)
    if trec:
        write_trec_files(trec, scorings, sets, found['result']['weight'], config, trec_depth)
    if with_details and distributed.is_main():
        with noted('report.html'):
            weight = found['result']['weight']
            found['details'] = details_of(config, scorings, embeddings, sets, weight)
    return {
        'checkpoint': str(checkpoint.path),
        'epoch': checkpoint.epoch,
        'config': config.name,
        'collection': config.data.collection,
        'lang': config.data.lang,
        'altered': alterations(checkpoint, config, tokenizer),
        **choice,
        **left_out(sets),
        **found,
    }


def write_trec_files(prefix, scorings, sets, weight, config, depth=DEPTH):
    """Write the TREC files of a split's languages, in one process while the others wait."""
    with distributed.patiently():
        for scoring, each in zip(scorings, sets) if distributed.is_main() else ():
            write_trec(
                f'{prefix}.{each.lang}' if len(sets) > 1 else prefix,
                scoring,
                each,
                weight,
                depth=depth,
                name=config.name,
                progress=counted('writing TREC files: query'),
            )


def left_out(sets):
    """For a report: what `data.missing=skip` left out of the languages of a split, if anything."""
    counts = [each.left_out.counts() for each in sets if each.left_out]
    return (
        {'left_out': {key: sum(one[key] for one in counts) for key in counts[0]}} if counts else {}
    )


def alterations(checkpoint, config, tokenizer=None):
    """In what a test differs from that of a run's best model as it was trained.

    The result of a test that differs has files of its own, see `write_report`.

    Args:
        checkpoint: basic.checkpoint.Checkpoint; with a released one, nothing counts as different.
        config: what it was tested with.
        tokenizer: one that was asked for.
    Returns:
        list of str, such as 'eval.ties: 'pessimistic' -> 'mean''; empty: in nothing.
    """
    if checkpoint.released:
        return []
    found = config_changes(config_to_dict(checkpoint.stored), config_to_dict(config), SAME_TEST)
    folder, name = checkpoint.path.parent, checkpoint.path.name
    if name not in (BEST, exported.WEIGHTS) and (folder / run_folder.CONFIG).is_file():
        found.append(f'the model of {name}, not of {BEST}')
    if tokenizer:
        found.append(f'tokenizer {tokenizer}')
    return found


def root_of(path, config):
    """ROOTPATH of a run at ROOTPATH/<collection>/runs/<name>/<seed>/<file>; else ValueError."""
    folders = Path(os.path.abspath(path)).parents
    spellings = [name.casefold() for name in (config.data.collection, *config.data.aliases)]
    if len(folders) > 4 and folders[2].name == 'runs' and folders[3].name.casefold() in spellings:
        return folders[4]
    raise ValueError(
        f'--rootpath is needed: {folders[0]} does not lie at'
        f' ROOTPATH/{config.data.collection}/runs/NAME/SEED, which would tell where the data are'
    )


def with_images(config, folder):
    """The config with raw images read from `folder`, under the names that `data.images` gives them.

    Raises:
        ValueError: no such folder, a name that a template cannot hold, a model that reads no
            images.
    """
    if config.visual.kind != 'clip':
        raise ValueError(
            f'an image folder ({folder}) was given, but this model reads features, not images '
            f'(visual.kind={config.visual.kind}): omit it (do_test_multi30k.sh: None)'
        )
    folder = os.path.abspath(folder)
    if not os.path.isdir(folder):
        raise ValueError(f'no image folder {folder}')
    if '{' in folder or '}' in folder:
        raise ValueError(
            f'image folder {folder}: braces cannot be part of its name here; move or link it'
        )
    tree = config_to_dict(config)
    tree['data']['images'] = f'{folder}/{Path(tree["data"]["images"]).name}'
    return config_from_dict(tree)


# ------------------------------------------------------------------------------ a model in use


def load_model(source, *, device='cpu', tokenizer=None, overrides=()):
    """A trained model, to encode and score what you like.

    Args:
        source: run folder, checkpoint file (ours or a released one), folder of util.export, or the
            hub name of such a folder, owner/name.
        device: `cpu`, `cuda`, the index of a GPU, `auto` (a GPU if there is one), or a
            torch.device.
        tokenizer: hub name or folder; None: the one saved with the model, else `text.bert`.
        overrides: `key=value` strings over the stored config, such as compute.precision=fp32.
    Returns:
        Retriever.
    Raises:
        ValueError: (ConfigError, DataError, CheckpointError) something that the user can put right;
            says what.
    """
    device = runtime.choose_devices('0' if str(device) == 'cuda' else device)[0]
    path = source
    if not os.path.exists(source) and re.fullmatch(r'[\w.-]+/[\w.-]+', str(source)):
        try:
            path = download(str(source), exported.FILES, exported.NEEDED)
        except DataError as error:
            raise type(error)(f"no model '{source}': {error}") from None
    once = ['compute.compile=false', 'compute.checkpointing=false']  # for a few texts at a time
    checkpoint = load_checkpoint(path, [*once, *overrides])
    name = tokenizer or saved_tokenizer(checkpoint) or checkpoint.config.text.bert
    tokenizer = load_tokenizer(name, checkpoint.config.text.lowercase)
    config = with_casing(checkpoint.config, tokenizer)
    model = trained_model(config, checkpoint).to(device).eval()
    check_text(model, tokenizer)
    return Retriever(
        model,
        config,
        tokenizer,
        device=device,
        choice=checkpoint.choice,
        name=str(source) if path is not source else short_name(checkpoint.path),
    )


def short_name(path):
    """What to call the model of a checkpoint file: its folder, for a run with its seed."""
    folder = Path(os.path.abspath(path)).parent
    return f'{folder.parent.name}/{folder.name}' if 'seed_' in folder.name else folder.name


# ------------------------------------------------------------------------------------------- files


def save_embeddings(folder, embeddings, eval_set):
    """Write the embeddings, and what their rows are, into a folder.

    Its files: visual.npy, en.npy, tgt.npy (float32), owner.npy (int64, the visual item of each
    caption), visual_ids.txt and caption_ids.txt. A branch that was not encoded has no file.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)

    def save_array(name, array):
        write_atomically(folder / f'{name}.npy', partial(np.save, arr=array))

    for name, tensor in embeddings._asdict().items():
        if tensor is None:
            (folder / f'{name}.npy').unlink(missing_ok=True)  # of an earlier evaluation
        else:
            save_array(name, tensor.cpu().numpy())
    save_array('owner', np.asarray(eval_set.visual_of))
    for name in ('visual_ids', 'caption_ids'):
        lines = ''.join(f'{item}\n' for item in getattr(eval_set, name))
        write_atomically(folder / f'{name}.txt', lines)


# -------------------------------------------------------------------------------- the command line


@command('evaluation.py')
def main(argv=None):
    """The command line; returns the exit status, see basic.command."""
    args = evaluation_arguments(argv)
    runtime.keep_logs_tidy()
    if args.print_config:
        print(describe_config(load_checkpoint(args.checkpoint, args.overrides).config), end='')
        return 0
    devices = runtime.choose_devices(args.device)
    if len(devices) > 1 and not distributed.launched():
        words = sys.argv[1:] if argv is None else argv
        return distributed.launch(__file__, words, processes=len(devices))
    folder = embeddings_folder(args)
    with memory_advice(
        'compute.score_memory=256 (same result), compute.precision=bf16 and a smaller'
        ' eval.test_batch_size (with text.pooling=padded_mean it moves figures a little) need less'
        ' memory'
    ):
        report = evaluate_checkpoint(
            args.checkpoint,
            rootpath=args.rootpath,
            split=args.split,
            device=args.device,
            tokenizer=args.tokenizer,
            images=args.images,
            embeddings_folder=folder,
            trec=args.trec,
            trec_depth=args.trec_depth,
            with_details=not args.no_report,
            overrides=args.overrides,
        )
    if distributed.is_main():
        print(table(report))
        if report['altered']:
            print(f'not the test of the run as it was trained: {"; ".join(report["altered"])}')
        files = [written(report, write_report(report, args.output)), folder]
        files.append(args.trec and f'{args.trec}.*')
        print(f'written: {", ".join(str(each) for each in files if each)}')
        print(result_line(report))
    distributed.stop()
    return 0


def embeddings_folder(args):
    """Where --save-embeddings writes: what it names, or a folder beside the checkpoint; or None."""
    if args.save_embeddings != '':
        return args.save_embeddings
    given = Path(args.checkpoint)
    return (given if given.is_dir() else given.parent) / f'embeddings_{args.split}'


if __name__ == '__main__':
    distributed.leave(main())
