"""Captions of the little world's scenes in the demo's languages.

`mention` draws which attributes of a scene a caption speaks of, `describe` says them in one
language as a list of `Piece`, and `render` writes the pieces as text. All chance comes from the
`random.Random` passed in.
"""

import collections
import functools
import re

from util.make_demo.words import (
    ADJECTIVES,
    CZECH,
    GENDERS,
    NOUNS,
    NUMBERS_IN,
    PLACES_IN,
    PUNCTUATION,
    RELATIONS_IN,
    TEMPLATES,
    VERBS,
)
from util.make_demo.world import COLOURS, OBJECTS

# concept: (attribute, value) of a content word, or ('function', X) where X is the attribute that
# the word serves ('template' for a word of the sentence as a whole, 'punctuation' for a mark).
Piece = collections.namedtuple('Piece', 'concept text')

# How often a caption speaks of an attribute; the object always, the last two only together with the
# thing.
MENTIONED = {
    'number': 0.9,
    'colour': 0.85,
    'size': 0.6,
    'action': 0.92,
    'place': 0.75,
    'thing': 0.8,
    'thing_colour': 0.75,
    'relation': 0.7,
}
FULL_STOP = 0.7  # the share of captions that end with one


def mention(scene, rng):
    """Draw the attributes that one caption of the scene speaks of: a frozenset of names, always
    with 'object'."""
    names = {
        name for name, share in MENTIONED.items() if rng.random() < share and getattr(scene, name)
    }
    return frozenset(
        names | {'object'}
        if 'thing' in names
        else names - {'thing_colour', 'relation'} | {'object'}
    )


def function(text, serves='template'):
    """The pieces of a function word: one, or none where the language says nothing."""
    return (
        [Piece(('function', 'punctuation' if text in PUNCTUATION else serves), text)]
        if text
        else []
    )


class Speaker:
    """What one caption says in one language: builds the parts that the templates put in order."""

    def __init__(self, scene, lang, rng, mentioned):
        self.scene, self.lang, self.rng, self.mentioned = scene, lang, rng, mentioned
        self.plural = scene.number != 'one'

    def word(self, name, words):
        """The pieces of one attribute (none if it is not mentioned) and the synonym they come
        from."""
        value = getattr(self.scene, name)
        forms = self.rng.choice(words[self.lang][value])
        return ([Piece((name, value), forms[0])] if name in self.mentioned else []), forms

    def adjective(self, name, gender, case):
        """An adjective's pieces; case: 0 and 1 a subject in the singular and the plural, 2 and 3
        within a phrase."""
        pieces, forms = self.word(name, ADJECTIVES)
        text = forms[0]
        if self.lang == 'de' and len(forms) == 1:
            text += 'en' if case > 1 else 'e' if case else {'m': 'er', 'f': 'e', 'n': 'es'}[gender]
        elif self.lang == 'fr' and len(forms) > 1:
            text = forms[2 * (case == 1) + (gender == 'f')]
        elif self.lang == 'cs':
            text = forms[1] if case == 1 and gender == 'ma' else text[:-1] + CZECH[case][gender]
        return [piece._replace(text=text) for piece in pieces]

    def attributed(self, names, noun, gender, case):
        """A noun with its adjectives, which tell the named attributes, in the order of the
        language."""
        adjectives = [
            piece
            for name in names
            if getattr(self.scene, name)
            for piece in self.adjective(name, gender, case)
        ]
        if self.lang == 'fr':
            after = [piece for piece in adjectives if piece.concept[1] in COLOURS]
            return [piece for piece in adjectives if piece not in after] + noun + after
        if self.lang == 'zh':  # 红色的大狗: only the last one may lack its 的
            adjectives.sort(key=lambda piece: not piece.text.endswith('的'))
            adjectives[:-1] = [
                piece._replace(text=piece.text.rstrip('的') + '的') for piece in adjectives[:-1]
            ]
        return adjectives + noun

    def number(self, gender, measure):
        """The number word, agreeing with its noun; an article or 'some' where the number is not
        mentioned."""
        said, key = 'number' in self.mentioned, self.scene.number
        if not said and (self.lang == 'cs' or not self.plural and self.lang in ('zh', 'ja')):
            return []
        synonyms = NUMBERS_IN[self.lang]['some' if self.plural and not said else key]
        forms = self.rng.choice(synonyms) if said or self.plural else synonyms[0]
        text = forms[GENDERS[self.lang].index(gender)] if len(forms) > 1 else forms[0]
        if self.lang == 'ja':
            text += measure if said else measure + 'か'
        pieces = [Piece(('number', key), text)] if said else function(text, 'number')
        return pieces + function(measure, 'number') if self.lang == 'zh' else pieces

    def subject(self):
        """The number's pieces, the noun phrase's pieces."""
        noun, forms = self.word('object', NOUNS)
        gender = forms[-1].split()[-1 if self.plural else 0]
        if self.lang not in ('zh', 'ja'):
            noun = [piece._replace(text=forms[self.plural]) for piece in noun]
        return self.number(gender, forms[-1]), self.attributed(
            ('size', 'colour'), noun, gender, int(self.plural)
        )

    def verb(self):
        """The finite verb's pieces, the gerund's pieces."""
        pieces, forms = self.word('action', VERBS)
        finite = forms[self.plural != (self.lang == 'en')] if len(forms) > 1 else forms[0]
        return [piece._replace(text=finite) for piece in pieces], [
            piece._replace(text=forms[-1]) for piece in pieces
        ]

    def place(self):
        """The place's pieces, with its preposition."""
        pieces, forms = self.word('place', PLACES_IN)
        preposition = function(forms[0], 'place') if pieces and len(forms) > 1 else []
        return preposition + [piece._replace(text=forms[-1]) for piece in pieces]

    def thing(self):
        """The thing with its colour, and where the group is as seen from it."""
        if not self.scene.thing or not self.mentioned & {'thing', 'thing_colour', 'relation'}:
            return []
        said, article = 'relation' in self.mentioned, ''
        relation, *case = self.rng.choice(
            RELATIONS_IN[self.lang][self.scene.relation if said else 'beside']
        )
        at = (
            [Piece(('relation', self.scene.relation), relation)]
            if said
            else function(relation, 'relation')
        )
        noun, forms = self.word('thing', NOUNS)
        gender = forms[-1].split()[0]
        case = int(case[0]) if case else 2 if self.lang == 'de' else 0
        if self.lang == 'cs':
            noun = [piece._replace(text=forms[case]) for piece in noun]
        elif self.lang in ('en', 'de', 'fr'):
            article = self.rng.choice(
                {
                    'en': 'a the',
                    'fr': 'une' if gender == 'f' else 'un',
                    'de': 'einer der' if gender == 'f' else 'einem dem',
                }[self.lang].split()
            )
        phrase = self.attributed(('thing_colour',), noun, gender, case)
        if self.lang in ('zh', 'ja'):
            link = function('の', 'thing') if self.lang == 'ja' else []
            return ([] if link else function('一' + forms[1], 'thing')) + phrase + link + at
        return at + (function(article, 'thing') if phrase else []) + phrase


