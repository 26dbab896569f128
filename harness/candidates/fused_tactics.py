"""Which tactic FlashInfer's tuner chose: noted where the package asks it, for as long as a launch takes.

Read in flashinfer-python 0.7.2.post1 and 0.7.4, autotuner: `AutoTuner.get().choose_one(custom_op, runners, tuning_config,
inputs)` returns the runner and the tactic that are launched next; -1 is the runner's own default, which it takes where
nothing was tuned. A cache of the tuner tells only what was tuned, and not what ran.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from harness.candidates.cutedsl_support import import_quietly

_DEFAULT = -1


@contextmanager
def tactics_noted(into: list[dict[str, str]]) -> Iterator[None]:
    """Note every choice of the tuner until the block ends: its op, the runner's class and the tactic, each once.

    A package whose tuner is asked in another way is run as it is, and nothing is noted.

    Args:
        into: what was noted; grows.
    """
    try:
        tuner = import_quietly("flashinfer.autotuner").AutoTuner.get()
        choose = tuner.choose_one
    except (ImportError, AttributeError):
        yield
        return

    def noting(custom_op: str, *given: Any, **named: Any) -> Any:
        found = choose(custom_op, *given, **named)
        runner, tactic = found
        noted = {"op": custom_op, "runner": type(runner).__name__, "tactic": _text(tactic)}
        if noted not in into:
            into.append(noted)
        return found

    tuner.choose_one = noting  # of this one object, before its class's
    try:
        yield
    finally:
        del tuner.choose_one


def _text(tactic: Any) -> str:
    """Return a tactic, a number or numbers within numbers, in words."""
    return "the default" if isinstance(tactic, int) and tactic == _DEFAULT else str(tactic)
