"""The candidate `flashinfer-cutedsl-cpu`: FlashInfer's real masked grouped GEMM, compiled for SM100, its PTX interpreted.

The GEMM is the unmodified public call on CPU tensors. The grouped quantizers of the package are CUDA C++, not CuTe DSL; here
they come from the emulation of their arithmetic (harness.emulation), and `warning` says so in every record.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from harness.candidates.cutedsl_on_cpu import cpu_support
from harness.candidates.cutedsl_support import path_traits
from harness.candidates.flashinfer_cutedsl import FlashInferCuteDsl

if TYPE_CHECKING:
    from torch import Tensor

    from harness.candidates.physical import Physical
    from harness.candidates.protocol import Traits
    from harness.support import Support

# How the GEMM is tiled, clustered and fed must not change a valid row. All of these are compiled and interpreted.
HINTS: tuple[dict[str, Any], ...] = (
    {"sm_count": 4},
    {"mma_tiler_mn": (128, 256)},
    {"cluster_shape_mn": (1, 2)},
    {"cluster_shape_mn": (2, 1)},
    {"cluster_shape_mn": (2, 2), "sm_count": 4},
    {"mma_tiler_mn": (256, 128), "cluster_shape_mn": (2, 1)},
    {"is_swap_ab": True},
)


class FlashInferCuteDslCpu(FlashInferCuteDsl):
    """FlashInfer's NVFP4 masked GEMM on a CPU, between emulated quantizers.

    Args:
        seed: draws the schedule of warps and asynchronous units; None: every asynchronous operation as late as possible.
        options: keyword arguments of every GEMM call: mma_tiler_mn, cluster_shape_mn, sm_count.
    """

    name = "flashinfer-cutedsl-cpu"

    def __init__(self, *, seed: int | None = None, **options: Any) -> None:
        super().__init__(**options)
        self._seed = seed

    @property
    def traits(self) -> Traits:
        """What the package's code promises, on CPU tensors; `store_rows` as in `flashinfer-cutedsl`."""
        from dataclasses import replace

        declared = super().traits
        return replace(
            path_traits(store_rows=declared.store_rows, hints=HINTS), device="cpu", cuda_graph=False
        )

    @property
    def warning(self) -> str:
        """What a reader of a record must know about where the numbers come from."""
        return (
            "interpreted PTX: the GEMM is FlashInfer's kernel compiled for sm_100a and executed by harness.interpreter, not "
            "by a GPU; the quantizers are emulated (docs/cutedsl-cpu.md says what is assumed)"
        )

    def support(self) -> Support:
        """Return whether the packages are there in a known pair of versions, and a smoke problem comes out right."""
        return cpu_support(self.name)

    def reciprocal(self, x: Tensor) -> Tensor:
        """Return the rcp.approx.ftz that the emulated quantizers use."""
        return _emulated().reciprocal(x)

    def quantize_grouped(
        self, x: Tensor, masked_m: Tensor, global_scale_enc: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Quantize the valid rows as `physical` does: the same emulation of the kernel's arithmetic and memory."""
        return _emulated().quantize_grouped(x, masked_m, global_scale_enc)

    def silu_mul_quantize_grouped(
        self, gate_up: Tensor, masked_m: Tensor, global_scale_enc: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Quantize bf16(silu(gate) * up) of the valid rows as `physical` does."""
        return _emulated().silu_mul_quantize_grouped(gate_up, masked_m, global_scale_enc)

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
        """Write alpha[e] * a[e] @ b[e].T through `flashinfer.gemm.grouped_gemm_nt_masked`, interpreted.

        Args:
            a, a_scale, b, b_scale, masked_m, alpha: as `flashinfer-cutedsl`, CPU tensors.
            out: logical `(m, n, l)`.
            options: as `flashinfer-cutedsl`, and `is_swap_ab=True`: B's rows become the kernel's M; the output's memory is
                the same.

        Raises:
            InterpreterError: the kernel did something wrong, or something that is not modelled.
            ValueError, TypeError: what the package refuses.
        """
        from harness.candidates.cutedsl_on_cpu import gemm
        from harness.interpreter.schedule import seeded

        extra = {n: tuple(v) if isinstance(v, list) else v for n, v in (self._gemm_options | options).items()}
        if extra.get("is_swap_ab"):
            out = out.permute(1, 0, 2)
        seed = self._seed
        schedule = None if seed is None else lambda: seeded(seed)
        gemm((a, a_scale), (b, b_scale), out, masked_m, alpha, extra, schedule=schedule)


def _emulated() -> Physical:
    from harness.candidates.physical import Physical

    return Physical()
