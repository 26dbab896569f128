"""Many runs on one page: what is not good now and since when, trends, versions that changed, every run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.records.whole_files import write_whole
from reports.history_charts import TrendChart, shown_value, trend_chart
from reports.history_words import changed_between, changes_in_words, run_date
from reports.html import STYLESHEETS, assemble
from reports.sections import Drawn
from reports.tables import Cell, Part, Table, draw_part
from reports.template import fill
from reports.text import clip_plain, count, duration

if TYPE_CHECKING:
    from pathlib import Path

    from markupsafe import Markup

    from harness.records.history import History, Line

HISTORY_NAME = "history.html"
NEWEST_RUNS = 50
RUNS_SHOWN = 2_000
CHARTS_SHOWN = 60
TRENDS_SHOWN = 400


@dataclass(frozen=True)
class Charts:
    """The charts of one line; `who` and `gpu` are cut, for attributes and SVG."""

    who: str
    gpu: str
    charts: list[TrendChart]


@dataclass(frozen=True)
class Trend:
    """One rule's row: its small chart, the newest value, the highest, and in how many runs it failed."""

    rule: str
    chart: TrendChart
    newest: str
    highest: str
    above: bool
    failed: int
    runs: int


def render(history: History) -> str:
    """Return the page for a history. The same history gives the same bytes."""
    names = [run_date(run) for run in history.runs]
    sections = [
        _part(Part("standing", "Not good now", "", [_standing(history)])),
        _charts(history, names, "accuracy", "Accuracy", {"accuracy", "score"}),
        _trends(history, names),
        _charts(history, names, "durations", "Durations", {"duration"}),
        _versions(history),
        _part(Part("runs", "Runs", "Newest first.", _runs(history))),
        _part(Part("unreadable", "Not read", "", [_unreadable(history)])),
    ]
    return assemble(
        title=f"{history.verdict}: history of {count(len(history.runs))} runs",
        header=fill(
            "history.html.j2",
            history=history,
            first=names[0] if names else "",
            last=names[-1] if names else "",
        ),
        footer=fill("history_footer.html.j2", history=history),
        verdict=history.verdict,
        sections=[section for section in sections if section is not None],
        styles=(*STYLESHEETS, "compare.css", "history.css"),
        scripts=("copy.js",),
    )


def write_history(history: History, folder: Path) -> Path:
    """Write `history.html` into the folder, which is created if it is missing, and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / HISTORY_NAME
    write_whole(path, render(history))
    return path


def _part(part: Part) -> Drawn | None:
    if not any(table.rows for table in part.tables):
        return None
    return Drawn(part.anchor, part.title, draw_part(part))


def _run_cell(history: History, number: int | None) -> Cell:
    if number is None:
        return Cell("no good run before")
    run = history.runs[number]
    return Cell(run_date(run), "date", href=run.link)


def _standing(history: History) -> Table:
    columns = [
        "What",
        "Candidate or model",
        "GPU",
        "Verdict",
        "Since",
        "Runs#",
        "Last good",
        "Changed between",
        "Why",
    ]
    rows = [
        [
            Cell(s.subject, "name"),
            Cell(s.who),
            Cell(s.gpu),
            Cell(s.word, "badge"),
            _run_cell(history, s.since),
            Cell(count(s.runs), "number"),
            _run_cell(history, s.good),
            Cell(changed_between(history, s)),
            Cell(s.reason),
        ]
        for s in history.standing
    ]
    return Table("Verdicts that are not good in their newest run", columns, rows)


def _charts(history: History, names: list[str], anchor: str, title: str, kinds: set[str]) -> Drawn | None:
    groups, room = [], CHARTS_SHOWN
    for line in history.lines:
        chosen = [series for series in line.series if series.kind in kinds]
        charts = [chart for s in chosen[:room] if (chart := trend_chart(line, s, names)) is not None]
        room -= len(charts)
        if charts:
            groups.append(Charts(*_place(line), charts))
    return Drawn(anchor, title, fill("history_charts.html.j2", groups=groups)) if groups else None


def _place(line: Line) -> tuple[str, str]:
    return clip_plain(line.who, 80), clip_plain(line.gpu, 80)


def _trends(history: History, names: list[str]) -> Drawn | None:
    groups: list[tuple[str, str, list[Trend]]] = []
    room = TRENDS_SHOWN
    for line in history.lines:
        rows = []
        for series in [s for s in line.series if s.kind == "margin"][:room]:
            chart = trend_chart(line, series, names, small=True)
            if chart is None:
                continue
            values = [p.value for p in series.points]
            rows.append(
                Trend(
                    rule=chart.title,
                    chart=chart,
                    newest=shown_value("margin", values[-1]),
                    highest=shown_value("margin", max(values)),
                    above=values[-1] > 1,
                    failed=sum(p.bad for p in series.points),
                    runs=len(values),
                )
            )
        room -= len(rows)
        if rows:
            groups.append((*_place(line), rows))
    return Drawn("margins", "Worst error over bound", _trend_tables(groups)) if groups else None


def _trend_tables(groups: list[tuple[str, str, list[Trend]]]) -> Markup:
    return fill("history_trends.html.j2", groups=groups)


def _versions(history: History) -> Drawn | None:
    tables = [
        Table(
            f"Versions that changed for {clip_plain(line.who, 80)}",
            ["Mark#", "Run", "Changed"],
            [
                [
                    Cell(str(number), "number"),
                    _run_cell(history, mark.run),
                    Cell(changes_in_words(mark.changes)),
                ]
                for number, mark in enumerate(line.marks, start=1)
            ],
            title=f"{clip_plain(line.who, 80)} on {clip_plain(line.gpu, 80)}",
        )
        for line in history.lines
    ]
    words = "The numbers are those of the dashed lines in the charts."
    return _part(Part("versions", "Versions that changed", words, tables))


def _runs(history: History) -> list[Table]:
    rows = [
        [
            Cell(run.verdict, "badge"),
            Cell(run_date(run), "date", href=run.link),
            Cell(run.what),
            Cell(clip_plain(run.candidates, 120)),
            Cell(clip_plain(run.gpu, 60)),
            Cell(clip_plain(run.profile, 20)),
            Cell(duration(run.seconds), "number"),
            Cell(run.commit[:10]),
            Cell(clip_plain(run.reason, 160)),
        ]
        for run in reversed(history.runs)
    ]
    columns = ["Verdict", "Run", "Command", "Candidates", "GPU", "Profile", "Time#", "Commit", "Reason"]
    newest, older = rows[:NEWEST_RUNS], rows[NEWEST_RUNS:]
    folded = f"{count(len(older))} older runs"
    return [
        Table("The newest runs", columns, newest),
        Table("Older runs, newest first", columns, older, limit=RUNS_SHOWN, folded=folded),
    ]


def _unreadable(history: History) -> Table:
    rows = [[Cell(u.name, "name"), Cell(u.reason)] for u in history.unreadable]
    return Table("Files that could not be read as records", ["File", "Why"], rows)
