"""The search page: its answers, attacks on it, many queries at a time, and a real browser."""

import io
import json
import os
import shutil
import socket
import struct
import threading
import time
import urllib.request
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image
from standin import COLOURS, StandIn, make_index, paint

from basic.errors import DataError
from util.search.engine import Busy, Engine
from util.search.guard import host_name
from util.search.index import Index
from util.search.manifest import CAPTIONS, ITEMS
from util.search.media import PIXELS, TooLarge, decode
from util.search.searcher import Searcher, Text
from util.search.writer import writing

fastapi = pytest.importorskip('fastapi', reason='util/requirements-search.txt')
pytest.importorskip('httpx', reason='of tests/requirements.txt')
uvicorn = pytest.importorskip('uvicorn')

from fastapi.testclient import TestClient  # noqa: E402

from util.search.serve import IMAGE_BYTES, QUERY_BYTES, answer_of, make_app  # noqa: E402

EVIL = '<script>window.hacked = 1</script><img src=x onerror="window.hacked = 1">'
JSON = {'content-type': 'application/json'}
PNG = {'content-type': 'image/png'}


@pytest.fixture(scope='module')
def index(tmp_path_factory):
    """Six painted items with captions, one without a picture, and one that is an attack."""
    folder = tmp_path_factory.mktemp('search')
    made = make_index(folder / 'index', paint(folder))
    secret = folder / 'secret.txt'
    secret.write_text('secret')
    with writing(made) as writer:
        vectors = StandIn().encode_text(['quer', 'schräg'], 'de').numpy()
        files = {'id': [f'evil {EVIL}', 'no picture'], 'file': [str(secret), '']}
        writer.append(ITEMS, vectors, files)
        told = {'item': [f'evil {EVIL}'], 'text': [EVIL], 'translation': [EVIL]}
        writer.append(CAPTIONS + 'de', vectors[:1], told, fused=True)
    return made


@pytest.fixture(scope='module')
def client(index):
    app = make_app(Searcher(Index(index), StandIn()), ['search.example'])
    with TestClient(app, base_url='http://127.0.0.1:8000', raise_server_exceptions=False) as client:
        yield client


def search(client, **query):
    query = {'text': 'rot', 'lang': 'de', **query}
    return client.post('/api/search', content=json.dumps(query), headers=JSON)


def png(colour='blue', size=(40, 30)):
    file = io.BytesIO()
    Image.new('RGB', size, COLOURS[colour]).save(file, 'PNG')
    return file.getvalue()


# --------------------------------------------------------------------------------------- answers


def test_about(client):
    about = client.get('/api/about').json()
    assert (about['items'], about['languages'], about['weight']) == (8, ['de', 'en'], 0.25)


def test_search(client, index):
    answer = search(client, top=3).json()
    assert [item['rank'] for item in answer['items']] == [1, 2, 3] and answer['more']
    first = answer['items'][0]
    assert first['id'] == 'red' and first['captions'] == [['ganz rot', 'red']]
    assert answer['scale'] == 'cosine' and answer['captions'] is None
    picture = client.get(f'/media/{first["number"]}')
    assert picture.headers['content-type'] == 'image/jpeg'
    shown = np.asarray(Image.open(io.BytesIO(picture.content))).mean(axis=(0, 1))
    np.testing.assert_allclose(shown, COLOURS['red'], atol=8)
    assert client.get(f'/media/{first["number"]}/large').status_code == 200
    english = search(client, text='red', lang='en').json()['items'][0]
    assert english['id'] == 'red'


def test_the_weight_ranks(client):
    best = {
        w: search(client, translation='blue', weight=w).json()['items'][0]['id']
        for w in (0, 0.3, 0.9, 1)
    }
    assert best == {0: 'red', 0.3: 'red', 0.9: 'blue', 1: 'blue'}
    answer = search(client, translation='blue', weight=0.3).json()
    assert answer['scale'] == 'fused at w = 0.3'


