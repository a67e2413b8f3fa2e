"""Draw the demo: a few training scenes with their captions, and what a model finds for one query.

    python -m util.make_demo.picture ROOTPATH/multi30k/runs/multi30k_de/seed_1 --output demo.png

The font has Latin, Greek and Cyrillic letters: take German, French or Czech.
"""

import argparse
import sys
import textwrap
from functools import partial
from pathlib import Path

from PIL import Image, ImageDraw

from basic.board import EDGE, INK, PAPER, SIDE, TEXT, draw, font, thumbnail
from basic.checkpoint import load_checkpoint
from basic.command import command
from basic.collection import Collection
from basic.examples import search_examples
from basic.files import write_atomically
from evaluation import assemble, encode, root_of

COLUMNS = 5  # scenes in a row
CHARACTERS = 24  # of a line below a scene
PALE = '#666666'  # colour of a translation


def find_query(checkpoint, rootpath, caption_id=None):
    """(basic.examples.Example, basic.thumbnails.Media): a search in the test split.

    `caption_id` is such as 904456578#0; None means the first query whose right scene comes first.
    """
    config = checkpoint.config
    assembled = assemble(config, rootpath, splits=('test',), device='cpu', checkpoint=checkpoint)
    model, eval_set = assembled.model, assembled.loaders['test']
    if eval_set.pictures is None:
        raise ValueError(f'{checkpoint.path}: there are no pictures of its test items to look at')
    examples = search_examples(
        encode(model, eval_set, 'cpu'),
        eval_set,
        config,
        queries=len(eval_set.caption_ids),
        top=COLUMNS,
    )
    for example in examples:
        if example.caption_id == caption_id or (caption_id is None and example.rank == 1):
            return example, eval_set.pictures
    raise ValueError(f"no test query '{caption_id}'; the first is {examples[0].caption_id}")


def find_scenes(config, rootpath, names=None):
    """([(visual id, English, translation)], Media) of the named scenes, or of the first."""
    collection = Collection(config, rootpath)
    files = collection.captions('train')
    texts = {}  # of each scene the first caption
    for (visual, _), en, tgt in zip(files['en'].ids, files['en'].texts, files['tgt'].texts):
        texts.setdefault(visual, (en, tgt))
    names = names or list(texts)[:COLUMNS]
    for name in names:
        if name not in texts:
            raise ValueError(f"no training scene '{name}' in {files['en'].path}")
    scenes = [(name, *texts[name]) for name in names]
    return scenes, collection.media('train')


def draw_demo(scenes, images, example, pictures):
    """The scenes above, the search below, as a PIL image."""
    cell, heads, letters = SIDE + 2 * EDGE, font(14), font(12)
    wrapped = [
        [
            (line, colour)
            for text, colour in ((en, INK), (tgt, PALE))
            for line in textwrap.wrap(text, CHARACTERS)
        ]
        for _, en, tgt in scenes
    ]
    search = Image.fromarray(draw(example, pictures, beside=COLUMNS))
    # From the top: a heading, the scenes, their captions, a heading, the search.
    below = TEXT + EDGE + cell + TEXT * max(map(len, wrapped)) + 2 * EDGE
    size = max(cell * len(scenes), search.width), below + TEXT + EDGE + search.height
    sheet = Image.new('RGB', size, PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text(
        (EDGE, 0),
        'Training: English captions and, in grey, their machine translations with their mistakes',
        fill=INK,
        font=heads,
    )
    for column, ((name, _, _), lines) in enumerate(zip(scenes, wrapped)):
        x, y = cell * column + EDGE, TEXT + 2 * EDGE
        sheet.paste(thumbnail(images, name), (x, y))
        for number, (line, colour) in enumerate(lines):
            pen.text((x, y + SIDE + EDGE + TEXT * number), line, fill=colour, font=letters)
    pen.text(
        (EDGE, below),
        f'Test: a query, its machine translation, and the {COLUMNS} best '
        'scenes; the right one is framed',
        fill=INK,
        font=heads,
    )
    sheet.paste(search, (0, below + TEXT + EDGE))
    return sheet


@command('make_demo_picture')
def main(argv=None):
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog='python -m util.make_demo.picture',
        description=(
            'Draw training scenes of the demo, and what a trained model finds for one test query.'
        ),
    )
    parser.add_argument('run', metavar='RUN', help='run folder of a demo of raw images')
    parser.add_argument('--output', metavar='FILE', required=True, help='PNG file to write')
    parser.add_argument('--query', metavar='ID', help='caption id (default: the first one found)')
    parser.add_argument(
        '--scenes',
        metavar='ID,...',
        type=lambda text: text.split(','),
        help=f'training scenes (default: the first {COLUMNS})',
    )
    args = parser.parse_args(argv)
    checkpoint = load_checkpoint(args.run)
    rootpath = root_of(checkpoint.path, checkpoint.config)
    sheet = draw_demo(
        *find_scenes(checkpoint.config, rootpath, args.scenes),
        *find_query(checkpoint, rootpath, args.query),
    )
    # Drawn scenes have few colours: with a palette the file is a third as large.
    write_atomically(Path(args.output), partial(sheet.quantize(256).save, format='PNG'))
    print(f'written: {args.output}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
