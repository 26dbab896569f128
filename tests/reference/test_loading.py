"""Loading of a ModelOpt layer, against the checkpoint read expert by expert."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor

from reference.e2m1 import decode_e2m1, unpack_e2m1
from reference.layout import offset_128x4
from reference.loading import count_experts, load_experts, tensor_name

EXPERTS, HIDDEN, INTER = 4, 96, 48


def checkpoint(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, Tensor] = {}
    for expert in range(EXPERTS):
        second = torch.rand((), generator=generator) + 0.1
        for projection, (rows, columns) in {
            "gate": (INTER, HIDDEN), "up": (INTER, HIDDEN), "down": (HIDDEN, INTER),
        }.items():  # fmt: skip
            packed = torch.randint(0, 256, (rows, columns // 2), generator=generator, dtype=torch.uint8)
            scale = torch.randint(8, 0x7E, (rows, columns // 16), generator=generator, dtype=torch.uint8)
            found[tensor_name(expert, projection, "weight")] = packed
            found[tensor_name(expert, projection, "weight_scale")] = scale.view(torch.float8_e4m3fn)
            found[tensor_name(expert, projection, "weight_scale_2")] = second * (
                3 if projection == "down" else 1
            )
            found[tensor_name(expert, projection, "input_scale")] = torch.rand((), generator=generator) + 0.01
    return found


def test_gate_rows_come_first_and_scales_are_swizzled() -> None:
    """LOAD-1: bytes of the weights unchanged, each block scale at its 128x4 offset."""
    tensors = checkpoint()
    loaded = load_experts(tensors, range(1, 3))
    for place, expert in enumerate(range(1, 3)):
        for start, projection in ((0, "gate"), (INTER, "up")):
            packed = tensors[tensor_name(expert, projection, "weight")]
            assert torch.equal(loaded["w1"][place, start : start + INTER], packed)
            memory = loaded["w1_blockscale"][place].view(torch.uint8).flatten()
            scale = tensors[tensor_name(expert, projection, "weight_scale")].view(torch.uint8)
            for row, column in ((0, 0), (17, 5), (INTER - 1, 3)):
                assert memory[offset_128x4(start + row, column, HIDDEN // 16)] == scale[row, column]
        assert torch.equal(loaded["w2"][place], tensors[tensor_name(expert, "down", "weight")])
    assert loaded["w1_blockscale"].shape == (2, 128, 8)
    assert loaded["w2_blockscale"].shape == (2, 128, 4)
    assert loaded["w1_blockscale"].dtype == torch.float8_e4m3fn


def test_the_input_scale_is_the_largest_of_all_experts_on_every_rank() -> None:
    """LOAD-2: also where the largest lies on another rank, in gate or in up."""
    tensors = checkpoint()
    tensors[tensor_name(3, "up", "input_scale")] = torch.tensor(8.0)
    tensors[tensor_name(0, "down", "input_scale")] = torch.tensor(9.0)
    for experts in (range(2), range(2, 4), range(4)):
        assert load_experts(tensors, experts)["input_global_scale"].tolist() == [0.125] * len(experts)


def test_alphas_and_intermediate_scales_are_per_expert() -> None:
    """LOAD-3: reciprocals and products of the checkpoint's scales."""
    tensors = checkpoint()
    loaded = load_experts(tensors, range(4))
    largest = max(tensors[tensor_name(e, p, "input_scale")] for e in range(4) for p in ("gate", "up"))
    for expert in range(4):
        second = tensors[tensor_name(expert, "gate", "weight_scale_2")]
        assert loaded["w1_alpha"][expert] == largest * second
        down = tensors[tensor_name(expert, "down", "input_scale")]
        assert loaded["a2_global_scale"][expert] == 1 / down
        assert loaded["w2_alpha"][expert] == down * tensors[tensor_name(expert, "down", "weight_scale_2")]
    # what the alphas are for: code * block scale * alpha * encode scale is the checkpoint's value
    code = (
        decode_e2m1(unpack_e2m1(loaded["w1"])[2, 5, 7])
        * tensors[tensor_name(2, "gate", "weight_scale")][5, 0].float()
    )
    gain = loaded["w1_alpha"][2] * loaded["input_global_scale"][2]
    torch.testing.assert_close(code * gain, code * tensors[tensor_name(2, "gate", "weight_scale_2")])


def test_a_layer_without_gates_has_up_rows_only() -> None:
    """LOAD-1: for relu2."""
    tensors = {name: t for name, t in checkpoint().items() if ".gate_proj." not in name}
    loaded = load_experts(tensors, range(4))
    assert loaded["w1"].shape == (4, INTER, HIDDEN // 2)
    assert torch.equal(loaded["w1"][3], tensors[tensor_name(3, "up", "weight")])


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("experts.1.up_proj.weight_scale_2", torch.tensor(2.0), "gate and up of expert 1 have weight_scale_2"),
        ("experts.2.down_proj.input_scale", torch.tensor(0.0), "one finite positive number, got [0.0]"),
        ("experts.2.gate_proj.input_scale", torch.tensor(torch.inf), "one finite positive number, got [inf]"),
        ("experts.0.gate_proj.weight_scale_2", torch.tensor(torch.nan), "one finite positive number, got [nan]"),
        ("experts.0.up_proj.input_scale", None, "the checkpoint has no experts.0.up_proj.input_scale"),
        ("experts.0.up_proj.weight", torch.zeros(48, 40, dtype=torch.uint8), "weight_scale must be (48, 5)"),
        ("experts.0.up_proj.weight", torch.zeros(48, 48), "must be torch.uint8, got torch.float32"),
        ("experts.0.down_proj.weight_scale", torch.full((96, 3), torch.nan).to(torch.float8_e4m3fn), "holds NaN"),
        ("experts.0.w1.weight", torch.zeros(1), "is no tensor of an expert"),
        ("experts.7.up_proj.weight", torch.zeros(1), "numbered from 0 without gaps"),
    ],
)  # fmt: skip
def test_what_cannot_be_loaded_right_is_refused(name: str, value: Tensor | None, message: str) -> None:
    """LOAD-4: with the tensor's name, what was expected and what came."""
    tensors = checkpoint()
    if value is None:
        del tensors[name]
    else:
        tensors[name] = value
    with pytest.raises(ValueError, match=re.escape(message)):
        load_experts(tensors, range(4))


@pytest.mark.parametrize("experts", [range(0), range(3, 5), range(0, 4, 2), range(-1, 2)])
def test_a_range_outside_the_checkpoint_is_refused(experts: range) -> None:
    """LOAD-4: a rank's experts lie within the layer."""
    assert count_experts(checkpoint()) == 4
    with pytest.raises(ValueError, match=r"range within \[0, 4\)"):
        load_experts(checkpoint(), experts)
