"""What a candidate was given in its process before the failure: the first call of each stage with each shape.

A fault may keep what came first, alphas or counts for example, and use it ever after. A failing problem repeated does not
show that: what came first is gone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from harness.candidates.protocol import STAGES, WEIGHT_STAGES
from harness.diagnosis.cases.observation import MASKED_MOE, Observed, copied, tensors_in
from harness.faults.mutant import CALLS

_STAGES = tuple(stage for stage in (*STAGES, *WEIGHT_STAGES) if stage != MASKED_MOE)
_MOST_BYTES = 64 << 20  # of all calls that are kept
_MOST_OF_ONE = 8 << 20


@dataclass
class FirstCalls:
    """The first calls of a candidate, with copies of their arguments.

    Attributes:
        calls: in order; without an output.
    """

    calls: list[Observed] = field(default_factory=list)
    _shapes: set[tuple[Any, ...]] = field(default_factory=set)
    _bytes: int = 0

    def note(self, stage: str, positional: Sequence[Any], named: dict[str, Any]) -> None:
        """Keep a call's arguments, where it is the first of its shape; whatever they are, nothing is raised."""
        if stage in _STAGES:
            with contextlib.suppress(Exception):
                self._note(stage, dict(zip(CALLS[stage].names, positional, strict=False)) | named)

    def _note(self, stage: str, given: dict[str, Any]) -> None:
        tensors = tensors_in(given)
        shapes = (stage, *((name, tensor.shape, tensor.dtype) for name, tensor in tensors))
        size = sum(tensor.numel() * tensor.element_size() for _, tensor in tensors)
        if shapes in self._shapes or size > _MOST_OF_ONE or self._bytes + size > _MOST_BYTES:
            return
        self._shapes.add(shapes)
        self._bytes += size
        if "gate_up" in given:
            given["x"] = given.pop("gate_up")
        self.calls.append(Observed(stage, copied(given), None))


class Idle:
    """The stages of a model in calls that nothing is compared with: products are left out, which cost the most.

    Args:
        model: whose quantizers and traits these are.
    """

    def __init__(self, model: Any) -> None:
        self._model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def masked_grouped_gemm(self, *_: Any, **__: Any) -> None:
        """Multiply nothing."""

    def prepare(self, *_: Any, **__: Any) -> dict[str, Tensor]:
        """Prepare nothing."""
        return {}
