"""Controls of other formats than NVFP4 and other activations than silu: `eager` and `physical` without the stages around the layer.

`control:eager_bf16`, `control:physical_fp8_token_with_mxfp4`: the format of the activations, and that of the weights where it
is not NVFP4. `control:physical_swigluoai`: another activation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from harness.candidates.eager import EagerKernels
from harness.candidates.physical import PhysicalKernels


class StrictKernels(PhysicalKernels):
    """The stages of `physical`, refusing operands in another layout instead of misreading them (a known failure of it)."""

    def masked_grouped_gemm(
        self,
        a: Tensor,
        a_scale: Any,
        b: Tensor,
        b_scale: Tensor,
        out: Tensor,
        masked_m: Tensor,
        alpha: Tensor | None,
    ) -> None:
        """Multiply, or raise ValueError on inputs whose strides are not canonical."""
        from harness.candidates import layouts

        for operand, scale in ((a, a_scale), (b, b_scale)):
            scales_too = scale is None or layouts.canonical(scale, "scales")
            if not layouts.canonical(operand, "rows") or not scales_too:
                raise ValueError("operands and their scales must lie in memory experts outermost")
        if not masked_m.is_contiguous() or not (alpha is None or alpha.is_contiguous()):
            raise ValueError("masked_m and alpha must be contiguous")
        super().masked_grouped_gemm(a, a_scale, b, b_scale, out, masked_m, alpha)


FORMATS = (
    "nvfp4_46", "nvfp4_46_with_nvfp4_46", "bf16", "fp16", "bf16_with_mxfp4", "fp16_with_mxfp4", "fp8", "fp8_token", "fp8_128", "mxfp8", "mxfp8_up", "mxfp4", "mxfp4_up",
    "fp8_token_with_mxfp4", "mxfp8_with_mxfp4", "mxfp4_with_mxfp4",
)  # fmt: skip
"""Activations and, where they are not NVFP4, weights, of which there are an `eager` and a `physical`."""


ACTIVATIONS = {
    "limit_10": "silu; limit 10",
    "swigluoai": "swigluoai; interleave 1",
    "bf16_swigluoai": "swigluoai; interleave 1",
    "gelu": "gelu",
    "gelu_tanh": "gelu_tanh; up first",
    "up_first": "silu; up first",
    "interleave_8": "silu; interleave 8",
    "interleave_16": "silu; up first; interleave 16",
    "interleave_32": "silu; interleave 32",
    "interleave_64": "silu; limit 10; interleave 64",
}
"""Names of controls and their activations, of NVFP4 operands but for those that say otherwise."""


def _in_format(kind: type[EagerKernels | StrictKernels], name: str) -> Callable[[], Any]:
    def made() -> Any:
        activations, _, weights = name.partition("_with_")
        formats = {"activation_format": activations, "weight_format": weights or "nvfp4"}
        candidate = kind(**formats, k_multiple=128 if "128" in name else 32 if "mxfp" in name else 16)
        candidate.name = f"{kind.name}_{name}"
        return candidate

    return made


def _applying(kind: type[EagerKernels | StrictKernels], name: str) -> Callable[[], Any]:
    def made() -> Any:
        form = "bf16" if name.startswith("bf16") else "nvfp4"
        candidate = kind(activation_format=form, activations=(ACTIVATIONS[name], "relu2"))
        candidate.name = f"{kind.name}_{name}"
        return candidate

    return made


IN_FORMATS: dict[str, Callable[[], Any]] = {
    **{f"eager_{name}": _in_format(EagerKernels, name) for name in FORMATS},
    **{f"physical_{name}": _in_format(StrictKernels, name) for name in FORMATS},
    **{f"eager_{name}": _applying(EagerKernels, name) for name in ACTIVATIONS},
    **{f"physical_{name}": _applying(StrictKernels, name) for name in ACTIVATIONS},
}
