"""The candidate `flashinfer-cutedsl-cpu`: FlashInfer's real masked grouped GEMM, compiled for SM100, its PTX interpreted.

The GEMM is the unmodified public call on CPU tensors. The grouped quantizers of the package are CUDA C++, not CuTe DSL: where
an nvcc is found their kernel is compiled to PTX and interpreted too, elsewhere they come from the emulation of their
arithmetic (harness.emulation). `warning` says which in every record.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from harness.candidates.cutedsl_on_cpu import cpu_support, new_version
from harness.candidates.cutedsl_support import path_traits
from harness.candidates.flashinfer_cutedsl import FlashInferCuteDsl

if TYPE_CHECKING:
    from torch import Tensor

    from harness.candidates.physical import Physical
    from harness.candidates.protocol import Traits
    from harness.candidates.support import Support

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
    """FlashInfer's NVFP4 masked MoE path on a CPU.

    Args:
        seed: draws the schedule of warps and asynchronous units; None: every asynchronous operation as late as possible.
        quantizers: "interpreted" (the grouped CUDA kernel; needs nvcc), "cutedsl" (the CuTe DSL kernel, expert by expert),
            "emulated", or "" for the first of "interpreted" and "emulated" that is possible.
        options: keyword arguments of every GEMM call: mma_tiler_mn, cluster_shape_mn, sm_count.
    """

    name = "flashinfer-cutedsl-cpu"

    def __init__(self, *, seed: int | None = None, quantizers: str = "", **options: Any) -> None:
        super().__init__(**options)
        self._seed = seed
        self._quantizers = quantizers
        self._why_emulated = ""

    @property
    def quantizers(self) -> str:
        """Where the quantizers come from: "interpreted", "cutedsl" or "emulated"."""
        if not self._quantizers:
            from harness.candidates.cuda_quantizers import quantizer_support

            found = quantizer_support()
            self._quantizers, self._why_emulated = (
                ("interpreted", "") if found else ("emulated", found.reason)
            )
        return self._quantizers

    @property
    def traits(self) -> Traits:
        """What the package's code promises, on CPU tensors; `store_rows` as in `flashinfer-cutedsl`."""
        from dataclasses import replace

        declared = super().traits
        return replace(
            path_traits(store_rows=declared.store_rows, hints=HINTS),
            device="cpu",
            cuda_graph=False,
            far=False,  # 256 tiles would take minutes
            canary=False,  # minutes an answer: `harness canary run --questions 1` asks it all the same
        )

    @property
    def warning(self) -> str:
        """What a reader of a record must know about where the numbers come from, and what of it is not yet known."""
        source = "FlashInfer's CUDA kernel, compiled by nvcc and interpreted as well"
        if self.quantizers == "cutedsl":
            source = "FlashInfer's CuTe DSL kernel, called expert by expert and interpreted as well"
        elif self.quantizers == "emulated":
            source = f"emulated{f' because {self._why_emulated}' if self._why_emulated else ''}"
        new = new_version(self.quantizers)
        return (
            "interpreted PTX: the GEMM is FlashInfer's kernel compiled for sm_100a and executed by harness.interpreter, not "
            f"by a GPU; the quantizers are {source} (docs/cutedsl-cpu.md says what is assumed){f'; {new}' if new else ''}"
        )

    def support(self) -> Support:
        """Return whether the packages are there and a smoke problem comes out right."""
        return cpu_support(self.name)

    def reciprocal(self, x: Tensor) -> Tensor:
        """Return the rcp.approx.ftz that the quantizers use: assumed correctly rounded where they are interpreted."""
        return _emulated().reciprocal(x) if self.quantizers == "emulated" else _flushed_reciprocal(x)

    def quantize_grouped(
        self, x: Tensor, masked_m: Tensor, global_scale_enc: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Quantize the valid rows: FlashInfer's kernel interpreted, or the emulation that `physical` uses."""
        if self.quantizers != "emulated":
            return self._interpreted(x, masked_m, global_scale_enc, silu_mul=False)
        return _emulated().quantize_grouped(x, masked_m, global_scale_enc)

    def silu_mul_quantize_grouped(
        self, gate_up: Tensor, masked_m: Tensor, global_scale_enc: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Quantize bf16(silu(gate) * up) of the valid rows; as `quantize_grouped`."""
        if self.quantizers != "emulated":
            return self._interpreted(gate_up, masked_m, global_scale_enc, silu_mul=True)
        return _emulated().silu_mul_quantize_grouped(gate_up, masked_m, global_scale_enc)

    def _interpreted(
        self, x: Tensor, masked_m: Tensor, global_scale_enc: Tensor, *, silu_mul: bool
    ) -> tuple[Tensor, Tensor]:
        if self.quantizers == "cutedsl":
            from harness.candidates.cutedsl_quantizers import grouped_quantize
        else:
            from harness.candidates.cuda_quantizers import grouped_quantize
        return grouped_quantize(x, masked_m, global_scale_enc, silu_mul=silu_mul)

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
            a: as `flashinfer-cutedsl`, a CPU tensor; so are the others.
            a_scale: block scales of A.
            b: the other operand.
            b_scale: block scales of B.
            masked_m: `(l,)` int32.
            alpha: `(l,)` float32 or None.
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


def _flushed_reciprocal(x: Tensor) -> Tensor:
    """Return the correctly rounded float32 reciprocal with subnormals flushed on both sides (.ftz)."""
    import torch

    small = 2.0**-126
    result = torch.where(x.abs() < small, torch.copysign(torch.full_like(x, torch.inf), x), x.reciprocal())
    return torch.where(result.abs() < small, torch.copysign(torch.zeros_like(x), result), result)


def _emulated() -> Physical:
    from harness.candidates.physical import Physical

    return Physical()
