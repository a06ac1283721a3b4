"""The picture as a web page: a small server, in a process that is a client like any other.

The coordinator knows nothing of it. A browser that reads slowly holds up its own thread
here, and while no browser is open the coordinator is not asked anything. The page shows
names, sizes and process ids, never data, to whoever can open the port: by default
programs of this machine.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import ipaddress
import re
import select
import signal
import socket
import socketserver
import sys
import threading
import time
from email.message import Message
from functools import cached_property
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.resources import files
from typing import Any

import click
import msgspec

from hugepool.address import local_address
from hugepool.live.feed import Feed
from hugepool.live.picture import Picture
from hugepool.live.selection import selected
from hugepool.live.watcher import Watcher
from hugepool_common.errors import HugepoolError, InvalidSpecError
from hugepool_common.printable import printable

MOST_CONNECTIONS = 32
"""Browsers, and whoever else connects, at once."""

MOST_ARRAYS = 1000
"""Arrays that a page is told, the largest first."""

SLOW_S = 10.0
"""A browser that takes in, or says, nothing for so long is let go."""

REQUEST_S = 20.0
"""All that a request may take to arrive, however steadily it comes in little pieces."""

HEARTBEAT_S = 5.0
"""A browser hears something at least this often, so that one that is gone is noticed."""

LOOPBACK = "127.0.0.1"

_TOO_MANY = b"HTTP/1.1 503 Too many connections\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
_NAMES_OF_THIS_HOST = ("localhost", socket.gethostname().lower())


class PageUnavailableError(HugepoolError, OSError):
    """The status page cannot be served at its address."""


def parse_endpoint(text: str) -> tuple[str, int]:
    """Read ``PORT``, ``HOST:PORT`` or ``[HOST]:PORT``, the host being an address or ``localhost``.

    Raises
    ------
    InvalidSpecError
        The text is none of these.
    """
    host, _, port = text.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    try:
        if not re.fullmatch("[0-9]{1,5}", port) or int(port) > 65535:
            raise ValueError(port)
        if bare in ("", "localhost"):
            return LOOPBACK, int(port)
        address = ipaddress.ip_address(bare)
        if (address.version == 6) != (host != bare):
            raise ValueError(host)
    except ValueError:
        raise InvalidSpecError(
            f"{text!r} is no address for a page",
            needed="PORT, or HOST:PORT with the host as a number, such as 127.0.0.1:8377",
        ) from None
    return bare, int(port)


class PageServer(socketserver.ThreadingMixIn, HTTPServer):
    """Answers browsers, each in a thread, and no more than :data:`MOST_CONNECTIONS` at once.

    Parameters
    ----------
    endpoint
        Host and port; port 0 takes a free one.

    Raises
    ------
    PageUnavailableError
        Nobody can listen there: the port is in use, or not ours to take.
    """

    daemon_threads = True
    feed: Feed

    def __init__(self, endpoint: tuple[str, int]) -> None:
        host, port = endpoint
        if ":" in host:
            self.address_family = socket.AF_INET6
        self._room = threading.BoundedSemaphore(MOST_CONNECTIONS)
        self._encoded = (0, b"")
        try:
            super().__init__((host, port), PageHandler)
        except OSError as error:
            raise PageUnavailableError(
                f"the status page cannot be served: {error.strerror or error}",
                where=f"{host}:{port}",
                remedy="choose another port, or 0 for any that is free",
            ) from None

    def server_bind(self) -> None:
        """Bind; without the look-up of a name that may take long."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]

    @property
    def url(self) -> str:
        """Where a browser finds the page."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.server_port}/"

    @property
    def host(self) -> str:
        """The address that is listened at."""
        return str(self.server_address[0])

    def is_meant(self, header: str | None) -> bool:
        """Whether a request's Host is this server, and not a name that was made to lead here.

        A page of somebody else's, whose name its owner lets point at our address, could
        otherwise read ours. An address in numbers cannot be made to point elsewhere.
        """
        match = re.fullmatch(r"\[([0-9a-fA-F:.]+)\](:[0-9]+)?|([^:\[\]]+)(:[0-9]+)?", header or "")
        if match is None:
            return False
        host = (match[1] or match[3]).lower()
        if host in _NAMES_OF_THIS_HOST:
            return True
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            return False
        return address.is_loopback or not ipaddress.ip_address(self.host).is_loopback

    def encoded(self, number: int, picture: Picture) -> bytes:
        """A picture as an event, made once for all browsers."""
        known = self._encoded  # read once, for another browser's thread may be behind, or before
        if known[0] != number:
            arrays = selected(picture.arrays)[:MOST_ARRAYS]
            told = msgspec.structs.replace(picture, arrays=tuple(arrays))
            data = msgspec.json.encode(
                {"picture": told, "arrays_in_all": len(picture.arrays), "number": number}
            )
            self._encoded = known = (number, b"id: %d\ndata: %s\n\n" % (number, data))
        return known[1]

    def process_request(self, request: Any, client_address: Any) -> None:
        """Give the connection a thread, or turn it away."""
        if self._room.acquire(blocking=False):
            try:
                super().process_request(request, client_address)
            except BaseException:
                self._room.release()
                raise
            return
        try:
            request.settimeout(0)
            request.send(_TOO_MANY)
        except OSError:
            pass
        self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer it; then there is room for another."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that goes away in the middle is no error; others are shown, and go on."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class PageHandler(BaseHTTPRequestHandler):
    """One browser's request: the page, or its events."""

    server: PageServer
    protocol_version = "HTTP/1.1"
    timeout = SLOW_S

    def setup(self) -> None:
        """Begin, and be done with who does not say in time what it wants."""
        super().setup()
        self._deadline = threading.Timer(REQUEST_S, self._let_go)
        self._deadline.daemon = True
        self._deadline.start()

    def _let_go(self) -> None:
        with contextlib.suppress(OSError):  # it may have gone by itself
            self.connection.shutdown(socket.SHUT_RDWR)

    def finish(self) -> None:
        """End."""
        self._deadline.cancel()
        super().finish()

    def version_string(self) -> str:
        """What the header Server says."""
        return "hugepool"

    def do_GET(self) -> None:
        """Answer."""
        self._deadline.cancel()
        self.close_connection = True
        path = self.path.partition("?")[0]
        if not self.server.is_meant(self.headers.get("Host")):
            self._say(403, "this page answers to addresses in numbers and to localhost only\n")
        elif path == "/":
            self._page()
        elif path != "/events":
            self._say(404, "there is one page here: /\n")
        elif _is_foreign(self.headers):
            self._say(403, "these events are for this server's own page\n")
        else:
            self._events()

    def do_HEAD(self) -> None:
        """Answer as GET, without the body."""
        self.do_GET()

    def log_message(self, format: str, *args: Any) -> None:
        """Keep no log of who looks."""

    def _page(self) -> None:
        page = Page.read()
        self._begin(200, "text/html; charset=utf-8", len(page.content), page.policy)
        self._write(page.content)

    def _events(self) -> None:
        self._begin(200, "text/event-stream", None)
        if self.command == "HEAD":
            return
        feed, known = self.server.feed, 0
        feed.join()
        try:
            self._write(b"retry: 1000\n\n")
            while not feed.ended:
                news = feed.wait(known, HEARTBEAT_S)
                if news is None:
                    self._write(b": nothing has changed\n\n")
                else:
                    known = news[0]
                    self._write(self.server.encoded(*news))
        finally:
            feed.leave()

    def _say(self, status: int, text: str) -> None:
        self._begin(status, "text/plain; charset=utf-8", len(text))
        self._write(text.encode())

    def _begin(self, status: int, kind: str, length: int | None, policy: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.send_header("Content-Security-Policy", policy or "default-src 'none'")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("Cache-Control", "no-store")
        self.send_header("Connection", "close")
        self.end_headers()

    def _write(self, data: bytes) -> None:
        if self.command != "HEAD":
            self.wfile.write(data)


def _is_foreign(headers: Message) -> bool:
    """Whether a browser says that another site's page asks."""
    return headers.get("Sec-Fetch-Site", "same-origin") not in ("same-origin", "none")


class Page:
    """The page and what it may do.

    Parameters
    ----------
    text
        HTML with one inline style and one inline script.
    """

    _known: Page | None = None

    def __init__(self, text: str) -> None:
        self.content = text.encode()
        self._text = text

    @classmethod
    def read(cls) -> Page:
        """The page of this version."""
        if cls._known is None:
            cls._known = Page(files("hugepool.live").joinpath("page.html").read_text("utf-8"))
        return cls._known

    @cached_property
    def policy(self) -> str:
        """Its content security policy: its own script and style, its own events, nothing else."""
        return (
            f"default-src 'none'; script-src {self._digest('script')}; "
            f"style-src {self._digest('style')}; connect-src 'self'; img-src data:; "
            "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )

    def _digest(self, tag: str) -> str:
        (inline,) = re.findall(f"<{tag}>(.*?)</{tag}>", self._text, re.DOTALL)
        return f"'sha256-{base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()}'"


def serve_page(
    http: str, address: str | None, *, interval_s: float, follow_stdin: bool = False
) -> None:
    """Serve the page until a signal, or the end of stdin.

    Parameters
    ----------
    http
        As :func:`parse_endpoint` takes it.
    address
        The coordinator's; None for the one that is set, or a local service.
    interval_s
        Seconds between looks, while anybody has the page open.
    follow_stdin
        The first line of stdin is the coordinator's address, and its end is ours: whoever
        started us may be killed, and leaves nothing behind that holds the port.

    Raises
    ------
    CoordinatorUnreachableError
        There is no coordinator to begin with.
    InvalidSpecError, PageUnavailableError
        Of `http`.
    """
    endpoint = parse_endpoint(http)
    if not follow_stdin:
        address = local_address(address)
    signal.signal(signal.SIGTERM, _end)
    with PageServer(endpoint) as server:
        if not ipaddress.ip_address(server.host).is_loopback:
            click.echo(
                f"hugepool: who can reach {server.url} sees names, sizes and process ids",
                err=True,
            )
        click.echo(server.url)
        sys.stdout.flush()
        if follow_stdin:
            address = sys.stdin.readline().strip()
            if not address:
                return
        assert address is not None
        nothing = Picture(printable(address), 0.0, "absent", "", time.time())
        watcher = Watcher(address)
        with Feed(watcher, first=nothing, interval_s=interval_s, wanted=False) as feed:
            server.feed = feed
            answering = threading.Thread(target=server.serve_forever, name="answering", daemon=True)
            answering.start()
            try:
                if follow_stdin:
                    sys.stdin.read()
                else:
                    select.select([], [], [])
            finally:
                server.shutdown()


def _end(*_: object) -> None:
    raise SystemExit(0)
