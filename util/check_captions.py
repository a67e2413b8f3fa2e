"""What `util.check_data` finds in captions: their joins, their tokens, damaged text, translations that were never made."""
import html
import re
import unicodedata
from collections import Counter

import numpy as np

from basic.caption import caption_lines, join_captions, read_captions
from data_provider import pack_branch

MOST, SOME = 0.5, 0.1                    # a share above the first is a problem, above the second a warning
FEW = 5                                  # captions that may be alike in any file
ROUND_TRIP = 0.9                         # share of back-translations that may equal the English
LOST = 0.01                              # share of captions that may lose marks of their letters
SAMPLE = 2000                            # captions of a file that are tokenised a second time

# What the parts of an id's tag say: enc is human English, enc2zh its translation, enc2zh2enc that one's translation.
ENGLISH = ('en', 'enc', 'eng')
OTHER_NAMES = {'cn': 'zh', 'chi': 'zh', 'jp': 'ja', 'cz': 'cs'}
BRANCHES = {'train': {'en': 'enc', 'tgt': 'enc2{lang}', 'back': 'enc2{lang}2enc'},
            'val': {'en': '{lang}2enc', 'tgt': '{lang}'}}

# UTF-8 read as Latin-1 or cp1252: a first byte, then bytes 0x80 to 0xBF, which cp1252 shows as these.
_NEXT = '[\u0080-\u00bf\u20ac\u201a\u0192\u201e\u2026\u2020\u2021\u02c6\u2030\u0160\u2039\u0152\u017d\u2018\u2019' \
        '\u201c\u201d\u2022\u2013\u2014\u02dc\u2122\u0161\u203a\u0153\u017e\u0178]'
_QUOTES = '[\u00a0\u00ab\u00bb\u2018\u2019\u201c\u201d\u2026\u2013\u2014\u00b0]'     # may well follow a letter in French
WRONG_ENCODING = re.compile(
    f'[\u00c2-\u00c5\u00ce-\u00d1\u00d8\u00d9]{_NEXT}|[\u00e0-\u00ef](?!{_QUOTES}{{2}}){_NEXT}{{2}}|\u00f0{_NEXT}{{3}}'
    '|[\u00a1-\u00ff]{4}'                # GBK, or a Cyrillic encoding, read as Latin-1
    '|\ufffd|\u951f\u65a4\u62f7|[?]{4}')                   # what could not be decoded, or encoded
ENTITY = re.compile(r'&(?:[A-Za-z][A-Za-z0-9]{1,30}|#\d{1,7}|#[xX][0-9A-Fa-f]{1,6});')
CONTROL = re.compile('[\x00-\x08\x0b-\x1f\x7f-\x9f\ufeff]')
TAGGED = re.compile(r'\S+/[A-Za-z$.,:]{1,5}|\S+_[A-Z]{2,4}\$?')


def check_captions(report, collection, split, *, encoders, column):
    """Read, join, tokenise and look at the branches of a split.

    Args:
        report: util.check_data.Report; collection: data_provider.Collection.
        encoders: util.check_data.Encoders.
        column: dict row label -> cell, of this split, to fill in.
    Returns:
        dict role -> CaptionFile, of those that can be read.
    """
    files = {}
    for role in collection.roles(split):
        path = report.attempt(collection.caption_path, split, role)
        if path is not None:
            bad = []
            file = report.attempt(read_captions, path, bad)
            report.add(bad, kind=f'problems in {path}')
            if file is not None:
                files[role] = file
    first = files.get(collection.roles(split)[0])
    for role, file in files.items():
        _check_alike(report, file)
        _check_text(report, file.path)
        _check_tags(report, file.path, split=split, role=role, lang=collection.config.data.lang)
        if first is not None and file is not first:
            _check_join(report, first, file, role)
    if split == 'train' and len(files.get('en', ())) == 1:
        report.add([f"{files['en'].path} has one caption; training needs at least two: the other pairs of a batch are "
                    'the negatives'])
    column['branches'] = ' / '.join(files)
    column['captions'] = ' / '.join(f'{len(file):,}' for file in files.values())
    _check_tokens(report, collection.config, files, encoders, column)
    return files


