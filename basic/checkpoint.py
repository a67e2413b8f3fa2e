"""Checkpoints: written and found; read, be they ours or the authors' released ones.

Both are read by basic.checkpoint_file, so loading a file runs nothing that is in it. Ours hold
plain tensors and plain data only, which are checked against the forms below before anything is made
of them. The authors' layout is of basic.released.
"""

from dataclasses import dataclass
from pathlib import Path

import torch

from basic.checkpoint_file import (
    CheckpointError,
    read_content,
    refuse_absurd_sizes,
    refuse_whole_numbers,
    tensors_of,
)
from basic.config import Config, ConfigError, config_from_dict
from basic.errors import first_five
from basic.files import write_atomically
from basic.foreign import expect, plain_tree
from basic.released import is_released, read_released

FORMAT = 'nrccr-1'
NEXT_BEST = 'model_best.next.pt'  # until last.pt has its epoch, and makes it count
# of a folder of util.export
WEIGHTS, CONFIG, MODEL = 'model.safetensors', 'config.yaml', 'model.json'
EXPORT_FILES = (WEIGHTS, CONFIG, MODEL)
EXPORTED = (*EXPORT_FILES, 'README.md', 'tokenizer/*')
BEST, LAST, RELEASED = 'model_best.pt', 'last.pt', 'model_best.pth.tar'

# what our files hold, in the forms of basic.foreign
OURS = {
    'config': dict,
    'architecture': {
        'bert': (dict, None),
        'clip': (dict, None),
        'preprocessing': (dict, None),
        'feature_dim': (int, None),
    },
    'model': dict,
    'epoch': int,
    'val': (dict, None),
    'training': (dict, None),
    'choice': (
        {
            'chosen_weight': float,
            'chosen_from': [{'weight': float, 'SumR': float}],
            'val_ranges': ({str: {str: {'low': float, 'high': float}}}, None),
        },
        None,
    ),
}
OPTIMIZER = {'state': dict, 'param_groups': [dict]}
TRAINING = {
    'optimizer': OPTIMIZER,
    'discriminator_optimizer': OPTIMIZER,
    'teacher': (dict, None),
    'schedule': {
        'lr': float,
        'epoch': int,
        'best': (float, None),
        'best_epoch': int,
        'since_halving': int,
    },
    'random': [
        {'python': {'version': int, 'words': list}, 'numpy': {'kind': str, 'position': int}}
    ],
}


@dataclass
class Checkpoint:
    """What a checkpoint file holds, whichever layout it came in."""

    path: Path
    config: Config
    architecture: dict  # of BERT, CLIP and the feature width: see model.build_model
    model: dict  # state dict of model.NRCCR
    epoch: int
    val: dict | None = None  # validation metrics of that epoch
    # of w on validation: see evaluation.choose_weight; none in a released file
    choice: dict | None = None
    training: dict | None = None  # optimisers, schedule, counters, random states; in last.pt only
    released: bool = False
    stored: Config | None = None  # the config without the overrides; None in a released file


def save_checkpoint(path, content):
    """Write a checkpoint atomically: the file at `path` is always whole, the old one or the new
    one.

    Args:
        path: file to write.
        content: dict of plain tensors and plain data: config, architecture, model, epoch, val[,
            choice][, training].
    Raises:
        OSError, or torch's RuntimeError over it: it cannot be written; what was there is unchanged.
    """
    write_atomically(path, lambda file: torch.save({'format': FORMAT, **content}, file))


def find_checkpoint(path):
    """The checkpoint file meant by `path`: a file, our run folder or the one above it, or a
    released one.

    Raises:
        CheckpointError: no such path, a folder without a checkpoint (says what was looked for), or
            one of several runs.
    """
    path = Path(path)
    if path.is_file():
        return path
    if not path.exists():
        raise CheckpointError(f'no checkpoint at {path}: give a run folder or a checkpoint file')
    if not path.is_dir():
        raise CheckpointError(
            f'{path} is a pipe or a device: give a run folder or a checkpoint file'
        )
    for name in (BEST, RELEASED):
        if (path / name).is_file():
            return path / name
    seeds = sorted(folder for folder in path.glob('seed_*') if (folder / BEST).is_file())
    if len(seeds) == 1:
        return seeds[0] / BEST
    if seeds:
        raise CheckpointError(
            f'{path} holds {len(seeds)} runs, {first_five([seed.name for seed in seeds])}: '
            'name one of them'
        )
    there = ', '.join(sorted(p.name for p in path.iterdir())[:8]) or 'nothing'
    raise CheckpointError(
        f'no {BEST} (ours) and no {RELEASED} (released) in {path}, which has: {there}'
    )


def load_checkpoint(path, overrides=(), bert_heads=None):
    """Read a checkpoint of either layout onto the CPU.

    Args:
        path: a file, or a folder as `find_checkpoint` takes.
        overrides: `key=value` strings laid over the stored config.
        bert_heads: attention heads of BERT in a released file, which does not say; None: width /
            64, mBERT's 12.
    Returns:
        Checkpoint.
    Raises:
        CheckpointError: unreadable, unsafe or foreign file.
        basic.config.ConfigError: an override that does not fit.
    """
    path = find_checkpoint(path)
    content = read_content(path)
    if (
        isinstance(content, dict)
        and isinstance(content.get('format'), str)
        and content['format'] == FORMAT
    ):
        return _ours(path, content, overrides)
    if is_released(content):
        found = read_released(path, content, bert_heads)
        config = config_from_dict(found.pop('config'), overrides)
        return Checkpoint(path=path, config=config, **found, released=True)
    keys = (
        ', '.join(str(key)[:40] for key in list(content)[:20] if isinstance(key, str | int))
        if isinstance(content, dict)
        else type(content).__name__
    )
    raise CheckpointError(
        f'{path} is neither a checkpoint of this project nor a released one; it holds: {keys[:300]}'
    )


def training_of(checkpoint):
    """What last.pt holds to go on with, as train.training_state made it; CheckpointError if it is
    anything else."""
    return expect(
        checkpoint.training, TRAINING, f"{checkpoint.path}: key 'training'", CheckpointError
    )


def _ours(path, content, overrides):
    """A file of `save_checkpoint` as a Checkpoint."""
    missing = [key for key in ('config', 'architecture', 'model', 'epoch') if key not in content]
    if missing:
        raise CheckpointError(f'{path} is incomplete: it has no {", ".join(missing)}')
    expect(content, OURS, path, CheckpointError)
    model = tensors_of(content['model'], path, path.stat().st_size)
    refuse_whole_numbers(model, path)
    plain = {
        key: plain_tree(content.get(key), f'{path}: {key}', CheckpointError)
        for key in ('architecture', 'val', 'choice')
    }
    architecture = plain['architecture']
    refuse_absurd_sizes(architecture, sum(value.numel() for value in model.values()), path)
    try:
        stored = config_from_dict(content['config'], source='its config')
    except ConfigError as error:
        raise CheckpointError(f'{path}: {error}') from None
    return Checkpoint(
        path=path,
        config=config_from_dict(content['config'], overrides),
        stored=stored,
        architecture=architecture
        and {'bert': None, 'clip': None, 'feature_dim': 0, **architecture},
        model=model,
        epoch=content['epoch'],
        val=plain['val'],
        choice=plain['choice'],
        training=content.get('training'),
    )
