"""The named objects, from the first request to the last trace of their segment.

::

    MAKING ──> READY <──> SEALING ──> SEALED
       │         │                      │
       └─────────┴───────> GONE <───────┘

MAKING    the name is taken, a MakeSegment is under way, nobody can attach
READY     published; its creator, and whoever may, maps it writable
SEALING   a SealSegment is under way; nobody new may map it writable
SEALED    immutable
GONE      the name is free; whoever maps it keeps the pages

Making and sealing are *slow acts*: each has a token from its effect until its
event. A MakeSegment that nobody waits for any more stays among the acts, without
a name, until it has answered: only then is it known what there is to remove.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import Enum

import msgspec

from hugepool_common.errors import (
    ArrayBusyError,
    ArrayExistsError,
    ArrayNotFoundError,
    NotEnoughMemoryError,
    SegmentChangedError,
)
from hugepool_common.messages import ArrayInfo
from hugepool_common.spec import ArraySpec, PageReport, Segment
from hugepool_common.units import format_bytes
from hugepool_server.events import Identity
from hugepool_server.leases import Asker, Session

_STORY_LENGTH = 16


class ArrayState(Enum):
    """How far a named object is."""

    MAKING = "making"
    READY = "ready"
    SEALING = "sealing"
    SEALED = "sealed"
    GONE = "gone"


ALLOWED: dict[ArrayState, frozenset[ArrayState]] = {
    ArrayState.MAKING: frozenset({ArrayState.READY, ArrayState.GONE}),
    ArrayState.READY: frozenset({ArrayState.SEALING, ArrayState.GONE}),
    ArrayState.SEALING: frozenset({ArrayState.READY, ArrayState.SEALED}),
    ArrayState.SEALED: frozenset({ArrayState.GONE}),
    ArrayState.GONE: frozenset(),
}
"""The states that may follow a state."""


class ForbiddenTransitionError(RuntimeError):
    """A fault of the coordinator itself: a named object would change state against the table."""


class ActKind(Enum):
    """What a slow act does."""

    MAKE = "make"
    SEAL = "seal"


@dataclass(slots=True, eq=False)
class NamedObject:
    """An array or matrix with a name.

    Parameters
    ----------
    spec
        Its description, checked.
    segment_id
        Unique in its coordinator, from 1; known before the segment is.
    creator
        Who asked for it; decides who may write, seal and destroy.
    owner
        The session that asked for it, until that ends.
    """

    spec: ArraySpec
    segment_id: int
    creator: Identity
    owner: Session | None
    state: ArrayState = ArrayState.MAKING
    created_ns: int = 0
    story: deque[ArrayState] = field(
        default_factory=lambda: deque([ArrayState.MAKING], _STORY_LENGTH)
    )
    _segment: Segment | None = None
    _pages: PageReport | None = None

    def __repr__(self) -> str:
        return f"<NamedObject {self.spec.name} #{self.segment_id} {self.state.value}>"

    @property
    def name(self) -> str:
        """The name that it has, or had."""
        return self.spec.name

    @property
    def segment(self) -> Segment:
        """Where it lies; only once it was made."""
        assert self._segment is not None, self
        return self._segment

    @property
    def pages(self) -> PageReport:
        """Its maker's proof; only once it was made."""
        assert self._pages is not None, self
        return self._pages

    @property
    def sealed(self) -> bool:
        """Whether it is immutable."""
        return self.state is ArrayState.SEALED

    def move(self, state: ArrayState) -> None:
        """Change the state.

        Raises
        ------
        ForbiddenTransitionError
            The table does not allow it; the message tells the states before.
        """
        if state not in ALLOWED[self.state]:
            story = " > ".join(past.value for past in self.story)
            raise ForbiddenTransitionError(f"{self!r} cannot become {state.value} after {story}")
        self.state = state
        self.story.append(state)

    def info(self, readers: int, *, reasons: bool = True) -> ArrayInfo:
        """What a client may know of it.

        Parameters
        ----------
        readers
            Leases held on it.
        reasons
            Whether to tell the rungs that were passed over: a page of a list has no room for them.
        """
        pages = self.pages if reasons else msgspec.structs.replace(self.pages, reasons=())
        return ArrayInfo(
            spec=self.spec,
            segment=self.segment,
            pages=pages,
            sealed=self.sealed,
            creator_pid=self.creator.pid,
            creator_uid=self.creator.uid,
            created_ns=self.created_ns,
            readers=readers,
        )


