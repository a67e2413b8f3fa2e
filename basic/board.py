"""TensorBoard's view of a run: steps, epochs, the config, the test, and what a few queries find.

log.jsonl is the record. A view that cannot be opened or written is said once and stops nothing.
"""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from basic.files import write_atomically

STEP = 'step/'  # tags whose x is the training step; that of all others is the epoch
SIDE, EDGE, TEXT = 160, 5, 18  # pixels: of a picture, of its frame, of a line of text
BESIDE = 3  # pictures in a row: TensorBoard shows a broad image small
RIGHT, OTHER, PAPER, INK = '#1a9641', '#bbbbbb', 'white', 'black'


def open_board(folder, *, epoch=0, step=0):
    """A SummaryWriter for a run's TensorBoard folder, without what came after an epoch and its last
    step."""
    # slow to import, and evaluation has no use for it
    from torch.utils.tensorboard import SummaryWriter

    if epoch:
        forget_later(folder, epoch, step)
    return SummaryWriter(str(folder))


def attempt(function, *args, **options):
    """function(...), or None and a note: what TensorBoard shows must not stop a training."""
    try:
        return function(*args, **options)
    except Exception as error:  # whatever a view raises: the record does not need it
        print(
            f'note: no TensorBoard from here on ({type(error).__name__}: {error}); log.jsonl has'
            ' every epoch',
            flush=True,
        )
        return None


def forget_later(folder, epoch, step):
    """Take out of the event files what a continuation after `epoch`, whose last step was `step`,
    writes again."""
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.record_writer import RecordWriter

    def is_kept(event):
        tag = next((value.tag for value in event.summary.value), '')
        if tag.startswith('test/'):  # of a shorter training; the continuation has a test of its own
            return False
        return event.step <= (step if tag.startswith(STEP) else epoch)

    for path in sorted(Path(folder).glob('events.out.tfevents.*')):
        records = [
            raw for raw in RawEventFileLoader(str(path)).Load() if is_kept(Event.FromString(raw))
        ]

        def write(file, records=records):
            writer = RecordWriter(file)
            for raw in records:
                writer.write(raw)

        write_atomically(path, write)


def add_scalars(board, values, at):
    """Add numbers by their tags; mAP, which files have from 0 to 1, in per cent."""
    for tag, value in values.items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            board.add_scalar(tag, 100 * value if tag.endswith('mAP') else value, at)


def add_code(board, tag, text, at):
    """Add text in a fixed width."""
    board.add_text(tag, '\n'.join(f'    {line}' for line in text.splitlines()), at)


# ------------------------------------------------------------------------------------------- what a
# few queries find


def add_queries(board, examples, at, pictures=None):
    """Show searches: as text, and where there are pictures, as those, the right one in a green
    frame.

    Args:
        examples: list of evaluation.Example.
        at: the epoch.
        pictures: basic.images.ImageSource; None: the visual items are features.
    """
    board.add_text('queries', '\n\n'.join(map(as_markdown, examples)), at)
    for number, example in enumerate(examples, 1) if pictures else ():
        board.add_image(f'queries/{number}', draw(example, pictures), at, dataformats='HWC')


def as_markdown(example):
    """A search as a heading and a table."""

    def cell(text):
        return text.replace('|', '\\|')

    lines = [
        f'**{" / ".join(map(cell, example.texts))}** ({example.caption_id}, rank {example.rank})',
        '',
        '| rank | score | item | one of its captions |',
        '| ---: | ---: | --- | --- |',
    ]
    for found in example.found:
        mark = ' **right**' if found.right else ''
        lines.append(
            f'| {found.rank} | {found.score:.3f} | {cell(found.visual_id)}{mark} |'
            f' {cell(found.caption)} |'
        )
    return '\n'.join(lines)


def font(size=13):
    """A font with Latin, Greek and Cyrillic letters, accents included, which Pillow's own does not
    have."""
    import matplotlib

    return ImageFont.truetype(
        str(Path(matplotlib.get_data_path()) / 'fonts/ttf/DejaVuSans.ttf'), size=size
    )


def draw(example, pictures, *, beside=BESIDE):
    """A search as a picture: (height, width, 3) uint8; `beside`: images in a row."""
    letters, cell = font(), SIDE + 2 * EDGE
    # That has Latin, Greek and Cyrillic letters; the text page has every script.
    lines = [text for text in example.texts if not text or max(text) < '\u0530'] or [
        example.caption_id
    ]
    top, line = TEXT * len(lines) + EDGE, cell + TEXT + EDGE
    sheet = Image.new('RGB', (cell * beside, top + line * -(-len(example.found) // beside)), PAPER)
    pen = ImageDraw.Draw(sheet)
    for number, text in enumerate(lines):
        pen.text((EDGE, TEXT * number), text, fill=INK, font=letters)
    for number, found in enumerate(example.found):
        x, y = cell * (number % beside), top + line * (number // beside)
        pen.rectangle((x, y, x + cell - 1, y + cell - 1), fill=RIGHT if found.right else OTHER)
        sheet.paste(thumbnail(pictures, found.visual_id), (x + EDGE, y + EDGE))
        pen.text(
            (x + EDGE, y + cell),
            f'{found.rank}: {found.score:.3f}{" right" if found.right else ""}',
            fill=RIGHT if found.right else INK,
            font=letters,
        )
    return np.asarray(sheet)


def thumbnail(pictures, name):
    """One picture, SIDE x SIDE, with margins where it is not square; an empty one if it cannot be
    read."""
    square = Image.new('RGB', (SIDE, SIDE), PAPER)
    try:
        image = pictures.read(name, lambda image: image.convert('RGB'))
    except ValueError:
        return square
    scale = SIDE / max(image.size)
    image = image.resize([max(1, round(side * scale)) for side in image.size])
    square.paste(image, [(SIDE - side) // 2 for side in image.size])
    return square
