"""Every captured call judged, rank by rank and layer by layer; the first illegal one diagnosed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.candidates.protocol import stages_of
from harness.diagnosis.cases.observation import MASKED_GEMM, MASKED_MOE, Observed, name_calls
from harness.diagnosis.diagnose import diagnose_calls
from harness.judging.comparison import Comparison
from harness.replay.export import export
from harness.replay.judging import Judged, judge_call, judge_passed_on
from harness.replay.observing import NotJudgedError, observed
from harness.replay.reading import Captured, Process
from harness.replay.rerun import run_again
from harness.verdict import UsageError, Verdict

_DIAGNOSIS_SECONDS = 20.0
_ROWS_OF_AN_ERROR = 16


@dataclass
class Line:
    """What was found of one captured call.

    Attributes:
        rank, layer, call: where: the process's rank, which layer (None: none is known), its number in the process.
        stage: of the protocol, or the function's name.
        by: "" for what was captured, else the candidate that it was run again through.
        verdict: PASS; FAIL where an element is illegal; UNKNOWN where nothing could be judged, or with no power.
        words: the message of a FAIL, the reason of an UNKNOWN.
        compared, illegal: elements.
        error: of a GEMM, root mean square relative to what it should be; None for other stages.
        diagnosis: what explains a failure; of the first one of a rank.
    """

    rank: int
    layer: int | None
    call: int
    stage: str
    by: str = ""
    verdict: Verdict = Verdict.PASS
    words: str = ""
    compared: int = 0
    illegal: int = 0
    error: float | None = None
    diagnosis: list[dict[str, Any]] = field(default_factory=list)


def replay(
    processes: list[Process],
    *,
    arithmetic: str = "fast",
    candidate: Any = None,
    name: str = "",
    command: str = "",
) -> Iterator[Line]:
    """Judge every captured call.

    Args:
        processes: of harness.replay.reading.read_capture.
        arithmetic: of the quantizers, a key of reference.legal.KINDS.
        candidate: runs each stage again on the captured input, and is judged as well; None for none.
        name: of the candidate.
        command: repeats this.

    Yields:
        What was found, in the order in which the calls ended; the whole layer after its stages.
    """
    for process in processes:
        known, diagnosed = Judged.on(process.header.get("capability"), arithmetic), False
        for call in process.calls:
            line, comparisons = _line(process, call, known)
            if line.verdict is Verdict.FAIL and not diagnosed:
                diagnosed = True
                line.diagnosis = _diagnosis(process, call, known, command)
            yield line
            if candidate is not None and call.stage in stages_of(candidate) and comparisons:
                yield _again(process, call, known, candidate, name)


def _line(process: Process, call: Captured, known: Judged) -> tuple[Line, list[Comparison]]:
    line = Line(process.rank, call.layer, call.number, call.stage or call.function)
    try:
        seen = observed(call)
        parts = [observed(part) for part in process.parts_of(call) if part.stage]
        gemms = [part for part in parts if part.stage == MASKED_GEMM]
        if call.stage == MASKED_MOE and gemms:
            found = [judge_passed_on(seen, gemms[-1])]
        else:
            found = judge_call(seen, known)
        line.error = _error(seen)
    except NotJudgedError as error:
        line.verdict, line.words = Verdict.UNKNOWN, str(error)
        return line, []
    line = _filled(line, found)
    if seen.changed and line.verdict is not Verdict.FAIL:
        line.verdict, line.words = (
            Verdict.FAIL,
            f"{call.stage} changed its input {', '.join(sorted(seen.changed))}",
        )
        line.illegal = line.illegal or 1
    return line, found


def _filled(line: Line, found: list[Comparison]) -> Line:
    line.compared = sum(one.compared for one in found)
    line.illegal = sum(one.illegal for one in found)
    wrong = [one for one in found if one.illegal]
    weak = [one for one in found if one.accepted_altered]
    if wrong:
        line.verdict, line.words = Verdict.FAIL, wrong[0].message
    elif weak:
        line.verdict = Verdict.UNKNOWN
        line.words = (
            f"no power: {weak[0].stage} would be accepted with {', '.join(weak[0].accepted_altered)} too"
        )
    elif not line.compared:
        line.words = "no valid row"
    return line


def _diagnosis(process: Process, call: Captured, known: Judged, command: str) -> list[dict[str, Any]]:
    """Return what explains a call that failed; the calls of its layer before it are looked at too."""
    before = [one for one in process.calls if one.parent == call.parent and one.layer == call.layer]
    together = [one for one in before if one.number <= call.number] if call.parent is not None else [call]
    calls = name_calls([observed(one) for one in together if one.stage])
    return diagnose_calls(calls, known.bounds, _DIAGNOSIS_SECONDS, command)


def _again(process: Process, call: Captured, known: Judged, candidate: Any, name: str) -> Line:
    """Run a captured call through a candidate, and judge that."""
    line = Line(process.rank, call.layer, call.number, call.stage, by=name)
    try:
        again = run_again(observed(Captured(call.folder, call.line)), candidate)
    except Exception as error:  # noqa: BLE001 - the candidate's answer
        line.verdict, line.words = Verdict.FAIL, f"raised {type(error).__name__}: {error}"
        return line
    return _filled(line, judge_call(again, known))


def export_first(processes: list[Process], lines: list[Line], path: Path, arithmetic: str) -> str:
    """Write the first illegal captured call as a pytest file; return to what it was cut.

    Raises:
        UsageError: nothing captured is illegal, or not by itself.
    """
    for line in lines:
        if line.verdict is not Verdict.FAIL or line.by:
            continue
        for process in processes:
            for call in process.calls:
                if (process.rank, call.number) == (line.rank, line.call):
                    capability = process.header.get("capability")
                    named = [one["title"] for one in line.diagnosis if one.get("fault")]
                    return export(
                        path, observed(call), Judged.on(capability, arithmetic), function=call.function,
                        place=f"rank {line.rank}, layer {line.layer}, call {line.call}",
                        title=(named or [f"An illegal element of {call.stage}"])[0], capability=capability,
                    )  # fmt: skip
    raise UsageError("--export: no captured call is illegal")


def _error(call: Observed) -> float | None:
    """Return the relative root mean square error of a GEMM, over a few valid rows of each expert."""
    if call.stage != MASKED_GEMM:
        return None
    from harness.diagnosis.cases.views import decoded

    a = call.arguments
    values, weights = decoded(a["a"], a["a_scale"]), decoded(a["b"], a["b_scale"])
    wrong = size = 0.0
    for expert, count in enumerate(a["masked_m"].tolist()):
        rows = slice(0, min(count, _ROWS_OF_AN_ERROR))
        right = values[expert, rows] @ weights[expert].T
        if a.get("alpha") is not None:
            right = right * a["alpha"][expert].float()
        wrong += float((call.output[rows, :, expert].double() - right.double()).square().sum())
        size += float(right.double().square().sum())
    return math.sqrt(wrong / size) if size else None
