"""The only loop: sockets, pidfds, signals and threads become events; effects become acts.

One thread polls and talks to the state machine. What may take long (walking the
ladder, sealing) runs on a small pool of threads that post their outcome to a
queue and wake the loop through an eventfd, so no client waits for another's pages.
"""

from __future__ import annotations

import functools
import logging
import os
import queue
import resource
import secrets
import signal
import threading
import time
from collections import deque
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from types import TracebackType

import zmq

from hugepool_common import paths, wire
from hugepool_common._version import __version__
from hugepool_common.errors import (
    ArrayBusyError,
    HugepoolError,
    NotPermittedError,
    ProtocolError,
)
from hugepool_common.messages import CreateProgress, Failed, Message
from hugepool_common.pages import read_host
from hugepool_common.spec import Segment
from hugepool_server import events
from hugepool_server.backends import select
from hugepool_server.backends.base import SegmentRequest
from hugepool_server.config import Config
from hugepool_server.coordinator import Coordinator
from hugepool_server.reclaim import SegmentDirectories
from hugepool_server.runtime import RuntimeDirectory
from hugepool_server.signals import SignalInbox

log = logging.getLogger("hugepoold")

MAKER_THREADS = 4
"""Arrays populated at once; each populates with threads of its own."""

SMALL_BYTES = 64 << 20
"""Arrays below this never wait for larger ones to be populated."""

UNLINK_BYTES = 1 << 20
"""Segments up to this are removed in less time than a thread takes to begin."""

PROGRESS_INTERVAL_NS = 100_000_000
WRITER_PATIENCE_NS = 5_000_000_000
"""How long a seal waits for writers that were asked to let go."""

BATCH = 256
"""Requests taken from the socket before other sources are looked at."""

FLUSH_MS = 1000
"""How long a stopping coordinator waits for its last replies to leave."""


