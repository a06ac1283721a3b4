"""The named objects and the slow acts on them.

Making, sealing and publishing are *slow acts*: each has a token from its effect
until its event. A MakeSegment that nobody waits for any more stays among the acts,
without a name, until it has answered: only then is it known what there is to remove.

A name resolves to its newest generation. Those before it that somebody still holds
are *superseded*: they have no name, are found by their segment alone, and are removed
before the newest one is, lest a manifest that was left behind win the name back.

What is made or being made is charged to its creator's user until it is gone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from hugepool_common.errors import (
    ArrayBusyError,
    ArrayExistsError,
    ArrayLostError,
    ArrayNotFoundError,
    NotEnoughMemoryError,
    QuotaExceededError,
    SegmentChangedError,
)
from hugepool_common.spec import ArraySpec
from hugepool_common.units import format_bytes
from hugepool_server.leases import Asker, Session
from hugepool_server.named_object import ArrayState, NamedObject
from hugepool_server.records import Identity


class ActKind(Enum):
    """What a slow act does."""

    MAKE = "make"
    SEAL = "seal"
    PUBLISH = "publish"


_AWAITED = {
    ArrayState.MAKING: ActKind.MAKE,
    ArrayState.SEALING: ActKind.SEAL,
    ArrayState.PUBLISHING: ActKind.PUBLISH,
}
"""The act that is under way on an object in such a state."""

_AFTER_SEALING = (ArrayState.SEALED, ArrayState.PUBLISHING, ArrayState.SUPERSEDED)


@dataclass(slots=True, eq=False)
class Act:
    """A MakeSegment, SealSegment or PublishGeneration under way.

    Parameters
    ----------
    token
        Ties its end to its beginning.
    kind
        Which of the three.
    subject
        What is made, sealed or published.
    asker
        Where the reply goes; None once the request was answered otherwise, or its asker
        is at a new connection and has not asked again.
    abandoned
        Nobody wants the segment any more: whatever comes is removed.
    target, generation
        Of a publication: the name to be, and which generation of it.
    fellows
        Of a publication of several in one step: the others, which end with the first of
        them, and have none. None for one by itself.
    """

    token: int
    kind: ActKind
    subject: NamedObject
    asker: Asker | None
    abandoned: bool = False
    target: str = ""
    generation: int = 0
    fellows: tuple[Act, ...] | None = None


class Registry:
    """All named objects and slow acts.

    Parameters
    ----------
    max_arrays
        Most named objects, counting superseded ones, and abandoned acts whose pages may
        still be there.
    max_pending_bytes
        Most payload bytes being made at once.
    max_bytes, max_bytes_per_user
        Most payload bytes of all objects, and of those that one user created; 0 for any.
    first_number
        Segments are numbered from the next one; what has this number or a lower one was
        inherited from an earlier coordinator.
    """

    def __init__(
        self,
        *,
        max_arrays: int,
        max_pending_bytes: int,
        max_bytes: int = 0,
        max_bytes_per_user: int = 0,
        first_number: int,
    ) -> None:
        self._max_arrays = max_arrays
        self._max_pending_bytes = max_pending_bytes
        self._max_bytes = max_bytes
        self._max_bytes_per_user = max_bytes_per_user
        self._first_number = first_number
        self._objects: dict[str, NamedObject] = {}
        self._superseded: dict[int, NamedObject] = {}
        self._by_segment: dict[int, NamedObject] = {}
        # The few that have to be looked at after every event, by segment id.
        self._disowned: dict[int, NamedObject] = {}
        self._derived: dict[int, NamedObject] = {}
        self._acts: dict[int, Act] = {}
        self._charged: Counter[int] = Counter()  # payload bytes by uid
        self._inherited: tuple[int, Counter[int]] = 0, Counter()
        self._last_segment = first_number
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
        """All objects whose name resolves, lost ones among them, in no order."""
        return [found for found in self._objects.values() if found.state is not ArrayState.MAKING]

    @property
    def superseded(self) -> list[NamedObject]:
        """All objects that are kept without a name."""
        return list(self._superseded.values())

    @property
    def kept(self) -> list[NamedObject]:
        """All objects with a segment, named or not, in no order."""
        return [found for found in (*self.published, *self.superseded) if not found.lost]

    @property
    def orphans(self) -> list[NamedObject]:
        """Objects that go with their owner, which is gone, and at which nothing is under way."""
        lasting = (ArrayState.READY, ArrayState.SEALED, ArrayState.LOST)
        return [
            found
            for found in self._disowned.values()
            if found.goes_with_owner and found.state in lasting
        ]

    @property
    def bereft(self) -> list[NamedObject]:
        """Objects that wait for nothing, and lost what they were made of."""
        return [
            found
            for found in self._derived.values()
            if found.spec.made_of not in self._by_segment and found.state not in _AWAITED
        ]

    def charged(self, uid: int | None = None) -> int:
        """Payload bytes made or being made: of all, or of what one user created."""
        return self._charged.total() if uid is None else self._charged[uid]

    def is_inherited(self, found: NamedObject) -> bool:
        """Whether an earlier coordinator made it."""
        return found.segment_id <= self._first_number

    def older(self, found: NamedObject) -> list[NamedObject]:
        """The superseded generations of the name that this object has."""
        return [old for old in self._superseded.values() if old.name == found.name]

    def newest(self, found: NamedObject) -> NamedObject:
        """The generation that has the name of a superseded one, or the object itself."""
        return self._objects[found.name]

    def named(self, name: str) -> NamedObject | None:
        """Whatever has this name, made or being made."""
        return self._objects.get(name)

    def of_segment(self, segment_id: int) -> NamedObject | None:
        """The object with this segment, named or superseded, unless it is being made or lost."""
        found = self._by_segment.get(segment_id)
        if found is None or found.state in (ArrayState.MAKING, ArrayState.LOST):
            return None
        return found

    def find(self, name: str, segment_id: int = 0, *, lost: bool = False) -> NamedObject:
        """The object of this name, or of this handle.

        Parameters
        ----------
        name
            Of the object.
        segment_id
            Of the handle that the asker has; 0 for whatever has the name now. A handle
            stands for its segment: it goes on to mean it under another name, and when
            it was superseded, for as long as anybody keeps it.
        lost
            Whether one that is lost will do.

        Raises
        ------
        ArrayNotFoundError
            No object has the name.
        ArrayBusyError
            The object is being made.
        SegmentChangedError
            The handle's segment is gone, and another object has the name now.
        ArrayLostError
            Its memory is gone.
        """
        found = self._by_segment.get(segment_id) or self._objects.get(name)
        if found is None:
            raise ArrayNotFoundError(
                "no array has this name",
                where=name[:200],
                remedy="see the names with: hugepool ls",
            )
        if found.state is ArrayState.MAKING:
            raise ArrayBusyError(
                "the array is still being made",
                where=found.name,
                had=f"creation by {found.creator.told_pid}",
                remedy="try again when its creator has it",
            )
        if segment_id not in (0, found.segment_id):
            raise SegmentChangedError(
                "the array of this handle was destroyed, and another has its name",
                where=name,
                remedy=f"attach {name!r} anew",
            )
        if found.lost and not lost:
            raise ArrayLostError(
                "the memory of the array is gone",
                where=found.segment.path,
                remedy=f"destroy {found.name!r} and make it again",
            )
        return found

    def page(self, after: str, count: int) -> tuple[list[NamedObject], bool]:
        """The next `count` published objects by name, and whether names follow those."""
        names = sorted(found.name for found in self.published if found.name > after)
        return [self._objects[name] for name in names[:count]], len(names) > count

    def act_on(self, found: NamedObject) -> Act:
        """The slow act under way on an object."""
        return next(act for act in self.acts if act.subject is found)

    def publication_to(self, name: str) -> Act | None:
        """The publication under way that will give this name away."""
        return next((act for act in self.acts if act.target == name), None)

    def acts_of(self, session: Session) -> list[Act]:
        """The slow acts that this session waits for, or began and may ask for again."""
        return [
            act
            for act in self.acts
            if (act.asker is not None and act.asker.session is session)
            or (act.kind is ActKind.MAKE and not act.abandoned and act.subject.owner is session)
        ]

    # Changing -----------------------------------------------------------------

    def recover(self, objects: Iterable[NamedObject]) -> None:
        """Take in what an earlier coordinator made: sound, and each in its lasting state."""
        for found in objects:
            if found.state is ArrayState.SUPERSEDED:
                self._superseded[found.segment_id] = found
            else:
                self._objects[found.name] = found
            self._by_segment[found.segment_id] = found
            if found.spec.made_of:
                self._derived[found.segment_id] = found
            if found.owner is None:
                self._disowned[found.segment_id] = found
            self._charge(found, +1)
        self._inherited = len(self._by_segment), self._charged.copy()

    def begin_making(self, spec: ArraySpec, asker: Asker, *, temporary: bool) -> Act:
        """Take the name and begin to make the segment.

        Raises
        ------
        InvalidSpecError
            No such object can exist.
        ArrayExistsError
            The name is taken.
        SegmentChangedError
            What the object is made of is gone.
        QuotaExceededError
            The user, or all users, would have too much.
        NotEnoughMemoryError
            Another limit of the coordinator is reached.
        """
        spec.checked()
        publication = self.publication_to(spec.name)
        taken = self._objects.get(spec.name) or (publication and publication.subject)
        if taken:
            raise ArrayExistsError(
                f"the name is taken by what {taken.creator.told_pid} made",
                where=spec.name,
                remedy="choose another name, destroy what has it, or publish it under that name, "
                "which replaces what has it in one step",
            )
        if spec.made_of and self.of_segment(spec.made_of) is None:
            raise SegmentChangedError(
                "what this is made of is gone", where=spec.name, remedy="plan anew"
            )
        session = asker.session
        self._check_quota(spec, session.identity)
        self._check_room(spec)
        self._last_segment += 1
        made = NamedObject(spec, self._last_segment, session.identity, session, temporary=temporary)
        self._objects[spec.name] = self._by_segment[made.segment_id] = made
        if spec.made_of:
            self._derived[made.segment_id] = made
        self._charge(made, +1)
        return self._begin(ActKind.MAKE, made, asker)

    def begin_sealing(self, found: NamedObject, asker: Asker) -> Act:
        """Begin to seal an object that is ready."""
        found.move(ArrayState.SEALING)
        return self._begin(ActKind.SEAL, found, asker)

    def begin_publishing(self, found: NamedObject, target: str, asker: Asker) -> Act:
        """Begin to give a sealed object the name that may be another sealed or lost one's."""
        replaced = self._objects.get(target)
        found.move(ArrayState.PUBLISHING)
        act = self._begin(ActKind.PUBLISH, found, asker)
        act.target, act.generation = target, replaced.generation + 1 if replaced else 1
        return act

    def end(self, token: int, kind: ActKind) -> Act | None:
        """Take the act that ended off the list; None if it never was on it."""
        act = self._acts.get(token)
        if act is None or act.kind is not kind:
            return None
        if act.abandoned:
            self._charge(act.subject, -1)
        return self._acts.pop(token)

    def abandon(self, act: Act) -> None:
        """Give a MakeSegment up: its name is free at once, its end is still awaited."""
        act.abandoned = True
        self._forget(act.subject)

    def publish(self, act: Act) -> NamedObject | None:
        """The publication is done: the name means the new generation from here on.

        Returns
        -------
        NamedObject or None
            What had the name: superseded, or still lost, and in either case without it.
        """
        found = act.subject
        replaced = self._objects.get(act.target)
        if replaced is not None:
            if not replaced.lost:
                replaced.move(ArrayState.SUPERSEDED)
            self._superseded[replaced.segment_id] = replaced
        del self._objects[found.name]
        found.renamed(act.target, act.generation)
        self._objects[act.target] = found
        return replaced

    def remove(self, found: NamedObject) -> None:
        """Forget an object, and free the name if it has it."""
        self._charge(found, -1)
        self._forget(found)

    def disown(self, session: Session) -> None:
        """The session ends: nothing is its own any more."""
        for found in self._by_segment.values():
            if found.owner is session:
                found.owner = None
                self._disowned[found.segment_id] = found

    def _forget(self, found: NamedObject) -> None:
        found.move(ArrayState.GONE)
        if self._superseded.pop(found.segment_id, None) is None:
            del self._objects[found.name]
        del self._by_segment[found.segment_id]
        self._disowned.pop(found.segment_id, None)
        self._derived.pop(found.segment_id, None)

    def _begin(self, kind: ActKind, subject: NamedObject, asker: Asker) -> Act:
        self._last_token += 1
        act = Act(self._last_token, kind, subject, asker)
        self._acts[act.token] = act
        return act

    def _charge(self, found: NamedObject, sign: int) -> None:
        if not found.lost:  # it has no memory
            self._charged[found.creator.uid] += sign * found.nbytes

    def _check_quota(self, spec: ArraySpec, who: Identity) -> None:
        user = f"uid {who.uid}" if who.is_local else "clients over TCP"  # all of them as one
        for limit, had, whose in (
            (self._max_bytes, self.charged(), "of all arrays"),
            (self._max_bytes_per_user, self.charged(who.uid), f"of the arrays of {user}"),
        ):
            if limit and had + spec.nbytes > limit:
                raise QuotaExceededError(
                    f"the array would pass the quota {whose}",
                    needed=format_bytes(spec.nbytes),
                    had=f"{format_bytes(had)} of {format_bytes(limit)} taken",
                    where=spec.name,
                    remedy="destroy arrays that are not in use, or have the quota raised",
                )

    def _check_room(self, spec: ArraySpec) -> None:
        making = [act for act in self.acts if act.kind is ActKind.MAKE]
        taken = len(self._by_segment) + sum(act.abandoned for act in making)
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
        self._validate_objects()
        self._validate_superseded()
        self._validate_acts()
        self._validate_charges()

    def _validate_objects(self) -> None:
        tokens = {act.subject.segment_id: act for act in self._acts.values()}
        assert len(tokens) == len(self._acts), "two acts on one object"
        objects = [*self._objects.values(), *self._superseded.values()]
        ids = {found.segment_id: found for found in objects}
        assert len(ids) == len(objects), "segment id used twice"
        assert self._by_segment == ids
        assert len(ids) <= max(self._max_arrays, self._inherited[0])
        for name, found in self._objects.items():
            assert found.name == name
        disowned, derived = 0, 0
        for number, found in ids.items():
            state = found.state
            assert state is not ArrayState.GONE
            assert found.story[-1] is state
            assert 0 < number <= self._last_segment
            act = tokens.get(number)
            assert (act.kind if act else None) is _AWAITED.get(state), found
            if state is not ArrayState.MAKING:
                assert found.segment.segment_id == number
            if state is not ArrayState.LOST:
                after = state in _AFTER_SEALING
                assert found.sealed == after, found
            assert found.sealed or not found.checksum
            if found.owner is None:
                assert number in self._disowned
                disowned += 1
            if found.spec.made_of:
                assert number in self._derived
                derived += 1
        assert len(self._disowned) == disowned
        assert len(self._derived) == derived

    def _validate_superseded(self) -> None:
        for number, found in self._superseded.items():
            assert found.segment_id == number
            assert found.state is ArrayState.SUPERSEDED
            newest = self._objects[found.name]
            assert newest.state in (ArrayState.SEALED, ArrayState.LOST), "the newest may go first"
            assert 0 < found.generation < newest.generation, "generations fell"
        named = [(found.name, found.generation) for found in self._superseded.values()]
        assert len(set(named)) == len(named), "two generations of one number"

    def _validate_acts(self) -> None:
        targets = [act.target for act in self._acts.values() if act.kind is ActKind.PUBLISH]
        assert len(set(targets)) == len(targets), "two publications to one name"
        for token, act in self._acts.items():
            assert act.token == token <= self._last_token
            named = self._objects.get(act.subject.name) is act.subject
            assert named is not act.abandoned
            assert not act.abandoned or act.kind is ActKind.MAKE
            assert (act.kind is ActKind.PUBLISH) == bool(act.target)
            replaced = self._objects.get(act.target)
            if replaced is not None:
                assert replaced.state in (ArrayState.SEALED, ArrayState.LOST)
                assert act.generation == replaced.generation + 1

    def _validate_charges(self) -> None:
        charged: dict[int, int] = {}
        objects = [*self._by_segment.values()]
        objects += [act.subject for act in self._acts.values() if act.abandoned]
        for found in objects:
            if found.state is not ArrayState.LOST:
                uid = found.creator.uid
                charged[uid] = charged.get(uid, 0) + found.nbytes
        for uid, nbytes in self._charged.items():
            assert charged.get(uid, 0) == nbytes, "bytes not accounted for"
        assert charged.keys() <= self._charged.keys(), "bytes not accounted for"
        total, inherited = self._inherited[1].total(), self._inherited[1]
        if self._max_bytes:
            assert sum(charged.values()) <= max(self._max_bytes, total)
        if self._max_bytes_per_user:
            for uid, nbytes in charged.items():
                assert nbytes <= max(self._max_bytes_per_user, inherited[uid])
