"""Judge one rule on one problem: the step that runs in a process together with the candidate.

What comes back is an Outcome of plain numbers, so that it makes no difference whether the candidate lives in this
process or in a child (harness.running.session).
"""

from __future__ import annotations

import functools
import json
import os
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from harness.candidates.errors import ORDINARY, Exceptions, in_words, in_words_with_place, text_of
from harness.candidates.protocol import ALL_STAGES, stages_of, traits_of
from harness.candidates.witness import asked_of, contradiction, ran_of
from harness.candidates.witness import in_words as in_words_of_kernel
from harness.problems.problem import parse_problem
from harness.ranks.errors import RankLostError
from harness.rules import NotApplicableError, Rule, find_rules
from harness.running.outcome import Description, Outcome, Status

if TYPE_CHECKING:
    from harness.diagnosis.cases.earlier import FirstCalls
    from harness.judging.comparison import Comparison
    from harness.judging.context import Context


class EndingError(Exception):
    """A candidate raised what asks a process to end and is no Exception: its own words."""


class Watched:
    """A candidate whose calls remember what they raised, so that an error is blamed on the one that made it.

    The module names in a traceback would not do: a stage under `torch.no_grad` or `torch.compile` raises from frames of
    torch, a compiled extension has no frames at all, and an error of our own rules passes through torch as well.

    A call may leave nothing behind, and of its arguments it may change the contents only (harness.candidates.surroundings).

    Args:
        candidate: an object of the candidate protocol.
        blamed: exceptions that are the candidate's when they come out of one of its calls.
        spared: those of them that are not: they come from outside, an interrupt of this process for example.

    Attributes:
        left_out: stages that are taken to be missing.
        first_calls: notes what it was given first, for a diagnosis; None: nobody asks for it.
        traits: what it declared when it was loaded.
    """

    def __init__(self, candidate: Any, blamed: Exceptions = ORDINARY, spared: Exceptions = ()) -> None:
        self._candidate = candidate
        self._blamed, self._spared = blamed, spared
        self.traits = traits_of(candidate)
        self._raised: BaseException | None = None
        self._raised_by = ""
        self._returned: set[str] = set()
        self.left_out: frozenset[str] = frozenset()
        self.first_calls: FirstCalls | None = None

    def __getattr__(self, name: str) -> Any:
        if _stage_of(name) in self.left_out:
            raise AttributeError(f"{name} is not implemented")
        try:
            value = getattr(self._candidate, name)
        except AttributeError:
            raise
        except self._blamed as error:
            self._raise(name, error)
        return self._watched(name, value) if callable(value) else value

    def _watched(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function, updated=())
        def call(*arguments: Any, **named: Any) -> Any:
            from harness.candidates.surroundings import Arguments, Surroundings, without_memory
            from harness.judging.contract import ContractError

            if self.first_calls is not None:
                self.first_calls.note(name, arguments, named)
            given = Arguments({**{f"number {i}": a for i, a in enumerate(arguments, 1)}, **named})
            before = Surroundings()
            try:
                result = function(*arguments, **named)
            except self._blamed as error:
                self._raise(name, error)
            finally:
                if os.getpid() != before.process:
                    os._exit(
                        0
                    )  # a copy of this process that the candidate made: the run goes on in one of them
                left = before.restore()
            self._returned.add(_stage_of(name))
            if left := left or given.changed() or without_memory(result):
                raise ContractError(f"{_stage_of(name)} {left}")
            return result

        return call

    def _raise(self, name: str, error: BaseException) -> NoReturn:
        """Raise what one of the candidate's calls raised, as an ordinary error; remember it, unless it came from outside."""
        if isinstance(error, self._spared):
            raise error
        self._raised, self._raised_by = error, _stage_of(name)
        if not isinstance(error, ORDINARY):
            self._raised = EndingError(in_words_with_place(error))
        raise self._raised

    def not_implemented(self, error: BaseException) -> str:
        """Return the stage that raised this NotImplementedError and has never returned, "" where it is something else."""
        never = self._raised_by in ALL_STAGES and self._raised_by not in self._returned
        return (
            self._raised_by if isinstance(error, NotImplementedError) and self.raised(error) and never else ""
        )

    def raised(self, error: BaseException) -> bool:
        """Return whether the error came out of one of the candidate's calls."""
        return error is self._raised

    def last_error(self) -> BaseException | None:
        """Return what the candidate raised last, or None."""
        return self._raised

    def forget(self) -> None:
        """Let go of the last error: its trace keeps tensors alive."""
        self._raised = None


def _stage_of(name: str) -> str:
    return name.removesuffix("_tapped")


