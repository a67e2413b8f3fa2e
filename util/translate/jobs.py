"""Which caption files of a collection are machine translations, and which of them are missing."""

from dataclasses import dataclass
from pathlib import Path

from basic.collection import Collection
from basic.errors import DataError
from util.translate.engines import Setup
from util.translate.shards import Job


@dataclass(frozen=True)
class Engines:
    """The engines of both directions.

    Attributes:
        into: Setup that translates English into the target language.
        back: Setup that translates the target language into English.
    """

    into: Setup
    back: Setup


def roles(split, branches):
    """(branch to make, branch it is made from) of a split's machine translations.

    Args:
        branches: those that the config needs, from `Collection.branches`.
    """
    pairs = {'train': (('tgt', 'en'), ('back', 'tgt'))}.get(split, (('en', 'tgt'),))
    needed = {*branches}
    if split == 'train' and 'back' in needed:
        needed.add('tgt')  # the back-translation is made from it
    return [(branch, source) for branch, source in pairs if branch in needed]


def collection_jobs(config, rootpath, engines, *, langs, splits, part_size):
    """The jobs of all machine translations of a collection, whether their files exist or not.

    Args:
        config: basic.config.Config; engines: Engines.
        langs: (English, target language), tags such as ('en', 'es').
        splits: of train, val, test.
    Returns:
        (list of Job, list of messages about validation or test captions that do not exist).
    Raises:
        DataError: no English training captions.
    """
    collection, found, absent = Collection(config, rootpath), [], []
    for split in splits:
        made = {}
        for branch, source in roles(split, collection.branches(split)):
            english = branch in ('en', 'back')
            if source in made:
                source_path = made[source].path
            else:
                try:
                    source_path = collection.caption_path(split, source)
                except DataError as error:
                    if split == 'train':
                        raise
                    absent.append(f'{split}: {error}')
                    continue
            path = target_path(collection, split, branch, source, source_path)
            made[branch] = Job(
                source=Path(source_path),
                path=path,
                langs=langs[::-1] if english else langs,
                setup=engines.back if english else engines.into,
                part_size=part_size,
                split=split,
                branch=branch,
                upstream=made.get(source),
                english=made[source].source if branch == 'back' else None,
            )
        found += made.values()
    return found, absent


def target_path(collection, split, branch, source, source_path):
    """The path of a translation: where it exists, or else in the spelling of its source's path."""
    candidates = list(collection.caption_paths(split, branch))
    there = [path for path in candidates if path.exists()]
    if there:
        return there[0]
    spelled = dict(zip(collection.caption_paths(split, source), candidates))
    return spelled.get(source_path, candidates[0])
