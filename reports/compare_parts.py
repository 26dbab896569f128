"""A comparison of two runs as sections of tables, regressions first: what the HTML and the Markdown both show."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.records.changes import AccuracyChange, Direction, VerdictChange
from reports.tables import Cell, Part, Table
from reports.text import count, duration, ratio
from reports.view import rule_anchor

if TYPE_CHECKING:
    from harness.records.changes import Estimate, RecordComparison

_SECTIONS = {
    "gsm8k": "gsm8k",
    "candidates": "candidates",
    **dict.fromkeys(("canary", "canary control", "canary fault"), "canary"),
    **dict.fromkeys(("mutants", "controls", "self-test"), "mutants"),
}
"""Where a report shows the parts of a comparison (reports/sections.py)."""

_VERDICT_COLUMNS = ["What", "Candidate", "Part", "Before to after", "Why", "See it"]


def parts(found: RecordComparison) -> list[Part]:
    """Return the sections that have something to show, in the order in which they matter."""
    every = [
        _toward(found, Direction.REGRESSION, "regressions", "Regressions"),
        _toward(found, Direction.IMPROVEMENT, "improvements", "Improvements"),
        _toward(found, Direction.CHANGED, "changed", "Changed, neither better nor worse"),
        Part("still", "Still failing", "", [_verdict_table(found, found.still_bad, "Failing in both runs")]),
        # Accuracies that got better or worse stand there, once.
        _accuracies(found, [a for a in found.accuracies if a.direction is Direction.SAME]),
        _margins(found),
        _coverage(found),
        _timings(found),
        _environment(found),
        _one_sided(found),
        _unchanged(found),
    ]
    return [part for part in every if any(table.rows for table in part.tables)]


def _toward(found: RecordComparison, direction: Direction, anchor: str, title: str) -> Part:
    verdicts = [v for v in found.verdicts if v.direction is direction]
    accuracies = [a for a in found.accuracies if a.direction is direction]
    return Part(
        anchor,
        title,
        "",
        [_verdict_table(found, verdicts, title), _accuracy_table(found, accuracies, f"{title}: accuracy")],
    )


def _report(found: RecordComparison, part: str, subject: str, candidate: str) -> str:
    """Return where the report of the second run shows something; "" where there is no report, or are several."""
    link = found.after[0].link if len(found.after) == 1 else ""
    if not link or part == "run":
        return link
    return (
        f"{link}#{rule_anchor(subject, candidate)}"
        if part == "rules"
        else f"{link}#{_SECTIONS.get(part, 'main')}"
    )


def _verdict_table(found: RecordComparison, changes: list[VerdictChange], caption: str) -> Table:
    rows = [
        [
            Cell(change.subject, "name", href=_report(found, change.part, change.subject, change.candidate)),
            Cell(change.candidate),
            Cell(change.part),
            Cell(change.before, "badge")
            if change.before == change.after
            else Cell(change.before, "change", change.after),
            Cell(change.reason),
            Cell(change.reproduce, "command"),
        ]
        for change in changes
    ]
    return Table(caption, _VERDICT_COLUMNS, rows)


def _accuracies(found: RecordComparison, changes: list[AccuracyChange]) -> Part:
    words = (
        "Paired: on the questions that both runs answered. A regression is a loss that chance does not explain "
        "and that may exceed two points; an improvement is a gain that chance does not explain."
    )
    return Part("accuracy", "Accuracy", words, [_accuracy_table(found, changes, "Accuracy before and after")])


def _accuracy_table(found: RecordComparison, changes: list[AccuracyChange], caption: str) -> Table:
    columns = ["What", "Candidate", "Before", "After", "Difference#", "Lost, gained#", "Finding"]
    rows = [
        [
            Cell(
                f"{change.subject} ({change.metric})",
                "name",
                href=_report(found, change.part, change.subject, change.candidate),
            ),
            Cell(change.candidate),
            Cell(_estimate(change.before)),
            Cell(_estimate(change.after)),
            Cell(f"{_points(change.difference)} ({_points(change.low)} to {_points(change.high)})", "number"),
            Cell(
                f"{count(change.lost)}, {count(change.gained)} of {count(change.questions)}"
                if change.paired
                else "not paired",
                "number",
            ),
            Cell(change.words),
        ]
        for change in changes
    ]
    return Table(caption, columns, rows)


def _estimate(estimate: Estimate) -> str:
    return (
        f"{100 * estimate.share:.2f} % ({100 * estimate.low:.2f} to {100 * estimate.high:.2f}, "
        f"{count(estimate.answered)} answers)"
    )


def _points(value: float) -> str:
    return f"{100 * value:+.2f}"


def _margins(found: RecordComparison) -> Part:
    rows = [
        [
            Cell(m.rule, "name"),
            Cell(m.candidate),
            Cell(ratio(m.before), "number"),
            Cell(ratio(m.after), "number"),
            Cell("" if m.factor is None else f"x {m.factor:.3g}", "number"),
            Cell("the same" if m.same_problems else "others: the draw differs too"),
            Cell(m.problem),
        ]
        for m in found.margins
    ]
    words = (
        "Worst error divided by its bound; above 1 is illegal and shows as a verdict. Below 1 nothing is judged. "
        f"{count(found.margins_same)} are equal."
    )
    columns = ["Rule", "Candidate", "Before#", "After#", "Factor#", "Problems", "Worst problem now"]
    return Part("margins", "Error against bound", words, [Table("Worst error over bound", columns, rows)])


def _coverage(found: RecordComparison) -> Part:
    rows = [
        [
            Cell(c.rule, "name"),
            Cell(c.candidate),
            Cell(count(c.before), "number"),
            Cell(count(c.after), "number"),
        ]
        for c in found.coverage
    ]
    words = "Rules that compared less than half, or more than twice, as many elements as before."
    columns = ["Rule", "Candidate", "Elements before#", "After#"]
    return Part("coverage", "Coverage", words, [Table("Elements compared", columns, rows)])


def _timings(found: RecordComparison) -> Part:
    rows = [
        [
            Cell(t.what, "name"),
            Cell(t.candidate),
            Cell(duration(t.before), "number"),
            Cell(duration(t.after), "number"),
            Cell("" if t.before <= 0 else f"x {t.after / t.before:.2f}", "number"),
            Cell(t.work),
        ]
        for t in found.timings
    ]
    words = f"Shown where they changed by a quarter and a second; {count(found.timings_same)} did not. Never judged."
    columns = ["What", "Candidate", "Before#", "After#", "Factor#", "Work"]
    return Part("timings", "Timings", words, [Table("Times before and after", columns, rows)])


def _environment(found: RecordComparison) -> Part:
    rows = [
        [Cell(e.name, "name"), Cell(e.before or "none"), Cell(e.after or "none")] for e in found.environment
    ]
    words = f"{count(found.environment_same)} facts are the same."
    table = Table("Environment before and after", ["Fact", "Before", "After"], rows)
    return Part("environment", "Environment", words, [table])


def _one_sided(found: RecordComparison) -> Part:
    tables = [
        Table(
            f"Only in the run {side}",
            ["What", "Candidate", "Part", "Verdict"],
            [
                [Cell(o.subject, "name"), Cell(o.candidate), Cell(o.part), Cell(o.word, "badge")]
                for o in found.one_sided
                if o.side == side
            ],
            title=f"Only in the run {side}",
            limit=50,
        )
        for side in ("before", "after")
    ]
    return Part("one-sided", "In one run only", "", tables)


def _unchanged(found: RecordComparison) -> Part:
    rows = [
        [Cell(part, "name"), Cell(word, "badge"), Cell(count(number), "number")]
        for part, words in sorted(found.unchanged.items())
        for word, number in sorted(words.items())
    ]
    table = Table("Verdicts that are the same in both runs", ["Part", "Verdict", "How many#"], rows)
    return Part("unchanged", "Unchanged", "", [table])
