"""What a verdict on a served model is, and the errors that its tests allow."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from harness.verdict import ExitCode, Verdict

NOT_DEAD = "NOT DEAD"
EXPECT = 0.5
DEAD_ALPHA = 1e-6
"""A model whose true accuracy is the expected one is called dead once in a million runs."""
WAVE_LIMIT_ALPHA = 1e-6
LIMIT_ALPHA = 1e-3
"""A full run with exactly as many answers of a class as its limit allows fails once in a thousand."""
CONFIDENCE = 0.95
MAX_UNANSWERED = 0.01
MAX_DROP = 0.02
"""Accuracy that may be lost against a baseline, unless asked otherwise: what 1,319 paired questions can still see."""


@dataclass(frozen=True)
class Decision:
    """A verdict. `word`: PASS, FAIL, UNKNOWN or NOT DEAD; `qualifier`: what kind of FAIL or UNKNOWN, "" otherwise."""

    word: str
    qualifier: str
    reason: str
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The word with its qualifier: FAIL (dead)."""
        return f"{self.word} ({self.qualifier})" if self.qualifier else self.word

    @property
    def verdict(self) -> Verdict:
        """The verdict of the harness. NOT DEAD passes a run that was asked for no more than a wave."""
        return Verdict.PASS if self.word == NOT_DEAD else Verdict(self.word)

    @property
    def exit_code(self) -> ExitCode:
        """The exit code of a run that ends with this decision."""
        return ExitCode[self.verdict.value]
