"""util/check_captions.py: damaged text, translations that were never made, swapped files, lost
letters."""

import pytest
import tiny
from roots import multi30k

from util.check_captions import ENTITY, TAGGED, WRONG_ENCODING, branch_of, lost_letters
from util.check_data import check_data

COUNT = tiny.SIZES['train']
SENTENCES = [
    f'{colour} {thing} {action}'
    for colour in ('rot', 'blau')
    for thing in ('hund', 'katze', 'haus')
    for action in ('a', 'ein')
]


@pytest.fixture
def root(tmp_path):
    """The tiny collection; every caption of the training split another one, and its tag the
    branch's."""
    root = tiny.make_collection(tmp_path / 'root')
    for role, tag, words in (
        ('enc', 'enc', 'a red dog'),
        ('google_enc2de', 'enc2de', 'ein hund'),
        ('google_enc2de2enc', 'enc2de2enc', 'a red cat'),
    ):
        write(root, role, [f'{words} {sentence}' for sentence in SENTENCES], tag)
    return root


def path_of(root, role):
    return root / f'multi30k/TextData/multi30ktrain_{role}.caption.txt'


def write(root, role, texts, tag='train'):
    path_of(root, role).write_text(
        ''.join(f'train{i}.jpg#{tag}#0 {text}\n' for i, text in enumerate(texts)), encoding='utf-8'
    )


def check(root, vocabulary, *options):
    """(problems, warnings) about the training split, with this text.bert."""
    report = check_data(
        multi30k(f'text.bert={vocabulary}', 'visual.kind=pooled', 'text.lowercase=true', *options),
        root,
        splits=('train',),
    )
    return report.problems, report.warnings


@pytest.fixture
def vocabulary(tmp_path):
    path = tmp_path / 'vocab.txt'
    path.write_text(
        '\n'.join(['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', '.', *tiny.WORDS]) + '\n'
    )
    return path


def test_sound_captions_give_no_warning(root, vocabulary):
    assert check(root, vocabulary) == ([], [])


def test_english_in_place_of_translations(root, vocabulary):
    english = [f'a red dog {sentence}' for sentence in SENTENCES]
    write(root, 'google_enc2de', [f'  {text.upper()}!' for text in english])
    problems, warnings = check(root, vocabulary)
    assert (
        len(problems) == 1
        and '100 % of the captions of' in problems[0]
        and 'were they translated?' in problems[0]
    )
    write(
        root,
        'google_enc2de',
        [*english[:5], *(f'ein hund {sentence}' for sentence in SENTENCES[5:])],
    )
    problems, warnings = check(root, vocabulary)
    assert problems == [] and len(warnings) == 1 and '42 % of the captions' in warnings[0]


def test_back_translations_may_equal_the_english_up_to_a_point(root, vocabulary):
    english = [f'a red dog {sentence}' for sentence in SENTENCES]
    write(root, 'google_enc2de2enc', [*english[:10], 'a cat', 'a house'])
    assert check(root, vocabulary) == ([], [])
    write(root, 'google_enc2de2enc', english)
    problems, warnings = check(root, vocabulary)
    assert problems == [] and 'were they translated?' in warnings[0]


def test_back_translations_that_are_the_translations(root, vocabulary):
    write(root, 'google_enc2de2enc', [f'ein hund {sentence}' for sentence in SENTENCES])
    problems, warnings = check(root, vocabulary)
    assert len(problems) == 1 and 'were they translated back?' in problems[0] and warnings == []


@pytest.mark.parametrize('role', ['enc', 'google_enc2de', 'google_enc2de2enc'])
def test_one_sentence_for_all(root, vocabulary, role):
    write(root, role, ['ein hund'] * COUNT)
    problems, _ = check(root, vocabulary)
    assert any(
        "are identical: 'ein hund'" in text and str(path_of(root, role)) in text
        for text in problems
    )
    write(root, role, ['ein hund'] * 5 + SENTENCES[5:])
    problems, warnings = check(root, vocabulary)
    assert problems == [] and any('42 %' in text and 'are identical' in text for text in warnings)


def test_empty_translations(root, vocabulary):
    write(root, 'google_enc2de', [''] * 7 + SENTENCES[7:])
    problems, warnings = check(root, vocabulary)
    assert len(problems) == 1 and '7 captions of' in problems[0] and 'are empty' in problems[0]
    write(root, 'google_enc2de', [''] + SENTENCES[1:])
    problems, warnings = check(root, vocabulary)
    assert problems == [] and len(warnings) == 1 and '1 captions of' in warnings[0]


