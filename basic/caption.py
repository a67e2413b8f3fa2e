"""Captions: files, joins between branches, cleaning, and their tokens, packed and padded.

The tokenizer itself is of basic/pretrained/tokenizer.py.
"""

import copy
import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from basic.errors import DataError, first_five
from basic.ids import did_you_mean, hidden, lines_of, read_bytes, visual_id

FORM = '<visual id>#<tag>#<n> <caption>'
_SECOND_ID = re.compile(r'\r[^\s#]+#\S*\s')


@dataclass
class CaptionFile:
    """The captions of one file.

    Attributes:
        path: the file.
        ids: (visual id, n) of each caption, in file order; n is the id's last '#' part.
        texts: the captions, in the same order.
    """

    path: Path
    ids: list[tuple[str, str]] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)

    def __len__(self):
        return len(self.ids)

    def take(self, rows):
        """The captions of some rows, in their order."""
        return CaptionFile(self.path, [self.ids[i] for i in rows], [self.texts[i] for i in rows])

    @property
    def visual_ids(self):
        """The visual items, each once, in order of first appearance."""
        return list(dict.fromkeys(visual for visual, _ in self.ids))

    @property
    def empty(self):
        """How many captions have no text; they are kept, and encoded as [CLS] [SEP]."""
        return sum(not text.strip() for text in self.texts)