class Judge:
    """A loaded and probed candidate, ready to be judged.

    Args:
        candidate: an object of the candidate protocol that can run here.
        threads: threads torch may use, 0 for its own choice.
        probe: measure it first; not where that has ended the process before.
        blamed, spared: as `Watched` takes them.
    """

    def __init__(
        self,
        candidate: Any,
        *,
        threads: int = 0,
        probe: bool = True,
        blamed: Exceptions = ORDINARY,
        spared: Exceptions = (),
    ) -> None:
        import torch

        from harness.diagnosis.cases.earlier import FirstCalls
        from harness.identification.measure import measure

        if threads:
            torch.set_num_threads(threads)
        self.candidate = Watched(candidate, blamed, spared)
        self._first_calls = self.candidate.first_calls = FirstCalls()
        self._measured = measure(self.candidate, probe=probe)

    def describe(self) -> Description:
        """Return traits, what was measured, and stages, JSON-ready."""
        import torch

        traits = asdict(traits_of(self.candidate))
        # hints may hold anything that a kernel takes, a torch.dtype for example
        ready = json.loads(json.dumps(traits, default=str))
        free = torch.cuda.mem_get_info()[0] if traits["device"] == "cuda" and torch.cuda.is_available() else 0
        found = self._measured
        return Description(
            ready, found.notes, stages_of(self.candidate), free, found.findings, found.fingerprint
        )

    def leave_out(self, stages: Iterable[str]) -> None:
        """Take these stages to be missing from now on."""
        self.candidate.left_out = frozenset(stages)

    def judge(self, rule_id: str, problem: str) -> Outcome:
        """Judge one problem.

        JUDGED, NOT_APPLICABLE, CONTRACT, RAISED, NOT_IMPLEMENTED, NO_MEMORY, RANK_LOST or, with a lost GPU, CRASHED. A candidate that raises is an answer; errors of the harness itself are raised.
        """
        from harness.judging.context import Context

        self.candidate.forget()
        context = Context(self.candidate, parse_problem(problem), self._measured.known)
        return judge_context(find_rules([rule_id])[0], context)

    def diagnose(
        self, rule_id: str, problem: str, command: str, likely: Sequence[str] = ()
    ) -> list[dict[str, Any]]:
        """Return which known faults explain the failure of a rule on a problem (harness.diagnosis), JSON-ready.

        Args:
            rule_id: the rule that failed.
            problem: on which problem.
            command: repeats the diagnosis.
            likely: names of faults that explain another failure of the rule.
        """
        from harness.diagnosis.diagnose import diagnose_problem

        if find_rules([rule_id])[0].once:
            return []  # it fails on probes of its own, and its message says what they found
        try:
            return diagnose_problem(
                self.candidate, self._measured.known, rule_id, problem, command=command, likely=likely,
                earlier=self._first_calls.calls,
            )  # fmt: skip
        except (Exception, SystemExit):  # noqa: BLE001 - a failure stays a failure, whatever becomes of its explanation
            trace = traceback.format_exc()
            return [{"fault": "", "title": "the diagnosis itself failed", "trace": trace, "command": command}]

    def keep_calls(self, rule_id: str, problem: str, path: Path, *, before_each: bool) -> str:
        """Write the calls of a failing problem into a file; return why there is none (harness.reproduction.calls)."""
        from harness.reproduction.calls import keep_calls

        if find_rules([rule_id])[0].once:
            return f"{rule_id} asks probes of its own: `harness identify` repeats them"
        return keep_calls(
            self.candidate, self._measured.known, rule_id, problem, path, before_each=before_each
        )


def judge_context(rule: Rule, context: Context) -> Outcome:
    """Judge one rule on a problem whose tensors may be there already; the context's candidate must be `Watched`.

    Returns and raises what `Judge.judge` does.
    """
    try:
        comparisons = rule.function()(context)
    except (Exception, SystemExit) as error:
        answer = _answer_to(error, context)
        if answer is None:
            raise
        return answer
    ran = ran_of(context.candidate)
    if otherwise := contradiction(asked_of(context.candidate), ran):
        return Outcome(Status.CONTRACT, otherwise)
    hidden = context.candidate.last_error()
    if hidden is not None and not rule.may_refuse:
        what = "the rule went on as if the candidate had not raised it"
        return Outcome(Status.RAISED, f"{in_words(hidden)} ({what})", hidden=True)
    return Outcome(
        Status.JUDGED,
        comparisons=[c.plain() for c in comparisons],
        unseen=unseen_rows(rule, comparisons, context.masked_m, context.problem.capacity),
        extents={name: context.layer.extents[name] for name in rule.extents},
        kernels=[in_words_of_kernel(each) for each in ran],
    )


def _answer_to(error: BaseException, context: Context) -> Outcome | None:
    """Return what an error that ended a rule says about the candidate, None where it is the harness's own."""
    from harness.judging.context import device_is_lost, out_of_memory
    from harness.judging.contract import ContractError

    if isinstance(error, RankLostError):
        return Outcome(Status.RANK_LOST, text_of(error))
    if device_is_lost(error):
        return Outcome(Status.CRASHED, in_words(error))
    if context.candidate.raised(error):
        return _raised(error, context.candidate.not_implemented(error))
    if isinstance(error, NotApplicableError):
        return Outcome(Status.NOT_APPLICABLE, str(error))
    if isinstance(error, ContractError):
        return Outcome(Status.CONTRACT, str(error))
    return Outcome(Status.NO_MEMORY, in_words(error)) if out_of_memory(error) else None


def _raised(error: BaseException, not_implemented: str) -> Outcome:
    """Return the answer of a candidate that raised; `not_implemented` is its stage that has never done anything else."""
    if not_implemented:
        return Outcome(Status.NOT_IMPLEMENTED, text_of(error), stage=not_implemented)
    words = text_of(error) if isinstance(error, EndingError) else in_words_with_place(error)
    return Outcome(Status.RAISED, words)


def unseen_rows(
    rule: Rule, comparisons: list[Comparison], masked_m: list[int], capacity: int
) -> dict[str, int]:
    """Return how many valid rows of each expert no comparison of a rule looked at, by expert number as a string.

    Comparisons of something else than an expert's rows (inputs, memory around an output) do not count, and where there
    are only such, or none that compared anything, nothing is said.
    """
    import torch

    seen = torch.zeros(len(masked_m), capacity, dtype=torch.bool)
    about_rows = False
    for comparison in comparisons:
        rows = comparison.rows
        if rows is not None and (rows.experts, rows.capacity) == tuple(seen.shape):
            seen[rows.expert.cpu(), rows.row.cpu()] = True
            about_rows = True
    if not rule.every_row or not about_rows:
        return {}
    missed = [count - int(seen[expert, :count].sum()) for expert, count in enumerate(masked_m)]
    return {str(expert): rows for expert, rows in enumerate(missed) if rows}
