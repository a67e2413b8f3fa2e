"""Corrupt a rate of a collection's training translations, into a new caption file beside the
original.

    python -m util.add_noise --rootpath ROOT --config configs/vatex.yaml --rate 0.2 [--kinds
    drop,swap,replace,caption]
                             [--seed 1] [--share 0.3] [--output-suffix _noise0.2] [--overwrite]
                             [key=value ...]

A corrupted caption is corrupted in one way, each of --kinds as likely:

    drop      some words are left out
    swap      some words change places with their right neighbours
    replace   some words are replaced by words of another visual item's caption
    caption   the whole caption is that of another visual item

'some' is --share of the caption's words, one at least; a word is what stands between spaces and
punctuation or, in scripts that put no spaces between words (Chinese, Japanese, Thai and others),
one character. What is between the words stays where it is. The result is a function of the file and
the options, and captions corrupted at a rate are corrupted alike at a higher one. Ids and order
stay, and so do all other captions, byte by byte.
"""

import argparse
import random
import re
import shlex
import sys
from collections import Counter
from pathlib import Path

from basic.caption import caption_lines, read_captions, split_line
from basic.collection import Collection
from basic.command import command
from basic.config import ConfigError, load_config
from basic.files import write_atomically

# Kana, Han, Bopomofo, Thai, Lao, Tibetan, Burmese, Khmer: scripts without spaces.
UNSPACED = (
    '\u3040-\u30ff\u31f0-\u31ff\uff66-\uff9f\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff'
    '\u3005-\u3007\u3100-\u312f\u0e00-\u0eff\u0f00-\u109f\u1780-\u17ff'
)
# What stands between words.
MARKS = (
    r'\s!-/:-@\[-`{-~\u00a1-\u00a9\u00ab-\u00b4\u00b6-\u00b9\u00bb-\u00bf\u060c\u061b\u061f\u0964\u0965'
    r'\u2000-\u206f\u3000-\u303f\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65'
)
WORD = re.compile(rf"[{UNSPACED}]|[^{MARKS}{UNSPACED}]+(?:['’\-][^{MARKS}{UNSPACED}]+)*")


def split_words(text):
    """(words, gaps): text is gaps[0] + words[0] + gaps[1] + ... + gaps[-1]."""
    words, gaps, end = [], [], 0
    for match in WORD.finditer(text):
        words.append(match[0])
        gaps.append(text[end : match.start()])
        end = match.end()
    return words, [*gaps, text[end:]]


def join_words(words, gaps):
    """The inverse of `split_words`."""
    return ''.join(gap + word for gap, word in zip(gaps, words)) + gaps[-1]


def drop(text, other, rng, share):
    """The text without some of its words, but never without all."""
    words, gaps = split_words(text)
    lost = set(chosen(range(len(words)), rng, share, at_most=len(words) - 1))
    kept = [i for i in range(len(words)) if i not in lost]
    # A word goes with the gap before it; the first one that stays has the sentence's own beginning.
    return join_words([words[i] for i in kept], [gaps[0], *(gaps[i] for i in kept[1:]), gaps[-1]])


def swap(text, other, rng, share):
    """The text with some of its words and their right neighbours in each other's place."""
    words, gaps = split_words(text)
    for i in chosen(range(len(words) - 1), rng, share):
        words[i], words[i + 1] = words[i + 1], words[i]
    return join_words(words, gaps)


def replace(text, other, rng, share):
    """The text with some of its words replaced by words of the other."""
    (words, gaps), (source, _) = split_words(text), split_words(other)
    for i in chosen(range(len(words)), rng, share) if source else ():
        words[i] = rng.choice(source)
    return join_words(words, gaps)


def caption(text, other, rng, share):
    """The other text."""
    return other


KINDS = {'drop': drop, 'swap': swap, 'replace': replace, 'caption': caption}


def chosen(places, rng, share, at_most=None):
    """Some of the places, in random order: their share, at least one, if there are any."""
    number = max(1, round(share * len(places)))
    return rng.sample(places, min(number, len(places) if at_most is None else max(0, at_most)))


def corrupt(file, *, rate, kinds, seed, share):
    """Corrupt a rate of captions.

    Args:
        file: basic.caption.CaptionFile.
        rate: of the captions, 0 to 1; kinds: names of `KINDS`; share: of a corrupted caption's
            words.
    Returns:
        dict row -> (kind, new text), of round(rate * captions) rows, or of fewer if the others
        cannot be changed: they have no words, say.
    """
    order = list(range(len(file)))
    random.Random(f'{seed}/order').shuffle(order)
    wanted, result = round(rate * len(file)), {}
    for row in order:
        if len(result) == wanted:
            break
        found = corrupt_one(file, row, kinds, random.Random(f'{seed}/{row}'), share)
        if found:
            result[row] = found
    return result