def test_an_item(client):
    number = search(client, text='gelb').json()['items'][0]['number']
    answer = client.get(f'/api/item/{number}?top=4').json()
    assert answer['item'] == {
        'number': number,
        'id': 'yellow',
        'picture': True,
        'captions': [['ganz gelb', 'yellow']],
    }
    assert answer['captions'][0]['text'] == 'ganz gelb' and len(answer['items']) == 4
    assert number not in [item['number'] for item in answer['items']]


def test_an_image(client):
    answer = client.post('/api/image?top=4', content=png(), headers=PNG).json()
    assert answer['captions'][0]['text'] == 'ganz blau' and answer['items'][0]['id'] == 'blue'


def test_an_index_that_changes_while_it_is_served(tmp_path):
    paths = paint(tmp_path)
    folder = make_index(tmp_path / 'index', paths)
    app = make_app(Searcher(Index(folder), StandIn()))
    with TestClient(app, base_url='http://localhost') as own:
        assert search(own).json()['items'][0]['id'] == 'red'
        with writing(folder) as writer:
            writer.remove(writer.index.rows_of_ids(['red']))
        items = search(own).json()['items']
        assert len(items) == 5 and 'red' not in [item['id'] for item in items]
        assert own.get('/media/0').status_code == 404 and own.get('/media/1').status_code == 200


# --------------------------------------------------------------------------------------- attacks


@pytest.mark.parametrize(
    'path',
    [
        '/media/../../../etc/passwd',
        '/media/..%2f..%2fetc%2fpasswd',
        '/media/%2e%2e/%2e%2e/etc/passwd',
        '/media/0/../../../../etc/passwd',
        '/..%5c..%5csecret.txt',
        '/page.js/../serve.py',
        '/util/search/serve.py',
        '/serve.py',
        '/media//etc/passwd',
        '/media/-1',
        '/media/1e3',
        '/media/99',
        '/media/' + '9' * 400,
        '/media/0%00',
        '/media/6',  # its file is no image
        '/media/7',  # it has none
        '/docs',
        '/redoc',
        '/openapi.json',
        '/api/item/99',
        '/api/item/' + '9' * 400,
    ],
)
def test_paths_that_lead_nowhere(client, path):
    answer = client.get(path)
    assert answer.status_code in (400, 404)
    assert b'root:' not in answer.content and b'secret' not in answer.content
    assert 'default-src' in answer.headers['content-security-policy']


@pytest.mark.parametrize(
    'host, status',
    [
        ('127.0.0.1:8000', 200),
        ('localhost:1', 200),
        ('LOCALHOST', 200),
        ('[::1]:8000', 200),
        ('192.168.1.7:8000', 200),  # an address: no name, which could be made to point here
        ('search.example', 200),
        ('evil.example', 421),
        ('127.0.0.1.evil.example', 421),
        ('localhost.evil.example', 421),
        ('localhost@evil.example', 421),
        ('localhost/evil', 421),
        ('', 421),
    ],
)
def test_only_names_of_this_machine_are_answered(client, host, status):
    for path in ('/', '/media/0', '/api/about'):
        assert client.get(path, headers={'host': host}).status_code == status
    assert host_name('[::1]:8000') == '::1' and host_name('a b') == ''


def test_other_sites_are_refused(client):
    for site in ('cross-site', 'same-site'):
        assert client.get('/media/0', headers={'sec-fetch-site': site}).status_code == 403
        assert client.get('/', headers={'sec-fetch-site': site}).status_code == 200  # a link
    for site in ('same-origin', 'none'):
        assert client.get('/media/0', headers={'sec-fetch-site': site}).status_code == 200
    for kind in ('text/plain', 'application/x-www-form-urlencoded', 'multipart/form-data', ''):
        for path in ('/api/search', '/api/image'):
            answer = client.post(path, content='{}', headers={'content-type': kind})
            assert answer.status_code == 415
    assert not [key for key in client.get('/').headers if key.startswith('access-control')]


