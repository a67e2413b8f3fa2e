"""Evaluate a trained model: encode a split, score, fuse the two text branches, measure.

    python evaluation.py --checkpoint RUN_DIR_OR_FILE [--rootpath ROOT] [--split val|test]
    [key=value ...]

With eval.weights=[0] the target-language queries are read and encoded alone: they need no
translated ones. With [1] likewise the translated ones.

Q captions, V visual items, E common space.
"""

from basic.arguments import begin, evaluation_arguments

if __name__ == '__main__':
    begin('evaluation.py', __file__, evaluation_arguments)  # before the imports, which take seconds

import errno
import io
import json
import os
import sys
import textwrap
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from basic import distributed
from basic.caption import load_tokenizer
from basic.checkpoint import BEST, load_checkpoint
from basic.command import command, memory_advice
from basic.collection import Collection, scored_branches, validation_weights
from basic.config import config_changes, config_from_dict, config_to_dict
from basic.files import holder_of, write_atomically
from basic.logger import counted, progress, tell
from basic.print_config import describe_config
from basic.run_folder import ALTERED, CONFIG, LOCK, MAY_DIFFER, METRICS, RANKS, TOKENIZER
from basic.runtime import autocast, choose_devices, keep_logs_tidy, set_precision
from basic.scoring import mix, normalise, scored, similarity
from data_provider import build_loaders
from model import build_model, check_text, load_weights, refuse_misfit

# what an option may change, and the test is still the run's own: where things lie, and how fast
# they are
SAME_TEST = (
    *MAY_DIFFER,
    'text.bert',
    'text.pretrained',
    'visual.clip',
    'visual.clip_pretrained',
    'data.images',
)
COLUMNS = {'R@1': 7, 'R@5': 7, 'R@10': 7, 'MedR': 8, 'MeanR': 8, 'mAP': 7}  # and how wide each is
# Of the figures in metrics.json; what people see has mAP in per cent.
UNITS = {
    'R@k': 'per cent',
    'SumR': 'per cent, six recalls added',
    'MedR': 'rank, from 1',
    'MeanR': 'rank, from 1',
    'mAP': 'from 0 to 1',
}
WIDTH = 79  # characters that a line for people has at most, but for paths


class Embeddings(NamedTuple):
    """A split in the common space, float32, L2-normalised; a branch that no weight needs is
    None."""

    visual: torch.Tensor  # (V, E)
    en: torch.Tensor | None = None  # (Q, E)
    tgt: torch.Tensor | None = None  # (Q, E)


@torch.no_grad()
def encode(model, eval_set, device, precision='fp32'):
    """Encode a split in evaluation mode, a share of its batches in each process; the model's mode
    is left as it was.

    Args:
        model: model.NRCCR on `device`.
        eval_set: data_provider.EvalSet. With `padded_mean` pooling its batches matter.
        precision: of the encoders, see basic.config.Compute; the projections are computed in
            float32.
    Returns:
        Embeddings on `device`, whole and in the split's order in every process.
    """
    was_training = model.training
    model.eval()
    parts = {'visual': [], **{role: [] for role in eval_set.branches}}
    for batch, mask in shown(eval_set.visuals, f'encoding {eval_set.split}: visual items, batch'):
        mask = None if mask is None else mask.to(device, non_blocking=True)
        with autocast(device, precision):
            parts['visual'].append(model.encode_visual(batch.to(device, non_blocking=True), mask))
    for pair in shown(eval_set.captions, f'encoding {eval_set.split}: captions, batch'):
        for role, tokens in zip(('en', 'tgt'), pair):
            if role not in eval_set.branches:
                continue
            tokens = tokens.to(device, non_blocking=True)
            with autocast(device, precision):
                parts[role].append(model.encode_text(tokens.ids, tokens.mask))
    model.train(was_training)
    return Embeddings(
        **{
            role: in_order(distributed.gather_batches(encoded, device), eval_set.order.get(role))
            for role, encoded in parts.items()
        }
    )


def shown(batches, label):
    """Iterate batches, with a progress line in one process of several."""
    return progress(batches, label, shown=distributed.is_main())


def in_order(rows, order):
    """Rows (N, E) of which the one in place i is item order[i] -> sorted by item; order None: as
    they are."""
    if order is None:
        return rows
    return torch.empty_like(rows).index_copy_(0, torch.from_numpy(order).to(rows.device), rows)


