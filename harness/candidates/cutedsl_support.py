"""Whether FlashInfer's CuteDSL path can run here, and what its code promises; for the three candidates that need it.

Cheap questions come first: FlashInfer takes seconds to import, so it is imported only where a usable device was found.
Paths are relative to flashinfer-python 0.7.2.post1.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import inspect
import os
import re
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.candidates.protocol import Traits
from harness.candidates.support import Support, supported, unsupported
from harness.candidates.taps import missing_parameters, unfilled_parameters
from harness.extras import install_hint

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

# What the quantizers and the GEMM are both written for (grouped_gemm_masked_wrapper.py:181-285). The wrapper would
# hand 12.x to the SM100 kernel as well (`major >= 10`), but that kernel needs tensor memory, which 12.x lacks.
CAPABILITIES = ((10, 0), (10, 3), (10, 7))

# distribution -> (import name, what it is for)
PACKAGES: dict[str, tuple[str, str]] = {
    "flashinfer-python": ("flashinfer", "FlashInfer's FP4 quantizers and masked grouped GEMM"),
    "nvidia-cutlass-dsl": ("cutlass", "the CuTe DSL compiler of the masked grouped GEMM"),
}

# function -> (module, parameters passed by position, parameters passed by keyword)
FUNCTIONS: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "scaled_fp4_grouped_quantize": ("flashinfer", ("a", "mask", "a_global_sf"), ()),
    "silu_and_mul_scaled_nvfp4_experts_quantize": ("flashinfer", ("a", "mask", "a_global_sf"), ()),
    "grouped_gemm_nt_masked": (
        "flashinfer.gemm",
        ("lhs", "rhs", "out", "masked_m"),
        ("ab_dtype", "sf_dtype", "c_dtype", "sf_vec_size", "sm_count", "alpha", "alpha_dtype"),
    ),
}


def path_support(name: str) -> Support:
    """Return whether FlashInfer's CuteDSL path can run here, on the current CUDA device.

    Args:
        name: the candidate's name, for the reason.
    """
    for distribution, (module, purpose) in PACKAGES.items():
        if importlib.util.find_spec(module) is None:
            return unsupported(
                f"{name} needs {distribution} ({purpose}), which is not installed; run: {install_hint('cutedsl')}"
            )
    device = capability_support(name)
    if not device:
        return device
    if os.environ.get("FLASHINFER_NVFP4_4OVER6") == "1":
        return unsupported(
            f"{name} cannot be judged with FLASHINFER_NVFP4_4OVER6=1: it makes the quantizers search between two "
            "scales a block, for which the harness has no set of legal codes; unset it"
        )
    for function in FUNCTIONS:
        found = function_support(function)
        if not found:
            return unsupported(f"{name}: {found.reason}")
    return supported()


def path_traits(
    *,
    store_rows: int = 128,
    activations: tuple[str, ...] = ("silu", "relu2"),
    hints: tuple[dict[str, Any], ...] = (),
) -> Traits:
    """Return what the path's code promises in this environment.

    k: the quantizers take multiples of 16 and the GEMM multiples of 32 (16-byte rows, grouped_gemm_masked_blackwell.py
    :2720), but nobody writes the scale columns between k/16 and the next multiple of 4, and the GEMM reads them; 64 is
    what `convert_sf_to_mma_layout` asks for (cute_dsl/utils.py:367). n: the GEMM alone takes multiples of 8; in a MoE n
    is also the second GEMM's k, so 64 as well.
    """
    # The C++ side compares with exactly "1" at every call and knows a second name (csrc/nv_internal/cpp/common/
    # envUtils.cpp:61 and 365).
    switches = ("FLASHINFER_DISABLE_FP4_QUANT_FAST_MATH", "TRTLLM_DISABLE_FP4_QUANT_FAST_MATH")
    exact = any(os.environ.get(switch) == "1" for switch in switches)
    return Traits(
        device="cuda",
        arithmetic="exact" if exact else "fast",
        accumulator_chunk=64,
        k_multiple=64,
        n_multiple=64,
        m_multiple=1,
        store_rows=store_rows,
        out_dtypes=("bfloat16", "float16", "float32"),
        activations=activations,
        deterministic=True,
        reads_strides=False,
        keeps_sign_of_zero=True,
        cuda_graph=True,
        hints=hints,
        min_experts=1,
    )


def load(name: str) -> Callable[..., Any]:
    """Return a function of FlashInfer after checking that it can be called as this harness calls it.

    Raises:
        RuntimeError: the package or the function is missing or has changed; the message is that of `support()`.
    """
    found = function_support(name)
    if not found:
        raise RuntimeError(found.reason)
    function: Callable[..., Any] = getattr(import_quietly(FUNCTIONS[name][0]), name)
    return function


def function_support(name: str) -> Support:
    """Return whether FlashInfer has the function `name` of `FUNCTIONS` with the parameters that are passed to it."""
    module, positional, by_keyword = FUNCTIONS[name]
    try:
        function = getattr(import_quietly(module), name, None)
    except Exception as error:  # noqa: BLE001 - a broken installation may raise anything, and that is the reason
        return unsupported(f"import {module} failed with {type(error).__name__}: {error}")
    if function is None:
        return unsupported(f"{module} {installed_version('flashinfer-python')} has no function {name}")
    order = tuple(inspect.signature(function).parameters)[: len(positional)]
    missing = missing_parameters(function, by_keyword)
    unfilled = unfilled_parameters(function, (*positional, *by_keyword))
    if order == positional and not missing and not unfilled:
        return supported()
    return unsupported(
        f"{module}.{name} of flashinfer-python {installed_version('flashinfer-python')} is called with positional "
        f"({', '.join(positional)}) and keyword ({', '.join(by_keyword) or 'none'}) arguments, but its signature is "
        f"{inspect.signature(function)}; this harness does not know that version"
    )


def version_warning(tested: Mapping[str, tuple[int, int]]) -> str:
    """Return one sentence if an engine's installed version is outside the tested series, else an empty string.

    Args:
        tested: distribution -> (major, minor).
    """
    outside = [
        f"{distribution} {version} (tested: {series[0]}.{series[1]})"
        for distribution, series in tested.items()
        if (version := installed_version(distribution)) and release(version)[:2] != series
    ]
    return f"outside the tested versions: {', '.join(outside)}" if outside else ""


def flashinfer_folder() -> Path | None:
    """Return the folder of the package `flashinfer` that an import would find, without importing it; None: there is none."""
    found = importlib.util.find_spec("flashinfer")
    return Path(found.origin).parent if found is not None and found.origin else None


def installed_version(distribution: str) -> str:
    """Return the installed version of a distribution, or an empty string."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""


