"""Connections: in order each way, as ZeroMQ gives them, and lost with either end."""

from __future__ import annotations

from collections import deque

from hugepool_common.messages import Message, Request
from hugepool_server.records import Identity
from simulation.machine import Process


class Connection:
    """One peer of one life of the coordinator.

    Attributes
    ----------
    up, down
        What was sent to the coordinator, and by it, and has not arrived; with correlation ids.
    open
        Whether the client still reads from it.
    broken
        Whether something sent by the coordinator did not go out.
    cut
        Whether nothing passes, either way, and nobody is told.
    """

    __slots__ = ("broken", "cut", "down", "identity", "life", "open", "peer", "process", "up")

    def __init__(self, peer: bytes, identity: Identity, life: int, process: Process) -> None:
        self.peer = peer
        self.identity = identity
        self.life = life
        self.process = process
        self.up: deque[tuple[int, Request]] = deque()
        self.down: deque[tuple[int, Message]] = deque()
        self.open = True
        self.broken = False
        self.cut = False

    def __repr__(self) -> str:
        return f"<Connection {self.peer.decode()} of pid {self.identity.pid}>"


def lose_tail(queue: deque[tuple[int, Message]] | deque[tuple[int, Request]], keep: int) -> int:
    """Lose what was sent last, but for the first `keep`; returns how many were lost."""
    lost = 0
    while len(queue) > keep:
        queue.pop()
        lost += 1
    return lost
