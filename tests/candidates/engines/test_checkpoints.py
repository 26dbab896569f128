"""A checkpoint as compressed-tensors writes it: the same numbers by other names, none lost in the reciprocals."""

from __future__ import annotations

import torch

from harness.candidates.eager import Eager
from harness.candidates.engines.checkpoints import compressed_tensors
from harness.problems.layer import LayerProblem
from harness.problems.problem import parse_problem


def test_global_scales_are_reciprocals_that_give_the_scales_back() -> None:
    checkpoint = LayerProblem(parse_problem("8x8x64x64:1*8:normal:3"), Eager().traits).checkpoint()
    written = compressed_tensors(checkpoint)
    assert len(written) == len(checkpoint)
    for name, tensor in checkpoint.items():
        place, _, kind = name.rpartition(".")
        if kind == "weight":
            assert torch.equal(written[f"{place}.weight_packed"], tensor)
        elif kind == "weight_scale":
            assert written[name] is tensor
        else:
            other = {"weight_scale_2": "weight_global_scale", "input_scale": "input_global_scale"}[kind]
            scale = written[f"{place}.{other}"]
            assert scale.shape == (1,)
            assert torch.equal(scale.reciprocal().reshape(()), tensor)
            assert torch.equal(tensor.reciprocal().reshape(1), scale)


def test_other_tensors_keep_their_names() -> None:
    assert list(compressed_tensors({"experts.0.down_proj.output_scale": torch.ones(())})) == [
        "experts.0.down_proj.output_scale"
    ]
