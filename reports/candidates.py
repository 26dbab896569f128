"""The candidates: which ran, which did not and why, what each declared and what was measured through it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from reports.template import fill
from reports.view import candidate_word

if TYPE_CHECKING:
    from markupsafe import Markup

    from harness.records.record import CandidateRun, RunRecord


@dataclass(frozen=True)
class Property:
    """One property of a candidate, declared, measured or both. `differs` is set where the two contradict each other."""

    name: str
    declared: Any
    measured: Any
    has_declared: bool
    has_measured: bool

    @property
    def differs(self) -> bool:
        """Whether the kernel does something else than it says: worth the reader's attention."""
        if not (self.has_declared and self.has_measured):
            return False
        # A measurement may say by what it was found: "exact: gives every bit of the probes".
        agrees = isinstance(self.measured, str) and self.measured.startswith(f"{self.declared}:")
        return self.declared != self.measured and not agrees


def properties(candidate: CandidateRun) -> list[Property]:
    """Return declared and measured properties side by side, in the order in which they were declared."""
    names = dict.fromkeys([*candidate.declared, *candidate.measured])
    return [
        Property(
            name,
            candidate.declared.get(name),
            candidate.measured.get(name),
            name in candidate.declared,
            name in candidate.measured,
        )
        for name in names
    ]


def section(record: RunRecord) -> Markup | None:
    """Draw the candidates that ran, then a table of those that did not."""
    if not record.candidates:
        return None
    return fill(
        "candidates.html.j2",
        ran=[(c, candidate_word(record, c), properties(c)) for c in record.candidates if c.ran],
        not_run=[(c, candidate_word(record, c)) for c in record.candidates if not c.ran],
    )
