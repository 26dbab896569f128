"""What the fused layers of FlashInfer are called with, read back as masked_moe's weight arguments.

`trtllm_fp4_block_scale_routed_moe` and `cute_dsl_fused_moe` take weights whose rows an engine has brought into another
order (reference.weight_rows), up before gate, and padded.

Read in flashinfer-python 0.7.2, fused_moe/core.py and fused_moe/cute_dsl.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from harness.candidates.engines.engine import EngineChangedError

if TYPE_CHECKING:
    from torch import Tensor

    from harness.candidates.engines.loader import Shard

    Matrix = tuple[Tensor, Tensor]
    """Packed codes `(l, rows, columns / 2)` and linear block scale bytes `(l, rows, columns / 16)`, both uint8."""

_TRTLLM = (
    "gemm1_weights", "gemm1_weights_scale", "gemm2_weights", "gemm2_weights_scale", "output1_scale_scalar",
    "output1_scale_gate_scalar", "output2_scale_scalar", "num_experts", "local_num_experts", "local_expert_offset",
)  # fmt: skip
_CUTEDSL = (
    "w1_weight", "w1_weight_sf", "w1_alpha", "fc2_input_scale", "w2_weight", "w2_weight_sf", "w2_alpha", "num_experts",
    "num_local_experts", "local_expert_offset",
)  # fmt: skip
_ROUNDINGS = 2.0**-22  # of up's alpha in a product with an encode scale


class FusedLayer:
    """Stands in for a fused layer, and for the quantizer of its tokens, and keeps all that they are given."""

    quant_mode = "w4a4"  # an engine asks for it

    def __init__(self) -> None:
        self.given: dict[str, Any] = {}

    def made(self, **options: Any) -> FusedLayer:
        """Keep what a layer is made with; return it."""
        self.given |= options
        return self

    def run(self, **given: Any) -> list[Tensor]:
        """Keep the arguments; return zeros of the tokens' number, in a list as FlashInfer's function does."""
        import torch

        self.given |= given
        tokens = given["x"] if "x" in given else given["hidden_states"]
        return [torch.zeros(len(tokens), 1, dtype=torch.bfloat16)]

    def quantize(
        self,
        x: Tensor,
        scale: Tensor,
        sf_vec_size: int = 16,
        sf_use_ue8m0: bool = False,
        is_sf_swizzled_layout: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Keep the encode scale of the tokens as "input_global_scale"; parameters as those of fp4_quantize.

        Returns:
            Packed codes `(tokens, k / 2)` uint8 and linear block scales `(tokens, k / 16)` float8_e4m3fn, zeros.

        Raises:
            ValueError: other block scales are asked for than the fused layers take.
        """
        import torch

        if (sf_vec_size, sf_use_ue8m0, is_sf_swizzled_layout) != (16, False, False):
            raise ValueError(
                "load_experts: the kernel takes linear E4M3 block scales of 16 elements of the tokens, got "
                f"{sf_vec_size=}, {sf_use_ue8m0=}, {is_sf_swizzled_layout=}"
            )
        self.given["input_global_scale"] = scale
        codes = x.new_zeros(*x.shape[:-1], x.shape[-1] // 2, dtype=torch.uint8)
        return codes, codes[..., : x.shape[-1] // 16].contiguous().view(torch.float8_e4m3fn)

    def arguments(self, names: tuple[str, ...]) -> dict[str, Any]:
        """Return what was given. Raises EngineChangedError where one of these names was not."""
        missing = [name for name in ("input_global_scale", *names) if self.given.get(name) is None]
        if missing:
            raise EngineChangedError(f"FlashInfer's fused layer is called without {', '.join(missing)}")
        return self.given


def block_scale_interleave(block_scale: Tensor) -> Tensor:
    """Return linear block scale bytes in 128x4 order, flat: FlashInfer's kernel of that name, for a CPU."""
    from reference.layout import swizzle_128x4

    return swizzle_128x4(block_scale).flatten()


def of_trtllm(layer: FusedLayer, a2_scale: Tensor, shard: Shard) -> dict[str, Tensor]:
    """Return masked_moe's weight arguments of a call of `trtllm_fp4_block_scale_routed_moe`.

    The kernel takes an alpha for gate, and for up one that is multiplied by the encode scale of the intermediate.

    Args:
        layer: what was called.
        a2_scale: encode scales of the intermediate, as the engine keeps them.
        shard: what the rank has of the layer.

    Returns:
        As `load_experts`; w1_alpha is `(l, 2)` where gate and up have different ones.

    Raises:
        ValueError: the kernel is told of other experts than the rank has, or of padding that changes the result.
        EngineChangedError: it is called without an argument that is read here.
    """
    import torch

    from reference.layout import unswizzle_128x4
    from reference.weight_rows import TRTLLM_TURN, unshuffled

    given = layer.arguments(_TRTLLM)

    def matrix(number: int) -> Matrix:
        codes, scale = given[f"gemm{number}_weights"], given[f"gemm{number}_weights_scale"]
        rows, columns = codes.shape[1], codes.shape[2] // 8
        linear = unswizzle_128x4(scale.view(torch.uint8).reshape(len(codes), rows, columns), rows, columns)
        return unshuffled(codes), unshuffled(linear)

    _require_own_experts(given, shard)
    alpha, joint = given["output1_scale_gate_scalar"], given["output1_scale_scalar"]
    encode = a2_scale.reshape(-1).expand(len(alpha)) if shard.gated else joint
    if shard.gated:
        of_up = (joint.double() / encode.double()).float()
        if not bool(((of_up - alpha).abs() <= alpha.abs() * _ROUNDINGS).all()):
            alpha = torch.stack((alpha, of_up), 1)
    scales = {"w1_alpha": alpha, "a2_global_scale": encode, "w2_alpha": given["output2_scale_scalar"]}
    return _arguments(
        (matrix(1), matrix(2)),
        TRTLLM_TURN,
        {"input_global_scale": given["input_global_scale"]} | scales,
        shard,
    )


def of_cutedsl(layer: FusedLayer, shard: Shard) -> dict[str, Tensor]:
    """Return masked_moe's weight arguments of a call of `cute_dsl_fused_moe`.

    Args:
        layer: what was called.
        shard: what the rank has of the layer.

    Raises:
        ValueError, EngineChangedError: as `of_trtllm`.
    """
    import torch

    from harness.candidates.layouts import block_scales_of
    from reference.weight_rows import CUTEDSL_TURN

    given = layer.arguments(_CUTEDSL)

    def matrix(number: int) -> Matrix:
        codes = given[f"w{number}_weight"].view(torch.uint8)
        return codes, block_scales_of(given[f"w{number}_weight_sf"], codes.shape[1], codes.shape[2] // 8)

    _require_own_experts(given, shard)
    scales = {
        "w1_alpha": given["w1_alpha"],
        "a2_global_scale": given["fc2_input_scale"],
        "w2_alpha": given["w2_alpha"],
    }
    return _arguments(
        (matrix(1), matrix(2)),
        CUTEDSL_TURN,
        {"input_global_scale": given["input_global_scale"]} | scales,
        shard,
    )


def _arguments(
    matrices: tuple[Matrix, Matrix], turn: int, scales: Mapping[str, Tensor], shard: Shard
) -> dict[str, Tensor]:
    """Return masked_moe's arguments of matrices in the order of their rows, up and gate in turns of so many."""
    import torch

    from reference.layout import swizzle_128x4
    from reference.weight_rows import of_turns

    w1, w2 = matrices
    inter = shard.inter // shard.slices
    up, gate = zip(*(of_turns(part, turn) for part in w1), strict=True) if shard.gated else (w1, None)
    halves = [half for half in (gate, up) if half is not None]
    if any(bool(half[0][:, inter:].any()) for half in halves) and bool(w2[0][:, :, inter // 2 :].any()):
        raise ValueError(
            "load_experts: rows of w1 and columns of w2 that only pad are not zero, which changes the result"
        )
    first = [
        torch.cat(parts, 1)
        for parts in zip(*(_cut(half, inter, shard.hidden) for half in halves), strict=True)
    ]
    second = _cut(w2, shard.hidden, inter)
    found = {
        name: value.reshape(-1).expand(shard.local) if value.numel() == 1 else value
        for name, value in scales.items()
    }
    for name, (codes, block_scale) in {"w1": first, "w2": second}.items():
        found[name] = codes
        found[f"{name}_blockscale"] = swizzle_128x4(block_scale).view(torch.float8_e4m3fn)
    return found


def _cut(matrix: Matrix, rows: int, columns: int) -> Matrix:
    """Return a matrix without what pads it."""
    codes, block_scale = matrix
    return codes[:, :rows, : columns // 2], block_scale[:, :rows, : columns // 16]


def _require_own_experts(given: Mapping[str, Any], shard: Shard) -> None:
    """Raise ValueError where the kernel is told of other experts than the rank has."""
    wanted = {
        "num_experts": shard.experts,
        "num_local_experts": shard.local,
        "local_num_experts": shard.local,
        "local_expert_offset": shard.rank * shard.local,
    }
    for name, value in wanted.items():
        if given.get(name, value) != value:
            raise ValueError(
                f"load_experts: the kernel's {name} must be {value} on rank {shard.rank}, got {given[name]}"
            )
