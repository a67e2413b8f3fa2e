"""Errors for mistakes in the user's data or options, and helpers for their messages."""

from pathlib import Path


class UserError(ValueError):
    """A mistake that the user can correct.

    The middle of a very long message, which quotes a file, is omitted.
    """

    def __init__(self, message=''):
        text = str(message)
        super().__init__(text if len(text) < 3000 else f'{text[:2000]} ... {text[-500:]}')


class ConfigError(UserError):
    """An invalid config; the message has the key, what was found and what is valid."""


class DataError(UserError):
    """Unusable data; the message has the file and line, what was expected and found, and advice."""


class UnreachableError(DataError, OSError):
    """Something that is not on this machine and cannot be downloaded; the data may be correct."""


def first_five(items):
    """Shorten a sequence to 'a, b, c, d, e and 7 more', for messages."""
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
