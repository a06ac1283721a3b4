"""Text of others, such as names of files and of clients, made safe to show."""

from __future__ import annotations


def printable(text: str) -> str:
    r"""Text with everything that is no character to be seen written as an escape.

    A terminal takes some characters for commands, and bytes that are no UTF-8 cannot be
    written at all. Spaces of any width and ends of lines stay.
    """
    if text.isprintable():
        return text
    import unicodedata  # every command imports this module, and few texts come here

    return "".join(
        one
        if one == "\n" or one.isprintable() or unicodedata.category(one) == "Zs"
        else one.encode("unicode_escape").decode("ascii")
        for one in text
    )
