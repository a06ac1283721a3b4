"""The only loop: sockets, pidfds, timers, signals and threads become events; effects become acts.

One thread polls and talks to the state machine. What may take long (walking the
ladder, sealing) runs on the threads of ``makers.py``, which post their outcome to a
queue and wake the loop through an eventfd, so no client waits for another's pages.
"""

from __future__ import annotations

import logging
import os
import queue
import resource
import secrets
import signal
import time
from collections import deque
from contextlib import ExitStack
from types import TracebackType

import msgspec
import zmq

from hugepool_common import paths
from hugepool_common._version import __version__
from hugepool_common.errors import HugepoolError
from hugepool_common.messages import Failed, Hello, Stats
from hugepool_common.pages import Host, read_host
from hugepool_common.transport import check_threads
from hugepool_server import descriptors, events
from hugepool_server.config import Config
from hugepool_server.coordinator import Coordinator, Limits
from hugepool_server.endpoint import Endpoint
from hugepool_server.liveness import Liveness
from hugepool_server.makers import Makers, Origin
from hugepool_server.manifests import (
    Manifests,
    begin_epoch,
    boot_id,
    damaged_segments,
    write_coordinator,
)
from hugepool_server.processes import is_stopped
from hugepool_server.reclaim import SegmentDirectories
from hugepool_server.records import CoordinatorRecord
from hugepool_server.recovery import recover
from hugepool_server.runtime import RuntimeDirectory
from hugepool_server.signals import SignalInbox
from hugepool_server.tokens import Tokens
from hugepool_server.whereabouts import Whereabouts

log = logging.getLogger("hugepoold")

DRAIN_NS = 2_000_000_000
"""How long it waits for seals under way before it gives them up."""

STOP_NS = 3_000_000_000
"""How long it waits for anything."""

EXIT_HANGUP = 128 + signal.SIGHUP
"""Exit status of a service that SIGHUP ended: a failure, so that systemd starts the next one."""