def evaluate(embeddings, eval_set, config, weights=None, *, with_ranks=False):
    """Metrics of a split at each weight of the English branch; of several processes, all must call
    it.

    Args:
        embeddings: Embeddings of the split.
        eval_set: data_provider.EvalSet, for its ground truth.
        config: basic.config.Config, for the tie rule and the weights.
        weights: list of w; None: those of `eval.weights`, and the one that validation uses. A
            branch that none of them needs may be missing.
        with_ranks: also give the rank of each query.
    Returns:
        dict: split, captions, visuals (counts), ties, units, val_weight; result: see `result_of`;
            rows: for each w a dict of weight, t2v, v2t and SumR as `basic.metric.retrieval_metrics`
            gives them; and, if wanted, ranks: see `collect_ranks`.
    """
    used = float(config.train.val_weight)
    weights = reported_weights(config) if weights is None else [float(weight) for weight in weights]
    en, tgt = branches_for(weights, embeddings)
    scoring = scored(
        embeddings.visual,
        en,
        tgt,
        eval_set.owner,
        weights,
        ties=config.eval.ties,
        memory=config.compute.score_memory,
        progress=counted(f'scoring {eval_set.split}: block', shown=distributed.is_main()),
    )
    rows = [{'weight': weight, **found} for weight, found in zip(weights, scoring.metrics())]
    report = {
        'split': eval_set.split,
        'captions': len(en),
        'visuals': len(embeddings.visual),
        'ties': config.eval.ties,
        'units': UNITS,
        'val_weight': used,
        'result': result_of(rows, used),
        'rows': rows,
    }
    return {**report, 'ranks': collect_ranks(scoring, weights, eval_set)} if with_ranks else report


def result_of(rows, val_weight):
    """The one result of a test, that of the paper's protocol: at the w that validation used (else
    the first row's).

    Returns:
        dict: weight, SumR, and R@1 of t2v and of v2t.
    """
    row = next((row for row in rows if row['weight'] == val_weight), rows[0])
    return {
        'weight': row['weight'],
        'SumR': row['SumR'],
        **{f'{way} R@1': row[way].get('R@1') for way in ('t2v', 'v2t')},
    }


def branches_for(weights, embeddings):
    """(en, tgt) embeddings to score with; for one that no weight needs the other stands in.

    Raises:
        ValueError: a weight needs a branch that was not encoded.
    """
    absent = [role for role in scored_branches(weights) if getattr(embeddings, role) is None]
    if absent:
        shown = ', '.join(f'{w:g}' for w in weights)
        raise ValueError(
            f"no '{absent[0]}' queries were encoded, so w = {shown} cannot be scored; "
            'put such a w into eval.weights'
        )
    en, tgt = embeddings.en, embeddings.tgt
    return (tgt if en is None else en), (en if tgt is None else tgt)


def reported_weights(config, *more, branches=('en', 'tgt')):
    """The weights that a report has, falling: `eval.weights`, the one that validation uses, and
    more.

    Args:
        branches: of the queries that are there; one of the other weights that needs more is left
            out.
    """
    others = [
        weight
        for weight in (float(config.train.val_weight), *more)
        if set(scored_branches([weight])) <= {*branches}
    ]
    return sorted({*map(float, config.eval.weights), *others}, reverse=True)


def collect_ranks(scoring, weights, eval_set):
    """What ranks.npz holds: from what place on each query finds a right item. S visual items have
    captions.

    Returns:
        dict of arrays: weights (W,); t2v (W, Q) and v2t (W, S) float32; owner (Q,) int64, the place
            in v2t of each caption's visual item; caption_ids (Q,) and visual_ids (S,), text.
    """
    t2v, v2t = (torch.stack(ranks).float().cpu().numpy() for ranks in zip(*scoring.ranks()))
    searching, owner = np.unique(np.asarray(eval_set.owner), return_inverse=True)
    return {
        'weights': np.array(weights),
        't2v': t2v,
        'v2t': v2t,
        'owner': owner,
        'caption_ids': np.array(eval_set.caption_ids, dtype=str),
        'visual_ids': np.array(eval_set.visual_ids, dtype=str)[searching],
    }


def choose_weight(embeddings, eval_set, config):
    """Choose w on the validation split: the best SumR, and where several have it, the one nearest
    to `val_weight`.

    Args:
        as `evaluate` has; the weights to choose from are `eval.weight_grid` (or else
        `eval.weights`), and `val_weight`.
    Returns:
        dict: chosen_weight, and chosen_from, for each w a dict of weight and SumR.
    """
    used = float(config.train.val_weight)
    rows = evaluate(embeddings, eval_set, config, validation_weights(config))['rows']
    best = max(
        rows,
        key=lambda row: (
            round(row['SumR'], 6),
            -round(abs(row['weight'] - used), 6),
            -row['weight'],
        ),
    )
    return {
        'chosen_weight': best['weight'],
        'chosen_from': [{'weight': row['weight'], 'SumR': row['SumR']} for row in rows],
    }


