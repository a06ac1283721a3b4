"""What a session holds: the leases that a restarted coordinator must be told of."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from msgspec.structs import replace

from hugepool_common.messages import (
    ArrayCreated,
    Attach,
    Attached,
    Held,
    Message,
    Resume,
    Sealed,
)

PAGE_OF_LEASES = 500
"""Leases in one Resume: they fit a frame."""


class Holdings:
    """Live leases by number, as replies grant them and handles give them back."""

    def __init__(self) -> None:
        self._held: dict[int, Held] = {}
        self._lost: set[int] = set()

    def note(self, request: Message, reply: Message) -> None:
        """Take in what the reply to a request of ours changes."""
        if isinstance(reply, ArrayCreated):
            self._hold(Held(reply.lease, reply.array.segment.segment_id, readonly=False))
        elif isinstance(reply, Attached) and isinstance(request, Attach):
            segment_id = reply.array.segment.segment_id
            self._hold(Held(reply.lease, segment_id, request.readonly, request.rows))
        elif isinstance(reply, Sealed):
            segment_id = reply.array.segment.segment_id
            for held in [held for held in self._held.values() if held.segment_id == segment_id]:
                self._hold(replace(held, readonly=True, rows=None))

    def _hold(self, held: Held) -> None:
        self._held[held.lease] = held

    def let_go(self, lease: int) -> bool:
        """Forget a lease; whether the coordinator still counts it."""
        self._lost.discard(lease)
        return self._held.pop(lease, None) is not None

    def is_lost(self, lease: int) -> bool:
        """Whether the coordinator no longer knows what this lease was on."""
        return lease in self._lost

    def lose(self, segment_ids: Iterable[int]) -> None:
        """A restarted coordinator does not have these segments any more."""
        gone = set(segment_ids)
        for lease in [held.lease for held in self._held.values() if held.segment_id in gone]:
            del self._held[lease]
            self._lost.add(lease)

    def pages(self) -> Iterator[Resume]:
        """All of it, in messages of bounded length; one even if it is nothing."""
        leases = [self._held[number] for number in sorted(self._held)]
        for start in range(0, max(1, len(leases)), PAGE_OF_LEASES):
            stop = start + PAGE_OF_LEASES
            yield Resume(tuple(leases[start:stop]), more=stop < len(leases))