def test_headers_of_the_page(client):
    for path in ('/', '/page.js', '/page.css'):
        headers = client.get(path).headers
        policy = headers['content-security-policy']
        assert "script-src 'self'" in policy and 'unsafe' not in policy and '*' not in policy
        assert headers['x-content-type-options'] == 'nosniff'
    page = client.get('/').text
    assert (
        '//' not in page.replace('<!doctype', '') and 'style=' not in page
    )  # nothing from outside


@pytest.mark.parametrize(
    'query, status',
    [
        (b'', 400),
        (b'[]', 400),
        (b'{}', 400),
        (b'{"text": "rot"}', 400),
        (b'{"text": 1, "lang": "de"}', 400),
        (b'{"text": "rot", "lang": "de", "weight": "x"}', 400),
        (b'{"text": "rot", "lang": "de", "weight": NaN}', 400),
        (b'{"text": "rot", "lang": "de", "translation": "red", "weight": 2}', 400),
        (b'{"text": "rot", "lang": "de", "top": -1}', 400),
        (b'{"text": "rot", "lang": "de", "top": 100000000}', 400),
        (b'{"text": "rot", "lang": "../../x"}', 400),
        (b'{"text": "", "lang": "de"}', 400),
        (b'{"text": "\\ud800", "lang": "de"}', 400),
        (b'\xff\xfe', 400),
        (b'[' * 60_000, 400),
        (b'{"text": "' + b'x' * 3000 + b'", "lang": "de"}', 413),
        (b'x' * (QUERY_BYTES + 1), 413),
    ],
)
def test_malformed_queries(client, query, status):
    answer = client.post('/api/search', content=query, headers=JSON)
    assert answer.status_code == status and answer.json()['error']
    assert answer.headers['content-type'] == 'application/json'


def test_huge_bodies(client):
    body = b'\0' * (IMAGE_BYTES + 1)
    assert client.post('/api/image', content=body, headers=PNG).status_code == 413
    sent = []

    def endless():
        for _ in range(200):  # in parts, without a length
            sent.append(1)
            yield b'\0' * 2**20

    assert client.post('/api/image', content=endless(), headers=PNG).status_code == 413
    for length in ('-1', 'x', '1' * 30):
        headers = {**PNG, 'content-length': length}
        assert client.post('/api/image', content=b'x', headers=headers).status_code in (400, 413)


def bomb(width, height):
    """A PNG of some hundred bytes that says it has so many pixels."""

    def chunk(kind, data):
        return (
            struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
        )

    head = struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(b'\0' * 100_000, 9)
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', head) + chunk(b'IDAT', body) + chunk(b'IEND', b'')


@pytest.mark.parametrize(
    'size', [(9000, 9000), (50_000, 50_000), (2**31 - 1, 2**31 - 1), (1, 10**8)]
)
def test_decompression_bombs(client, size):
    answer = client.post('/api/image', content=bomb(*size), headers=PNG)
    assert answer.status_code == 413 and 'pixels' in answer.json()['error']
    assert size[0] * size[1] > PIXELS


def test_what_is_no_image(client):
    file = io.BytesIO()
    Image.new('RGB', (9, 9)).save(file, 'TIFF')
    for data in (
        b'',
        b'x',
        png()[:60],
        b'%!PS-Adobe-3.0 EPSF-3.0\n',
        file.getvalue(),
        EVIL.encode(),
    ):
        answer = client.post('/api/image', content=data, headers=PNG)
        assert answer.status_code == 400 and 'no image that can be read' in answer.json()['error']
    with pytest.raises(TooLarge):
        decode(bomb(10_000, 10_000))
    compressed = io.BytesIO()
    Image.new('L', (9, 9)).save(compressed, 'PNG')
    text = zlib.compress(b'\0' * 5_000_000, 9)  # a bomb of text inside an image
    data = b'a\0\0' + text
    chunk = (
        struct.pack('>I', len(data))
        + b'zTXt'
        + data
        + struct.pack('>I', zlib.crc32(b'zTXt' + data))
    )
    whole = compressed.getvalue()
    with pytest.raises(DataError):
        decode(whole[:33] + chunk + whole[33:])


