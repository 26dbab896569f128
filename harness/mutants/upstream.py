"""What other projects accept: their criteria on a layer's final output, written anew from their published numbers.

Each takes the output and the reference, `(tokens, hidden)`, and says whether the project's test would pass. They are
here to be compared with; no rule uses them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Criterion:
    """One acceptance criterion.

    Attributes:
        name: its name in tables.
        title: what it accepts.
        source: where its numbers are published.
        accepts: (output, reference) float64 to whether a test with it passes.
    """

    name: str
    title: str
    source: str
    accepts: Callable[[Tensor, Tensor], bool]


def finite(got: Tensor) -> bool:
    """Return whether an output holds neither NaN nor infinity, which several tests assert first."""
    return bool(got.isfinite().all())


def share_within(got: Tensor, reference: Tensor, atol: float, rtol: float, share: float) -> bool:
    """Accept where at least `share` of all elements are off by less than `atol`, or by less than `rtol` of the reference."""
    error = (got - reference).abs()
    close = (error < atol) | (error / (reference.abs() + 1e-8) < rtol)
    return finite(got) and float(close.double().mean()) >= share


def share_within_sum(got: Tensor, reference: Tensor, atol: float, rtol: float, share: float) -> bool:
    """Accept where at least `share` of all elements are off by at most `atol + rtol * |reference|`."""
    return finite(got) and float(close(got, reference, atol, rtol).double().mean()) >= share


def close(got: Tensor, reference: Tensor, atol: float, rtol: float) -> Tensor:
    """Return which elements torch.testing.assert_close takes for close: NaN is close to nothing."""
    return (got - reference).abs() <= atol + rtol * reference.abs()


def spread(reference: Tensor, factor: float, least: float) -> float:
    """Return an absolute tolerance that grows with the reference: `factor` standard deviations, at least `least`."""
    return max(least, factor * float(reference.std()))


def matched(got: Tensor, reference: Tensor, tolerance: float, share: float) -> bool:
    """Accept where at most `1 - share` of all elements are off by more than `tolerance`, absolute and relative."""
    error = (got - reference).abs()
    wrong = (error > tolerance) & (error / (reference.abs() + 1e-8) > tolerance)
    return finite(got) and 1 - float(wrong.double().mean()) >= share


def calc_diff(got: Tensor, reference: Tensor) -> float:
    """Return DeepEP's difference of two tensors, 1 - 2 xy / (xx + yy) of both plus one; 0 where they are equal."""
    x, y = got + 1, reference + 1
    return float(1 - 2 * (x * y).sum() / (x * x + y * y).sum())


def cosine(got: Tensor, reference: Tensor) -> float:
    """Return the cosine of the angle between two tensors, flattened."""
    return float(torch.nn.functional.cosine_similarity(got.flatten(), reference.flatten(), dim=0))


_FLASHINFER = "flashinfer tests/moe/utils.py, check_accuracy"
_SGLANG = "sglang test/registered/moe/test_cutedsl_moe.py"
_VLLM = "vllm tests/kernels/moe/test_cutedsl_moe.py"
_DEEPEP = "DeepEP tests/legacy/test_low_latency.py and deep_ep/utils, calc_diff"

CRITERIA = (
    Criterion(
        "flashinfer 97 %",
        "97 % of elements within max(0.05, 1.5 standard deviations) or within 50 %",
        _FLASHINFER,
        lambda got, ref: share_within(got, ref, spread(ref, 1.5, 0.05), 0.5, 0.97),
    ),
    Criterion(
        "flashinfer 80 %",
        "80 % of elements within 0.1 + 85 %",
        "flashinfer tests/moe/test_trtllm_gen_fused_moe.py, check_accuracy; flashinfer-bench#178",
        lambda got, ref: share_within_sum(got, ref, 0.1, 0.85, 0.80),
    ),
    Criterion(
        "sglang 0.05",
        "every element within 0.05 + 5 %",
        f"{_SGLANG}, v1",
        lambda got, ref: bool(close(got, ref, 5e-2, 5e-2).all()),
    ),
    Criterion(
        "sglang 92.5 %",
        "92.5 % of elements within max(0.1, 3 standard deviations) or within 85 %",
        f"{_SGLANG}, v2",
        lambda got, ref: share_within(got, ref, spread(ref, 3.0, 0.1), 0.85, 0.925),
    ),
    Criterion(
        "vllm 0.1",
        "every element within 0.1 + 10 %",
        f"{_VLLM}, grouped GEMM",
        lambda got, ref: bool(close(got, ref, 1e-1, 1e-1).all()),
    ),
    Criterion(
        "vllm 0.2",
        "every element within 0.2 + 20 %",
        f"{_VLLM}, MoE",
        lambda got, ref: bool(close(got, ref, 2e-1, 2e-1).all()),
    ),
    Criterion(
        "flashinfer-bench 95 %",
        "95 % of elements within 0.01 absolute or 1 % relative",
        "flashinfer-bench DefaultEvaluator, eval_config of the MoE definitions",
        lambda got, ref: matched(got, ref, 1e-2, 0.95),
    ),
    Criterion(
        "deepep bf16",
        "calc_diff below 1e-5",
        _DEEPEP,
        lambda got, ref: calc_diff(got, ref) < 1e-5,
    ),
    Criterion(
        "deepep fp8",
        "calc_diff below 9e-4",
        _DEEPEP,
        lambda got, ref: calc_diff(got, ref) < 9e-4,
    ),
    Criterion(
        "cosine 0.95",
        "cosine similarity above 0.95",
        "vllm tests/kernels/moe/test_flashinfer_nvfp4_cosine_similarity.py",
        lambda got, ref: cosine(got, ref) > 0.95,
    ),
    Criterion(
        "cosine 0.97",
        "cosine similarity above 0.97",
        "flashinfer tests/gemm, mm_fp4 and group_gemm_fp4",
        lambda got, ref: cosine(got, ref) > 0.97,
    ),
)
