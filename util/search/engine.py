"""A worker thread that answers many queries at a time.

The model and the vectors are used by this thread alone. Queries that arrive while it works are
answered together: their texts are one batch, and the vectors are read once for all of them.
"""

import queue
import threading
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from basic.errors import DataError

AT_ONCE = 64  # jobs that are answered together
WAITING = 2000  # jobs that may wait; more are refused


class Busy(RuntimeError):
    """Too many queries are waiting."""


@dataclass
class Job:
    """A query, and what it is to find.

    Attributes:
        query: a searcher.Text, a PIL image, or the number of an item of the index.
        top: results; lang: of the captions that are found, or shown beside the items.
    """

    query: Any
    top: int
    lang: str
    answer: Future = field(default_factory=Future)


class Engine:
    """Answers jobs in one thread; a context manager.

    Args:
        searcher: util.search.searcher.Searcher.
        show: function (searcher, job, items, captions) -> what the job's answer is; items and
            captions are lists of Hits, None for what such a job does not ask for.
    """

    def __init__(self, searcher, show):
        self.searcher, self.show = searcher, show
        self._jobs = queue.Queue(maxsize=WAITING)
        self._thread = threading.Thread(target=self._work, name='search', daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._jobs.put(None)
        self._thread.join()

    def submit(self, query, *, top, lang):
        """A Future of the answer; Busy if too many wait."""
        job = Job(query, top, lang)
        try:
            self._jobs.put_nowait(job)
        except queue.Full:
            raise Busy('too many queries are waiting: try again in a moment') from None
        return job.answer

    def _work(self):
        while True:
            jobs = [self._jobs.get()]
            while len(jobs) < AT_ONCE and not self._jobs.empty():
                jobs.append(self._jobs.get())
            live = [job for job in jobs if job and job.answer.set_running_or_notify_cancel()]
            try:
                self._answer(live)
            except Exception as error:  # for those who asked; the thread goes on
                for job in live:
                    if not job.answer.done():
                        job.answer.set_exception(error)
            if None in jobs:
                self._refuse_the_rest()
                return

    def _refuse_the_rest(self):
        while not self._jobs.empty():
            job = self._jobs.get()
            if job and job.answer.set_running_or_notify_cancel():
                job.answer.set_exception(Busy('the server is stopping'))

    def _answer(self, jobs):
        self.searcher.refresh()
        kinds = {'text': [], 'image': [], 'item': []}
        for job in jobs:
            kinds[_kind(job.query)].append(job)
        for kind, some in kinds.items():
            self._attempt(getattr(self, f'_answer_{kind}s'), some)

    def _attempt(self, function, jobs):
        """Answer jobs of one kind together or, if one of them fails, each on its own."""
        jobs = [job for job in jobs if not job.answer.done()]
        if not jobs:
            return
        try:
            function(jobs)
        except Exception as error:
            if len(jobs) == 1:
                jobs[0].answer.set_exception(error)
                return
            for job in jobs:
                self._attempt(function, [job])

    def _answer_texts(self, jobs):
        top = max(job.top for job in jobs)
        found = self.searcher.by_text([job.query for job in jobs], top)
        for job, items in zip(jobs, found):
            self._give(job, items[: job.top], None)

    def _answer_images(self, jobs):
        self._answer_vectors(jobs, self.searcher.images([job.query for job in jobs]), None)

    def _answer_items(self, jobs):
        rows = [self.searcher.index.items.row_of(job.query) for job in jobs]
        for job, row in zip(jobs, rows):
            if row is None:
                job.answer.set_exception(DataError(f'the index has no item number {job.query}'))
        known = [(job, row) for job, row in zip(jobs, rows) if row is not None]
        if known:
            rows = np.array([row for _, row in known])
            vectors = self.searcher.index.items.vectors(rows)
            self._answer_vectors([job for job, _ in known], vectors, rows)

    def _answer_vectors(self, jobs, vectors, own):
        """Answer jobs by similar items (other than their own rows) and captions."""
        top = max(job.top for job in jobs)
        items = self.searcher.similar(vectors, top, own)
        for lang in {job.lang for job in jobs}:
            mine = [place for place, job in enumerate(jobs) if job.lang == lang]
            captions = self.searcher.captions_for(vectors[mine], lang, top)
            for place, found in zip(mine, captions):
                job = jobs[place]
                self._give(job, items[place][: job.top], found[: job.top])

    def _give(self, job, items, captions):
        if not job.answer.done():
            job.answer.set_result(self.show(self.searcher, job, items, captions))


def _kind(query):
    if isinstance(query, int):
        return 'item'
    return 'text' if isinstance(query, tuple) else 'image'
