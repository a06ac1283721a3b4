"""Publications of several objects in one step.

All is checked before anything is begun, and what was begun ends by one event: no client
ever sees some of the names changed, and a refusal leaves all of them.
"""

from __future__ import annotations

from hugepool_common.errors import (
    ArrayExistsError,
    InvalidSpecError,
    SegmentChangedError,
)
from hugepool_common.messages import Message, PublicationsTold, PublishAll, PublishedAll
from hugepool_common.spec import check_name
from hugepool_server.array_requests import ArrayRequests
from hugepool_server.events import PublishGeneration, PublishTogether
from hugepool_server.leases import Asker
from hugepool_server.named_object import ArrayState, NamedObject
from hugepool_server.state import State

_Wanted = tuple[str, NamedObject]
"""A name, and the object that is to have it."""


class PublicationRequests:
    """Takes batches of names in, and begins to give them to the objects they are for.

    Parameters
    ----------
    state
        The coordinator's.
    arrays
        Who knows what may be published, and where.
    """

    def __init__(self, state: State, arrays: ArrayRequests) -> None:
        self._state = state
        self._arrays = arrays

    def publish_all(self, asker: Asker, request: PublishAll, now_ns: int) -> Message | None:
        """Note a part of a batch, or begin the step with the last one."""
        told = self._told(asker, request)
        if told is None or request.more:
            return PublicationsTold(len(told or ()))
        asker.session.batched = []
        wanted = [(name, self._object(name, segment)) for name, segment in told]
        for _, found in wanted:
            self._arrays.check_may(asker, found, "publish")
        # Asked again: some may be done, if the coordinator of before ended in the middle.
        left = [one for one in wanted if not _is_done(*one)]
        if not left:
            return PublishedAll()
        if not self._joined(asker, left):
            self._check(asker, left, replace=request.replace)
            self._begin(asker, left)
        return None

    def _told(self, asker: Asker, request: PublishAll) -> list[tuple[str, int]] | None:
        """The batch so far, this request's part included; None if that follows on another one."""
        session = asker.session
        if len(request.names) != len(request.segment_ids):
            raise InvalidSpecError(
                "names and segments do not match",
                needed=f"{len(request.names)} segments",
                had=str(len(request.segment_ids)),
            )
        names = [check_name(name) for name in request.names]  # before they are kept
        if request.before == 0 or session.batch != request.batch:
            session.batch, session.batched = request.batch, []
        if request.before != len(session.batched):
            session.batched = []
            return None
        session.batched += zip(names, request.segment_ids, strict=True)
        most = self._state.limits.max_arrays
        if len(session.batched) > most:
            session.batched = []
            raise InvalidSpecError("there cannot be so many arrays", needed=f"at most {most}")
        return session.batched

    def _object(self, name: str, segment_id: int) -> NamedObject:
        found = self._state.registry.of_segment(segment_id)
        if found is None:
            raise SegmentChangedError("what was to have the name is gone", where=name)
        return found

    def _joined(self, asker: Asker, left: list[_Wanted]) -> bool:
        """Whether just this is under way for a connection that was given up."""
        if left[0][1].state is not ArrayState.PUBLISHING:
            return False
        act = self._state.registry.act_on(left[0][1])
        if act.asker is not None or act.fellows is None:
            return False
        if [(one.target, one.subject) for one in (act, *act.fellows)] != left:
            return False
        act.asker = asker
        return True

    def _check(self, asker: Asker, left: list[_Wanted], *, replace: bool) -> None:
        names = {name for name, _ in left}
        segments = {found.segment_id for _, found in left}
        if min(len(names), len(segments)) < len(left):
            raise InvalidSpecError("a name or an array is there twice", had=f"{len(left)} names")
        for _, found in left:
            self._arrays.check_source(found)
            if found.name in names:
                raise InvalidSpecError(
                    "an array cannot take the name that another gives up in the same step",
                    where=found.name,
                )
        for name, found in left:
            self._arrays.check_target(asker, found, name)
            if not replace and self._state.registry.named(name) is not None:
                raise ArrayExistsError(
                    "the name is taken",
                    where=name,
                    remedy="destroy what has it, or publish in its place",
                )

    def _begin(self, asker: Asker, left: list[_Wanted]) -> None:
        acts = [self._state.registry.begin_publishing(found, name, asker) for name, found in left]
        first, *others = acts
        first.fellows = tuple(others)
        for act in others:
            act.asker, act.fellows = None, ()
        self._state.emit(
            PublishTogether(
                first.token,
                tuple(
                    PublishGeneration(act.token, act.subject.segment_id, act.target, act.generation)
                    for act in acts
                ),
            )
        )


def _is_done(name: str, found: NamedObject) -> bool:
    return found.name == name and found.state is ArrayState.SEALED
