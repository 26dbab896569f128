"""A capture as calls of stages: folders, index lines and tensors (docs/capture.md), up to where each was torn."""

from __future__ import annotations

import json
from pathlib import Path

from harness.capture.writer import INDEX, VERSION
from harness.extras import require
from harness.replay.captured import Captured, Process
from harness.replay.imports import flashinfer_log, sglang_dumper, workloads
from harness.verdict import UsageError


def read_capture(folder: Path) -> list[Process]:
    """Return what every process captured, by rank.

    Raises:
        UsageError: there is no capture, or one of a version that is not known.
    """
    require("harness replay", "capture")
    indexes = sorted(folder.glob(f"*/{INDEX}")) or sorted(folder.glob(INDEX))
    if not indexes:
        return _imported(folder)
    return sorted((_process(index) for index in indexes), key=lambda one: (one.rank, one.folder.name))


def _imported(folder: Path) -> list[Process]:
    """Return what others dumped."""
    for kind in (flashinfer_log, workloads, sglang_dumper):
        if folder.is_dir() and kind.is_one(folder):
            found: list[Process] = kind.read(folder)
            return found
    raise UsageError(
        f"{folder}: no capture: expected */{INDEX}, as `python -m harness.capture` writes it, or a dump of FlashInfer's API "
        "log, flashinfer-bench workloads, or SGLang's dumper"
    )


def _process(index: Path) -> Process:
    lines, torn = [], ""
    for number, text in enumerate(index.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        try:
            lines.append(json.loads(text))
        except ValueError:
            torn = f"line {number} of {index} is torn; what comes before it is judged"
            break
    if not lines or lines[0].get("version") != VERSION:
        found = lines[0].get("version") if lines else None
        raise UsageError(f"{index}: version {found!r} of the format; this harness reads {VERSION}")
    process = Process(index.parent, lines[0], torn=torn)
    for line in lines[1:]:
        if "stopped" in line:
            process.torn = (
                process.torn or f"rank {process.rank} stopped at call {line['call']}: {line['stopped']}"
            )
        elif (process.folder / line["file"]).exists():
            process.calls.append(Captured(process.folder, line))
    _name_layers(process.calls)
    return process


def _name_layers(calls: list[Captured]) -> None:
    """Give a dispatch the layer of what comes next, and a combine that of what came before."""
    outer = sorted((call for call in calls if call.parent is None), key=lambda call: call.number)
    for stage, order in (("combine", outer), ("dispatch", outer[::-1])):
        layer = None
        for call in order:
            if call.stage == stage:
                call.line["layer"] = layer
            elif call.layer is not None:
                layer = call.layer
