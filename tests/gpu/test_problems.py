"""What needs a GPU: problems are made there, of the same bytes as on the CPU, and nothing large is made on the host."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from harness.problems.problem import parse_problem
from harness.problems.tensors import ProblemTensors
from harness.problems.weights import make_weights
from tests.problems.digests import ALL_TRAPS, LAYERS, TENSORS, digest, layer, tensors
from tests.problems.test_versions import PINS, written

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
WIDE = "v2:4x512x7168x2048:512,256,0,1:{data}:8{extras}"
ONE_EXPERT_ROWS = 1 << 16
"""Elements that may be made on the host: tables, scales of experts and blocks of traps, not a tensor of the problem."""


class OnTheHost(TorchDispatchMode):
    """Keeps the largest number of elements of a tensor that is made on the host."""

    largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor) and leaf.is_cpu]
        self.largest = max([self.largest, *(tensor.numel() for tensor in made)])
        return result


@pytest.mark.parametrize("text", [*TENSORS, *LAYERS], ids=written)
def test_a_problem_has_the_bytes_that_it_has_on_the_cpu(text: str) -> None:
    made = layer if text in LAYERS else tensors
    here, there = (made(f"v2:{text}", device) for device in ("cpu", "cuda"))
    for name, tensor in there.items():
        plain, wanted = tensor.cpu().contiguous(), here[name].contiguous()
        same = torch.equal(plain.reshape(-1).view(torch.uint8), wanted.reshape(-1).view(torch.uint8))
        assert plain.dtype == wanted.dtype, name
        assert same, f"{name}: {int((plain != wanted).sum())} of {plain.numel()} elements differ"
    assert digest(f"v2:{text}", "cuda")[:24] == PINS[f"v2:{written(text)}"]


@pytest.mark.parametrize("data", ["normal", "spread", "grid"])
@pytest.mark.parametrize("extras", ["", f":{ALL_TRAPS}"], ids=["plain", "all traps"])
def test_a_wide_problem_has_the_bytes_that_it_has_on_the_cpu(data: str, extras: str) -> None:
    text = WIDE.format(data=data, extras=extras)
    assert digest(text, "cuda") == digest(text, "cpu")


@pytest.mark.parametrize("extras", ["", f":{ALL_TRAPS}"], ids=["plain", "all traps"])
def test_nothing_large_is_made_on_the_host(extras: str) -> None:
    text = WIDE.format(data="normal", extras=extras)
    ProblemTensors(parse_problem(text.replace("7168x2048", "64x64")), "cuda")  # the tables
    make_weights.cache_clear()
    with OnTheHost() as host:
        t = ProblemTensors(parse_problem(text), "cuda")
        assert {t.x.device.type, t.w1.codes.device.type, t.w2.block_scale.device.type} == {"cuda"}
        assert {t.w1_alpha.device.type, t.w2_alpha.device.type, t.gate_up.device.type} == {"cuda"}
    assert 0 < host.largest <= ONE_EXPERT_ROWS
