"""What is asked of one candidate is asked of the next: none can change it, though it writes to all that it gets."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from harness.candidates.controls.catalog import OpaqueLayer
from harness.candidates.eager import Eager
from harness.identification.measure import measure


def spoil(given: Any) -> None:
    """Fill tensors, in tuples or not, with what no probe holds."""
    for each in given:
        if isinstance(each, tuple):
            spoil(each)
        elif isinstance(each, Tensor):
            view = each.view(torch.uint8) if each.dtype == torch.float8_e4m3fn else each
            view.fill_(3)


class Spoils:
    """A right candidate that writes to its inputs once it has read them."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.traits = inner.traits

    def __getattr__(self, stage: str) -> Any:
        call = getattr(self._inner, stage)
        outputs = (4,) if stage == "masked_grouped_gemm" else ()

        def called(*args: Any, **named: Any) -> Any:
            result = call(*args, **named)
            spoil([arg for number, arg in enumerate(args) if number not in outputs])
            spoil([arg for name, arg in named.items() if name != "out"])
            return result

        return called


@pytest.mark.parametrize("make", [Eager, lambda: OpaqueLayer("eager", Eager())], ids=["stages", "layer"])
def test_what_one_candidate_writes_the_next_is_not_asked(make: Any) -> None:
    before = measure(make())
    measure(Spoils(make()))
    after = measure(make())
    assert after.fingerprint == before.fingerprint
    assert [*map(str, after.findings)] == [*map(str, before.findings)]