@pytest.mark.parametrize(
    'text, words',
    [
        ('ein &#39;hund&#39; rot', "1 caption has HTML entities, such as '&#39;'"),
        ('rot &amp; blau', 'HTML entities'),
        ('ein cafÃ© rot', 'wrong encoding'),
        ('Ð¡Ð¾ hund', 'wrong encoding'),
        ('ä¸­å›½', 'wrong encoding'),
        ('ein \ufffd hund', 'wrong encoding'),
        ('ÄãºÃ hund', 'wrong encoding'),
        ('itâ€™s a dog', 'wrong encoding'),
        ('ein/DT hund/NN a/VB', "part-of-speech tags, such as 'ein/DT'"),
        ('ein_DT hund_NN', 'part-of-speech'),
        ('ein \x07 hund', 'control characters'),
    ],
)
def test_damaged_text(root, vocabulary, text, words):
    texts = [f'ein hund {sentence}' for sentence in SENTENCES]
    write(root, 'google_enc2de', [*texts[:3], text, *texts[4:]], 'enc2de')
    problems, warnings = check(root, vocabulary, 'text.lowercase=false')
    found = [warning for warning in warnings if words in warning]
    assert len(found) == 1 and found[0].startswith(
        f'{path_of(root, "google_enc2de")}:4: 1 caption has'
    )


@pytest.mark.parametrize(
    'text',
    [
        'Tom & Jerry; AT&T',
        'Une fille « blessé\u00a0» à\u00a0« Paris »',
        'Größe „Spaß“',
        'and/or he/she is near the car',
        '一个男人正在跳舞。',
        'Příliš žluťoučký kůň',
        'Мужчина идёт',
        'What??? Why?',
        'snow_man on ice',
        'très été…',
    ],
)
def test_sound_text_is_not_called_damaged(text):
    assert not WRONG_ENCODING.search(text) and not ENTITY.search(text)
    assert sum(bool(TAGGED.fullmatch(word)) for word in text.split()) < 0.6 * len(text.split())


@pytest.mark.parametrize(
    'tag, branch',
    [
        ('enc', 'enc'),
        ('train_enc', 'enc'),
        ('enc2zh', 'enc2zh'),
        ('train_google_enc2cn', 'enc2zh'),
        ('zh2enc', 'zh2enc'),
        ('en2jp2en', 'enc2ja2enc'),
        ('test_fr_2016', 'fr'),
        ('val_de_task1', 'de'),
        ('', None),
        ('x', None),
        ('tag', None),
    ],
)
def test_what_a_tag_says(tag, branch):
    assert branch_of(tag) == branch


def test_swapped_branches(root, vocabulary):
    one, other = path_of(root, 'google_enc2de'), path_of(root, 'google_enc2de2enc')
    first, second = one.read_text(), other.read_text()
    one.write_text(second)
    other.write_text(first)
    problems, warnings = check(root, vocabulary)
    assert problems == [] and len(warnings) == 2
    for warning, path, tag in zip(warnings, (one, other), ('enc2de2enc', 'enc2de')):
        assert str(path) in warning and f"have the tag '{tag}'" in warning and 'swapped' in warning


@pytest.mark.parametrize(
    'text, lost',
    [
        ('Größe café černý й ά Việt', ''),
        ('がい', 'が'),
        ('आदमी के', 'के'),
        ('ผู้', 'ผู'),
        ('அம்மா', 'ம்'),
        ('두 남자', ''),
        ('一个男人', ''),
        ('a ❤\ufe0f', ''),
    ],
)
def test_letters_that_lose_their_marks(text, lost):
    assert lost_letters(text) == lost


def with_language(tmp_path, text):
    path = tmp_path / 'own.txt'
    words = [*tiny.WORDS, *text.split()]
    path.write_text(
        '\n'.join(['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', '.', *words]) + '\n',
        encoding='utf-8',
    )
    return path


def test_letters_taken_apart_are_a_problem_with_a_remedy(root, tmp_path):
    text = '두 남자가 공원에서'
    write(
        root, 'google_enc2de', [f'{text} {text}'] * 4 + [text] * 4 + [f'{text} {text} {text}'] * 4
    )
    problems, _ = check(root, with_language(tmp_path, text))
    assert len(problems) == 1 and problems[0].endswith('set text.lowercase=false')
    assert not any(
        'text.lowercase' in text
        for text in sum(check(root, with_language(tmp_path, text), 'text.lowercase=false'), [])
    )


def test_marks_that_are_stripped_are_a_warning(root, tmp_path):
    text = '犬が いる'
    write(root, 'google_enc2de', [f'{text} {sentence}' for sentence in SENTENCES])
    own = with_language(tmp_path, '犬 が か い る いる')
    problems, warnings = check(root, own)
    assert problems == [] and len(warnings) == 1
    assert (
        "'が'" in warnings[0]
        and 'text.lowercase=false' in warnings[0]
        and 'released' not in warnings[0]
    )
    # then the remedy would not help
    own.with_name('tokenizer_config.json').write_text('{"do_lower_case": true}')
    assert check(root, own) == ([], [])


def test_accents_of_european_languages_are_no_matter(root, tmp_path):
    write(root, 'google_enc2de', [f'grün {sentence}' for sentence in SENTENCES])
    assert check(root, with_language(tmp_path, 'grun grün')) == ([], [])
