"""A segment file that has no name yet."""

from __future__ import annotations

import errno
import os
from types import TracebackType

from hugepool_common import paths
from hugepool_common.errors import ArrayExistsError, NotPermittedError

_CREATE = os.O_RDWR | os.O_CLOEXEC | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW


class UnpublishedFile:
    """An open file without a name in a segment directory, until :meth:`publish`.

    A context manager: left unpublished it gives its pages back at once.

    Parameters
    ----------
    dir_fd, dir_path
        The segment directory, open, and its path.
    segment_id
        Names the file.

    Attributes
    ----------
    fd
        Open for reading and writing.
    path
        Where it will be.

    Raises
    ------
    OSError
        It cannot be made.
    """

    def __init__(self, dir_fd: int, dir_path: str, segment_id: int) -> None:
        self._dir_fd = dir_fd
        self._name = paths.segment_file_name(segment_id)
        self._unpublished_name = ""
        self._published = False
        self.path = os.path.join(dir_path, self._name)
        try:
            # Not O_EXCL: it forbids the later link.
            self.fd = os.open(".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600, dir_fd=dir_fd)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR):
                raise
            # hugetlbfs of older kernels: a name of its own, which a sweep knows.
            self._unpublished_name = paths.unpublished_file_name(segment_id)
            self.fd = os.open(self._unpublished_name, _CREATE, 0o600, dir_fd=dir_fd)

    def publish(self, mode: int, group: int | None) -> os.stat_result:
        """Give the file its mode, its group and its name.

        Returns
        -------
        os.stat_result
            Of the file.

        Raises
        ------
        ArrayExistsError
            The name is taken; nothing is overwritten.
        NotPermittedError
            The group may not be given.
        """
        if group is not None:
            try:
                os.fchown(self.fd, -1, group)
            except PermissionError:
                raise NotPermittedError(
                    f"the segment cannot be given to group {group}", where=self.path
                ) from None
        os.fchmod(self.fd, mode)  # O_TMPFILE obeyed the umask
        status = os.fstat(self.fd)  # nothing may fail once it has its name
        # The descriptor of the directory makes CPython call linkat with
        # AT_SYMLINK_FOLLOW; without it, it would link the /proc symlink: EXDEV.
        source = self._unpublished_name or f"/proc/self/fd/{self.fd}"
        try:
            os.link(
                source,
                self._name,
                src_dir_fd=self._dir_fd,
                dst_dir_fd=self._dir_fd,
                follow_symlinks=True,
            )
        except FileExistsError:
            raise ArrayExistsError("the segment id is taken", where=self.path) from None
        self._published = True
        return status

    def __enter__(self) -> UnpublishedFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if not self._published:
                # Nobody else has the file, so this cannot be anybody's SIGBUS; and
                # a stray duplicate of the descriptor cannot keep the pages.
                os.ftruncate(self.fd, 0)
            if self._unpublished_name:
                os.unlink(self._unpublished_name, dir_fd=self._dir_fd)
        finally:
            os.close(self.fd)
