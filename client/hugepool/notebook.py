"""What a notebook shows of an object: one small table of HTML, with nothing from elsewhere."""

from __future__ import annotations

import html
from collections.abc import Mapping

from hugepool_common.spec import ArraySpec, PageReport
from hugepool_common.units import format_bytes


def table(title: str, rows: Mapping[str, object]) -> str:
    """A table of two columns under a title; every text is escaped.

    Parameters
    ----------
    title
        Its caption.
    rows
        What is told, and how.
    """
    lines = "".join(
        f'<tr><th style="text-align:left">{html.escape(label)}</th>'
        f'<td style="text-align:left">{html.escape(str(value))}</td></tr>'
        for label, value in rows.items()
    )
    caption = f'<caption style="text-align:left"><b>{html.escape(title)}</b></caption>'
    return f"<table>{caption}<tbody>{lines}</tbody></table>"


def object_rows(spec: ArraySpec, pages: PageReport, state: str) -> dict[str, object]:
    """What a named object tells of itself: its extents, and its pages as this process proved them.

    Parameters
    ----------
    spec, pages
        Of the object, as it is mapped here.
    state
        Such as ``sealed``.
    """
    rows: dict[str, object] = {"name": spec.name, "dtype": spec.dtype, "shape": spec.shape}
    if spec.kind == "csr":
        rows["nnz"] = spec.nnz
    rows["bytes"] = f"{format_bytes(spec.nbytes)} ({spec.nbytes})"
    rows["backing"] = pages
    if pages.reasons:
        rows["reasons"] = "; ".join(map(str, pages.reasons))
    rows["state"] = state
    return rows
