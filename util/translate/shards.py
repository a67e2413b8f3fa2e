"""Translation in parts, so that a kill at any moment loses at most one part.

A caption file of N captions is split into parts of `part_size`, each written atomically to
`<file>.parts/<number>.txt`: a line of JSON with a hash of its captions and the engine, then one
translation per line. Shard I of N processes does the parts I, I + N, I + 2 N, ... The process that
finds all parts done joins them. A part whose captions have changed since is translated again.
"""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

from basic.caption import caption_lines, read_captions, split_line
from basic.errors import ConfigError, DataError
from basic.files import locked, remove_at_once, remove_leftovers, write_atomically
from util.translate.engines import CountError, one_line, translate

BAD_PARTS = 5  # parts that may fail before the translation is stopped


@dataclass(eq=False)
class Job:
    """One caption file to make.

    Attributes:
        source, path: caption file to read, and to write.
        langs: (from, to), tags such as 'en'.
        setup: engines.Setup.
        part_size: captions per part.
        split, branch: of the collection; '' for a file of its own.
        upstream: the Job that makes `source` in this command, or None.
        english: of a back-translation: the caption file that it goes back to.
        report: what was found in the translations, once they are joined.
    """

    source: Path
    path: Path
    langs: tuple[str, str]
    setup: object
    part_size: int = 1000
    split: str = ''
    branch: str = ''
    upstream: object = None
    english: Path = None
    report: object = None
    _names: list = field(default=None, repr=False)
    _texts: list = field(default=None, repr=False)

    @property
    def folder(self):
        return self.path.with_name(f'{self.path.name}.parts')

    @property
    def decides(self):
        """dict of what decides the result, other than the captions."""
        return {
            **self.setup.decides(),
            'from': self.langs[0],
            'to': self.langs[1],
            'part size': self.part_size,
        }

    # ------------------------------------------------------------------------------ the captions

    def _read(self):
        if self.upstream:
            self._names = self.upstream.new_names()
        elif self._texts is None:
            read_captions(self.source)  # raises for lines that are not captions
            lines = [split_line(line) for _, line in caption_lines(self.source)]
            self._names = [name for name, _ in lines]
            self._texts = [text for _, text in lines]

    def names(self):
        """The captions' ids, as the source file has them."""
        if self._names is None:
            self._read()
        return self._names

    def new_names(self):
        """The captions' ids, with the new file's tag: 'v0#enc2es#3' for 'v0#enc#3'."""
        return [new_name(name, self.langs[1]) for name in self.names()]

    def __len__(self):
        return len(self.names())

    def parts(self):
        return range(-(-len(self) // self.part_size))

    def rows(self, part):
        return slice(part * self.part_size, (part + 1) * self.part_size)

    def texts(self, part):
        """The captions to translate in a part; None if they are not there yet."""
        self.names()
        if self._texts is None:
            found = self.upstream.read(part)
            if found is not None or self.upstream.folder.exists() or not self.source.is_file():
                return found
            lines = [split_line(line)[1] for _, line in caption_lines(self.source)]
            if len(lines) != len(self):
                return None
            self._texts = lines
        return self._texts[self.rows(part)]

    # --------------------------------------------------------------------------------- the parts

    def file(self, part):
        return self.folder / f'{part:05}.txt'

    def header(self, part):
        """The JSON of a part's first line; None if there is no such part."""
        try:
            with open(self.file(part), encoding='utf-8') as file:
                found = json.loads(file.readline())
        except (OSError, ValueError, RecursionError):
            return None
        return found if isinstance(found, dict) else None

    def read(self, part):
        """The translations of a part; None if they are not there, damaged, or of other captions."""
        header, texts = self.header(part), self.texts(part)
        if header is None or texts is None or header.get('captions') != digest(texts):
            return None
        try:
            found = self.file(part).read_bytes().decode('utf-8').split('\n')[1:-1]
        except (OSError, UnicodeDecodeError):
            return None
        return found if len(found) == len(texts) and header.get('lines') == digest(found) else None

    def write(self, part, texts, found, *, record, cut=0):
        header = {
            'captions': digest(texts),
            'lines': digest(found),
            'decides': self.decides,
            'engine': record,
            'cut': cut,
        }
        lines = [json.dumps(header, ensure_ascii=False), *found]
        write_atomically(self.file(part), ''.join(f'{line}\n' for line in lines))

    def cut(self):
        """How many captions of the parts were cut, because they were too long for the model."""
        return sum((self.header(part) or {}).get('cut', 0) for part in self.parts())

    def missing(self):
        """The parts that are not done."""
        return [part for part in self.parts() if self.read(part) is None]

    def other_options(self):
        """How the options of parts differ from this job's, as text; '' if they do not."""
        for part in self.parts():
            other = (self.header(part) or {}).get('decides', self.decides)
            if other != self.decides:
                return ', '.join(
                    f'{key} {other.get(key)!r}, now {self.decides.get(key)!r}'
                    for key in sorted({*other, *self.decides})
                    if other.get(key) != self.decides.get(key)
                )
        return ''

    def check_parts(self):
        """Raise ConfigError if parts were made with other options."""
        if differ := self.other_options():
            raise ConfigError(
                f'{self.folder} has parts of an unfinished translation with other options: '
                f'{differ}. Give the same options to continue it, or delete this folder'
            )


def new_name(name, to):
    """A caption's id in the translation: 'v0#enc2es#3' for 'v0#enc#3' and es."""
    visual, *tags, n = name.split('#')
    tag = '#'.join(tags)
    lang = 'enc' if to == 'en' else to
    return '#'.join((visual, f'{tag}2{lang}' if tag else lang, n))


def digest(texts):
    """SHA-256 of a list of lines."""
    return hashlib.sha256('\n'.join(texts).encode('utf-8')).hexdigest()


def do_share(job, engine_of, *, shard=0, shards=1, done=lambda n: None, made=lambda: False):
    """Translate this process's parts of a job that are not done yet.

    Args:
        engine_of: function that returns the engine; called only if there is something to do.
        shard, shards: this process's number, from 0, and the number of processes.
        done: function of the number of captions just translated.
        made: function that tells whether other processes have made the file since this one began.
    Raises:
        DataError: captions that the engine cannot translate; all other parts are done.
        ConfigError: parts of other options.
        Locked: another process does this share.
        FileNotFoundError: other processes have joined the parts meanwhile.
    """
    job.folder.mkdir(exist_ok=True)
    problems = []
    with locked(job.folder / f'shard_{shard}_of_{shards}.lock'):
        if made():
            remove_at_once(job.folder)  # which the lock has perhaps made again
            return
        job.check_parts()
        for part in job.parts():
            if part % shards != shard or job.read(part) is not None:
                continue
            texts = job.texts(part)
            if texts is None:  # the share of another process, which is not done yet
                continue
            engine = engine_of()
            before = getattr(engine, 'cut', 0)
            try:
                found = translate(engine, texts, done)
                cut = getattr(engine, 'cut', 0) - before
                job.write(part, texts, found, record=engine.record, cut=cut)
            except CountError as error:
                row = part * job.part_size + error.row
                problems.append(
                    f"caption {row + 1:,} of {job.source}, '{job.names()[row]}': {error.problem}: "
                    f'{one_line(texts[error.row])[:200]}'
                )
                if len(problems) == BAD_PARTS:
                    break
    if problems:
        raise DataError(
            '\n  '.join([*problems])
            + '\nCorrect these captions, or use another command; then give the same command again.'
            ' What is translated is kept'
        )


def join(job, finish):
    """Join a job's parts into its file, if all are done, and remove them.

    Args:
        finish: function (translations, engine's record) that writes the files beside it.
    Returns:
        whether this process has joined them.
    Raises:
        FileNotFoundError: as `do_share`.
    """
    if not job.folder.is_dir() or job.missing():
        return False
    with locked(job.folder / 'join.lock', wait=True):
        found = [job.read(part) for part in job.parts()]
        if all(lines is None for lines in found) and job.path.exists():
            remove_at_once(job.folder)  # joined by another process; the lock has made it again
        if any(lines is None for lines in found):
            return False
        records = [job.header(part)['engine'] for part in job.parts()]
        if any(record != records[0] for record in records):
            raise DataError(
                f'the parts in {job.folder} were made by different engines: {records[0]} and '
                f'{next(r for r in records if r != records[0])}; delete the folder and start again'
            )
        lines = [line for part in found for line in part]
        finish(lines, records[0] if records else {})
        names = job.new_names()
        remove_leftovers(job.path)
        write_atomically(
            job.path, ''.join(f'{name} {line}\n' for name, line in zip(names, lines, strict=True))
        )
        remove_at_once(job.folder)
    return True
