"""flashinfer-bench workloads: a JSON line for each call, tensors in safetensors files below the same root. Inputs only.

    {"definition": "silu_and_mul_scaled_nvfp4_experts_quantize_...", "workload": {"uuid": ..., "axes": {...}, "inputs":
     {"a": {"type": "safetensors", "path": "blob/...", "tensor_key": "a"}, ...}}}

A definition is named after the function, as FLASHINFER_TRACE_DUMP=1 writes it. Source: flashinfer-bench, data/workload.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from harness.capture.targets import TARGETS, Target, reading_of
from harness.replay.captured import Process
from harness.replay.imports.call import Imported, as_flashinfer_calls_it, line_of
from harness.verdict import UsageError


def is_one(folder: Path) -> bool:
    """Return whether a folder is one of these."""
    return next(_lines(folder), None) is not None


def read(folder: Path) -> list[Process]:
    """Return the workloads as the calls of one process.

    Raises:
        UsageError: a workload needs a file that is not there.
    """
    process = Process(folder, {"rank": 0, "device": "flashinfer-bench workloads", "capability": None})
    for number, (definition, workload) in enumerate(_lines(folder), start=1):
        target = target_of(definition)
        stage = target.stage if target else ""
        line = line_of(number, stage, f"{definition} ({workload.get('uuid', number)})")
        process.calls.append(Imported(folder, line, partial(_inputs, folder, workload["inputs"], target)))
    return [process]


def target_of(definition: str) -> Target | None:
    """Return the function that a definition is named after, None where it is none that is tapped."""
    return next(
        (one for one in TARGETS if one.package == "flashinfer" and definition.startswith(one.name)), None
    )


def _lines(folder: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for place in sorted(folder.rglob("*.jsonl")):
        for text in place.read_text(encoding="utf-8").splitlines():
            try:
                found = json.loads(text)
            except ValueError:
                break
            if not isinstance(found, dict) or not isinstance(found.get("workload"), dict):
                break
            if "inputs" in found["workload"]:
                yield str(found.get("definition", "")), found["workload"]


def _inputs(folder: Path, inputs: Mapping[str, Mapping[str, Any]], target: Target | None) -> dict[str, Any]:
    from safetensors import safe_open

    given: dict[str, Any] = {}
    for name, entry in inputs.items():
        kind = entry.get("type")
        if kind == "scalar":
            given[name] = entry["value"]
        elif kind == "safetensors":
            path = folder / entry["path"]
            if not path.exists():
                raise UsageError(f"{path}, which a workload names, is not there")
            with safe_open(path, "pt") as opened:
                given[name] = opened.get_tensor(entry["tensor_key"])
        else:
            raise UsageError(f"input {name} of a workload is {kind}: only what was recorded can be replayed")
    if target is None or not target.stage:
        return given
    return reading_of(target, as_flashinfer_calls_it, target.name).inputs((), given) or {}
