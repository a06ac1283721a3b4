"""Whether the directories that a coordinator works in are still where they were.

All of them are held open and locked, which keeps nobody from moving or removing them.
Then what is written down goes where no next coordinator finds it, or nowhere, and those
who attach find no file. Nothing of that can be undone here; but it can be told while
there still is something to be saved.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import TypeVar

from hugepool_common import paths
from hugepool_server.manifests import Manifests, quarantined_segments
from hugepool_server.reclaim import SegmentDirectories
from hugepool_server.records import ArrayRecord
from hugepool_server.runtime import RuntimeDirectory
from hugepool_server.tokens import Tokens

log = logging.getLogger("hugepoold")

MOST_NAMED = 16
"""Arrays named in one sentence."""

MOST_TROUBLES = 6
TROUBLE_BYTES = 1024
"""What :attr:`Whereabouts.troubles` may be at most: they share a frame with all workers."""

_Seen = TypeVar("_Seen")

_REMEDY = "take a snapshot of what is to be kept, and start the coordinator anew"


class Whereabouts:
    """Looks where the directories of one coordinator are.

    Parameters
    ----------
    runtime, tokens, manifests, directories
        Those of the coordinator.

    Attributes
    ----------
    troubles
        What the last look found wrong, a sentence each, cut where it is long.

    Notes
    -----
    :meth:`renewed` may be called from any thread.
    """

    def __init__(
        self,
        runtime: RuntimeDirectory,
        tokens: Tokens,
        manifests: Manifests,
        directories: SegmentDirectories,
    ) -> None:
        self.troubles: tuple[str, ...] = ()
        self._runtime = runtime
        self._tokens = tokens
        self._manifests = manifests
        self._directories = directories
        self._unreachable: list[tuple[str, frozenset[int]]] = []
        self._told: frozenset[str] = frozenset()

    def __repr__(self) -> str:
        return f"<Whereabouts: {len(self.troubles)} troubles>"

    def renewed(self, path: str) -> None:
        """Remember whose memory lies in a segment directory that is about to be replaced."""
        ids = frozenset(one.segment.segment_id for one in self._manifests.lying_in(path))
        self._unreachable.append((path, ids))
        log.warning("the segment directory was moved or removed, and is made anew: %s", path)

    def look(self) -> bool:
        """See where everything is, and log what is newly wrong; whether anything has changed."""
        found = dict([*self._records(), *self._segments(), *self._quarantine()])
        for what in found.keys() - self._told:
            log.error("%s", found[what])
        self._told = frozenset(found)
        before = self.troubles
        self.troubles = tuple(_clipped(text) for text in list(found.values())[:MOST_TROUBLES])
        return before != self.troubles

    def _records(self) -> Iterable[tuple[str, str]]:
        if not _is_so(lambda: self._runtime.is_there):
            yield (
                "runtime",
                f"the runtime directory was moved or removed: {self._runtime.path}; nobody can "
                "connect, and the next coordinator there finds no array of this one; move it "
                f"back, or {_REMEDY}",
            )
            return
        if not _is_so(lambda: self._manifests.is_there):
            yield (
                "manifests",
                f"the manifests in {self._runtime.path} were moved or removed: no array can be "
                f"made, and the next coordinator removes those that are there; {_REMEDY}",
            )
        if not _is_so(lambda: self._tokens.is_there):
            yield (
                "tokens",
                f"the tokens in {self._runtime.path} were moved or removed: nobody can connect; "
                f"{_REMEDY}",
            )

    def _segments(self) -> Iterable[tuple[str, str]]:
        for path in _seen(self._directories.gone):
            yield path, _unreachable(path, self._manifests.lying_in(path))
        for path, ids in list(self._unreachable):
            records = self._manifests.lying_in(path)
            left = [one for one in records if one.segment.segment_id in ids]
            if left:
                yield path, _unreachable(path, left)
            else:
                self._unreachable.remove((path, ids))

    def _quarantine(self) -> Iterable[tuple[str, str]]:
        ids = _seen(lambda: tuple(sorted(quarantined_segments(self._runtime.path))))
        if ids:
            yield (
                "quarantine",
                f"damaged manifests are in {paths.quarantine_path(self._runtime.path)}: "
                f"{_listed(map(paths.manifest_name, ids))}; nobody can attach their arrays, and "
                "their memory is kept; once you have looked, remove them there, and the next "
                "start of the coordinator gives it back",
            )


def _unreachable(path: str, records: Iterable[ArrayRecord]) -> str:
    named = _listed({one.spec.name for one in records})
    return (
        f"the segment directory was moved or removed: {path}; nobody can attach what lay in it: "
        f"{named or 'nothing'}; destroy it and make it anew, or restore a snapshot"
    )


def _listed(found: Iterable[str]) -> str:
    names = sorted(found)
    listed = ", ".join(names[:MOST_NAMED])
    return f"{listed} and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else listed


def _clipped(text: str) -> str:
    return text.encode(errors="replace")[:TROUBLE_BYTES].decode(errors="ignore")


def _is_so(look: Callable[[], bool]) -> bool:
    """What a look says; yes where it cannot be seen."""
    try:
        return look()
    except OSError:
        return True


def _seen(look: Callable[[], tuple[_Seen, ...]]) -> tuple[_Seen, ...]:
    try:
        return look()
    except OSError:
        return ()
