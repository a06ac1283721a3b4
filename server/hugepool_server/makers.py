"""What takes long and so runs on threads: segments made, sealed and removed, with their manifests.

A manifest is the commit point of what it tells: it is written after the segment is
there, rewritten after the segment is checked, and removed before the segment
is. Whatever fails before leaves all as it was; whatever is killed in between is
put right by the next coordinator.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field

from hugepool_common.errors import (
    ArrayBusyError,
    CancelledError,
    HugepoolError,
    NotEnoughMemoryError,
    NotPermittedError,
)
from hugepool_common.messages import Failed
from hugepool_common.spec import Segment
from hugepool_server import events
from hugepool_server.aside import Aside
from hugepool_server.backends import select
from hugepool_server.backends.base import SegmentRequest
from hugepool_server.config import Config
from hugepool_server.manifests import Manifests
from hugepool_server.processes import writers_of
from hugepool_server.reclaim import SegmentDirectories
from hugepool_server.records import ArrayRecord
from hugepool_server.sealing import check_sealed

log = logging.getLogger("hugepoold")

MAKER_THREADS = 4
"""Arrays populated at once; each populates with threads of its own."""

SMALL_BYTES = 64 << 20
"""Arrays below this never wait for larger ones to be populated, or to be sealed."""

UNLINK_BYTES = 1 << 20
"""Segments up to this are removed in less time than a thread takes to begin."""

PROGRESS_INTERVAL_NS = 100_000_000
WRITER_PATIENCE_NS = 5_000_000_000
"""How long a seal waits for writers that were asked to let go."""

_NO_ROOM = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.ENOMEM,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOLCK,
    errno.EAGAIN,
)
_NOT_ALLOWED = (errno.EACCES, errno.EPERM, errno.EROFS)


@dataclass(frozen=True, slots=True)
class Origin:
    """What every manifest of one coordinator says of it."""

    boot_id: str
    epoch: int


@dataclass(frozen=True, slots=True)
class _Making:
    """A segment under way, for the session whose token is `owner`."""

    effect: events.MakeSegment
    owner: str
    cancel: threading.Event = field(default_factory=threading.Event)


class Makers:
    """The threads, and the slow effects that they perform.

    Parameters
    ----------
    config
        Modes, group, and whether checksums are wanted.
    origin
        Written into manifests.
    directories
        Where segments go.
    manifests
        Where it is written down what they are.
    post
        Takes the event that ends an effect; called on any thread.
    """

    def __init__(
        self,
        config: Config,
        origin: Origin,
        directories: SegmentDirectories,
        manifests: Manifests,
        post: Callable[[events.Event], None],
    ) -> None:
        self._config = config
        self._origin = origin
        self._directories = directories
        self._manifests = manifests
        self._post = post
        self._large = ThreadPoolExecutor(MAKER_THREADS, thread_name_prefix="maker")
        self._small = ThreadPoolExecutor(MAKER_THREADS, thread_name_prefix="small")
        self._large_sealers = ThreadPoolExecutor(MAKER_THREADS, thread_name_prefix="sealer")
        self._small_sealers = ThreadPoolExecutor(MAKER_THREADS, thread_name_prefix="small-sealer")
        self._removers = ThreadPoolExecutor(1, thread_name_prefix="remover")
        self._removals: set[Future[None]] = set()
        self._unremoved: deque[Segment] = deque()
        self._making: dict[int, _Making] = {}
        self._commit = threading.Lock()
        self._stopping = threading.Event()
        self._aside = Aside(self._stopping)

    def __repr__(self) -> str:
        return f"<Makers: {len(self._making)} segments, {len(self._removals)} removals under way>"

    # On the loop's thread -----------------------------------------------------

    def make(self, effect: events.MakeSegment, owner: str) -> None:
        """Begin to make a segment for the session whose token is `owner`."""
        making = self._making[effect.token] = _Making(effect, owner)
        pool = self._small if effect.spec.nbytes < SMALL_BYTES else self._large
        if _begin(pool, self._make, making, [*self._removals]) is None:
            self._post(events.SegmentRefused(effect.token, _no_thread(effect.spec.name)))

    def cancel(self, token: int) -> None:
        """Have a segment under way given up soon: it has no manifest from here on."""
        making = self._making.get(token)
        if making is None:
            return
        with self._commit:
            making.cancel.set()
            self._forget(making.effect.segment_id)

    def settled(self, token: int) -> None:
        """The outcome of a segment under way was taken in: it cannot be given up any more."""
        self._making.pop(token, None)

    def seal(self, effect: events.SealSegment) -> None:
        """Begin to seal a segment."""
        self._begin_seal(effect, None)

    def publish(self, effect: events.PublishGeneration | events.PublishTogether) -> events.Event:
        """Give sealed segments names and generations: a few renames, so no thread of its own."""
        publications = (
            (effect,) if isinstance(effect, events.PublishGeneration) else effect.publications
        )
        try:
            self._manifests.rename(
                {one.segment_id: (one.name, one.generation) for one in publications}
            )
        except Exception as error:
            return events.PublishRefused(effect.token, _failed(error, publications[0].name))
        return events.GenerationPublished(effect.token)

    def unlink(self, segment: Segment) -> None:
        """Remove a manifest at once and its segment soon, or both later."""
        if not self._forget(segment.segment_id):
            self._unremoved.append(segment)
            return
        if segment.length <= UNLINK_BYTES:
            self._remove(segment)
            return
        # Giving back the pages of 5 GiB takes a second.
        removal = _begin(self._removers, self._remove, segment)
        if removal is None:
            self._unremoved.append(segment)
            return
        self._removals.add(removal)
        removal.add_done_callback(self._removals.discard)

    def retry(self) -> None:
        """Remove what could not be removed before."""
        for _ in range(len(self._unremoved)):
            self.unlink(self._unremoved.popleft())

    @property
    def hurried(self) -> bool:
        """Whether :meth:`hurry` was called."""
        return self._stopping.is_set()

    def hurry(self) -> None:
        """Let nothing wait any longer: the coordinator is to end."""
        self._stopping.set()
        for making in list(self._making.values()):
            making.cancel.set()

    def stop(self) -> None:
        """End the threads; what is under way is given up, what is to be removed is removed."""
        self.hurry()
        self._aside.stop()  # it has given back to the sealers what waited
        for pool in (self._large, self._small, self._large_sealers, self._small_sealers):
            pool.shutdown(wait=True, cancel_futures=True)
        self._removers.shutdown(wait=True)

    # On threads of ours -------------------------------------------------------

    def _remove(self, segment: Segment) -> None:
        try:
            select.unlink_segment(segment)
        except OSError as error:
            log.error("cannot remove a segment yet: %s", error)
            self._unremoved.append(segment)

    def _forget(self, segment_id: int) -> bool:
        """Whether there is no manifest any more; one without its segment is an array lost."""
        try:
            self._manifests.remove(segment_id)
        except OSError as error:
            log.error("cannot remove the manifest of a segment yet: %s", error)
            return False
        return True

    def _make(self, making: _Making, removals: list[Future[None]]) -> None:
        effect = making.effect
        try:
            futures.wait(removals)  # what was destroyed before this request has left its pages
            outcome: events.Event = self._made(making)
        except Exception as error:
            outcome = events.SegmentRefused(effect.token, _failed(error, effect.spec.name))
        self._post(outcome)

    def _made(self, making: _Making) -> events.SegmentMade:
        effect = making.effect
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
            progress=self._progress_of(effect),
            cancel=making.cancel,
        )
        record = ArrayRecord(
            spec=effect.spec,
            segment=segment,
            pages=pages,
            creator=effect.creator,
            owner=making.owner,
            created_ns=time.monotonic_ns(),
            generation=1,
            sealed=False,
            checksum="",
            boot_id=self._origin.boot_id,
            epoch=self._origin.epoch,
            temporary=effect.temporary,
        )
        try:
            with self._commit:
                if making.cancel.is_set():
                    raise CancelledError("making the segment was cancelled")
                self._manifests.write(record)
        except BaseException:
            self._remove(segment)
            raise
        return events.SegmentMade(effect.token, segment, pages)

    def _progress_of(self, effect: events.MakeSegment) -> Callable[[int, int], None]:
        # A small array is there before anybody could read how far it is.
        last_ns = time.monotonic_ns() if effect.spec.nbytes < SMALL_BYTES else 0

        def progress(done_bytes: int, total_bytes: int) -> None:
            nonlocal last_ns
            now_ns = time.monotonic_ns()
            if now_ns - last_ns >= PROGRESS_INTERVAL_NS:
                last_ns = now_ns
                self._post(events.SegmentProgress(effect.token, done_bytes, total_bytes))

        return progress

    def _begin_seal(self, effect: events.SealSegment, since_ns: int | None) -> None:
        small = effect.spec.nbytes < SMALL_BYTES  # a large one reads for seconds
        pool = self._small_sealers if small else self._large_sealers
        if _begin(pool, self._seal, effect, since_ns) is None:
            self._post(events.SealRefused(effect.token, _no_thread(effect.spec.name)))

    def _seal(self, effect: events.SealSegment, since_ns: int | None) -> None:
        """Seal a segment, or put it aside while somebody could still write to it."""
        try:
            if not self._sealed_or_aside(effect, since_ns or time.monotonic_ns()):
                return
            try:
                checksum = self._checked(effect)
                self._manifests.update(effect.segment.segment_id, sealed=True, checksum=checksum)
            except BaseException:
                _restore_mode(effect.segment, self._config.segment_mode)
                raise
        except Exception as error:
            outcome: events.Event = events.SealRefused(
                effect.token, _failed(error, effect.spec.name)
            )
        else:
            outcome = events.SegmentSealed(effect.token, effect.segment, checksum)
        self._post(outcome)

    def _sealed_or_aside(self, effect: events.SealSegment, since_ns: int) -> bool:
        """Whether nobody can write to it any more; if not, it is tried again in a moment."""
        try:
            select.seal_segment(effect.segment, self._config.sealed_mode)
            return True
        except ArrayBusyError as error:
            # Workers that were told to unmap the segment do so when they read their notice.
            waited_ns = time.monotonic_ns() - since_ns
            if waited_ns > WRITER_PATIENCE_NS:
                pids = writers_of(effect.segment.device, effect.segment.inode)
                error.had = ", ".join(f"pid {pid}" for pid in pids)
                raise
        if self._stopping.is_set():
            raise CancelledError("the coordinator is stopping")
        try:
            self._aside.put(lambda: self._begin_seal(effect, since_ns), waited_ns)
        except RuntimeError as error:
            log.error("cannot start a thread: %s", error)
            raise _without_thread(effect.spec.name) from None
        return False

    def _checked(self, effect: events.SealSegment) -> str:
        return check_sealed(
            effect.segment,
            effect.spec,
            cancel=self._stopping,
            checksums=self._config.checksums,
        )


def _begin(
    pool: ThreadPoolExecutor, act: Callable[..., None], *arguments: object
) -> Future[None] | None:
    """Have a thread do something; None if there is none and none can be started.

    An executor has queued by then what it cannot begin, and would do it some time later.
    """
    taken = threading.Lock()

    def act_unless_refused() -> None:
        if taken.acquire(blocking=False):
            act(*arguments)

    try:
        return pool.submit(act_unless_refused)
    except RuntimeError as error:
        if not taken.acquire(blocking=False):
            begun: Future[None] = Future()  # by one that became free just then
            begun.set_result(None)
            return begun
        log.error("cannot start a thread: %s", error)
        return None


def _no_thread(name: str) -> Failed:
    return Failed.from_error(_without_thread(name))


def _without_thread(name: str) -> NotEnoughMemoryError:
    return NotEnoughMemoryError(
        f"no thread to work on {name!r} could be started",
        where="the coordinator",
        remedy="raise the limit of its tasks (ulimit -u, TasksMax=), or free memory",
    )


def _restore_mode(segment: Segment, file_mode: int) -> None:
    """Let a segment be written to again whose seal was refused."""
    with suppress(OSError):  # it is gone, and so is whoever could have written
        fd = os.open(segment.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            status = os.fstat(fd)
            if (status.st_dev, status.st_ino) == (segment.device, segment.inode):
                os.fchmod(fd, file_mode)
        finally:
            os.close(fd)


def _failed(error: Exception, name: str) -> Failed:
    """The reply to a request that ended so; what is no error of ours is logged too."""
    if isinstance(error, HugepoolError):
        return Failed.from_error(error)
    if not isinstance(error, OSError):
        log.error("an act on %s failed", name, exc_info=error)
        return Failed.from_error(error)
    where = str(error.filename or "")
    if error.errno in _NO_ROOM:
        return Failed.from_error(
            NotEnoughMemoryError(
                f"no room for {name!r} and its record: {error.strerror}",
                where=where,
                remedy="make room in the runtime directory, or destroy arrays",
            )
        )
    kind = NotPermittedError if error.errno in _NOT_ALLOWED else HugepoolError
    log.error("an act on %s failed: %s", name, error)
    return Failed.from_error(
        kind(f"the system refuses what {name!r} needs: {error.strerror or error}", where=where)
    )
