"""Requests about arrays: what may be done to them, by whom, and what follows.

Handlers of requests return the reply, or None when it comes with a later event.
They check everything before they change anything.
"""

from __future__ import annotations

from hugepool_common.errors import (
    ArrayBusyError,
    ArraySealedError,
    InvalidSpecError,
    NotPermittedError,
    SegmentChangedError,
)
from hugepool_common.messages import (
    PAGE_OF_HOLDERS,
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
    Holder,
    List,
    Listed,
    Message,
    Publish,
    Published,
    PublishedAll,
    Seal,
    Sealed,
)
from hugepool_common.spec import ArraySpec, check_name
from hugepool_server.events import (
    CancelSegment,
    GenerationPublished,
    MakeSegment,
    PublishGeneration,
    PublishRefused,
    SealRefused,
    SealSegment,
    SegmentMade,
    SegmentProgress,
    SegmentRefused,
    SegmentSealed,
    UnlinkSegment,
)
from hugepool_server.leases import Asker, Rows
from hugepool_server.named_object import ArrayState, NamedObject
from hugepool_server.records import Identity
from hugepool_server.registry import Act, ActKind
from hugepool_server.state import State, cancelled


class ArrayRequests:
    """Creates, grants, seals, publishes and destroys.

    A client that is heard of at a new connection asks again for what was under way. An
    act of its session that goes on has no asker then, and the one who asks again is it.
    """

    def __init__(self, state: State) -> None:
        self._state = state

    # Requests -----------------------------------------------------------------

    def create(self, asker: Asker, request: CreateArray, now_ns: int) -> Message | None:
        """Take the name and have the segment made."""
        self._check_room(asker)
        if request.again:
            found = self._own(asker, request)
            if found is not None:
                return self._created_again(found, asker)
        act = self._state.registry.begin_making(request.spec, asker, temporary=request.temporary)
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
                temporary=request.temporary,
            )
        )
        return None

    def _own(self, asker: Asker, request: CreateArray) -> NamedObject | None:
        """What an earlier asking of this session made, or began to make."""
        found = self._state.registry.named(request.spec.name)
        if found is None or found.owner is not asker.session:
            return None
        if (found.spec, found.temporary) != (request.spec, request.temporary):
            return None
        if found.state is ArrayState.MAKING:
            return found if self._state.registry.act_on(found).asker is None else None
        leased = any(
            lease.segment_id == found.segment_id for lease in asker.session.leases.values()
        )
        return found if found.state is ArrayState.READY and not leased else None

    def _created_again(self, found: NamedObject, asker: Asker) -> Message | None:
        if found.state is ArrayState.MAKING:
            self._state.registry.act_on(found).asker = asker
            return None
        return self._created(found, asker)

    def _created(self, found: NamedObject, asker: Asker) -> Message:
        lease = self._state.leases.grant(asker.session, found.segment_id, readonly=False)
        return ArrayCreated(lease.number, self._info(found))

    def attach(self, asker: Asker, request: Attach, now_ns: int) -> Message:
        """Grant a lease, writable only to who may write, and rows to one writer alone."""
        found = self._state.registry.find(request.name, request.segment_id)
        rows = request.rows
        if rows is not None:
            self.check_declares(asker)
            check_rows(found.spec, rows, readonly=request.readonly)
        if not request.readonly:
            check_writable(found)
            self.check_may(asker, found, "write to")
        self._check_room(asker)
        if rows is not None:
            self._check_told(asker, found)
            self._state.leases.check_rows(asker.session, found.segment_id, rows)
        lease = self._state.leases.grant(
            asker.session, found.segment_id, readonly=request.readonly, rows=rows
        )
        return Attached(lease.number, self._info(found))

    def _check_told(self, asker: Asker, found: NamedObject) -> None:
        """Whose rows are whose is not known until all have told what they had of it."""
        if not self._state.may_be_held_unseen(found):
            return
        late = [
            session.identity.told_pid
            for session in self._state.leases.resuming
            if session is not asker.session
        ]
        if late:
            raise _busy(found, f"clients that have not told their rows: {', '.join(late)}")

    def detach(self, asker: Asker, request: Detach, now_ns: int) -> Message:
        """Take a lease back."""
        self._state.leases.release(asker.session, request.lease)
        return Detached()

    def seal(self, asker: Asker, request: Seal, now_ns: int) -> Message | None:
        """Begin to make an array immutable that nobody else writes."""
        found = self._state.registry.find(request.name, request.segment_id)
        who = asker.session.identity
        if who.user != found.creator.user:
            raise _not_yours(found, who, "seal")
        if found.sealed:
            return Sealed(self._info(found))
        if found.state is ArrayState.SEALING:
            act = self._state.registry.act_on(found)
            if act.asker is None:
                act.asker = asker
                return None
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

    def publish(self, asker: Asker, request: Publish, now_ns: int) -> Message | None:
        """Begin to give a sealed object a name, in place of what had it."""
        registry = self._state.registry
        check_name(request.name)
        if request.source == request.name:
            raise InvalidSpecError(
                "an array cannot be published in place of itself",
                where=request.name,
                remedy="create the next generation under another name, then publish it",
            )
        found = registry.find(request.source, request.segment_id)
        self.check_may(asker, found, "publish")
        if found.name == request.name and found.state is ArrayState.SEALED:
            return Published(self._info(found))  # asked again: it was done
        if found.state is ArrayState.PUBLISHING:
            act = registry.act_on(found)
            if act.asker is None and act.fellows is None and act.target == request.name:
                act.asker = asker
                return None
        self.check_source(found)
        self.check_target(asker, found, request.name)
        act = registry.begin_publishing(found, request.name, asker)
        self._state.emit(PublishGeneration(act.token, found.segment_id, act.target, act.generation))
        return None

    def check_source(self, found: NamedObject) -> None:
        """Refuse to publish what is not sealed, or has older generations, or is being published."""
        registry = self._state.registry
        if found.state is ArrayState.SUPERSEDED:
            raise SegmentChangedError(
                "the array of this handle was published, and superseded since",
                where=found.name,
                had=f"generation {found.generation} of {registry.newest(found).generation}",
                remedy="copy it to publish it again",
            )
        if not found.sealed:
            raise ArrayBusyError(
                "the array is not sealed", where=found.name, remedy="seal it, then publish it"
            )
        _check_still(registry.publication_to(found.name))
        if found.state is ArrayState.PUBLISHING:
            raise _busy(found, "a publication under way")
        # Their manifests would win the name back once this one's is another's.
        for old in registry.older(found):
            raise _busy(found, f"readers of its generation {old.generation}")

    def check_target(self, asker: Asker, found: NamedObject, name: str) -> None:
        """Refuse a name whose object the asker may not replace, or nobody by this one."""
        registry = self._state.registry
        target = registry.named(name)
        _check_still(registry.publication_to(name))
        if target is None:
            return
        self.check_may(asker, target, "replace")
        if not (target.lost or target.state is ArrayState.SEALED):
            raise ArrayBusyError(
                "what has the name is not sealed",
                where=name,
                had=f"an array that {target.creator.told_pid} is still at",
                remedy="seal it or destroy it",
            )
        made_of: NamedObject | None = found
        while made_of is not None:
            if made_of is target:
                raise InvalidSpecError(
                    "a plan cannot replace what it is made of", where=name, had=found.name
                )
            made_of = registry.of_segment(made_of.spec.made_of)

    def destroy(self, asker: Asker, request: Destroy, now_ns: int) -> Message:
        """Remove an array that no job uses, and those that it superseded."""
        found = self._state.registry.find(request.name, lost=True)
        if request.segment_id not in (0, found.segment_id):
            raise SegmentChangedError("another array has the name", where=request.name)
        self.check_may(asker, found, "destroy")
        _check_still(self._state.registry.publication_to(found.name))
        if found.state is ArrayState.SEALING:
            raise _busy(found, "a seal under way")
        if found.state is ArrayState.PUBLISHING:
            raise _busy(found, "a publication under way")
        if self._is_used(found):
            raise _busy(found, "a job that uses it")
        self.remove(found)
        return Destroyed()

    def list_page(self, asker: Asker, request: List, now_ns: int) -> Message:
        """Some names in order; Describe tells why their pages are not huge."""
        page, more = self._state.registry.page(request.after, PAGE_OF_LIST)
        return Listed(tuple(self._info(found, reasons=False) for found in page), more)

    def describe(self, asker: Asker, request: Describe, now_ns: int) -> Message:
        """One array in full, and who keeps it."""
        found = self._state.registry.find(request.name, lost=True)
        leases = self._state.leases.on(found.segment_id)
        holding = {lease.session.identity for lease in leases}
        pids = sorted(who.pid for who in holding if who.is_local)
        holders: list[Holder] = []
        if request.after is not None:
            following = [lease for lease in leases if lease.number > request.after]
            following.sort(key=lambda lease: lease.number)
            holders = [lease.told for lease in following[: PAGE_OF_HOLDERS + 1]]
        return Described(
            self._info(found),
            tuple(pids),
            tuple(holders[:PAGE_OF_HOLDERS]),
            len(holders) > PAGE_OF_HOLDERS,
        )

    def _info(self, found: NamedObject, *, reasons: bool = True) -> ArrayInfo:
        return found.info(len(self._state.leases.on(found.segment_id)), reasons=reasons)

    def _check_room(self, asker: Asker) -> None:
        """A creation under way ends in a lease, so it counts as one."""
        self._state.leases.check_room(asker.session, self.promised(asker))

    def promised(self, asker: Asker) -> int:
        """Leases that the asker will be granted when its creations end."""
        acts = self._state.registry.acts_of(asker.session)
        return sum(act.kind is ActKind.MAKE and act.asker is not None for act in acts)

    def check_may(self, asker: Asker, found: NamedObject, verb: str) -> None:
        """Refuse what is for the creator's user, the coordinator's, and root.

        A client over TCP is none of these to any array but its own.
        """
        who = asker.session.identity
        if who.user != found.creator.user and who.uid not in (self._state.uid, 0):
            raise _not_yours(found, who, verb)

    def check_declares(self, asker: Asker) -> None:
        """Refuse rows to a client over TCP: they would be its own for as long as a lease lasts.

        Nobody could tell when its process has let go of what it writes.
        """
        if not asker.session.identity.is_local:
            raise over_tcp("a client over TCP cannot declare rows its own")

    def remove(self, found: NamedObject) -> None:
        """Free the name; pages go when the last process lets go of them.

        What the object superseded goes first: a coordinator that ended between the two
        would leave a manifest that has the name again.
        """
        registry = self._state.registry
        if registry.named(found.name) is found:
            for old in registry.older(found):
                self.remove(old)
        registry.remove(found)
        self._state.emit(UnlinkSegment(found.segment))
        for session in self._state.leases.void(found.segment_id):
            self._state.notify(session, DropSegment(found.segment_id))

    def settle(self) -> None:
        """After every event: what nobody keeps goes.

        That is what its creator left unsealed and nobody else writes, what was temporary,
        or superseded, and has no reader, and what lost its matrix.
        """
        state = self._state
        for found in state.registry.orphans:
            at_it = state.leases.asked if found.sealed else state.leases.writers
            unseen = found.sealed and state.may_be_held_unseen(found)
            if not (at_it(found.segment_id) or self._is_used(found) or unseen):
                self.remove(found)
        for found in state.registry.superseded:
            readers = state.leases.asked(found.segment_id)
            if not (readers or self._is_used(found) or state.may_be_held_unseen(found)):
                self.remove(found)
        # Again, for a plan may be made of a plan.
        while bereft := [found for found in state.registry.bereft if not self._must_stay(found)]:
            for found in bereft:
                if found.state is not ArrayState.GONE:  # with what superseded it, just now
                    self.remove(found)

    def _is_used(self, found: NamedObject) -> bool:
        """Whether a job uses it, or what would be removed with it."""
        registry, uses = self._state.registry, self._state.jobs.uses
        if uses(found.segment_id):
            return True
        if registry.named(found.name) is not found:
            return False
        return any(uses(old.segment_id) for old in registry.older(found))

    def _must_stay(self, found: NamedObject) -> bool:
        return self._is_used(found) or (self._state.registry.publication_to(found.name) is not None)

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
        found.made(event.segment, event.pages, now_ns)
        if act.asker is not None:
            self._state.reply_late(act, self._created(found, act.asker))

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
        act.subject.made_immutable(event.segment, event.checksum)
        self._state.leases.make_readonly(act.subject.segment_id)
        self._state.reply_late(act, Sealed(self._info(act.subject)))

    def on_seal_refused(self, event: SealRefused, now_ns: int) -> None:
        """The array is writable as before."""
        act = self._state.registry.end(event.token, ActKind.SEAL)
        if act is None:
            return
        act.subject.move(ArrayState.READY)
        self._state.reply_late(act, event.error)

    def on_generation_published(self, event: GenerationPublished, now_ns: int) -> None:
        """The name means the new generation; the one before is superseded."""
        for act in self._end_publication(event.token):
            replaced = self._state.registry.publish(act)
            if replaced is not None and replaced.lost:
                self.remove(replaced)
            alone = act.fellows is None
            self._state.reply_late(
                act, Published(self._info(act.subject)) if alone else PublishedAll()
            )

    def on_publish_refused(self, event: PublishRefused, now_ns: int) -> None:
        """All names are as before."""
        for act in self._end_publication(event.token):
            act.subject.move(ArrayState.SEALED)
            self._state.reply_late(act, event.error)

    def _end_publication(self, token: int) -> list[Act]:
        """Take a publication off the list, with all that end with it."""
        registry = self._state.registry
        act = registry.end(token, ActKind.PUBLISH)
        if act is None:
            return []
        for fellow in act.fellows or ():
            registry.end(fellow.token, ActKind.PUBLISH)
        return [act, *(act.fellows or ())]

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


