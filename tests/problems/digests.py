"""What a problem is compared by, between devices and versions of torch: the bytes of everything that is made for it."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from harness.candidates.protocol import Traits
from harness.problems.draws import draws_of
from harness.problems.layer import LayerProblem
from harness.problems.problem import parse_problem
from harness.problems.route_values import IN_OUTPUTS
from harness.problems.tensors import ProblemTensors
from harness.problems.traps import TRAPS

ALL_TRAPS = "+".join(TRAPS)
TENSORS = (
    "4x40x64x48:9,24,0,40:normal:3",
    "4x40x64x48:9,24,0,40:spread:4:relu2+outlier_block",
    "4x40x64x48:9,24,0,40:grid:5",
    f"3x20x256x128:20,0,7:normal:6:{ALL_TRAPS}",
    f"3x20x256x128:20,0,7:spread:7:{ALL_TRAPS}",
    f"3x20x256x128:20,0,7:grid:8:{ALL_TRAPS}",
    "2x300x1024x512:300,17:normal:9:magnitude_spread+large+small+alpha_specials",
    "3x20x256x128:20,0,7:normal:6:nan+inf mxfp8 mxfp4 silu",
    "3x20x256x128:20,0,7:spread:6 fp8_128 mxfp4 gelu",
    "3x20x256x128:20,0,7:normal:6:nan fp16 nvfp4_46 swigluoai",
    "3x20x256x128:20,0,7:spread:6:gates+some_nan bf16 nvfp4_46 silu; up first; interleave 1",
)
"""Without their version: a problem, and the formats and the activation where they are not NVFP4 and silu."""
LAYERS = tuple(
    f"8x24x128x64:24*8:normal:{seed}{extras}"
    for seed, extras in enumerate(
        (
            "",
            ":logits_equal",
            ":logits_spread",
            ":topk_tiny",
            ":output_specials",
            ":whole_layer",
            ":logits_low",
        )
    )
)
"""Without their version: problems of the stages around the layer."""


def digest(text: str, device: str = "cpu") -> str:
    """Return a hash of all tensors of a problem, with its formats, or of its ranks and their checkpoint."""
    problem = text.split(" ", maxsplit=1)[0]
    around = problem.removeprefix("v2:") in LAYERS
    made = layer(problem, device) if around else tensors(text, device)
    found = hashlib.sha256()
    for name, tensor in made.items():
        plain = tensor.detach().cpu().contiguous()
        found.update(f"{name} {plain.dtype} {list(plain.shape)}".encode())
        if plain.numel():
            found.update(bytes(plain.reshape(-1).view(torch.uint8).numpy()))
    return found.hexdigest()


def tensors(text: str, device: str) -> dict[str, Tensor]:
    """Return the tensors of a problem by name, made on that device."""
    problem, *rest = text.split(" ", 3)
    t = ProblemTensors(parse_problem(problem), device, *rest)
    p = t.problem
    scales = torch.full((p.experts, p.capacity, p.hidden // 16), 9, dtype=torch.uint8, device=device)
    names = ("masked_m", "x", "gate_up", "input_scale", "a2_scale", "w1_alpha", "w2_alpha")
    made = {name: getattr(t, name) for name in names}
    made["block scales"] = t.without_some_blocks(scales)
    for name in ("w1", "w2"):
        weights = getattr(t, name)
        made |= {f"{name} codes": weights.codes, f"{name} scale": weights.block_scale}
        # Of version 1 it is measured: the last bits of a sum are the machine's, and alphas have float32's.
        made[f"{name} deviation"] = weights.deviation.float() if p.version == 1 else weights.deviation
    return made


def layer(problem: str, device: str) -> dict[str, Tensor]:
    """Return what the ranks of a problem are given, by name, made on that device."""
    ranks = LayerProblem(parse_problem(problem), Traits(device=device))
    made = {"ranks": torch.tensor([*ranks.counts, ranks.topk, ranks.hidden, ranks.inter])}
    for name in ("logits", "topk_idx", "topk_weights"):
        made |= {f"{name} {rank}": tensor for rank, tensor in enumerate(getattr(ranks, name))}
    x = ranks.tokens(ranks.hidden)
    made |= {f"tokens {rank}": tensor for rank, tensor in enumerate(x)}
    made |= {"scale": ranks.token_scale(x), **ranks.checkpoint()}
    if "output_specials" in problem:
        draws = draws_of(ranks.problem.version, "outputs", 1, device)
        made["outputs"] = IN_OUTPUTS["output_specials"](draws.normal(2, 24, 128).bfloat16(), draws)
    return made