def _check_join(report, first, file, role):
    """Match a branch with the first one, the English; were its captions translated at all?"""
    rows = report.attempt(join_captions, first, file)
    if rows is None:
        return
    extra = len(file) - len(first)
    if extra:
        report.warn(f'{extra:,} captions of {file.path} are not used: {first.path} has no captions of these ids')
    same = [(one, file.texts[row]) for one, row in zip(first.texts, rows) if _bare(one) == _bare(file.texts[row]) != '']
    share = len(same) / max(1, len(first))
    if len(same) < FEW or share <= (ROUND_TRIP if role == 'back' else SOME):
        return
    text = (f'{100 * share:.0f} % of the captions of {file.path} are the English of {first.path} itself, such as '
            f'{same[0][1][:60]!r}: were they translated?')
    if share > MOST and role != 'back':
        report.add([text])
    else:
        report.warn(text)


def _bare(text):
    """A caption's words, for comparing."""
    return ' '.join(re.findall(r'\w+', text.casefold()))


def _check_alike(report, file):
    """Is one caption the commonest by far? A translation service's error message would be."""
    counts = Counter(text.strip() for text in file.texts if text.strip())
    text, count = counts.most_common(1)[0] if counts else ('', 0)
    share = count / max(1, len(file))
    if count < FEW or share <= SOME:
        return
    said = (f'{100 * share:.0f} % of the captions of {file.path} are identical: {text[:60]!r}; translate or fetch them '
            'again')
    if share > MOST:
        report.add([said])
    else:
        report.warn(said)


def _check_text(report, path):
    """Warn of damaged text, with its first line and how many captions have the like."""
    found = {}
    for number, _, text in _lines(path):
        for kind, example in _damage(text):
            count, line, first = found.get(kind, (0, number, example))
            found[kind] = count + 1, line, first
    for kind, (count, line, example) in found.items():
        many = '1 caption holds' if count == 1 else f'{count:,} captions hold'
        report.warn(f'{path}:{line}: {many} {kind.format(example=example)}')


def _damage(text):
    """Yield (what is wrong, example) of a caption; {example} stands in the first."""
    match = ENTITY.search(text)
    if match and html.unescape(match[0]) != match[0]:
        yield "HTML entities, such as '{example}': decode them, in Python with html.unescape", match[0]
    match = WRONG_ENCODING.search(text)
    if match:
        yield ("text that was decoded with the wrong encoding, such as '{example}': decode the original again, or "
               'fetch the file again', text[max(0, match.start() - 5):match.end() + 5].strip())
    elif CONTROL.search(text):
        yield 'control characters, such as {example}: remove them', ascii(CONTROL.search(text)[0])
    words = text.split()
    tagged = [word for word in words if TAGGED.fullmatch(word)]
    if len(tagged) > 1 and len(tagged) >= 0.6 * len(words):
        yield "part-of-speech tags, such as '{example}': use the plain text", tagged[0]


def _check_tags(report, path, *, split, role, lang):
    """Warn where most of the ids' tags are those of another branch: files may be swapped."""
    branches = BRANCHES['train' if split == 'train' else 'val']
    expected = _spelled(branches[role].format(lang=lang))
    found = Counter(_branch_of(name) for _, name, _ in _lines(path))
    other, count = max(((tag, count) for tag, count in found.items() if tag not in (None, expected)),
                       key=lambda item: item[1], default=(None, 0))
    if count > MOST * sum(found.values()):
        report.warn(f"most ids in {path}, which is branch '{role}' of split '{split}', carry the tag '{other}', where "
                    f"'{expected}' is expected: are files swapped?")


def _branch_of(name):
    """What an id's tag says of its line, such as 'enc2zh' for v0#train_google_enc2zh#0; None where it says nothing."""
    parts = name.split('#')[1:-1]
    for word in re.split('[^a-z0-9]+', '_'.join(parts).lower()):
        if re.fullmatch('(enc?|eng|[a-z]{2,3})(2(enc?|eng|[a-z]{2,3})){1,2}|enc?|eng|[a-z]{2}', word):
            return _spelled(word)
    return None


def _spelled(tag):
    return '2'.join('enc' if word in ENGLISH else OTHER_NAMES.get(word, word) for word in tag.lower().split('2'))


def _lines(path):
    """Yield (number, id, caption) of each line of a caption file."""
    for number, line in caption_lines(path):
        name, *rest = line.decode('utf-8', errors='replace').split(maxsplit=1)[:2] or ['']
        yield number, name, rest[0] if rest else ''


