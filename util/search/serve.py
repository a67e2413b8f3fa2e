"""The search page: a local web server over an index."""

import asyncio
import logging
import socket
import threading
from contextlib import asynccontextmanager
from pathlib import Path

import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from basic.errors import DataError
from basic.foreign import parse_json
from util.search.engine import Busy, Engine
from util.search.guard import Guard, Refused, read_body
from util.search.index import Index
from util.search.media import TooLarge, decode, small_jpeg
from util.search.searcher import Searcher, Text

PAGE = Path(__file__).parent / 'page'
FILES = {
    '/': ('page.html', 'text/html; charset=utf-8'),
    '/page.css': ('page.css', 'text/css; charset=utf-8'),
    '/page.js': ('page.js', 'text/javascript; charset=utf-8'),
}
QUERY = {
    'text': str,
    'lang': str,
    'translation': (str, None),
    'weight': (float, None),
    'top': (int, None),
}
QUERY_BYTES, IMAGE_BYTES = 2**16, 20 * 2**20  # of a body, at most
TEXT_LENGTH = 2000  # characters of a query, at most
TOP, MOST = 24, 240  # results
SMALL, LARGE = 320, 1024  # pixels of a picture's longer side
UPLOADS, DECODING = 16, 2  # images that may be on their way, and that are decoded at a time
SECONDS = 120  # for an answer
SHOWN = 5  # captions of an item beside a result

log = logging.getLogger(__name__)


def make_app(searcher, names=()):
    """The application over a Searcher.

    Args:
        searcher: util.search.searcher.Searcher with its model.
        names: host names of this machine, beside localhost.
    Returns:
        ASGI application.
    """
    engine = Engine(searcher, answer_of)

    @asynccontextmanager
    async def lifespan(_):
        with engine:
            yield

    # No pages that describe the interface: they would load scripts of other sites.
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    _add_errors(app)
    _add_files(app)
    _add_media(app, searcher, threading.Semaphore(4))
    _add_queries(app, engine)
    _add_uploads(app, engine)

    @app.get('/api/about')
    async def about():
        return about_of(searcher)

    return Guard(app, names)


def about_of(searcher):
    """What the page says about the index and its model."""
    index, model = searcher.index, searcher.model
    return {
        'items': index.items.count,
        'model': model.name,
        'languages': [*model.languages, 'en'],
        'caption_languages': index.caption_languages,
        'weight': index.manifest['weight'],
        'images': model.kind == 'clip',
        'largest_upload': IMAGE_BYTES,
    }


def answer_of(searcher, job, items, captions):
    """The answer to a job, as plain data; runs in the engine's thread.

    Args:
        job: engine.Job; items: list of Hits; captions: list of Hits, or None.
    """
    lang = job.lang if searcher.index.captions(job.lang) else searcher.default_language
    answer = {
        'lang': lang,
        'scale': 'cosine',
        'items': [_item(searcher, hit, lang) for hit in items],
        'captions': None,
        'more': len(items) == job.top,
    }
    if captions is not None:
        answer['captions'] = [_caption(searcher, hit, lang) for hit in captions]
        part = searcher.index.captions(lang)
        if part is not None and part.fused:
            weight = searcher.index.manifest['weight']
            answer['scale'] = f'captions: fused at w = {weight:g}, similar: cosine'
    if isinstance(job.query, Text):
        answer['scale'] = searcher.scale(job.query)
    if isinstance(job.query, int):
        row = searcher.index.items.row_of(job.query)
        number, name, file = searcher.item(row)
        own = searcher.captions_of(name, lang)
        answer['item'] = {'number': number, 'id': name, 'picture': bool(file), 'captions': own}
    return answer


def _item(searcher, hit, lang):
    number, name, file = searcher.item(hit.row)
    return {
        'rank': hit.rank,
        'score': hit.score,
        'number': number,
        'id': name,
        'picture': bool(file),
        'captions': searcher.captions_of(name, lang)[:SHOWN],
    }


def _caption(searcher, hit, lang):
    name, text, translation = searcher.caption(lang, hit.row)
    row = searcher.row_of(name)
    number, _, file = (None, None, '') if row is None else searcher.item(row)
    return {
        'rank': hit.rank,
        'score': hit.score,
        'text': text,
        'translation': translation,
        'item': number,
        'id': name,
        'picture': bool(file),
    }


# ------------------------------------------------------------------------------------- the routes


def _add_files(app):
    """The page itself: three files, and nothing else of the disk."""
    for path, (name, kind) in FILES.items():
        content = (PAGE / name).read_bytes()

        async def file(_, content=content, kind=kind):
            return Response(content, media_type=kind, headers={'cache-control': 'no-cache'})

        app.router.add_route(path, file, methods=['GET'])


def _add_media(app, searcher, decoding):
    """Pictures, by the number of an item: the path is the index's, never the client's."""

    def picture(number, side):
        part = searcher.index.items
        row = part.row_of(number)
        file = '' if row is None else part.columns['file'][row]
        with decoding:
            jpeg = small_jpeg(file, side)
        if jpeg is None:
            raise HTTPException(404)
        headers = {'cache-control': 'private, max-age=600'}
        return Response(jpeg, media_type='image/jpeg', headers=headers)

    @app.get('/media/{number}')
    def small(number: int):
        return picture(number, SMALL)

    @app.get('/media/{number}/large')
    def large(number: int):
        return picture(number, LARGE)


