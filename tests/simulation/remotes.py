"""Clients over TCP as the coordinator meets them: they live by a lease, and fence themselves.

Such a client goes by the fence of the real one, on the world's clock. It renews its session, and
when the fence is passed it gives up everything and begins anew, as a program that was told so does.
Until then it relies on what it was granted, and the ledger sees that it may.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hugepool.fence import Fence
from hugepool_common.errors import ErrorCode
from hugepool_common.messages import NOBODY, Failed, Hello, Renew, Renewed, Request, Welcome
from hugepool_server.records import OVER_TCP, Identity
from simulation.clients import At, Client

if TYPE_CHECKING:
    from simulation.world import World


class RemoteClient(Client):
    """One client over TCP after another in the same seat.

    Attributes
    ----------
    former
        The secret name of its session.
    fence
        Until when it relies on that.
    may_be_forgotten
        Whether a coordinator that was stopped in order has removed everything.
    """

    def __init__(self, world: World, number: int) -> None:
        self._sent_ns: dict[type, int] = {}
        super().__init__(world, number, uid=NOBODY, is_worker=False)
        self._on[Renewed] = self._on_renewed

    def _know_nothing(self) -> None:
        super()._know_nothing()
        self.fence = Fence(lambda: self.world.now_ns)
        self.may_be_forgotten = False

    @property
    def relies(self) -> bool:
        """Whether it may still use what it holds, as far as it knows."""
        return self.process.alive and not self.fence.over

    def identity(self) -> Identity:
        """Nobody, until it has a session."""
        return OVER_TCP

    # Moves --------------------------------------------------------------------

    def read(self) -> bool:
        """Take the next message, unless there is none to be had."""
        if self._give_up():
            return True
        return not self._is_cut and super().read()

    def act(self) -> bool:
        """Do something of its own accord; before all else see whether it may."""
        if self._give_up():
            return True
        if self._is_cut and self.chance.one_in(16):  # its heartbeats tell
            self.lose_connection(0)
            return True
        if self.at is At.READY and self._is_due() and not self._asks(Renew):
            self.ask(Renew())
            return True
        return super().act()

    @property
    def _is_cut(self) -> bool:
        return self.connection is not None and self.connection.cut

    def _is_due(self) -> bool:
        left_s = self.fence.left_s
        assert left_s is not None, "a session without a lease"
        return left_s < self.fence.lease_ns / 1e9 * 0.6

    def _give_up(self) -> bool:
        """Where the fence is passed, let go of everything, and be as one that has begun."""
        if not self.fence.over or self.at is At.GONE:
            return False
        for request in self.asked.values():
            self.world.count(request, "fenced")
        self._unmap_all()
        self.disconnect(0)
        self._know_nothing()
        return True

    # Its session --------------------------------------------------------------

    def ask(self, request: Request) -> None:
        """Send a request; of some it counts from when."""
        if isinstance(request, Hello | Renew):
            self._sent_ns[type(request)] = self.world.now_ns
        super().ask(request)

    def _on_welcome(self, message: Welcome, request: Request | None) -> None:
        if self.at is not At.HELLO or not isinstance(request, Hello):
            return
        sent_ns = self._sent_ns[Hello]
        if request.resume:
            assert message.resumed, f"{self} was given another session in silence"
            self.fence.confirm(sent_ns)
            self._resume()
            return
        self.session, self.former = message.session, message.token
        self.fence.begin(message.lease_ns, sent_ns)
        self.at = At.READY

    def _on_renewed(self, message: Renewed, request: Request | None) -> None:
        if request is not None:
            self.fence.confirm(self._sent_ns[Renew])

    def _on_failed(self, message: Failed, request: Request | None) -> None:
        if message.code == ErrorCode.LEASE_EXPIRED and request is not None:
            right = self.world.evil or self.may_be_forgotten or not self.relies
            assert right, f"{self} was cut off: {message}"
            self.fence.end()
            self._give_up()
            return
        super()._on_failed(message, request)

    def _gone(self) -> None:
        self.former, self.session = "", 0
        self.fence = Fence(lambda: self.world.now_ns)
        super()._gone()
