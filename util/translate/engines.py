"""The engines: each translates a list of lines into a list of as many lines.

command        any program that reads lines and writes lines
transformers   Marian (OPUS-MT), NLLB, M2M-100, MADLAD: util/translate/models.py
ctranslate2    the same models, faster on a CPU: util/translate/models.py
"""

import shlex
import shutil
import subprocess
from dataclasses import asdict, dataclass

from basic.errors import ConfigError, DataError

ENGINES = ('transformers', 'ctranslate2', 'command')


@dataclass(frozen=True)
class Setup:
    """An engine for one direction, as the user asked for it.

    Attributes:
        engine: one of ENGINES.
        model: hub name or folder; for `command`, the command line.
        revision: of a hub model.
        beams: of the beam search.
        batch_size: captions per batch; 0: 128 on a GPU, 32 on a CPU.
        precision: auto, fp32 or bf16 (transformers); auto, int8, float32, ... (ctranslate2).
        device: see basic.arguments.DEVICE; not part of the result.
    """

    engine: str
    model: str
    revision: str = ''
    beams: int = 4
    batch_size: int = 0
    precision: str = 'auto'
    device: str = 'auto'

    def decides(self):
        """dict of what decides the translations."""
        found = asdict(self)
        del found['device']
        if self.engine == 'command':
            return {'engine': 'command', 'command': self.model}
        return found


class CountError(DataError):
    """A line for which the engine does not give exactly one line.

    Args:
        row: of the line among those given to the engine.
        problem: what happened.
    """

    def __init__(self, row, problem):
        super().__init__(problem)
        self.row, self.problem = row, problem


def build(setup, source, target):
    """The engine of a Setup, ready to translate between two languages (tags such as 'es').

    An engine has `record` (dict: what it is, for the sidecar file) and `lines(texts, done)`, which
    translates a list of str that are not blank and have no line breaks; `done(n)` is called after
    each n captions.
    """
    if setup.engine == 'command':
        return Command(setup.model, source, target)
    from util.translate.models import CTranslate2, Transformers

    kind = {'transformers': Transformers, 'ctranslate2': CTranslate2}[setup.engine]
    return kind(setup, source, target)


def translate(engine, texts, done=lambda n: None):
    """Translate lines; a blank line stays empty, and is not given to the engine.

    Returns:
        list of str, as many as `texts`, without line breaks.
    Raises:
        CountError: a line breaks the count, or the engine fails on it.
    """
    clean = [one_line(text) for text in texts]
    rows = [row for row, text in enumerate(clean) if text]
    result = [''] * len(texts)
    try:
        found = engine.lines([clean[row] for row in rows], done)
    except CountError as error:
        raise CountError(rows[error.row], error.problem) from None
    if len(found) != len(rows):  # each engine checks it: a mistake of ours
        raise AssertionError(f'{len(found)} translations of {len(rows)} captions')
    for row, text in zip(rows, found):
        result[row] = one_line(text)
    done(len(texts) - len(rows))
    return result


def one_line(text):
    """A text with single spaces and no line breaks, of whatever kind, and no null characters."""
    return ' '.join(text.replace('\0', ' ').split())


class Command:
    """A program that reads lines on standard input and writes as many lines (UTF-8).

    It is not run in a shell. `{from}` and `{to}` in its words stand for the two languages.

    Args:
        line: the command, quoted as for a shell.
    Raises:
        ConfigError: not quoted correctly, or no such program.
    """

    def __init__(self, line, source, target):
        try:
            words = shlex.split(line)
        except ValueError as error:
            raise ConfigError(f'command {line!r}: {error}: quote it as for a shell') from None
        if not words:
            raise ConfigError('the command is empty: expected a program that translates lines')
        named = {'{from}': source, '{to}': target}
        for name, lang in named.items():
            words = [word.replace(name, lang) for word in words]
        if shutil.which(words[0]) is None:
            raise ConfigError(
                f"no program '{words[0]}' here: install it, or check the command {line!r} (it is"
                " not run in a shell; for a pipe: bash -c '... | ...')"
            )
        self.words, self.checked = words, False
        self.record = {'engine': 'command', 'command': line}

    def lines(self, texts, done=lambda n: None):
        if texts and not self.checked:
            self._check(texts[0])
        found = self._translate(texts, 0)
        done(len(texts))
        return found

    def _check(self, text):
        """Try one caption: a command that fails on all of them is not a matter of one line."""
        found, problem = self._run([text])
        if found is None:
            raise ConfigError(f'the command {shlex.join(self.words)} {problem}; tried: {text[:80]}')
        self.checked = True

    def _translate(self, texts, first):
        """Translations of texts; in halves where the count is not right."""
        if not texts:
            return []
        found, problem = self._run(texts)
        if found is not None:
            return found
        if len(texts) == 1:
            raise CountError(first, f'the command {problem}')
        half = len(texts) // 2
        left = self._translate(texts[:half], first)
        return left + self._translate(texts[half:], first + half)

    def _run(self, texts):
        """(lines, None), or (None, what went wrong)."""
        data = ''.join(f'{text}\n' for text in texts).encode('utf-8')
        ended = subprocess.run(self.words, input=data, capture_output=True)
        if ended.returncode:
            said = ended.stderr.decode('utf-8', 'replace').strip().splitlines()[-1:]
            return None, f'failed with status {ended.returncode}' + ''.join(
                f': {line[:200]}' for line in said
            )
        try:
            found = ended.stdout.decode('utf-8').split('\n')
        except UnicodeDecodeError:
            return None, 'wrote bytes that are not UTF-8'
        if found[-1] == '':
            found.pop()
        if len(found) != len(texts):
            return None, f'wrote {len(found):,} lines for {len(texts):,}'
        return found, None
