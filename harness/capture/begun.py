"""A call between its beginning and its end."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(eq=False)  # tensors have no single truth value
class Begun:
    """A call that is being made.

    Attributes:
        stage: of the protocol, "" for one that is not judged.
        function: module and name.
        inputs: copies, on the CPU, by name.
        layer: which one by the order in which weights are first seen, None where it has none.
        parent: number of the call that it is made in, None for an outermost one.
        number: its own.
        taken: whether it is captured.
    """

    stage: str
    function: str
    inputs: dict[str, Any] = field(default_factory=dict)
    layer: int | None = None
    parent: int | None = None
    number: int = 0
    taken: bool = False
