"""Answers cut to what a page can carry: right ones shortly, wrong ones with head and tail, within a budget of bytes."""

from __future__ import annotations

from dataclasses import dataclass

from markupsafe import Markup, escape

from reports.text import count, visible

PAGE_BUDGET = 1_900_000
"""Bytes of question and answer text on a page; the frame of 1,500 questions adds under a million."""

MOST_SHOWN = 1_500
"""Questions on a page. More come from repeats; the record holds them all."""


@dataclass(frozen=True)
class Cut:
    """How many characters of a text are shown, at its head and at its tail."""

    head: int
    tail: int


RIGHT = Cut(80, 160)
OTHER = Cut(500, 500)
QUESTION = Cut(900, 100)


def fitted(text: str, cut: Cut, budget: int) -> Markup:
    """Return the text escaped for HTML, its middle left out with a note, in at most about `budget` bytes.

    Escapes and other scripts take up to ten bytes a character, so the size is measured, not assumed.
    """
    head, tail = cut.head, cut.tail
    while True:
        shown = _both_ends(text, head, tail)
        size = len(shown.encode("utf-8", "replace"))
        if size <= budget or head + tail <= 20:
            return shown
        head, tail = head * budget // (size + 1), tail * budget // (size + 1)


def _both_ends(text: str, head: int, tail: int) -> Markup:
    if len(text) <= head + tail:
        return escape(visible(text))
    cut = count(len(text) - head - tail)
    end = text[len(text) - tail :]
    return (
        escape(visible(text[:head]))
        + Markup(' <span class="cut">[{} cut]</span> ').format(cut)
        + escape(visible(end))
    )
