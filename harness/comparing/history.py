"""Read every record below a folder into a `History`: `gather_history`. The folder is the store, there is no index."""

from __future__ import annotations

import datetime as dt
import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from harness.comparing.environment import changed_versions, versions
from harness.comparing.items import Item, Rank, items, task_item
from harness.records.find import record_files
from harness.records.from_json import RecordError
from harness.records.history import (
    History,
    HistoryPoint,
    HistoryRun,
    Line,
    Series,
    Standing,
    Unreadable,
    VersionMark,
)
from harness.records.parts.gsm8k import Gsm8kRun
from harness.records.record import NotARecordError, RunRecord, parse_record
from harness.records.ways import has_interval

# Left behind when a record is read for its figures: 99 % of its size.
_HEAVY = {"samples", "failures", "histograms", "plantings", "matrix", "upstream"}
_SECTIONS = ("rules", "gsm8k", "canary", "mutants")
_NEVER = dt.datetime.min.replace(tzinfo=dt.UTC)

Place = tuple[str, str]
"""Candidate or model, and GPU."""


def gather_history(folder: Path, link: Callable[[Path], str] = lambda _file: "") -> History:
    """Return the history of the records below a folder.

    Args:
        folder: searched recursively for *.json; files that are JSON but no records are counted and passed over.
        link: address of the report beside a record file, "" where there is none.

    Raises:
        RecordError: the folder is none.
    """
    unreadable, others, found = _read(folder)
    return _history(found, folder, link, unreadable, others)


def gather_past(folder: Path, record: RunRecord, link: Callable[[Path], str] = lambda _file: "") -> History:
    """Return the history that ends with a record: of the records below a folder those that are older than it, and it.

    Args:
        folder: as in `gather_history`.
        record: the newest run, whether or not it lies below the folder.
        link: as in `gather_history`.

    Raises:
        RecordError: the folder is none, or a part of the record is damaged.
    """
    unreadable, others, found = _read(folder)
    now = _time(record.created)
    before = [one for one in found if _time(one[1].created) < now]
    return _history([*before, (folder, record, _judged(record))], folder, link, unreadable, others)


Found = tuple[Path, RunRecord, list[Item]]


def _read(folder: Path) -> tuple[list[Unreadable], int, list[Found]]:
    """Return what cannot be read, how many files are no records, and the records with what they judged."""
    unreadable, others = [], 0
    found: list[Found] = []
    for file in record_files(folder):
        name = str(file.relative_to(folder))
        try:
            record = read_figures(file, name)
            judged = _judged(record)  # a part that cannot be read is found out here, with its name
        except NotARecordError:
            others += 1
        except RecordError as error:
            unreadable.append(Unreadable(name, str(error)))
        else:
            found.append((file, record, judged))
    return unreadable, others, found


def _history(
    found: list[Found], folder: Path, link: Callable[[Path], str], unreadable: list[Unreadable], others: int
) -> History:
    found = sorted(found, key=lambda read: (_time(read[1].created), str(read[0])))
    gathered = _Gathered()
    for number, (_, record, judged) in enumerate(found):
        gathered.add(number, record, judged)
    return History(
        runs=[_run(file, record, folder, link(file)) for file, record, _ in found],
        lines=gathered.lines(),
        standing=gathered.standing(),
        verdicts=len(gathered.verdicts),
        unreadable=unreadable,
        others=others,
    )


def read_figures(file: Path, name: str) -> RunRecord:
    """Return a record without its samples, failing problems, histograms and matrices. Raises RecordError."""
    try:
        data = json.loads(file.read_bytes())
    except OSError as error:
        raise RecordError(f"{name}: cannot be read ({error.strerror or error})") from error
    except ValueError as error:
        raise RecordError(f"{name}: is not a JSON record ({error})") from error
    except RecursionError as error:
        raise RecordError(f"{name}: is not a JSON record (nested too deeply)") from error
    if isinstance(data, dict):
        data |= {section: _light(data[section]) for section in _SECTIONS if section in data}
    return parse_record(data, f"{name}: record")


def _light(value: Any, depth: int = 4) -> Any:
    if isinstance(value, dict) and depth:
        return {k: _light(v, depth - 1) for k, v in value.items() if k not in _HEAVY}
    if isinstance(value, list) and depth:
        return [_light(v, depth - 1) for v in value]
    return value


def _time(created: str) -> dt.datetime:
    try:
        time = dt.datetime.fromisoformat(created)
    except ValueError:
        return _NEVER
    return time if time.tzinfo else time.replace(tzinfo=dt.UTC)


def _run(file: Path, record: RunRecord, folder: Path, link: str) -> HistoryRun:
    run = record.gsm8k_run
    ran = [c.name for c in record.candidates if c.ran] or ([run.model] if run else [])
    return HistoryRun(
        name=str(file.relative_to(folder)),
        run_id=record.run_id,
        created=record.created,
        what=" ".join(record.command[1:2]),
        candidates=", ".join(ran),
        gpu=_gpu(record),
        profile=record.profile,
        verdict=record.verdict,
        reason=record.reason,
        seconds=record.seconds,
        commit=record.environment.git_commit + ("+" if record.environment.git_dirty else ""),
        link=link,
    )


