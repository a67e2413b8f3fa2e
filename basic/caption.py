"""Captions: files, joins between branches, cleaning, tokenising."""

import copy
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from basic import runtime  # noqa: F401  (lets transformers import beside a torchvision of another build)
from basic.command import is_out_of_memory
from basic.errors import DataError, UnreachableError, first_five
from basic.foreign import read_json
from basic.hub import NeedsCodeError, load_pretrained, reason, refuse_empty
from basic.ids import did_you_mean, hidden, lines_of, read_bytes, visual_id

# Only this process tokenises. Unless told so, tokenizers warns each time a loader's worker is
# forked.
os.environ.setdefault('TOKENIZERS_PARALLELISM', 'true')

SPECIAL = {
    'unk_token': '[UNK]',
    'cls_token': '[CLS]',
    'sep_token': '[SEP]',
    'pad_token': '[PAD]',
    'mask_token': '[MASK]',
}
FORM = '<visual id>#<tag>#<n> <caption>'
_SECOND_ID = re.compile(r'\r[^\s#]+#\S*\s')

# Tokenizers that are BERT's own WordPiece, as configurations name them, without 'Fast'; and names
# that say nothing.
PLAIN = {
    'BertTokenizer',
    'DistilBertTokenizer',
    'ElectraTokenizer',
    'MobileBertTokenizer',
    'ConvBertTokenizer',
    'LayoutLMTokenizer',
    'LxmertTokenizer',
    'SqueezeBertTokenizer',
    'SplinterTokenizer',
    'RetriBertTokenizer',
    'DPRContextEncoderTokenizer',
    'DPRQuestionEncoderTokenizer',
    'DPRReaderTokenizer',
    'RealmTokenizer',
}
UNTOLD = {'PreTrainedTokenizer', 'PreTrainedTokenizerBase', 'TokenizersBackend', 'AutoTokenizer'}


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


def load_tokenizer(name_or_folder, lowercase):
    """The fast tokenizer of a pretrained model, without truncation or padding.

    Args:
        name_or_folder: hub name (taken from the local cache if it is there), folder as transformers
            or `save_tokenizer` saves it, or a WordPiece vocabulary: vocab.txt, or a folder with no
            more than that.
        lowercase: switch lower-casing and accent stripping on, whatever the tokenizer's own setting
            is (as released with the cased multilingual BERT). False: leave the tokenizer as it is;
            a bare vocabulary is cased.
    Returns:
        transformers' PreTrainedTokenizerFast.
    Raises:
        UnreachableError: neither here nor to be downloaded.
        DataError: not a tokenizer, one without a fast form, or `lowercase` for one that is not
            WordPiece.
    """
    path = Path(name_or_folder).expanduser()
    vocabulary = path / 'vocab.txt' if path.is_dir() else path
    if vocabulary.is_file() and not (path / 'tokenizer.json').is_file():
        tokenizer = _load_vocabulary(vocabulary, folder=path if path.is_dir() else None)
    elif path.is_dir():
        tokenizer = _load_folder(path)
    else:
        tokenizer = _load_hub(str(name_or_folder))
    try:
        refuse_empty(tokenizer)
    except DataError as error:
        raise DataError(f'{name_or_folder}: {error}') from None
    backend = getattr(tokenizer, 'backend_tokenizer', None)
    if backend is None:
        raise DataError(
            f'{name_or_folder}: its tokenizer, {type(tokenizer).__name__}, has no fast '
            'form (tokenizer.json), which is what is read here; choose a model that has one'
        )
    _refuse_broken(backend, name_or_folder)
    backend.no_truncation()
    backend.no_padding()
    if lowercase:
        if not isinstance(backend.model, models.WordPiece):
            raise DataError(
                "text.lowercase=True needs a WordPiece tokenizer such as mBERT's, but that of "
                f'{name_or_folder} is {type(backend.model).__name__}; set text.lowercase=False'
            )
        chinese = getattr(backend.normalizer, 'handle_chinese_chars', True)
        backend.normalizer = normalizers.BertNormalizer(
            clean_text=True, handle_chinese_chars=chinese, strip_accents=True, lowercase=True
        )
    return tokenizer


