"""The page's server: who is answered, how many, and how little a slow browser matters."""

from __future__ import annotations

import http.client
import re
import socket
import threading
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest

from hugepool.live import page_server
from hugepool.live.feed import Feed
from hugepool.live.page_server import Page, PageServer, PageUnavailableError, parse_endpoint
from hugepool.live.picture import Picture
from hugepool.live.watcher import Watcher
from hugepool_common.errors import InvalidSpecError
from support.host import settles

NOWHERE = "ipc:///nowhere/hugepool.sock"


@pytest.fixture
def server() -> Iterator[PageServer]:
    """A server whose coordinator is not there."""
    with PageServer(("127.0.0.1", 0)) as made:
        nothing = Picture(NOWHERE, 0.0, "absent", "", 0.0)
        with Feed(Watcher(NOWHERE), first=nothing, interval_s=0.05, wanted=False) as feed:
            made.feed = feed
            thread = threading.Thread(target=made.serve_forever, args=(0.05,))
            thread.start()
            yield made
            made.shutdown()
            thread.join()


def ask(server: PageServer, path: str, **headers: str) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection(server.host, server.server_port, timeout=60)
    try:
        connection.putrequest("GET", path, skip_host="Host" in headers)
        for name, value in headers.items():
            connection.putheader(name.replace("_", "-"), value)
        connection.endheaders()
        return connection.getresponse()
    except BaseException:
        connection.close()
        raise


# Where it listens -------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [
        ("8377", ("127.0.0.1", 8377)),
        (":0", ("127.0.0.1", 0)),
        ("localhost:80", ("127.0.0.1", 80)),
        ("0.0.0.0:65535", ("0.0.0.0", 65535)),
        ("[::1]:8377", ("::1", 8377)),
    ],
)
def test_good_endpoints(text: str, endpoint: tuple[str, int]) -> None:
    assert parse_endpoint(text) == endpoint


@pytest.mark.parametrize(
    "text",
    [
        *("", "x", "65536", "-1", "127.0.0.1", "::1:80", "[127.0.0.1]:80", "example.org:80"),
        *("1.2.3:80", "http://127.0.0.1:80", "127.0.0.1:８０", "127.0.0.1:80 ", "[::1]", "[]x:80"),
    ],
)
def test_bad_endpoints_are_told_what_is_needed(text: str) -> None:
    with pytest.raises(InvalidSpecError, match="needed PORT, or HOST:PORT"):
        parse_endpoint(text)


def test_a_port_in_use_is_an_error_that_names_it(server: PageServer) -> None:
    with pytest.raises(PageUnavailableError, match=f"127.0.0.1:{server.server_port}.*another port"):
        PageServer((server.host, server.server_port))
    with pytest.raises(OSError):
        PageServer(("192.0.2.1", 0))


def test_ipv6_has_brackets_in_its_url() -> None:
    try:
        server = PageServer(("::1", 0))
    except PageUnavailableError as error:
        pytest.skip(f"no IPv6 loopback: {error}")
    with server:
        assert server.url == f"http://[::1]:{server.server_port}/"


# Who is answered --------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200),
        ("127.0.0.1:9999", 200),  # through a tunnel the port is another
        ("localhost:8377", 200),
        ("LOCALHOST", 200),
        ("[::1]:8377", 200),
        ("rebound.example", 403),
        ("127.0.0.1.rebound.example", 403),
        ("localhost.rebound.example:80", 403),
        ("192.0.2.7", 403),  # it listens at loopback only
        ("", 403),
        ("a:b:c", 403),
        ("[::1", 403),
    ],
)
def test_only_requests_that_are_meant_for_this_host_are_answered(
    server: PageServer, host: str, status: int
) -> None:
    for path in ("/", "/events"):
        with ask(server, path, Host=host) as answer:
            assert answer.status == status
            if status != 200:
                assert b"hugepool.sock" not in answer.read()


def test_beyond_loopback_any_address_in_numbers_is_answered_and_no_name() -> None:
    with PageServer(("0.0.0.0", 0)) as server:
        assert server.is_meant("192.0.2.7:80")
        assert server.is_meant(f"{socket.gethostname()}:80")
        assert not server.is_meant("rebound.example:80")


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_pages_of_other_sites_get_no_events(server: PageServer, site: str) -> None:
    with ask(server, "/events", Sec_Fetch_Site=site) as answer:
        assert answer.status == 403
    with ask(server, "/", Sec_Fetch_Site=site) as answer:  # a link may lead here
        assert answer.status == 200
        assert answer.headers["Access-Control-Allow-Origin"] is None


def test_what_is_not_there_and_what_is_not_read(server: PageServer) -> None:
    with ask(server, "/../etc/passwd") as answer:
        assert answer.status == 404
    connection = http.client.HTTPConnection(server.host, server.server_port, timeout=60)
    connection.request("POST", "/", body="x")
    assert connection.getresponse().status == 501
    connection.close()


