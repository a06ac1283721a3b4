"""Ways to break the state machine, or the daemon around it, that a run must notice.

Each takes one line out, or turns one round, in one function.
"""

from __future__ import annotations
import __future__

import inspect
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from hugepool.fence import Fence
from hugepool_server import adoption, jobs, patience, session_requests
from hugepool_server.array_requests import ArrayRequests
from hugepool_server.job_requests import JobRequests
from hugepool_server.leases import Leases
from hugepool_server.parts import Assignment
from hugepool_server.publication_requests import PublicationRequests
from hugepool_server.registry import Registry
from hugepool_server.session_requests import SessionRequests
from hugepool_server.state import State
from simulation.life import Life


@dataclass(frozen=True, slots=True)
class Breakage:
    """One function that does something else.

    Parameters
    ----------
    name
        What is wrong then.
    broken
        The function.
    line, instead
        What stands in it once, and what is put in its place.
    is_rare
        Takes many worlds to be noticed.
    """

    name: str
    broken: Callable[..., Any]
    line: str
    instead: str
    is_rare: bool = False

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Break it for a while."""
        function: Any = self.broken
        source = textwrap.dedent(inspect.getsource(function))
        assert source.count(self.line) == 1, f"{self.name}: the code is not what it was"
        space: dict[str, Any] = {}
        flags = __future__.annotations.compiler_flag
        code = compile(source.replace(self.line, self.instead), __file__, "exec", flags)
        exec(code, function.__globals__, space)
        (made,) = space.values()
        whole = function.__code__
        function.__code__ = made.__code__
        try:
            yield
        finally:
            function.__code__ = whole


BREAKAGES = (
    Breakage(
        "a report of an earlier epoch counts",
        Assignment.is_named,
        "(job, part, epoch) == (self.job.number, self.part.number, self.epoch)",
        "(job, part) == (self.job.number, self.part.number)",
        is_rare=True,
    ),
    Breakage(
        "a part is taken back under its old epoch",
        jobs._take_back,
        "assignment.part.epoch += 1",
        "pass",
    ),
    Breakage(
        "a part that could not be sent is waited for",
        SessionRequests.on_peer_unreachable,
        "self._state.jobs.unsent(session, event.unsent)",
        "pass",
        is_rare=True,
    ),
    Breakage(
        "a part is run while another process may still write",
        patience.bars,
        "if isinstance(stale, Assignment) and stale.job is job:",
        "return False\n    if isinstance(stale, Assignment) and stale.job is job:",
        is_rare=True,
    ),
    Breakage(
        "a job without workers waits for ever",
        patience.Patience.over_for,
        "now_ns - job.waiting_ns >= self.worker_ns",
        "False",
        is_rare=True,
    ),
    Breakage(
        "a failed job is not answered",
        JobRequests.fail,
        "self._state.reply(job.asker, error)",
        "pass",
    ),
    Breakage(
        "leases outlive their session",
        Leases.close,
        "for lease in [*session.leases.values(), *session.held.values()]:",
        "for lease in ():",
    ),
    Breakage(
        "anybody gives back any lease",
        Leases.release,
        "lease = session.leases.pop(number, None)",
        "lease = self._by_number.get(number)\n    if lease is not None:\n"
        "        lease.session.leases.pop(number, None)",
    ),
    Breakage(
        "two writers declare the same rows",
        Leases.check_rows,
        "lease.rows is None or lease.session is session",
        "True",
    ),
    Breakage(
        "a client that comes back loses what it holds",
        Leases.grant_again,
        "lease = session.leases[number] = self._new(number, session, segment_id, readonly)",
        "self._forget(lease := self._new(number, session, segment_id, readonly))",
    ),
    Breakage(
        "unsealed arrays outlive their owner",
        ArrayRequests.settle,
        "for found in state.registry.orphans:",
        "for found in ():",
    ),
    Breakage(
        "a superseded generation goes though it is leased",
        ArrayRequests.settle,
        "readers = state.leases.asked(found.segment_id)",
        "readers: list[object] = []",
    ),
    Breakage(
        "a superseded generation never goes",
        ArrayRequests.settle,
        "for found in state.registry.superseded:",
        "for found in ():",
    ),
    Breakage(
        "a superseded generation goes before all have told what they hold",
        State.may_be_held_unseen,
        "return self.registry.is_inherited(found) and bool(self.leases.resuming)",
        "return False",
    ),
    Breakage(
        "a name goes before what it superseded",
        ArrayRequests.remove,
        "for old in registry.older(found):",
        "for old in ():",
    ),
    Breakage(
        "a creation asked again gets somebody else's array",
        ArrayRequests._own,
        "found is None or found.owner is not asker.session",
        "found is None",
    ),
    Breakage(
        "what was made in vain stays",
        ArrayRequests.on_segment_made,
        "self._state.emit(UnlinkSegment(event.segment))",
        "pass",
    ),
    Breakage(
        "leases stay writable when their array is sealed",
        ArrayRequests.on_segment_sealed,
        "self._state.leases.make_readonly(act.subject.segment_id)",
        "pass",
    ),
    Breakage(
        "an array is destroyed under a job",
        ArrayRequests.destroy,
        "if self._is_used(found):",
        "if False:",
    ),
    Breakage(
        "generations do not rise",
        Registry.begin_publishing,
        "replaced.generation + 1 if replaced else 1",
        "1",
    ),
    Breakage(
        "a step gives away all names but the last",
        ArrayRequests._end_publication,
        "return [act, *(act.fellows or ())]",
        "return [act, *(act.fellows or ())[:-1]]",
    ),
    Breakage(
        "a step takes names that were not to be replaced",
        PublicationRequests._check,
        "if not replace and",
        "if False and",
    ),
    Breakage(
        "anybody publishes anything in a step",
        PublicationRequests.publish_all,
        'self._arrays.check_may(asker, found, "publish")',
        "pass",
        is_rare=True,
    ),
    Breakage(
        "a step that was half done is done from its beginning",
        PublicationRequests.publish_all,
        "left = [one for one in wanted if not _is_done(*one)]",
        "left = wanted",
        is_rare=True,
    ),
    Breakage(
        "a message that follows on another batch is taken",
        PublicationRequests._told,
        "if request.before != len(session.batched):",
        "if False:",
    ),
    Breakage(
        "the quota is not given back",
        Registry.remove,
        "self._charge(found, -1)",
        "pass",
    ),
    Breakage(
        "there is no quota",
        Registry._check_quota,
        "if limit and had + spec.nbytes > limit:",
        "if False:",
    ),
    Breakage(
        "the memory of a lost array is handed out",
        Registry.of_segment,
        "found.state in (ArrayState.MAKING, ArrayState.LOST)",
        "found.state is ArrayState.MAKING",
    ),
    Breakage(
        "an oldest generation wins the name",
        adoption.recover,
        "for record in reversed(records):",
        "for record in records:",
    ),
    Breakage(
        "a request is answered twice",
        State.reply_late,
        "act.asker = None",
        "pass",
    ),
    Breakage(
        "a session is taken up without its lock",
        SessionRequests.on_token_checked,
        "if not event.held and waiting:",
        "if False:",
    ),
    Breakage(
        "requests are served before the session is bound",
        SessionRequests.asker,
        "session.state is not SessionState.BOUND and not",
        "False and not",
    ),
    Breakage(
        "another process speaks for the session",
        session_requests._check_same_process,
        "if session.identity.process != identity.process:",
        "if False:",
    ),
    Breakage(
        "a client that does not read loses its session",
        SessionRequests.on_peer_unreachable,
        "if session.state is not SessionState.BOUND:",
        "if True:",
    ),
    Breakage(
        "the token of a closed session stays",
        SessionRequests.end,
        "self._state.emit(UnwatchProcess(session.number))",
        "pass",
    ),
    Breakage(
        "daemon: the epoch does not rise",
        Life.__init__,
        "self.machine.epoch += 1",
        "self.machine.epoch = 1",
    ),
    Breakage(
        "daemon: segments are unlinked before their manifests",
        Life._unlink,
        "self.machine.manifests.pop(segment_id, None)",
        "self.machine.unlink_file(segment_id)\n    self.world.burn()\n"
        "    self.machine.manifests.pop(segment_id, None)",
    ),
    Breakage(
        "daemon: a segment is told of before its manifest is written",
        Life._making,
        "machine.manifests[effect.segment_id] = record",
        "pass",
    ),
    Breakage(
        "daemon: all manifests of a step are renamed but the last",
        Life._publishing_together,
        "for one in publications:",
        "for one in publications[:-1]:",
    ),
    Breakage(
        "daemon: a refused step is not taken back",
        Life._publishing_together,
        "manifests[record.segment.segment_id] = record",
        "pass",
        is_rare=True,
    ),
    Breakage(
        "daemon: segments without a manifest are not swept",
        Life.recover,
        "if segment_id not in machine.manifests:",
        "if False:",
    ),
    Breakage(
        "daemon: what is lost is not told",
        Life.recover,
        "lost = frozenset(machine.manifests.keys() - machine.files.keys())",
        "lost = frozenset()",
    ),
    Breakage(
        "daemon: tokens of the dead are not swept",
        Life.recover,
        "del machine.tokens[name]",
        "pass",
    ),
    Breakage(
        "daemon: deaths are not told",
        Life.see_exits,
        "if not process.alive:",
        "if False:",
    ),
    Breakage(
        "a lease that ran out ends nothing",
        Leases.overdue,
        "if one.lease_end_ns <= now_ns",
        "if False",
    ),
    Breakage(
        "a renewal is not noted",
        SessionRequests.renew,
        "self._state.leases.renew(asker.session, now_ns)",
        "pass",
    ),
    Breakage(
        "what comes back over TCP too late gets a new session",
        SessionRequests.hello,
        "if request.resume and not event.identity.is_local:",
        "if False:",
    ),
    Breakage(
        "anybody over TCP is everybody over TCP",
        ArrayRequests.check_may,
        "who.user != found.creator.user",
        "who.uid != found.creator.uid",
    ),
    Breakage(
        "client: the fence is passed after the lease",
        Fence.begin,
        "sent_ns + lease_ns - lease_ns // MARGIN",
        "sent_ns + lease_ns + lease_ns // MARGIN",
    ),
    Breakage(
        "client: the fence counts from the answer",
        Fence.confirm,
        "until_ns = sent_ns +",
        "until_ns = self.now_ns() +",
    ),
)
