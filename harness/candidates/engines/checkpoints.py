"""A layer's ModelOpt tensors as compressed-tensors writes them, and what its configuration says of them.

Source: compressed-tensors, NVFP4 (`nvfp4-pack-quantized`): `weight_packed`, `weight_scale`, and the two global scales, which
are encode scales, 448 * 6 / amax: reciprocals of ModelOpt's `weight_scale_2` and `input_scale`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

_NAMES = {
    "weight": "weight_packed",
    "weight_scale_2": "weight_global_scale",
    "input_scale": "input_global_scale",
}
_NVFP4 = {
    "num_bits": 4,
    "type": "float",
    "strategy": "tensor_group",
    "group_size": 16,
    "symmetric": True,
}
COMPRESSED_CONFIG: dict[str, Any] = {
    "quant_method": "compressed-tensors",
    "format": "nvfp4-pack-quantized",
    "ignore": [],
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "format": "nvfp4-pack-quantized",
            "weights": {**_NVFP4, "dynamic": False},
            "input_activations": {**_NVFP4, "dynamic": "local"},
        }
    },
}


def compressed_tensors(checkpoint: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors by compressed-tensors' names, global scales as `(1,)` encode scales.

    Args:
        checkpoint: one layer's ModelOpt tensors; others keep their names.
    """
    found = {}
    for name, tensor in checkpoint.items():
        place, _, kind = name.rpartition(".")
        is_scale = kind in {"weight_scale_2", "input_scale"}
        found[f"{place}.{_NAMES.get(kind, kind)}"] = tensor.reciprocal().reshape(1) if is_scale else tensor
    return found