class Found(NamedTuple):
    """A visual item that a search has found: its place, its score, whether it is right, a caption
    of it."""

    rank: int
    score: float
    visual_id: str
    right: bool
    caption: str


class Example(NamedTuple):
    """A search, to be looked at. texts: the query, target language first; rank: the right item's;
    found: list."""

    caption_id: str
    texts: list[str]
    rank: int
    found: list[Found]


@torch.no_grad()
def search_examples(embeddings, eval_set, config, *, queries=4, top=5):
    """What some queries find at the weight that validation uses; the captions at even distances in
    the split.

    Args:
        embeddings, eval_set, config: as `evaluate` has; eval_set with its texts.
        queries: how many; top: visual items of each, and the right one after them, if it is not
            among them.
    Returns:
        list of Example.
    """
    owner, weight = np.asarray(eval_set.owner), config.train.val_weight
    rows = sorted({round(place) for place in np.linspace(0, len(owner) - 1, queries)})
    roles = [role for role in ('en', 'tgt') if getattr(embeddings, role) is not None]
    found = {
        role: _normalised_scores(getattr(embeddings, role), embeddings.visual, rows)
        for role in roles
    }
    # (queries, V)
    scores = mix(found['en'], found['tgt'], weight) if len(found) == 2 else found[roles[0]]
    # caption of each item
    first = {visual: row for row, visual in reversed(list(enumerate(owner.tolist())))}

    def text(row):
        return [eval_set.texts[role][row] for role in reversed(roles)]

    examples = []
    for row, line in zip(rows, scores.cpu()):
        order = line.argsort(descending=True, stable=True).tolist()
        rank = order.index(owner[row]) + 1
        places = [*range(1, min(top, len(order)) + 1), *([rank] if rank > top else [])]
        examples.append(
            Example(
                eval_set.caption_ids[row],
                text(row),
                rank,
                [
                    Found(
                        place,
                        float(line[item]),
                        eval_set.visual_ids[item],
                        item == owner[row],
                        text(first[item])[-1] if item in first else '',
                    )
                    for place in places
                    for item in [order[place - 1]]
                ],
            )
        )
    return examples


def _normalised_scores(captions, visual, rows):
    """Scores (len(rows), V) of some captions, min-max normalised over the scores of all of them."""
    low, high = [], []
    for block in captions.split(1024):
        scores = similarity(block, visual)
        low.append(scores.min())
        high.append(scores.max())
    return normalise(
        similarity(captions[rows], visual), torch.stack(low).min(), torch.stack(high).max()
    )


def table(report):
    """The rows of a report (see `evaluate_checkpoint`) as aligned text, for people, within
    `WIDTH`."""
    lines = [
        (
            f'{report["collection"]} ({report["lang"]}), {report["split"]}: {report["captions"]:,}'
            f' captions, {report["visuals"]:,} visual items'
        ),
        f'model of epoch {report["epoch"]}; ties {report["ties"]}',
    ]
    used, chosen = report['result']['weight'], report.get('chosen_weight')
    for way, title in (('t2v', 'text to visual (t2v)'), ('v2t', 'visual to text (v2t)')):
        last = way == 'v2t'
        lines += [
            '',
            title,
            f'{"w":<5}'
            + ''.join(f'{name:>{width}}' for name, width in COLUMNS.items())
            + '    SumR' * last,
        ]
        for row in report['rows']:
            cells = [
                (
                    f'{100 * row[way][name]:{width}.2f}'
                    if name == 'mAP'
                    else f'{row[way][name]:{width}.1f}'
                )
                for name, width in COLUMNS.items()
            ]
            marks = [
                mark
                for mark, weight in (('result', used), ('chosen', chosen))
                if row['weight'] == weight
            ]
            lines.append(
                f'{row["weight"]:<5.4g}'
                + ''.join(cells)
                + f'{row["SumR"]:8.1f}' * last
                + (f'  <- {", ".join(marks)}' if marks else '')
            )
    notes = [
        'w: share of the English branch in the score; R@k, mAP and SumR in per cent.'
        f' {which_w(report)}'
    ]
    if report.get('left_out'):
        gone = report['left_out']
        notes.append(
            f'Without {gone["captions"]:,} of {gone["of_captions"]:,} captions, whose visual items'
            ' are missing (data.missing=skip): not to be compared with published results.'
        )
    return '\n'.join([*lines, '', *(line for note in notes for line in textwrap.wrap(note, WIDTH))])


