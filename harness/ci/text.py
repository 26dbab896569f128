"""Text that a server, a model or a kernel wrote, made safe for XML, Markdown and GitHub's workflow commands."""

from __future__ import annotations

import html

_XML_SPACES = "\t\n"


def printable(text: str) -> str:
    """Replace characters that XML cannot hold, and those that nobody can see, by a question mark."""
    return "".join(
        c if c in _XML_SPACES or (c.isprintable() and not 0xD800 <= ord(c) <= 0xDFFF) else "?" for c in text
    )


def markdown(text: str) -> str:
    """Escape text for Markdown: it may hold markup, and stays on one line."""
    text = " ".join(printable(text).split())
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    for character in "\\`*_[]|#!~":
        text = text.replace(character, "\\" + character)
    return text


def preformatted(text: str) -> str:
    """Return text of several lines as a block that Markdown shows as it is."""
    return f"<pre>\n{html.escape(printable(text), quote=False)}\n</pre>"


def command_value(text: str) -> str:
    """Escape the message of a GitHub workflow command."""
    return printable(text).replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def command_property(text: str) -> str:
    """Escape a property of a GitHub workflow command."""
    return command_value(text).replace(":", "%3A").replace(",", "%2C")
