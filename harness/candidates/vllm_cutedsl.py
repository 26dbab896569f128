"""The candidate `vllm-cutedsl`: vLLM's own `flashinfer_cutedsl_moe_masked`, as a whole and with its stages tapped.

Read in the released wheels of vllm; paths are relative to vllm/model_executor/layers/fused_moe. The function's
signature is the same in all of them, its module is not:
    0.11.x            absent
    0.12.0 to 0.18.1  flashinfer_cutedsl_moe.py, called by FlashInferCuteDSLExperts
    0.19.0            experts/flashinfer_cutedsl_moe.py
    0.24.0, 0.33.0    experts/flashinfer_cutedsl_batched_moe.py, called by FlashInferCuteDSLBatchedExperts; a module
                      experts/flashinfer_cutedsl_moe.py exists as well and is another implementation
Other versions are bound by their signature and named in `warning`.
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

from harness.candidates import cutedsl_support as cutedsl
from harness.candidates.known_kernels import sources_warning
from harness.candidates.sglang_cutedsl import PARAMETERS, signature_support
from harness.candidates.support import Support, unsupported
from harness.candidates.taps import StageCall, run_tapped
from harness.extras import install_hint

if TYPE_CHECKING:
    from torch import Tensor

    from harness.candidates.protocol import Traits

_LAYERS = "vllm.model_executor.layers.fused_moe"
MODULES = (
    f"{_LAYERS}.experts.flashinfer_cutedsl_batched_moe",
    f"{_LAYERS}.experts.flashinfer_cutedsl_moe",
    f"{_LAYERS}.flashinfer_cutedsl_moe",
)
FUNCTION = "flashinfer_cutedsl_moe_masked"
TESTED = {"vllm": (0, 33)}
FIRST_SUPPORTED = (0, 12)
TAPS = {
    "scaled_fp4_grouped_quantize": "quantize_grouped",
    "silu_and_mul_scaled_nvfp4_experts_quantize": "silu_mul_quantize_grouped",
    "flashinfer_cutedsl_grouped_gemm_nt_masked": "masked_grouped_gemm",
}


class VllmCuteDsl:
    """vLLM's masked NVFP4 MoE over FlashInfer; "silu" only."""

    name = "vllm-cutedsl"

    @property
    def traits(self) -> Traits:
        """FlashInfer's promises; vLLM's function has the gated activation only."""
        return cutedsl.path_traits(activations=("silu",))

    @property
    def warning(self) -> str:
        """What is outside the versions that this adapter was tested on, or no known kernel; else an empty string."""
        return "; ".join(filter(None, (cutedsl.version_warning(TESTED), sources_warning())))

    def support(self) -> Support:
        """Return whether vLLM's function can run here; vLLM is imported only where FlashInfer's path can run."""
        if importlib.util.find_spec("vllm") is None:
            return unsupported(
                f"{self.name} needs vllm (its function {FUNCTION}), which is not installed; run: {install_hint('vllm')}"
            )
        version = cutedsl.installed_version("vllm")
        if version and cutedsl.release(version) < FIRST_SUPPORTED:
            return unsupported(
                f"{self.name} needs vllm 0.12 or later, found {version}: before that {FUNCTION} is missing"
            )
        path = cutedsl.path_support(self.name)
        return self._bindable() if path else path

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
        """Run vLLM's function; the arguments and the result are those of `harness.candidates.protocol`.

        vLLM takes a plain tensor where SGLang takes (x, None), a packed tensor of shape (l, m, k/2) where SGLang takes
        (m, k/2, l), and writes into a workspace and an output that the caller allocates, uninitialized as in vLLM.

        Raises:
            RuntimeError: the installed vLLM has no such function, as `support()` says.
            ValueError: an activation other than "silu".
            AssertionError: vLLM refuses a dtype or an extent.
        """
        import torch

        if activation != "silu":
            raise ValueError(
                f"masked_moe: activation must be 'silu' for vllm's {FUNCTION}, got {activation!r}"
            )
        bindable = self._bindable()
        if not bindable:
            raise RuntimeError(bindable.reason)
        x, block_scale = hidden_states
        first: Any = x if block_scale is None else (x.permute(2, 0, 1), block_scale)
        experts, capacity = (x.shape[0], x.shape[1]) if block_scale is None else (x.shape[2], x.shape[0])
        # The GEMM writes in the dtype of x (vLLM derives c_dtype from it), bfloat16 for a quantized pair.
        dtype = x.dtype if block_scale is None else torch.bfloat16
        workspace = torch.empty((experts, capacity, w1.shape[-2]), dtype=dtype, device=x.device)
        out = torch.empty((experts, capacity, w2.shape[-2]), dtype=dtype, device=x.device)
        getattr(_module(), FUNCTION)(
            hidden_states=first,
            input_global_scale=input_global_scale if block_scale is None else None,
            w1=w1,
            w1_blockscale=w1_blockscale,
            w1_alpha=w1_alpha,
            w2=w2,
            a2_global_scale=a2_global_scale,
            w2_blockscale=w2_blockscale,
            w2_alpha=w2_alpha,
            masked_m=masked_m,
            workspace=workspace,
            out=out,
        )
        return out

    def masked_moe_tapped(self, *args: Any, **kwargs: Any) -> tuple[Tensor, list[StageCall]]:
        """Run `masked_moe` with the same arguments; return its result and vLLM's stage calls, in order.

        Raises:
            TapError: vLLM did not make the stage calls that the MoE consists of, or cannot be tapped.
            RuntimeError, ValueError, AssertionError: as `masked_moe`.
        """
        bindable = self._bindable()
        if not bindable:
            raise RuntimeError(bindable.reason)
        return run_tapped(self.masked_moe, _module(), TAPS, args, kwargs)

    def _bindable(self) -> Support:
        """Return whether the installed function takes the arguments that it is given here."""
        version = cutedsl.installed_version("vllm")
        try:
            module = _module()
        except Exception as error:  # noqa: BLE001 - an engine may raise anything on import, and that is the reason
            return unsupported(
                f"{self.name}: import of vllm {version} failed with {type(error).__name__}: {error}"
            )
        if module is None:
            return unsupported(
                f"{self.name}: vllm {version} has no {FUNCTION} in any of {', '.join(MODULES)}"
            )
        return signature_support(
            self.name, f"vllm {version}", getattr(module, FUNCTION), (*PARAMETERS, "workspace", "out")
        )


def _module() -> Any:
    """Return the module of the installed vLLM that has the function, or None.

    Raises:
        Exception: whatever vLLM raises on import; that a module does not exist is not an error.
    """
    for name in MODULES:
        try:
            module = cutedsl.import_quietly(name)
        except ModuleNotFoundError as error:
            if error.name is None or not name.startswith(error.name):
                raise  # vLLM has the module and lacks a dependency
            continue
        if hasattr(module, FUNCTION):
            return module
    return None
