"""What a candidate declares about itself. Each value is checked where it is made, so that a slip of the pen is no verdict."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

from harness.verdict import UsageError
from reference.activations import Activation
from reference.final_sum import FinalSum

MOST = 8192
"""Largest multiple, chunk or number of rows that means anything: problems reach no further in any extent."""
ANY_ROW = 1 << 14
"""As store_rows: every row of an expert with rows may be written, since no problem has a larger capacity."""
VARIES = "varies"
"""As summation: the order of the additions depends on what no description of it says, so that no bits are demanded."""
_MOST = {
    "min_experts": 256,
    "max_experts": 1 << 16,
    "ranks": 64,
    "store_rows": ANY_ROW,
}  # problems have 256 experts at most
_LEAST = {
    "accumulator_chunk": 1,
    "k_multiple": 1,
    "n_multiple": 1,
    "m_multiple": 1,
    "store_rows": 1,
    "output_alignment": 1,
    "min_experts": 1,
    "max_experts": 0,
    "ranks": 0,
    "most_tokens": 0,
    "most_topk": 0,
}
_KNOWN = {
    "activation_format": (
        "nvfp4", "nvfp4_46", "bf16", "fp16", "fp8", "fp8_token", "fp8_128", "mxfp8", "mxfp8_up", "mxfp4", "mxfp4_up",
    ),
    "weight_format": ("nvfp4", "nvfp4_46", "mxfp4"),
    "arithmetic": ("fast", "exact", "real"),
    "out_dtypes": ("bfloat16", "float16", "float32"),
    "unrounded": ("gemm1", "hidden"),
    "transports": ("bf16", "fp8", "nvfp4", "fp8-rounded", "fp8-ue8m0"),
    "combine_transports": ("bf16", "logfmt"),
}  # fmt: skip
_SETS = {
    "hints": "dicts of keyword arguments",
    "deviations": 'texts such as "ties: away from zero"',
    "activations": 'one such as "silu" or "silu; limit 10", "relu2", or both',
    "hidden_sizes": "multiples of 128",
    "shapes": "experts, hidden and inter, three whole numbers each, as the other traits allow them",
}
_MAY_BE_EMPTY = {"unrounded"}
_ONE_OF = ("activation_format", "weight_format", "arithmetic")
_TEXTS = {
    "device": 'torch device type such as "cuda"',
    "summation": 'text such as "sm_90 f16; parts 2"',
    "final_sum": 'text such as "slots" or "any; weight on rows; rounded each step"',
}


@dataclass(frozen=True)
class Traits:
    """What a candidate declares about itself. The defaults describe FlashInfer's CuteDSL path on Blackwell.

    A value that cannot be is refused with UsageError.

    Attributes:
        device: torch device type that its tensors live on.
        activation_format: of the first operand of masked_grouped_gemm, and so of what the quantizers return: "nvfp4", and
            "nvfp4_46" with block scales of amax / 6 or amax / 4;
            "bf16" and "fp16" as they are; E4M3 with a scale of each expert, "fp8", of each token, "fp8_token", or of each
            128 channels, "fp8_128"; "mxfp8" and "mxfp4", and "mxfp8_up" and "mxfp4_up" with E8M0 scales that are rounded
            up (reference.formats).
        weight_format: of the second one: "nvfp4", "nvfp4_46" or "mxfp4".
        arithmetic: how a block scale and the codes are computed: "fast" (approximate reciprocals, each free by one unit
            in the last place), "exact" (correctly rounded float32 reciprocals, one legal value), "real" (rounding of
            the real number, one legal value). See docs/bounds.md.
        accumulator_chunk: products that enter the accumulator between two roundings (64: one tensor-core instruction).
        summation: how masked_grouped_gemm adds along k, such as "sm_100 mxf4nvf4" or "sm_90 f16; parts 2"
            (reference.matrix_units.Summation). It is confirmed by probes before its bits are demanded, through
            masked_moe where there is nothing else. "": the probes look for it. "varies": no bits are demanded.
        k_multiple, n_multiple, m_multiple: extents must be multiples of these, else the candidate may refuse.
        store_rows: rows that one store covers; rows from masked_m[e] to the next multiple of this may be written.
        out_dtypes: output types of masked_grouped_gemm.
        output_alignment: the address of masked_grouped_gemm's output is a multiple of so many bytes. A slice of a larger
            tensor starts anywhere, a fresh allocation at a multiple of 64 (CPU) or 512 (CUDA).
        activations: values of masked_moe's `activation`: "silu" or another one with a gate, which silu_mul_quantize_grouped
            applies too, and "relu2" (reference.activations: "swigluoai", "silu; limit 10; interleave 16").
        deterministic: two runs on the same input are bit-identical.
        place_invariant: a row's bits do not depend on its expert's number, its place among the rows or the capacity
            (False for stream-k and the like, which split the reduction by place).
        reads_strides: honours the strides of its operands (False: reads raw memory in the canonical layout, so a
            tensor in another layout must be refused).
        keeps_sign_of_zero: stores -0.0 as code 0b1000, as the hardware's conversion does.
        keeps_subnormals: takes block scales, elements and alphas below the smallest normal number as they are (False: may
            flush them to zero, so that none is drawn).
        least_scale: of a token, that its quantizer stores: tokens that need a smaller one are out of its contract.
        most_alpha: alphas of a layer from this one on are out of its contract, as tokens are that need them; 0 for no limit.
        finite_only: NaN and infinity, in inputs and in results, are not part of its contract: none is drawn.
        power_scales: takes alphas and encode scales that are powers of two: weights are rounded to 16 bits with them, or hold
            them in their block scales.
        complete_only: checkpoints that lack a scale are not part of its contract: load_experts need not refuse them.
        alpha_required: masked_grouped_gemm refuses None for `alpha`.
        deviations: what it does otherwise than the contract and means to, each as `harness identify` words it, point and
            finding: "ties: away from zero", "accumulator: 14 bits". It is judged by that, and the verdict says so.
        unrounded: values of the layer that it keeps in float32 where the path rounds them to bfloat16: "gemm1", the first
            GEMM's output (masked_moe applies SwiGLU to the accumulators), "hidden", what the activation hands to the second
            quantization (of silu_mul_quantize_grouped as well).
        cuda_graph: can be captured in a CUDA graph.
        hints: sets of extra keyword arguments of masked_grouped_gemm that must not change a result (tile shapes,
            numbers of SMs, expected rows).
        min_experts, max_experts: fewest and most experts that it accepts; 0 for no limit above.
        canary: fast enough for `harness check` to ask the canary its questions through it.
        ranks: processes that dispatch and combine run over: a problem has a divisor of them as ranks. 0: as many as it
            draws, simulated in one process.
        transports: what dispatch can send: "bf16", "fp8", "nvfp4"; "fp8-rounded" and "fp8-ue8m0" only where declared.
        combine_transports: how combine can bring rows back: "bf16"; "logfmt" only where declared.
        most_tokens: that a rank sends; 0 for no limit.
        hidden_sizes: widths of tokens that dispatch and combine take; () for any that the alignments allow.
        shapes: experts, hidden and inter of problems, of a kernel that is compiled for each: a run draws no others. () for any
            that the alignments allow. What reaches far takes the nearest; --shapes and --problem are taken as they are.
        final_sum: how routed_moe adds a token's rows (reference.final_sum): "slots", in their order, in float32, rounded once;
            "any; weight on rows; rounded each step" of atomic additions in the output's type.
        one_a2_scale: routed_moe takes one encode scale of the intermediate for all experts, not one for each.
        most_topk: experts of a token that routed_moe takes at most; 0 for no limit.
        far: fast enough for problems that reach far: 256 experts, capacity 8,192, k 7,168 (harness.problems.reach).
    """

    device: str = "cuda"
    activation_format: str = "nvfp4"
    weight_format: str = "nvfp4"
    arithmetic: str = "fast"
    accumulator_chunk: int = 64
    summation: str = ""
    k_multiple: int = 64
    n_multiple: int = 64
    m_multiple: int = 1
    store_rows: int = 128
    out_dtypes: tuple[str, ...] = ("bfloat16", "float16", "float32")
    output_alignment: int = 16
    activations: tuple[str, ...] = ("silu", "relu2")
    deterministic: bool = True
    place_invariant: bool = True
    reads_strides: bool = False
    keeps_sign_of_zero: bool = True
    keeps_subnormals: bool = True
    least_scale: float = 0.0
    most_alpha: float = 0.0
    finite_only: bool = False
    power_scales: bool = False
    complete_only: bool = False
    alpha_required: bool = False
    deviations: tuple[str, ...] = ()
    unrounded: tuple[str, ...] = ()
    cuda_graph: bool = True
    hints: tuple[dict[str, Any], ...] = ()
    min_experts: int = 1
    max_experts: int = 0
    canary: bool = True
    ranks: int = 0
    transports: tuple[str, ...] = ("bf16", "fp8", "nvfp4")
    combine_transports: tuple[str, ...] = ("bf16",)
    most_tokens: int = 0
    hidden_sizes: tuple[int, ...] = ()
    shapes: tuple[tuple[int, int, int], ...] = ()
    final_sum: str = "slots"
    one_a2_scale: bool = False
    most_topk: int = 0
    far: bool = True

    def __post_init__(self) -> None:
        _check(self)

    @property
    def width_multiple(self) -> int:
        """What hidden and inter are multiples of: each is the k of one GEMM and sets the n of the other."""
        return math.lcm(self.k_multiple, self.n_multiple, 16, Activation.of(self.gated).interleave or 1)

    @property
    def gated(self) -> str:
        """The activation with a gate, "silu" of a candidate that has none."""
        return next((text for text in self.activations if text != "relu2"), "silu")

    @property
    def formats(self) -> tuple[str, str]:
        """Of activations and weights."""
        return self.activation_format, self.weight_format

    @property
    def sums_in_order(self) -> bool:
        """Whether two equal calls of routed_moe give the same bits."""
        return self.deterministic and FinalSum.of(self.final_sum).fixed

    @property
    def without_scales(self) -> bool:
        """Whether the layer cannot be handed quantized tokens: they have no scales, or are multiplied by weights before."""
        weighted = FinalSum.of(self.final_sum).weight == "tokens"
        return weighted or self.activation_format in {"bf16", "fp16", "fp8"}

    def at_most_experts(self, wanted: int) -> int:
        """Return a number of experts, or the most that the candidate accepts."""
        return min(wanted, self.max_experts or wanted)


def _check(traits: Traits) -> None:
    """Refuse what cannot be declared.

    Raises:
        UsageError: the first such trait, what it must be and what it is.
    """
    for name in (field.name for field in fields(traits)):
        if wanted := _wanted(name, getattr(traits, name)):
            raise UsageError(f"Traits: {name} must be {wanted}, got {_shown(getattr(traits, name))}")
    if len(traits.activations) - ("relu2" in traits.activations) > 1:
        raise UsageError(
            f"Traits: activations must be at most one with a gate, and relu2, got {_shown(traits.activations)}"
        )
    block = 128 if traits.activation_format == "fp8_128" else 32 if "mxfp" in str(traits.formats) else 1
    if traits.k_multiple % block:
        raise UsageError(
            f"Traits: k_multiple must be a multiple of {block}, the block of {' with '.join(traits.formats)}, "
            f"got {traits.k_multiple}"
        )
    for shape in traits.shapes:
        experts, *widths = shape
        fits = traits.min_experts <= experts == traits.at_most_experts(experts)
        if not fits or any(width % traits.width_multiple for width in widths):
            raise UsageError(
                f"Traits: shapes must hold hidden and inter that are multiples of {traits.width_multiple} and experts that "
                f"it accepts, got {_shown(shape)}"
            )
    if 0 < traits.max_experts < traits.min_experts:
        raise UsageError(
            f"Traits: max_experts must be 0, for no limit, or at least min_experts, which is {traits.min_experts}, "
            f"got {traits.max_experts}"
        )


def _wanted(name: str, value: Any) -> str:
    """Return what a trait must be, or "" where it is that."""
    if name in _LEAST or name in ("least_scale", "most_alpha"):
        return _wanted_number(name, value)
    if name in _SETS:
        return _wanted_set(name, value)
    if name in _TEXTS:
        return _wanted_text(name, value)
    if name in _ONE_OF:
        return "" if value in _KNOWN[name] else f"one of {', '.join(_KNOWN[name])}"
    if name in _KNOWN:
        return _wanted_names(name, value)
    return "" if isinstance(value, bool) else "True or False"


def _no_activation(text: str) -> str:
    """Return why a text is no activation, or ""."""
    try:
        Activation.of(text)
    except ValueError as error:
        return str(error)
    return ""


def _wanted_text(name: str, value: Any) -> str:
    why = ""
    if isinstance(value, str) and name == "final_sum":
        try:
            FinalSum.of(value)
        except ValueError as error:
            why = f": {error}"
    fitting = isinstance(value, str) and (value or name == "summation") and not why
    return "" if fitting else f"a {_TEXTS[name]}{why}"


def _wanted_set(name: str, value: Any) -> str:
    def fits(each: Any) -> bool:
        if name == "hidden_sizes":
            return isinstance(each, int) and not isinstance(each, bool) and each > 0 and each % 128 == 0
        if name == "shapes":
            return (
                isinstance(each, tuple | list)
                and len(each) == 3
                and all(type(n) is int and n > 0 for n in each)
            )
        if name == "activations":
            return isinstance(each, str) and not _no_activation(each)
        if name == "deviations":
            return isinstance(each, str) and ": " in each
        return isinstance(each, dict) and all(isinstance(key, str) for key in each)

    some = bool(value) or name != "activations"
    fitting = isinstance(value, tuple | list) and some and all(map(fits, value))
    return "" if fitting else f"a tuple of {_SETS[name]}"


def _wanted_number(name: str, value: Any) -> str:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if name == "most_alpha":
        return "" if is_number and 0 <= value < math.inf else "a number that is not negative"
    if name == "least_scale":
        return "" if is_number and 0 <= value < 1 else "a number from 0 to below 1"
    if isinstance(value, bool) or not isinstance(value, int):
        return "a whole number"
    if value < _LEAST[name]:
        return f"at least {_LEAST[name]}"
    most = _MOST.get(name, MOST)
    return f"at most {most:,}" if value > most else ""


def _wanted_names(name: str, value: Any) -> str:
    known = ", ".join(_KNOWN[name])
    if not isinstance(value, tuple | list) or any(each not in _KNOWN[name] for each in value):
        return f"a tuple of some of {known}"
    return "" if value or name in _MAY_BE_EMPTY else f"one or more of {known}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
