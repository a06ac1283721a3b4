"""One named object, from the first request to the last trace of its segment.

::

    MAKING ──> READY <──> SEALING ──> SEALED <──> PUBLISHING
       │         │                    │    │
       │         │      LOST          │    └──> SUPERSEDED
       │         │       │            │              │
       └─────────┴───────┴─────> GONE <──────────────┘

MAKING      the name is taken, a MakeSegment is under way, nobody can attach
READY       there; its creator, and whoever may, maps it writable
SEALING     a SealSegment is under way; nobody new may map it writable
SEALED      immutable
PUBLISHING  sealed, and a PublishGeneration is under way that gives it another name
SUPERSEDED  sealed, and a newer generation has the name; kept for those who hold it
LOST        an earlier coordinator made it, and its memory is gone; only the name stands
GONE        the name is free; whoever maps it keeps the pages
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import Enum

import msgspec

from hugepool_common.messages import ArrayInfo
from hugepool_common.spec import ArraySpec, PageReport, Segment
from hugepool_server.leases import Session
from hugepool_server.records import ArrayRecord, Identity

_STORY_LENGTH = 16


class ArrayState(Enum):
    """How far a named object is."""

    MAKING = "making"
    READY = "ready"
    SEALING = "sealing"
    SEALED = "sealed"
    PUBLISHING = "publishing"
    SUPERSEDED = "superseded"
    LOST = "lost"
    GONE = "gone"


ALLOWED: dict[ArrayState, frozenset[ArrayState]] = {
    ArrayState.MAKING: frozenset({ArrayState.READY, ArrayState.GONE}),
    ArrayState.READY: frozenset({ArrayState.SEALING, ArrayState.GONE}),
    ArrayState.SEALING: frozenset({ArrayState.READY, ArrayState.SEALED}),
    ArrayState.SEALED: frozenset({ArrayState.PUBLISHING, ArrayState.SUPERSEDED, ArrayState.GONE}),
    ArrayState.PUBLISHING: frozenset({ArrayState.SEALED}),
    ArrayState.SUPERSEDED: frozenset({ArrayState.GONE}),
    ArrayState.LOST: frozenset({ArrayState.GONE}),
    ArrayState.GONE: frozenset(),
}
"""The states that may follow a state."""


class ForbiddenTransitionError(RuntimeError):
    """A fault of the coordinator itself: a named object would change state against the table."""


@dataclass(slots=True, eq=False)
class NamedObject:
    """An array, matrix or plan with a name.

    Parameters
    ----------
    spec
        Its description, checked.
    segment_id
        Never given twice; known before the segment is.
    creator
        Who asked for it; decides who may write, seal, publish and destroy.
    owner
        The session that asked for it, until that ends.
    state
        How far it is.
    generation
        How often something was published under its name, itself included.
    sealed
        Whether it is immutable, now and for good.
    checksum
        Of its payload, once it is sealed.
    temporary
        Whether it goes with its owner even when it is sealed.
    nbytes
        Its payload.
    """

    spec: ArraySpec
    segment_id: int
    creator: Identity
    owner: Session | None
    state: ArrayState = ArrayState.MAKING
    generation: int = 1
    sealed: bool = False
    checksum: str = ""
    temporary: bool = False
    created_ns: int = 0
    nbytes: int = field(init=False)
    story: deque[ArrayState] = field(default_factory=lambda: deque(maxlen=_STORY_LENGTH))
    _segment: Segment | None = None
    _pages: PageReport | None = None

    def __post_init__(self) -> None:
        self.story.append(self.state)
        self.nbytes = self.spec.nbytes

    @classmethod
    def recovered(
        cls, record: ArrayRecord, owner: Session | None, state: ArrayState
    ) -> NamedObject:
        """One that an earlier coordinator made, as its manifest has it."""
        return cls(
            spec=record.spec,
            segment_id=record.segment.segment_id,
            creator=record.creator,
            owner=owner,
            state=state,
            generation=record.generation,
            sealed=record.sealed,
            checksum=record.checksum,
            temporary=record.temporary,
            created_ns=record.created_ns,
            _segment=record.segment,
            _pages=record.pages,
        )

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
    def lost(self) -> bool:
        """Whether its memory is gone."""
        return self.state is ArrayState.LOST

    @property
    def goes_with_owner(self) -> bool:
        """Whether it ends with its owner's session, once nobody else is at it."""
        return self.temporary or not self.sealed

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

    def made(self, segment: Segment, pages: PageReport, now_ns: int) -> None:
        """The segment is there: the name resolves from here on."""
        self.move(ArrayState.READY)
        self._segment, self._pages, self.created_ns = segment, pages, now_ns

    def made_immutable(self, segment: Segment, checksum: str) -> None:
        """It is sealed from here on."""
        self.move(ArrayState.SEALED)
        self._segment, self.checksum, self.sealed = segment, checksum, True

    def renamed(self, name: str, generation: int) -> None:
        """It has another name, and is there to stay, from here on."""
        self.move(ArrayState.SEALED)
        self.spec = msgspec.structs.replace(self.spec, name=name)
        self.generation, self.temporary = generation, False

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
            generation=self.generation,
            checksum=self.checksum,
            lost=self.lost,
            temporary=self.temporary,
        )
