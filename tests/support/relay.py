"""A relay between a client and a coordinator over TCP, which a test can cut in either direction."""

from __future__ import annotations

import selectors
import socket
import threading
from typing import NamedTuple

_CHUNK = 65536


class _Way(NamedTuple):
    """Bytes that come by one socket go out by the other."""

    out: socket.socket
    up: bool


class Relay:
    """Listens at a port of its own and passes bytes on, both ways, until it is cut.

    A cut link is one on which nothing arrives and nothing fails: as with a cable pulled
    out somewhere on the way. A context manager.

    Attributes
    ----------
    address
        For clients.
    passes_up, passes_down
        Whether what clients, and what the coordinator, say still arrives. What was held back
        is lost.
    """

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition("//")[2].rpartition(":")
        self._target = host, int(port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._wake_reader, self._wake_writer = socket.socketpair()
        self._selector.register(self._wake_reader, selectors.EVENT_READ)
        self.address = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        self.passes_up = self.passes_down = True
        self._stopped = False
        self._dropping, self._dropped = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def cut(self) -> None:
        """Let nothing pass any more."""
        self.passes_up = self.passes_down = False

    def drop(self) -> None:
        """End every connection that there is, as a relay that was restarted does."""
        self._dropping.set()
        self._wake_writer.send(b".")
        while self._dropping.is_set():
            self._dropped.wait(0.1)

    def __enter__(self) -> Relay:
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped = True
        self._wake_writer.send(b".")
        self._thread.join()
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
        self._wake_writer.close()
        self._selector.close()

    def _run(self) -> None:
        while not self._stopped:
            for key, _ in self._selector.select():
                if key.fileobj is self._listener:
                    self._accept()
                elif key.fileobj is self._wake_reader:
                    self._wake_reader.recv(1)
                    break  # what else was ready may be closed by then
                elif isinstance(key.data, _Way):
                    self._pass(key.fileobj, key.data)  # type: ignore[arg-type]
                    break  # it may have closed the other end, which may have been ready too
            if self._dropping.is_set():
                for key in list(self._selector.get_map().values()):
                    if isinstance(key.data, _Way):
                        self._selector.unregister(key.fileobj)
                        key.fileobj.close()  # type: ignore[union-attr]
                self._dropping.clear()
                self._dropped.set()

    def _accept(self) -> None:
        near, _ = self._listener.accept()
        try:
            far = socket.create_connection(self._target)
        except OSError:  # no coordinator at the moment
            near.close()
            return
        self._selector.register(near, selectors.EVENT_READ, _Way(far, up=True))
        self._selector.register(far, selectors.EVENT_READ, _Way(near, up=False))

    def _pass(self, near: socket.socket, way: _Way) -> None:
        try:
            data = near.recv(_CHUNK)
            if data and (self.passes_up if way.up else self.passes_down):
                way.out.sendall(data)
        except OSError:
            data = b""
        if not data:
            for end in (near, way.out):
                self._selector.unregister(end)
                end.close()
