"""Own tables of captions: CSV, TSV and JSON-lines, whose columns are named by option."""

import csv
import difflib
import io
from dataclasses import dataclass

from basic.errors import DataError, first_five
from basic.foreign import parse_json
from basic.ids import read_bytes
from util.import_captions.splits import split_name

ID_COLUMNS = 'id image image_id image_name file filename file_name video video_id videoID'.split()


@dataclass(slots=True)
class Caption:
    """A caption as it was read: the item's name, its language, where it stands."""

    name: str
    lang: str
    text: str
    split: str | None
    place: str


def read_table(source, options, lang):
    """The captions of a CSV or TSV file with a header.

    The separator is the one of comma, semicolon, tab and | that is most frequent in the header.
    """
    path, text = source.path, _text(source.path)
    head = text.partition('\n')[0]
    delimiter = max(',;\t|', key=head.count)
    rows = csv.reader(io.StringIO(text, newline=''), delimiter=delimiter, strict=True)
    header, columns = None, {}
    while True:
        before = rows.line_num + 1
        try:
            row = next(rows, None)
        except csv.Error as error:
            raise DataError(
                f'{path}:{before}: not a row of a table ({error}); a field with a quotation mark, '
                'the separator or a line break stands in "...", with each mark in it doubled'
            ) from None
        if row is None:
            return
        if not any(cell.strip() for cell in row):
            continue
        if header is None:
            header = [cell.strip() for cell in row]
            columns = _columns(header, options, path)
            continue
        if len(row) != len(header):
            raise DataError(
                f'{path}:{before}: {len(row)} fields, but the header has {len(header)} '
                f'({first_five(header)}); put a field that has {delimiter!r} in it in "..."'
            )
        yield from _captions(dict(zip(header, row)), columns, path, before)


def read_records(source, options, lang):
    """The captions of JSON objects, one a line, or of a JSON list of them.

    A value may be a list of captions.
    """
    path, text = source.path, _text(source.path)
    if text.lstrip().startswith('['):
        records = list(enumerate(parse_json(text, [dict], path), start=1))
    else:
        records = [
            (number, parse_json(line, dict, f'{path}:{number}'))
            for number, line in enumerate(text.split('\n'), start=1)
            if line.strip()
        ]
    keys = list(dict.fromkeys(key for _, record in records for key in record))
    columns = _columns(keys, options, path)
    for number, record in records:
        yield from _captions(record, columns, path, number)


def _text(path):
    data = read_bytes(path)
    try:
        return data.decode('utf-8')
    except UnicodeDecodeError as error:
        raise DataError(
            f'{path}:{data[: error.start].count(10) + 1}: not UTF-8; save it as "CSV UTF-8", or '
            'convert it, for example with iconv -f WINDOWS-1252 -t utf-8'
        ) from None


def _columns(header, options, path):
    """dict role (id, split, or a language) -> the columns of this role."""
    wanted = {role: list(names) for role, names in options.column.items()}
    there = set(header)
    wanted.setdefault('id', [name for name in ID_COLUMNS if name in there][:1])
    for role in ('split', 'en', options.lang):
        wanted.setdefault(role, [role] if role in there else [])
    for names in wanted.values():
        for name in names:
            if name not in there:
                near = difflib.get_close_matches(name, header, n=1)
                raise DataError(
                    f"{path}: no column '{name}'; it has: {', '.join(header[:20])}"
                    + f" (did you mean '{near[0]}'?)" * bool(near)
                )
    if not wanted['id']:
        raise DataError(
            f'{path}: which column names the image or video? It has: {", ".join(header[:20])}; '
            'give --column id=NAME'
        )
    if not wanted['en'] and not wanted[options.lang]:
        raise DataError(
            f'{path}: which columns are captions? It has: {", ".join(header[:20])}; give '
            f'--column en=NAME and --column {options.lang}=NAME'
        )
    return wanted


def _captions(record, columns, path, number):
    where = f'{path}:{number}'
    name = record.get(columns['id'][0])
    if not isinstance(name, str | int) or isinstance(name, bool) or not str(name).strip():
        raise DataError(f"{where}: column '{columns['id'][0]}' has no id")
    split = None
    if columns['split']:
        split = split_name(str(record.get(columns['split'][0]) or ''), where)
    for lang, names in columns.items():
        for column in names if lang not in ('id', 'split') else ():
            value = record.get(column)
            for text in value if isinstance(value, list) else [value]:
                if text is not None and not isinstance(text, str):
                    raise DataError(f"{where}: column '{column}' is not text")
                yield Caption(str(name), lang, text or '', split, where)
