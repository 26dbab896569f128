"""How often a diagnosis names the fault that was planted: `harness/diagnosis/README.md` shows the figures.

    python benchmarks/diagnosis_accuracy.py --jobs 16                          # everything, 300 runs a category
    python benchmarks/diagnosis_accuracy.py --mode final --category scales --runs 50 --seed 0

Each run plants a random fault, with parameters drawn from a seed, in a right candidate (`physical`, `eager` or one of the
controls that differ from both), on problems of 4 experts x 32 rows x k 128, until the rule that must kill the fault fails.
Then it asks for the diagnosis of that failure. A fault counts as named where the finding is it, or says that it predicts
the same output on these inputs; `strict` counts only the finding's own name.
"""

from __future__ import annotations

import argparse
import collections
import json
import multiprocessing
import os
import random
import statistics
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
MODES = ("stage", "final", "two", "outside", "outside-final", "time")
MEASURED_FROM = 400_000  # seeds below were used while the diagnosis was developed
TRIES = 30  # problems drawn until the rule fails
CONTROLS = (
    "shuffled_accumulation", "split_k_4", "chunk_of_1_rounded", "rounded_reciprocals_unknown", "reciprocals_below",
    "reciprocals_of_another_table_unknown", "codes_with_fma", "exact_arithmetic_reversed", "silu_by_sigmoid", "silu_with_fma",
    "padding_random",
)  # fmt: skip


class FinalOutputOnly:
    """A candidate of which nothing but masked_moe can be called."""

    def __init__(self, inside: Any) -> None:
        self._inside = inside
        self.traits = inside.traits
        if hasattr(inside, "reciprocal"):
            self.reciprocal = inside.reciprocal

    def support(self) -> Any:
        return self._inside.support()

    def masked_moe(self, *arguments: Any, **named: Any) -> Any:
        return self._inside.masked_moe(*arguments, **named)


def base_for(rng: random.Random, stages: tuple[str, ...], needed: tuple[str, ...]) -> str:
    """Draw a right candidate that has one of the stages and all that a rule needs; the controls have four stages only."""
    from harness.candidates.protocol import stages_of
    from harness.faults.named import load_named

    names = ["physical", "physical", "eager", *(f"control:{name}" for name in CONTROLS)]
    while True:
        name = rng.choice(names)
        there = set(stages_of(load_named(name)))
        if set(stages) & there and set(needed) <= there:
            return name