def which_w(report):
    """One sentence on the marks of a table."""
    used, preset = report['result']['weight'], report['val_weight']
    if used == preset:
        text = f'"result": at w = {used:g}, by which validation selects the model, as in the paper'
    else:
        text = f'"result": at w = {used:g}, for want of the queries that w = {preset:g} needs'
    if report.get('chosen_weight') is None:
        return f'{text}.'
    return f'{text}; "chosen": at the w that had the best SumR on validation.'


def result_line(report):
    """The last line of a test: its one result."""
    found = report['result']
    return (
        f'Result: SumR {found["SumR"]:.1f} (t2v R@1 {found["t2v R@1"]:.1f}, v2t'
        f' {found["v2t R@1"]:.1f}) at w = {found["weight"]:g}'
    )


def evaluate_checkpoint(
    path,
    *,
    rootpath=None,
    split='test',
    device='cpu',
    tokenizer=None,
    images=None,
    embeddings_folder=None,
    overrides=(),
):
    """Evaluate a run folder or a checkpoint file, ours or a released one, on one split.

    Args:
        path: run folder or file.
        rootpath: where the data lie; None: found from the run folder's place, see `root_of`.
        split: `val` or `test`.
        device: `cpu`, the index of a GPU, or, in one of several processes, those of all: see
            basic.runtime.
        tokenizer: hub name or folder; None: the one saved with the run, else `text.bert`.
        images: folder of raw images that replaces that of `data.images`; CLIP models only.
        embeddings_folder: write embeddings and ids there.
        overrides: `key=value` strings over the stored config.
    Returns:
        dict, the content of metrics.json: checkpoint, epoch, config, collection, lang, altered (see
            `alterations`), left_out (counts, where `data.missing=skip` left captions out),
            chosen_weight and chosen_from (None where the checkpoint has no choice), and what
            `evaluate` returns, of which `ranks` has its own file.
    Raises:
        ValueError: (ConfigError, DataError, CheckpointError) something that the user can put right;
            says what.
    """
    device = distributed.start(choose_devices(device))
    tell(f'reading {path}')
    checkpoint = load_checkpoint(path, overrides)
    config = with_images(checkpoint.config, images) if images else checkpoint.config
    set_precision(config.compute.precision)
    rootpath = Path(rootpath) if rootpath else root_of(checkpoint.path, config)
    tell('making its tokenizer and model')
    saved, tokenizer_given = checkpoint.path.parent / TOKENIZER, tokenizer
    tokenizer = load_tokenizer(
        tokenizer or (str(saved) if saved.is_dir() else config.text.bert), config.text.lowercase
    )
    refuse_misfit(config, checkpoint)
    model = build_model(config, architecture=checkpoint.architecture)
    load_weights(model, checkpoint)
    model.to(device)
    choice = checkpoint.choice or {'chosen_weight': None, 'chosen_from': None}
    weights = reported_weights(
        config,
        *([choice['chosen_weight']] if checkpoint.choice else []),
        branches=Collection(config, rootpath).branches_there(split),
    )
    tell(f'opening the {split} split in {rootpath}')
    eval_set = build_loaders(
        config,
        rootpath,
        tokenizer,
        splits=(split,),
        image_size=model.image_size,
        device=device,
        image_encoder=model.visual_encoder,
        weights=weights,
    )[split]
    check_text(model, tokenizer, [eval_set])
    tell(
        f'encoding {len(eval_set.caption_ids):,} captions and {len(eval_set.visual_ids):,} visual'
        ' items'
    )
    embeddings = encode(model, eval_set, device, config.compute.precision)
    if embeddings_folder and distributed.is_main():
        save_embeddings(embeddings_folder, embeddings, eval_set)
    tell(f'scoring at {len(weights)} weights')
    return {
        'checkpoint': str(checkpoint.path),
        'epoch': checkpoint.epoch,
        'config': config.name,
        'collection': config.data.collection,
        'lang': config.data.lang,
        'altered': alterations(checkpoint, config, tokenizer_given),
        **choice,
        **left_out(eval_set),
        **evaluate(embeddings, eval_set, config, weights, with_ranks=True),
    }


def left_out(eval_set):
    """For a report: what `data.missing=skip` left out of the split, if anything."""
    return {'left_out': eval_set.left_out.counts()} if eval_set.left_out else {}


