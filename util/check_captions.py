"""The checks of `util.check_data` on captions.

They find captions that do not join, missing translations, damaged text, swapped files, unknown
tokens, and letters that lower-casing damages.
"""

import html
import re
import string
import unicodedata
from collections import Counter

import numpy as np

from basic.caption import caption_lines, join_captions, pack_texts, read_captions

MOST, SOME = 0.5, 0.1  # a share above the first is a problem, above the second a warning
FEW = 5  # fewer identical captions are normal in any file
ROUND_TRIP = 0.9  # share of back-translations that may equal the English
LOST = 0.01  # share of captions that may lose diacritics
SAMPLE = 2000  # captions of a file that are checked letter by letter

# Tags of ids: enc is human English, enc2zh its translation, enc2zh2enc the back-translation.
BRANCHES = {
    'train': {'en': 'enc', 'tgt': 'enc2{lang}', 'back': 'enc2{lang}2enc'},
    'val': {'en': '{lang}2enc', 'tgt': '{lang}'},
}
BRANCHES['test'] = BRANCHES['val']
ENGLISH = ('en', 'enc', 'eng')
OTHER_NAMES = {'cn': 'zh', 'chi': 'zh', 'jp': 'ja', 'cz': 'cs'}

# UTF-8 decoded as Latin-1 or cp1252: what the bytes 0x80 to 0xBF after a first byte become.
_NEXT = (
    '[\u0080-\u00bf\u20ac\u201a\u0192\u201e\u2026\u2020\u2021\u02c6\u2030\u0160\u2039\u0152'
    '\u017d\u2018\u2019\u201c\u201d\u2022\u2013\u2014\u02dc\u2122\u0161\u203a\u0153\u017e'
    '\u0178]'
)
_QUOTES = '[\u00a0\u00ab\u00bb\u2018\u2019\u201c\u201d\u2026\u2013\u2014\u00b0]'  # after a letter
# Signs of text that was decoded or encoded with the wrong encoding.
WRONG_ENCODING = re.compile(
    '|'.join(
        [
            f'[\u00c2-\u00c5\u00ce-\u00d1\u00d8\u00d9]{_NEXT}',
            f'[\u00e0-\u00ef](?!{_QUOTES}{{2}}){_NEXT}{{2}}',
            f'\u00f0{_NEXT}{{3}}',
            '[\u00a1-\u00ff]{4}',  # GBK, or a Cyrillic encoding, read as Latin-1
            '\ufffd',
            '\u951f\u65a4\u62f7',
            '[?]{4}',
        ]
    )
)
ENTITY = re.compile(r'&(?:[A-Za-z][A-Za-z0-9]{1,30}|#\d{1,7}|#[xX][0-9A-Fa-f]{1,6});')
CONTROL = re.compile('[\x00-\x08\x0b-\x1f\x7f-\x9f\ufeff]')
TAGGED = re.compile(r'\S+/[A-Za-z$.,:]{1,5}|\S+_[A-Z]{2,4}\$?')  # dog/n, dog_NN
PUNCTUATION = dict.fromkeys(
    map(ord, (*string.punctuation, *'\u2018\u2019\u201c\u201d\u2026\u3001\u3002\uff0c\uff01\uff1f'))
)


def check_captions(report, collection, split, *, encoders, column):
    """Read, join, tokenise and check the branches of a split.

    Args:
        report: util.check_data.Report; collection: basic.collection.Collection.
        encoders: util.check_data.Encoders.
        column: dict row label -> cell of this split, which is filled in.
    Returns:
        dict branch -> CaptionFile of the files that can be read.
    """
    files = {}
    for branch in collection.branches(split):
        path = report.attempt(collection.caption_path, split, branch)
        if path is not None:
            bad = []
            file = report.attempt(read_captions, path, bad)
            report.add(bad, kind=f'problems in {path}')
            if file is not None:
                files[branch] = file
    first = files.get(collection.branches(split)[0])
    for branch, file in files.items():
        _check_alike(report, file)
        expected = BRANCHES[split][branch].format(lang=collection.lang)
        _check_lines(report, file.path, branch=branch, expected=_spelled(expected))
        if first is not None and file is not first:
            _check_join(report, first, file, branch)
    if 'tgt' in files and 'back' in files:
        _check_back(report, files['tgt'], files['back'])
    if split == 'train' and len(files.get('en', ())) == 1:
        report.add(
            [
                f'{files["en"].path} has one caption; training needs at least two, because the '
                'other pairs of a batch are the negatives'
            ]
        )
    column['branches'] = ' / '.join(files)
    column['captions'] = ' / '.join(f'{len(file):,}' for file in files.values())
    _check_tokens(report, collection, files, encoders, column)
    return files


