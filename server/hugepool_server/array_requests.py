"""Requests about arrays: what may be done to them, by whom, and what follows.

Handlers of requests return the reply, or None when it comes with a later event.
They check everything before they change anything.
"""

from __future__ import annotations

from hugepool_common.errors import ArrayBusyError, ArraySealedError, NotPermittedError
from hugepool_common.messages import (
    PAGE_OF_LIST,
    ArrayCreated,
    ArrayInfo,
    Attach,
    Attached,
    CreateArray,
    CreateProgress,
    Describe,
    Described,
    Destroy,
    Destroyed,
    Detach,
    Detached,
    DropSegment,
    List,
    Listed,
    Message,
    Seal,
    Sealed,
)
from hugepool_server.events import (
    CancelSegment,
    MakeSegment,
    SealRefused,
    SealSegment,
    SegmentMade,
    SegmentProgress,
    SegmentRefused,
    SegmentSealed,
    UnlinkSegment,
)
from hugepool_server.leases import Asker
from hugepool_server.registry import Act, ActKind, ArrayState, NamedObject
from hugepool_server.state import State, cancelled


class ArrayRequests:
    """Creates, grants, seals and destroys."""

    def __init__(self, state: State) -> None:
        self._state = state

    # Requests -----------------------------------------------------------------

    def create(self, asker: Asker, request: CreateArray, now_ns: int) -> Message | None:
        """Take the name and have the segment made."""
        self._check_room(asker)
        act = self._state.registry.begin_making(request.spec, asker)
        self._state.emit(
            MakeSegment(
                token=act.token,
                segment_id=act.subject.segment_id,
                spec=request.spec,
                huge_pages=request.huge_pages,
                page_size=request.page_size,
                backing=request.backing,
                creator=asker.session.identity,
                session=asker.session.number,
            )
        )
        return None

    def attach(self, asker: Asker, request: Attach, now_ns: int) -> Message:
        """Grant a lease, writable only to who may write."""
        found = self._state.registry.find(request.name)
        if not request.readonly:
            check_writable(found)
            self._check_may(asker, found, "write to")
        self._check_room(asker)
        lease = self._state.leases.grant(asker.session, found.segment_id, readonly=request.readonly)
        return Attached(lease.number, self._info(found))

    def detach(self, asker: Asker, request: Detach, now_ns: int) -> Message:
        """Take a lease back."""
        self._state.leases.release(asker.session, request.lease)
        return Detached()

    def seal(self, asker: Asker, request: Seal, now_ns: int) -> Message | None:
        """Begin to make an array immutable that nobody else writes."""
        found = self._state.registry.find(request.name, request.segment_id)
        uid = asker.session.identity.uid
        if uid != found.creator.uid:
            raise NotPermittedError(
                "only its creator's user may seal an array",
                needed=f"uid {found.creator.uid}",
                had=f"uid {uid}",
                where=found.name,
            )
        if found.sealed:
            return Sealed(self._info(found))
        check_writable(found)
        for lease in self._state.leases.writers(found.segment_id):
            if lease.session is not asker.session:
                raise _busy(found, f"a writable lease of pid {lease.session.identity.pid}")
        if self._state.jobs.writes(found.segment_id):
            raise _busy(found, "a job that writes it")
        held = self._state.leases.worker_writers(found.segment_id)
        for lease in held:
            if self._state.jobs.runs_on(lease.session, found.segment_id):
                raise _busy(found, f"a part running in pid {lease.session.identity.pid}")
        # Workers keep what they mapped between jobs; an idle one that mapped this
        # writable lets go of it, or the kernel would refuse to seal.
        for lease in held:
            self._state.leases.drop(lease)
            self._state.notify(lease.session, DropSegment(found.segment_id))
        act = self._state.registry.begin_sealing(found, asker)
        self._state.emit(SealSegment(act.token, found.segment, found.spec))
        return None

    def destroy(self, asker: Asker, request: Destroy, now_ns: int) -> Message:
        """Remove an array that no job uses."""
        found = self._state.registry.find(request.name)
        self._check_may(asker, found, "destroy")
        if found.state is ArrayState.SEALING:
            raise _busy(found, "a seal under way")
        if self._state.jobs.uses(found.segment_id):
            raise _busy(found, "a job that uses it")
        self.remove(found)
        return Destroyed()

    def list_page(self, asker: Asker, request: List, now_ns: int) -> Message:
        """Some names in order; Describe tells why their pages are not huge."""
        page, more = self._state.registry.page(request.after, PAGE_OF_LIST)
        return Listed(tuple(self._info(found, reasons=False) for found in page), more)

    def describe(self, asker: Asker, request: Describe, now_ns: int) -> Message:
        """One array in full, and who keeps it."""
        found = self._state.registry.find(request.name)
        pids = {lease.session.identity.pid for lease in self._state.leases.on(found.segment_id)}
        return Described(self._info(found), tuple(sorted(pids)))

    def _info(self, found: NamedObject, *, reasons: bool = True) -> ArrayInfo:
        return found.info(len(self._state.leases.on(found.segment_id)), reasons=reasons)

    def _check_room(self, asker: Asker) -> None:
        """A creation under way ends in a lease, so it counts as one."""
        acts = self._state.registry.acts_of(asker.session)
        making = sum(act.kind is ActKind.MAKE for act in acts)
        self._state.leases.check_room(asker.session, making)

    def _check_may(self, asker: Asker, found: NamedObject, verb: str) -> None:
        uid = asker.session.identity.uid
        if uid not in (found.creator.uid, self._state.uid, 0):
            raise NotPermittedError(
                f"only its creator's user may {verb} an array",
                needed=f"uid {found.creator.uid}",
                had=f"uid {uid}",
                where=found.name,
            )

    def remove(self, found: NamedObject) -> None:
        """Free the name; pages go when the last process lets go of them."""
        self._state.registry.remove(found)
        self._state.emit(UnlinkSegment(found.segment))
        for session in self._state.leases.void(found.segment_id):
            self._state.notify(session, DropSegment(found.segment_id))

    def settle(self) -> None:
        """After every event: what its creator left unsealed, or lost its matrix, goes."""
        for found in self._state.registry.orphans:
            writers = self._state.leases.writers(found.segment_id)
            if not writers and not self._state.jobs.uses(found.segment_id):
                self.remove(found)
        # Again, for a plan may be made of a plan.
        while lost := [
            found
            for found in self._state.registry.bereft
            if not self._state.jobs.uses(found.segment_id)
        ]:
            for found in lost:
                self.remove(found)

    # Ends of slow acts --------------------------------------------------------

    def on_segment_made(self, event: SegmentMade, now_ns: int) -> None:
        """Publish a segment, or remove it if nobody wants it any more."""
        act = self._state.registry.end(event.token, ActKind.MAKE)
        if act is None or act.abandoned:
            self._state.emit(UnlinkSegment(event.segment))
            if act is not None:
                self._state.reply_late(act, cancelled("the creation was cancelled"))
            return
        found = act.subject
        self._state.registry.publish(found, event.segment, event.pages, now_ns)
        assert act.asker is not None, "a creation that nobody waits for was not abandoned"
        lease = self._state.leases.grant(act.asker.session, found.segment_id, readonly=False)
        self._state.reply_late(act, ArrayCreated(lease.number, self._info(found)))

    def on_segment_refused(self, event: SegmentRefused, now_ns: int) -> None:
        """Free the name of an array that could not be made."""
        act = self._state.registry.end(event.token, ActKind.MAKE)
        if act is None:
            return
        if act.abandoned:
            self._state.reply_late(act, cancelled("the creation was cancelled"))
            return
        self._state.registry.remove(act.subject)
        self._state.reply_late(act, event.error)

    def on_segment_progress(self, event: SegmentProgress, now_ns: int) -> None:
        """Tell the creator how far its pages are."""
        for act in self._state.registry.acts:
            if act.token == event.token and act.asker is not None and not act.abandoned:
                self._state.reply(act.asker, CreateProgress(event.done_bytes, event.total_bytes))

    def on_segment_sealed(self, event: SegmentSealed, now_ns: int) -> None:
        """The array is immutable."""
        act = self._state.registry.end(event.token, ActKind.SEAL)
        if act is None:
            return
        self._state.registry.sealed(act.subject, event.segment)
        self._state.leases.make_readonly(act.subject.segment_id)
        self._state.reply_late(act, Sealed(self._info(act.subject)))

    def on_seal_refused(self, event: SealRefused, now_ns: int) -> None:
        """The array is writable as before."""
        act = self._state.registry.end(event.token, ActKind.SEAL)
        if act is None:
            return
        act.subject.move(ArrayState.READY)
        self._state.reply_late(act, event.error)

    def abandon(self, act: Act) -> None:
        """Stop making a segment that nobody wants; what comes of it is removed."""
        if not act.abandoned:
            self._state.registry.abandon(act)
            self._state.emit(CancelSegment(act.token))


def check_writable(found: NamedObject) -> None:
    """Refuse to write to an array that is sealed, or will be in a moment.

    Raises
    ------
    ArraySealedError, ArrayBusyError
        The one or the other.
    """
    if found.sealed:
        raise ArraySealedError(
            "the array is sealed", where=found.name, remedy="attach it read-only, or copy it"
        )
    if found.state is ArrayState.SEALING:
        raise _busy(found, "a seal under way")


def _busy(found: NamedObject, had: str) -> ArrayBusyError:
    return ArrayBusyError(
        "the array is in use", where=found.name, had=had, remedy="try again when that has ended"
    )
