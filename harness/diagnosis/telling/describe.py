"""A diagnosis in words and as plain JSON: what stands in the record, the report and the failure's message."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from harness.candidates.protocol import ROUTED
from harness.diagnosis.cases.case import CallCase
from harness.diagnosis.cases.observation import INNER, MASKED_GEMM, tensors_in
from harness.diagnosis.hypotheses.score import Score
from harness.diagnosis.telling.evidence import NEARLY_ALL, share, weakness
from harness.diagnosis.telling.numbers import numbers, percent, strength_words
from harness.diagnosis.telling.pattern import describe_pattern, total
from harness.diagnosis.telling.place import place, place_of_tokens
from harness.diagnosis.telling.rank import Explanation, ranked, unexplained
from harness.faults.bugs import all_bugs
from harness.faults.fault import Fault
from harness.judging.comparison import Comparison

NOTHING = "no known fault explains it"


def findings(scores: list[Score], cases: Sequence[CallCase], command: str) -> list[dict[str, Any]]:
    """Return the diagnosis, JSON-ready; the first entry is the best explanation.

    Args:
        scores: of the hypotheses that were tested.
        cases: what was to be explained.
        command: repeats the diagnosis.
    """
    found = ranked(scores, cases)
    illegal = total([case.illegal for case in cases])
    result = [_explained(e, scores, cases, command) for e in found]
    left = unexplained(found, cases)
    if total(left) or not found:
        result.append(_unexplained(left, cases, illegal, command, rest=bool(found)))
    return result


def _case_place(case: CallCase, mask: Tensor) -> dict[str, Any]:
    """Say where a mask of a case is True: experts, rows, blocks, columns; names of inputs; places in memory."""
    if case.view == "output" and case.call.stage == ROUTED:
        return place_of_tokens(mask)
    if case.view == "output":
        return place(case.by_rows(mask), case.by_rows(case.valid))
    where = mask.flatten().nonzero().flatten()
    if case.view == "inputs":
        names, start = [], 0
        for name, tensor in tensors_in(case.call.arguments):
            size = 0 if name == "out" else tensor.numel() * tensor.element_size()
            if bool(((where >= start) & (where < start + size)).any()):
                names.append(name)
            start += size
        return {"words": f"the input {' and '.join(names)} was changed", "inputs": names}
    out = case.call.arguments["out"]
    first, last = int(where[0]) - out.storage_offset(), int(where[-1]) - out.storage_offset()
    words = f"elements {first} to {last} from the start of the output, of {out.numel()}"
    return {"words": words, "elements": [first, last]}


def _explained(
    e: Explanation, scores: Sequence[Score], cases: Sequence[CallCase], command: str
) -> dict[str, Any]:
    fault = e.score.hypothesis.fault
    illegal = sum(e.score.of.values())
    part = share(e.score, e.masks)
    places = {cases[n].name: _case_place(cases[n], mask) for n, mask in sorted(e.masks.items())}
    words = "; ".join(f"{name}: {p['words']}" for name, p in places.items())
    if len({p["words"] for p in places.values()}) == 1:
        words = next(iter(places.values()))["words"] + f" ({', '.join(places)})"
    if e.score.inside:
        words += f"; in {'; '.join(_weight_rows(*inside) for inside in e.score.inside.items())}"
    words += _step(e.score)
    same = sorted({s.hypothesis.fault.name for s in e.same} | set(fault.same_as))
    also = sorted(_as_good(e, scores) - {fault.name, *same})
    evidence = f"reproduces {percent(part)} of {illegal:,} illegal elements"
    if not e.score.exact:
        evidence += ", each within what the order of addition and rounding leave free"
    if any(cases[n].refused for n in e.masks):
        evidence += " of what should have been refused"
    weak = weakness(e.score, e.masks, cases)
    if weak:
        evidence += f"; weak: {weak}"
    if e.score.chosen:
        evidence += " (which calls, rows or tiles it strikes was taken from what was seen)"
    # how often a race strikes is no strength of what was seen
    strength = "" if e.score.chosen else strength_words(e.score.hypothesis.strength)
    return {
        "fault": fault.name,
        "title": fault.title,
        "category": fault.category,
        **({"measured": True} if e.score.hypothesis.fitted else {}),
        **({"strength": strength + (" (measured)" if e.score.hypothesis.fitted else "")} if strength else {}),
        "place": words,
        "evidence": evidence,
        "explained": round(part, 6),
        "elements": e.elements,
        "of": illegal,
        **({"weak": weak} if weak else {}),
        **({"pattern": _pattern(e.masks, cases)} if weak or also or e.score.hypothesis.fitted else {}),
        **({"alternative": "explains elements that a better explanation covers"} if e.alternative else {}),
        **({"same_as": same} if same else {}),
        "also": also,
        "bugs": _threads(fault),
        **({"by_chance": True} if e.score.placed else {}),
        **({"simulated": fault.simulated} if fault.simulated else {}),
        "where": {name: {k: v for k, v in p.items() if k != "words"} for name, p in places.items()},
        "command": command,
    }


def _step(score: Score) -> str:
    """Say which stage call of an opaque layer a fault is in, where it is in one of two of a kind."""
    stages = {stage for stage in score.hypothesis.fault.stages if stage in INNER}
    if score.step is None or (MASKED_GEMM in stages and len(stages) > 1):
        return ""
    kind = "GEMM" if stages == {MASKED_GEMM} else "quantization"
    return f"; in the {('first', 'second')[score.step]} {kind}"


def _as_good(e: Explanation, scores: Sequence[Score]) -> set[str]:
    """Return the names of all faults that explain (nearly) all of what an explanation is about."""
    return {
        s.hypothesis.fault.name for s in scores if s.of.keys() == e.score.of.keys() and s.share >= NEARLY_ALL
    }


def _pattern(masks: Mapping[int, Tensor], cases: Sequence[CallCase]) -> list[str]:
    """Return sentences about the elements of masks by case."""
    return [words for n, mask in sorted(masks.items()) for words in describe_pattern(cases[n], mask)]


def _threads(fault: Fault) -> list[str]:
    """Return the real threads that had the same cause, as addresses or ids."""
    known = all_bugs()
    return [known[name].thread if name in known else name for name in fault.bugs]


def _weight_rows(name: str, rows: Tensor) -> str:
    """Say where a weight's rows `(experts, rows)` are True."""
    experts, numbered = (rows.any(axis).nonzero().flatten().tolist() for axis in (-1, 0))
    return f"{name}: experts {numbers(experts)}, weight rows {numbers(numbered)}"


