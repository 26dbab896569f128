"""What a run of rules was asked for. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from harness.problems.profiles import Profile
from harness.problems.shapes import ModelShape
from harness.rules import Rule


@dataclass
class RunSettings:
    """What a run was asked for.

    Attributes:
        profile: how much.
        seed: of the draws; the same seed draws the same problems.
        deadline: `time.monotonic()` at which no further problem is drawn, or infinity.
        shape: a real model's shape, or None for drawn ones.
        candidate: name for reproduce commands.
        progress: called with the rule, the number of problems judged so far and the number wanted.
        diagnosed: look for the cause of a failure.
    """

    profile: Profile
    seed: int = 0
    deadline: float = float("inf")
    shape: ModelShape | None = None
    candidate: str = ""
    progress: Callable[[Rule, int, int], None] = lambda _rule, _done, _wanted: None
    diagnosed: bool = True
