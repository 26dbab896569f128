"""Judge one rule on one problem: the step that runs in a process together with the candidate.

What comes back is plain JSON-ready data, so that it makes no difference whether the candidate lives in this process or
in a child (harness.session).
"""

from __future__ import annotations

import traceback
from dataclasses import asdict
from typing import Any

from harness.candidates.protocol import stages_of, traits_of
from harness.problem import parse_problem
from harness.rules import NotApplicableError, Rule, find_rules


class Judge:
    """A loaded and probed candidate, ready to be judged.

    Args:
        candidate: an object of the candidate protocol that can run here.
        seed_threads: threads torch may use, 0 for its own choice.
    """

    def __init__(self, candidate: Any, *, threads: int = 0) -> None:
        import torch

        from harness.probes import measure

        if threads:
            torch.set_num_threads(threads)
        self.candidate = candidate
        self._measured = measure(candidate)

    def describe(self) -> dict[str, Any]:
        """Return traits, what was measured, and stages, JSON-ready."""
        return {
            "traits": asdict(traits_of(self.candidate)),
            "measured": self._measured.notes,
            "stages": stages_of(self.candidate),
        }

    def judge(self, rule_id: str, problem: str) -> dict[str, Any]:
        """Judge one problem.

        Returns:
            `{"status": "judged", "comparisons": [...]}` or `{"status": "not applicable" | "contract" | "raised",
            "error": ...}`. A candidate that raises is an answer; errors of the harness itself are raised.
        """
        rule = find_rules([rule_id])[0]
        return self._judge(rule, problem)

    def _judge(self, rule: Rule, text: str) -> dict[str, Any]:
        from harness.context import Context, ContractError

        problem = parse_problem(text)
        context = Context(self.candidate, problem, self._measured.known)
        try:
            comparisons = rule.function()(context)
        except NotApplicableError as reason:
            return {"status": "not applicable", "error": str(reason)}
        except ContractError as error:
            return {"status": "contract", "error": str(error)}
        except Exception as error:
            if not _raised_in_candidate(error):
                raise
            if _device_is_lost(error):
                return {"status": "crashed", "error": f"{type(error).__name__}: {error}"}
            last = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{last.filename.rsplit('/', 1)[-1]}:{last.lineno} in {last.name}"
            return {"status": "raised", "error": f"{type(error).__name__}: {error} ({where})"}
        return {"status": "judged", "comparisons": [c.to_dict() for c in comparisons]}


def _raised_in_candidate(error: BaseException) -> bool:
    """Whether the error passed through a call of the candidate: the frame of a rule or Context called something else.

    Anything that starts in the harness's own judging code is our defect and must not be blamed on the candidate.
    """
    ours = (
        "harness.rules",
        "harness.context",
        "harness.judging",
        "harness.judge_",
        "harness.comparison",
        "reference.",
    )
    trace = error.__traceback__
    while trace is not None:
        name = trace.tb_frame.f_globals.get("__name__", "")
        if not name.startswith(ours):
            return not name.startswith("torch") or _device_is_lost(error)
        trace = trace.tb_next
    return _device_is_lost(error)


def _device_is_lost(error: BaseException) -> bool:
    """Whether a CUDA error makes every later call in this process fail."""
    text = str(error)
    return any(
        word in text for word in ("CUDA error", "device-side assert", "illegal memory access", "cudaError")
    )
