"""A call that somebody else dumped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from harness.replay.captured import Captured
from harness.verdict import UsageError


@dataclass(frozen=True)
class Imported(Captured):
    """One call.

    Attributes:
        given: reads its inputs, by their names in the protocol.
        returned: reads its outputs; an empty one where the dump has none.
    """

    given: Callable[[], dict[str, Any]] = dict
    returned: Callable[[], dict[str, Any]] = dict

    @property
    def inputs(self) -> dict[str, Any]:
        """What it was given."""
        return self.given()

    @property
    def outputs(self) -> dict[str, Any]:
        """What it returned or wrote."""
        return self.returned()

    @property
    def changed(self) -> dict[str, Any]:
        """Nothing: dumps do not say what a call changed."""
        return {}


def as_flashinfer_calls_it(*args: Any, **kwargs: Any) -> None:
    """Stand for a function whose parameters are FlashInfer's, in FlashInfer's order."""


def line_of(number: int, stage: str, function: str, layer: int | None = None) -> dict[str, Any]:
    """Return what a capture's index has of a call."""
    return {
        "call": number, "parent": None, "layer": layer, "stage": stage, "function": function, "inputs": {}
    }  # fmt: skip


def loaded(path: Path) -> Any:
    """Return what torch.save wrote: tensors and plain values, on the CPU.

    Raises:
        UsageError: it holds something else, or is torn.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UsageError(f"{path}: expected tensors and plain values of torch.save: {error}") from error