def _refuse_broken(backend, name):
    """Raise DataError for a tokenizer.json that contradicts itself: some show it only in use."""
    try:
        backend.encode('a')
    except BaseException as error:
        panicked = type(error).__name__ == 'PanicException'  # of the Rust library: no Exception
        if is_out_of_memory(error) or not (panicked or isinstance(error, Exception)):
            raise
        raise DataError(
            f'{name}: its tokenizer.json contradicts itself ({reason(error)}): fetch it again'
        ) from None


def save_tokenizer(tokenizer, folder):
    """Write the tokenizer into `folder`, so that load_tokenizer(folder, lowercase) gives the same
    ids again.

    Raises:
        OSError: it cannot be written, a full disk included.
    """
    try:
        tokenizer.save_pretrained(str(folder))
    except Exception as error:  # the tokenizers library raises Exception itself
        number = re.search(r'\(os error (\d+)\)', str(error))
        if not number or isinstance(error, OSError):
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(folder)) from None


def _load_vocabulary(path, folder):
    """The tokenizer of a vocabulary, of the kind that the files beside it name; BERT's if none
    does.

    Args:
        path: vocab.txt.
        folder: the one that it lies in, or None where the vocabulary itself was named.
    """
    own, kind = _read_object(path.with_name('tokenizer_config.json')), _kind_of_tokenizer(path)
    if kind in PLAIN or kind is None:
        return _wordpiece(path, own)
    if folder is None:
        raise DataError(
            f"{path} belongs to a {kind}, as the files beside it say, not to BERT's own "
            'WordPiece; give the folder, if transformers can load its tokenizer'
        )
    return _load_folder(folder, kind)


def _kind_of_tokenizer(vocabulary):
    """The class that the files beside a vocabulary name, without 'Fast'; None if none of them
    does."""
    own = _read_object(vocabulary.with_name('tokenizer_config.json'))
    model = _read_object(vocabulary.with_name('config.json'))
    if any(
        own.get(key) for key in ('mecab_kwargs', 'word_tokenizer_type', 'subword_tokenizer_type')
    ):
        return 'BertJapaneseTokenizer'
    for tree in (own, model):
        name = str(tree.get('tokenizer_class') or '').removesuffix('Fast')
        if name and name not in UNTOLD:
            return name
    code = own.get('auto_map')  # a tokenizer that only code in its own files could load
    code = code.get('AutoTokenizer') if isinstance(code, dict) else code
    if code:
        return str(code[0] if isinstance(code, list) else code)
    from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES

    name = TOKENIZER_MAPPING_NAMES.get(str(model.get('model_type')))
    name = name.removesuffix('Fast') if isinstance(name, str) else None
    return None if name in UNTOLD else name


def _read_object(path):
    """The dict in a JSON file; an empty one where there is no such file."""
    return read_json(path, dict) if path.is_file() else {}


