"""Files that are there when all of them is written: what they replace stays till then."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO

from hugepool_common.errors import HugepoolError

_UNTOLD = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
"""What a write is refused with, without a word of the file."""


@contextmanager
def finished(path: str, *, replace: bool) -> Iterator[BinaryIO]:
    """A file that gets its name, on the disk, when the block ends well, and is removed else.

    Parameters
    ----------
    path
        Its name. A symbolic link is replaced itself.
    replace
        Whether it takes the place of a file that is there.

    Raises
    ------
    FileExistsError
        The name is taken, and `replace` is false.
    OSError
        It cannot be written; the error has `path`.
    """
    directory, name = os.path.split(path)
    # Of limited length in bytes, so that a long name that is allowed has a temporary one that is.
    begin = os.fsencode(name)[:200].decode(errors="ignore")
    temporary = os.path.join(directory, f".{begin}.{secrets.token_hex(6)}.tmp")
    try:  # from before it is there: Ctrl-C may come as soon as it is
        try:
            output = open(temporary, "x+b")  # noqa: SIM115  closed below
        except OSError as error:
            raise type(error)(error.errno, error.strerror, path) from None
        with output:
            yield output
            output.flush()
            os.fsync(output.fileno())
        if replace:
            os.replace(temporary, path)
        else:
            _link(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            os.unlink(temporary)
        if (
            isinstance(error, OSError)
            and not isinstance(error, HugepoolError)
            and error.filename is None
            and error.errno in _UNTOLD
        ):
            raise OSError(error.errno, error.strerror, path) from None
        raise


def taken(path: str) -> FileExistsError:
    """The error over a name that is taken."""
    return FileExistsError(errno.EEXIST, "File exists, and --force was not given", path)


def _link(temporary: str, path: str) -> None:
    """Give a file its name, unless another has taken it meanwhile."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise taken(path) from None
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
            raise
        # A file system without hard links, such as FAT.
        if os.path.lexists(path):
            raise taken(path) from None
        os.rename(temporary, path)
        return
    os.unlink(temporary)
