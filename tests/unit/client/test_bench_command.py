"""What ``hugepool bench`` refuses before anything is started."""

from __future__ import annotations

import sys

import pytest

from hugepool.bench.command import bench_command
from hugepool_common.errors import MissingExtraError


def test_a_kernel_that_is_not_installed_is_named_with_its_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "scipy.sparse", None)
    with pytest.raises(MissingExtraError, match=r"hugepool\[compute\]"):
        bench_command.main(
            ["--kernel", "scipy", "--size", "80kB", "--gathers", "10"], standalone_mode=False
        )
