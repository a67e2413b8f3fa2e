"""Models of the hub: from the local cache where they are there, and a quick word where they cannot be had."""
from pathlib import Path

from huggingface_hub import get_hf_file_metadata, hf_hub_url
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

from basic.errors import DataError, UnreachableError
from basic.runtime import keep_logs_tidy

TIMEOUT = 5                              # seconds to wait for the hub before saying that it is out of reach


def load_pretrained(cls, name, **options):
    """cls.from_pretrained of a folder or a hub name.

    The cache comes first and one short question to the hub second, because transformers asks a dead connection again
    and again for a minute.

    Args:
        cls: a class of transformers; options: for its `from_pretrained`.
        name: folder, or hub name.
    Raises:
        DataError: no such folder here and no such model on the hub.
        UnreachableError: no such folder, not in the cache, and not to be downloaded now.
        what `from_pretrained` raises for a folder that it cannot load.
    """
    keep_logs_tidy()
    folder = Path(name).expanduser()
    if folder.is_dir():
        return cls.from_pretrained(str(folder), **options)
    try:
        return cls.from_pretrained(name, local_files_only=True, **options)
    except (OSError, ValueError):        # not in the cache
        pass
    try:
        get_hf_file_metadata(hf_hub_url(name, 'config.json'), timeout=TIMEOUT)
        return cls.from_pretrained(name, **options)
    except (HFValidationError, RepositoryNotFoundError) as error:
        raise DataError(f'no such folder here, no such model on the hub ({reason(error)})') from None
    except Exception as error:           # what a failed request raises differs between huggingface_hub's versions
        raise UnreachableError('no such folder, not in the local cache of downloaded models, and it cannot be '
                               f'downloaded now ({reason(error)})') from None


def refuse_empty(tokenizer):
    """DataError if a tokenizer knows no words: transformers makes such a one where a folder has no vocabulary."""
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise DataError(f'its tokenizer has {len(tokenizer)} tokens, none of them a word: the folder lacks '
                        'tokenizer.json, vocab.txt or the like')


def reason(error):
    """Kind and first line of an error, for messages."""
    return f'{type(error).__name__}: {(str(error).strip().splitlines() or [""])[0][:200]}'
