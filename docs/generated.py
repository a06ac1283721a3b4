"""Tables of the site that are read out of the code, so that they cannot differ from it."""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar

import click
import docutils.parsers.rst
import docutils.utils
import msgspec
from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.docutils import SphinxDirective

import hugepool
from hugepool_common import messages
from hugepool_common.errors import ERROR_KINDS
from hugepool_common.settings import Settings, variable_of

Row = tuple[str, ...]

REQUESTS, REPLIES, NOTICES = range(1, 100), range(100, 200), range(201, 300)


class _Table(SphinxDirective):
    """A table whose cells are reStructuredText."""

    titles: ClassVar[Row]
    widths: ClassVar[tuple[int, ...]]

    def rows(self) -> Iterable[Row]:
        """The cells, line by line."""
        raise NotImplementedError

    def run(self) -> list[nodes.Node]:
        """The table as nodes."""
        lines = [
            ".. list-table::",
            "   :header-rows: 1",
            f"   :widths: {' '.join(map(str, self.widths))}",
            "",
        ]
        for row in (self.titles, *self.rows()):
            for number, cell in enumerate(row):
                lines.append(("   * - " if number == 0 else "     - ") + cell)
        # The page around is Markdown, whose parser would not know these lines.
        document = docutils.utils.new_document(self.env.docname, self.state.document.settings)
        docutils.parsers.rst.Parser().parse("\n".join(lines), document)
        return list(document.children)


class SettingsTable(_Table):
    """Every setting with its variable, values and default."""

    titles = ("setting", "variable", "values", "default", "meaning")
    widths = (16, 26, 18, 12, 40)

    def rows(self) -> Iterator[Row]:
        """One a setting."""
        meanings = parameters_of(Settings)
        for field in msgspec.structs.fields(Settings):
            yield (
                code(field.name),
                code(variable_of(field.name)),
                " ".join(code(value) for value in typing.get_args(field.type))
                or {str: "a string", bool: "``true`` ``false``", float: "a number"}[field.type],
                code(str(field.default).lower() if field.type is bool else str(field.default)),
                meanings[field.name],
            )


class MessagesTable(_Table):
    """Messages of one kind: ``requests``, ``replies`` or ``notices``."""

    required_arguments = 1
    widths = (8, 20, 36, 36)
    titles = ("number", "message", "meaning", "fields")

    def rows(self) -> Iterator[Row]:
        """One a message, in order of their numbers."""
        chosen = {"requests": REQUESTS, "replies": REPLIES, "notices": NOTICES}
        for number, kind in messages_by_number().items():
            if number in chosen[self.arguments[0]]:
                fields = msgspec.structs.fields(kind)
                yield (
                    str(number),
                    code(kind.__name__),
                    first_line(kind),
                    " ".join(code(field.encode_name) for field in fields) or "none",
                )


class ErrorsTable(_Table):
    """Error codes of the wire and the classes that they become."""

    widths = (8, 34, 34)
    titles = ("code", "raised as", "which is a")

    def rows(self) -> Iterator[Row]:
        """One a code."""
        for number, kind in sorted(ERROR_KINDS.items()):
            kin = [
                base.__name__
                for base in kind.__mro__[1:]
                if base.__module__ == "builtins" and base not in (Exception, BaseException, object)
            ]
            yield str(int(number)), code(kind.__name__), " ".join(map(code, kin)) or "none"


def messages_by_number() -> dict[int, type[messages.Message]]:
    """Every message class by the number that it has on the wire."""
    found = {
        kind.__struct_config__.tag: kind
        for union in (messages.Request, messages.Reply, messages.Notice)
        for kind in typing.get_args(union)
    }
    return dict(sorted(found.items()))


def parameters_of(kind: type) -> dict[str, str]:
    """What the ``Parameters`` section of a class says of each name."""
    section = inspect.getdoc(kind).partition("----------\n")[2]  # type: ignore[union-attr]
    found: dict[str, str] = {}
    names: list[str] = []
    for line in section.splitlines():
        if re.match(r"\w", line):
            names = line.split(", ")
        else:
            found |= {name: f"{found.get(name, '')} {line.strip()}".strip() for name in names}
    return found


def first_line(kind: type) -> str:
    """The summary of a docstring, names of other classes as code."""
    summary = inspect.getdoc(kind).partition("\n")[0]  # type: ignore[union-attr]
    return re.sub(r":\w+:`([^`]+)`", r"``\1``", summary)


def code(text: str) -> str:
    """Text as a literal; nothing stays nothing."""
    return f"``{text}``" if text else ""


def literal_examples(app: Sphinx, context: click.Context, lines: list[str]) -> None:
    """Show the examples of a command's help as it writes them, not as prose."""
    shown: list[str] = []
    for line in lines:
        if re.fullmatch(r"\| \w[^|]*:", line):
            shown += ["", f"{line.removeprefix('| ')}:", ""]
        else:
            shown.append(line.removeprefix("| ") if line.startswith("|   ") else line)
    lines[:] = shown


def resolve_public_name(
    app: Sphinx, env: BuildEnvironment, node: addnodes.pending_xref, content: nodes.Node
) -> nodes.Node | None:
    """Lead from where a name is defined, as signatures have it, to where users import it from."""
    package, _, name = node.get("reftarget", "").rpartition(".")
    if node.get("refdomain") != "py" or not package.startswith("hugepool"):
        return None
    public = f"hugepool.{name}" if name in hugepool.__all__ else ""
    return env.domains.python_domain.resolve_xref(
        env, node["refdoc"], app.builder, node["reftype"], public, node, content
    )


def hide_constructor(
    app: Sphinx, what: str, name: str, *_: object
) -> tuple[str | None, str | None] | None:
    """Users construct no object of ours: functions and methods return them."""
    return ("", None) if what in ("class", "exception") else None


def leave_out_constructor_parameters(
    app: Sphinx, what: str, name: str, kind: object, options: object, lines: list[str]
) -> None:
    """Parameters of a class are its fields; of one without fields they are nobody's concern."""
    if what != "class" or getattr(kind, "__annotations__", {}) or "Parameters" not in lines:
        return
    first = lines.index("Parameters")
    later = (n for n, line in enumerate(lines[:-1]) if n > first and lines[n + 1].startswith("---"))
    del lines[first : next((n for n in later if n > first), len(lines))]


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the tables."""
    app.add_directive("settings-table", SettingsTable)
    app.add_directive("messages-table", MessagesTable)
    app.add_directive("errors-table", ErrorsTable)
    app.connect("sphinx-click-process-description", literal_examples)
    app.connect("autodoc-process-signature", hide_constructor)
    # Before napoleon turns the section into a list.
    app.connect("autodoc-process-docstring", leave_out_constructor_parameters, priority=400)
    app.connect("missing-reference", resolve_public_name)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
