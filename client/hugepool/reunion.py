"""What the end of a coordinator means to its client: how long it waits, what it asks again."""

from __future__ import annotations

import time

from msgspec.structs import replace

from hugepool_common.errors import ArrayLostError, ErrorCode, JobInterruptedError
from hugepool_common.messages import (
    Attach,
    Cancel,
    Cancelled,
    CreateArray,
    Destroy,
    Destroyed,
    Detach,
    Detached,
    Failed,
    Goodbye,
    GoodbyeSaid,
    Message,
    Publish,
    PublishAll,
    Reply,
    Seal,
    Shutdown,
    ShuttingDown,
    SubmitJob,
)


class Absence:
    """The time since a coordinator was found to have ended.

    Parameters
    ----------
    patience_s
        How long it may last.
    in_order
        Whether the coordinator said that it ends. Then nobody is waited for: it was to
        end, and who started another has done so when that one is asked for something.
    """

    def __init__(self, patience_s: float, *, in_order: bool) -> None:
        self.patience_s = 0.0 if in_order else patience_s
        self._began = time.monotonic()

    @property
    def over(self) -> bool:
        """Whether it has lasted as long as it may."""
        return time.monotonic() - self._began >= self.patience_s


def settled_by_end(request: Message) -> Reply | None:
    """The reply that a request has by the very end of the coordinator, if it has one.

    A lease is granted anew only if we ask for it, so to give one back is done; and so is
    what concerned that coordinator alone.
    """
    match request:
        case Detach():
            return Detached()
        case Cancel():
            return Cancelled(found=False)
        case Shutdown():
            return ShuttingDown()
        case Goodbye():
            return GoodbyeSaid()
    return None


def refused_by_end(request: Message) -> Reply | None:
    """The error of a request that must not be asked a second time."""
    if not isinstance(request, SubmitJob):
        return None
    # Its parts may be half done, and may not be such that they can be done twice.
    return Failed.from_error(
        JobInterruptedError(
            "the coordinator was restarted while the job ran",
            where=request.kernel,
            remedy="submit it again; what it writes may be partly written",
        )
    )


def answered_by_new_numbers(request: Message) -> Reply | None:
    """The reply to a request that names a segment by a number of a coordinator that is no more.

    One that has nothing to do with it has taken its place, and calls another segment so.
    """
    match request:
        case Destroy() if request.segment_id:
            return Destroyed()
        case Detach():
            return Detached()
        case Attach() | Seal() if request.segment_id:
            return _lost(request.name)
        case Publish() if request.segment_id:
            return _lost(request.source)
        case PublishAll() if request.names:
            return _lost(request.names[0])
        case SubmitJob():
            for operand in request.operands:
                if operand.segment_id:
                    return _lost(operand.name)
    return None


def _lost(name: str) -> Reply:
    return Failed.from_error(
        ArrayLostError(
            f"{name!r} was lost: another coordinator has taken the place of the one that had it",
            where=name,
            remedy="what is attached can still be read: put a copy under a name",
        )
    )


def second_asking(request: Message) -> Message:
    """A request as the next coordinator is to be asked it."""
    return replace(request, again=True) if isinstance(request, CreateArray) else request


def not_found(answer: Reply) -> bool:
    """Whether a request failed for there being no such name."""
    return isinstance(answer, Failed) and answer.code == ErrorCode.ARRAY_NOT_FOUND


def second_answer(request: Message, answer: Reply) -> Reply:
    """The answer to a request that was asked twice: what is done is done."""
    if isinstance(request, Destroy) and not_found(answer):
        return Destroyed()
    return answer
