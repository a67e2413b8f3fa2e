"""The TensorBoard log of a run: steps, epochs, the config, the test, and a few queries' results.

log.jsonl is the record. If TensorBoard fails, a note is printed once and the run continues.
"""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from basic.command import signals_held
from basic.files import write_atomically

STEP = 'step/'  # tags plotted against the training step; all others against the epoch
SIDE, EDGE, TEXT = 160, 5, 18  # pixels of an image, its frame, and a line of text
BESIDE = 3  # images per row: TensorBoard shrinks wide images
RIGHT, OTHER, PAPER, INK = '#1a9641', '#bbbbbb', 'white', 'black'


def open_board(folder, *, epoch=0, step=0):
    """A SummaryWriter for a run's TensorBoard folder, without events after an epoch and step."""
    # Imported here because it is slow and evaluation does not need it.
    from torch.utils.tensorboard import SummaryWriter

    if epoch:
        forget_later(folder, epoch, step)
    return SummaryWriter(str(folder))


def attempt(function, *args, **options):
    """Return function(...); if it fails, print a note and return None, so that training goes on."""
    try:
        # TensorBoard's queue, interrupted between two of its steps, keeps its `close` waiting for
        # two minutes.
        with signals_held():
            return function(*args, **options)
    except Exception as error:  # any error: log.jsonl is the record
        print(
            f'note: TensorBoard logging stopped ({type(error).__name__}: {error}); log.jsonl has'
            ' every epoch',
            flush=True,
        )
        return None


def forget_later(folder, epoch, step):
    """Remove the events that a run resumed after `epoch`, with the last step `step`, repeats."""
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.record_writer import RecordWriter

    def is_kept(event):
        tag = next((value.tag for value in event.summary.value), '')
        if tag.startswith('test/'):  # of a shorter training; the resumed run is tested again
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
    """Add numbers by their tags; mAP, which is 0 to 1 in the log, in per cent."""
    for tag, value in values.items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            board.add_scalar(tag, 100 * value if tag.endswith('mAP') else value, at)


def add_code(board, tag, text, at):
    """Add text in a fixed-width font."""
    board.add_text(tag, '\n'.join(f'    {line}' for line in text.splitlines()), at)


# ------------------------------------------------------------------------------------------- what a
# few queries find


def add_queries(board, examples, at, pictures=None):
    """Show the results of queries as text, and with images, the correct one in a green frame.

    Args:
        examples: list of basic.examples.Example.
        at: the epoch.
        pictures: basic.thumbnails.Media; None: there is nothing to look at.
    """
    board.add_text('queries', '\n\n'.join(map(as_markdown, examples)), at)
    for number, example in enumerate(examples, 1) if pictures else ():
        board.add_image(f'queries/{number}', draw(example, pictures), at, dataformats='HWC')


def as_markdown(example):
    """The result of a query as a heading and a table."""

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
    """A font with Latin, Greek and Cyrillic letters and accents, which Pillow's own lacks."""
    import matplotlib

    return ImageFont.truetype(
        str(Path(matplotlib.get_data_path()) / 'fonts/ttf/DejaVuSans.ttf'), size=size
    )


def draw(example, pictures, *, beside=BESIDE):
    """The result of a query as an image (height, width, 3) uint8; `beside`: images per row."""
    letters, cell = font(), SIDE + 2 * EDGE
    # The font has Latin, Greek and Cyrillic letters; TensorBoard's text page has every script.
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
    """The thumbnail of an item on a square with margins; blank if there is none."""
    square, image = Image.new('RGB', (SIDE, SIDE), PAPER), pictures.thumbnail(name, SIDE)
    if image:
        scale = SIDE / max(image.size)
        image = image.resize([max(1, round(side * scale)) for side in image.size])
        square.paste(image, [(SIDE - side) // 2 for side in image.size])
    return square
