"""A capture against an earlier one of the same requests: what is not as it was then, and what of that is a fault.

A call is compared with the one of the same rank, layer, stage and turn. What a stage returned may differ legally, and later
calls then get other tokens; what no stage makes (weights, scales, factors) must be the same.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch import Tensor

from harness.candidates import layouts
from harness.candidates.protocol import STAGES
from harness.diagnosis.cases.observation import MASKED_GEMM, MASKED_MOE, QUANTIZERS, Observed, bytes_of
from harness.diagnosis.cases.views import decoded
from harness.records.parts.replay import ReplayedCall
from harness.replay.captured import Captured, NotJudgedError, Process
from harness.replay.errors import relative_distance
from harness.replay.judging import Judged, judge_call
from harness.replay.observing import observed
from harness.verdict import Verdict
from reference.moe import valid_rows
from reference.nvfp4 import BLOCK

_TOKENS = ("x", "hidden_states", "a", "a_scale")  # of which only valid rows count
_FROM_OUTSIDE = {
    "w1",
    "w1_blockscale",
    "w1_alpha",
    "w2",
    "w2_blockscale",
    "w2_alpha",
    "input_global_scale",
    "a2_global_scale",
}
_OF_STAGES = {"b", "b_scale", "alpha", "global_scale_enc"}
_Key = tuple[int, str, int | None, int]


class Baseline:
    """The earlier capture.

    Args:
        processes: of it.
        arithmetic: of its quantizers.

    Attributes:
        changes: what is not as it was although no stage made it, in words, each once.
        faulty: whether one of them is a fault: other weights or factors.
    """

    def __init__(self, processes: list[Process], arithmetic: str) -> None:
        self.changes: list[str] = []
        self.faulty = False
        self._arithmetic = arithmetic
        self._calls: dict[_Key, tuple[Process, Captured]] = {}
        self._turns: Counter[tuple[int, str, int | None]] = Counter()
        self._same = True  # every call so far got and returned what it did then
        turns: Counter[tuple[int, str, int | None]] = Counter()
        for process in processes:
            for call in process.calls:
                self._calls[_key(turns, process.rank, call)] = process, call

    def compare(self, call: Captured, line: ReplayedCall) -> None:
        """Note in a line how its call differs from the baseline's."""
        found = self._calls.pop(_key(self._turns, line.rank, call), None)
        if call.stage not in STAGES:
            return
        if found is None:
            self._note(f"{line.place}: the baseline has no such call")
            return
        process, before = found
        try:
            seen, then = observed(call), observed(before)
        except NotJudgedError:
            return
        line.differs = [name for name in seen.arguments if not _same_input(call, before, seen, then, name)]
        line.distance = _distance(seen, then)
        if line.verdict is Verdict.FAIL:
            known = Judged.on(process.header.get("capability"), self._arithmetic)
            line.regressed = not any(one.illegal for one in judge_call(then, known))
        self._explain(line)

    def finished(self) -> None:
        """Note what the baseline has and this capture has not."""
        if self._calls:
            number = len(self._calls)
            rank, stage, layer, _ = next(iter(self._calls))
            self._note(
                f"{number:,} calls of the baseline are missing, the first: rank {rank}, layer {layer}, {stage}"
            )

    def _explain(self, line: ReplayedCall) -> None:
        made_elsewhere = _FROM_OUTSIDE if line.stage == MASKED_MOE else _OF_STAGES
        layer = f"rank {line.rank}" + ("" if line.layer is None else f", layer {line.layer}")
        wrong = [name for name in line.differs if name in made_elsewhere]
        if wrong and (line.parent is None or not self.faulty):
            self.faulty = True
            self._note(f"{layer}, {line.stage}: other {', '.join(wrong)} than in the baseline")
        if "masked_m" in line.differs:
            self._note(f"{layer}: other rows of its experts (masked_m), first in call {line.call}")
        if self._same and line.differs and not wrong:
            self._note(
                f"first difference: {line.place} is given other {', '.join(line.differs)}, and everything captured before is "
                "the same: it comes from what is not captured"
            )
        elif self._same and line.distance:
            legal = "beyond what is legal" if line.verdict is Verdict.FAIL else "both legal"
            self._note(f"first difference: {line.place} returns something else for the same inputs, {legal}")
        self._same = self._same and not line.differs and not line.distance

    def _note(self, words: str) -> None:
        if words not in self.changes:
            self.changes.append(words)


def _key(turns: Counter[tuple[int, str, int | None]], rank: int, call: Captured) -> _Key:
    place = rank, call.stage or call.function, call.layer
    turns[place] += 1
    return (*place, turns[place])


def _same_input(mine: Captured, theirs: Captured, seen: Observed, then: Observed, name: str) -> bool:
    """Return whether two calls were given the same: bytes of tensors, of tokens those of valid rows."""
    if name == "out":
        return True  # what it held before
    named = [call.line["inputs"].get(name) for call in (mine, theirs)]
    if all(isinstance(one, dict) and "weights" in one for one in named):
        return bool(named[0]["weights"] == named[1]["weights"])  # a file's name is its content
    if name in _TOKENS:
        return all(_equal(x, y) for x, y in zip(_tokens(seen, name), _tokens(then, name), strict=True))
    return _equal(seen.arguments[name], then.arguments.get(name))


def _tokens(call: Observed, name: str) -> tuple[Any, Any]:
    """Return the valid rows of a call's tokens, and of their block scales where they have some."""
    a = call.arguments
    if name == "hidden_states":
        x, scale = a["hidden_states"]
    else:
        x, scale = (a["x"], None) if "x" in a else (a["a"], a["a_scale"])
    if scale is None:
        rows = x.permute(2, 0, 1) if "a" in a else x
        return rows[valid_rows(a["masked_m"], rows.shape[1])], None
    if scale.ndim == 3:  # a factor of each row
        valid = valid_rows(a["masked_m"], x.shape[0])
        return x.permute(2, 0, 1)[valid], scale[valid]
    valid = valid_rows(a["masked_m"], x.shape[0])
    scales = layouts.block_scales_of(scale, x.shape[0], 2 * x.shape[1] // BLOCK)
    return x.permute(2, 0, 1)[valid], scales[valid]


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(_equal(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and a.dtype == b.dtype and bytes_of(a).equal(bytes_of(b))
    return not isinstance(a, Tensor) and not isinstance(b, Tensor) and a == b


def _distance(call: Observed, before: Observed) -> float | None:
    """Return how far apart what two calls returned is, over valid rows; None where they have other rows."""
    if not _equal(call.arguments["masked_m"], before.arguments["masked_m"]):
        return None
    got, then = (_values(one) for one in (call, before))
    return relative_distance(got, then) if got.shape == then.shape else None


def _values(call: Observed) -> Tensor:
    if call.stage in QUANTIZERS:
        values = decoded(call.output[0], call.output[1], call.forms[0])
    else:
        values = call.output.permute(2, 0, 1) if call.stage == MASKED_GEMM else call.output
    return values[valid_rows(call.arguments["masked_m"], values.shape[1])]
