"""The errors that say: the user's data or options are wrong; and helpers for their messages."""

from pathlib import Path


class UserError(ValueError):
    """A mistake that the user can put right.

    A message longer than a screen, because it quotes what a file holds, loses its middle.
    """

    def __init__(self, message=''):
        text = str(message)
        super().__init__(text if len(text) < 3000 else f'{text[:2000]} ... {text[-500:]}')


class ConfigError(UserError):
    """A configuration that cannot be run: the message names the key, what was found and what is
    valid."""


class DataError(UserError):
    """Data that cannot be used: the message names the file (and line), what was found and expected,
    and what to do."""


class UnreachableError(DataError, OSError):
    """Something that is neither on this machine nor can be downloaded now; the data may be right
    all the same."""


def first_five(items):
    """'a, b, c, d, e and 7 more' of a sequence, for messages."""
    shown = ', '.join(str(item) for item in items[:5])
    return f'{shown} and {len(items) - 5:,} more' if len(items) > 5 else shown


def listing(folder, limit=12):
    """The names in a folder, for messages."""
    folder = Path(folder)
    if not folder.is_dir():
        return 'no such folder'
    names = sorted(path.name + '/' * path.is_dir() for path in folder.iterdir())
    return (', '.join(names[:limit]) or 'nothing') + f' and {len(names) - limit:,} more' * (
        len(names) > limit
    )