def _check_tokens(report, config, files, encoders, column):
    """Tokenise the branches: empty captions, unknown tokens, lost letters, more tokens than BERT has positions."""
    tokenizer, empty = encoders.tokenizer, {role: file.empty for role, file in files.items()}
    packed, unknown = {}, {}
    if tokenizer is not None:
        packed = {role: pack_branch(config, role, file, tokenizer) for role, file in files.items()}
        special = tokenizer.num_special_tokens_to_add()      # cleaning leaves nothing of an English caption in Chinese
        empty = {role: int((tokens.lengths <= special).sum()) for role, tokens in packed.items()}
        unknown = {role: _unknown(tokens.ids, tokenizer) for role, tokens in packed.items()}
    for role, file in files.items():
        if empty[role]:
            text = (f'{empty[role]:,} captions of {file.path} are empty'
                    + ', or have nothing that cleaning leaves' * (role == 'en'))
            if empty[role] > MOST * len(file):
                report.add([f'{text}; translate or fetch them again'])
            else:
                report.warn(text)
    column['empty captions'] = ' / '.join(f'{number:,}' for number in empty.values())
    if tokenizer is None:
        return
    for role, file in files.items():
        _check_letters(report, config, file, encoders, unknown[role])
    column['longest caption, tokens'] = ' / '.join(f'{tokens.longest:,}' for tokens in packed.values())
    column[f'cut to {config.text.positions} tokens'] = ' / '.join(f'{tokens.cut:,}' for tokens in packed.values())
    column['unknown tokens, %'] = ' / '.join(f'{100 * share:.1f}' for share in unknown.values())
    longest = max((tokens.width for tokens in packed.values()), default=0)
    if encoders.bert is not None and longest > encoders.bert.positions:
        report.add([f'a caption has {longest} tokens, but this BERT only {encoders.bert.positions} positions: set '
                    f'text.positions={encoders.bert.positions} or less, then longer captions are cut'])


def _check_letters(report, config, file, encoders, share):
    """Note a file of which the tokenizer knows little, and letters that lower-casing destroys."""
    texts = file.texts[::max(1, len(file) // SAMPLE)]
    if config.text.lowercase:
        own = encoders.own_tokenizer
        if share > SOME and 2 * _unknown(_ids(texts, own()), own()) < share:
            text = (f'{100 * share:.0f} % of the tokens of {file.path} are unknown to the tokenizer only because '
                    'text.lowercase takes letters apart: set text.lowercase=false')
            if share > MOST:
                report.add([text])
            else:
                report.warn(text)
            return
        lost = [(text, marks) for text in texts if (marks := lost_letters(text)) and _keeps(own(), text)]
        if len(lost) > LOST * len(texts):
            released = (' (the released Japanese models were trained like this)'
                        if config.data.lang in ('ja', 'jp') else '')
            report.warn(f'{100 * len(lost) / len(texts):.0f} % of the captions of {file.path} lose marks that tell '
                        f"letters apart, such as '{lost[0][1]}', because text.lowercase strips them{released}: set "
                        'text.lowercase=false to keep them')
    text = (f'{100 * share:.0f} % of the tokens of {file.path} are unknown to the tokenizer: is it the one that '
            'belongs to text.bert, and is its vocabulary whole?')
    if share > MOST:
        report.add([text])
    elif share > SOME:
        report.warn(text)


def lost_letters(text):
    """The first letter of a text that stripping accents makes another one, or '': accents of Latin, Greek and Cyrillic
    letters do not count, vowel signs of Indian scripts or the marks of kana do."""
    if text.isascii():
        return ''
    base = ''
    for character in unicodedata.normalize('NFD', text):
        if unicodedata.category(character) == 'Mn':
            if base:
                return unicodedata.normalize('NFC', base + character)
        else:
            base = character if character.isalpha() and not _european(character) else ''
    return ''


def _european(letter):
    """Whether a letter is Latin, Greek or Cyrillic."""
    return ord(letter) < 0x530 or 0x1d00 <= ord(letter) < 0x2000 or 0xa640 <= ord(letter) < 0xa800


def _keeps(tokenizer, text):
    """Whether a tokenizer's own normalisation keeps the marks that `lost_letters` speaks of."""
    normalizer = tokenizer.backend_tokenizer.normalizer
    return normalizer is None or lost_letters(normalizer.normalize_str(text)) != ''


def _ids(texts, tokenizer):
    return np.concatenate([[], *(encoding.ids for encoding in tokenizer.backend_tokenizer.encode_batch_fast(texts))])


def _unknown(ids, tokenizer):
    """Share of unknown tokens."""
    return np.count_nonzero(ids == tokenizer.unk_token_id) / max(1, len(ids))