@dataclass(slots=True, eq=False)
class Act:
    """A MakeSegment or SealSegment under way.

    Parameters
    ----------
    token
        Ties its end to its beginning.
    kind
        Which of the two.
    subject
        What is made or sealed.
    asker
        Where the reply goes; None once the request was answered otherwise.
    abandoned
        Nobody wants the segment any more: whatever comes is removed.
    """

    token: int
    kind: ActKind
    subject: NamedObject
    asker: Asker | None
    abandoned: bool = False


class Registry:
    """All named objects and slow acts.

    Parameters
    ----------
    max_arrays
        Most named objects, counting abandoned acts whose pages may still be there.
    max_pending_bytes
        Most payload bytes being made at once.
    """

    def __init__(self, *, max_arrays: int, max_pending_bytes: int) -> None:
        self._max_arrays = max_arrays
        self._max_pending_bytes = max_pending_bytes
        self._objects: dict[str, NamedObject] = {}
        self._by_segment: dict[int, NamedObject] = {}
        # The few that have to be looked at after every event, by segment id.
        self._disowned: dict[int, NamedObject] = {}
        self._derived: dict[int, NamedObject] = {}
        self._acts: dict[int, Act] = {}
        self._last_segment = 0
        self._last_token = 0

    def __repr__(self) -> str:
        return f"<Registry: {len(self._objects)} arrays, {len(self._acts)} acts>"

    # Looking ------------------------------------------------------------------

    @property
    def acts(self) -> tuple[Act, ...]:
        """All slow acts under way, oldest first."""
        return tuple(self._acts.values())

    @property
    def published(self) -> list[NamedObject]:
        """All objects that can be attached, in no order."""
        return [found for found in self._objects.values() if found.state is not ArrayState.MAKING]

    @property
    def orphans(self) -> list[NamedObject]:
        """Writable objects whose owner is gone."""
        return [found for found in self._disowned.values() if found.state is ArrayState.READY]

    @property
    def bereft(self) -> list[NamedObject]:
        """Objects that wait for nothing, and lost what they were made of."""
        return [
            found
            for found in self._derived.values()
            if found.spec.made_of not in self._by_segment
            and found.state in (ArrayState.READY, ArrayState.SEALED)
        ]

    def find(self, name: str, segment_id: int = 0) -> NamedObject:
        """The published object of this name.

        Parameters
        ----------
        name
            Of the object.
        segment_id
            The segment that the asker knows under this name; 0 for whatever it is now.

        Raises
        ------
        ArrayNotFoundError
            No object has it.
        ArrayBusyError
            The object is being made.
        SegmentChangedError
            Another object has the name now.
        """
        found = self._objects.get(name)
        if found is None:
            raise ArrayNotFoundError(
                "no array has this name", where=name[:200], remedy="see pool.list()"
            )
        if found.state is ArrayState.MAKING:
            raise ArrayBusyError(
                "the array is still being made",
                where=name,
                had=f"creation by pid {found.creator.pid}",
                remedy="try again when its creator has it",
            )
        if segment_id not in (0, found.segment_id):
            raise SegmentChangedError(
                "the array of this handle was destroyed, and another has its name",
                where=name,
                remedy=f"attach {name!r} anew",
            )
        return found

    def page(self, after: str, count: int) -> tuple[list[NamedObject], bool]:
        """The next `count` published objects by name, and whether names follow those."""
        names = sorted(found.name for found in self.published if found.name > after)
        return [self._objects[name] for name in names[:count]], len(names) > count

    def acts_of(self, session: Session) -> list[Act]:
        """The slow acts that this session waits for."""
        return [act for act in self.acts if act.asker is not None and act.asker.session is session]

    # Changing -----------------------------------------------------------------

    def begin_making(self, spec: ArraySpec, asker: Asker) -> Act:
        """Take the name and begin to make the segment.

        Raises
        ------
        InvalidSpecError
            No such object can exist.
        ArrayExistsError
            The name is taken.
        SegmentChangedError
            What the object is made of is gone.
        NotEnoughMemoryError
            A limit of the coordinator is reached.
        """
        spec.checked()
        if spec.name in self._objects:
            raise ArrayExistsError(
                "the name is taken",
                where=spec.name,
                had=f"an array of pid {self._objects[spec.name].creator.pid}",
                remedy="attach it, destroy it, or choose another name",
            )
        source = self._by_segment.get(spec.made_of)
        if spec.made_of and (source is None or source.state is ArrayState.MAKING):
            raise SegmentChangedError(
                "what this is made of is gone", where=spec.name, remedy="plan anew"
            )
        self._check_room(spec)
        self._last_segment += 1
        session = asker.session
        made = NamedObject(spec, self._last_segment, session.identity, session)
        self._objects[spec.name] = self._by_segment[made.segment_id] = made
        if spec.made_of:
            self._derived[made.segment_id] = made
        return self._begin(ActKind.MAKE, made, asker)

    def begin_sealing(self, found: NamedObject, asker: Asker) -> Act:
        """Begin to seal an object that is ready."""
        found.move(ArrayState.SEALING)
        return self._begin(ActKind.SEAL, found, asker)

    def end(self, token: int, kind: ActKind) -> Act | None:
        """Take the act that ended off the list; None if it never was on it."""
        act = self._acts.get(token)
        if act is None or act.kind is not kind:
            return None
        return self._acts.pop(token)

    def abandon(self, act: Act) -> None:
        """Give a MakeSegment up: its name is free at once, its end is still awaited."""
        act.abandoned = True
        self.remove(act.subject)

    def publish(self, found: NamedObject, segment: Segment, pages: PageReport, now_ns: int) -> None:
        """The segment is there: the name resolves from here on."""
        found.move(ArrayState.READY)
        found._segment, found._pages, found.created_ns = segment, pages, now_ns

    def sealed(self, found: NamedObject, segment: Segment) -> None:
        """The object is immutable from here on."""
        found.move(ArrayState.SEALED)
        found._segment = segment

    def remove(self, found: NamedObject) -> None:
        """Free the name."""
        found.move(ArrayState.GONE)
        del self._objects[found.name], self._by_segment[found.segment_id]
        self._disowned.pop(found.segment_id, None)
        self._derived.pop(found.segment_id, None)

    def disown(self, session: Session) -> None:
        """The session ends: nothing is its own any more."""
        for found in self._objects.values():
            if found.owner is session:
                found.owner = None
                self._disowned[found.segment_id] = found

    def _begin(self, kind: ActKind, subject: NamedObject, asker: Asker) -> Act:
        self._last_token += 1
        act = Act(self._last_token, kind, subject, asker)
        self._acts[act.token] = act
        return act

    def _check_room(self, spec: ArraySpec) -> None:
        making = [act for act in self.acts if act.kind is ActKind.MAKE]
        taken = len(self._objects) + sum(act.abandoned for act in making)
        if taken >= self._max_arrays:
            raise NotEnoughMemoryError(
                "the coordinator has no room for another array",
                needed=f"fewer than {self._max_arrays} arrays",
                had=str(taken),
                remedy="destroy arrays that are not in use",
            )
        pending = sum(act.subject.spec.nbytes for act in making)
        if pending + spec.nbytes > self._max_pending_bytes:
            raise NotEnoughMemoryError(
                "too many bytes are being made at once",
                needed=format_bytes(spec.nbytes),
                had=f"{format_bytes(pending)} of {format_bytes(self._max_pending_bytes)} taken",
                remedy="try again when the arrays under way are made",
            )

    # Invariants ---------------------------------------------------------------

    def validate(self) -> None:
        """Assert what must hold between events."""
        tokens = {act.subject.segment_id: act for act in self._acts.values()}
        assert len(tokens) == len(self._acts), "two acts on one object"
        assert len(self._objects) <= self._max_arrays
        for name, found in self._objects.items():
            assert found.name == name
            assert found.state is not ArrayState.GONE
            assert found.story[-1] is found.state
            assert 0 < found.segment_id <= self._last_segment
            act = tokens.get(found.segment_id)
            awaited = {ArrayState.MAKING: ActKind.MAKE, ArrayState.SEALING: ActKind.SEAL}
            assert (act.kind if act else None) is awaited.get(found.state), found
            if found.state is not ArrayState.MAKING:
                assert found.segment.segment_id == found.segment_id
        ids = {found.segment_id: found for found in self._objects.values()}
        assert len(ids) == len(self._objects), "segment id used twice"
        assert self._by_segment == ids
        assert self._disowned.keys() == {n for n, found in ids.items() if found.owner is None}
        assert self._derived.keys() == {n for n, found in ids.items() if found.spec.made_of}
        for token, act in self._acts.items():
            assert act.token == token <= self._last_token
            named = self._objects.get(act.subject.name) is act.subject
            assert named is not act.abandoned
            assert not act.abandoned or act.kind is ActKind.MAKE
