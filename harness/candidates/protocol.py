"""What a candidate is: the stages of a masked NVFP4 MoE in FlashInfer's calling convention and physical layouts.

A candidate is any object with the methods below; every stage may be missing. Shapes use these letters: `l` experts on
this rank, `m` capacity (rows per expert), `k` reduction extent, `n` output extent, `rm = ceil(m / 128)`,
`rk = ceil(k / 64)`. "Logical (m, k, l)" means that the tensor is a permuted view of a contiguous (l, m, k) one, as the
kernels expect it.

Stages
    quantize_grouped(x, masked_m, global_scale_enc) -> (packed, block_scale)
        x (l, m, k) bfloat16; masked_m (l,) int32; global_scale_enc (l,) float32, 448*6/amax.
        packed uint8 logical (m, k/2, l), even element in the low nibble; block_scale float8_e4m3fn logical
        (32, 4, rm, 4, rk, l), physical (l, rm, rk, 32, 4, 4). Rows at or past masked_m[e] are undefined. The next
        call may overwrite what this one returned. Addresses of all tensors are multiples of 16 bytes.
    silu_mul_quantize_grouped(gate_up, masked_m, global_scale_enc) -> (packed, block_scale)
        gate_up (l, m, 2k) bfloat16, gate half first; result as above for k, of bf16(silu(gate) * up).
    masked_grouped_gemm(a, a_scale, b, b_scale, out, masked_m, alpha) -> None
        a uint8 logical (m, k/2, l), b uint8 logical (n, k/2, l), scales as above; out logical (m, n, l), written in
        place; alpha (l,) float32 or None. Rows past masked_m[e] up to the end of their 128-row tile may be written.
    masked_moe(hidden_states, input_global_scale, w1, w1_blockscale, w1_alpha, w2, a2_global_scale, w2_blockscale,
               w2_alpha, masked_m, activation="silu") -> (l, m, k) bfloat16
        hidden_states: (x, None), or the prequantized pair; the arguments of SGLang's flashinfer_cutedsl_moe_masked:
        w1 uint8 (l, 2n, k/2), [gate, up]; w2 uint8 (l, k, n/2); block scales float8_e4m3fn swizzled 128x4,
        (l, round_up(rows, 128), round_up(columns / 16, 4)).

    routed_moe(hidden_states, topk_idx, topk_weights, input_global_scale, w1, w1_blockscale, w1_alpha, w2, a2_global_scale,
               w2_blockscale, w2_alpha, num_experts, local_expert_offset=0, out=None, activation="silu") -> (tokens, k)
        hidden_states: (x (tokens, k) bfloat16, None), or a quantized pair, packed codes (tokens, k/2) and linear block scales
        (tokens, k/16), with input_global_scale None; else that is (1,), one for all tokens. topk_idx (tokens, topk) int32,
        ids of all num_experts experts, distinct in a token, -1 for none; the l experts here are those from
        local_expert_offset on, and slots of others count for nothing. topk_weights (tokens, topk) float32. Weights as those
        of masked_moe. A token's rows are added as Traits.final_sum says, into `out` where it is given, which is then what is
        returned. A token without an expert here is zero; of a sum onto it, `out` keeps what it held. The same expert twice
        in a token is refused, or counts twice.

Other formats (Traits.activation_format, Traits.weight_format; reference.formats), in what quantizers return and in what
masked_grouped_gemm takes
    bf16, fp16: the operand is logical (m, k, l) of that type and its scales are None; quantize_grouped returns the tokens as
        they are. With fp16 tokens, gate_up, the intermediate and the layer's output are float16.
    fp8, fp8_token, fp8_128, mxfp8: E4M3 bytes, uint8, logical (m, k, l). Scales: of fp8 None, global_scale_enc being
        448/amax; of fp8_token float32 (l, m, 1), the epilogue's factor of each row; of fp8_128 float32 (l, m, k/128).
    mxfp8, mxfp4: blocks of 32, rk = ceil(k / 128), block scales E8M0, uint8, logical and physical as above.
    nvfp4_46: as NVFP4, with block scales of amax / 6 or amax / 4, global_scale_enc being 256*6/amax.
    Of a format without encode scales global_scale_enc is ones, and alpha holds no encode scale of it.

Other activations (Traits.activations; reference.activations)
    The one with a gate is what silu_mul_quantize_grouped applies and what masked_moe gets as `activation`; the columns of
    gate_up, and the rows of w1, lie as it says.

Stages of the layer around them; lists have one entry a rank, which is simulated or a process (harness.candidates.
over_ranks); definitions in reference.routing and reference.loading
    route_topk(logits, topk, *, normalize=True) -> (topk_idx, topk_weights)
        logits (tokens, experts) float32; topk_idx (tokens, topk) int64, distinct; topk_weights (tokens, topk) float32:
        softmax over all experts, then top-k, divided by their sum if `normalize`. Slots may come in any order.
    dispatch(x, topk_idx, experts, max_tokens, *, transport="bf16", global_scale_enc=None) -> list[Dispatched]
        x: per rank (tokens, hidden) bfloat16; topk_idx: per rank (tokens, topk) int64, -1 for none. Rank r owns experts
        [r * experts / ranks, (r + 1) * experts / ranks) with ranks * max_tokens rows each. Transport "bf16", "fp8" (e4m3
        and float32 scales per 128 channels; "fp8-rounded" powers of two, "fp8-ue8m0" their exponents, uint8, both only where
        traits declare them) or "nvfp4" (packed codes and linear block scales, one encode scale for all).
        Rows of one source rank are contiguous within an expert; order of ranks and order within a rank are free.
    combine(y, dispatched, topk_idx, topk_weights, *, transport="bf16") -> list of (tokens, hidden) bfloat16
        y: per rank (local experts, capacity, hidden) bfloat16; float32 sum over slots in order, one rounding. Transport "bf16",
        or "logfmt" (the rows as reference.logfmt makes them) where traits declare it: no other candidate gets the argument.
    load_experts(checkpoint, experts) -> dict of masked_moe's arguments input_global_scale, w1, w1_blockscale, w1_alpha,
               w2, a2_global_scale, w2_blockscale, w2_alpha
        checkpoint: one layer's ModelOpt tensors, all experts; experts: range of those on this rank. w1_alpha is (l,), or
        (l, 2) of a kernel that takes one for gate and one for up.

Weights in an order of the kernel's own, which an engine makes once when it loads
    prepare(b, b_scale, alpha) -> dict of what multiply_prepared takes
        arguments as those of masked_grouped_gemm. Its tensors have the experts first, or hold what is common to all
        experts; anything else in it (shapes, a configuration) is the same for all weights of these extents and formats.
    multiply_prepared(a, a_scale, prepared, out, masked_m, **hints) -> None
        masked_grouped_gemm on what prepare returned. No stage: `harness.candidates.prepared.PreparedGemm` makes
        masked_grouped_gemm of the two, which is judged.
    route_prepared(hidden_states, topk_idx, topk_weights, first, second, local_expert_offset, out, activation) -> None
        routed_moe on what prepare returned of w1 and of w2, into out. Likewise: `PreparedRouted` makes routed_moe of them.
        May return a RoutedTaps: what both GEMMs stored, which is then judged GEMM by GEMM (harness.candidates.taps).

Everything else is optional: `name`, `support()`, `start_ranks()` (of ranks that are processes), `load_slice(checkpoint,
experts, place, slices)` (as load_experts, of a rank that has one slice of inter: an engine's own sharding),
`load_redundant(checkpoint, slots, places)` (of a rank with some slots of a layer whose slot s holds the expert places[s]),
`compile_ahead()` (called once before anything is judged or
timed), `modes` and the constructor's argument `mode` (ways to compute, `NAME:MODE` on a command line), `asked` and `ran()`
(what was asked of the package by name, and which kernels ran since the last call of it: harness.candidates.witness),
`place_topk(topk_idx, places, rank, ranks)` (the slots, int64, that a rank's tokens go to, by each way of choosing), `traits`, `reciprocal(x)` (the
rcp.approx.ftz that its quantizers use, where it is known bit for bit: 1 / x up to one unit) and `warning` (a sentence for the record).

A candidate inherits nothing. Each stage has a type below, of the same name; one line a stage, anywhere in your code, and
`mypy --strict` checks names, types and order of its arguments and what it returns:

    quantize: QuantizeGrouped = MyKernel().quantize_grouped
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from harness.candidates.traits import Traits as Traits  # noqa: PLC0414 - a part of the protocol
from harness.verdict import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from harness.candidates.support import Support
    from reference.routing import Dispatched

STAGES = ("quantize_grouped", "silu_mul_quantize_grouped", "masked_grouped_gemm", "masked_moe")
ROUTED = "routed_moe"
WEIGHT_STAGES = ("prepare",)
LAYER_STAGES = ("route_topk", "dispatch", "combine", "load_experts")
ALL_STAGES = (*STAGES, ROUTED, *WEIGHT_STAGES, *LAYER_STAGES)


@runtime_checkable
class Candidate(Protocol):
    """The one method every candidate has; stages are looked up by name (see the module's docstring)."""

    def support(self) -> Support:
        """Return whether it can run here, with the reason if not."""


class QuantizeGrouped(Protocol):
    """quantize_grouped: tokens to NVFP4."""

    def __call__(self, x: Tensor, masked_m: Tensor, global_scale_enc: Tensor) -> tuple[Tensor, Any]:
        """Return (packed, block_scale)."""


class SiluMulQuantizeGrouped(Protocol):
    """silu_mul_quantize_grouped: silu(gate) * up to NVFP4."""

    def __call__(self, gate_up: Tensor, masked_m: Tensor, global_scale_enc: Tensor) -> tuple[Tensor, Any]:
        """Return (packed, block_scale)."""


class MaskedGroupedGemm(Protocol):
    """masked_grouped_gemm: alpha * a @ b.T of every expert's valid rows; hints (`Traits.hints`) are further keywords."""

    def __call__(
        self,
        a: Tensor,
        a_scale: Tensor,
        b: Tensor,
        b_scale: Tensor,
        out: Tensor,
        masked_m: Tensor,
        alpha: Tensor | None,
    ) -> None:
        """Write into out."""


class MaskedMoe(Protocol):
    """masked_moe: the layer in one call."""

    def __call__(
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
        """Return the layer's output."""


class Prepare(Protocol):
    """prepare: weights to the order of the kernel's own."""

    def __call__(self, b: Tensor, b_scale: Tensor, alpha: Tensor | None) -> dict[str, Any]:
        """Return what multiply_prepared takes."""


class RoutedMoe(Protocol):
    """routed_moe: tokens, their experts and weights in, tokens out."""

    def __call__(
        self,
        hidden_states: tuple[Tensor, Tensor | None],
        topk_idx: Tensor,
        topk_weights: Tensor,
        input_global_scale: Tensor | None,
        w1: Tensor,
        w1_blockscale: Tensor,
        w1_alpha: Tensor,
        w2: Tensor,
        a2_global_scale: Tensor,
        w2_blockscale: Tensor,
        w2_alpha: Tensor,
        num_experts: int,
        local_expert_offset: int = 0,
        out: Tensor | None = None,
        activation: str = "silu",
    ) -> Tensor:
        """Return the layer's output."""


class RouteTopk(Protocol):
    """route_topk: tokens to their experts."""

    def __call__(self, logits: Tensor, topk: int, *, normalize: bool = True) -> tuple[Tensor, Tensor]:
        """Return (topk_idx, topk_weights)."""


class Dispatch(Protocol):
    """dispatch: tokens to the rows of their experts."""

    def __call__(
        self,
        x: list[Tensor],
        topk_idx: list[Tensor],
        experts: int,
        max_tokens: int,
        *,
        transport: str = "bf16",
        global_scale_enc: Tensor | None = None,
    ) -> list[Dispatched]:
        """Return what each rank received."""


class Combine(Protocol):
    """combine: the experts' rows back to their tokens."""

    def __call__(
        self,
        y: list[Tensor],
        dispatched: list[Dispatched],
        topk_idx: list[Tensor],
        topk_weights: list[Tensor],
        *,
        transport: str = "bf16",
    ) -> list[Tensor]:
        """Return each rank's tokens."""


class LoadExperts(Protocol):
    """load_experts: a checkpoint's tensors to masked_moe's weight arguments."""

    def __call__(self, checkpoint: Mapping[str, Tensor], experts: range) -> dict[str, Tensor]:
        """Return the arguments by name."""


def stages_of(candidate: Any) -> list[str]:
    """Return the names of the stages that the candidate implements: the kernels', then those around them."""
    return [stage for stage in ALL_STAGES if callable(getattr(candidate, stage, None))]


def traits_of(candidate: Any) -> Traits:
    """Return the candidate's declared traits, or the defaults.

    Raises:
        UsageError: they are no Traits.
    """
    traits = getattr(candidate, "traits", None)
    if traits is None:
        return Traits()
    if not isinstance(traits, Traits):
        raise UsageError(f"candidate.traits must be a harness.Traits, got {type(traits).__name__}")
    return traits