def test_the_page_needs_nothing_else_and_may_do_nothing_else(server: PageServer) -> None:
    with ask(server, "/") as answer:
        text, policy = answer.read().decode(), answer.headers["Content-Security-Policy"]
    assert "'unsafe" not in policy and policy.startswith("default-src 'none'; script-src 'sha256-")
    assert policy == Page.read().policy
    links: list[str] = []

    class Links(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            assert not any(name.startswith("on") or name == "style" for name, _ in attrs), tag
            links.extend(value or "" for name, value in attrs if name in ("src", "href"))

    Links().feed(text)
    assert all(link.startswith("data:") for link in links)
    assert not re.search(r"@import|url\(|innerHTML|insertAdjacent|document\.write|eval\(", text)
    assert (Path(page_server.__file__).parent / "page.html").read_text("utf-8") == text


# Events -----------------------------------------------------------------------


def test_nobody_is_asked_anything_until_there_is_a_viewer(
    server: PageServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_server, "HEARTBEAT_S", 300.0)  # the first look may take its time
    assert server.feed.number == 0
    with ask(server, "/events") as answer:
        assert answer.readline() == b"retry: 1000\n"
        assert answer.readline() == b"\n"
        assert answer.readline() == b"id: 1\n"
        told = msgspec.json.decode(answer.readline().removeprefix(b"data: "))
    assert told["picture"]["state"] == "absent"
    assert "no coordinator answers" in told["picture"]["said"]
    assert (told["arrays_in_all"], told["number"]) == (0, 1)


def test_a_browser_that_is_gone_is_noticed(
    server: PageServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_server, "HEARTBEAT_S", 0.05)
    answer = ask(server, "/events")
    assert answer.readline()
    assert server.feed.viewers == 1
    answer.close()
    assert settles(lambda: server.feed.viewers == 0)


def test_a_request_that_never_ends_is_let_go_and_events_are_not(
    server: PageServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_server, "REQUEST_S", 1.0)
    monkeypatch.setattr(page_server, "HEARTBEAT_S", 0.05)
    begun: list[http.client.HTTPResponse] = []

    def begins() -> bool:
        """Whether the request was through in time: we too may be slow, and are let go then."""
        try:
            begun.append(ask(server, "/events"))
        except (OSError, http.client.HTTPException):
            return False
        return True

    assert settles(begins)
    with begun[-1] as answer:
        assert answer.readline()
        one = socket.create_connection((server.host, server.server_port))

        def takes_more() -> bool:
            try:
                return one.send(b"G") == 1
            except OSError:
                return False

        assert settles(lambda: not takes_more())
        one.close()
        cut = time.monotonic() + 2 * page_server.REQUEST_S
        while time.monotonic() < cut:
            assert answer.readline()
        assert answer.readline()


def test_slow_browsers_hold_up_nobody_and_too_many_are_turned_away(
    server: PageServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place, name in ((page_server, "REQUEST_S"), (page_server.PageHandler, "timeout")):
        monkeypatch.setattr(place, name, 300.0)  # none is let go before all are there
    slow = []
    try:
        for _ in range(page_server.MOST_CONNECTIONS - 1):
            one = socket.create_connection((server.host, server.server_port))
            slow.append(one)
            one.sendall(b"GET /events HTTP/1.1\r\n")  # and never the rest
        with ask(server, "/events") as answer:
            assert answer.status == 200
            with ask(server, "/") as refused:
                assert refused.status == 503
            assert answer.readline() == b"retry: 1000\n"
    finally:
        for one in slow:
            one.close()
    deadline = time.monotonic() + 60
    while True:
        with ask(server, "/") as answer:
            if answer.status == 200:
                break
        assert time.monotonic() < deadline


def test_the_largest_arrays_are_told_where_there_are_too_many(server: PageServer) -> None:
    facts = {"readers": 0, "created_ns": 0, "huge_bytes": 0, "length": 0}
    arrays = [facts | {"name": f"a{k}", "nbytes": k} for k in range(page_server.MOST_ARRAYS + 5)]
    picture = Picture(NOWHERE, 0.0, "running", "", 0.0, arrays=tuple(arrays))
    event = server.encoded(3, picture)
    told = msgspec.json.decode(event.partition(b"data: ")[2])
    assert told["arrays_in_all"] == page_server.MOST_ARRAYS + 5
    assert [one["nbytes"] for one in told["picture"]["arrays"][:2]] == [1004, 1003]
    assert len(told["picture"]["arrays"]) == page_server.MOST_ARRAYS


def test_a_browser_is_told_the_picture_that_it_asked_for(server: PageServer) -> None:
    """Not an older one, which another browser's thread has encoded just then."""
    older, newer = (Picture(NOWHERE, 0.0, "absent", f"picture {number}", 0.0) for number in (1, 2))

    class Met(PageServer):
        def __setattr__(self, name: str, value: object) -> None:
            super().__setattr__(name, value)
            if name == "_encoded" and value[0] == 2:  # type: ignore[index]
                assert b"picture 1" in self.encoded(1, older)

    server.__class__ = Met
    assert b"picture 2" in server.encoded(2, newer)
