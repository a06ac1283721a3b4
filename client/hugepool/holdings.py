"""What a session holds: the leases that a restarted coordinator must be told of."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from msgspec.structs import replace

from hugepool_common.messages import (
    ArrayCreated,
    Attach,
    Attached,
    Destroy,
    Held,
    Message,
    Resume,
    Sealed,
)

PAGE_OF_LEASES = 500
"""Leases in one Resume: they fit a frame."""


@dataclass(slots=True, eq=False)
class Claim:
    """One lease that was granted to us, for as long as somebody here wants it.

    Known by itself and not by its number: a coordinator that has nothing to do with the
    one before gives the same numbers again.
    """

    held: Held
    lost: bool = False
    """Whether the coordinator of the moment has nothing that this could be a lease on."""
    era: int = -1
    """That of :class:`Holdings` when it was granted; -1 for none that is known."""


@dataclass(frozen=True, slots=True)
class Doomed:
    """What is to be destroyed, as long as its number still means what the claim was granted on."""

    destroy: Destroy
    claim: Claim


class Holdings:
    """Claims by the numbers of their leases, as replies grant them and handles let them go.

    Handles do so in any thread, while another one is at the session's books: each look at the
    claims is one step, and what is found in it may be gone in the next.

    Attributes
    ----------
    era
        Grows when a coordinator that has nothing to do with the one before takes its place:
        numbers of segments mean something in their own era alone.
    """

    def __init__(self) -> None:
        self.era = 0
        self._claims: dict[int, Claim] = {}

    def note(self, request: Message, reply: Message) -> None:
        """Take in what the reply to a request of ours changes."""
        if isinstance(reply, ArrayCreated):
            self._hold(Held(reply.lease, reply.array.segment.segment_id, readonly=False))
        elif isinstance(reply, Attached) and isinstance(request, Attach):
            segment_id = reply.array.segment.segment_id
            self._hold(Held(reply.lease, segment_id, request.readonly, request.rows))
        elif isinstance(reply, Sealed):
            for claim in list(self._claims.values()):
                if claim.held.segment_id == reply.array.segment.segment_id:
                    claim.held = replace(claim.held, readonly=True, rows=None)

    def _hold(self, held: Held) -> None:
        self._claims[held.lease] = Claim(held, era=self.era)

    def claim(self, lease: int) -> Claim:
        """What stands behind a lease that was just granted."""
        found = self._claims.get(lease)
        return found or Claim(Held(lease, 0, readonly=True), lost=True)

    def let_go(self, claim: Claim) -> bool:
        """Forget a claim; whether the coordinator is to be told."""
        lease = claim.held.lease
        return self._claims.get(lease) is claim and self._claims.pop(lease, None) is not None

    def lose(self, segment_ids: Iterable[int]) -> None:
        """A restarted coordinator does not have these segments any more."""
        gone = set(segment_ids)
        for claim in list(self._claims.values()):
            if claim.held.segment_id in gone:
                self._lose(claim)

    def lose_all(self) -> None:
        """Another coordinator has taken the place of ours: its numbers mean other things."""
        self.era += 1
        for claim in list(self._claims.values()):
            self._lose(claim)

    def _lose(self, claim: Claim) -> None:
        claim.lost = True
        self._claims.pop(claim.held.lease, None)

    def pages(self) -> Iterator[Resume]:
        """All of it, in messages of bounded length; one even if it is nothing."""
        leases = [claim.held for _, claim in sorted(self._claims.items())]
        for start in range(0, max(1, len(leases)), PAGE_OF_LEASES):
            stop = start + PAGE_OF_LEASES
            yield Resume(tuple(leases[start:stop]), more=stop < len(leases))
