"""``hugepool get``: an object into a file, a slice at a time, whole or not at all."""

from __future__ import annotations

import gzip
import io
import os
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import BinaryIO

import click
import numpy as np

from hugepool.arrow_file import write_arrow
from hugepool.channel import Channel
from hugepool.commands.arguments import address_option, name_argument, opened
from hugepool.commands.tables import sized, warn
from hugepool.finished_file import finished, taken
from hugepool.interrupts import orderly_end
from hugepool.lease import Lease
from hugepool.leased_file import LeasedFile
from hugepool.matrix import csr_array, import_sparse
from hugepool.progress import Waiting
from hugepool.tensor_file import tensor_header
from hugepool_common.errors import InvalidSpecError
from hugepool_common.mapping import Mapping
from hugepool_common.messages import ArrayInfo, Attach, Attached
from hugepool_common.spec import ArraySpec, Part, check_name

_Writer = Callable[[Channel, str, BinaryIO], None]


@click.command("get")
@name_argument
@click.argument("file", type=click.Path())
@click.option("--force", is_flag=True, help="Replace a file that is there.")
@address_option
def get_command(name: str, file: str, force: bool, address: str | None) -> None:
    """Write an array to FILE (.npy, .npz, .safetensors, .arrow, .feather), or a matrix
    (.npz as SciPy's, .mtx, .mtx.gz).

    Nothing is copied in memory but a slice at a time; .mtx needs SciPy, .arrow and
    .feather pyarrow. FILE appears when
    all of it is written, and a file that is there is kept unless --force is given. The
    checksum of a sealed array is compared on the way to a .npy file.

    \b
    Examples:
      hugepool get x x.npy
      hugepool get A graph.npz --force
    """
    writer = _writer(file)
    if not force and os.path.lexists(file):
        raise taken(file)
    with opened(address) as channel:
        with orderly_end(), finished(file, replace=force) as output:
            writer(channel, check_name(name), output)
            output.flush()
            nbytes = os.fstat(output.fileno()).st_size
        warn(f"{name} to {file}, {sized(nbytes)}")


def _writer(file: str) -> _Writer:
    for ending, writer in _WRITERS.items():
        if file.lower().endswith(ending):
            return writer
    raise InvalidSpecError(
        f"the ending of {os.path.basename(file)!r} is not known", needed=", ".join(_WRITERS)
    )


def _kind(spec: ArraySpec, wanted: str, endings: str) -> None:
    if spec.kind != wanted:
        words = {"array": "an array", "csr": "a matrix", "plan": "a plan"}
        raise InvalidSpecError(
            f"{spec.name!r} is {words[spec.kind]}, and {endings} holds {words[wanted]}",
            remedy={
                "array": "write it to a .npy file",
                "csr": "write it to a .npz or .mtx file",
                "plan": "plans are quicker to plan anew than to keep",
            }[spec.kind],
        )


def _header(part: Part) -> bytes:
    """What a .npy file has before the data."""
    buffer = io.BytesIO()
    described = {
        "descr": np.lib.format.dtype_to_descr(np.dtype(part.dtype)),
        "fortran_order": False,
        "shape": part.shape,
    }
    np.lib.format.write_array_header_1_0(buffer, described)
    return buffer.getvalue()


def _write_npy(channel: Channel, name: str, output: BinaryIO) -> None:
    _write_behind_header(channel, name, output, ".npy", _header)


def _write_tensor(channel: Channel, name: str, output: BinaryIO) -> None:
    def header(part: Part) -> bytes:
        return tensor_header(name, part.dtype, part.shape, part.nbytes)

    _write_behind_header(channel, name, output, ".safetensors", header)