def _check_join(report, first, file, branch):
    """Join a branch with the first one, English, and check that its captions are translated."""
    rows = report.attempt(join_captions, first, file)
    if rows is None:
        return
    extra = len(file) - len(first)
    if extra:
        report.warn(
            f'{extra:,} captions of {file.path} are not used: {first.path} does not have their ids'
        )
    texts = [file.texts[row] for row in rows]
    same = [text for one, text in zip(first.texts, texts) if _bare(one) == _bare(text) != '']
    share = len(same) / max(1, len(first))
    if len(same) >= FEW and share > (ROUND_TRIP if branch == 'back' else SOME):
        report.note(
            f'{100 * share:.0f} % of the captions of {file.path} are identical to those of '
            f'{first.path}, such as {same[0][:60]!r}: were they translated?',
            problem=share > MOST and branch != 'back',
        )


def _check_back(report, tgt, back):
    """Check that the back-translations are not the translations themselves."""
    texts = {key: _bare(text) for key, text in zip(tgt.ids, tgt.texts)}
    same = sum(texts.get(key, '') == _bare(text) != '' for key, text in zip(back.ids, back.texts))
    share = same / max(1, len(back))
    if same >= FEW and share > SOME:
        report.note(
            f'{100 * share:.0f} % of the captions of {back.path} are identical to those of '
            f'{tgt.path}: were they translated back?',
            problem=share > MOST,
        )


def _bare(text):
    """A caption without case, punctuation and extra spaces, for comparisons."""
    return ' '.join(text.casefold().translate(PUNCTUATION).split())


def _check_alike(report, file):
    """Check that captions are not all the same, as a translation service's error message is."""
    counts = Counter(text.strip() for text in file.texts if text.strip())
    text, count = counts.most_common(1)[0] if counts else ('', 0)
    share = count / max(1, len(file))
    if count >= FEW and share > SOME:
        report.note(
            f'{100 * share:.0f} % of the captions of {file.path} are identical: '
            f'{text[:60]!r}; translate or download them again',
            problem=share > MOST,
        )


def _check_lines(report, path, *, branch, expected):
    """Warn of damaged text, with the first line and a count, and of tags of another branch."""
    found, tags = {}, Counter()
    for number, line in caption_lines(path):
        name, *rest = line.decode('utf-8', errors='replace').split(maxsplit=1) or ['']
        tags[name.partition('#')[2].rpartition('#')[0]] += 1
        for kind, example in _damage(rest[0] if rest else ''):
            count, first, shown = found.get(kind, (0, number, example))
            found[kind] = count + 1, first, shown
    for kind, (count, first, example) in found.items():
        many = '1 caption has' if count == 1 else f'{count:,} captions have'
        report.warn(f'{path}:{first}: {many} {kind.format(example=example)}')
    tagged = Counter()
    for tag, count in tags.items():
        tagged[branch_of(tag)] += count
    most, count = tagged.most_common(1)[0] if tagged else (None, 0)
    if most not in (None, expected) and count > MOST * tagged.total():
        report.warn(
            f"most ids in {path} (branch '{branch}') have the tag '{most}', expected '{expected}': "
            'are files swapped?'
        )


def _damage(text):
    """Yield (message, example) for each kind of damage in a caption; the message has {example}.

    Most captions have none, so a fast test comes before each search.
    """
    entity = '&' in text and ENTITY.search(text)
    if entity and html.unescape(entity[0]) != entity[0]:
        yield "HTML entities, such as '{example}': decode them (Python: html.unescape)", entity[0]
    wrong = (not text.isascii() or '????' in text) and WRONG_ENCODING.search(text)
    if wrong:
        yield (
            "text decoded with the wrong encoding, such as '{example}': decode the original with "
            'the right one, or download the file again',
            text[max(0, wrong.start() - 5) : wrong.end() + 5].strip(),
        )
    elif not text.isprintable() and CONTROL.search(text):
        yield 'control characters, such as {example}: remove them', ascii(CONTROL.search(text)[0])
    if '/' in text or '_' in text:
        words = text.split()
        tagged = [word for word in words if TAGGED.fullmatch(word)]
        if len(tagged) > 1 and len(tagged) >= 0.6 * len(words):
            yield "part-of-speech tags, such as '{example}': use the plain text", tagged[0]


def branch_of(tag):
    """The branch that an id's tag names, or None: 'enc2zh' for 'train_google_enc2cn'."""
    language = '(?:enc?|eng|[a-z]{2,3})'
    for word in re.split('[^a-z0-9]+', tag.lower()):
        if re.fullmatch(f'{language}(?:2{language}){{1,2}}|enc|eng|[a-z]{{2}}', word):
            return _spelled(word)
    return None


def _spelled(tag):
    words = tag.lower().split('2')
    return '2'.join('enc' if word in ENGLISH else OTHER_NAMES.get(word, word) for word in words)