def drawn_problem(rng: random.Random, rule: Any, traits: Any, fault: Any, shape: str) -> Any:
    from harness.problems.problem import parse_problem
    from harness.problems.values import SELDOM

    experts, capacity = map(int, shape.split("x")[:2])
    rows = [capacity if rng.random() < 0.5 else rng.randint(capacity // 2, capacity) for _ in range(experts)]
    often = [name for name in rule.drawn.traps_for(traits) if name not in SELDOM]
    extras = rng.sample(often, rng.randint(1, 3)) if not fault.random_data or rng.random() < 0.25 else []
    if rule.id in {"PIPELINE", "MOE"} and rng.random() < 0.15:
        extras.append("relu2")
    data = rng.choice(["normal", "normal", "normal", "grid"])
    text = f"{shape}:{','.join(map(str, rows))}:{data}:{rng.randrange(100_000)}"
    return parse_problem(text + (":" + "+".join(sorted(extras)) if extras else ""))


def failing(make: Any, rule: Any, fault: Any, rng: random.Random, shape: str) -> tuple[Any, str] | None:
    """Return a judge and a problem on which the rule fails, or None.

    Each problem gets a new candidate: in a real run shapes differ, so that nothing is left of another problem's calls.
    """
    from harness.running.judge import Judge
    from harness.running.misfit import misfit

    for _ in range(TRIES):
        candidate = make()
        judge = Judge(candidate)
        problem = drawn_problem(rng, rule, candidate.traits, fault, shape)
        if misfit(problem, rule, candidate.traits):
            continue
        if judge.judge(rule.id, str(problem)).illegal:  # what is raised has no diagnosis
            return judge, str(problem)
    return None


def one(task: tuple[str, str, int, bool]) -> dict[str, Any]:
    """One run: plant, fail, diagnose."""
    import torch

    from harness.candidates.traits import Traits
    from harness.faults.fault import all_faults
    from harness.faults.named import plant
    from harness.rules import find_rules
    from harness.verdict import UsageError

    torch.set_num_threads(1)
    mode, category, seed, weakest = task
    rng = random.Random(f"{mode} {category} {seed}")
    of_nvfp4 = [
        f for f in all_faults().values() if not f.unfit(Traits())
    ]  # the bases multiply NVFP4 and apply silu
    catalog = [f for f in of_nvfp4 if category in {f.category, f.name, "all"}]
    shape = "8x128x512x256" if mode == "time" else "4x32x128x128"
    for attempt in range(20):
        fault = rng.choice(catalog)
        chosen = [fault]
        inner = {"quantize_grouped", "silu_mul_quantize_grouped", "masked_grouped_gemm", "masked_moe"}
        rule = find_rules([fault.killed_by])[0]
        if mode == "two":
            chosen.append(rng.choice([f for f in of_nvfp4 if f is not fault]))
        if mode in {"two", "final", "time"} and not all(set(f.stages) & inner for f in chosen):
            continue
        if mode in {"two", "final"}:
            rule = find_rules(["PIPELINE" if mode == "two" else "MOE"])[0]
        base = base_for(rng, fault.stages, rule.stages)
        at = f"weakest{seed * 20 + attempt}" if weakest else str(seed * 20 + attempt)
        plantings = [f"{f.name}@{at}" for f in chosen]
        try:
            plant(base, *plantings)
        except UsageError:  # a fault in a stage that the base does not have
            continue

        def make(base: str = base, plantings: list[str] = plantings) -> Any:
            candidate = plant(base, *plantings)
            return FinalOutputOnly(candidate) if mode == "final" else candidate

        if found := failing(make, rule, fault, rng, shape):
            judge, problem = found
            started, cpu = time.perf_counter(), time.process_time()
            diagnosis = judge.diagnose(rule.id, problem, "")
            seconds = time.perf_counter() - started, time.process_time() - cpu
            return judged([f.name for f in chosen], diagnosis, *seconds) | {
                "task": task[:3], "base": base, "at": at, "rule": rule.id, "problem": problem, "unit": fault.unit,
            }  # fmt: skip
    return {"task": task[:3], "none": True}


def judged(names: list[str], diagnosis: list[dict[str, Any]], seconds: float, cpu: float) -> dict[str, Any]:
    ranks, strict = [], []
    for name in names:
        ranks.append(
            next((i for i, f in enumerate(diagnosis) if name in {f["fault"], *f.get("same_as", ())}), 99)
        )
        strict.append(next((i for i, f in enumerate(diagnosis) if f["fault"] == name), 99))
    return {
        "faults": names, "rank": min(ranks), "strict": min(strict), "seconds": seconds, "cpu": cpu,
        "found": [(f["fault"], f.get("strength", ""), f.get("explained")) for f in diagnosis],
        "trace": next((f["trace"][-600:] for f in diagnosis if "trace" in f), ""),
    }  # fmt: skip


def outside_final(seed: int) -> dict[str, Any]:
    """One run with a fault that the catalog does not have, in a layer of which only the final output is seen."""
    return outside(seed, final=True)


def outside(seed: int, *, final: bool = False) -> dict[str, Any]:
    """One run with a fault that the catalog does not have."""
    import torch
    from diagnosis_outside import OUTSIDE
    from diagnosis_outside_arithmetic import ARITHMETIC

    torch.set_num_threads(1)
    rng = random.Random(f"outside {seed}")
    everything = OUTSIDE | ARITHMETIC
    name = sorted(everything)[seed % len(everything)]
    from harness.rules import find_rules

    candidate, rule = everything[name]
    if final:
        inside, rule = candidate, "MOE"

        def candidate() -> Any:
            return FinalOutputOnly(inside())

    plain = type("Plain", (), {"random_data": True})
    found = failing(candidate, find_rules([rule])[0], plain, rng, "4x32x128x128")
    if found is None:
        return {"none": True, "faults": [name]}
    judge, problem = found
    started = time.perf_counter()
    diagnosis = judge.diagnose(rule, problem, "")
    named = [f for f in diagnosis if f["fault"] and not f.get("alternative")]
    in_full = bool(diagnosis) and len(named) == len([f for f in diagnosis if not f.get("alternative")])
    weak = any(f.get("weak") for f in named)  # the finding itself says that the inputs do not tell
    return {"faults": [name], "claimed": in_full and not weak, "weak": in_full and weak, "seconds": time.perf_counter() - started, "problem": problem,
            "found": [(f["fault"], f.get("strength", ""), f.get("explained")) for f in diagnosis]}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mode", choices=MODES, action="append")
    parser.add_argument("--category", action="append", help="a category, or a fault's name")
    parser.add_argument("--runs", type=int, default=300)
    parser.add_argument("--seed", type=int, default=MEASURED_FROM)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--weakest", action="store_true")
    parser.add_argument("--misses", type=int, default=0, help="print so many runs that were missed")
    parser.add_argument("--out", type=Path, help="all runs as JSON lines")
    options = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parent))
    from harness.faults.fault import all_faults

    categories = options.category or list(dict.fromkeys(f.category for f in all_faults().values()))
    lines: list[dict[str, Any]] = []
    with multiprocessing.get_context("spawn").Pool(options.jobs) as pool:
        for mode in options.mode or MODES:
            if mode.startswith("outside"):
                run = outside if mode == "outside" else outside_final
                seeds = range(options.seed, options.seed + options.runs)
                lines += report_outside(mode, pool.map(run, seeds, chunksize=1))
                continue
            for category in categories if mode in {"stage", "final"} else ["all"]:
                tasks = [(mode, category, options.seed + i, options.weakest) for i in range(options.runs)]
                lines += report(mode, category, pool.map(one, tasks, chunksize=1), options.misses)
    if options.out:
        options.out.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def report(mode: str, category: str, runs: list[dict[str, Any]], misses: int) -> list[dict[str, Any]]:
    done = [r for r in runs if "none" not in r]
    if not done:
        print(f"{mode:8} {category:11} no fault of this category can be judged this way")
        return runs
    first, three, strict = (
        sum(r[key] < most for r in done) / len(done)
        for key, most in (("rank", 1), ("rank", 3), ("strict", 1))
    )
    seconds = sorted(r["seconds"] for r in done)
    print(
        f"{mode:8} {category:11} {len(done):4} runs: first {first:6.1%}  among three {three:6.1%}  "
        f"(strict first {strict:6.1%})  median {statistics.median(seconds):.2f} s, 95 % {seconds[int(len(seconds) * 0.95)]:.2f} s, "
        f"median of its processor time {statistics.median(r['cpu'] for r in done):.2f} s",
        flush=True,
    )
    missed = collections.Counter(r["faults"][0] for r in done if r["rank"] >= 1)
    if missed:
        print("         not first:", ", ".join(f"{n} {c}" for n, c in missed.most_common(10)))
    for run in [r for r in done if r["rank"] >= 1][:misses]:
        print(
            "          ",
            json.dumps({k: run[k] for k in ("faults", "at", "base", "rule", "problem", "found", "trace")}),
        )
    return runs


def report_outside(mode: str, runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    done = [r for r in runs if "none" not in r]
    claims = collections.Counter(r["faults"][0] for r in done if r["claimed"])
    kinds = collections.Counter(r["faults"][0] for r in done)
    print(
        f"{mode:8} {len(done)} runs of {len(kinds)} faults: full explanation claimed {sum(claims.values())} times {dict(claims)}"
    )
    return runs


if __name__ == "__main__":
    main()