@functools.cache
def template_tokens(template):
    """[(kind, letter, before, after), ...] of a template; kind: 'need', 'may', 'lack' or 'word'
    (with its text)."""
    tokens = []
    for token in template.split():
        match = re.fullmatch(r'(-?)(?:([^A-Z+]+)\+)?([SNVGPTLX])(?:\+([^A-Z+?]+))?(\??)', token)
        lack, before, letter, after, may = (
            match.groups() if match else ('', '', token.replace('_', ' '), '', '')
        )
        kind = 'lack' if lack else 'may' if may else 'need' if match else 'word'
        tokens.append((kind, letter, before or '', after or ''))
    return tokens


@functools.cache
def fitting(lang, parts):
    """The templates of a language that can say these parts, all of them and nothing else."""
    return [template for template in TEMPLATES[lang] if fits(template, parts)]


def fits(template, parts):
    """Whether a template can say these parts, a set of letters, and nothing else."""
    kinds = [(kind, letter) for kind, letter, _, _ in template_tokens(template) if kind != 'word']
    used = {letter for kind, letter in kinds if kind != 'lack'}
    if (
        'V' in parts
        and not {'V', 'G'} & used
        or any(letter in parts and not {letter, 'L'} & used for letter in 'PT')
    ):
        return False
    return all(
        (letter in parts) == (kind == 'need')
        for kind, letter in kinds
        if kind != 'may' and letter != 'S'
    )


def describe(scene, lang, rng, mentioned=None):
    """A caption of the scene as a list of `Piece`.

    mentioned: names of the attributes to speak of (drawn with `mention` if None). The values of the
    scene may also be those of a `translate`d one (a thing as the object, a size as the colour).
    """
    mentioned = mention(scene, rng) if mentioned is None else frozenset(mentioned)
    order = rng.random()
    speaker = Speaker(scene, lang, rng, mentioned)
    parts = dict.fromkeys('NSVGPTLX', [])
    number, noun = speaker.subject()
    parts.update({'N': number, 'S': noun} if lang == 'ja' else {'S': number + noun})
    parts['V'], parts['G'] = speaker.verb()
    parts['P'], parts['T'] = speaker.place(), speaker.thing()
    link = (
        function({'zh': '的', 'ja': 'の'}.get(lang), 'place') if parts['P'] and parts['T'] else []
    )
    parts['L'] = parts['P'] + link + parts['T']
    parts['X'] = function('いる' if scene.object in OBJECTS and scene.object != 'car' else 'ある')
    templates = fitting(lang, frozenset(letter for letter in parts if parts[letter]))
    pieces = []
    for kind, text, before, after in template_tokens(templates[int(order * len(templates))]):
        if kind == 'word':
            singular, _, plural = text.partition('/')
            pieces += function(
                rng.choice((plural if plural and speaker.plural else singular).split('|'))
            )
        elif kind != 'lack' and parts[text]:
            pieces += function(before) + parts[text] + function(after)
    return (
        pieces + function('。' if lang in ('zh', 'ja') else '.')
        if rng.random() < FULL_STOP
        else pieces
    )


def render(pieces, lang):
    """The text of the pieces, with the spaces, capitals and contractions of the language."""
    if lang in ('zh', 'ja'):
        return ''.join(piece.text for piece in pieces).lstrip('，、')
    text = re.sub(r' (?=[,.])', '', ' '.join(piece.text for piece in pieces)).lstrip(', ')
    if lang == 'en':
        text = re.sub(r'\ba (?=[aeiou])', 'an ', text)
    elif lang == 'fr':
        text = re.sub(r'\bde (?=une?\b)', "d'", text)
    return text[:1].upper() + text[1:]
