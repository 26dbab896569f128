"""Counting false alarms: every rule on drawn problems, judging candidates that are right by construction.

An example is one rule, judged on one drawn problem, for one control. Any illegal element, refused problem or broken
contract is a false alarm: a defect of a rule, a bound or a control.

    python -m harness.mutants.false_alarms --examples 100000 --jobs 16 --out false-alarms.json
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from harness.candidates.protocol import Traits, stages_of, traits_of
from harness.extras import accept_no_numpy
from harness.problems.problem import Problem
from harness.records.parts.mutants import ControlCount, FalseAlarm, FalseAlarmCount
from harness.rules import RULES, Rule
from harness.running.failure import reproduce_command
from harness.running.misfit import misfit
from harness.running.outcome import Outcome, Status

BATCH = 125  # examples that a process judges before it reports
_WIDE = 8  # one GEMM in so many that are judged by their values has a large k
# "spread" is data on which sums are really rounded: on "normal" every order of accumulation gives the same bits.
_DATA = ("normal", "spread", "spread", "grid")


def draw_problem(rule: Rule, traits: Traits, rng: random.Random) -> Problem:
    """Draw a small problem that a candidate with these traits must take: all shapes, traps and options, ends of ranges often.

    Args:
        rule: for which rule: decides on traps and options.
        traits: the candidate's declared alignments and types.
        rng: the source of chance.
    """
    step, m_step = traits.width_multiple, traits.m_multiple
    capacity = -(-rng.choice((1, 2, 7, 16, 33, 64, 129, 140)) // m_step) * m_step
    experts = max(traits.min_experts, rng.choice((1, 2, 2, 3, 4)) if capacity < 100 else 1)
    hidden, inter = (max(step, rng.choice((16, 32, 48, 64, 80, 128, 192)) // step * step) for _ in range(2))
    data = rng.choice(_DATA)
    wide = _judges_sums(rule) and rng.random() < 1 / _WIDE
    if wide:  # small but for k
        experts, capacity = traits.min_experts, -(-rng.choice((1, 4, 9)) // m_step) * m_step
        hidden, inter = rng.choice((1024, 2048, 4096)), step
    masked_m = [rng.choice((0, 1, capacity, rng.randint(0, capacity))) for _ in range(experts)]
    if not any(masked_m) and rng.random() < 0.9:
        masked_m[rng.randrange(experts)] = capacity
    traps = sorted(rule.drawn.traps_for(traits))
    extras = set(rng.sample(traps, rng.choice((0, 1, 1, 2, 4))))
    if (options := rule.drawn.options_for(traits)) and rng.random() < 0.7:
        extras.add(rng.choice(options))
    return Problem(
        experts, capacity, hidden, inter, tuple(masked_m), data, rng.randint(0, 99_999), frozenset(extras)
    )


def _judges_sums(rule: Rule) -> bool:
    """Return whether a rule knows what a GEMM must come to: the longer its sums, the more orders of adding there are."""
    return rule.knows_values and not {"masked_grouped_gemm", "masked_moe"}.isdisjoint(rule.stages)


@cache
def _measured(control: str) -> Any:
    """Return what is known about a control, probed once a process."""
    from harness.candidates.controls.catalog import load_control
    from harness.identification.measure import measure

    return measure(load_control(control)).known


def _known(control: str, rule: Rule) -> Any:
    """Return what to judge a control by: what it declares, which is true, for rules that compare with no right value."""
    from harness.candidates.controls.catalog import load_control
    from harness.judging.known import Known

    return _measured(control) if rule.knows_values else Known.declared(traits_of(load_control(control)))


def judge_control(control: str, examples: int, seed: str, deadline: float = 0.0) -> dict[str, Any]:
    """Judge one control on drawn problems, the rules in turn.

    Args:
        control: its name.
        examples: how many.
        seed: of the problems.
        deadline: `time.time()` after which nothing more is judged; 0 for none.

    Returns:
        `control`, `examples`, `compared`, `rules` (examples and examples without power of each), `judged`
        (elements by how they were judged), `traps`, `cpu_seconds`, `false_alarms`.
    """
    from harness.candidates.controls.catalog import load_control
    from harness.judging.context import Context
    from harness.running.judge import Watched, judge_context

    traits = traits_of(load_control(control))
    stages = stages_of(load_control(control))
    rules = [rule for rule in RULES if set(rule.stages) <= set(stages) and not rule.once]
    rng = random.Random(f"{control} {seed}")
    rng.shuffle(rules)
    found: dict[str, Any] = {"control": control, "examples": 0, "compared": 0, "false_alarms": []}
    counts, powerless, judged, traps = Counter[str](), Counter[str](), Counter[str](), Counter[str]()
    started = time.process_time()  # this process has one thread
    while found["examples"] < examples and rules:
        if deadline and time.time() > deadline:
            break
        rule = rules.pop(0)
        problem = draw_problem(rule, traits, rng)
        if reason := misfit(problem, rule, traits):
            raise AssertionError(f"draw_problem drew {problem} for {control}, {rule.id}: {reason}")
        outcome = judge_context(rule, Context(Watched(load_control(control)), problem, _known(control, rule)))
        if outcome.status is Status.NOT_APPLICABLE:
            continue  # this rule says nothing about this control: it does not come round again
        rules.append(rule)
        found["examples"] += 1
        counts[rule.id] += 1
        traps.update(problem.traps())
        compared = sum(c.compared for c in outcome.comparisons)
        found["compared"] += compared
        powerless[rule.id] += not compared or any(
            c.accepted_altered for c in outcome.comparisons if c.compared
        )
        for c in outcome.comparisons:
            for word, elements in c.judged.items():
                judged[word.split(":")[0]] += elements
        if message := _alarm(outcome):
            found["false_alarms"].append(
                FalseAlarm(
                    control,
                    rule.id,
                    str(problem),
                    message,
                    reproduce_command(rule.id, f"control:{control}", str(problem)),
                )
            )
    found["cpu_seconds"] = time.process_time() - started
    found["rules"] = {name: {"examples": n, "without_power": powerless[name]} for name, n in counts.items()}
    return found | {"judged": dict(judged), "traps": dict(traps)}


def _alarm(outcome: Outcome) -> str:
    if outcome.status is not Status.JUDGED:
        return f"{outcome.status}: {outcome.error}"
    return outcome.illegal[0].message if outcome.illegal else ""


def count_false_alarms(
    examples: int,
    seed: int = 0,
    jobs: int = 1,
    max_seconds: float = 0.0,
    progress: Callable[[int, int], None] = lambda _done, _wanted: None,
    controls: Iterable[str] | None = None,
) -> FalseAlarmCount:
    """Judge every control by every rule on drawn problems and count the false alarms.

    Args:
        examples: over all controls; each gets the same share.
        seed: of the problems.
        jobs: processes, of one thread each.
        max_seconds: 0 for no limit; what was not judged by then is not counted as judged.
        progress: called with the number of examples judged and the number wanted.
        controls: names; all of them by default.
    """
    from harness.candidates.controls.catalog import CONTROLS

    names = list(CONTROLS) if controls is None else list(controls)
    deadline = time.time() + max_seconds if max_seconds else 0.0
    shares = [examples // len(names) + (i < examples % len(names)) for i in range(len(names))]
    batches = (
        (name, min(BATCH, share - start), f"{seed} {start}", deadline)
        for start in range(0, max(shares), BATCH)
        for name, share in zip(names, shares, strict=True)
        if start < share
    )
    started, results = time.perf_counter(), []
    done = 0
    for result in _judged(batches, jobs):
        results.append(result)
        done += result["examples"]
        progress(done, examples)
    return _summed(results, names, examples, seed, time.perf_counter() - started)


def _judged(batches: Iterable[tuple[str, int, str, float]], jobs: int) -> Iterable[dict[str, Any]]:
    if jobs <= 1:
        for batch in batches:
            if batch[-1] and time.time() > batch[-1]:
                return
            yield judge_control(*batch)
        return
    # spawn: a forked child inherits torch's thread pools without their threads
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), _one_thread) as pool:
        futures: list[Future[dict[str, Any]]] = [pool.submit(judge_control, *batch) for batch in batches]
        yield from (future.result() for future in as_completed(futures))


def _one_thread() -> None:
    accept_no_numpy()
    import torch

    torch.set_num_threads(1)


def _summed(
    results: list[dict[str, Any]], names: list[str], wanted: int, seed: int, seconds: float
) -> FalseAlarmCount:
    by_control = {name: ControlCount() for name in names}
    by_rule: dict[str, Counter[str]] = {}
    judged, traps = Counter[str](), Counter[str]()
    alarms: list[FalseAlarm] = []
    for result in results:
        into = by_control[result["control"]]
        into.examples += result["examples"]
        into.compared += result["compared"]
        into.false_alarms += len(result["false_alarms"])
        for rule, counts in result["rules"].items():
            by_rule.setdefault(rule, Counter()).update(counts)
        judged.update(result["judged"])
        traps.update(result["traps"])
        alarms += result["false_alarms"]
    for alarm in alarms:
        by_rule[alarm.rule]["false_alarms"] += 1
    return FalseAlarmCount(
        examples=sum(c.examples for c in by_control.values()),
        wanted=wanted,
        seed=seed,
        seconds=seconds,
        cpu_seconds=sum(result["cpu_seconds"] for result in results),
        compared=sum(c.compared for c in by_control.values()),
        controls=by_control,
        rules={rule.id: dict(by_rule[rule.id]) for rule in RULES if rule.id in by_rule},
        judged=dict(judged.most_common()),
        traps=dict(sorted(traps.items())),
        false_alarms=alarms,
    )


def main(arguments: list[str] | None = None) -> int:
    """Count, write JSON, print a summary; return 1 where there was a false alarm, 2 where nothing was judged."""
    parser = argparse.ArgumentParser(prog="python -m harness.mutants.false_alarms", description=__doc__)
    parser.add_argument("--examples", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--max-seconds", type=float, default=0.0)
    parser.add_argument("--control", action="append", help="only this one; may be repeated")
    parser.add_argument("--out", type=Path, default=Path("false-alarms.json"))
    options = parser.parse_args(arguments)
    _one_thread()

    def progress(done: int, wanted: int) -> None:
        sys.stderr.write(f"\r{done:,} of {wanted:,} examples")
        sys.stderr.flush()

    result = count_false_alarms(
        options.examples, options.seed, options.jobs, options.max_seconds, progress, options.control
    )
    options.out.write_text(json.dumps(asdict(result), indent=1) + "\n", encoding="utf-8")
    rate = result.examples / max(result.cpu_seconds, 1e-9)
    summary = (
        f"{len(result.false_alarms)} false alarms in {result.examples:,} examples over {len(result.controls)} "
        f"controls, {result.compared:,} elements compared, {rate:.0f} examples a second and core; {options.out}"
    )
    alarms = [
        f"\n{alarm.control}, {alarm.rule}: {alarm.message}\n  {alarm.reproduce}"
        for alarm in result.false_alarms[:20]
    ]
    sys.stdout.write("\n".join([summary, *alarms]) + "\n")
    if result.false_alarms:
        return 1
    return 0 if result.examples else 2


if __name__ == "__main__":
    raise SystemExit(main())
