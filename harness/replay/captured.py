"""A captured call and a captured process, as the files have them (docs/capture.md)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


class NotJudgedError(Exception):
    """A call that cannot be judged: why, in one sentence."""


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
