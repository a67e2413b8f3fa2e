"""The files beside a translation: the sidecar JSON, and the list of flagged captions."""

import hashlib
import json
import time

from basic.caption import read_captions
from basic.files import remove, remove_leftovers, write_atomically
from basic.ids import visual_id
from util.translate import report


def beside(path, ending):
    """A file beside a caption file: x.translation.json for x.caption.txt."""
    stem = path.name.removesuffix('.txt').removesuffix('.caption')
    return path.with_name(f'{stem}{ending}')


def write_reports(job, lines, record):
    """Write the files beside a translation: the list of flagged captions, and the sidecar JSON.

    `job.report` is then (counts, flagged): from `report.summary`, and (id, reasons, source,
    translation) of each flagged caption.

    Args:
        lines: the translations; record: what made them; {} if it is not known.
    """
    sources = [text for part in job.parts() for text in job.texts(part)]
    found = report.flags(sources, lines, job.langs)
    chrf = report.round_trip(texts_of(job.english, job.names()), lines) if job.english else None
    ratio = report.usual_ratio(sources, lines)
    counts = report.summary(found, ratio, chrf, skipped=report.skipped(back=bool(job.english)))
    if record and job.cut():
        counts['cut'] = job.cut()
    names = job.new_names()
    flagged = [
        (names[i], reasons, sources[i], lines[i]) for i, reasons in enumerate(found) if reasons
    ]
    listed, record_file = (beside(job.path, end) for end in ('.flagged.tsv', '.translation.json'))
    for path in (listed, record_file):
        remove_leftovers(path)
    if flagged:
        rows = [('id', 'reasons', 'source', 'translation')]
        rows += [(name, ','.join(why), *map(tidy, texts)) for name, why, *texts in flagged]
        write_atomically(listed, ''.join('\t'.join(row) + '\n' for row in rows))
    else:
        remove(listed)
    if record:
        content = sidecar(job, lines, record, counts)
        write_atomically(record_file, content)
    job.report = counts, flagged


def tidy(text):
    return ' '.join(text.split())


def texts_of(path, names):
    """The captions of a file with these ids, whatever their tags; '' where there is none."""
    found = read_captions(path)
    texts = dict(zip(found.ids, found.texts))
    return [texts.get(key_of(name), '') for name in names]


def sidecar(job, lines, record, counts):
    """The JSON that says how a translation was made."""
    return json.dumps(
        {
            'from': job.langs[0],
            'to': job.langs[1],
            'engine': record,
            'options': job.decides,
            'source': {'file': job.source.name, 'sha256': captions_digest(job)},
            'translations': {'file': job.path.name, 'sha256': digest_of(job.new_names(), lines)},
            'counts': counts,
            'made': time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime()),
        },
        ensure_ascii=False,
        indent=1,
    )


def captions_digest(job):
    return digest_of(job.names(), [text for part in job.parts() for text in job.texts(part)])


def digest_of(names, texts):
    """SHA-256 of the lines of a caption file."""
    lines = (f'{name} {text}\n' for name, text in zip(names, texts, strict=True))
    return hashlib.sha256(''.join(lines).encode('utf-8')).hexdigest()


def is_current(job):
    """Whether a job's file was made by the same options from the same captions."""
    if job.setup is None:
        return False
    try:
        with open(beside(job.path, '.translation.json'), encoding='utf-8') as file:
            found = json.load(file)
        content = hashlib.sha256(job.path.read_bytes()).hexdigest()
        return (
            found['options'] == job.decides
            and found['translations']['sha256'] == content
            and found['source']['sha256'] == captions_digest(job)
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


def key_of(name):
    """(visual id, n) of a caption's id."""
    return visual_id(name.partition('#')[0]), name.rpartition('#')[2]


def flagged_ids(path):
    """The (visual id, n) of the captions in the list of flagged ones beside a translation."""
    listed = beside(path, '.flagged.tsv')
    if not listed.exists():
        return set()
    rows = listed.read_text(encoding='utf-8').split('\n')[1:-1]
    return {key_of(row.split('\t')[0]) for row in rows}