def release(version: str) -> tuple[int, ...]:
    """Return the leading numbers of a version: "0.7.2.post1" gives (0, 7, 2)."""
    leading = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in leading.group().split(".")) if leading else ()


def import_quietly(module: str) -> Any:
    """Import a module with its own deprecation warnings silenced: under `-W error` they would look like a crash."""
    if module in sys.modules:
        return sys.modules[module]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(module)


def capability_support(name: str) -> Support:
    """Return whether the current CUDA device is one that FlashInfer's NVFP4 kernels of this path are written for."""
    import torch

    if not torch.cuda.is_available():
        return unsupported(
            f"{name} needs a CUDA device of compute capability {_wanted()}, and torch finds none"
        )
    capability = torch.cuda.get_device_capability()
    found = f"{capability[0]}.{capability[1]} ({torch.cuda.get_device_name()})"
    if capability in CAPABILITIES:
        if capability == (10, 7) and importlib.util.find_spec("cutlass.utils.rubin_helpers") is None:
            return unsupported(f"{name} needs nvidia-cutlass-dsl 4.8 or later for compute capability {found}")
        return supported()
    why = "its masked grouped GEMM needs tensor memory (tcgen05), which this device lacks"
    if capability[0] == 9:
        why = (
            "FlashInfer compiles its FP4 quantize kernels for it with empty bodies (`__CUDA_ARCH__ >= 1000`, "
            "quantization.cuh:661), so they return without writing and without an error, and the GEMM raises ValueError"
        )
    elif capability == (11, 0):
        why = (
            "FlashInfer's masked grouped GEMM refuses SM110 (ValueError, grouped_gemm_masked_wrapper.py:189)"
        )
    elif capability[0] < 9:
        why = "FlashInfer has no FP4 quantize kernels for it"
    return unsupported(f"{name} needs compute capability {_wanted()}, found {found}: {why}")


def _wanted() -> str:
    return ", ".join(f"{major}.{minor}" for major, minor in CAPABILITIES[:-1]) + " or {}.{}".format(
        *CAPABILITIES[-1]
    )