def corrupt_one(file, row, kinds, rng, share, tries=20):
    """(kind, a text unlike the caption's own); None if no kind makes one.

    Every kind has the same chance to come first; one that changes nothing (two equal words swapped)
    leaves the caption to the next. Its captions of the same visual item say the same, so the other
    caption is another item's.
    """
    text, visual = file.texts[row], file.ids[row][0]
    if not split_words(text)[0]:
        return None
    for kind in rng.sample(kinds, len(kinds)):
        others = (rng.randrange(len(file)) for _ in range(tries))
        other = next(
            (file.texts[i] for i in others if file.ids[i][0] != visual and file.texts[i].strip()),
            '',
        )
        if kind in ('drop', 'swap') or other:
            new = KINDS[kind](text, other, rng, share)
            if new != text:
                return kind, new
    return None


def add_noise(
    config, rootpath, *, rate, kinds=tuple(KINDS), seed=1, share=0.3, suffix=None, overwrite=False
):
    """Write a copy of the training translations in which a rate of captions is corrupted.

    Args:
        config: basic.config.Config, for the file; rootpath: folder that holds the collection's
            folder.
        rate, kinds, seed, share: as `corrupt` has.
        suffix: what the new file's name has before its ending; None: _noise<rate>.
        overwrite: replace such a file.
    Returns:
        (path written, its template for data.captions.train.tgt, captions in all, Counter of
        corrupted ones by kind).
    Raises:
        ValueError: (ConfigError, DataError) an option that cannot be, no such captions, a new file
            that is there.
    """
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown or not kinds or len(set(kinds)) < len(kinds):
        raise ConfigError(
            f'--kinds {",".join(kinds)}: expected different ones of {", ".join(KINDS)}'
        )
    for name, value in (('rate', rate), ('share', share)):
        if not 0 < value <= 1:
            raise ConfigError(f'--{name} {value:g}: expected more than 0, and 1 at most')
    suffix = f'_noise{rate:g}' if suffix is None else suffix
    if not suffix or set(suffix) & set('/{}') or suffix != suffix.strip():
        raise ConfigError(
            f'--output-suffix {suffix!r}: expected a part of a file name, without braces'
        )
    path = Collection(config, rootpath).caption_path('train', 'tgt')
    target = path.with_name(with_suffix(path.name, suffix))
    if target.exists() and not overwrite:
        raise ConfigError(
            f'{target} is there already: --overwrite replaces it, --output-suffix gives another'
            ' name'
        )
    file = read_captions(path)
    found = corrupt(file, rate=rate, kinds=list(kinds), seed=seed, share=share)
    lines = [line for _, line in caption_lines(path)]
    for row, (_, text) in found.items():
        lines[row] = f'{split_line(lines[row])[0]} {text}'.encode()
    write_atomically(target, b''.join(line + b'\n' for line in lines))
    return (
        target,
        with_suffix(config.data.captions.train.tgt, suffix),
        len(file),
        Counter(kind for kind, _ in found.values()),
    )


def with_suffix(name, suffix):
    """A file name or template with the suffix before its ending, `.caption.txt` or any other."""
    stem, ending = re.fullmatch(r'(.+?)(\.caption\.txt|\.[^./{}]*)?', name).groups()
    return f'{stem}{suffix}{ending or ""}'


@command('add_noise')
def main(argv=None):
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog='python -m util.add_noise',
        description=__doc__.partition('\n\n')[0],
        epilog=__doc__.partition('\n\n')[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        '--rootpath',
        required=True,
        metavar='ROOT',
        help="folder that holds the collection's folder",
    )
    parser.add_argument(
        '--config',
        required=True,
        action='append',
        metavar='FILE',
        help='for example configs/vatex.yaml; given again, what a further file says wins',
    )
    parser.add_argument(
        '--rate', required=True, type=float, metavar='R', help='of the captions, 0 to 1'
    )
    parser.add_argument(
        '--kinds', default=','.join(KINDS), metavar='KIND,...', help='default: %(default)s'
    )
    parser.add_argument('--seed', type=int, default=1, metavar='N', help='default: 1')
    parser.add_argument(
        '--share',
        type=float,
        default=0.3,
        metavar='S',
        help="of a corrupted caption's words that drop, swap and replace touch (default: 0.3)",
    )
    parser.add_argument(
        '--output-suffix',
        metavar='TEXT',
        help='of the new file, before .caption.txt (default: _noise<rate>)',
    )
    parser.add_argument(
        '--overwrite', action='store_true', help='replace the new file if it is there'
    )
    parser.add_argument(
        'options',
        nargs='*',
        metavar='key=value',
        help='options of the config, such as data.lang=fr',
    )
    args = parser.parse_intermixed_args(argv)
    path, template, total, kinds = add_noise(
        load_config(args.config, args.options),
        Path(args.rootpath),
        rate=args.rate,
        seed=args.seed,
        kinds=args.kinds.split(','),
        share=args.share,
        suffix=args.output_suffix,
        overwrite=args.overwrite,
    )
    corrupted = sum(kinds.values())
    print(
        f'corrupted {corrupted:,} of {total:,} captions: '
        + ', '.join(f'{kind} {kinds[kind]:,}' for kind in KINDS if kind in kinds)
    )
    if corrupted < round(args.rate * total):
        print(
            f'{round(args.rate * total) - corrupted:,} fewer than asked for: no other caption can'
            ' be changed'
        )
    print(f'written: {path}')
    option = shlex.quote(f'data.captions.train.tgt="{template}"')
    print(f'to train on it: {option} data.noise={args.rate:g}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