def check_rows(spec: ArraySpec, rows: Rows, *, readonly: bool) -> None:
    """Refuse rows that no writer could declare its own.

    Raises
    ------
    InvalidSpecError
        A reader declares them, the object is no array with rows, or it has not got them.
    """
    if readonly:
        raise InvalidSpecError(
            "only a writer declares rows", where=spec.name, remedy="attach with readonly=False"
        )
    if spec.kind != "array" or not spec.shape:
        raise InvalidSpecError("only an array with rows has rows to declare", where=spec.name)
    if not 0 <= rows[0] < rows[1] <= spec.shape[0]:
        raise InvalidSpecError(
            "the array has no such rows",
            needed=f"0 <= start < stop <= {spec.shape[0]}",
            had=f"{rows[0]} to {rows[1]}"[:80],
            where=spec.name,
        )


def over_tcp(message: str) -> NotPermittedError:
    """The error of what needs the kernel's word about the client's process."""
    return NotPermittedError(
        message,
        needed="a process that the kernel knows by its socket",
        had="a connection over TCP",
        remedy="connect to the coordinator's ipc:// address, in its runtime directory",
    )


def _not_yours(found: NamedObject, who: Identity, verb: str) -> NotPermittedError:
    return NotPermittedError(
        f"only its creator's user may {verb} an array",
        needed=found.creator.told_user,
        had=who.told_user,
        where=found.name,
        remedy="do it as that user, or make a copy of your own under another name"
        if who.is_local
        else "connect over ipc:// as that user",
    )


def _check_still(publication: Act | None) -> None:
    if publication is not None:
        raise ArrayBusyError(
            "the name is about to be given away",
            where=publication.target,
            had=f"a publication of {publication.subject.name!r} under way",
            remedy="try again when that has ended",
        )


def _busy(found: NamedObject, had: str) -> ArrayBusyError:
    return ArrayBusyError(
        "the array is in use", where=found.name, had=had, remedy="try again when that has ended"
    )
