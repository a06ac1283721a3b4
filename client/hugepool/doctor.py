"""What huge pages this host can give: read from the kernel, then proved by trial.

Every rung of the ladder is tried with a 2 MiB array through a private
coordinator, so that what is shown as huge was huge a moment ago in this very
process. A rung that is not there is shown with the reason and the commands that
would bring it.
"""

from __future__ import annotations

import os
import platform
import re
import sys
import time
from collections.abc import Callable
from typing import TextIO

import click

from hugepool.diagnosis import Diagnosis, Outcome, RungFinding, render, to_json
from hugepool.remedies import HUGE_RUNGS, SMALL_RUNG, remedies, room_bytes
from hugepool_common.errors import HugepoolError, UnsupportedPlatformError
from hugepool_common.pages import Host, read_host
from hugepool_common.settings import export_mount, read_settings
from hugepool_common.spec import PageReport
from hugepool_common.units import GIB, MIB, format_bytes, parse_bytes

TRIAL_ELEMENTS = 2 * MIB // 8
"""A trial array is one huge page of float64."""

EXIT_NOT_ENOUGH_PAGES = 4

Trial = Callable[[str], PageReport]
"""Makes a trial array on exactly this rung and tells how this process maps it."""


def examine(
    *,
    room: int = GIB,
    host: Host | None = None,
    trial: Trial | None = None,
    tlb_counter: str | None = None,
) -> Diagnosis:
    """Examine this host.

    Parameters
    ----------
    room
        Bytes of arrays that the suggested commands make room for.
    host, trial, tlb_counter
        Another picture of a host, another way to try a rung, another counter's
        state. Default: the real ones.

    Raises
    ------
    UnsupportedPlatformError
        This is not Linux.
    """
    if sys.platform != "linux":
        raise UnsupportedPlatformError(
            "hugepool needs Linux; huge pages are its kernel's", had=sys.platform
        )
    host = host or read_host()
    rungs = _tried(host, room) if trial is None else _findings(host, trial, room)
    default = next((one.rung for one in rungs[:-1] if one.outcome != "refused"), "")
    return Diagnosis(
        machine=platform.machine(),
        host=host,
        rungs=rungs,
        default_rung=default,
        tlb_counter=tlb_counter if tlb_counter is not None else _tlb_counter(),
        notes=_notes(host, room),
        exit_status=0 if any(one.outcome == "huge" for one in rungs) else EXIT_NOT_ENOUGH_PAGES,
    )


def _tried(host: Host, room: int) -> tuple[RungFinding, ...]:
    """Findings through a private coordinator, which ends before this returns."""
    from hugepool.connection import EMBEDDED, connect

    try:
        pool = connect(EMBEDDED)
    except (HugepoolError, OSError) as error:
        failure = error  # the name in the except clause is unbound after it

        def no_trial(_: str) -> PageReport:
            raise failure

        return _findings(host, no_trial, room)

    def trial(rung: str) -> PageReport:
        with pool.create("trial", TRIAL_ELEMENTS, "f8", backing=rung) as made:
            pages = made.pages
        pool.destroy("trial")
        return pages

    with pool:
        return _findings(host, trial, room)


def _findings(host: Host, trial: Trial, room: int) -> tuple[RungFinding, ...]:
    *ladder, on_request = HUGE_RUNGS
    return tuple(_finding(rung, host, trial, room) for rung in (*ladder, SMALL_RUNG, on_request))


def _finding(rung: str, host: Host, trial: Trial, room: int) -> RungFinding:
    commands = remedies(rung, host, uid=os.geteuid(), gid=os.getegid(), room=room)
    available = room_bytes(rung, host)
    began_ns = time.monotonic_ns()
    try:
        pages = trial(rung)
    except (HugepoolError, OSError) as error:
        took_ns = time.monotonic_ns() - began_ns
        if not commands and isinstance(error, HugepoolError) and error.remedy:
            commands = (error.remedy,)
        return RungFinding(
            rung, "refused", 0, 0, 0, available, took_ns, _reason(error, rung), commands
        )
    took_ns = time.monotonic_ns() - began_ns
    outcome: Outcome = "partly"
    if pages.huge_bytes == 0:
        outcome = "small"
    elif pages.huge_bytes == pages.length:
        outcome = "huge"
    reason = pages.reasons[-1].reason if outcome != "huge" and pages.reasons else ""
    return RungFinding(
        rung,
        outcome,
        pages.huge_bytes,
        pages.length,
        pages.page_size,
        available,
        took_ns,
        reason,
        commands,
    )


