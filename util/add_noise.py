"""Write a copy of a collection's training translations in which some captions are corrupted.

    python -m util.add_noise --rootpath ROOT --config configs/vatex.yaml --rate 0.2
                             [--kinds drop,swap,replace,caption] [--seed 1] [--share 0.3]
                             [--output-suffix _noise0.2] [--overwrite] [key=value ...]

Each corrupted caption is corrupted in one way, drawn from --kinds:

    drop      some words are dropped
    swap      some words are swapped with their right neighbours
    replace   some words are replaced by words of another visual item's caption
    caption   the whole caption is replaced by that of another visual item

"Some" means the share --share of the caption's words, at least one. Words are separated by spaces
and punctuation; in scripts without spaces (Chinese, Japanese, Thai and others) each character is a
word. Spaces and punctuation are not moved. The result depends only on the file and the options. A
higher rate corrupts the same captions in the same way, and others too. Ids, order and all other
captions do not change.
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
from basic.languages import one_language
from basic.files import write_atomically

# Kana, Han, Bopomofo, Thai, Lao, Tibetan, Burmese, Khmer: scripts without spaces.
UNSPACED = (
    '\u3040-\u30ff\u31f0-\u31ff\uff66-\uff9f\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff'
    '\u3005-\u3007\u3100-\u312f\u0e00-\u0eff\u0f00-\u109f\u1780-\u17ff'
)
# Spaces and punctuation between words.
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
    """The text without some of its words; at least one word is kept."""
    words, gaps = split_words(text)
    lost = set(chosen(range(len(words)), rng, share, at_most=len(words) - 1))
    kept = [i for i in range(len(words)) if i not in lost]
    # The gap before a word is dropped with it; the first kept word gets the text's first gap.
    return join_words([words[i] for i in kept], [gaps[0], *(gaps[i] for i in kept[1:]), gaps[-1]])


def swap(text, other, rng, share):
    """The text with some of its words swapped with their right neighbours."""
    words, gaps = split_words(text)
    for i in chosen(range(len(words) - 1), rng, share):
        words[i], words[i + 1] = words[i + 1], words[i]
    return join_words(words, gaps)


def replace(text, other, rng, share):
    """The text with some of its words replaced by words of the other text."""
    (words, gaps), (source, _) = split_words(text), split_words(other)
    for i in chosen(range(len(words)), rng, share) if source else ():
        words[i] = rng.choice(source)
    return join_words(words, gaps)


def caption(text, other, rng, share):
    """The other text."""
    return other


KINDS = {'drop': drop, 'swap': swap, 'replace': replace, 'caption': caption}


def chosen(places, rng, share, at_most=None):
    """A share of the places, at least one if there are any, in random order."""
    number = max(1, round(share * len(places)))
    return rng.sample(places, min(number, len(places) if at_most is None else max(0, at_most)))


def corrupt(file, *, rate, kinds, seed, share):
    """Corrupt a share of the captions.

    Args:
        file: basic.caption.CaptionFile.
        rate: share of the captions, 0 to 1.
        kinds: names of `KINDS`.
        share: of a corrupted caption's words.
    Returns:
        dict row -> (kind, new text) of round(rate * captions) rows, or of fewer if the others
        cannot be changed, for example because they have no words.
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
    """(kind, a text that differs from the caption's); None if no kind gives one.

    The kinds are tried in random order until one changes the caption (swapping two equal words
    does not). The other caption is one of another visual item.
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
    """Write a copy of the training translations in which a share of the captions is corrupted.

    Args:
        config: basic.config.Config, which names the file.
        rootpath: folder that holds the collection's folder.
        rate, kinds, seed, share: see `corrupt`.
        suffix: inserted before the ending of the file's name; None: _noise<rate>.
        overwrite: replace the new file if it exists.
    Returns:
        (path written, its template for data.captions.train.tgt, number of captions, Counter of
        corrupted captions by kind).
    Raises:
        ValueError: (ConfigError, DataError) a wrong option, no captions, or the new file exists.
    """
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown or not kinds or len(set(kinds)) < len(kinds):
        raise ConfigError(
            f'--kinds {",".join(kinds)}: expected one or more of {", ".join(KINDS)}, each once'
        )
    for name, value in (('rate', rate), ('share', share)):
        if not 0 < value <= 1:
            raise ConfigError(f'--{name} {value:g}: expected more than 0 and at most 1')
    one_language(config, 'util.add_noise')
    suffix = f'_noise{rate:g}' if suffix is None else suffix
    if not suffix or set(suffix) & set('/{}') or suffix != suffix.strip():
        raise ConfigError(
            f'--output-suffix {suffix!r}: expected a part of a file name, without braces'
        )
    path = Collection(config, rootpath).caption_path('train', 'tgt')
    target = path.with_name(with_suffix(path.name, suffix))
    if target.exists() and not overwrite:
        raise ConfigError(
            f'{target} exists: --overwrite replaces it, --output-suffix gives another name'
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
    """Insert a suffix before the ending of a file name or template (`.caption.txt` or another)."""
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
        help='such as configs/vatex.yaml; a second one replaces values of the first',
    )
    parser.add_argument(
        '--rate', required=True, type=float, metavar='R', help='share of the captions, 0 to 1'
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
        help="share of a corrupted caption's words for drop, swap and replace (default: 0.3)",
    )
    parser.add_argument(
        '--output-suffix',
        metavar='TEXT',
        help='inserted before .caption.txt in the name of the new file (default: _noise<rate>)',
    )
    parser.add_argument(
        '--overwrite', action='store_true', help='replace the new file if it exists'
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
            f'{round(args.rate * total) - corrupted:,} fewer than requested: the other captions'
            ' cannot be changed'
        )
    print(f'written: {path}')
    option = shlex.quote(f'data.captions.train.tgt="{template}"')
    print(f'to train on it: {option} data.noise={args.rate:g}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