def _gpu(record: RunRecord) -> str:
    return ", ".join(dict.fromkeys(record.environment.gpus)) or record.environment.device


@dataclass
class _Gathered:
    """Values by place and series, and verdicts by what they are about, each in the order of the runs."""

    series: dict[Place, dict[tuple[str, str], list[HistoryPoint]]] = field(default_factory=dict)
    versions: dict[Place, list[tuple[int, dict[str, str]]]] = field(default_factory=lambda: defaultdict(list))
    verdicts: dict[tuple[str, str, str, str], list[tuple[int, Item]]] = field(
        default_factory=lambda: defaultdict(list)
    )
    all_versions: dict[int, dict[str, str]] = field(default_factory=dict)

    def add(self, number: int, record: RunRecord, judged: list[Item]) -> None:
        """Add one run."""
        gpu = _gpu(record)
        stated = versions(record.environment, record.harness_version)
        run = record.gsm8k_run
        if run is not None and run.server.get("version"):
            stated["server"] = str(run.server["version"])
        self.all_versions[number] = stated
        touched = set()
        for who, kind, subject, point in _values(number, record):
            touched.add(who)
            self.series.setdefault((who, gpu), {}).setdefault((kind, subject), []).append(point)
        for who in sorted(touched):
            self.versions[who, gpu].append((number, stated))
        for item in judged:
            self.verdicts[item.part, item.subject, item.candidate, gpu].append((number, item))

    def lines(self) -> list[Line]:
        """Return one line for each candidate or model and GPU."""
        return [
            Line(
                *place,
                marks=_marks(self.versions[place]),
                series=[Series(*key, points) for key, points in sorted(some.items())],
            )
            for place, some in sorted(self.series.items())
        ]

    def standing(self) -> list[Standing]:
        """Return what is not good now: bad before not judged, the newest trouble first."""
        found = [self._stands(key, seen) for key, seen in self.verdicts.items()]
        standing = [s for s in found if s is not None]
        return sorted(standing, key=lambda s: (not s.bad, -s.since, s.part, s.subject, s.who))

    def _stands(self, key: tuple[str, str, str, str], seen: list[tuple[int, Item]]) -> Standing | None:
        newest, item = seen[-1]
        if item.rank is Rank.GOOD:
            return None
        row = len(seen)
        while row and seen[row - 1][1].rank is not Rank.GOOD:
            row -= 1
        since, good = seen[row][0], seen[row - 1][0] if row else None
        changes = [] if good is None else changed_versions(self.all_versions[good], self.all_versions[since])
        return Standing(
            *key, item.word, item.rank is Rank.BAD, item.reason, newest, since, len(seen) - row, good, changes
        )


def _judged(record: RunRecord) -> list[Item]:
    """Return every verdict of a record that its history keeps. Raises RecordError."""
    run = record.gsm8k_run
    found = items(record) + ([task_item(run, run.model)] if run is not None else [])
    return [item for item in found if item.rank is not Rank.ASIDE and not _skipped(item)]


def _skipped(item: Item) -> bool:
    """Whether a rule says nothing about its candidate on that machine; such a run is left out of the rule's history."""
    return item.part == "rules" and item.word == "SKIPPED"


def _values(number: int, record: RunRecord) -> Iterator[tuple[str, str, str, HistoryPoint]]:
    """Yield every figure of a run: whose, what kind, of what, the point."""
    seconds: dict[str, float] = defaultdict(float)
    for rule in record.rules:
        if rule.examples:
            seconds[rule.candidate] += rule.seconds
            if rule.worst_ratio is not None and has_interval(rule.judged):
                point = HistoryPoint(number, rule.worst_ratio, bad=rule.verdict == "FAIL")
                yield rule.candidate, "margin", rule.rule, point
    for who, total in seconds.items():
        yield who, "duration", f"rules, {record.profile or 'no profile'}", HistoryPoint(number, total)
    run = record.gsm8k_run
    if run is not None:
        yield from _run_values(number, run, run.model, run.task_name)
    canary = record.canary_part
    for canary_run in canary.runs if canary else []:
        yield from _run_values(number, canary_run, canary_run.candidate, "canary")
    mutants = record.mutants_run
    if mutants is not None and mutants.score.share is not None:
        point = HistoryPoint(number, mutants.score.share, bad=mutants.score.survived > 0)
        yield mutants.candidate, "score", "planted faults killed", point
        yield mutants.candidate, "duration", "planted faults", HistoryPoint(number, mutants.seconds)


def _run_values(
    number: int, run: Gsm8kRun, who: str, subject: str
) -> Iterator[tuple[str, str, str, HistoryPoint]]:
    if run.accuracy is not None:
        low, high = run.accuracy_interval or (None, None)
        yield who, "accuracy", subject, HistoryPoint(number, run.accuracy, low, high, run.verdict == "FAIL")
    seconds = run.seconds.get("requests")
    if seconds is not None:
        yield who, "duration", f"{subject} requests", HistoryPoint(number, seconds)


def _marks(seen: list[tuple[int, dict[str, str]]]) -> list[VersionMark]:
    marks = []
    for (_, before), (number, after) in pairwise(seen):
        changes = changed_versions(before, after)
        if changes:
            marks.append(VersionMark(number, changes))
    return marks