def test_unexpected_methods(client):
    for method in ('PUT', 'DELETE', 'OPTIONS', 'TRACE'):
        assert client.request(method, '/').status_code == 405
    assert client.get('/api/search').status_code == 405


# ----------------------------------------------------------------------------------- many at once


class Slow(StandIn):
    """A model that takes as long for a batch as a real one on a CPU."""

    def encode_text(self, texts, lang=None, *, batch_size=64):
        time.sleep(0.02 + 0.003 * len(texts))
        assert threading.current_thread().name == 'search'  # never two at a time
        return super().encode_text(texts, lang, batch_size=batch_size)


class Server:
    """A real server of an app on 127.0.0.1; a context manager that gives its address."""

    def __init__(self, app):
        self.listener = socket.create_server(('127.0.0.1', 0), backlog=512)
        config = uvicorn.Config(app, log_level='error', ws='none')
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(
            target=self.server.run, kwargs={'sockets': [self.listener]}, daemon=True
        )

    def __enter__(self):
        self.thread.start()
        while not self.server.started:
            time.sleep(0.02)
        return f'http://127.0.0.1:{self.listener.getsockname()[1]}/'

    def __exit__(self, *_):
        self.server.should_exit = True
        self.thread.join(10)
        self.listener.close()


def test_two_hundred_queries_at_once(index):
    model, names = Slow(), list(COLOURS)
    german = {'red': 'rot', 'green': 'grün', 'blue': 'blau', 'yellow': 'gelb', 'white': 'weiß'}
    german['black'] = 'schwarz'
    with Server(make_app(Searcher(Index(index), model))) as address:

        def one(number):
            name = names[number % 6]
            text = f'{german[name]} {german[name]} {german[name]} {number}'
            body = json.dumps({'text': text, 'lang': 'de'}).encode()
            asked = urllib.request.Request(f'{address}api/search', body, JSON)
            start = time.perf_counter()
            with urllib.request.urlopen(asked, timeout=60) as answer:
                best = json.load(answer)['items'][0]['id']
            return answer.status, name, best, time.perf_counter() - start

        with ThreadPoolExecutor(200) as pool:
            found = list(pool.map(one, range(200)))
    assert [status for status, *_ in found] == [200] * 200  # none lost
    assert all(expected == best for _, expected, best, _ in found)  # and none mixed up
    assert sum(model.calls) == 200 and max(model.calls) > 10  # in batches
    seconds = sorted(seconds for *_, seconds in found)
    assert seconds[197] < 30


def test_one_bad_query_spoils_no_other(index):
    class Fragile(StandIn):
        def encode_text(self, texts, lang=None, *, batch_size=64):
            if any('bad' in text for text in texts):
                raise RuntimeError('bad')
            time.sleep(0.05)
            return super().encode_text(texts, lang, batch_size=batch_size)

    searcher = Searcher(Index(index), Fragile())
    with Engine(searcher, answer_of) as engine:
        texts = ['rot', 'blau', 'bad', 'gelb', 'weiß']
        answers = [engine.submit(Text(text, 'de'), top=1, lang='de') for text in texts]
        answers.append(engine.submit(12345, top=1, lang='de'))
        for text, answer in zip([*texts, 12345], answers):
            if text in ('bad', 12345):
                with pytest.raises((RuntimeError, DataError)):
                    answer.result(10)
            else:
                assert answer.result(10)['items'][0]['rank'] == 1


