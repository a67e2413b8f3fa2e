"""The demo's text encoder: a folder for `text.bert` with an architecture and a vocabulary, without
weights."""

import itertools
import json
import random
from collections import Counter

from util.make_demo.language import describe, render
from util.make_demo.words import FUNCTION_ERRORS, LANGUAGES
from util.make_demo.world import (
    ACTIONS,
    ATTRIBUTES,
    COLOURS,
    NUMBERS,
    OBJECTS,
    PLACES,
    RELATIONS,
    SIZES,
    THINGS,
    Scene,
)

BERT = {
    'model_type': 'bert',
    'hidden_size': 128,
    'num_hidden_layers': 2,
    'num_attention_heads': 4,
    'intermediate_size': 384,
    'max_position_embeddings': 128,
    'type_vocab_size': 2,
    'hidden_act': 'gelu',
    'hidden_dropout_prob': 0.1,
    'attention_probs_dropout_prob': 0.1,
    'layer_norm_eps': 1e-12,
    'initializer_range': 0.02,
    'pad_token_id': 0,
}


def write_bert(folder):
    """config.json and vocab.txt of a small BERT without weights; the vocabulary covers every
    language of the demo."""
    write_text_encoder(folder, BERT, build_vocabulary())


def write_text_encoder(folder, architecture, vocabulary):
    """A folder for `text.bert` without weights: architecture (a BERT config but for its size),
    vocabulary."""
    (folder / 'vocab.txt').write_text(
        ''.join(f'{token}\n' for token in vocabulary), encoding='utf-8'
    )
    (folder / 'config.json').write_text(
        json.dumps({**architecture, 'vocab_size': len(vocabulary)}, indent=2) + '\n'
    )
    (folder / 'tokenizer_config.json').write_text(
        json.dumps({'do_lower_case': True, 'tokenizer_class': 'BertTokenizer'}, indent=2) + '\n'
    )


def build_vocabulary():
    """WordPiece tokens: special ones, every character alone and inside a word, then words by
    falling frequency."""
    from tokenizers import normalizers, pre_tokenizers

    normalizer = normalizers.BertNormalizer(
        lowercase=True, strip_accents=True, handle_chinese_chars=True
    )
    splitter = pre_tokenizers.BertPreTokenizer()
    words = Counter()
    for lang in LANGUAGES:
        for text in every_word(lang):
            words.update(
                word for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text))
            )
    characters = sorted(set(''.join(words)) | set('abcdefghijklmnopqrstuvwxyz0123456789.,'))
    ranked = sorted(
        (word for word in words if len(word) > 1), key=lambda word: (-words[word], word)
    )
    return [
        '[PAD]',
        '[UNK]',
        '[CLS]',
        '[SEP]',
        '[MASK]',
        *characters,
        *(f'##{c}' for c in characters),
        *ranked,
    ]


# --------------------------------------------------------------------------------------- every word


class Fixed(random.Random):
    """Always takes the nth option, and `quantile` for random(): walks through all choices in
    turn."""

    def __init__(self, nth, quantile):
        super().__init__(0)
        self.nth, self.quantile = nth, quantile

    def choice(self, seq):
        return seq[self.nth % len(seq)]

    def random(self):
        return self.quantile


def vocabulary_scenes():
    """(scene, mentioned, quantiles for `Fixed`) in which every word takes each of its forms."""
    nouns, adjectives, everything = OBJECTS + THINGS, COLOURS + SIZES, frozenset(ATTRIBUTES)
    for noun, number, adjective, lost in itertools.product(
        nouns, NUMBERS, adjectives, ('size', 'number')
    ):
        yield Scene(noun, adjective, number, adjective, 'run', 'beach'), everything - {lost}, (0.0,)
    for noun, adjective, relation, lost in itertools.product(
        nouns, adjectives, RELATIONS, ('size', 'relation')
    ):
        yield (
            Scene('dog', 'red', 'one', 'big', 'run', 'beach', noun, adjective, relation),
            everything - {lost},
            (0.0,),
        )
    for noun, number, (action, place) in itertools.product(
        ('dog', 'car'), NUMBERS, zip(ACTIONS, PLACES)
    ):
        for thing, lost in itertools.product(('tree', ''), ('number', 'action', 'place', 'size')):
            scene = Scene(
                noun, 'red', number, 'big', action, place, thing, thing and 'blue', thing and 'left'
            )
            yield scene, everything - {lost}, (0.0, 0.2, 0.4, 0.6, 0.8, 0.95)


def every_word(lang):
    """Yield texts in which every word form that `describe` and `translate` can write occurs at
    least once."""
    yield ('' if lang in ('zh', 'ja') else ' ').join(FUNCTION_ERRORS[lang])
    texts = (
        render(describe(scene, lang, Fixed(nth, quantile), names), lang)
        for scene, names, quantiles in vocabulary_scenes()
        for nth in range(3)
        for quantile in quantiles
    )
    yield from dict.fromkeys(texts)
