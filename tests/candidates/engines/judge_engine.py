"""Judge an engine's loader as it is, repaired, and with every planted fault; print what was found as JSON.

A process of its own: importing an engine leaves traces in torch, and takes seconds.

    python -m tests.candidates.engines.judge_engine sglang
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from enum import EnumMeta
from typing import Any

from harness.candidates import load_candidate
from harness.candidates.engines.loader import EngineLoader
from harness.candidates.engines.sglang_compressed import SglangCompressedLoader
from harness.candidates.engines.sglang_fused import SglangCuteDslLoader, SglangTrtllmLoader
from harness.candidates.engines.vllm_fused import VllmCuteDslLoader, VllmTrtllmLoader
from harness.candidates.engines.vllm_loader import VllmCompressedLoader
from harness.diagnosis.diagnose import diagnose_problem
from harness.judging.context import Known
from harness.running.judge import Judge
from tests.candidates.engines import planting, planting_fused

COMPRESSED = {"sglang": SglangCompressedLoader, "vllm": VllmCompressedLoader}
FUSED: dict[str, tuple[type[EngineLoader], ...]] = {
    "sglang": (SglangTrtllmLoader, SglangCuteDslLoader),
    "vllm": (VllmTrtllmLoader, VllmCuteDslLoader),
}
FUSED_PROBLEMS = (
    "4x8x128x128:8,4,0,1:normal:6",
    "4x8x64x192:8,4,0,1:normal:10",
    "4x8x256x256:8,4,0,1:normal:10",
)
PROBLEMS = ("4x8x64x128:8,4,0,1:normal:6", "4x8x128x128:8,4,0,1:normal:10")
ALSO = ("MOE", "ROUTE", "DISPATCH", "COMBINE", "EP")


def judged(candidate: EngineLoader, rule: str, problem: str, *, explain: bool = True) -> dict[str, Any]:
    """Return the stages that failed, what they say and the diagnosis, and the words that were judged by."""
    outcome = Judge(candidate, threads=1, probe=False).judge(rule, problem)
    failed = [each for each in outcome.comparisons if each.illegal]
    found = {
        "status": outcome.status.value,
        "error": outcome.error,
        "stages": [each.stage for each in failed],
        "messages": "\n".join(each.message for each in failed),
        "judged": {each.stage: each.judged for each in outcome.comparisons},
    }
    if failed and explain:
        known = Known.declared(candidate.traits)
        found["diagnosis"] = json.dumps(diagnose_problem(candidate, known, rule, problem), default=str)
    return found


def incomplete(candidate: EngineLoader) -> dict[str, Any]:
    """Judge the loader as one that must refuse a checkpoint that lacks a scale."""

    class MustRefuse(type(candidate)):
        @property
        def traits(self) -> Any:
            return replace(super().traits, complete_only=False)

    return judged(MustRefuse(replaced=candidate.replaced), "LOAD", PROBLEMS[0], explain=False)


def renamed(candidate: EngineLoader) -> dict[str, str]:
    """Return what support() says when one of the names that are called is another one."""
    said = {}
    for target in candidate.called:
        module, _, path = target.partition(":")
        owner, _, name = path.rpartition(".")
        with candidate.engine.running():
            place = candidate.engine.get(f"{module}:{owner}") if owner else sys.modules[module]
        if isinstance(place, EnumMeta):  # a member cannot be taken out of it
            continue
        there = vars(place)[name]
        delattr(place, name)
        setattr(place, f"{name}_of_the_next_version", there)
        try:
            support = candidate.support()
            said[target] = support.reason if not support else "supported"
        finally:
            delattr(place, f"{name}_of_the_next_version")
            setattr(place, name, there)
    return said


def fused(kind: type[EngineLoader], *lines: planting.Planted) -> dict[str, Any]:
    """Judge the loader of a fused layer as installed, repaired, and with every fault."""
    candidate = kind()
    support = candidate.support()
    problems = [p for p in FUSED_PROBLEMS if int(p.split("x")[2]) % candidate.traits.width_multiple == 0]
    planted = planting_fused.FUSED[kind.__name__]
    with candidate.engine.running():
        repairs = planting.planted(candidate.engine, *lines)
        faults = {what: planting.planted(candidate.engine, *lines, each) for what, each in planted.items()}
    found: dict[str, Any] = {
        "support": [support.ok, support.reason],
        "as installed": [judged(candidate, "LOAD", problem, explain=False) for problem in problems],
    }
    candidate.replaced = repairs
    found["repaired"] = [judged(candidate, "LOAD", problem, explain=False) for problem in problems]
    for what, replaced in faults.items():
        candidate.replaced = replaced
        said = judged(candidate, "LOAD", problems[0], explain=False)
        if not any(name in said["messages"] + said["error"] for name in planted[what].names):
            said = judged(candidate, "LOAD", problems[0], explain=bool(planted[what].names))
        found[what] = said
    candidate.replaced = repairs
    common = kind.__mro__[2].called  # of the engine's other loader
    candidate.called = tuple(target for target in kind.called if target not in common)
    found["renamed"] = renamed(candidate)
    return found


def main(name: str) -> None:
    """Print the findings of one engine."""
    candidate = load_candidate(f"{name}-loader")
    support = candidate.support()
    found: dict[str, Any] = {"support": [support.ok, support.reason], "warning": candidate.warning}
    engine = candidate.engine
    with engine.running():
        lines = planting.REPAIRS if name == "sglang" else ()
        repairs = planting.planted(engine, *lines)
        faults = {
            what: planting.planted(engine, *lines, each)
            for what, each in getattr(planting, name.upper()).items()
        }
    found["as installed"] = [judged(candidate, "LOAD", problem) for problem in PROBLEMS]
    compressed = COMPRESSED[name]()
    found["compressed"] = [judged(compressed, "LOAD", problem) for problem in PROBLEMS]
    found["compressed support"] = [compressed.support().ok, compressed.support().reason]
    candidate.replaced = repairs
    found["repaired"] = [judged(candidate, "LOAD", problem) for problem in PROBLEMS]
    found["rules"] = {rule: judged(candidate, rule, PROBLEMS[0]) for rule in ALSO}
    for what, replaced in faults.items():
        candidate.replaced = replaced
        rule = getattr(planting, name.upper())[what].rule
        each = judged(candidate, rule, PROBLEMS[0])
        found[what] = each if each["stages"] or each["error"] else judged(candidate, rule, PROBLEMS[1])
    candidate.replaced = repairs
    found["incomplete"] = incomplete(candidate)
    found["renamed"] = renamed(candidate)
    for kind in FUSED[name]:
        own = (planting_fused.OWN_SCALES,) if kind is SglangCuteDslLoader else ()
        found[kind.__name__] = fused(kind, *lines, *own)
    print(f"FOUND {json.dumps(found)}")


if __name__ == "__main__":
    main(sys.argv[1])
