"""The rules ask nothing of torch that the oldest supported release, 2.8, cannot do. Found by running the tests on it."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from harness.candidates.controls.prepared_weights import PreparedKernels
from harness.candidates.physical import Physical
from harness.rules import RULES, Rule
from harness.running.judge import Judge

PROBLEM = "4x8x64x64:5,2,0,8:normal:3"


class OldestTorch(TorchDispatchMode):
    """Refuses what torch 2.8 refuses."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if (
            function is torch.ops.aten.index.Tensor
            and args[0].dtype == torch.float8_e4m3fn
            and args[0].device.type == "cpu"
        ):
            raise NotImplementedError("\"index_cpu\" not implemented for 'Float8_e4m3fn'")
        return function(*args, **(kwargs or {}))


@cache
def judge(*, prepared: bool) -> Judge:
    return Judge(PreparedKernels() if prepared else Physical(), threads=1)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.id)
def test_a_rule_indexes_no_float8_tensor(rule: Rule) -> None:
    with OldestTorch():
        outcome = judge(prepared="prepare" in rule.stages).judge(rule.id, PROBLEM)
    assert outcome.status in {"judged", "not applicable"}, outcome