def _add_queries(app, engine):
    @app.post('/api/search')
    async def search(request: Request):
        _expect_type(request, ('application/json',))
        body = await read_body(request, QUERY_BYTES)
        asked = parse_json(_text(body), QUERY, 'the query')
        query = Text(
            asked['text'], asked['lang'], asked.get('translation') or '', asked.get('weight')
        )
        if max(len(query.text), len(query.translation)) > TEXT_LENGTH:
            raise Refused(413, f'the query is too long: {TEXT_LENGTH:,} characters are allowed')
        engine.searcher.check(query)
        return await _found(engine, query, asked.get('top') or TOP, asked['lang'])

    @app.get('/api/item/{number}')
    async def item(number: int, top: int = TOP, lang: str = ''):
        return await _found(engine, number, top, lang)


def _add_uploads(app, engine):
    under_way, decoding = asyncio.Semaphore(UPLOADS), asyncio.Semaphore(DECODING)

    @app.post('/api/image')
    async def image(request: Request, top: int = TOP, lang: str = ''):
        # These types are none of a form's, which other sites could send.
        _expect_type(request, ('image/', 'application/octet-stream'))
        if engine.searcher.model.kind != 'clip':
            raise DataError('this model reads features of videos or images, not images')
        if under_way.locked():
            raise Busy('too many images are on their way: try again in a moment')
        async with under_way:
            data = await read_body(request, IMAGE_BYTES)
            async with decoding:  # until the answer, because a decoded image is large
                picture = await asyncio.to_thread(decode, data)
                return await _found(engine, picture, top, lang)


async def _found(engine, query, top, lang):
    """The answer of the engine."""
    if not 1 <= top <= MOST:
        raise DataError(f'expected 1 to {MOST} results')
    lang = lang or engine.searcher.default_language
    answer = engine.submit(query, top=top, lang=lang)
    return JSONResponse(await asyncio.wait_for(asyncio.wrap_future(answer), SECONDS))


def _expect_type(request, kinds):
    if not request.headers.get('content-type', '').startswith(kinds):
        raise Refused(415, f'expected Content-Type {" or ".join(kinds)}')


def _text(body):
    try:
        return body.decode('utf-8')
    except UnicodeDecodeError:
        raise DataError('the query is not UTF-8') from None


def _add_errors(app):
    """Errors as {"error": message}; nothing of the request is repeated in the page's own words."""

    def told(status, message):
        return JSONResponse({'error': message}, status)

    @app.exception_handler(Refused)
    async def refused(_, error):
        return told(error.status, str(error))

    @app.exception_handler(ValueError)
    async def wrong(_, error):
        return told(413 if isinstance(error, TooLarge) else 400, str(error))

    @app.exception_handler(RequestValidationError)
    async def invalid(_, error):
        return told(404, 'not found')

    @app.exception_handler(HTTPException)
    async def http(_, error):
        return told(error.status_code, 'not found' if error.status_code == 404 else error.detail)

    @app.exception_handler(Busy)
    async def busy(_, error):
        return told(503, str(error))

    @app.exception_handler(TimeoutError)
    async def late(_, error):
        return told(504, f'no answer within {SECONDS} seconds')

    @app.exception_handler(ClientDisconnect)
    async def gone(_, error):
        return told(400, 'the client is gone')

    @app.exception_handler(Exception)
    async def ours(_, error):
        return told(500, 'the server failed: its terminal says why')


# --------------------------------------------------------------------------------------- the server


def serve(args, open_model):
    """Serve the page until Ctrl-C.

    Args:
        args: of util.search.main.
        open_model: function source -> Retriever.
    """
    index = Index(args.index_folder)
    index.check_complete()
    listener = _listen(args.host, args.port)
    try:
        model = open_model(args.model or index.manifest['model']['source'])
        searcher = Searcher(index, model, args.memory)
        names = [name.lower() for name in (args.host, socket.gethostname(), *args.allow_host)]
        config = uvicorn.Config(
            make_app(searcher, names),
            log_level='warning',
            access_log=False,  # it would have the queries
            server_header=False,
            proxy_headers=False,
            ws='none',
            timeout_keep_alive=20,
            limit_concurrency=1000,
            h11_max_incomplete_event_size=2**15,
        )
        print(f'{index.items.count:,} items; {_address(listener)}  (Ctrl-C stops)', flush=True)
        if not _is_local(listener):
            print('warning: everyone who reaches this machine can search, and see the pictures')
        uvicorn.Server(config).run(sockets=[listener])
    finally:
        listener.close()
        index.close()
    return 0


def _listen(host, port):
    """A socket that listens; DataError if the address is not free."""
    family = socket.AF_INET6 if ':' in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=512)
    except (OSError, OverflowError) as error:
        raise DataError(
            f'cannot listen at {host}:{port} ({error}): name another --port (0: any that is free)'
        ) from None


def _address(listener):
    host, port = listener.getsockname()[:2]
    shown = {'0.0.0.0': socket.gethostname(), '::': socket.gethostname()}.get(host, host)
    return f'http://[{shown}]:{port}/' if ':' in shown else f'http://{shown}:{port}/'


def _is_local(listener):
    host = listener.getsockname()[0]
    return host == '::1' or host.startswith('127.')
