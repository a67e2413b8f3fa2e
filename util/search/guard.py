"""What every request to the search page passes: checks of where it comes from, and safe headers.

A page on another site can make a browser send requests to this machine. It cannot read the answers,
because there are no CORS headers, unless its host name is made to point here (DNS rebinding). So
only names of this machine are answered; an address is no name, and cannot be made to point here.
"""

import asyncio
import ipaddress
import json
import re

HEADERS = {
    'content-security-policy': (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:;"
        " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    'x-content-type-options': 'nosniff',
    'x-frame-options': 'DENY',
    'referrer-policy': 'no-referrer',
    'cross-origin-resource-policy': 'same-origin',
    'cross-origin-opener-policy': 'same-origin',
}
PATIENCE = 30  # seconds for the body of a request


class Refused(Exception):
    """A request that is not answered; `status` is that of HTTP."""

    def __init__(self, status, message):
        super().__init__(message)
        self.status = status


class Guard:
    """ASGI middleware: refuses requests for other hosts or from other sites; adds HEADERS.

    Args:
        app: the application.
        names: host names of this machine, lower-case; addresses and localhost are always answered.
    """

    def __init__(self, app, names=()):
        self.app, self.names = app, {'localhost', *names}

    async def __call__(self, scope, receive, send):
        if scope['type'] == 'lifespan':
            await self.app(scope, receive, send)
            return
        if scope['type'] != 'http':  # no web sockets
            return

        async def with_headers(message):
            if message['type'] == 'http.response.start':
                headers = [(key.encode(), value.encode()) for key, value in HEADERS.items()]
                message = {**message, 'headers': [*message['headers'], *headers]}
            await send(message)

        try:
            self._check(scope['headers'], scope['path'])
        except Refused as error:
            await _answer(with_headers, error)
            return
        await self.app(scope, receive, with_headers)

    def _check(self, headers, path):
        found = {}
        for key, value in headers:
            if key == b'host' and b'host' in found:
                raise Refused(400, 'two Host headers')
            found[key] = value.decode('latin-1')
        host = host_name(found.get(b'host', ''))
        if host not in self.names and not is_address(host):
            raise Refused(
                421, 'this server does not go by that name; --allow-host NAME adds a name'
            )
        # The page itself may be linked to; it holds nothing yet.
        site = found.get(b'sec-fetch-site', 'none')
        if site not in ('none', 'same-origin') and path != '/':
            raise Refused(403, 'requests from other sites are not answered')


def host_name(text):
    """The name or address in a Host header, without port, lower-case; '' if it is malformed."""
    found = re.fullmatch(r'(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:\d{1,5})?', text)
    return found[1].strip('[]').lower().removesuffix('.') if found else ''


def is_address(host):
    """Whether it is an IP address."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


async def read_body(request, most):
    """The body of a request; Refused if it is larger than `most` bytes, or comes too slowly."""
    too_large = Refused(413, f'the body is too large: {most:,} bytes are allowed')
    declared = request.headers.get('content-length', '0')
    if not re.fullmatch(r'\d{1,19}', declared):
        raise Refused(400, 'Content-Length is no number')
    if int(declared) > most:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(PATIENCE):
            async for part in request.stream():
                body += part
                if len(body) > most:
                    raise too_large
    except TimeoutError:
        raise Refused(408, f'the body did not arrive within {PATIENCE} seconds') from None
    return bytes(body)


async def _answer(send, error):
    body = json.dumps({'error': str(error)}).encode()
    headers = [(b'content-type', b'application/json'), (b'content-length', b'%d' % len(body))]
    await send({'type': 'http.response.start', 'status': error.status, 'headers': headers})
    await send({'type': 'http.response.body', 'body': body})