def _write_behind_header(
    channel: Channel,
    name: str,
    output: BinaryIO,
    ending: str,
    header_of: Callable[[Part], bytes],
) -> None:
    """Write an array as a header and its bytes, with its checksum compared."""
    with LeasedFile(channel, name) as file:
        spec = file.info.spec
        _kind(spec, "array", ending)
        (part,) = spec.parts
        header = header_of(part)
        output.write(header)
        output.flush()
        fd = output.fileno()

        def copy(_: int, offset: int, view: memoryview) -> None:
            write_at(fd, view, len(header) + offset)

        with Waiting(f"writing {name}") as waiting:
            if file.info.sealed and file.info.checksum:
                file.read(look=copy, progress=waiting.update)
                return
            _warn_open(file.info)
            done = 0
            for view in file.slices(part):
                copy(0, done, view)
                done += len(view)
                waiting.update(done, part.nbytes)


def write_at(fd: int, view: memoryview, offset: int) -> None:
    """Write all of a buffer, however little a single call may take."""
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written


def _warn_open(info: ArrayInfo) -> None:
    if not info.sealed:
        warn(f"{info.spec.name} is not sealed: it may be written while it is read")


def _write_npz(channel: Channel, name: str, output: BinaryIO) -> None:
    """As ``scipy.sparse.save_npz(..., compressed=False)`` writes it; an array as ``np.savez``."""
    with LeasedFile(channel, name) as file:
        spec = file.info.spec
        if spec.kind == "plan":
            _kind(spec, "csr", ".npz")
        _warn_open(file.info)
        small = (
            {}
            if spec.kind == "array"
            else {
                "format": np.array(b"csr"),
                "shape": np.array(spec.shape, np.int64),
                "_is_array": np.array(True),
            }
        )
        with zipfile.ZipFile(output, "w") as archive, Waiting(f"writing {name}") as waiting:
            for role, value in small.items():
                with archive.open(f"{role}.npy", "w") as member:
                    np.lib.format.write_array(member, value, allow_pickle=False)
            done, total = 0, sum(part.nbytes for part in spec.parts)
            for part in spec.parts:
                role = name if spec.kind == "array" else part.role
                with archive.open(f"{role}.npy", "w", force_zip64=True) as member:
                    member.write(_header(part))
                    for view in file.slices(part):
                        member.write(view)
                        done += len(view)
                        waiting.update(done, total)


def _write_mtx(channel: Channel, name: str, output: BinaryIO) -> None:
    import_sparse("writing Matrix Market files")
    from scipy.io import mmwrite

    with _mapped(channel, name, "csr", ".mtx") as (info, mapping), Waiting(f"writing {name}"):
        matrix = csr_array(info.spec.shape, *map(mapping.array, info.spec.parts))
        # Stated, because to look for a symmetry takes a second copy.
        mmwrite(output, matrix, symmetry="general")
        del matrix


def _write_arrow(channel: Channel, name: str, output: BinaryIO) -> None:
    with (
        _mapped(channel, name, "array", ".arrow") as (info, mapping),
        Waiting(f"writing {name}") as waiting,
    ):
        (part,) = info.spec.parts
        write_arrow(output, name, mapping.array(part), waiting.update)


@contextmanager
def _mapped(
    channel: Channel, name: str, kind: str, ending: str
) -> Iterator[tuple[ArrayInfo, Mapping]]:
    """An object of a kind, mapped as long as the block lasts."""
    attached = channel.request(Attach(name), Attached)
    lease = Lease(channel, attached.lease)
    info = attached.array
    try:
        _kind(info.spec, kind, ending)
        _warn_open(info)
        channel.check_owner(info.segment)
        with Mapping.open(info.segment) as mapping:
            yield info, mapping
    finally:
        lease.release()


def _write_mtx_gz(channel: Channel, name: str, output: BinaryIO) -> None:
    with gzip.GzipFile(fileobj=output, mode="wb", compresslevel=6) as compressed:
        _write_mtx(channel, name, compressed)  # type: ignore[arg-type]


_WRITERS: dict[str, _Writer] = {
    ".npy": _write_npy,
    ".npz": _write_npz,
    ".safetensors": _write_tensor,
    ".arrow": _write_arrow,
    ".feather": _write_arrow,
    ".mtx": _write_mtx,
    ".mtx.gz": _write_mtx_gz,
}