def _check_tokens(report, collection, files, encoders, column):
    """Check tokens: empty captions, unknown tokens, damaged letters, too long captions."""
    config, tokenizer = collection.config, encoders.tokenizer
    empty = {branch: file.empty for branch, file in files.items()}
    packed, unknown = {}, {}
    if tokenizer is not None:
        packed = {
            branch: pack_texts(config, branch, file.texts, tokenizer)
            for branch, file in files.items()
        }
        special = tokenizer.num_special_tokens_to_add()
        # Counted after cleaning, which leaves nothing of Chinese text in the English file.
        empty = {
            branch: int((tokens.lengths <= special).sum()) for branch, tokens in packed.items()
        }
        unknown = {branch: _unknown(tokens.ids, tokenizer) for branch, tokens in packed.items()}
    for branch, file in files.items():
        if empty[branch]:
            most = empty[branch] > MOST * len(file)
            report.note(
                f'{empty[branch]:,} captions of {file.path} are empty'
                + ', or are empty after cleaning' * (branch == 'en')
                + '; translate or download them again' * most,
                problem=most,
            )
    column['empty captions'] = _cells(f'{number:,}' for number in empty.values())
    if tokenizer is None:
        return
    for branch, file in files.items():
        _check_letters(report, collection, file, encoders, unknown[branch])
    column['longest caption, tokens'] = _cells(
        f'{tokens.longest_uncut:,}' for tokens in packed.values()
    )
    column[f'cut to {config.text.positions} tokens'] = _cells(
        f'{tokens.cut:,}' for tokens in packed.values()
    )
    column['unknown tokens, %'] = _cells(f'{100 * share:.1f}' for share in unknown.values())
    longest = max((tokens.longest for tokens in packed.values()), default=0)
    if encoders.bert is not None and longest > encoders.bert.positions:
        positions = encoders.bert.positions
        report.add(
            [
                f'a caption has {longest} tokens, but this BERT has only {positions} positions: '
                f'set text.positions={positions} or less, to cut longer captions'
            ]
        )


def _cells(texts):
    return ' / '.join(texts)


def _check_letters(report, collection, file, encoders, share):
    """Report a file with many unknown tokens, and letters that lower-casing damages.

    Args:
        share: share of unknown tokens in the file.
    """
    texts = file.texts[:: max(1, len(file) // SAMPLE)]
    percent = f'{100 * share:.0f} % of the tokens of {file.path} are unknown to the tokenizer'
    if share > SOME and encoders.lowercase:
        own = encoders.own_tokenizer
        if 2 * _unknown(_ids(texts, own), own) < share:
            report.note(
                f'{percent}, because text.lowercase takes letters apart: set text.lowercase=false',
                problem=share > MOST,
            )
            return
    if share > SOME:
        report.note(
            f'{percent}: does the tokenizer belong to text.bert, and is its vocabulary complete?',
            problem=share > MOST,
        )
    if encoders.lowercase:
        lost = [text for text in texts if lost_letters(text) and _keeps(encoders, text)]
        if len(lost) > LOST * len(texts):
            japanese = collection.lang in ('ja', 'jp')
            share, example = 100 * len(lost) / len(texts), lost_letters(lost[0])
            report.warn(
                f'{share:.0f} % of the captions of {file.path} have letters that text.lowercase '
                f"changes into others, such as '{example}'"
                + ' (the released Japanese models were trained so)' * japanese
                + ': set text.lowercase=false to keep them'
            )


def lost_letters(text):
    """The first letter of a text that is another letter without its accents, or ''.

    Accents of Latin, Greek and Cyrillic letters do not count; vowel signs of Indian scripts and
    the marks of kana do.
    """
    if text.isascii():
        return ''
    base = ''
    for character in unicodedata.normalize('NFD', text):
        if unicodedata.category(character) != 'Mn':
            base = character if character.isalpha() and not _european(character) else ''
        elif base:
            return unicodedata.normalize('NFC', base + character)
    return ''


def _european(letter):
    """Whether a letter is Latin, Greek or Cyrillic."""
    return ord(letter) < 0x530 or 0x1D00 <= ord(letter) < 0x2000 or 0xA640 <= ord(letter) < 0xA800


def _keeps(encoders, text):
    """Whether the tokenizer without text.lowercase keeps the marks that `lost_letters` finds."""
    normalizer = encoders.own_tokenizer.backend_tokenizer.normalizer
    return normalizer is None or lost_letters(normalizer.normalize_str(text)) != ''


def _ids(texts, tokenizer):
    encodings = tokenizer.backend_tokenizer.encode_batch_fast(texts)
    return np.concatenate([[], *(encoding.ids for encoding in encodings)])


def _unknown(ids, tokenizer):
    """Share of unknown tokens."""
    return np.count_nonzero(ids == tokenizer.unk_token_id) / max(1, len(ids))
