"""What a stage is given is a copy, with the same strides, alignment and surroundings; the GEMM's output is the caller's."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.judging.lending import ALIGNMENT, Lent, copied, copied_tensor

BASE = torch.arange(4096, dtype=torch.int32)


@pytest.mark.parametrize(
    "tensor",
    [
        BASE,
        BASE[:0],
        BASE[5:9],
        BASE[4:4000].view(-1, 4)[:, 1:3],
        BASE.view(8, 8, 64).permute(1, 2, 0),
        BASE.view(8, 8, 64)[:, :3].permute(1, 2, 0),
        BASE[7:8].expand(5),
        BASE[8:9],
        torch.tensor(3.0),
        torch.randint(0, 126, (6, 64), dtype=torch.uint8)[:, 3:].view(torch.float8_e4m3fn),
    ],
    ids=lambda t: f"{tuple(t.shape)} {tuple(t.stride())}",
)
def test_a_copy_has_the_numbers_strides_and_alignment_and_memory_of_its_own(tensor: Tensor) -> None:
    copy = copied_tensor(tensor)
    assert torch.equal(copy.double(), tensor.double())
    assert copy.dtype is tensor.dtype
    if tensor.numel():
        assert copy.stride() == tensor.stride()
        assert (copy.data_ptr() - tensor.data_ptr()) % ALIGNMENT == 0
        assert copy.untyped_storage().data_ptr() != tensor.untyped_storage().data_ptr()


def test_what_lies_between_the_rows_of_a_slice_is_copied_too() -> None:
    copy = copied_tensor(BASE.view(64, 64)[2:5, :10])
    behind = torch.as_strided(copy, (2, 54), (64, 1), copy.storage_offset() + 10)
    assert torch.equal(behind, BASE.view(64, 64)[2:4, 10:])


@dataclass(frozen=True)
class Holder:
    tensor: Tensor
    scales: Tensor | None = None
    word: str = "as it is"


def test_what_lies_behind_an_expanded_number_is_copied_too() -> None:
    """What reads it as a vector of its length reads the same as from the original, each time."""
    memory = torch.tensor([5.0, 1.0, 2.0, 3.0])
    copy = copied_tensor(memory[1:2].expand(3))
    assert torch.as_strided(copy, (3,), (1,), copy.storage_offset()).tolist() == [1, 2, 3]
    at_the_end = copied_tensor(memory[3:].expand(3))
    assert at_the_end.tolist() == [3, 3, 3]


def test_tensors_are_copied_wherever_they_are() -> None:
    given = {"list": [BASE], "tuple": (BASE, None), "holder": Holder(BASE), "number": 3}
    copy = copied(given)
    for found in (copy["list"][0], copy["tuple"][0], copy["holder"].tensor):
        assert torch.equal(found, BASE)
        assert found is not BASE
    assert copy["tuple"][1] is None
    assert (copy["holder"].scales, copy["holder"].word, copy["number"]) == (None, "as it is", 3)


class Stages:
    traits = "as they are"

    def quantize_grouped(self, x: Tensor, masked_m: Tensor, scale: Tensor) -> Any:
        x.zero_()
        return x, masked_m, scale

    def masked_grouped_gemm(self, *arguments: Tensor, **named: Tensor) -> None:
        for tensor in (*arguments, *named.values()):
            tensor.fill_(7)

    def helper(self, x: Tensor) -> Tensor:
        return x


def test_a_stage_cannot_reach_what_it_was_given_but_for_the_output() -> None:
    lent, x = Lent(Stages()), torch.ones(3)
    assert lent.quantize_grouped(x, masked_m=x, scale=x)[0] is not x
    assert x.sum() == 3
    out, given = torch.zeros(2), [torch.ones(1) for _ in range(6)]
    lent.masked_grouped_gemm(*given[:4], out, *given[4:])
    assert out.tolist() == [7, 7]
    assert all(t.item() == 1 for t in given)
    other = torch.zeros(2)
    lent.masked_grouped_gemm(a=given[0], out=other)
    assert (other[0], given[0].item()) == (7, 1)


def test_what_is_no_stage_passes_through_and_a_missing_stage_is_missing() -> None:
    stages = Stages()
    lent = Lent(stages)
    assert lent.helper(BASE) is BASE
    assert lent.traits == "as they are"
    assert not hasattr(lent, "masked_moe")


OWNERS = {
    "declared.py": "only asks what was found about the candidate, which was given tensors of the probes",
    "preparation.py": "PREPARE judges what becomes of the weights that it hands over",
    "memory.py": "INPUTS judges what becomes of the tensors that it hands over",
    "repeat.py": "REPEAT calls with the same tensors again, and writes into them",
    "routed_calls.py": "REPEAT calls a routed layer with the same tensors again, and writes into them",
    "sessions.py": "GRAPH captures the tensors that it writes into; SHAPES only asks another Context",
    "layout.py": "asks another Context",
    "dispatch.py": "asks another Context, which judges by the sender's arithmetic",
    "received.py": "is another Context, of the experts of one rank",
}


def test_rules_call_the_candidate_through_copies_unless_they_own_the_tensors() -> None:
    """`ctx.candidate.stage(...)` hands over the tensors that are judged against."""
    found = set()
    for path in (Path(__file__).parents[2] / "harness" / "rules").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and node.attr == "candidate":
                found.add(path.name)
    assert found == set(OWNERS)
