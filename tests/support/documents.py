"""Documents whose code blocks are run: what they hold, and what their commands name."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]

_BLOCK = re.compile(
    r"^( *)(```+|:::+)(\{?[\w-]*\}?)[^\n]*\n(.*?)^\1\2 *$", re.MULTILINE | re.DOTALL
)
_BACKING = re.compile(r"hugetlbfs-[12][mg]|tmpfs-huge|shm-(collapse|4k)")

_ADDRESS = re.compile(r"ipc://\S+")

_COMMAND = re.compile(
    r"\s*(?:(?:sudo|exec|docker run .* hugepool|[A-Z_]+=\S*)\s+)*"
    r"(?:ExecStart=)?(?:[\w./~$-]*/)?(hugepoold?)(?![\w/.-])([^|;&)]*)"
)


@dataclass(frozen=True)
class Block:
    """A code block of a document.

    Parameters
    ----------
    language
        As written after the fence.
    text
        Its lines.
    line
        Where it begins in the file.
    """

    language: str
    text: str
    line: int

    def commands(self) -> list[list[str]]:
        """The command lines of a ``bash`` block, as words; lines that go on are joined."""
        joined = self.text.replace("\\\n", " ")
        words = [shlex.split(line, comments=True) for line in joined.splitlines()]
        return [line for line in words if line]

    def session(self) -> list[tuple[str, str]]:
        """The commands of a ``console`` block, and what each shows."""
        return re.findall(r"^\$ hugepool (.*)\n((?:(?!\$ ).*\n)*)", self.text, re.MULTILINE)


def blocks_of(text: str) -> list[Block]:
    """The code blocks of a Markdown text, in order."""
    return [
        Block(match[3], match[4], text.count("\n", 0, match.start()) + 1)
        for match in _BLOCK.finditer(text)
    ]


def beginning(line: str) -> str:
    """What a line begins with on every machine; a heading in full, whatever its columns' widths."""
    if line.isupper():
        return " ".join(line.split())
    place = _ADDRESS.sub("ADDRESS", _BACKING.sub("BACKING", line))
    return re.sub("[0-9]+", "#", place.split()[0])


def on_screen(written: str) -> list[str]:
    """The lines that stay on a terminal: a progress bar on a busy machine erases itself."""
    lines, row, column = [""], 0, 0
    for piece in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|[\n\r]|[^\x1b\n\r]+", written):
        if piece == "\n":
            row, column = row + 1, 0
            lines += [""] * (row == len(lines))
        elif piece == "\r":
            column = 0
        elif piece == "\x1b[2K":
            lines[row] = ""
        elif up := re.fullmatch(r"\x1b\[([0-9]*)A", piece):
            row = max(0, row - int(up[1] or 1))
        elif not piece.startswith("\x1b"):
            end = column + len(piece)
            lines[row] = lines[row][:column].ljust(column) + piece + lines[row][end:]
            column = end
    return [line for line in lines if line.strip()]


def command_lines(text: str) -> Iterator[list[str]]:
    """Every ``hugepool`` and ``hugepoold`` command that a text shows, in code or in a block."""
    lines = re.findall(r"`([^`\n]+)`", _BLOCK.sub("", text))
    for block in blocks_of(text):
        if block.language == "console":
            lines += re.findall(r"^\$ (.*)", block.text, re.MULTILINE)
        elif block.language not in {"python", "py", "text"}:
            lines += block.text.replace("\\\n", " ").splitlines()
    for line in lines:
        found = _COMMAND.match(line)
        if found is not None:
            yield [found[1], *_words(found[2])]


def _words(text: str) -> list[str]:
    try:
        return shlex.split(text, comments=True)
    except ValueError:  # a quotation that goes on elsewhere
        return text.split()
