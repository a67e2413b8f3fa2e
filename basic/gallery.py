"""The example queries of report.html, with their pictures, as HTML."""

import base64
import re
import time
from html import escape

SIDE = 144  # pixels of a picture
PICTURE_BYTES = 2 * 2**20  # of all pictures as text
PICTURE_SECONDS = 30  # for reading them
LETTERS = 240  # of a caption, at most
TITLES = {'best': 'Best', 'median': 'Around the median', 'worst': 'Worst'}


def examples(details):
    """Queries with the best, median and worst ranks, and what they find.

    Args:
        details: dict language -> basic.examples.LanguageDetails.
    """
    pictures, parts = Pictures(), []
    kinds = list(next(iter(details.values())).examples)
    for kind in kinds:
        shown = [
            example_html(example, lang, each.pictures, pictures, with_lang=len(details) > 1)
            for lang, each in details.items()
            for example in each.examples[kind]
        ]
        if shown:
            parts.append(f'<h3>{TITLES[kind]}</h3><div class="examples">{"".join(shown)}</div>')
    words = 'Each query in the target language, its machine translation, and its first five items.'
    words += ' The right one is framed; if it is not among them, it comes last. Below a picture:'
    words += ' rank, score, and a caption of the item.'
    if pictures.left_out:
        words += (
            f' {pictures.left_out:,} pictures are left out, because the page would become too large'
            ' or reading them took too long.'
        )
    if all(each.pictures is None for each in details.values()):
        words += ' There are no pictures of these items here: data.media names where they lie.'
    return f'<p class="small">{words}</p>{"".join(parts)}' if parts else ''


def example_html(example, lang, media, pictures, *, with_lang=False):
    """One query with what it finds."""
    first, *others = example.texts
    tag = f'<span class="tag">{escape(lang)}</span> ' if with_lang else ''
    texts = f'<h4>{tag}<span{_lang(lang)}>{short(first)}</span></h4>' + ''.join(
        f'<p{_lang("en")} class="translation">{short(text)}</p>' for text in others
    )
    spoken = 'en' if others else lang
    items = ''.join(_item(found, media, pictures, spoken) for found in example.found)
    columns = f' class="n{len(example.found)}"' * (len(example.found) < 6)
    return (
        f'<article>{texts}<p class="rank">right item at rank <b>{example.rank:g}</b>'
        f' <span class="id">{short(example.caption_id, 60)}</span></p>'
        f'<ol{columns}>{items}</ol></article>'
    )


def _item(found, media, pictures, spoken):
    """A found item: picture or id, rank, score, caption in the language `spoken`."""
    source = pictures.source(media, found.visual_id)
    shown = (
        f'<img src="{source}" alt="{short(found.caption or found.visual_id)}">'
        if source
        else f'<span class="noimage">{short(found.visual_id, 60)}</span>'
    )
    right = '<b class="tick"><span class="hidden">right: </span>✓</b> ' if found.right else ''
    caption = f'<span class="caption"{_lang(spoken)}>{short(found.caption)}</span>'
    return (
        f'<li{" class=right" if found.right else ""}>{shown}<span class="score"><span>{right}'
        f'{found.rank:g}</span> <span class="value">{found.score:.3f}</span></span>{caption}</li>'
    )


class Pictures:
    """The pictures of a page as data: URIs, as many as size and time allow.

    Attributes:
        left_out: how many were not.
    """

    def __init__(self):
        self.bytes, self.left_out = 0, 0
        self.until, self._known = time.monotonic() + PICTURE_SECONDS, {}

    def source(self, media, name):
        """The data: URI of an item's thumbnail; None if there is none, or no room for it."""
        if media is None:
            return None
        if (id(media), name) not in self._known:
            if time.monotonic() > self.until:
                self.left_out += 1
                return None
            jpeg = media.jpeg(name, SIDE)
            text = jpeg and f'data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}'
            self._known[id(media), name] = text
        found = self._known[id(media), name]
        if found and self.bytes + len(found) > PICTURE_BYTES:
            self.left_out += 1
            return None
        self.bytes += len(found or '')
        return found


def short(text, letters=LETTERS):
    """Escaped text of at most so many letters."""
    text = ' '.join(text.split())
    return escape(text if len(text) <= letters else f'{text[: letters - 1]}…')


def _lang(name):
    """The attributes of text in a language, where its name is a tag that browsers know."""
    known = re.fullmatch('[A-Za-z]{2,3}(-[A-Za-z0-9]{2,8})*', name)
    return f' lang="{name}" dir="auto"' if known else ' dir="auto"'
