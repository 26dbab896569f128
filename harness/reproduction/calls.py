"""The calls of a failing problem in a file of plain tensors: the rule is repeated and its stage calls are recorded.

The file is torch.save's and loads with weights_only=True: `device`, and `calls`, each with `stage`, `arguments`, `hints`,
`rows` (expert and row of each valid row), `legal`, `checks` and `needed`. harness/reproduction/plain.py reads it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from harness.candidates.protocol import LAYER_STAGES, ROUTED, STAGES, traits_of
from harness.diagnosis.cases.legality import Bounds
from harness.diagnosis.cases.observation import Observed, Recorder
from harness.diagnosis.cases.repetition import FEW_RUNS, MOST_RUNS, bounds_of, run_rule_once
from harness.judging.context import Known
from harness.reproduction import plain
from harness.reproduction.legal import is_wrong, judged_call, plain_call
from harness.rules import Rule, find_rules

_SECONDS = 10.0  # after which no further run begins
# Rules whose two calls of a stage have the same valid rows, so that their bits can be compared without the harness.
SAME_BITS = ("PAD-ROWS", "PAD-SCALES", "PAD-OUT", "LAYOUT-OUT", "LAYOUT-IN", "REPEAT")


@dataclass
class Keeper(Recorder):
    """Records the stages' calls; a layer is called as one stage, without its taps.

    Attributes:
        open: the call that has begun and not ended.
        write: called with the calls so far, the one that begins included; for those that end the process.
    """

    open: Observed | None = None
    write: Callable[[list[Observed]], None] | None = None

    def __getattr__(self, name: str) -> Any:
        if name in {"masked_moe_tapped", "routed_moe_tapped"}:
            raise AttributeError(name)
        return super().__getattr__(name)

    def begun(self, call: Observed) -> None:
        """Note the call."""
        self.open = call
        if self.write is not None:
            self.write([*self.calls, call])

    @property
    def raised(self) -> Observed | None:
        """The last call, if it did not return."""
        ended = any(call is self.open for call in self.calls)
        return None if ended else self.open


def keep_calls(
    candidate: Any, known: Known, rule_id: str, problem: str, path: Path, *, before_each: bool
) -> str:
    """Write the calls of a failing problem into a file.

    Args:
        candidate: the candidate that failed.
        known: its arithmetic and accumulator, as it was judged.
        rule_id: the rule that failed.
        problem: the problem's string.
        path: of the file.
        before_each: write before each call of a stage, for a call that ends the process or never ends.

    Returns:
        Why there is no such file, "" where there is one.
    """
    rule = find_rules([rule_id])[0]
    if around := [stage for stage in rule.stages if stage in LAYER_STAGES]:
        return (
            f"{rule.id} calls {', '.join(around)}, which take and return objects that only the harness makes"
        )
    bounds, device = bounds_of(candidate, known), traits_of(candidate).device

    def write_last(calls: list[Observed]) -> None:
        before = [plain_call(call, bounds) for call in calls[:-1]]
        _write(path, device, [*before, judged_call(calls[-1], bounds)])

    end, failed = time.monotonic() + _SECONDS, 0
    for number in range(1, MOST_RUNS + 1):
        keeper = Keeper(candidate, write=write_last if before_each else None)
        fails = bool(run_rule_once(keeper, known, rule_id, problem))
        failed += fails
        calls = [call for call in keeper.calls if call.stage in (*STAGES, ROUTED)]
        if fails and keeper.raised is not None:
            if keeper.raised.stage not in (*STAGES, ROUTED):
                return f"{keeper.raised.stage} raised, of which no script is written"
            calls.append(keeper.raised)
        if fails and (found := _failing(calls, keeper.raised, rule, bounds)):
            return _write(path, device, found)
        if (failed and number >= FEW_RUNS) or time.monotonic() > end:
            break
    if not failed:
        return f"{rule.id} passed each of {number} times that it was repeated on {problem}"
    return f"{rule.id} compares calls with each other, and each of them alone is legal"


def _failing(
    calls: list[Observed], raised: Observed | None, rule: Rule, bounds: Bounds
) -> list[dict[str, Any]]:
    """Return the calls up to the first one that shows the failure by itself, or up to a pair that does; [] for neither."""
    before: list[dict[str, Any]] = []
    for call in calls:
        entry = judged_call(call, bounds)
        if call is raised or is_wrong(call, entry):
            return [*before, entry]
        before.append(plain_call(call, bounds))
    if rule.id not in SAME_BITS:
        return []
    return _differing_pair(calls, bounds, equal_inputs=rule.id == "REPEAT")


def _differing_pair(calls: list[Observed], bounds: Bounds, *, equal_inputs: bool) -> list[dict[str, Any]]:
    """Return the calls up to the first one whose valid rows have other bits than an earlier call that must give the same.

    REPEAT also calls with other data: only calls with equal inputs are a pair of its.
    """
    entries = [plain_call(call, bounds) for call in calls]
    for later, call in enumerate(calls):
        for earlier in range(later):
            if not _comparable(entries[earlier], entries[later], equal_inputs=equal_inputs):
                continue
            if plain.differing_elements(entries[later], call.output, calls[earlier].output):
                last = judged_call(call, bounds)
                last["checks"].append("same")
                last["same_as"] = earlier
                entries[earlier]["needed"] = True
                return [*entries[:later], last]
    return []


def _comparable(one: dict[str, Any], other: dict[str, Any], *, equal_inputs: bool) -> bool:
    """Return whether two calls have the same stage, valid rows and type of output, and the same inputs if asked for."""
    if one["stage"] != other["stage"] or one["shape"] != other["shape"]:
        return False
    if not all(map(torch.equal, one["rows"], other["rows"])):
        return False
    (given, out), (given_too, out_too) = (_split(entry["arguments"]) for entry in (one, other))
    if out is not None and out.dtype != out_too.dtype:
        return False
    return not equal_inputs or not plain.changed_inputs(one["stage"], given, given_too)


def _split(arguments: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    """Return the inputs, and the memory of a GEMM's output or None."""
    inputs = {name: value for name, value in arguments.items() if name != "out"}
    out = arguments.get("out")
    return inputs, out["memory"] if isinstance(out, dict) else None


def _write(path: Path, device: str, calls: list[dict[str, Any]]) -> str:
    """Write the file and read it as the script will; return why that cannot be done, or ""."""
    torch.save({"device": device, "calls": calls}, path)
    try:
        torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - whatever torch says of it
        path.unlink()
        return f"an argument is no plain tensor or number: {error}".splitlines()[0]
    return ""
