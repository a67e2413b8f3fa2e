"""An exported model: a folder to give to others, see util.export.

    model.safetensors   the weights
    config.yaml         the config of the training
    model.json          the rest: the configurations of the encoders, epoch, validation metrics,
                        the chosen w and the score ranges
    tokenizer/          as transformers saves it
    README.md           the model card

Together the first three hold what a checkpoint file of ours does, and are checked as that is.
Reading them runs nothing that is in them.
"""

import json
import os

import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from basic.checkpoint_file import AGAIN, CheckpointError, is_safetensors, other_kind
from basic.files import disk_error, write_atomically
from basic.foreign import read_json, read_yaml, refuse_special

FORMAT = 'nrccr-export-1'
WEIGHTS, CONFIG, MODEL = 'model.safetensors', 'config.yaml', 'model.json'
NEEDED = (WEIGHTS, CONFIG, MODEL)
FILES = (*NEEDED, 'README.md', 'tokenizer/*')  # all, as patterns of the hub
JSON_SIZE = 2**22  # most bytes of model.json; ours have some thousands


def write_model(folder, content):
    """Write the weights, config.yaml and model.json.

    Args:
        folder: Path.
        content: what a checkpoint file holds: config, architecture, model, epoch, val, choice.
    Raises:
        OSError: it cannot be written.
    """
    # safetensors takes whole tensors, each with memory of its own.
    weights = {name: tensor.clone().contiguous() for name, tensor in content['model'].items()}
    try:
        save_file(weights, folder / WEIGHTS, metadata={'format': 'pt'})
    except SafetensorError as error:
        raise disk_error(error) or error from None
    config = yaml.safe_dump(content['config'], sort_keys=False, allow_unicode=True)
    write_atomically(folder / CONFIG, config)
    rest = {key: content[key] for key in ('architecture', 'epoch', 'val', 'choice')}
    text = json.dumps({'format': FORMAT, **rest}, indent=2, ensure_ascii=False)
    write_atomically(folder / MODEL, text + '\n')


def read_model(path):
    """What `write_model` was given, unchecked but for its kinds of files.

    Args:
        path: of the weights; the other files lie beside it.
    Raises:
        CheckpointError: a file is missing, damaged or of another kind; names it.
    """
    folder = path.parent
    missing = [name for name in NEEDED if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(
            f'{folder} lacks {" and ".join(missing)}: an exported model (util.export) is a folder'
            f' with {", ".join(NEEDED)}; {AGAIN}, whole'
        )
    if (size := os.path.getsize(folder / MODEL)) > JSON_SIZE:
        raise CheckpointError(f'{folder / MODEL} is too large for what it is: {size:,} bytes')
    rest = read_json(folder / MODEL, {'format': str}, CheckpointError)
    if rest['format'] != FORMAT:
        raise CheckpointError(
            f"{folder / MODEL}: its format is '{rest['format'][:60]}'; this version reads {FORMAT}"
        )
    config = read_yaml(folder / CONFIG, CheckpointError)
    return {**rest, 'config': config, 'model': _read_weights(path)}


def _read_weights(path):
    """The tensors of a safetensors file, on the CPU."""
    refuse_special(path, CheckpointError)
    with open(path, 'rb') as file:
        head = file.read(512)
    if not is_safetensors(head):
        raise CheckpointError(f'{path} is {other_kind(head) or "no safetensors file"}')
    try:
        return load_file(path)
    except MemoryError:
        raise
    # its own errors, and a KeyError for a type of numbers that torch does not have
    except Exception as error:
        reason = ' '.join(str(error).split())[:200]
        raise CheckpointError(f'{path} is damaged ({reason}): {AGAIN}') from None


def is_exported(folder):
    """Whether a folder has the files of an exported model."""
    return all((folder / name).is_file() for name in NEEDED)
