"""Where runs took place, as facts by name: what differs between two, and what changed from one to the next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from harness.records.changes import EnvironmentChange
from harness.records.ways import oracle_of, shares

if TYPE_CHECKING:
    from harness.records.record import Environment, RunRecord


def versions(environment: Environment, harness_version: str) -> dict[str, str]:
    """Return the versions that a result may depend on, without commit and machine."""
    facts = {
        "harness": harness_version,
        "Python": environment.python,
        "CUDA": environment.cuda,
        "driver": environment.driver,
    }
    return {**{k: v for k, v in facts.items() if v}, **environment.packages}


def facts_of(record: RunRecord, candidates: set[str]) -> dict[str, str]:
    """Return everything that a comparison of environments looks at, by its name for people.

    Args:
        record: the run.
        candidates: whose declarations and measurements count.
    """
    where = record.environment
    dirty = " with uncommitted changes" if where.git_dirty else ""
    facts = {
        "GPUs": ", ".join(where.gpus),
        "device": where.device,
        **versions(where, record.harness_version),
        "commit": where.git_commit + dirty if where.git_commit else "",
        "platform": where.platform,
        "CPUs": str(where.cpu_count or ""),
        "profile": record.profile,
        "seed": str(record.seed),
    }
    for candidate in (c for c in record.candidates if c.name in candidates):
        for kind, values in (("measured", candidate.measured), ("declared", candidate.declared)):
            facts |= {f"{candidate.name}, {kind}: {key}": _text(value) for key, value in values.items()}
        for finding in candidate.findings:
            what = f"{candidate.name}, found: {finding.stage}, {finding.point}"
            facts[what] = "; ".join((finding.found or "not known", *finding.modes))
    if oracle := oracle_of(rule for rule in record.rules if rule.candidate in candidates):
        facts["exact dot products"] = shares(oracle)
    run = record.gsm8k_run
    if run is not None:
        for key in ("model", "version"):
            facts[f"server {key}"] = _text(run.server.get(key))
        task: Mapping[str, object] = run.task
        for key in ("hashes", "generation", "num_fewshot", "chat"):
            if key in task:
                facts[f"task {key}"] = _text(task[key])
    return facts


def _text(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(inner)}" for key, inner in value.items())
    return "" if value is None else str(value)


def compare_environment(
    before: Sequence[RunRecord], after: Sequence[RunRecord]
) -> tuple[list[EnvironmentChange], int]:
    """Return the facts that differ, and how many are the same. Several records of a side may have several values."""
    ran = [{c.name for record in side for c in record.candidates if c.ran} for side in (before, after)]
    then, now = _joined(before, ran[0] & ran[1]), _joined(after, ran[0] & ran[1])
    names = [name for name in dict.fromkeys([*then, *now]) if then.get(name) or now.get(name)]
    changed = [
        EnvironmentChange(name, then.get(name, ""), now.get(name, ""))
        for name in names
        if then.get(name, "") != now.get(name, "")
    ]
    return changed, len(names) - len(changed)


def _joined(records: Sequence[RunRecord], candidates: set[str]) -> dict[str, str]:
    values: dict[str, dict[str, None]] = {}
    for record in records:
        for name, value in facts_of(record, candidates).items():
            if value:
                values.setdefault(name, {})[value] = None
    return {name: "; ".join(found) for name, found in values.items()}


def changed_versions(before: dict[str, str], after: dict[str, str]) -> list[EnvironmentChange]:
    """Return what changed from one run to the next, for the marks of a history."""
    names = dict.fromkeys([*before, *after])
    return [
        EnvironmentChange(name, before.get(name, ""), after.get(name, ""))
        for name in names
        if before.get(name, "") != after.get(name, "")
    ]