class Daemon:
    """A coordinator at its address.

    Construction takes the runtime directory, sweeps what dead coordinators left
    and binds; :meth:`run` serves until it is stopped; closing removes every file.

    Raises
    ------
    CoordinatorRunningError
        Another coordinator owns the runtime directory.
    NotPermittedError
        The runtime directory is not ours.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self.address = paths.address_of(config.runtime_directory)
        with ExitStack() as undo:
            # First of all: a signal from here on must not leave files behind.
            self._signals = SignalInbox(signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
            undo.callback(self._signals.close)
            self._runtime = RuntimeDirectory(
                config.runtime_directory, mode=config.directory_mode, group=config.group
            )
            undo.callback(self._runtime.close)
            self._directories = SegmentDirectories(group=config.group)
            undo.callback(self._directories.close)
            self._sweep()
            self._raise_descriptor_limit()
            self._core = Coordinator(
                instance=secrets.token_hex(8),
                pid=os.getpid(),
                uid=os.geteuid(),
                version=__version__,
                started_ns=time.monotonic_ns(),
            )
            self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            self._parent_fd = -1
            self._pidfds: dict[int, int] = {}
            self._sessions_by_pidfd: dict[int, int] = {}
            undo.callback(self._close_descriptors)
            self._context = zmq.Context()
            undo.callback(self._context.destroy, linger=FLUSH_MS)
            self._router = self._bind()
            self._poller = zmq.Poller()
            for source in (self._router, self._wake_fd, self._signals.fileno()):
                self._poller.register(source, zmq.POLLIN)
            self._makers = ThreadPoolExecutor(MAKER_THREADS, thread_name_prefix="maker")
            self._small_makers = ThreadPoolExecutor(MAKER_THREADS, thread_name_prefix="small")
            self._sealers = ThreadPoolExecutor(MAKER_THREADS, thread_name_prefix="sealer")
            self._removers = ThreadPoolExecutor(1, thread_name_prefix="remover")
            self._removals: set[Future[None]] = set()
            self._cancels: dict[int, threading.Event] = {}
            self._outcomes: queue.SimpleQueue[events.Event] = queue.SimpleQueue()
            undo.callback(self._stop_makers)
            self._running = True
            self._undo = undo.pop_all()

    def _sweep(self) -> None:
        host = read_host()
        mounts = [mount.path for mount in host.hugetlbfs_mounts]
        mounts += [mount.path for mount in host.tmpfs_mounts]
        reclaimed = self._directories.sweep(mounts)
        for path in reclaimed.left:
            log.warning("left alone, for it is not ours: %s", path)
        if reclaimed.count:
            log.warning(
                "removed %d segments (%d bytes) of coordinators that died",
                reclaimed.count,
                reclaimed.nbytes,
            )

    @staticmethod
    def _raise_descriptor_limit() -> None:
        # libzmq aborts the process when accept() on an ipc socket finds no free
        # descriptor (ipc_listener.cpp), so take all that we may have.
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft != hard:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

    def _bind(self) -> zmq.Socket[bytes]:
        router = self._context.socket(zmq.ROUTER)
        router.setsockopt(zmq.ROUTER_MANDATORY, 1)  # else replies to the dead vanish silently
        router.setsockopt(zmq.MAXMSGSIZE, wire.MAX_BODY)
        router.setsockopt(zmq.HANDSHAKE_IVL, 3000)
        router.setsockopt(zmq.SNDHWM, 1000)
        router.setsockopt(zmq.RCVHWM, 1000)
        router.setsockopt(zmq.LINGER, 0)
        path = self._runtime.socket
        with suppress(OSError):  # if it cannot be removed, bind says why
            os.unlink(path)  # a killed coordinator's; the directory lock says it is dead
        before = os.umask(self._config.socket_umask)
        try:
            router.bind("ipc://" + path)
        except zmq.ZMQError as error:
            raise NotPermittedError(
                f"cannot make the socket: {error.strerror}",
                where=path,
                remedy="choose another directory with HUGEPOOL_RUNTIME_DIR",
            ) from None
        finally:
            os.umask(before)
        if self._config.group is not None:
            os.chown(path, -1, self._config.group)
        return router

    def __enter__(self) -> Daemon:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let the last replies out, remove every segment, the socket and the directory."""
        self._undo.close()

    def _stop_makers(self) -> None:
        for cancel in list(self._cancels.values()):
            cancel.set()
        for pool in (self._makers, self._small_makers, self._sealers):
            pool.shutdown(wait=True, cancel_futures=True)
        self._removers.shutdown(wait=True)

    def _close_descriptors(self) -> None:
        for fd in (*self._pidfds.values(), self._wake_fd, self._parent_fd):
            if fd >= 0:
                os.close(fd)

    # The loop -----------------------------------------------------------------

    def run(self) -> None:
        """Serve until a signal, a Shutdown request or the end of the parent stops us."""
        self._watch_parent()
        log.info("listening at %s", self.address)
        while self._running:
            ready = dict(self._poller.poll())
            if self._signals.fileno() in ready:
                for name in self._signals.read():
                    self._handle(events.StopRequested(name))
            if self._parent_fd in ready:
                self._poller.unregister(self._parent_fd)
                self._handle(events.StopRequested("the parent process ended"))
            if self._wake_fd in ready:
                self._take_outcomes()
            # Before requests: a pid that is dead must not speak again.
            for fd in ready:
                # Handling one exit may end the session behind another of them.
                session = self._sessions_by_pidfd.get(fd)
                if session is not None:
                    self._handle(events.ProcessExited(session))
            if self._router in ready:
                self._take_requests()

    def _watch_parent(self) -> None:
        parent = self._config.parent_pid
        if parent is None:
            return
        try:
            self._parent_fd = os.pidfd_open(parent)
        except ProcessLookupError:
            self._running = False
            return
        self._poller.register(self._parent_fd, zmq.POLLIN)

    def _take_outcomes(self) -> None:
        os.eventfd_read(self._wake_fd)
        while True:
            try:
                self._handle(self._outcomes.get_nowait())
            except queue.Empty:
                return

    def _take_requests(self) -> None:
        for _ in range(BATCH):
            try:
                frames = self._router.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            self._on_frames(frames)

    def _on_frames(self, frames: list[zmq.Frame]) -> None:
        peer, *message = (frame.bytes for frame in frames)
        identity = _identity(frames[-1])
        if identity is None:
            log.warning("dropped a message of a peer without a kernel identity")
            return
        try:
            correlation, request = wire.decode_request(message)
        except ProtocolError as error:
            answerable = wire.correlation_of(message)
            log.info("refused a message of pid %d: %s", identity.pid, error)
            if answerable is not None:
                self._perform(events.Send(peer, answerable, Failed.from_error(error)), deque())
            return
        self._handle(events.RequestReceived(peer, identity, correlation, request))

    def _handle(self, event: events.Event) -> None:
        pending = deque([event])
        while pending:
            event = pending.popleft()
            try:
                effects = self._core.handle(event, time.monotonic_ns())
            except Exception as error:
                # One client's message may uncover a bug; the others keep their arrays.
                log.exception("cannot handle %s", type(event).__name__)
                if isinstance(event, events.RequestReceived):
                    self._send(event.peer, event.correlation, Failed.from_error(error))
                continue
            for effect in effects:
                self._perform(effect, pending)

    # Effects ------------------------------------------------------------------

    def _perform(self, effect: events.Effect, pending: deque[events.Event]) -> None:
        match effect:
            case events.Send():
                if not self._send(effect.peer, effect.correlation, effect.message):
                    pending.append(events.PeerUnreachable(effect.peer))
            case events.MakeSegment():
                self._cancels[effect.token] = threading.Event()
                small = effect.spec.nbytes < SMALL_BYTES
                pool = self._small_makers if small else self._makers
                pool.submit(self._make, effect, self._cancels[effect.token], [*self._removals])
            case events.CancelSegment():
                if effect.token in self._cancels:
                    self._cancels[effect.token].set()
            case events.SealSegment():
                self._sealers.submit(self._seal, effect)
            case events.UnlinkSegment() if effect.segment.length <= UNLINK_BYTES:
                try:
                    select.unlink_segment(effect.segment)
                except OSError:
                    log.exception("cannot remove a segment")
            case events.UnlinkSegment():
                # Giving back the pages of 5 GiB takes a second.
                removal = self._removers.submit(select.unlink_segment, effect.segment)
                self._removals.add(removal)
                removal.add_done_callback(self._removed)
            case events.WatchProcess():
                if not self._watch(effect.session, effect.pid):
                    pending.append(events.ProcessExited(effect.session))
            case events.UnwatchProcess():
                self._unwatch(effect.session)
            case events.Stop():
                self._running = False

    def _send(self, peer: bytes, correlation: int, message: Message) -> bool:
        try:
            frames = wire.encode(correlation, message)
        except ProtocolError as error:
            log.error("%s", error)
            frames = wire.encode(correlation, Failed.from_error(error))
        try:
            self._router.send_multipart([peer, *frames], zmq.NOBLOCK)
        except zmq.ZMQError as error:
            # EAGAIN: it does not read what we sent before. EHOSTUNREACH: it is gone.
            if error.errno not in (zmq.EAGAIN, zmq.EHOSTUNREACH):
                raise
            return isinstance(message, CreateProgress) and error.errno == zmq.EAGAIN
        return True

    def _watch(self, session: int, pid: int) -> bool:
        try:
            fd = os.pidfd_open(pid)
        except ProcessLookupError:
            return False
        except OSError as error:  # a pid of another namespace is 0 here
            log.warning("cannot watch pid %d of session %d: %s", pid, session, error)
            return True
        self._pidfds[session] = fd
        self._sessions_by_pidfd[fd] = session
        self._poller.register(fd, zmq.POLLIN)
        return True

    def _unwatch(self, session: int) -> None:
        fd = self._pidfds.pop(session, None)
        if fd is not None:
            self._poller.unregister(fd)
            del self._sessions_by_pidfd[fd]
            os.close(fd)

    # On maker threads ---------------------------------------------------------

    def _post(self, event: events.Event) -> None:
        self._outcomes.put(event)
        os.eventfd_write(self._wake_fd, 1)

    def _removed(self, removal: Future[None]) -> None:
        self._removals.discard(removal)
        if removal.exception() is not None:
            log.error("cannot remove a segment", exc_info=removal.exception())

    def _make(
        self, effect: events.MakeSegment, cancel: threading.Event, removals: list[Future[None]]
    ) -> None:
        futures.wait(removals)  # what was destroyed before this request has left its pages
        # A small array is there before anybody could read how far it is.
        last_ns = time.monotonic_ns() if effect.spec.nbytes < SMALL_BYTES else 0

        def progress(done_bytes: int, total_bytes: int) -> None:
            nonlocal last_ns
            now_ns = time.monotonic_ns()
            if now_ns - last_ns >= PROGRESS_INTERVAL_NS:
                last_ns = now_ns
                self._post(events.SegmentProgress(effect.token, done_bytes, total_bytes))

        try:
            segment, pages = select.make_segment(
                SegmentRequest(
                    segment_id=effect.segment_id,
                    nbytes=effect.spec.nbytes,
                    file_mode=self._config.segment_mode,
                    group=self._config.group,
                ),
                huge_pages=effect.huge_pages,
                page_size=effect.page_size,
                backing=effect.backing,
                directories=self._directories,
                progress=progress,
                cancel=cancel,
            )
        except Exception as error:
            if not isinstance(error, HugepoolError):
                log.exception("making %s failed", effect.spec.name)
            outcome: events.Event = events.SegmentRefused(effect.token, Failed.from_error(error))
        else:
            outcome = events.SegmentMade(effect.token, segment, pages)
        self._cancels.pop(effect.token, None)
        self._post(outcome)

    def _seal_patiently(self, segment: Segment) -> None:
        # Workers that were told to unmap the segment do so when they read their notice.
        deadline_ns = time.monotonic_ns() + WRITER_PATIENCE_NS
        while True:
            try:
                return select.seal_segment(segment, self._config.sealed_mode)
            except ArrayBusyError:
                if time.monotonic_ns() > deadline_ns:
                    raise
            time.sleep(0.01)

    def _seal(self, effect: events.SealSegment) -> None:
        try:
            self._seal_patiently(effect.segment)
        except Exception as error:
            if not isinstance(error, HugepoolError):
                log.exception("sealing %s failed", effect.segment.path)
            self._post(events.SealRefused(effect.token, Failed.from_error(error)))
        else:
            self._post(events.SegmentSealed(effect.token, effect.segment))


def _identity(frame: zmq.Frame) -> events.Identity | None:
    """Uid, gid and pid of the sender as the kernel gave them at accept (SO_PEERCRED)."""
    try:
        address = frame.get("Peer-Address")
    except zmq.ZMQError:
        return None
    return _identity_in(str(address))


@functools.lru_cache(maxsize=1024)
def _identity_in(address: str) -> events.Identity | None:
    fields = address.rsplit(":", 3)[1:]
    if len(fields) != 3 or not all(field.isdecimal() for field in fields):
        return None
    uid, gid, pid = map(int, fields)
    return events.Identity(uid, gid, pid)