def read_captions(path, problems=None):
    """Read a caption file: one `<visual id>#<tag>#<n> <caption>` a line, UTF-8; blank lines are
    skipped.

    Ids hold no white space: the first, of whatever kind, ends the id; the caption is all after it.

    Args:
        path: the file.
        problems: a list to which a message is appended for each bad line, which is then left out;
            None: the first bad line raises.
    Returns:
        CaptionFile.
    Raises:
        DataError: no such file, one in UTF-16; without `problems` also an empty file, bytes that
            are not UTF-8, a line without an id or without white space after it, an id without '#'
            or with invisible characters, an id (visual id, n) that stands twice.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f'no caption file {path}')
    file, lines, bad = CaptionFile(path), {}, []
    for number, line in caption_lines(path):
        try:
            key, text = _parse_line(line)
            if key in lines:
                raise ValueError(
                    f"caption {key[1]} of '{key[0]}' stands here again, first in line {lines[key]};"
                    ' remove one of the two'
                )
            lines[key] = number
            file.ids.append(key)
            file.texts.append(text)
        except ValueError as error:
            bad.append(f'{path}:{number}: {error}')
    if not file.ids and not bad:
        bad.append(f"{path}:1: the file is empty; expected lines of '{FORM}'")
    if bad and problems is None:
        raise DataError(bad[0])
    if bad:
        problems.extend(bad)
    return file


def caption_lines(path):
    """Yield (number, bytes) of each line of a caption file that is not blank, without its end."""
    for number, line in lines_of(read_bytes(path)):
        if line.strip():
            yield number, line


def split_line(line):
    """A caption file's line (bytes) as (id, caption): any white space ends the id.

    Raises:
        ValueError: not UTF-8, no id at the head of the line, no white space after it.
    """
    try:
        line = line.decode('utf-8')
    except UnicodeDecodeError as error:
        raise ValueError(
            f'byte {error.start + 1} of the line, 0x{line[error.start]:02x}, is not UTF-8; convert'
            ' the file, for example with iconv -f THEIRS -t utf-8'
        ) from None
    parts = re.match(r'(\S+)\s(.*)', line, re.DOTALL)
    if line[:1].isspace():
        raise ValueError(f"white space before the caption's id in {line[:60]!r}; remove it")
    if not parts:
        raise ValueError(f"no space after the caption's id in {line[:60]!r}; expected '{FORM}'")
    return parts[1], parts[2]


def _parse_line(line):
    """((visual id, n), caption) of a line; ValueError for what could be read in two ways."""
    name, text = split_line(line)
    visual, mark, rest = name.partition('#')
    n = rest.rpartition('#')[2]
    if not visual_id(visual):
        raise ValueError(f"no visual id before the '#' in {name[:60]!r}; expected '{FORM}'")
    if not mark:
        raise ValueError(f"no '#' in the caption's id {name[:60]!r}; expected '{FORM}'")
    if not name.isprintable() and hidden(name):
        raise ValueError(
            f"the caption's id {ascii(name[:60])} holds an invisible character, "
            f'{ascii(hidden(name))}; remove it, or put a space in its place'
        )
    if not re.fullmatch(r'[\w.+-]*', n):  # 'v0#enc#0,Two dogs': the first word would be lost
        raise ValueError(
            f"the caption's id {name[:60]!r} ends with '#{n[:40]}'; expected a number "
            f"and then a space: '{FORM}'"
        )
    if not n.isdecimal() and text.lstrip().startswith('#'):
        raise ValueError(f"white space in the caption's id {name + ' ' + text[:40]!r}; remove it")
    if '\r' in text and _SECOND_ID.search(text):
        raise ValueError(
            'a second caption in the line, after a carriage return; end every line '
            "with a newline: tr '\\r' '\\n' < FILE"
        )
    return (visual_id(visual), n), text


def join_captions(first, other):
    """For each caption of `first`, its counterpart in `other`: the one of the same (visual id, n).

    Args:
        first, other: CaptionFiles. Captions that only `other` has are no error; there are
            len(other) - len(first).
    Returns:
        (len(first),) int64: rows of `other`.
    Raises:
        DataError: captions of `first` have no counterpart.
    """
    row = {key: i for i, key in enumerate(other.ids)}
    missing = [f'{visual}#{n}' for visual, n in first.ids if (visual, n) not in row]
    if missing:
        there = set(other.visual_ids)
        unknown = [visual for visual in first.visual_ids if visual not in there]
        raise DataError(
            f'{len(missing):,} of the {len(first):,} captions of {first.path} have no counterpart'
            f' in {other.path}, which has {len(other):,}:'
            f' {first_five(missing)}{did_you_mean(unknown, other.visual_ids)}; captions are matched'
            ' by <visual id> and <n>: complete the second file, or remove these lines from the'
            ' first'
        )
    return np.fromiter((row[key] for key in first.ids), dtype=np.int64, count=len(first))


def clean_english(text):
    """As released: only A-Za-z0-9 stay, in words one space apart, and a full stop ends it; '' if
    nothing stays."""
    words = re.findall('[A-Za-z0-9]+', text)
    return ' '.join(words) + '.' if words else ''


@dataclass
class Tokens:
    """Captions of a batch, padded to the longest: `ids` (N, L) int64, `mask` (N, L) float32, 1 on
    real tokens, and, where they are cached, the outputs `lower` (N, L, D) float32 of BERT's frozen
    layers, 0 at padding."""

    ids: torch.Tensor
    mask: torch.Tensor
    lower: torch.Tensor | None = None

    def each(self, function):
        """The captions with function(tensor) for each of its tensors."""
        lower = None if self.lower is None else function(self.lower)
        return Tokens(function(self.ids), function(self.mask), lower)

    def to(self, device, non_blocking=False):
        return self.each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self):
        return self.each(torch.Tensor.pin_memory)


class PackedTokens:
    """Captions tokenised once and packed one after the other, special tokens included.

    Attributes:
        ids: all token ids, int32. Caption i is ids[offsets[i]:offsets[i + 1]]; offsets is int64.
        longest_uncut: tokens of the longest caption before cutting.
        cut: how many captions were longer than `max_tokens` and lost tokens before their final
            [SEP].
        lower: None, or a row for each of `ids`: (tokens, D) float32, see Tokens.
    """

    lower = None

    def __init__(self, texts, tokenizer, max_tokens, batch_size=4096):
        backend = tokenizer.backend_tokenizer
        backend.no_truncation()  # a call of the tokenizer elsewhere may have left them on
        backend.no_padding()
        self.pad_id = tokenizer.pad_token_id or 0
        self.longest_uncut = self.cut = 0
        pieces, lengths = [], []
        for start in range(0, len(texts), batch_size):
            for encoding in backend.encode_batch_fast(texts[start : start + batch_size]):
                ids = encoding.ids
                self.longest_uncut = max(self.longest_uncut, len(ids))
                if len(ids) > max_tokens:
                    self.cut += 1
                    ids = ids[: max_tokens - 1] + ids[-1:]
                pieces.append(np.array(ids, dtype=np.int32))
                lengths.append(len(ids))
        self.ids = np.concatenate([*pieces, np.zeros(0, dtype=np.int32)])
        self.offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])

    def __len__(self):
        return len(self.offsets) - 1

    @property
    def lengths(self):
        """(captions,) int64, tokens of each."""
        return np.diff(self.offsets)

    @property
    def longest(self):
        """Tokens of the longest caption, after cutting."""
        return int(self.lengths.max(initial=0))

    def followed_by(self, other):
        """The captions of both, those of `other` last; both of one tokenizer."""
        both = copy.copy(self)
        both.ids = np.concatenate([self.ids, other.ids])
        both.offsets = np.concatenate([self.offsets, len(self.ids) + other.offsets[1:]])
        both.longest_uncut = max(self.longest_uncut, other.longest_uncut)
        both.cut = self.cut + other.cut
        return both

    def padded(self, indices, own=slice(None)):
        """Captions indices[own] (N,) as Tokens, padded to the longest of all `indices`."""
        starts, ends = self.offsets[indices], self.offsets[np.asarray(indices) + 1]
        longest = (ends - starts).max()
        starts, ends = starts[own], ends[own]
        places = starts[:, None] + np.arange(longest)  # (N, L)
        real = places < ends[:, None]
        ids = np.where(real, self.ids[np.minimum(places, len(self.ids) - 1)], self.pad_id)
        lower = None
        if self.lower is not None:
            lower = torch.zeros(*ids.shape, self.lower.shape[1])  # (N, L, D)
            for row, start, end in zip(lower.numpy(), starts, ends):
                row[: end - start] = self.lower[start:end]
        return Tokens(
            torch.from_numpy(ids.astype(np.int64)), torch.from_numpy(real.astype(np.float32)), lower
        )


def pack_texts(config, branch, texts, tokenizer):
    """Tokenise texts of a branch (en, tgt, back) as the config says -> PackedTokens."""
    if {'en': config.text.clean_en, 'back': config.text.clean_back}.get(branch, False):
        texts = [clean_english(text) for text in texts]
    return PackedTokens(texts, tokenizer, max_tokens=config.text.positions)
