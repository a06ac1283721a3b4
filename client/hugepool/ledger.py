"""What is under way in a session: requests and their replies, notices, things to be given back.

Nothing here sends or waits; :class:`~hugepool.channel.Channel` does.
"""

from __future__ import annotations

from collections import deque

from msgspec.structs import replace

from hugepool import reunion
from hugepool.holdings import Claim, Doomed, Holdings
from hugepool.interrupts import Uninterrupted
from hugepool_common.messages import (
    ArrayCreated,
    Attached,
    CoordinatorStopping,
    CreateArray,
    Destroy,
    Detach,
    DropSegment,
    FromCoordinator,
    Message,
    Notice,
    Reply,
    WorkersChanged,
)


class Ledger:
    """The books of one channel. Not locked: who has the place at its socket uses them.

    Other threads look whether their own replies and notices are there, and abandon things.

    Attributes
    ----------
    holdings
        The leases that were granted and not given back.
    notices
        Those of no request, oldest first.
    abandoned
        Messages to be sent with the next request, claims to be given back with it, and what is
        to be destroyed then; garbage collection adds some at any time.
    stopping
        Whether the coordinator of the moment said that it ends.
    workers_changes
        How often the coordinator said that its last Stats no longer tells who works.
    """

    def __init__(self) -> None:
        self.holdings = Holdings()
        self.notices: deque[Notice] = deque()
        self.abandoned: deque[Message | Claim | Doomed] = deque()
        self.stopping = False
        self.workers_changes = 0
        self._requests: dict[int, Message] = {}
        self._replies: dict[int, Reply] = {}
        self._told: dict[int, deque[Notice]] = {}
        self._repeated: set[int] = set()
        self._unwanted: set[int] = set()
        self._uncertain: set[str] = set()
        self._former: set[int] = set()
        """Requests that were answered by numbers which mean other things now."""
        self._posted: dict[int, Message] = {}
        """What was abandoned, sent, and not answered yet: perhaps nobody was there to read it."""

    def begin(self, number: int, request: Message) -> Message:
        """Expect a reply; the request as it is to be sent."""
        if isinstance(request, CreateArray) and request.spec.name in self._uncertain:
            request = replace(request, again=True)
        self._requests[number] = request
        return request

    def answer_former(self, number: int, era: int) -> bool:
        """Whether a request is answered, for naming something by its number of another era."""
        if era == self.holdings.era:
            return False
        answer = reunion.answered_by_new_numbers(self._requests[number])
        if answer is not None:
            self._replies[number] = answer
        return answer is not None

    def reply(self, number: int) -> Reply | None:
        """The reply to a request, if it has come. It stays until the request is forgotten."""
        return self._replies.get(number)

    def take_told(self, number: int) -> list[Notice]:
        """The notices that came for a request since this was asked last."""
        told = self._told.get(number)
        taken: list[Notice] = []
        while told:  # one by one, for another may be added at any time
            taken.append(told.popleft())
        return taken

    def request(self, number: int) -> Message:
        """A request that is not forgotten."""
        return self._requests[number]

    def was_repeated(self, number: int) -> bool:
        """Whether a request was asked of two coordinators."""
        return number in self._repeated

    def disown(self, number: int) -> None:
        """What this request is granted is to be given back."""
        self._unwanted.add(number)

    def forget(self, number: int, *, ended: bool = False) -> None:
        """Expect no reply any more; `ended` says that the coordinator ended before it came."""
        request = self._requests.pop(number, None)
        answer = self._replies.pop(number, None)
        self._told.pop(number, None)
        self._repeated.discard(number)
        if isinstance(request, CreateArray):
            if answer is not None:
                self._uncertain.discard(request.spec.name)
            elif ended:
                # It may have been done. Who asks for it once more is to have it.
                self._uncertain.add(request.spec.name)
        if answer is not None and number in self._unwanted:
            self._unwanted.discard(number)
            if number not in self._former:
                self._give_back(answer)
        self._former.discard(number)

    def note(self, number: int, message: FromCoordinator) -> None:
        """Take in a message that came."""
        if isinstance(message, WorkersChanged):
            self.workers_changes += 1
        elif isinstance(message, Notice):
            self.stopping = self.stopping or isinstance(message, CoordinatorStopping)
            if number == 0:
                self.notices.append(message)
            elif number in self._requests:
                self._told.setdefault(number, deque()).append(message)
        elif number in self._requests:
            self.holdings.note(self._requests[number], message)
            self._replies[number] = message
        elif number in self._unwanted:
            self._unwanted.discard(number)
            self._give_back(message)
        else:
            self._posted.pop(number, None)

    def _give_back(self, granted: Reply) -> None:
        if isinstance(granted, ArrayCreated):
            self.holdings.let_go(self.holdings.claim(granted.lease))
            array = granted.array
            self.abandoned.append(Destroy(array.spec.name, array.segment.segment_id))
        elif isinstance(granted, Attached):
            self.holdings.let_go(self.holdings.claim(granted.lease))
            self.abandoned.append(Detach(granted.lease))

    def next_abandoned(self) -> Message | None:
        """What is to be sent of what was abandoned, if anything; once :meth:`sent_abandoned`."""
        if not self.abandoned:
            return None
        with Uninterrupted():  # a lease that is not put back would be given back by nobody
            while self.abandoned:
                first = self.abandoned[0]
                if isinstance(first, Message):
                    return first
                self.abandoned.popleft()
                if isinstance(first, Doomed):
                    if first.claim.era == self.holdings.era:
                        self.abandoned.appendleft(first.destroy)
                elif self.holdings.let_go(first):
                    self.abandoned.appendleft(Detach(first.held.lease))
        return None

    def sent_abandoned(self, number: int, message: Message) -> None:
        """It was sent; perhaps by a signal's handler too, which came just after it was."""
        with Uninterrupted():
            if self.abandoned and self.abandoned[0] is message:
                self.abandoned.popleft()
                if reunion.settled_by_end(message) is None:
                    self._posted[number] = message

    # Between two coordinators -------------------------------------------------

    def forget_segments(self) -> None:
        """Another coordinator has taken the place of ours: its numbers mean other arrays."""
        for number, request in self._requests.items():
            if number in self._replies:
                self._former.add(number)
                continue
            answer = reunion.refused_by_end(request) or reunion.answered_by_new_numbers(request)
            if answer is not None:
                self._replies[number] = answer
        for _ in range(len(self.abandoned)):  # in place, for more may be added meanwhile
            first = self.abandoned.popleft()
            if not (isinstance(first, Destroy) and first.segment_id):
                self.abandoned.append(first)

    def settle_abandoned(self) -> None:
        """Before leases are told to the next coordinator: what nobody holds is not among them.

        What was sent and not answered is abandoned anew, before all else: it was perhaps never
        read. What was done nevertheless is not found a second time.
        """
        self.abandoned.extendleft(reversed(self._posted.values()))
        self._posted.clear()
        for _ in range(len(self.abandoned)):
            first = self.abandoned.popleft()
            if isinstance(first, Claim):
                self.holdings.let_go(first)
            elif isinstance(first, Doomed) or reunion.settled_by_end(first) is None:
                self.abandoned.append(first)

    def ask_again(self) -> list[tuple[int, Message]]:
        """Requests to be sent to the next coordinator; the others have their replies now."""
        again = []
        for number, request in self._requests.items():
            if number in self._replies:
                continue
            settled = reunion.settled_by_end(request) or reunion.refused_by_end(request)
            if settled is not None:
                self._replies[number] = settled
            else:
                again.append((number, reunion.second_asking(request)))
        self._requests.update(again)
        self._repeated.update(number for number, _ in again)
        return again

    def begin_anew(self) -> None:
        """The next coordinator goes on: what the last one wanted and promised is void."""
        self.stopping = False
        # Only those that were asked again. In place: another thread may disown one just now.
        self._unwanted.difference_update(
            [number for number in list(self._unwanted) if number not in self._requests]
        )
        self.notices = deque(notice for notice in self.notices if isinstance(notice, DropSegment))
        self.workers_changes += 1