def _reason(error: HugepoolError | OSError, rung: str) -> str:
    """Why a trial was refused; the remedy is shown as a command of its own."""
    if not isinstance(error, HugepoolError):
        return str(error)
    # Of a walk down the ladder only this rung's words matter here: "... (rung: words)".
    own_words = re.search(rf"\({re.escape(rung)}: (.*)\)\Z", error.message)
    if own_words:
        return own_words[1]
    facts = [
        f"{word} {fact}"
        for word, fact in (("needed", error.needed), ("had", error.had), ("at", error.where))
        if fact
    ]
    return error.message + (f" ({', '.join(facts)})" if facts else "")


def _tlb_counter() -> str:
    from hugepool.counters import TlbCounter

    counter = TlbCounter()
    with counter:
        bytearray(4 * MIB)  # a counter that had no turn on the CPU tells nothing
    found = "available" if counter.misses is not None else counter.note
    counter.close()
    return found


def _notes(host: Host, room: int) -> tuple[str, ...]:
    notes = []
    if host.container:
        notes.append(
            f"this is a container ({host.container}): the counts of the huge-page pool are the "
            "machine's, and what they promise may be refused"
        )
    if host.container == "gvisor":
        notes.append("gVisor has no huge pages for shared memory: arrays get 4 KiB pages")
    if not host.process_thp:
        notes.append(
            "transparent huge pages are switched off for this process (prctl PR_SET_THP_DISABLE, "
            "inherited from its launcher): collapse cannot work"
        )
    if host.memory_limit is not None:
        limit = host.memory_limit
        notes.append(
            f"the control group {limit.where} leaves {format_bytes(limit.headroom_bytes)} of "
            f"{format_bytes(limit.limit_bytes)}; arrays in /dev/shm count against it, those on "
            "hugetlbfs do not"
        )
    too_large = host.past_all_memory(room)
    if too_large:
        notes.append(f"{too_large}: no command makes room for {format_bytes(room)} of arrays")
    elif host.memory_headroom_bytes < room:
        notes.append(
            f"only {format_bytes(host.memory_headroom_bytes)} of memory are free: there is no room "
            f"for {format_bytes(room)} of arrays outside the huge-page pool"
        )
    if host.preferred_directory and host.preferred_mount() is None:
        notes.append(
            f"HUGEPOOL_MOUNT={host.preferred_directory} lies on no hugetlbfs or tmpfs mount"
        )
    return tuple(notes)


def run(*, as_json: bool = False, room: int = GIB, stream: TextIO | None = None) -> int:
    """Examine this host, write what was found, and return the exit status.

    Parameters
    ----------
    as_json
        Write JSON instead of text.
    room
        Bytes of arrays that the suggested commands make room for.
    stream
        Where to write; default standard output.
    """
    stream = stream or sys.stdout
    diagnosis = examine(room=room)
    if as_json:
        stream.write(to_json(diagnosis) + "\n")
    else:
        render(diagnosis, stream)
    return diagnosis.exit_status


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="Write JSON.")
@click.option(
    "--room",
    metavar="BYTES",
    default="1GiB",
    show_default=True,
    help="Suggest commands that make room for this many bytes of arrays.",
)
def doctor_command(as_json: bool, room: str) -> None:
    """Show what huge pages this host can give, and how to get the rest.

    Makes a 2 MiB array on every page kind, proves how this process maps it, and
    removes it. Needs no privilege and changes nothing.

    \b
    Exit status: 0 huge pages are to be had, 4 they are not.

    \b
    Example:
      hugepool doctor --room 4GB
    """
    # sys.exit, because the caller of the command runs it without click's own exit handling.
    export_mount(read_settings())
    sys.exit(run(as_json=as_json, room=parse_bytes(room)))
