"""The candidate `flashinfer-cutedsl`: FlashInfer's own grouped quantizers and masked grouped GEMM.

Calls the installed package and adds nothing: no layout check, no padding, no conversion. What the package refuses is
refused, what it misreads is misread, and the rules see it.

Read in flashinfer-python 0.7.2.post1; paths in this file are relative to the package:
    quantization/fp4_quantization.py:2251  scaled_fp4_grouped_quantize(a, mask, a_global_sf)
    activation.py:215                      silu_and_mul_scaled_nvfp4_experts_quantize(a, mask, a_global_sf)
    gemm/kernels/grouped_gemm_masked_wrapper.py:45  grouped_gemm_nt_masked((a, sfa), (b, sfb), out, masked_m, *, ...)

Nothing heavy is imported at module level; `support()` imports FlashInfer (seconds) only where it finds a device.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from harness.candidates.cutedsl_support import load, path_support, path_traits
from harness.candidates.known_kernels import sources_warning
from harness.candidates.traits import ANY_ROW

if TYPE_CHECKING:
    from torch import Tensor

    from harness.candidates.protocol import Traits
    from harness.candidates.support import Support

# Options of the GEMM that choose how it is computed and not what. A cluster of two is left out: it writes more rows.
HINTS: tuple[dict[str, Any], ...] = ({"sm_count": 4}, {"mma_tiler_mn": (128, 256)})


class FlashInferCuteDsl:
    """FlashInfer's NVFP4 masked MoE path, stage by stage and composed as SGLang composes it.

    Args:
        mma_tiler_mn: rows and columns of one tensor-core tile, 128 or 256 each; None: the package's (128, 128).
        cluster_shape_mn: thread-block cluster, each 1, 2 or 4; None: the package's (1, 1).
        sm_count: streaming multiprocessors that the GEMM may use; None: all.
    """

    name = "flashinfer-cutedsl"

    def __init__(
        self,
        *,
        mma_tiler_mn: tuple[int, int] | None = None,
        cluster_shape_mn: tuple[int, int] | None = None,
        sm_count: int | None = None,
    ) -> None:
        options = {"mma_tiler_mn": mma_tiler_mn, "cluster_shape_mn": cluster_shape_mn, "sm_count": sm_count}
        self._gemm_options: dict[str, Any] = {
            name: value for name, value in options.items() if value is not None
        }
        self._cluster_m = (cluster_shape_mn or (1, 1))[0]

    @property
    def traits(self) -> Traits:
        """What the package's code promises for these options, in this environment; see `path_traits`."""
        # The scheduler counts 128-row tiles and steps in clusters (grouped_gemm_masked_blackwell.py:298-388): with
        # cluster_m > 1 an expert of masked_m rows gets ceil(masked_m / 128) * 128 * cluster_m rows written, which is no
        # next multiple of anything; only experts without rows stay untouched.
        return path_traits(store_rows=128 if self._cluster_m == 1 else ANY_ROW, hints=HINTS)

    @property
    def warning(self) -> str:
        """One sentence if what is installed is in no row of the table of known kernels, else an empty string."""
        return sources_warning()

    def support(self) -> Support:
        """Return whether the path can run here; the reason names the package, the device or the changed function."""
        return path_support(self.name)

    def quantize_grouped(
        self, x: Tensor, masked_m: Tensor, global_scale_enc: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Quantize the valid rows of each expert to NVFP4 (quantization/fp4_quantization.py:2251).

        Args:
            x: `(l, m, k)` bfloat16 or float16, contiguous, k a multiple of 16.
            masked_m: `(l,)` int32, contiguous.
            global_scale_enc: `(l,)` float32, contiguous, 448*6/amax per expert.

        Returns:
            packed, uint8 logical `(m, k/2, l)`, and block_scale, float8_e4m3fn logical `(32, 4, rm, 4, rk, l)`. Rows at
            or past masked_m, and scale padding, are never written (csrc .../quantization.cuh:717).

        Raises:
            RuntimeError: the installed package has no such function (as `support()` says), or refuses the tensors.
            AssertionError: k is not a multiple of 16.
        """
        packed, block_scale = load("scaled_fp4_grouped_quantize")(x, masked_m, global_scale_enc)
        return packed, block_scale

    def silu_mul_quantize_grouped(
        self, gate_up: Tensor, masked_m: Tensor, global_scale_enc: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Quantize bf16(silu(gate) * up) of the valid rows to NVFP4 (activation.py:215).

        Args:
            gate_up: `(l, m, 2k)` bfloat16 or float16, contiguous, gate half first, k a multiple of 16.
            masked_m: `(l,)` int32, contiguous.
            global_scale_enc: `(l,)` float32, contiguous, 448*6/amax per expert.

        Returns:
            As `quantize_grouped`, for k.

        Raises:
            RuntimeError, AssertionError: as `quantize_grouped`.
        """
        packed, block_scale = load("silu_and_mul_scaled_nvfp4_experts_quantize")(
            gate_up, masked_m, global_scale_enc
        )
        return packed, block_scale

    def masked_grouped_gemm(
        self,
        a: Tensor,
        a_scale: Tensor,
        b: Tensor,
        b_scale: Tensor,
        out: Tensor,
        masked_m: Tensor,
        alpha: Tensor | None = None,
        **options: Any,
    ) -> None:
        """Write alpha[e] * a[e] @ b[e].T into the valid rows of `out` (gemm/kernels/grouped_gemm_masked_wrapper.py:45).

        The package checks the strides of `out` only; of a, b and the scales it takes the address and assumes the
        canonical layout (grouped_gemm_masked_blackwell.py:3183). All addresses must be multiples of 16 bytes.

        Args:
            a: uint8 logical `(m, k/2, l)`, k a multiple of 32.
            a_scale: float8_e4m3fn logical `(32, 4, rm, 4, rk, l)`.
            b: uint8 logical `(n, k/2, l)`, n a multiple of 8 (4 for a float32 `out`).
            b_scale: float8_e4m3fn, the memory of logical `(32, 4, rn, 4, rk, l)` in any shape.
            out: logical `(m, n, l)` bfloat16, float16 or float32.
            masked_m: `(l,)` int32.
            alpha: `(l,)` float32, 1 / (a_global_scale_enc * b_global_scale_enc), or None for 1.
            options: `mma_tiler_mn`, `cluster_shape_mn`, `sm_count` for this call, before the constructor's.

        Raises:
            ValueError: `out` has another dtype or layout, or the device is not supported.
            TypeError: extents or options that the kernel does not implement.
        """
        # Hints may have travelled as JSON; the package keys its compiled kernels by these values, so lists would fail.
        extra = {n: tuple(v) if isinstance(v, list) else v for n, v in (self._gemm_options | options).items()}
        if alpha is not None:
            # SGLang and vLLM pass the per-expert alphas as (1, 1, l); the kernel reads l floats.
            extra.update(alpha=alpha.view(1, 1, -1), alpha_dtype=_dtype_name("alpha", alpha))
        load("grouped_gemm_nt_masked")(
            (a, a_scale),
            (b, b_scale),
            out,
            masked_m,
            ab_dtype="float4_e2m1fn",
            sf_dtype="float8_e4m3fn",
            c_dtype=_dtype_name("out", out),
            sf_vec_size=16,
            **extra,
        )

    def masked_moe(
        self,
        hidden_states: tuple[Tensor, Tensor | None],
        input_global_scale: Tensor | None,
        w1: Tensor,
        w1_blockscale: Tensor,
        w1_alpha: Tensor,
        w2: Tensor,
        a2_global_scale: Tensor,
        w2_blockscale: Tensor,
        w2_alpha: Tensor,
        masked_m: Tensor,
        activation: str = "silu",
    ) -> Tensor:
        """Run the stages in the order of SGLang 0.5.23 (srt/layers/moe/flashinfer_cutedsl_moe.py:22-205).

        Args:
            hidden_states: `(x, None)` with x `(l, m, k)` bfloat16, or `(packed, block_scale)` as `quantize_grouped`.
            input_global_scale: `(l,)` float32; None with a pair.
            w1: `(l, 2n, k/2)` uint8, gate rows first ("silu"), or `(l, n, k/2)` ("relu2").
            w1_blockscale: float8_e4m3fn `(l, round_up(rows, 128), round_up(k/16, 4))`, swizzled 128x4.
            w1_alpha: `(l,)` float32.
            w2: `(l, k, n/2)` uint8.
            a2_global_scale: `(l,)` float32, 448*6/amax of the activation.
            w2_blockscale: float8_e4m3fn `(l, round_up(k, 128), round_up(n/16, 4))`, swizzled 128x4.
            w2_alpha: `(l,)` float32.
            masked_m: `(l,)` int32.
            activation: "silu" or "relu2".

        Returns:
            `(l, m, k)` bfloat16; rows at or past masked_m are undefined.

        Raises:
            ValueError: another activation, or weights whose extents do not fit: the kernels would read past their end.
        """
        from harness.candidates.composition import compose_masked_moe

        _check_extents(hidden_states, w1, w1_alpha, w2, a2_global_scale, w2_alpha, masked_m, activation)
        return compose_masked_moe(
            self,
            hidden_states,
            input_global_scale,
            w1,
            w1_blockscale,
            w1_alpha,
            w2,
            a2_global_scale,
            w2_blockscale,
            w2_alpha,
            masked_m,
            activation,
        )


def _check_extents(
    hidden_states: tuple[Tensor, Tensor | None],
    w1: Tensor,
    w1_alpha: Tensor,
    w2: Tensor,
    a2_global_scale: Tensor,
    w2_alpha: Tensor,
    masked_m: Tensor,
    activation: str,
) -> None:
    """Refuse what SGLang asserts on (flashinfer_cutedsl_moe.py:118-136): the GEMM itself would read out of bounds."""
    x, pair = hidden_states
    experts, hidden = (x.shape[0], x.shape[2]) if pair is None else (x.shape[2], x.shape[1] * 2)
    n = w2.shape[-1] * 2
    rows = n if activation == "relu2" else 2 * n
    per_expert = {
        "w1_alpha": w1_alpha,
        "a2_global_scale": a2_global_scale,
        "w2_alpha": w2_alpha,
        "masked_m": masked_m,
    }
    wanted: dict[str, tuple[Tensor, tuple[int, ...]]] = {
        n: (tensor, (experts,)) for n, tensor in per_expert.items()
    }
    wanted |= {"w1": (w1, (experts, rows, hidden // 2)), "w2": (w2, (experts, hidden, n // 2))}
    for name, (tensor, shape) in wanted.items():
        if tuple(tensor.shape) != shape:
            raise ValueError(
                f"masked_moe: {name} must have shape {shape} for {activation!r}, got {tuple(tensor.shape)}"
            )


def _dtype_name(role: str, tensor: Tensor) -> str:
    """Return the name by which FlashInfer's GEMM knows a dtype."""
    name = str(tensor.dtype).removeprefix("torch.")
    if name not in ("bfloat16", "float16", "float32"):
        raise ValueError(
            f"masked_grouped_gemm: {role} must be bfloat16, float16 or float32, got {tensor.dtype}"
        )
    return name
