"""The candidate `sglang-cutedsl`: SGLang's own `flashinfer_cutedsl_moe_masked`, as a whole and with its stages tapped.

Read in the released wheels of sglang; the function is srt/layers/moe/flashinfer_cutedsl_moe.py:22 throughout.
    0.5.3 to 0.5.5    quantizes with sgl_kernel, other kernels with other arithmetic: not supported
    0.5.6 to 0.5.15   FlashInfer's quantizers; no `activation` parameter: "silu" only
    0.5.16 to 0.5.23  as it is called here, "silu" and "relu2"
Later versions are bound by their signature and named in `warning`.
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

from harness.candidates import cutedsl_support as cutedsl
from harness.candidates.known_kernels import sources_warning
from harness.candidates.support import Support, supported, unsupported
from harness.candidates.taps import StageCall, missing_parameters, run_tapped, unfilled_parameters
from harness.extras import install_hint

if TYPE_CHECKING:
    from torch import Tensor

    from harness.candidates.protocol import Traits

MODULE = "sglang.srt.layers.moe.flashinfer_cutedsl_moe"
FUNCTION = "flashinfer_cutedsl_moe_masked"
TESTED = {"sglang": (0, 5)}
FIRST_SUPPORTED = (0, 5, 6)
FIRST_WITH_ACTIVATION = (0, 5, 16)
TAPS = {
    "scaled_fp4_grouped_quantize": "quantize_grouped",
    "silu_and_mul_scaled_nvfp4_experts_quantize": "silu_mul_quantize_grouped",
    "grouped_gemm_nt_masked": "masked_grouped_gemm",
}
PARAMETERS = (
    "hidden_states",
    "input_global_scale",
    "w1",
    "w1_blockscale",
    "w1_alpha",
    "w2",
    "a2_global_scale",
    "w2_blockscale",
    "w2_alpha",
    "masked_m",
)


class SglangCuteDsl:
    """SGLang's masked NVFP4 MoE over FlashInfer.

    Args:
        down_sm_count: SGLang's `down_sm_count`, multiprocessors for the second GEMM; None: not passed.
    """

    name = "sglang-cutedsl"

    def __init__(self, *, down_sm_count: int | None = None) -> None:
        self._options = {} if down_sm_count is None else {"down_sm_count": down_sm_count}

    @property
    def traits(self) -> Traits:
        """FlashInfer's promises, and the activations of the installed version."""
        version = cutedsl.release(cutedsl.installed_version("sglang"))
        gated_only = bool(version) and version < FIRST_WITH_ACTIVATION
        return cutedsl.path_traits(activations=("silu",) if gated_only else ("silu", "relu2"))

    @property
    def warning(self) -> str:
        """What is outside the versions that this adapter was tested on, or no known kernel; else an empty string."""
        return "; ".join(filter(None, (cutedsl.version_warning(TESTED), sources_warning())))

    def support(self) -> Support:
        """Return whether SGLang's function can run here; SGLang is imported only where FlashInfer's path can run."""
        if importlib.util.find_spec("sglang") is None:
            return unsupported(
                f"{self.name} needs sglang (its function {FUNCTION}), which is not installed; run: {install_hint('sglang')}"
            )
        version = cutedsl.installed_version("sglang")
        if version and cutedsl.release(version) < FIRST_SUPPORTED:
            return unsupported(
                f"{self.name} needs sglang 0.5.6 or later, found {version}: before that {FUNCTION} is missing or "
                "quantizes with sgl_kernel instead of FlashInfer"
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
        """Run SGLang's function; the arguments and the result are those of `harness.candidates.protocol`.

        SGLang's docstring gives the prequantized pair as [l, m, k/2] and [l, m, k/16]; its code reads (m, k/2, l) and
        hands the scales to the GEMM as they are (flashinfer_cutedsl_moe.py:86-88), which is what the protocol passes.

        Raises:
            RuntimeError: the installed SGLang has no such function, as `support()` says.
            ValueError: this version has no such activation.
            AssertionError: SGLang refuses a dtype or an extent.
        """
        given: dict[str, Any] = {
            "hidden_states": hidden_states,
            "input_global_scale": input_global_scale,
            "w1": w1,
            "w1_blockscale": w1_blockscale,
            "w1_alpha": w1_alpha,
            "w2": w2,
            "a2_global_scale": a2_global_scale,
            "w2_blockscale": w2_blockscale,
            "w2_alpha": w2_alpha,
            "masked_m": masked_m,
        }
        bindable = self._bindable()
        if not bindable:
            raise RuntimeError(bindable.reason)
        function = getattr(cutedsl.import_quietly(MODULE), FUNCTION)
        if not missing_parameters(function, ["activation"]):
            given["activation"] = activation
        elif activation != "silu":
            raise ValueError(
                f"masked_moe: activation must be 'silu' for sglang {cutedsl.installed_version('sglang')}, whose "
                f"{FUNCTION} has no parameter 'activation' (it came with 0.5.16), got {activation!r}"
            )
        out: Tensor = function(**given, **self._options)
        return out

    def masked_moe_tapped(self, *args: Any, **kwargs: Any) -> tuple[Tensor, list[StageCall]]:
        """Run `masked_moe` with the same arguments; return its result and SGLang's stage calls, in order.

        Raises:
            TapError: SGLang did not make the stage calls that the MoE consists of, or cannot be tapped.
            RuntimeError, ValueError, AssertionError: as `masked_moe`.
        """
        bindable = self._bindable()
        if not bindable:
            raise RuntimeError(bindable.reason)
        return run_tapped(self.masked_moe, cutedsl.import_quietly(MODULE), TAPS, args, kwargs)

    def _bindable(self) -> Support:
        """Return whether the installed function takes the arguments that it is given here."""
        version = cutedsl.installed_version("sglang")
        try:
            function = getattr(cutedsl.import_quietly(MODULE), FUNCTION, None)
        except Exception as error:  # noqa: BLE001 - an engine may raise anything on import, and that is the reason
            return unsupported(f"{self.name}: import {MODULE} failed with {type(error).__name__}: {error}")
        if function is None:
            return unsupported(f"{self.name}: {MODULE} of sglang {version} has no function {FUNCTION}")
        return signature_support(self.name, f"sglang {version}", function, (*PARAMETERS, *self._options))


def signature_support(name: str, version: str, function: Any, given: tuple[str, ...]) -> Support:
    """Return whether an engine's function takes the keyword arguments `given` and needs no others.

    Args:
        name: the candidate's name.
        version: the engine and its version, for the reason.
        function: the engine's function.
        given: names of the arguments that it will always get.
    """
    missing, unfilled = missing_parameters(function, given), unfilled_parameters(function, given)
    if not missing and not unfilled:
        return supported()
    changes = [f"no longer takes {', '.join(missing)}"] * bool(missing) + [
        f"also needs {', '.join(unfilled)}"
    ] * bool(unfilled)
    return unsupported(
        f"{name}: {function.__name__} of {version} {' and '.join(changes)}; this adapter does not know that version"
    )
