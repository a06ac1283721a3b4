"""What a snapshot holds, and which one counts: two small files, each checked as a stranger's."""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass

import msgspec

from hugepool_common.errors import HugepoolError, SnapshotError
from hugepool_common.spec import ArraySpec, is_checksum

FORMAT = 1

DATA_FILE = re.compile(r"[0-9]{4,9}\.data")
"""Names of files with an object's payload."""

_POINTER = re.compile(
    rb"(hugepool-snapshot ([0-9]+) (snapshot-[0-9a-f]{16}) ([0-9a-f]{8})) ([0-9a-f]{8})\n"
)


class SavedObject(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One object of a snapshot.

    Parameters
    ----------
    file
        Its data's file in the snapshot.
    spec
        Name, shape, dtype and layout.
    nbytes
        Payload bytes, which is the length of the file.
    checksum
        Of the payload, as it was sealed with.
    """

    file: str
    spec: ArraySpec
    nbytes: int
    checksum: str

    @property
    def name(self) -> str:
        """The object's name."""
        return self.spec.name


class Index(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a snapshot holds."""

    format: int
    objects: tuple[SavedObject, ...]

    def checked(self, where: str) -> Index:
        """Return self if it can be true: its CRC finds damage, and is no validation.

        Raises
        ------
        SnapshotError
            It contradicts itself.
        """
        names = {saved.name for saved in self.objects}
        files = {saved.file for saved in self.objects}
        if self.format != FORMAT or min(len(names), len(files)) < len(self.objects):
            raise SnapshotError("the index of the snapshot contradicts itself", where=where)
        for saved in self.objects:
            try:
                spec = saved.spec.checked()
            except HugepoolError as error:
                raise SnapshotError(
                    "the index of the snapshot names what cannot be", had=str(error), where=where
                ) from None
            payload = sum(part.nbytes for part in spec.parts)
            if (
                spec.kind == "plan"
                or spec.made_of
                or payload != saved.nbytes
                or not DATA_FILE.fullmatch(saved.file)
                or not is_checksum(saved.checksum)
            ):
                raise SnapshotError(
                    f"the index of the snapshot contradicts itself over {spec.name!r}", where=where
                )
        return self

    @classmethod
    def decode(cls, raw: bytes, where: str) -> Index:
        """Read what :meth:`encode` wrote.

        Raises
        ------
        SnapshotError
            It is no index, or contradicts itself.
        """
        try:
            return msgspec.json.decode(raw, type=cls).checked(where)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise SnapshotError(
                "the index of the snapshot cannot be read", had=str(error), where=where
            ) from None

    def encode(self) -> bytes:
        """As it is written, for people to read too."""
        return msgspec.json.format(msgspec.json.encode(self), indent=1) + b"\n"


@dataclass(frozen=True, slots=True)
class Pointer:
    """What ``CURRENT`` says.

    Parameters
    ----------
    name
        Of the snapshot that counts.
    crc
        CRC-32 of its index.
    """

    name: str
    crc: int

    @classmethod
    def to(cls, name: str, index: bytes) -> Pointer:
        """Name a snapshot, by its index as it is written."""
        return cls(name, zlib.crc32(index))

    @classmethod
    def decode(cls, raw: bytes, where: str) -> Pointer:
        """Read what :meth:`encode` wrote.

        Raises
        ------
        SnapshotError
            It is damaged, not ours, or of another version.
        """
        found = _POINTER.fullmatch(raw)
        if found is None or zlib.crc32(found[1]) != int(found[5], 16):
            raise SnapshotError(
                "the file is damaged, or is not ours",
                had=repr(raw[:60]),
                where=where,
                remedy="choose another directory",
            )
        if int(found[2]) != FORMAT:
            raise SnapshotError(
                "the snapshot is of another version",
                needed=f"format {FORMAT}",
                had=f"{int(found[2])}",
                where=where,
            )
        return cls(found[3].decode(), int(found[4], 16))

    def encode(self) -> bytes:
        """One line, with a CRC of its own."""
        line = f"hugepool-snapshot {FORMAT} {self.name} {self.crc:08x}".encode()
        return line + b" %08x\n" % zlib.crc32(line)

    def check(self, index: bytes, where: str) -> None:
        """Refuse an index that is not the one that was written.

        Raises
        ------
        SnapshotError
            Its CRC is another.
        """
        if zlib.crc32(index) != self.crc:
            raise SnapshotError(
                "the index of the snapshot is damaged",
                needed=f"CRC-32 {self.crc:08x}",
                had=f"{zlib.crc32(index):08x}",
                where=where,
            )