def test_too_many_queries(index, monkeypatch):
    monkeypatch.setattr('util.search.engine.WAITING', 3)
    engine = Engine(Searcher(Index(index), StandIn()), answer_of)  # not started
    for _ in range(3):
        engine.submit(Text('rot', 'de'), top=1, lang='de')
    with pytest.raises(Busy):
        engine.submit(Text('rot', 'de'), top=1, lang='de')


# ---------------------------------------------------------------------------------- in a browser


@pytest.fixture(scope='module')
def browser():
    webdriver = pytest.importorskip('selenium.webdriver', reason='of tests/requirements.txt')
    chromium = shutil.which('chromium') or shutil.which('google-chrome')
    driver = shutil.which('chromedriver')
    if not chromium or not driver:
        pytest.skip('needs chromium and chromedriver')
    os.environ['SE_OFFLINE'] = 'true'
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for word in ('--headless=new', '--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage'):
        options.add_argument(word)
    options.set_capability('goog:loggingPrefs', {'browser': 'ALL'})
    found = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield found
    found.quit()


class Page:
    """What a person does on the page."""

    def __init__(self, browser, address):
        self.browser = browser
        browser.get(address)
        self.wait(lambda: self.all('#lang option'))

    def all(self, selector):
        return self.browser.find_elements('css selector', selector)

    def one(self, selector):
        return self.all(selector)[0]

    def wait(self, condition):
        end = time.monotonic() + 20
        while True:
            try:
                if found := condition():
                    return found
            except Exception:  # the page is just changing
                if time.monotonic() > end:
                    raise
            assert time.monotonic() < end, self.one('#status').text
            time.sleep(0.03)

    def texts(self, selector):
        return self.browser.execute_script(
            'return [...document.querySelectorAll(arguments[0])].map(x => x.textContent)', selector
        )

    def names(self, where='#items'):
        return [text.partition('. ')[2] for text in self.texts(f'{where} .line span:first-child')]

    def type(self, selector, text):
        self.one(selector).clear()
        self.one(selector).send_keys(text)

    def focused(self):
        return self.browser.execute_script('return document.activeElement.id')


def size(browser, width, height, dark=False):
    scheme = [{'name': 'prefers-color-scheme', 'value': 'dark' if dark else 'light'}]
    metrics = {'width': width, 'height': height, 'deviceScaleFactor': 1, 'mobile': width < 500}
    browser.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', metrics)
    browser.execute_cdp_cmd('Emulation.setEmulatedMedia', {'features': scheme})


