"""Compile loops with numba: once per combination of dtypes, once per machine.

Code is kept in a private cache directory whose name holds numba's version, the
CPU, and a digest of the kernels' sources and of numba's settings. numba itself
looks only at the file of the compiled function, so it would miss a change of an
intrinsic or of ``NUMBA_BOUNDSCHECK``. And its cache is not safe for several
writers: two processes that save different signatures at once may leave an index
that names the other's code. So a lock file covers looking up, compiling and
saving, which also lets one process compile while the others wait and then load.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import glob
import hashlib
import importlib
import inspect
import os
import re
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import numpy as np

from hugepool_common.errors import HugepoolError, MissingExtraError
from hugepool_common.paths import open_private_directory

_LOCK_WAIT_NS = 120_000_000_000
_LOCK_TURN_S = 0.02
_in_process = threading.Lock()


def import_numba() -> ModuleType:
    """numba, imported now.

    Raises
    ------
    MissingExtraError
        It is not installed, cannot be imported, or is told not to compile.
    """
    try:
        numba = importlib.import_module("numba")
    except ImportError as error:
        raise MissingExtraError(
            "compiled kernels need numba",
            had=f"{type(error).__name__}: {error}",
            remedy='pip install "hugepool[compute]"',
        ) from None
    if numba.config.DISABLE_JIT:
        raise MissingExtraError(
            "numba is told not to compile", had="NUMBA_DISABLE_JIT=1", remedy="unset it"
        )
    return numba


class CompiledLoop:
    """A function of a module of loops, compiled on first use for each combination of dtypes.

    Arrays must be 1-D, C-contiguous and aligned. Those not named in `outputs` may
    be read-only or not: both run the same code, where numba left alone would
    compile two.

    Parameters
    ----------
    module, function
        Where the loop is. The module may import numba; it is imported on first use.
    outputs
        Parameters that the loop writes to.
    """

    def __init__(self, module: str, function: str, *, outputs: tuple[str, ...] = ()) -> None:
        self._module = module
        self._function = function
        self._outputs = outputs
        self._compiled: dict[tuple[str, ...], Callable[..., Any]] = {}

    def __call__(self, *arguments: Any) -> Any:
        """Run the loop, without the GIL, on arrays and Python ints."""
        key = _dtypes(arguments)
        compiled = self._compiled.get(key)
        if compiled is None:
            compiled = self._compile(key)
        return compiled(*arguments)

    def prepare(self, *arguments: Any) -> None:
        """Compile for the dtypes of these arguments, if that is not done yet."""
        key = _dtypes(arguments)
        if key not in self._compiled:
            self._compile(key)

    def _compile(self, key: tuple[str, ...]) -> Callable[..., Any]:
        numba = import_numba()
        function = getattr(importlib.import_module(self._module), self._function)
        names = inspect.signature(function).parameters
        signature = tuple(
            _numba_type(numba, dtype, name not in self._outputs)
            for name, dtype in zip(names, key, strict=True)
        )
        with _in_process:
            if key not in self._compiled:
                self._compiled[key] = _compile(numba, function, signature)
        return self._compiled[key]


def _dtypes(arguments: tuple[Any, ...]) -> tuple[str, ...]:
    return tuple(a.dtype.str if isinstance(a, np.ndarray) else "int" for a in arguments)


def _numba_type(numba: ModuleType, dtype: str, readonly: bool) -> Any:
    if dtype == "int":
        return numba.types.int64
    element = numba.from_dtype(np.dtype(dtype))
    return numba.types.Array(element, 1, "C", readonly=readonly)


def _compile(
    numba: ModuleType, function: Callable[..., Any], signature: tuple[Any, ...]
) -> Callable[..., Any]:
    directory = cache_directory()
    if directory is not None:
        # Whatever is wrong with the cache (full disk, truncated file, a holder of
        # the lock that was stopped), compiling without it still works; an error of
        # the loop itself is raised again below.
        with contextlib.suppress(Exception), _locked(directory), _cache_at(numba, directory):
            return numba.njit([signature], nogil=True, cache=True)(function)
    return numba.njit([signature], nogil=True)(function)


@contextlib.contextmanager
def _cache_at(numba: ModuleType, directory: str) -> Iterator[None]:
    """Let functions decorated inside keep their code in `directory`.

    numba fixes a function's cache when it is decorated, so the user's own
    functions are left with theirs.
    """
    before = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = directory
    try:
        yield
    finally:
        numba.config.CACHE_DIR = before


@contextlib.contextmanager
def _locked(directory: str) -> Iterator[None]:
    """Be the only process that uses the cache; the lock falls with its holder.

    Raises
    ------
    TimeoutError
        Somebody held it for two minutes.
    """
    path = os.path.join(directory, "lock")
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        give_up_ns = time.monotonic_ns() + _LOCK_WAIT_NS
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                # A blocking flock could wait for ever on a stopped process.
                if time.monotonic_ns() > give_up_ns:
                    raise TimeoutError(path) from None
                time.sleep(_LOCK_TURN_S)
        yield
    finally:
        os.close(fd)


@functools.lru_cache(maxsize=1)
def cache_directory() -> str | None:
    """The directory of compiled kernels, made if missing; None if no place is writable.

    It lies in the first of these that is private to this user and writable:
    ``$NUMBA_CACHE_DIR``, ``hugepool`` under ``$XDG_CACHE_HOME`` or ``~/.cache``,
    and ``hugepool-cache-<uid>`` in the directory for temporary files. Private,
    because what is loaded from it is run.
    """
    name = _directory_name()
    for parent in _cache_parents():
        directory = os.path.join(parent, name)
        try:
            os.makedirs(parent, mode=0o700, exist_ok=True)
            os.close(open_private_directory(directory))
            with tempfile.TemporaryFile(dir=directory):
                return directory
        except (OSError, HugepoolError):
            continue
    return None


def _cache_parents() -> Iterator[str]:
    chosen = os.environ.get("NUMBA_CACHE_DIR")
    if chosen:
        yield os.path.abspath(chosen)
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if os.path.isabs(home):
        yield os.path.join(home, "hugepool")
    temporary = os.path.join(tempfile.gettempdir(), f"hugepool-cache-{os.geteuid()}")
    try:
        # Anybody may make names in /tmp: the directory must be ours before a
        # path through it is used.
        os.close(open_private_directory(temporary))
    except (OSError, HugepoolError):
        return
    yield temporary


def _directory_name() -> str:
    numba = import_numba()
    binding = importlib.import_module("llvmlite.binding")
    digest = hashlib.sha256()
    for path in sorted(glob.glob(os.path.join(os.path.dirname(__file__), "*.py"))):
        with open(path, "rb") as file:
            digest.update(file.read())
    for variable, value in sorted(os.environ.items()):
        if variable.startswith("NUMBA_") and variable != "NUMBA_CACHE_DIR":
            digest.update(f"{variable}={value}\n".encode())
    cpu = re.sub(r"[^A-Za-z0-9._-]", "_", binding.get_host_cpu_name())
    return f"numba-{numba.__version__}-{cpu}-{digest.hexdigest()[:16]}"