class Daemon:
    """A coordinator at its address.

    Construction takes the runtime directory, takes over what an earlier coordinator
    left in it, sweeps what others left that are dead, and binds; :meth:`run` serves
    until it is stopped; closing removes every file, or keeps what the next one needs.

    Attributes
    ----------
    address, tcp_address
        Where it listens; the second is empty where it takes nobody over TCP.

    Raises
    ------
    CoordinatorRunningError
        Another coordinator owns the runtime directory.
    NotPermittedError
        The runtime directory is not ours.
    HugepoolError
        This process may open too few files.
    NotEnoughMemoryError
        It may start too few threads, or has too little address space.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self.address = paths.address_of(config.runtime_directory)
        # Until it serves, and if it ends by a fault, nothing that it found may be lost.
        self._keep = config.durable
        with ExitStack() as undo:
            # First of all: a signal from here on must not leave files behind.
            self._signals = SignalInbox(
                *(signal.SIGTERM, signal.SIGINT, signal.SIGHUP),
                spared=(signal.SIGINT, signal.SIGHUP),
                urgent=(signal.SIGTERM, signal.SIGINT),
            )
            undo.callback(self._signals.close)
            self._runtime = RuntimeDirectory(
                config.runtime_directory, mode=config.directory_mode, group=config.group
            )
            undo.callback(lambda: self._runtime.close(keep=self._keep))
            self._limit = descriptors.raise_limit()
            check_threads(self.address)
            self._told_full = False
            self._poller = zmq.Poller()
            self._outcomes: queue.SimpleQueue[events.Event] = queue.SimpleQueue()
            self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            self._parent_fd = -1
            undo.callback(self._close_descriptors)
            self._running = True
            self._status = 0
            self._drain_since_ns: int | None = None
            self._take_over(undo)
            self._endpoint = Endpoint(
                self._runtime.socket, umask=config.socket_umask, group=config.group, tcp=config.tcp
            )
            undo.callback(self._endpoint.close)
            self._core.tcp = self.tcp_address = self._endpoint.tcp_address
            for source in (*self._endpoint.sockets, self._wake_fd, self._signals.fileno()):
                self._poller.register(source, zmq.POLLIN)
            self._keep = config.keep
            self._undo = undo.pop_all()

    def _take_over(self, undo: ExitStack) -> None:
        """Own the files of this runtime directory, and know what lies in them."""
        config = self._config
        boot = boot_id()
        self._record = self._begin(boot)
        self._tokens = Tokens(config.runtime_directory, boot, group=config.group)
        undo.callback(lambda: self._tokens.close(keep=self._keep))
        self._damaged: frozenset[int] = frozenset()
        self._directories = SegmentDirectories(
            store=self._record.store if config.durable else None,
            owner=config.runtime_directory if config.durable else None,
            group=config.group,
            made=self._note_directory if config.durable else None,
            renewed=lambda path: self._whereabouts.renewed(path),
        )
        undo.callback(
            lambda: self._directories.close(keep=self._keep, spared=self._in_quarantine())
        )
        # Undone before the directories: a manifest without a segment is an array lost.
        self._manifests = Manifests(config.runtime_directory, durable=config.durable)
        undo.callback(lambda: self._manifests.close(keep=self._keep))
        self._whereabouts = Whereabouts(
            self._runtime, self._tokens, self._manifests, self._directories
        )
        self._makers = Makers(
            config,
            Origin(boot, self._record.epoch),
            self._directories,
            self._manifests,
            self._post,
        )
        undo.callback(self._makers.stop)
        self._liveness = Liveness(self._tokens, self._poller)
        undo.callback(self._liveness.close)
        self._core = self._new_core()
        found = self._recover(boot)
        self._sweep(boot, found)
        if found.arrays or found.sessions:
            self._handle(found)
            self._liveness.schedule(time.monotonic_ns())
        self._look_at_directories()

    def _in_quarantine(self) -> frozenset[int]:
        """Segments that a person is to look at first: an end in order removes all others."""
        if not self._config.durable:
            return frozenset()  # they are another's, and their numbers may be ours too
        try:
            # Not by its path, at which there may be another's by now.
            return damaged_segments(f"/proc/self/fd/{self._runtime.fd}")
        except OSError:
            return self._damaged

    def _begin(self, boot: str) -> CoordinatorRecord:
        store = secrets.token_hex(8)
        if not self._config.durable:
            return CoordinatorRecord(epoch=1, store=store, directories=(), boot_id=boot)
        return begin_epoch(self._config.runtime_directory, boot, lambda: store)

    def _note_directory(self, path: str) -> None:
        """Write down that there is a segment directory, before anything is in it."""
        # One thread at a time makes directories.
        directories = dict.fromkeys([*self._record.directories, path])
        self._record = msgspec.structs.replace(self._record, directories=tuple(directories))
        write_coordinator(self._config.runtime_directory, self._record, dir_fd=self._runtime.fd)

    def _recover(self, boot: str) -> events.Recovered:
        for path in self._directories.adopt(self._record.directories):
            log.warning("a segment directory is gone: %s", path)
        recovery = recover(
            self._manifests,
            self._directories,
            self._tokens.read(),
            boot=boot,
            segment_mode=self._config.segment_mode,
        )
        self._damaged = recovery.found.quarantined
        for line in recovery.lines():
            log.warning("%s", line)
        found = recovery.event
        if found.arrays or found.sessions:
            log.warning(
                "took over %d arrays (%d of them lost) and %d sessions",
                len(found.arrays),
                len(found.lost),
                len(found.sessions),
            )
        return found

    def _warn_of_host(self, host: Host) -> None:
        """Tell what lets every array, or every large one, fail later or go elsewhere."""
        preferred = host.preferred_directory
        if preferred and not os.path.isdir(preferred):
            log.warning("no array goes to %s (--mount): there is no such directory", preferred)
        elif preferred and host.preferred_mount() is None:
            log.warning(
                "no array goes to %s (--mount): it is on neither hugetlbfs nor tmpfs", preferred
            )
        largest, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
        if largest != resource.RLIM_INFINITY:
            log.warning(
                "this process may make files of at most %d bytes, so larger arrays are refused: "
                "start it with ulimit -f unlimited (RLIMIT_FSIZE, LimitFSIZE=)",
                largest,
            )

    def _sweep(self, boot: str, found: events.Recovered) -> None:
        host = read_host()
        self._warn_of_host(host)
        mounts = [mount.path for mount in host.hugetlbfs_mounts]
        mounts += [mount.path for mount in host.tmpfs_mounts]
        known = {record.segment.path for record in found.arrays}
        reclaimed = self._directories.sweep(mounts, boot=boot, keep=known)
        for path in reclaimed.left:
            log.warning("left alone, for it is not ours: %s", path)
        if reclaimed.count:
            log.warning(
                "removed %d segments (%d bytes) of coordinators that died",
                reclaimed.count,
                reclaimed.nbytes,
            )

    def _new_core(self) -> Coordinator:
        sessions = descriptors.sessions_within(self._limit)
        wanted = Limits().max_sessions
        if sessions < wanted:
            log.warning(
                "%d file descriptors are enough for %d sessions, not for %d",
                self._limit,
                sessions,
                wanted,
            )
        return Coordinator(
            instance=self._record.store,  # a successor has it too, a stranger does not
            pid=os.getpid(),
            uid=os.geteuid(),
            version=__version__,
            started_ns=time.monotonic_ns(),
            epoch=self._record.epoch,
            durable=self._config.durable,
            limits=Limits(
                max_sessions=min(sessions, wanted),
                max_bytes=self._config.quota_bytes,
                max_bytes_per_user=self._config.quota_bytes_per_user,
                lease_ns=self._config.lease_ns,
            ),
        )

    def __enter__(self) -> Daemon:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None and self._config.durable:
            self._keep = True  # whoever starts it again has everything
        self.close()

    def close(self) -> None:
        """Let the last replies out; remove every file, or leave what the next one needs."""
        self._undo.close()

    def _close_descriptors(self) -> None:
        for fd in (self._wake_fd, self._parent_fd):
            if fd >= 0:
                os.close(fd)

    # The loop -----------------------------------------------------------------

    def run(self) -> int:
        """Serve until a signal, a Shutdown request or the end of the parent stops us.

        Returns
        -------
        int
            Exit status: 0, or :data:`EXIT_HANGUP`.
        """
        self._watch_parent()
        log.info("listening at %s", " and ".join(filter(None, (self.address, self.tcp_address))))
        while self._running:
            ready = dict(self._poller.poll(self._patience_ms()))
            if self._signals.fileno() in ready:
                for name in self._signals.read():
                    self._on_signal(name)
            if self._parent_fd in ready:
                self._poller.unregister(self._parent_fd)
                self._stop("the parent process ended")
            if self._wake_fd in ready:
                self._take_outcomes()
            # Before requests: a pid that is dead must not speak again.
            for session in self._liveness.exited(ready):
                self._handle(events.ProcessExited(session))
            self._look_around()
            for socket in self._endpoint.sockets:
                if socket in ready:
                    for request in self._endpoint.receive(socket):
                        self._on_request(request)
        return self._status

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

    def _patience_ms(self) -> int | None:
        """How long nothing needs to be done; None without end, for an idle daemon sleeps."""
        times = [self._liveness.wake_ns, self._core.wake_ns, self._drain_ns()]
        wake_ns = min((time_ns for time_ns in times if time_ns is not None), default=None)
        if wake_ns is None:
            return None
        return max(0, -(-(wake_ns - time.monotonic_ns()) // 1_000_000))

    def _look_around(self) -> None:
        """What is to be done at its time."""
        now_ns = time.monotonic_ns()
        if self._liveness.check_due(now_ns):
            self._look_at_workers()
            self._makers.retry()
            self._look_at_directories()
        for session in self._liveness.ended(now_ns):
            self._handle(events.ProcessExited(session))
        if self._core.wake_ns is not None and self._core.wake_ns <= now_ns:
            self._handle(events.Tick())
        drain_ns = self._drain_ns()
        if drain_ns is not None and drain_ns <= now_ns:
            self._drain(now_ns)

    def _look_at_workers(self) -> None:
        for session, pid in self._core.busy_workers:
            stopped = is_stopped(pid)
            self._handle(
                events.WorkerStopped(session) if stopped else events.WorkerContinued(session)
            )

    def _look_at_directories(self) -> None:
        if self._whereabouts.look():
            self._handle(events.TroubleSeen(self._whereabouts.troubles))

    def _on_signal(self, name: str) -> None:
        if self._core.stopping:
            return
        # Whoever sends SIGHUP wants the settings read anew, or has lost the terminal: in
        # neither case are the arrays to go.
        if name == signal.SIGHUP.name and self._config.durable:
            self._keep = True
            self._status = EXIT_HANGUP
        left = "what it has is left to the next one" if self._keep else "what it has goes with it"
        log.info("%s: ends in order, and %s", name, left)
        self._stop(name)

    def _stop(self, reason: str) -> None:
        # A second signal that is no second wish: the core would not wait for anything.
        if not self._core.stopping:
            self._handle(events.StopRequested(reason))

    def _drain_ns(self) -> int | None:
        """When patience with what is under way ends next; None unless we are to stop."""
        if not self._core.stopping:
            return None
        if self._drain_since_ns is None:
            self._drain_since_ns = time.monotonic_ns()
        return self._drain_since_ns + (STOP_NS if self._makers.hurried else DRAIN_NS)

    def _drain(self, now_ns: int) -> None:
        if not self._makers.hurried:
            self._makers.hurry()
        else:
            self._handle(events.StopRequested("it took too long to drain"))

    def _take_outcomes(self) -> None:
        os.eventfd_read(self._wake_fd)
        while True:
            try:
                outcome = self._outcomes.get_nowait()
            except queue.Empty:
                return
            if isinstance(outcome, events.SegmentMade | events.SegmentRefused):
                self._makers.settled(outcome.token)
            self._handle(outcome)

    def _on_request(self, event: events.RequestReceived) -> None:
        if isinstance(event.request, Stats):
            self._look_at_directories()  # who asks is told of what is wrong now
        if isinstance(event.request, Hello) and self._is_full(event.request):
            self._endpoint.refuse(
                event.peer, event.correlation, descriptors.full_error(self._limit)
            )
        else:
            self._handle(event)

    def _is_full(self, request: Hello) -> bool:
        """Whether a session must be turned away; never one that goes on after a restart."""
        full = descriptors.is_full(self._limit)
        if full and not self._told_full:
            log.warning(
                "%d of %d file descriptors are in use: new sessions are turned away",
                descriptors.open_count(),
                self._limit,
            )
        self._told_full = full
        return full and not self._tokens.knows(request.resume)

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
                    self._endpoint.send(event.peer, event.correlation, Failed.from_error(error))
                continue
            for effect in effects:
                try:
                    self._perform(effect, pending)
                except Exception:  # as above
                    log.exception("cannot perform %s", type(effect).__name__)

    # Effects ------------------------------------------------------------------

    def _perform(self, effect: events.Effect, pending: deque[events.Event]) -> None:
        match effect:
            case events.Send():
                if not self._endpoint.send(effect.peer, effect.correlation, effect.message):
                    pending.append(events.PeerUnreachable(effect.peer, effect.message))
            case events.MakeSegment():
                self._makers.make(effect, self._tokens.name_of(effect.session))
            case events.CancelSegment():
                self._makers.cancel(effect.token)
            case events.SealSegment():
                self._makers.seal(effect)
            case events.PublishGeneration() | events.PublishTogether():
                pending.append(self._makers.publish(effect))
            case events.UnlinkSegment():
                self._makers.unlink(effect.segment)
            case events.WatchProcess():
                if not self._liveness.watch(effect.session, effect.pid, time.monotonic_ns()):
                    pending.append(events.ProcessExited(effect.session))
            case events.MakeToken():
                pending.append(self._make_token(effect))
            case events.CheckToken():
                held = self._liveness.bind(effect.session)
                pending.append(events.TokenChecked(effect.session, held))
            case events.UnwatchProcess():
                self._liveness.unwatch(effect.session)
            case events.Stop():
                self._running = False

    def _make_token(self, effect: events.MakeToken) -> events.Event:
        try:
            path = self._tokens.make(
                effect.session, effect.identity, effect.client, effect.lease_ns
            )
        except HugepoolError as error:
            log.error("cannot make a token for %s: %s", effect.identity.told_process, error)
            return events.TokenRefused(effect.session, Failed.from_error(error))
        self._liveness.schedule(time.monotonic_ns())
        return events.TokenMade(effect.session, path)

    def _post(self, event: events.Event) -> None:
        self._outcomes.put(event)
        os.eventfd_write(self._wake_fd, 1)
