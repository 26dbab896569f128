"""Tables as data, drawn as HTML (tables.html.j2) and as Markdown (compare_markdown.py) from the same cells."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from reports.template import fill

if TYPE_CHECKING:
    from markupsafe import Markup

ROWS_SHOWN = 200


@dataclass(frozen=True)
class Cell:
    """One value. `kind`: text, name (heads its row), number, badge, change (`text` to `after`), command, date.

    `href`: what text and names lead to, "" for nothing.
    """

    text: str
    kind: str = "text"
    after: str = ""
    href: str = ""


@dataclass(frozen=True)
class Table:
    """Rows under columns. `columns` may end in "#" for numbers; `title` is its heading, "" for none.

    `folded`: the page shows it only when it is opened, under this line; "" for a table that is always shown.
    """

    caption: str
    columns: list[str]
    rows: list[list[Cell]]
    title: str = ""
    limit: int = ROWS_SHOWN
    folded: str = ""

    @property
    def filled(self) -> list[int]:
        """The columns that hold anything: an empty one would only take the others' room."""
        return [i for i in range(len(self.columns)) if any(row[i].text for row in self.rows)]

    @property
    def heads(self) -> list[str]:
        """The columns that are drawn."""
        return [self.columns[i] for i in self.filled]

    @property
    def shown(self) -> list[list[Cell]]:
        """The rows that are drawn."""
        filled = self.filled
        return [[row[i] for i in filled] for row in self.rows[: self.limit]]

    @property
    def left_off(self) -> int:
        """How many rows are not drawn."""
        return max(0, len(self.rows) - self.limit)


@dataclass(frozen=True)
class Part:
    """A section of a page: its heading, a sentence, tables."""

    anchor: str
    title: str
    words: str = ""
    tables: list[Table] = field(default_factory=list)


def draw_part(part: Part) -> Markup:
    """Draw the body of a section."""
    return fill("tables.html.j2", part=part)
