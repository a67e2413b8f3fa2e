"""The tokenizer of a pretrained text encoder: by name, from a folder, or from a bare vocabulary."""

import os
import re
from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from basic import runtime  # noqa: F401  (lets transformers import beside a torchvision of another build)
from basic.command import is_out_of_memory
from basic.errors import DataError, UnreachableError
from basic.foreign import read_json
from basic.pretrained.hub import NeedsCodeError, load_pretrained, reason, refuse_empty

# Only the main process tokenises. Unless told so, tokenizers warns each time a loader's worker is
# forked.
os.environ.setdefault('TOKENIZERS_PARALLELISM', 'true')

SPECIAL = {
    'unk_token': '[UNK]',
    'cls_token': '[CLS]',
    'sep_token': '[SEP]',
    'pad_token': '[PAD]',
    'mask_token': '[MASK]',
}

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
MBERT_TOKENS = 119_547  # of bert-base-multilingual-cased, the BERT of the paper
UNTOLD = {'PreTrainedTokenizer', 'PreTrainedTokenizerBase', 'TokenizersBackend', 'AutoTokenizer'}


def load_tokenizer(name_or_folder, lowercase):
    """The fast tokenizer of a pretrained model, without truncation or padding.

    Args:
        name_or_folder: hub name (taken from the local cache if it is there), folder as transformers
            or `save_tokenizer` saves it, or a WordPiece vocabulary: vocab.txt, or a folder with no
            more than that.
        lowercase: switch lower-casing and accent stripping on, whatever the tokenizer's own setting
            is (as released with the cased multilingual BERT). False: leave the tokenizer as it is;
            a bare vocabulary is cased. 'auto': as `lowercases` says.
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
    if lowercases(tokenizer, lowercase):
        if not isinstance(backend.model, models.WordPiece):
            raise DataError(
                "text.lowercase=True needs a WordPiece tokenizer such as mBERT's, but that of "
                f'{name_or_folder} is {type(backend.model).__name__}; set text.lowercase=auto'
            )
        chinese = getattr(backend.normalizer, 'handle_chinese_chars', True)
        backend.normalizer = normalizers.BertNormalizer(
            clean_text=True, handle_chinese_chars=chinese, strip_accents=True, lowercase=True
        )
    return tokenizer


def lowercases(tokenizer, lowercase):
    """Whether lower-casing and accent stripping are switched on: what text.lowercase asks for.

    Args:
        lowercase: True, False, or 'auto': for the vocabulary of the paper's BERT alone, as
            released. Any other model was made for text in its own casing.
    """
    if lowercase != 'auto':
        return lowercase
    model = tokenizer.backend_tokenizer.model
    return isinstance(model, models.WordPiece) and tokenizer.vocab_size == MBERT_TOKENS


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