def _wordpiece(path, own):
    """BERT's tokenizer on a vocabulary, a token per line.

    Args:
        own: what tokenizer_config.json says of it, a dict.
    """
    from transformers import PreTrainedTokenizerFast

    lines = path.read_text(encoding='utf-8', errors='replace').removesuffix('\n').split('\n')
    vocabulary = {token: i for i, token in enumerate(lines)}  # the id is the line, counted from 0
    missing = [token for token in SPECIAL.values() if token not in vocabulary]
    if missing:
        raise DataError(
            f'{path}: not a BERT vocabulary, one token a line: it has no {", ".join(missing)}'
        )
    strip = own.get('strip_accents')
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token=SPECIAL['unk_token']))
    backend.normalizer = normalizers.BertNormalizer(
        lowercase=bool(own.get('do_lower_case')),
        strip_accents=strip if isinstance(strip, bool) else None,
        handle_chinese_chars=own.get('tokenize_chinese_chars') is not False,
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.TemplateProcessing(
        single='[CLS] $A [SEP]',
        special_tokens=[(token, vocabulary[token]) for token in ('[CLS]', '[SEP]')],
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, **SPECIAL)


def _load_folder(path, kind=None):
    from transformers import AutoTokenizer

    try:
        return load_pretrained(AutoTokenizer, str(path))
    except NeedsCodeError as error:
        raise DataError(f'{path}: {error}') from None
    except Exception as error:  # damaged files: each kind of tokenizer has errors of its own
        if is_out_of_memory(error):
            raise
        named = f', a {kind} as its files say,' if kind else ''
        raise DataError(
            f'{path} holds no tokenizer{named} that transformers can load '
            f'({reason(error)}); text.bert=FOLDER needs tokenizer.json, or the vocab.txt '
            'of a BERT, beside the weights'
        ) from None


def _load_hub(name):
    from transformers import AutoTokenizer

    try:
        return load_pretrained(AutoTokenizer, name)
    except UnreachableError as error:
        raise UnreachableError(
            f"no tokenizer '{name}': {error}; give a local folder that holds the model and its "
            'tokenizer: text.bert=FOLDER'
        ) from None
    except DataError as error:
        raise DataError(
            f"no tokenizer '{name}': {error}; set text.bert to a hub name, or to a folder that"
            ' holds the model and its tokenizer'
        ) from None


@dataclass
class Tokens:
    """Captions of a batch, padded to the longest: `ids` (N, L) int64, `mask` (N, L) float32, 1 on
    real tokens."""

    ids: torch.Tensor
    mask: torch.Tensor

    def each(self, function):
        """function(tensor) of both."""
        return Tokens(function(self.ids), function(self.mask))

    def to(self, device, non_blocking=False):
        return self.each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self):
        return self.each(torch.Tensor.pin_memory)


class PackedTokens:
    """Captions tokenised once and packed one after the other, special tokens included.

    Attributes:
        ids: all token ids, int32. Caption i is ids[offsets[i]:offsets[i + 1]]; offsets is int64.
        longest: tokens of the longest caption before cutting.
        cut: how many captions were longer than `max_tokens` and lost tokens before their final
            [SEP].
    """

    def __init__(self, texts, tokenizer, max_tokens, batch_size=4096):
        backend = tokenizer.backend_tokenizer
        backend.no_truncation()  # a call of the tokenizer elsewhere may have left them on
        backend.no_padding()
        self.pad_id = tokenizer.pad_token_id or 0
        self.longest = self.cut = 0
        pieces, lengths = [], []
        for start in range(0, len(texts), batch_size):
            for encoding in backend.encode_batch_fast(texts[start : start + batch_size]):
                ids = encoding.ids
                self.longest = max(self.longest, len(ids))
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
    def width(self):
        """Tokens of the longest caption, after cutting."""
        return int(self.lengths.max(initial=0))

    def followed_by(self, other):
        """The captions of both, those of `other` last; both of one tokenizer."""
        both = copy.copy(self)
        both.ids = np.concatenate([self.ids, other.ids])
        both.offsets = np.concatenate([self.offsets, len(self.ids) + other.offsets[1:]])
        both.longest, both.cut = max(self.longest, other.longest), self.cut + other.cut
        return both

    def padded(self, indices, own=slice(None)):
        """Captions indices[own] (N,) as Tokens, padded to the longest of all `indices`."""
        starts, ends = self.offsets[indices], self.offsets[np.asarray(indices) + 1]
        longest = (ends - starts).max()
        starts, ends = starts[own], ends[own]
        places = starts[:, None] + np.arange(longest)  # (N, L)
        real = places < ends[:, None]
        ids = np.where(real, self.ids[np.minimum(places, len(self.ids) - 1)], self.pad_id)
        return Tokens(
            torch.from_numpy(ids.astype(np.int64)), torch.from_numpy(real.astype(np.float32))
        )
