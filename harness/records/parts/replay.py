"""`record.replay`, as `record.replay_run`: calls that an engine made, each judged on its own input (docs/capture.md)."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from harness.verdict import Verdict


@dataclass
class ReplayedCall:
    """What was found of one captured call.

    Attributes:
        rank, layer, call: where: the process's rank, which layer (None: none is known), its number in the process.
        parent: number of the call that it was made in, None for an outermost one.
        stage: of the protocol, or the function's name.
        by: "" for what was captured, else the candidate that it was run again through.
        verdict: PASS; FAIL where an element is illegal; UNKNOWN where nothing could be judged, or with no power.
        words: the message of a FAIL, the reason of an UNKNOWN, of a PASS what was not judged.
        compared, illegal: elements.
        error: root mean square of what it returned less the exact result of what it was given, relative to that result,
            over a few rows; None where it is not known.
        diagnosis: what explains a failure; of the first one of a rank.
        distance: root mean square of what it returned less what the baseline's call did, relative to that; None without.
        regressed: it is illegal, and the baseline's call is not.
        differs: inputs that are not what the baseline's call was given.
    """

    rank: int
    layer: int | None
    call: int
    stage: str
    parent: int | None = None
    by: str = ""
    verdict: Verdict = Verdict.PASS
    words: str = ""
    compared: int = 0
    illegal: int = 0
    error: float | None = None
    diagnosis: list[dict[str, Any]] = field(default_factory=list)
    distance: float | None = None
    regressed: bool = False
    differs: list[str] = field(default_factory=list)

    @property
    def place(self) -> str:
        """Where and what it is, in words."""
        layer = "" if self.layer is None else f", layer {self.layer}"
        by = f", by {self.by}" if self.by else ""
        return f"rank {self.rank}{layer}, call {self.call}, {self.stage}{by}"


@dataclass(frozen=True)
class ReplayRun:
    """One run of `harness replay`.

    Attributes:
        folder: what was captured.
        baseline: what it was compared with, "" for nothing.
        arithmetic: of the captured quantizers.
        device: that it was captured on.
        torn: what is missing at a process's end, in words.
        changes: what is not as in the baseline although no stage made it: weights, scales, counts, calls.
        calls: what was found, in the order in which the calls ended.
    """

    folder: str
    baseline: str = ""
    arithmetic: str = ""
    device: str = ""
    torn: list[str] = field(default_factory=list)
    changes: list[str] = field(default_factory=list)
    calls: list[ReplayedCall] = field(default_factory=list)

    @property
    def illegal(self) -> list[ReplayedCall]:
        """The calls that are wrong, in the order in which they ended."""
        return [call for call in self.calls if call.verdict is Verdict.FAIL]

    def to_json(self) -> dict[str, Any]:
        """Return what the record holds: every field."""
        return asdict(self)