def test_in_a_browser(index, browser, tmp_path):
    from selenium.webdriver.common.keys import Keys

    model = StandIn()
    with Server(make_app(Searcher(Index(index), model))) as address:
        size(browser, 1200, 800)
        page = Page(browser, address)
        assert '8 items' in page.one('#about').text and not page.one('#mix').is_displayed()

        # A query, by the keyboard alone: the box has the focus.
        assert page.focused() == 'text'
        browser.switch_to.active_element.send_keys('gelb', Keys.ENTER)
        page.wait(lambda: page.names()[0] == 'yellow')
        assert '8 results (cosine)' in page.one('#status').text
        page.wait(lambda: browser.execute_script('return document.images[1].naturalWidth') > 0)

        # A translation, and the slider ranks live; texts are not encoded again.
        page.type('#text', 'rot')
        page.type('#translation', 'blue')
        page.one('#query button').click()
        page.wait(lambda: 'fused at w = 0.25' in page.one('#status').text)
        assert page.names()[0] == 'red'
        encoded = sum(model.calls)
        slider = page.one('#weight')
        slider.send_keys(Keys.END)
        page.wait(lambda: page.names()[0] == 'blue' and 'w = 1' in page.one('#status').text)
        slider.send_keys(*[Keys.ARROW_LEFT] * 16)
        page.wait(lambda: page.names()[0] == 'red' and 'w = 0.2)' in page.one('#status').text)
        assert page.one('#shown').text == '0.20' and sum(model.calls) == encoded

        # What comes from the index is text.
        assert f'evil {EVIL}' in page.names() and EVIL in ' '.join(page.texts('#items .text'))
        assert browser.execute_script('return window.hacked') is None
        assert not page.all('main script') and len(page.all('#items .none')) == 2

        # A picture, its captions and similar pictures; Escape closes, the focus comes back.
        card = page.one('#items li:first-child button')
        card.send_keys(Keys.ENTER)
        page.wait(lambda: page.one('#detail').is_displayed())
        assert page.one('#name').text == 'red' and page.texts('#own .text span') != []
        assert 'ganz rot' in page.texts('#nearest .text span') and len(page.names('#near')) == 7
        assert page.focused() == 'close'
        page.one('#near button').click()
        page.wait(lambda: page.one('#name').text != 'red')
        browser.switch_to.active_element.send_keys(Keys.ESCAPE)
        page.wait(lambda: not page.one('#detail').is_displayed())
        assert browser.switch_to.active_element == card

        # English alone.
        page.one('#lang').send_keys('en')
        page.type('#text', 'black' + Keys.ENTER)
        page.wait(lambda: page.names()[0] == 'black')
        assert not page.one('#translation').is_displayed()

        # An image finds captions; what is no image is refused in words.
        (tmp_path / 'sky.png').write_bytes(png('blue'))
        page.one('#image').send_keys(str(tmp_path / 'sky.png'))
        page.wait(lambda: 'ganz blau' in page.texts('#captions li:first-child')[0])
        assert page.names()[0] == 'blue' and page.focused() == 'results'
        (tmp_path / 'bad.png').write_bytes(b'no image')
        page.one('#image').send_keys(str(tmp_path / 'bad.png'))
        page.wait(lambda: 'no image that can be read' in page.one('#status').text)

        # A link has the query.
        page.type('#text', 'white' + Keys.ENTER)
        page.wait(lambda: page.names()[0] == 'white')
        again = browser.current_url
        browser.get('about:blank')
        page = Page(browser, again)
        page.wait(lambda: page.names()[0] == 'white')
        assert page.one('#lang').get_attribute('value') == 'en'
        log = [entry['message'] for entry in browser.get_log('browser')]
        assert not [line for line in log if 'Failed to load resource' not in line], log


def test_on_a_phone_and_in_the_dark(index, browser):
    with Server(make_app(Searcher(Index(index), StandIn()))) as address:
        grounds = []
        for width, dark in ((390, False), (320, True), (1200, True)):
            size(browser, width, 844, dark)
            page = Page(browser, f'{address}?{width}#text=rot&lang=de&translation=blue&weight=0.5')
            page.wait(lambda: len(page.names()) == 8)
            measure = 'return [document.documentElement.scrollWidth, innerWidth]'
            wide, inner = browser.execute_script(measure)
            assert wide <= inner == width
            page.one('#items button').click()
            page.wait(lambda: page.one('#detail').is_displayed())
            measure = (
                'const d = document.getElementById("detail"); return d.scrollWidth - d.clientWidth'
            )
            assert browser.execute_script(measure) <= 0
            grounds.append(
                browser.execute_script('return getComputedStyle(document.body).backgroundColor')
            )
        assert grounds == ['rgb(255, 255, 255)', 'rgb(22, 22, 21)', 'rgb(22, 22, 21)']


def test_every_field_has_a_label(index, browser):
    with Server(make_app(Searcher(Index(index), StandIn()))) as address:
        page = Page(browser, address)
        for field in page.all('main input, main select'):
            assert browser.execute_script('return arguments[0].labels.length', field) == 1
        assert page.one('#status').get_attribute('aria-live') == 'polite'
        assert page.one('html').get_attribute('lang') == 'en'
        assert browser.execute_script(
            'return [...document.images].every(x => x.hasAttribute("alt"))'
        )
