"""One query on the command line: a table of results, and a page with pictures."""

import base64
import html
import itertools
import unicodedata
from pathlib import Path

from basic.errors import DataError
from basic.files import write_atomically
from util.search.index import Index
from util.search.media import small_jpeg
from util.search.searcher import Searcher, Text

SIDE = 240  # pixels of a picture's longer side on the page
SHOWN = 74  # columns of a caption in the table


def run_query(args, open_model):
    """Answer a query and print the results.

    Args:
        args: of util.search.main.
        open_model: function source -> Retriever.
    """
    index = Index(args.index_folder)
    try:
        index.check_complete()  # before the model is loaded, which takes long
        model = None
        if args.item is None:
            model = open_model(args.model or index.manifest['model']['source'])
        searcher = Searcher(index, model, args.memory)
        title, tables = _answer(searcher, args)
    finally:
        index.close()
    print(title)
    for heading, rows in tables:
        print('\n'.join(['', heading, *_table(rows)]))
    if args.html:
        write_atomically(args.html, page(title, tables))
        print(f'written: {args.html}')
    return 0


def _answer(searcher, args):
    """(title, [(heading, rows)]); a row is (rank, score, id, file, texts)."""
    lang = args.lang or searcher.default_language
    if args.text is not None:
        query = Text(args.text, lang, args.translation, args.weight)
        searcher.check(query)
        (hits,) = searcher.by_text([query], args.top)
        shown_in = searcher.default_language if lang == 'en' else lang
        title = f'{args.text}  ({lang}; score: {searcher.scale(query)})'
        return title, [('items', _item_rows(searcher, hits, shown_in))]
    if args.lang and args.lang not in searcher.index.caption_languages:
        known = ', '.join(searcher.index.caption_languages) or 'in no language'
        raise DataError(f'--lang {args.lang}: the index has captions {known}')
    if args.item is not None:
        (row,) = searcher.index.rows_of_ids([args.item])
        vectors, own = searcher.index.items.vectors([row]), [row]
    else:
        vectors, own = searcher.images([_image(args.image)]), None
    tables = []
    (captions,) = searcher.captions_for(vectors, lang, args.top)
    if captions:
        tables.append((f'captions ({lang})', _caption_rows(searcher, captions, lang)))
    (items,) = searcher.similar(vectors, args.top, own)
    tables.append(('similar items', _item_rows(searcher, items, lang)))
    return args.item or args.image, tables


def _image(path):
    from util.search.media import upright

    if not Path(path).is_file():
        raise DataError(f'--image: no file {path}')
    return upright(path)


def _item_rows(searcher, hits, lang):
    rows = []
    for hit in hits:
        _, name, file = searcher.item(hit.row)
        texts = [text for text, _ in searcher.captions_of(name, lang)]
        rows.append((hit.rank, hit.score, name, file, texts))
    return rows


def _caption_rows(searcher, hits, lang):
    rows = []
    for hit in hits:
        item, text, translation = searcher.caption(lang, hit.row)
        row = searcher.row_of(item)
        file = '' if row is None else searcher.item(row)[2]
        rows.append(
            (hit.rank, hit.score, item, file, [text, translation] if translation else [text])
        )
    return rows


def _table(rows):
    """Lines of rank, score, id and file, with a caption below each."""
    if not rows:
        return ['(none)']
    width = max(2, *(len(name) for _, _, name, _, _ in rows))
    lines = [f'rank   score  {"id".ljust(width)}  file']
    for rank, score, name, file, texts in rows:
        lines.append(f'{rank:4}  {score:6.3f}  {name.ljust(width)}  {file or "-"}')
        lines += [f'      {_cut(text)}' for text in texts[:1]]
    return lines


def _cut(text):
    """A text of at most SHOWN columns; Chinese and Japanese characters take two."""
    text = ' '.join(text.split())
    widths = [1 + (unicodedata.east_asian_width(c) in 'WF') for c in text]
    if sum(widths) <= SHOWN:
        return text
    ends = itertools.accumulate(widths)
    return text[: sum(end <= SHOWN - 3 for end in ends)] + '...'


# --------------------------------------------------------------------------------------- the page

STYLE = """
:root { color-scheme: light dark }
body { font: 16px/1.4 system-ui, sans-serif; margin: 1.5rem auto; max-width: 70rem;
       padding: 0 1rem }
ol { display: grid; gap: 1rem; list-style: none; padding: 0;
     grid-template-columns: repeat(auto-fill, minmax(12rem, 1fr)) }
li { border: 1px solid #8886; border-radius: .5rem; overflow: hidden; overflow-wrap: anywhere }
img, .none { aspect-ratio: 4 / 3; display: block; object-fit: contain; width: 100% }
.none { background: #8882 }
div { padding: .5rem .75rem }
p { margin: .25rem 0 0 }
small { opacity: .75 }
"""


def page(title, tables):
    """The results as one self-contained HTML file."""
    sections = ''.join(
        f'<h2>{html.escape(heading)}</h2><ol>{"".join(map(_card, rows))}</ol>'
        for heading, rows in tables
    )
    name = html.escape(title)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{name}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<style>{STYLE}</style><h1>{name}</h1>{sections}</html>\n'
    )


def _card(row):
    rank, score, name, file, texts = row
    jpeg = small_jpeg(file, SIDE)
    picture = '<span class="none"></span>'
    if jpeg:
        data = base64.b64encode(jpeg).decode('ascii')
        picture = f'<img alt="{html.escape(name)}" src="data:image/jpeg;base64,{data}">'
    captions = ''.join(f'<p>{html.escape(text)}</p>' for text in texts)
    return (
        f'<li>{picture}<div><b>{rank}. {html.escape(name)}</b> <small>{score:.3f}</small>'
        f'{captions}</div></li>'
    )
