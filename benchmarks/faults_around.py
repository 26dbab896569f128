"""How many of the catalog's faults are caught and named around a real kernel: docs/hopper.md shows the figures.

    python benchmarks/faults_around.py --candidate humming-masked --jobs 6
    python benchmarks/faults_around.py --candidate humming-masked --fault alpha_of_neighbour --keep failing

Each fault that fits the candidate is planted everywhere, and judged by the rule that it names on the problems that the
profile draws, those that cost little first, until one fails; then the diagnosis of that failure is asked for. The candidate
with the fault is measured as any other. "named" is a fault that the first finding names or says is not told apart from the one
that it names on these inputs ("equal").
"""

from __future__ import annotations

import argparse
import collections
import multiprocessing
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

NAMED, EQUAL, LATER, CAUGHT, MISSED = "named", "equal", "named later", "caught only", "not caught"


@dataclass(frozen=True)
class Task:
    """One fault around one candidate."""

    candidate: str
    fault: str
    rule: str
    profile: str
    keep: str


@cache
def problems_of(candidate: str, rule_id: str, profile: str) -> list[str]:
    """Return the problems of a rule as `harness check` draws them."""
    from harness.candidates import traits_of
    from harness.faults.named import load_named
    from harness.mutants.problems import drawn_problems, quick_first
    from harness.problems.profiles import find_profile
    from harness.rules import find_rules

    traits = traits_of(load_named(candidate))
    return [
        str(p) for p in quick_first(drawn_problems(find_rules([rule_id])[0], traits, find_profile(profile)))
    ]


def one(task: Task) -> tuple[str, str]:
    """Plant, judge and diagnose; return how it ended and the words."""
    from harness.faults.named import load_named
    from harness.running.judge import Judge

    started = time.perf_counter()
    judge = Judge(load_named(f"{task.candidate}+{task.fault}"))
    measured = time.perf_counter()
    problems = problems_of(task.candidate, task.rule, task.profile)
    failing = next(((p, o) for p in problems if (o := judge.judge(task.rule, p)).fails), None)
    if failing is None:
        return MISSED, f"{task.fault}: {task.rule} passed on {len(problems)} problems"
    caught = time.perf_counter()
    problem, outcome = failing
    found = judge.diagnose(task.rule, problem, "")
    how = ended(task.fault, found)
    words = (
        f"{task.fault}: {task.rule} {problem}, measured in {measured - started:.1f} s, caught in {caught - measured:.1f} s, "
        f"diagnosed in {time.perf_counter() - caught:.1f} s"
    )
    if how in {NAMED, EQUAL}:
        return how, words + (f" as {found[0]['fault']}" if how == EQUAL else "")
    if task.keep:
        Path(task.keep).mkdir(parents=True, exist_ok=True)
        judge.keep_calls(task.rule, problem, Path(task.keep) / f"{task.fault}.pt", before_each=False)
    said = [
        f"    {f['fault'] or f['title']}: {f['evidence'][:160]}; {'; '.join(f.get('pattern', ()))[:300]}{f.get('trace', '')[-900:]}"
        for f in found
    ]
    return how, "\n".join([words, f"    {outcome.error[:300]}", *said])


def ended(fault: str, found: list[dict[str, Any]]) -> str:
    """Return how a diagnosis names a fault."""
    if found and found[0]["fault"] == fault:
        return NAMED
    if found and fault in found[0].get("same_as", ()):
        return EQUAL
    return (
        LATER
        if any(fault in {f["fault"], *f.get("same_as", ()), *f.get("also", ())} for f in found)
        else CAUGHT
    )


def tasks(options: argparse.Namespace) -> list[Task]:
    """Return the faults that fit the candidate, which has to run here; its kernels are compiled ahead."""
    from harness.candidates import stages_of, traits_of
    from harness.faults.fault import all_faults
    from harness.faults.named import start_named
    from harness.mutants.places import place_of

    candidate = start_named(options.candidate)
    stages, traits = stages_of(candidate), traits_of(candidate)
    found = []
    for fault in all_faults().values():
        place = place_of(fault, options.candidate, stages, traits)
        if place.candidate and (not options.fault or fault.name in options.fault):
            found.append(Task(options.candidate, fault.name, place.rule, options.profile, options.keep))
    return found


def main() -> None:
    """Judge and print, each fault as it comes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--candidate", default="physical")
    parser.add_argument("--fault", action="append", help="only this one; may be repeated")
    parser.add_argument("--profile", default="quick")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument(
        "--keep", default="", help="folder for the calls of what is not named: `harness diagnose FILE`"
    )
    options = parser.parse_args()
    counts: collections.Counter[str] = collections.Counter()
    with multiprocessing.get_context("spawn").Pool(options.jobs) as pool:
        for how, words in pool.imap_unordered(one, tasks(options)):
            counts[how] += 1
            print(f"{how:12} {words}", flush=True)
    total, caught = sum(counts.values()), sum(counts.values()) - counts[MISSED]
    named = counts[NAMED] + counts[EQUAL]
    print(
        f"{total} faults planted, {caught} caught, {named} named, {counts[EQUAL]} of them as equal to another"
    )


if __name__ == "__main__":
    main()
