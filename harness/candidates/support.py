"""Capability as a value with a reason, instead of an `if` that hides why something did not run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Support:
    """Whether a candidate, a stage or a rule can run here, and if not, why and what would change it."""

    ok: bool
    reason: str = ""

    def __bool__(self) -> bool:
        return bool(self.ok)


def supported() -> Support:
    """Return the value that means: this runs here."""
    return Support(ok=True)


def unsupported(reason: str) -> Support:
    """Return the value that means: this cannot run here, for this reason (one sentence, without a full stop)."""
    return Support(ok=False, reason=reason)