def _unexplained(
    left: Sequence[Tensor], cases: Sequence[CallCase], illegal: int, command: str, *, rest: bool
) -> dict[str, Any]:
    count = total(left)
    pattern = _pattern({n: mask for n, mask in enumerate(left) if bool(mask.any())}, cases)
    return {
        "fault": "",
        "title": f"no known fault explains the other {count:,} illegal elements" if rest else NOTHING,
        "explained": 0.0,
        "elements": count,
        "evidence": f"{count:,} of {illegal:,} illegal elements",
        "pattern": pattern,
        "command": command,
    }


def no_illegal_call(rule: str, command: str) -> dict[str, Any]:
    """Return the finding of a rule that fails though each call of it is legal by itself."""
    return {
        "fault": "",
        "title": NOTHING,
        "explained": 0.0,
        "elements": 0,
        "evidence": f"{rule} fails, but every recorded stage call is legal by itself: two calls disagree legally",
        "pattern": [
            f"every recorded stage call of {rule} is legal by itself: what is wrong shows only between calls"
        ],
        "command": command,
    }


def failing_alike(faults: Sequence[Fault], bad: Sequence[Comparison], command: str) -> dict[str, Any]:
    """Return the finding of faults that fail the same comparisons as the candidate: the first, and what is not told apart.

    Args:
        faults: at least one.
        bad: the comparisons that fail.
        command: repeats the diagnosis.
    """
    fault, *others = faults
    elements = sum(c.illegal for c in bad)
    same = sorted({f.name for f in others} | set(fault.same_as))
    return {
        "fault": fault.name,
        "title": fault.title,
        "category": fault.category,
        "place": "; ".join(f"{c.stage}: experts {numbers(c.extent['experts'])}" for c in bad),
        "evidence": f"planted in a right preparation, it fails the same comparisons: {', '.join(c.stage for c in bad)}",
        "explained": 1.0,
        "elements": elements,
        "of": elements,
        **({"same_as": same} if same else {}),
        "also": [],
        "bugs": _threads(fault),
        **({"simulated": fault.simulated} if fault.simulated else {}),
        "where": {c.stage: {"experts": c.extent["experts"]} for c in bad},
        "command": command,
    }


def raised(error: Exception, command: str) -> dict[str, Any]:
    """Return the finding of a rule that ends in an exception or in a breach of the contract: there is nothing to explain."""
    return {
        "fault": "",
        "title": f"{type(error).__name__}: {error}",
        "explained": 0.0,
        "elements": 0,
        "raised": True,
        "evidence": "the candidate raised it, or broke the contract so: no output was compared",
        "command": command,
    }


def passed_again(rule: str, runs: int, command: str) -> dict[str, Any]:
    """Return the finding of a rule that passed in every repetition; `passed` says how many."""
    return {
        "fault": "",
        "title": f"{rule} passed in all {runs} repetitions",
        "explained": 0.0,
        "elements": 0,
        "passed": runs,
        "evidence": "if it failed before, what is wrong strikes now and then: a race, or something left by earlier calls",
        "command": command,
    }