def alterations(checkpoint, config, tokenizer=None):
    """In what a test differs from that of a run's best model as it was trained; its result has
    files of its own then.

    Args:
        checkpoint: basic.checkpoint.Checkpoint; a released one is no run of ours, and is tested as
            one pleases.
        config: what it was tested with; tokenizer: one that was asked for.
    Returns:
        list of str, such as 'eval.ties: 'pessimistic' -> 'mean''; empty: in nothing.
    """
    if checkpoint.released:
        return []
    found = config_changes(config_to_dict(checkpoint.stored), config_to_dict(config), SAME_TEST)
    if checkpoint.path.name != BEST and (checkpoint.path.parent / CONFIG).is_file():
        found.append(f'the model of {checkpoint.path.name}, not of {BEST}')
    return found + ([f'tokenizer {tokenizer}'] if tokenizer else [])


def root_of(path, config):
    """ROOTPATH of a run that lies at ROOTPATH/<collection>/runs/<name>/<seed>/<file>; else
    ValueError."""
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
            f'(visual.kind={config.visual.kind}): leave it away (do_test_multi30k.sh: None)'
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


def save_embeddings(folder, embeddings, eval_set):
    """Write visual.npy, en.npy, tgt.npy (float32), owner.npy (int64), visual_ids.txt and
    caption_ids.txt.

    There is no file of a branch that was not encoded.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, tensor in embeddings._asdict().items():
        if tensor is None:
            (folder / f'{name}.npy').unlink(missing_ok=True)  # of an earlier evaluation
            continue
        write_atomically(folder / f'{name}.npy', partial(np.save, arr=tensor.cpu().numpy()))
    write_atomically(folder / 'owner.npy', partial(np.save, arr=np.asarray(eval_set.owner)))
    for name in ('visual_ids', 'caption_ids'):
        write_atomically(
            folder / f'{name}.txt', ''.join(f'{item}\n' for item in getattr(eval_set, name))
        )


def write_report(report, output=None, folder=None, *, own=False):
    """Write a report as JSON and its ranks as .npz: to `output`, or into a folder, or, if
    read-only, here.

    The folder is that of the checkpoint unless another is given. The ranks go to ranks.npz beside
    metrics.json (for val ranks_val.npz), or to OUTPUT with the ending .npz. What an altered test
    finds (see `alterations`) goes to metrics_altered.json and ranks_altered.npz, and leaves the
    run's own result alone. A run folder that another process trains in counts as read-only, unless
    `own` says that this process does.

    Returns:
        the path of the JSON file.
    """
    beside = Path(folder or Path(report['checkpoint']).parent)
    names = [files[report['split']] for files in (METRICS, RANKS)]
    if report.get('altered'):
        names = [ALTERED[name] for name in names]
    path = Path(output) if output else beside / names[0]
    ranks = path.with_suffix('.npz') if output else beside / names[1]
    holder = None if own or output else holder_of(beside / LOCK)
    try:
        if holder:
            raise PermissionError(errno.EBUSY, f'it is in use by {holder}')
        _write_both(report, path, ranks)
    except OSError as error:
        if output:
            raise ValueError(f'cannot write {path}: {error.strerror or error}') from None
        path, ranks = Path.cwd() / path.name, Path.cwd() / ranks.name
        print(
            f'note: {beside} cannot be written to ({error.strerror or error}); {path.name} and'
            f' {ranks.name} go here',
            file=sys.stderr,
        )
        _write_both(report, path, ranks)
    return path


def _write_both(report, path, ranks):
    if 'ranks' in report:
        packed = io.BytesIO()
        np.savez_compressed(packed, **report['ranks'])
        write_atomically(ranks, packed.getvalue())
    figures = {key: value for key, value in report.items() if key != 'ranks'}
    write_atomically(path, json.dumps(figures, indent=2, ensure_ascii=False) + '\n')


@command('evaluation.py')
def main(argv=None):
    """The command line; returns the exit status, see basic.command."""
    args = evaluation_arguments(argv)
    keep_logs_tidy()
    folder = args.save_embeddings
    if folder == '':
        folder = Path(
            args.checkpoint if Path(args.checkpoint).is_dir() else Path(args.checkpoint).parent
        )
        folder = folder / f'embeddings_{args.split}'
    if args.print_config:
        print(describe_config(load_checkpoint(args.checkpoint, args.overrides).config), end='')
        return 0
    devices = choose_devices(args.device)
    if len(devices) > 1 and not distributed.launched():
        return distributed.launch(
            __file__, sys.argv[1:] if argv is None else argv, processes=len(devices)
        )
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
            overrides=args.overrides,
        )
    if distributed.is_main():
        print(table(report))
        if report['altered']:
            print(f'not the test of the run as it was trained: {"; ".join(report["altered"])}')
        print(f'written: {write_report(report, args.output)}' + (f', {folder}' if folder else ''))
        print(result_line(report))
    distributed.stop()
    return 0


if __name__ == '__main__':
    distributed.leave(main())
