"""What the doctor makes of trials on hosts that we choose."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace

import pytest

from hugepool import doctor
from hugepool.diagnosis import Diagnosis, RungFinding, render, to_json
from hugepool_common.cgroups import MemoryLimit
from hugepool_common.errors import NotEnoughPagesError, UnsupportedPlatformError
from hugepool_common.mounts import TmpfsMount
from hugepool_common.pages import Host, Pool
from hugepool_common.spec import Fall, PageReport
from hugepool_common.units import GIB, KIB, MIB

HOST = Host(
    kernel_release="6.12.0",
    page_size=4 * KIB,
    hpage_pmd_size=2 * MIB,
    default_huge_page_size=2 * MIB,
    thp_enabled="madvise",
    shmem_enabled="never",
    shmem_enabled_pmd="inherit",
    process_thp=True,
    knows_collapse=True,
    overcommit_memory=0,
    memory_available_bytes=16 * GIB,
    pools=(Pool(2 * MIB, 0, 0, 0, 0, 0),),
    tmpfs_mounts=(TmpfsMount("/dev/shm", "never", 8 * GIB, 7 * GIB, True),),
)


def giving(**huge_bytes: int) -> Callable[[str], PageReport]:
    """A host whose rungs (``_`` for ``-``) map so many of 2 MiB huge; the others refuse."""

    def trial(rung: str) -> PageReport:
        got = huge_bytes.get(rung.replace("-", "_"))
        if got is None:
            raise NotEnoughPagesError(
                "no pages", needed="1", had="0", remedy=f"pray for {rung}", where="here"
            )
        page_size = 2 * MIB if got else 4 * KIB
        reasons = (Fall("shm-collapse", "madvise", 12, "memory is scattered"),)
        return PageReport(rung, page_size, 2 * MIB, got, 2 * MIB, "pagemap_scan", reasons)

    return trial


def examined(host: Host = HOST, /, **huge_bytes: int) -> Diagnosis:
    return doctor.examine(host=host, trial=giving(**huge_bytes), tlb_counter="unavailable: no PMU")


def finding(diagnosis: Diagnosis, rung: str) -> RungFinding:
    return next(one for one in diagnosis.rungs if one.rung == rung)


def test_every_rung_is_tried_in_the_order_of_the_ladder() -> None:
    assert [one.rung for one in examined(shm_4k=0).rungs] == [
        "hugetlbfs-2m",
        "tmpfs-huge",
        "shm-collapse",
        "shm-4k",
        "hugetlbfs-1g",
    ]


@pytest.mark.parametrize(
    ("gives", "default", "status", "headline"),
    [
        ({"shm_collapse": 2 * MIB, "shm_4k": 0}, "shm-collapse", 0, "huge pages: yes"),
        ({"hugetlbfs_2m": 2 * MIB, "shm_4k": 0}, "hugetlbfs-2m", 0, "huge pages: yes"),
        ({"hugetlbfs_1g": 2 * MIB, "shm_4k": 0}, "shm-4k", 0, "on request only"),
        ({"shm_collapse": MIB, "shm_4k": 0}, "shm-collapse", 4, "huge pages: NO"),
        ({"shm_4k": 0}, "shm-4k", 4, "huge pages: NO"),
        ({}, "", 4, "no array can be made"),
    ],
)
def test_only_a_rung_that_is_huge_throughout_is_success(
    gives: dict[str, int], default: str, status: int, headline: str
) -> None:
    diagnosis = examined(**gives)
    assert (diagnosis.default_rung, diagnosis.exit_status) == (default, status)
    written = io.StringIO()
    render(diagnosis, written)
    assert headline in written.getvalue().splitlines()[0]


def test_outcomes_are_what_was_proved() -> None:
    diagnosis = examined(hugetlbfs_2m=2 * MIB, shm_collapse=MIB, shm_4k=0)
    outcomes = {one.rung: one.outcome for one in diagnosis.rungs}
    assert outcomes == {
        "hugetlbfs-2m": "huge",
        "tmpfs-huge": "refused",
        "shm-collapse": "partly",
        "shm-4k": "small",
        "hugetlbfs-1g": "refused",
    }
    assert finding(diagnosis, "hugetlbfs-2m").reason == ""
    assert finding(diagnosis, "shm-collapse").reason == "memory is scattered"


def test_a_refusal_carries_its_facts_and_the_commands() -> None:
    diagnosis = examined(shm_4k=0)
    refused = finding(diagnosis, "hugetlbfs-2m")
    assert refused.reason == "no pages (needed 1, had 0, at here)"
    assert refused.commands[0] == "sysctl vm.nr_hugepages=512"
    assert "mount -t hugetlbfs -o pagesize=2M" in refused.commands[1]
    # Where the host shows no cause, the refusal's own remedy is passed on.
    assert finding(diagnosis, "shm-collapse").commands == ("pray for shm-collapse",)


def test_of_the_ladder_only_the_rungs_own_words_are_shown() -> None:
    def refusing(rung: str) -> PageReport:
        raise NotEnoughPagesError(f"cannot be had ({rung}: no mount (of ours))", needed="1")

    diagnosis = doctor.examine(host=HOST, trial=refusing, tlb_counter="available")
    assert {one.reason for one in diagnosis.rungs} == {"no mount (of ours)"}


def test_the_room_asked_for_sets_the_commands() -> None:
    diagnosis = doctor.examine(
        room=4 * MIB, host=HOST, trial=giving(shm_4k=0), tlb_counter="available"
    )
    assert finding(diagnosis, "hugetlbfs-2m").commands[0] == "sysctl vm.nr_hugepages=2"


def test_a_rung_that_works_but_is_short_of_room_says_how_to_get_it() -> None:
    host = replace(HOST, tmpfs_mounts=(TmpfsMount("/dev/shm", "never", 64 * MIB, 60 * MIB, True),))
    collapse = finding(examined(host, shm_collapse=2 * MIB), "shm-collapse")
    assert collapse.outcome == "huge"
    assert collapse.room_bytes == 60 * MIB
    assert collapse.commands == ("mount -o remount,size=1028M /dev/shm",)


def test_failures_of_the_system_are_refusals_too() -> None:
    def broken(rung: str) -> PageReport:
        raise OSError(5, "Input/output error", "/dev/shm")

    diagnosis = doctor.examine(host=HOST, trial=broken, tlb_counter="available")
    assert {one.outcome for one in diagnosis.rungs} == {"refused"}
    assert "Input/output error" in diagnosis.rungs[0].reason


@pytest.mark.parametrize(
    ("host", "words"),
    [
        (replace(HOST, container="docker"), "container (docker)"),
        (replace(HOST, container="gvisor"), "gVisor has no huge pages"),
        (replace(HOST, process_thp=False), "PR_SET_THP_DISABLE"),
        (replace(HOST, memory_available_bytes=10 * MIB), "only 10.5 MB of memory"),
        (replace(HOST, preferred_directory="/nowhere"), "HUGEPOOL_MOUNT=/nowhere"),
        (
            replace(HOST, memory_limit=MemoryLimit(3 * GIB, GIB, 0, "/sys/fs/cgroup/a")),
            "control group /sys/fs/cgroup/a leaves 2.15 GB of 3.22 GB",
        ),
    ],
)
def test_what_bounds_this_host_is_noted(host: Host, words: str) -> None:
    assert examined(shm_4k=0).notes == ()
    assert any(words in note for note in examined(host, shm_4k=0).notes)


def test_plain_text_has_no_control_characters_and_copyable_commands() -> None:
    written = io.StringIO()
    render(examined(shm_collapse=2 * MIB, shm_4k=0), written)
    text = written.getvalue()
    assert text.isprintable() or set(filter(lambda c: not c.isprintable(), text)) == {"\n"}
    assert "\n  sysctl vm.nr_hugepages=512\n" in text
    assert "TLB miss counter: unavailable: no PMU" in text
    assert "100 % huge, 2M pages" in text


def test_a_terminal_gets_colours_and_whole_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.delenv("NO_COLOR", raising=False)
    diagnosis = examined(shm_collapse=2 * MIB, shm_4k=0)
    written = Terminal()
    render(diagnosis, written)
    assert "\x1b[" in written.getvalue()
    for command in finding(diagnosis, "hugetlbfs-2m").commands:
        assert command in written.getvalue()  # not wrapped at 60 columns


def test_json_holds_everything() -> None:
    diagnosis = examined(shm_collapse=2 * MIB, shm_4k=0)
    told = json.loads(to_json(diagnosis))
    assert told["exit_status"] == 0
    assert told["host"]["tmpfs_mounts"][0]["path"] == "/dev/shm"
    assert told["host"]["pools"][0]["page_size"] == 2 * MIB
    assert [one["rung"] for one in told["rungs"]] == [one.rung for one in diagnosis.rungs]
    assert told["rungs"][2]["huge_bytes"] == 2 * MIB


def test_another_system_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "darwin")
    with pytest.raises(UnsupportedPlatformError, match="needs Linux"):
        doctor.examine(host=HOST, trial=giving())
