"""What `humming-routed` takes of the package humming-kernels: the launch of its MoE kinds.

Read in humming-kernels 0.1.19 and 0.1.20; paths are relative to the package:
    config/enum.py       GemmType: "indexed", "grouped_contiguous"
    forward.py           humming_forward: sorted_ids, expert_ids, num_tokens_padded and top_k; expert_layout
    testing/data.py      generate_moe_tensors: what these hold
and how SGLang 0.5.23 calls it (srt/layers/moe/moe_runner/humming.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from harness.candidates.humming_package import compute_config

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from harness.candidates.slots import Slots

INDEXED, GROUPED = "indexed", "grouped_contiguous"


def launch(
    prepared_weights: Mapping[str, Any],
    x: Tensor,
    slots: Slots,
    out: Tensor,
    *,
    kind: str,
    tiles: Mapping[str, Any],
    one_pass: bool,
    a_scale: Tensor | None,
    locks: Tensor,
) -> None:
    """Multiply each slot's row by its expert's weights; what belongs to slots that do not count is not written.

    Args:
        prepared_weights: of harness.candidates.humming_package.prepared.
        x: indexed: `(tokens, k)`, or `(slots, k)` after the first GEMM; grouped: `(slots, k)` in the order of the experts.
        slots: of all tokens.
        out: `(slots, n)`, slot after slot, or in the order of the experts.
        kind: INDEXED or GROUPED.
        tiles: as harness.candidates.humming_package.tiling returns them.
        one_pass: over k.
        a_scale: float32 `(rows of x, 1)`, of FP8 tokens.
        locks: int32, zero.
    """
    from humming.forward import humming_forward

    if kind == INDEXED:
        sorted_ids, expert_ids, used = slots.aligned(tiles["block_shape"][0])
        routing: dict[str, Any] = {
            "sorted_ids": sorted_ids,
            "expert_ids": expert_ids,
            "num_tokens_padded": used,
            "top_k": len(out) // len(x),
        }
    else:
        routing = {"expert_layout": slots.offsets}
    tensors = {name: value for name, value in prepared_weights.items() if name not in {"config", "alpha"}}
    humming_forward(
        prepared_weights["config"], inputs=x, input_scale=a_scale, outputs=out, locks=locks, tuning_config=dict(tiles),
        compute_config=compute_config(one_pass=one_pass, kind=kind), **routing, **tensors,
    )  # fmt: skip
