"""The machine and the software that a result was measured on."""

from __future__ import annotations

import contextlib
import os
import platform
from importlib import metadata

from hugepool.bench.results import Environment
from hugepool.bench.tlb import read_stlb
from hugepool.kernels.base import last_level_cache_bytes
from hugepool_common.pages import read_host
from hugepool_common.units import page_size_name

_PACKAGES = ("hugepool", "numpy", "numba", "llvmlite", "scipy", "pyzmq", "msgspec")


def read_environment() -> Environment:
    """Look at the host and the installed packages."""
    host = read_host()
    return Environment(
        kernel_release=host.kernel_release,
        cpu=_cpu_name(),
        cpus=len(os.sched_getaffinity(0)),
        last_level_cache_bytes=last_level_cache_bytes(),
        memory_bytes=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        memory_available_bytes=host.memory_headroom_bytes,
        thp_enabled=host.thp_enabled,
        shmem_enabled=host.shmem_enabled,
        huge_page_pools={
            page_size_name(
                pool.page_size
            ): f"{pool.available_pages} available of {pool.total_pages}"
            for pool in host.pools
        },
        container=host.container,
        load_average=round(os.getloadavg()[0], 2),
        versions={"python": platform.python_version()} | _versions(),
        stlb=read_stlb(),
    )


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def _cpu_name() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            if line.startswith(("model name", "Model", "uarch")):
                return line.partition(":")[2].strip()
    return platform.machine()
