"""Models of the hub: from the local cache, or a quick word where they cannot be had.

Code that comes with a model is never run: transformers is always given trust_remote_code=False.
"""

from pathlib import Path

from huggingface_hub import get_hf_file_metadata, hf_hub_url, snapshot_download
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

from basic.errors import DataError, UnreachableError
from basic.runtime import keep_logs_tidy

TIMEOUT = 5  # seconds to wait for the hub before saying that it is out of reach
WEIGHTS = (
    'model.safetensors',
    'model.safetensors.index.json',
    'pytorch_model.bin',
    'pytorch_model.bin.index.json',
)


class NeedsCodeError(DataError):
    """A model or tokenizer that only code in its own files could load, which is never run."""


def load_pretrained(cls, name, **options):
    """cls.from_pretrained of a folder or a hub name, without running code that lies there.

    The cache comes first and one short question to the hub second, because transformers asks a
    dead connection again and again for a minute.

    Args:
        cls: a class of transformers; options: for its `from_pretrained`.
        name: folder, or hub name.
    Raises:
        NeedsCodeError: it could only be loaded by running code of its own.
        DataError: no such folder here and no such model on the hub.
        UnreachableError: no such folder, not in the cache, and not to be downloaded now.
        what `from_pretrained` raises for a folder that it cannot load.
    """
    keep_logs_tidy()
    folder = Path(name).expanduser()
    if folder.is_dir():
        return _from_pretrained(cls, str(folder), **options)
    try:
        loaded = _from_pretrained(cls, name, local_files_only=True, **options)
        if not is_empty_tokenizer(loaded):  # as of a download that was cut short
            return loaded
    except NeedsCodeError:
        raise
    except (OSError, ValueError):  # not in the cache, or not all of it
        pass
    ask_hub(name)
    try:
        return _from_pretrained(cls, name, **options)
    except NeedsCodeError:
        raise
    except ImportError as error:
        raise DataError(f'it cannot be loaded ({reason(error)})') from None
    except Exception as error:  # what a failed request raises differs between versions
        raise _unreachable(error) from None


def ask_hub(name, file='config.json'):
    """Ask the hub, once and shortly, for a model's file; raises as `load_pretrained` if in vain."""
    try:
        get_hf_file_metadata(hf_hub_url(name, file), timeout=TIMEOUT)
    except (HFValidationError, RepositoryNotFoundError) as error:
        raise DataError(
            f'no such folder here, no such model on the hub ({reason(error)})'
        ) from None
    except Exception as error:
        raise _unreachable(error) from None


def check_weights(name):
    """Raise as `load_pretrained` if a model's weights are neither here nor to be downloaded."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not any((folder / file).is_file() for file in WEIGHTS):
            raise DataError(f'{folder} holds no weights ({", ".join(WEIGHTS[::2])})')
    elif not any(isinstance(try_to_load_from_cache(str(name), file), str) for file in WEIGHTS):
        ask_hub(name)


def download(name, files, needed):
    """The folder of a hub repository's files, from the cache, or else downloaded.

    Args:
        name: such as owner/name.
        files: the files and patterns to have, all others are left alone.
        needed: those without which a cached copy is not whole.
    Raises:
        DataError: no such repository on the hub.
        UnreachableError: it cannot be downloaded now.
    """
    keep_logs_tidy()
    try:
        folder = Path(snapshot_download(name, allow_patterns=files, local_files_only=True))
        if all((folder / file).is_file() for file in needed):
            return folder
    except HFValidationError as error:
        raise DataError(f'no such folder here, and no name of the hub ({reason(error)})') from None
    except (OSError, ValueError):  # not in the cache
        pass
    ask_hub(name, needed[0])
    try:
        return Path(snapshot_download(name, allow_patterns=files))
    except Exception as error:  # what a failed request raises differs between versions
        raise _unreachable(error) from None


def is_empty_tokenizer(loaded):
    """Whether it is a tokenizer without words: transformers makes one if it finds no vocabulary."""
    if not (hasattr(loaded, 'get_vocab') and hasattr(loaded, 'all_special_tokens')):
        return False
    added = getattr(loaded, 'added_tokens_encoder', ())
    words = set(loaded.get_vocab()) - set(loaded.all_special_tokens) - set(added)
    return words <= {'\u2581'}  # the blank of a sentence-piece vocabulary


def refuse_empty(tokenizer):
    """DataError if a tokenizer knows no words."""
    if is_empty_tokenizer(tokenizer):
        raise DataError(
            f'its tokenizer has {len(tokenizer)} tokens, none of them a word: the '
            'folder lacks tokenizer.json, vocab.txt or the like'
        )


def reason(error):
    """Kind and first line of an error, for messages."""
    return f'{type(error).__name__}: {(str(error).strip().splitlines() or [""])[0][:200]}'


def _from_pretrained(cls, name, **options):
    try:
        return cls.from_pretrained(name, trust_remote_code=False, **options)
    except ValueError as error:
        if 'trust_remote_code' not in str(error):
            raise
        raise NeedsCodeError(
            f"'{name}' needs code of its own ('auto_map' in its configuration), "
            'and code that comes with a model is never run here; choose a model '
            'that transformers itself knows'
        ) from None


def _unreachable(error):
    return UnreachableError(
        'no such folder, not in the local cache of downloaded models, and it '
        f'cannot be downloaded now ({reason(error)})'
    )
