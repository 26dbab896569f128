"""A capture as calls of stages: folders, index lines and tensors (docs/capture.md), up to where each was torn."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.capture.writer import INDEX, VERSION
from harness.extras import require
from harness.verdict import UsageError


@dataclass(frozen=True)
class Captured:
    """One captured call; its tensors are read from its files whenever they are asked for, and are the asker's own.

    Attributes:
        folder: of its process.
        line: of the index.
    """

    folder: Path
    line: dict[str, Any]

    @property
    def number(self) -> int:
        """Its number in its process."""
        return int(self.line["call"])

    @property
    def parent(self) -> int | None:
        """Number of the call that it was made in."""
        found = self.line.get("parent")
        return None if found is None else int(found)

    @property
    def stage(self) -> str:
        """Of the candidate protocol, "" for one that is not judged."""
        return str(self.line.get("stage", ""))

    @property
    def layer(self) -> int | None:
        """Which one, in the order in which the layers ran first."""
        found = self.line.get("layer")
        return None if found is None else int(found)

    @property
    def function(self) -> str:
        """Module and name."""
        return str(self.line.get("function", ""))

    @property
    def inputs(self) -> dict[str, Any]:
        """What it was given, by name, tensors with the strides that they had."""
        return {name: self._value(entry) for name, entry in self.line["inputs"].items()}

    @property
    def outputs(self) -> dict[str, Any]:
        """What it returned or wrote."""
        return {name: self._value(entry) for name, entry in self.line["outputs"].items()}

    @property
    def changed(self) -> dict[str, Any]:
        """Inputs that it changed, as they were afterwards."""
        return {name: self._value(entry) for name, entry in self.line.get("changed", {}).items()}

    def _value(self, entry: Any) -> Any:
        if isinstance(entry, list):
            return tuple(self._value(one) for one in entry)
        if not isinstance(entry, dict):
            return entry
        from safetensors import safe_open

        file, key = (
            (entry["weights"], "tensor") if "weights" in entry else (self.line["file"], entry["tensor"])
        )
        with safe_open(self.folder / file, "pt") as opened:
            memory: Tensor = opened.get_tensor(key)
        return torch.as_strided(memory, entry["shape"], entry["stride"])


@dataclass
class Process:
    """What one process captured.

    Attributes:
        folder: of it.
        header: versions, device, rank.
        calls: complete ones, in the order in which they ended.
        torn: what is missing at the end, in words, "" where nothing is.
    """

    folder: Path
    header: dict[str, Any]
    calls: list[Captured] = field(default_factory=list)
    torn: str = ""

    @property
    def rank(self) -> int:
        """Of the process."""
        return int(self.header.get("rank", 0))

    def parts_of(self, call: Captured) -> list[Captured]:
        """Return the calls that a call made."""
        return [one for one in self.calls if one.parent == call.number]


def read_capture(folder: Path) -> list[Process]:
    """Return what every process captured, by rank.

    Raises:
        UsageError: there is no capture, or one of a version that is not known.
    """
    require("harness replay", "capture")
    indexes = sorted(folder.glob(f"*/{INDEX}")) or sorted(folder.glob(INDEX))
    if not indexes:
        raise UsageError(
            f"{folder}: no capture: expected */{INDEX}, as `python -m harness.capture` writes it"
        )
    return sorted((_process(index) for index in indexes), key=lambda one: (one.rank, one.folder.name))


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
