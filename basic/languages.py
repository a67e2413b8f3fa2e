"""The target languages of a config, `data.lang`: one, or several with commas between."""

from basic.errors import ConfigError


def languages(config):
    """The target languages of a config, one or more."""
    return tuple(config.data.lang.split(','))


def one_language(config, what):
    """The language of a config; ConfigError if it has several, which `what` cannot work with."""
    names = languages(config)
    if len(names) > 1:
        raise ConfigError(
            f'{what} works on one language at a time, and data.lang is {config.data.lang}: give'
            f' data.lang={names[0]}, then the next'
        )
    return names[0]


def with_languages(tree, source):
    """The tree with a list of languages as text: data.lang of 'de,fr' for [de, fr].

    Raises:
        ConfigError: something in the list is no text.
    """
    data = tree.get('data')
    names = data.get('lang') if isinstance(data, dict) else None
    if isinstance(names, str) and names[:1] + names[-1:] == '[]':  # of an option
        names = [_unquoted(name) for name in names[1:-1].split(',')]
    elif isinstance(names, str):
        names = names.split(',')
    if not isinstance(names, list):
        return tree
    wrong = [name for name in names if not isinstance(name, str)]
    if wrong:
        raise ConfigError(
            f"{source}: key 'data.lang' lists languages, but YAML reads one as {wrong[0]!r}; put it"
            ' in quotes'
        )
    return {**tree, 'data': {**data, 'lang': ','.join(name.strip() for name in names)}}


def _unquoted(name):
    name = name.strip()
    return name[1:-1] if len(name) > 1 and name[0] == name[-1] and name[0] in '\'"' else name
