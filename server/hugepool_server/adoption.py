"""What an earlier coordinator left becomes what this one knows.

Records are whole, for their CRC was right, and are believed no further: one that
could not have been written by a coordinator is passed over, and its file stays for
a person to look at.

Of several manifests with one name the highest generation has it. Where two of one
generation are there, the earlier was being made for a client that gave it up (whose
name is free at once) when the coordinator ended: it was told to nobody and goes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from hugepool_common.errors import InvalidSpecError
from hugepool_common.messages import WORKER_CLIENT
from hugepool_server.events import Recovered, UnlinkSegment, WatchProcess
from hugepool_server.leases import Session
from hugepool_server.named_object import ArrayState, NamedObject
from hugepool_server.records import ArrayRecord, SessionRecord
from hugepool_server.state import State

_TOKEN = re.compile(r"[0-9a-f]{32}")


def recover(state: State, event: Recovered, now_ns: int) -> None:
    """Take in all that is sound.

    Sessions sleep until their client is heard of; one over TCP for as long as its lease. Sealed
    arrays are there at once, unsealed ones as long as their owner lives, and of what is lost the
    name.
    """
    for session in state.leases.recover(_sound_sessions(state, event.sessions), now_ns):
        if session.identity.is_local:
            state.emit(WatchProcess(session.number, session.identity.pid))
    records = list(_sound_arrays(state, event.arrays))
    # The newest generation of a name first; of two makers of one name the later.
    records.sort(key=lambda one: (one.generation, one.sealed, one.segment.segment_id))
    objects: dict[str, NamedObject] = {}
    kept = []
    for record in reversed(records):
        lost = is_lost(record, event.lost)
        newer = objects.get(record.spec.name)
        if newer is None:
            found = NamedObject.recovered(record, _owner(state, record), _state_of(record, lost))
            objects[found.name] = found
        elif lost or not record.sealed:
            state.emit(UnlinkSegment(record.segment))
            continue
        else:
            found = NamedObject.recovered(record, _owner(state, record), ArrayState.SUPERSEDED)
        kept.append(found)
    state.registry.recover(sorted(kept, key=lambda found: found.segment_id))
    # They may be at parts of jobs that ended with their coordinator, and still write.
    workers = [
        one
        for one in state.leases.sessions
        if one.client == WORKER_CLIENT and one.identity.is_local
    ]
    writable = [found.segment_id for found in kept if found.state is ArrayState.READY]
    state.jobs.inherit(workers, writable)


def is_lost(record: ArrayRecord, lost: frozenset[int]) -> bool:
    """Whether there is no memory to a manifest, or too little to map."""
    return record.segment.segment_id in lost or record.segment.length < record.spec.nbytes


def _state_of(record: ArrayRecord, lost: bool) -> ArrayState:
    if lost:
        return ArrayState.LOST
    return ArrayState.SEALED if record.sealed else ArrayState.READY


def _owner(state: State, record: ArrayRecord) -> Session | None:
    return state.leases.of_token(record.owner)


def _sound_sessions(state: State, records: Iterable[SessionRecord]) -> Iterable[SessionRecord]:
    numbers: set[int] = set()
    tokens: set[str] = set()
    for record in records:
        if (
            0 < record.session <= state.first_number
            and _TOKEN.fullmatch(record.token)
            and record.session not in numbers
            and record.token not in tokens
        ):
            numbers.add(record.session)
            tokens.add(record.token)
            yield record


def _sound_arrays(state: State, records: Iterable[ArrayRecord]) -> Iterable[ArrayRecord]:
    numbers: set[int] = set()
    generations: set[tuple[str, int]] = set()
    for record in records:
        number, named = record.segment.segment_id, (record.spec.name, record.generation)
        if not _is_sound(state, record) or number in numbers:
            continue
        if record.sealed and named in generations:
            continue
        numbers.add(number)
        if record.sealed:
            generations.add(named)
        yield record


def _is_sound(state: State, record: ArrayRecord) -> bool:
    try:
        spec = record.spec.checked()
    except InvalidSpecError:
        return False
    number = record.segment.segment_id
    return (
        0 < number <= state.first_number
        and (spec.made_of == 0 or spec.made_of < number)  # so that no plan is made of itself
        and (record.generation == 1 or (record.sealed and record.generation > 1))
        and (record.sealed or not record.checksum)
    )
