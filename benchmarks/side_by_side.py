"""CPU seconds of judging the same problems in this tree and in another one, rule by rule, and where they go.

    git worktree add /tmp/before dfc88df
    python benchmarks/side_by_side.py /tmp/before --every 10
    python benchmarks/side_by_side.py /tmp/before --profile quick --rules QUANT GEMM

The problems are those that the other tree draws for a profile, so that both can make them: strings without a version where it
is older than version 2. A fresh process of one tree judges all of them, then one of the other, in turn, one thread each,
`--rounds` times; of each rule the least counts. Processor time, since other programs may run. What a process does once
(loading torch, measuring the candidate) is left out. Times are split into making the numbers of problems, the candidate's
stages, the question whether altered copies would pass (power), and the rest of judging; what is nested counts where it
happens.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent.parent
PARTS = ("problem", "candidate", "power", "judging")
CANDIDATE = "eager"
# (module, class) of a problem's numbers, and the modules of comparisons and of the judge, in the trees that there have been.
NUMBERS = (
    ("harness.problems.tensors", "ProblemTensors"), ("harness.problem_tensors", "ProblemTensors"),
    ("harness.problems.layer", "LayerProblem"), ("harness.layer_problem", "LayerProblem"),
    ("harness.problems.routed", "RoutedProblem"),
)  # fmt: skip
COMPARISONS = ("harness.judging.comparison", "harness.comparison")
SESSIONS = ("harness.running.session", "harness.session")
JUDGES = ("harness.running.judge", "harness.judging")


class Clock:
    """Processor seconds of the parts: each moment counts for the innermost part that is running."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._running = ["judging"]
        self._since = time.process_time()

    def _pass(self) -> None:
        now = time.process_time()
        self.seconds[self._running[-1]] += now - self._since
        self._since = now

    def start(self) -> None:
        """Forget everything so far."""
        self._pass()
        self.seconds.clear()

    def stop(self) -> dict[str, float]:
        """Return the seconds of each part."""
        self._pass()
        return dict(self.seconds)

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function whose time counts for a part."""

        @functools.wraps(function)
        def call(*arguments: Any, **named: Any) -> Any:
            self._pass()
            self._running.append(part)
            try:
                return function(*arguments, **named)
            finally:
                self._pass()
                self._running.pop()

        return call


def _first(modules: tuple[str, ...], name: str) -> Any:
    """Return the first of some modules that is there and has that name."""
    for module in modules:
        try:
            found = importlib.import_module(module)
        except ImportError:
            continue
        if hasattr(found, name):
            return found
    raise SystemExit(f"side_by_side.py: none of {', '.join(modules)} has {name}")


def _watch(clock: Clock) -> None:
    """Have the functions of the parts timed; before anything imports them by name."""
    comparison = _first(COMPARISONS, "altered_copies")
    copies = comparison.altered_copies
    comparison.accepted = clock.timed("power", comparison.accepted)
    comparison.altered_copies = clock.timed(
        "power",
        lambda *a, **n: {name: clock.timed("power", asked) for name, asked in copies(*a, **n).items()},
    )
    for module, name in NUMBERS:
        try:
            kind = getattr(importlib.import_module(module), name)
        except ImportError:
            continue
        kind.__init__ = clock.timed("problem", kind.__init__)
        for attribute in vars(kind).values():
            if isinstance(attribute, functools.cached_property):
                attribute.func = clock.timed("problem", attribute.func)


def judge(drawn: dict[str, list[str]]) -> dict[str, Any]:
    """Return for each rule the seconds of each part of judging its problems, and what came of them."""
    import torch

    torch.set_num_threads(1)
    clock = Clock()
    _watch(clock)
    from harness.candidates import load_candidate

    candidate = load_candidate(CANDIDATE)
    judging = _first(JUDGES, "Judge").Judge(candidate)
    stages = _first(("harness.candidates.protocol",), "stages_of").stages_of(candidate)
    for name in stages:
        setattr(candidate, name, clock.timed("candidate", getattr(candidate, name)))
    found = {}
    for rule, problems in drawn.items():
        clock.start()
        counted: dict[str, int] = defaultdict(int)
        for problem in problems:
            outcome = judging.judge(rule, problem)
            answer = outcome if isinstance(outcome, dict) else vars(outcome)
            compared = [c if isinstance(c, dict) else vars(c) for c in answer.get("comparisons", ())]
            counted[str(answer["status"])] += 1
            counted["elements"] += sum(c["compared"] for c in compared)
            counted["illegal"] += sum(c["illegal"] for c in compared)
        found[rule] = {"seconds": clock.stop(), "counted": counted}
    return found


class _Noted:
    """A session that judges nothing and notes what it is asked."""

    def __init__(self, judge: Any) -> None:
        self.left_out: dict[str, str] = {}
        self.described, self.problems = judge.describe(), []

    def describe(self) -> Any:
        return self.described

    def judge(self, _rule: str, problem: str, _seconds: float) -> Any:
        self.problems.append(problem)
        if isinstance(self.described, dict):
            return {"status": "judged", "comparisons": [], "unseen": {}}
        from harness.running.outcome import Outcome, Status

        return Outcome(Status.JUDGED)


def draw(profile: str, rules: list[str]) -> dict[str, list[str]]:
    """Return the problems of each rule that a run of a profile judges."""
    from harness.candidates import load_candidate
    from harness.rules import RULES

    runner = _first(("harness.running.runner", "harness.runner"), "RuleRun" if _is_new() else "run_rule")
    settings = _first(("harness.running.settings", "harness.runner"), "RunSettings").RunSettings
    find_profile = _first(("harness.problems.profiles", "harness.profiles"), "find_profile").find_profile
    judge = _first(JUDGES, "Judge").Judge(load_candidate(CANDIDATE))
    stages = set(_Noted(judge).described["stages"] if not _is_new() else _Noted(judge).described.stages)
    drawn = {}
    for rule in RULES:
        if set(rule.stages) <= stages and (not rules or rule.id in rules):
            session, wanted = _Noted(judge), settings(find_profile(profile))
            runner.RuleRun(rule, session, wanted).draw() if _is_new() else runner.run_rule(
                rule, session, wanted
            )
            drawn[rule.id] = session.problems
    return drawn


def _is_new() -> bool:
    return importlib.util.find_spec("harness.running") is not None


def _alone() -> None:
    """Let packages come from the tree at hand only: an editable installation offers modules that an older tree lacks."""
    sys.meta_path[:] = [
        finder for finder in sys.meta_path if "editable" not in getattr(finder, "__module__", "")
    ]


def _child(tree: Path, *arguments: str, given: Any = None) -> Any:
    """Return what a process of a tree answers, given something as JSON."""
    environment = os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--child", *arguments]
    done = subprocess.run(  # noqa: S603 - this file
        command,
        input=json.dumps(given),
        env=environment,
        cwd=tree,
        check=True,
        text=True,
        stdout=subprocess.PIPE,
    )
    return json.loads(done.stdout.splitlines()[-1])


def _say(name: str, number: int, found: dict[str, dict[str, float]]) -> None:
    """Print the seconds of one rule: of the other tree, and of this one."""
    sums = {tree: sum(seconds.values()) for tree, seconds in found.items()}
    texts = [
        f"{sums[tree]:8.2f} ({' '.join(f'{found[tree].get(part, 0.0):7.2f}' for part in PARTS)})"
        for tree in found
    ]
    print(
        f"{name:11}{number:5}  {'  '.join(texts)}  {sums['here'] / max(sums['there'], 1e-9):5.2f}", flush=True
    )


def compare(there: Path, profile: str, every: int, rounds: int, rules: list[str]) -> None:
    """Print a line for each rule, and one for all of them."""
    drawn = {
        rule: problems[::every]
        for rule, problems in _child(there, "draw", profile, given=rules).items()
        if problems
    }
    print(f"{profile}, one in {every} problems; CPU seconds ({', '.join(PARTS)}) there, here, here / there")
    answers: dict[str, list[Any]] = {"there": [], "here": []}
    for _ in range(rounds):
        for name, tree in (("there", there), ("here", HERE)):
            answers[name].append(_child(tree, "judge", given=drawn))
    total: dict[str, dict[str, float]] = {"there": defaultdict(float), "here": defaultdict(float)}
    for rule, problems in drawn.items():
        best = {
            name: min((answer[rule]["seconds"] for answer in given), key=lambda parts: sum(parts.values()))
            for name, given in answers.items()
        }
        _say(rule, len(problems), best)
        counted = {name: given[0][rule]["counted"] for name, given in answers.items()}
        if counted["there"] != counted["here"]:
            print(f"  counted there {counted['there']}, here {counted['here']}")
        for name, sums in total.items():
            for part, seconds in best[name].items():
                sums[part] += seconds
    _say("all", sum(map(len, drawn.values())), total)


def main() -> None:
    """Compare two trees, or be one of them."""
    if sys.argv[1:2] == ["--child"]:
        _alone()
        of_tree = getattr(_first(SESSIONS, "START_SECONDS"), "DEFAULT_ENVIRONMENT", {})
        if not of_tree.items() <= os.environ.items():  # the allocator reads its own before Python runs
            os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | of_tree)  # noqa: S606 - ourselves
        given = json.load(sys.stdin)
        print(json.dumps(draw(sys.argv[3], given) if sys.argv[2] == "draw" else judge(given)))
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tree", type=Path, help="the other tree")
    parser.add_argument("--profile", default="standard")
    parser.add_argument("--every", type=int, default=1, help="one problem in so many of each rule")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--rules", nargs="*", default=[])
    given = parser.parse_args()
    compare(given.tree.resolve(), given.profile, given.every, given.rounds, given.rules)


if __name__ == "__main__":
    main()
