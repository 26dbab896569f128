"""How the two GEMMs of a layer add along k, and where the second one is cast, found through masked_moe alone.

Half of k takes back the other half, so that a sum is what the unit lost on the way. The second GEMM's sums are the output.
The first one's are seen through the second quantizer: each stands alone in its block, so that the output shows four
significant bits and the exponent, or two neighbouring values where the quantizer may round either way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor

from harness.candidates.traits import VARIES
from harness.identification.activation import ALPHA
from harness.identification.activation_pairs import ONE_GATE
from harness.identification.layer_call import ONE, Layer, Nvfp4, identity, picking, powers, set_gates
from harness.judging.context import declared_summation
from harness.judging.predicted import orders_of
from harness.records.finding import Finding
from reference.e4m3 import decode_e4m3
from reference.legal import Arithmetic
from reference.matrix_units import Summation
from reference.nvfp4 import BLOCK, decode_blocks
from reference.propagate import Interval, quantized_values

FIRST, SECOND = "masked_moe, gemm1", "masked_moe, gemm2"
_FIRST_WIDTHS, _SECOND_WIDTHS = (320, 7168), (320, 1088)  # of which parts of whole tiles are of odd sizes
_NEAR = (320, 576)  # of candidates that are too slow for large ones
_UNITS = (
    "sm_100 mxf4nvf4", "sm_90 f16", "exact", "exact 64", "exact 32", "exact 16", "sm_80 f16", "fma",
)  # fmt: skip
_PLAIN = ("exact", "exact 64", "exact 32", "exact 16", "fma")  # in orders that need no register, nor a tree
_ROWS, _COLUMNS = 16, 8
_NOT_TAKEN_BACK = 64  # one block of so many
_FEW = 8  # rows and columns that are tried first


@dataclass(frozen=True)
class Sums:
    """What a layer made of sums along k.

    Attributes:
        a: codes `(rows, k)` and block scales `(rows, k / 16)` of the rows, uint8.
        b: the same of the columns.
        accepts: which of some sums `(rows, columns)` float32 the output may come from, given every so manieth row and as
            many of the first columns.
    """

    a: tuple[Tensor, Tensor]
    b: tuple[Tensor, Tensor]
    accepts: Callable[[Tensor, int, int], Tensor]

    def fits(self, model: Summation, step: int, columns: int) -> bool:
        """Return whether a model explains every output, of every so manieth row and some columns."""
        return bool(self.accepts(_sums(model, self.a, self.b, step, columns), step, columns).all())


def _sums(
    model: Summation,
    a: tuple[Tensor, Tensor],
    b: tuple[Tensor, Tensor],
    step: int = 1,
    columns: int = _COLUMNS,
) -> Tensor:
    sides = (a[0][::step], a[1][::step]), (b[0][:columns], b[1][:columns])
    left, right = (
        model.operand(decode_blocks(codes, scale, torch.float64), decode_e4m3(scale))
        for codes, scale in sides
    )
    return model.matmul(left, right)


@dataclass(frozen=True)
class LayerSums:
    """What was found.

    Attributes:
        summation: of both GEMMs, or None where they add in different ways or in none that is known.
        findings: an answer a point.
    """

    summation: Summation | None
    findings: list[Finding]


def find_sums(layer: Layer, rounded: torch.dtype | None) -> LayerSums:
    """Return how both GEMMs add.

    Args:
        layer: which is asked.
        rounded: type that a sum of the first GEMM has when it is quantized; None: not known, so that it is not asked.
    """
    traits = layer.traits
    if traits.summation == VARIES or not traits.deterministic or not traits.place_invariant:
        return LayerSums(None, [])
    declared = declared_summation(traits)
    known = ([] if declared is None else [declared]) + models(_FIRST_WIDTHS[-1])
    seen = {k: second_sums(layer, k) for k in _padded(layer, _SECOND_WIDTHS)}
    second = _fitting(seen, known)
    findings = [*_findings(SECOND, seen, second, known), cast_finding(layer)]
    if rounded is None:
        return LayerSums(None, findings)
    seen = {k: first_sums(layer, k, rounded) for k in _padded(layer, _FIRST_WIDTHS)}
    both = _fitting(seen, second)
    if second:  # the same unit: a layer has one
        known = [model for model in known if model.name in {each.name for each in second}]
    first = both or _fitting(seen, known)
    return LayerSums(both[0] if both else None, [*_findings(FIRST, seen, first, known), *findings])


@cache
def models(k: int) -> list[Summation]:
    """Return all models that are tried, the simplest first, those with partial sums in bfloat16 last."""
    one_pass = [Summation(unit) for unit in _UNITS]
    orders = [order for plain in one_pass if plain.name != "exact" for order in orders_of(plain, k)[1:]]
    kept = [order for order in orders if order.name not in _PLAIN or not (order.promote or order.pairwise)]
    halves = [replace(order, partial="bfloat16") for order in kept if order.parts > 1 and not order.pairwise]
    return [*one_pass, *kept, *halves]


def _fitting(seen: dict[int, Sums], known: list[Summation]) -> list[Summation]:
    """Return the models that explain every output at every width; of partial sums in bfloat16 if no other does."""
    for kind in (False, True):
        left = [model for model in dict.fromkeys(known) if (model.partial != "float32") == kind]
        for k, sums in seen.items():
            for step, columns in ((_ROWS // _FEW, _FEW), (1, _COLUMNS)):
                orders = {model: (model.name, model.partial, model.order(k)) for model in left}
                single = {what: model for model, what in orders.items()}  # many orders are one at a small k
                fitting = {what for what, model in single.items() if sums.fits(model, step, columns)}
                left = [model for model in left if orders[model] in fitting]
        if left:
            return left
    return []


def _padded(layer: Layer, widths: Sequence[int]) -> list[int]:
    return sorted({layer.padded(k) for k in (widths if layer.traits.far else _NEAR)})


def _findings(
    stage: str, seen: dict[int, Sums], left: list[Summation], known: list[Summation]
) -> list[Finding]:
    """Return the answers about an order along k and about the type of partial sums."""
    where = ", ".join(f"{k:,}" for k in seen)
    evidence = f"{_ROWS * _COLUMNS} sums that cancel, at each k of {where}"
    if not left:
        found, modes = _by_width(seen, known)
        return [Finding(stage, "order along k", found, (), evidence, modes=modes)]
    names = [str(model) for model in left]
    return [
        Finding(stage, "order along k", names[0], tuple(names[1:]), evidence),
        Finding(stage, "partial sums", left[0].partial, (), evidence, "float32"),
    ]


def _by_width(seen: dict[int, Sums], known: list[Summation]) -> tuple[str, tuple[str, ...]]:
    """Return what explains the smallest k, and what the others, of the same unit; "" where one of them is not explained."""
    (least, sums), *others = seen.items()
    at_least = _fitting({least: sums}, known)
    unit = [model for model in known if model.name in {each.name for each in at_least}]
    at_others = [(k, _fitting({k: sums}, unit)) for k, sums in others]
    if not at_least or not all(models for _, models in at_others):
        return "", ()
    return str(at_least[0]), tuple(f"{models[0]} at k {k:,}" for k, models in at_others)


def second_sums(layer: Layer, k: int) -> Sums:
    """Return what the second GEMM makes of k columns of the activation, which the layer hands on from its tokens."""
    hidden = layer.padded(k + BLOCK)
    a, b = _operands(k, 0, window=True)
    tokens, w2 = Nvfp4.zeros(1, _ROWS, hidden), Nvfp4.zeros(1, hidden, k)
    tokens.codes[0, :, :k], tokens.block_scale[0, :, : k // BLOCK] = a
    w2.codes[0, :_COLUMNS], w2.block_scale[0, :_COLUMNS] = b
    _set_gate(tokens, k)
    out = layer.call(tokens, picking(1, k, hidden, gate_from=k), w2, alpha=torch.tensor((1 / ONE_GATE,)))
    stored = out[0, :, :_COLUMNS]
    return Sums(a, b, lambda sums, step, columns: sums.bfloat16() == stored[::step, :columns])


def first_sums(layer: Layer, k: int, rounded: torch.dtype) -> Sums:
    """Return what the first GEMM makes of k columns of tokens, seen through the second quantizer, one sum a block."""
    n = layer.padded(_COLUMNS * BLOCK)
    a, b = _operands(k, 1)
    tokens, w1 = Nvfp4.zeros(1, _ROWS, k), Nvfp4.zeros(1, 2 * n, k)
    tokens.codes[0], tokens.block_scale[0] = a
    _set_gate(tokens, 0)
    lone = torch.arange(_COLUMNS) * BLOCK
    set_gates(w1, lone, 0)
    w1.codes[0, n + lone], w1.block_scale[0, n + lone] = b
    scale = _encode_scale(a, b)
    out = layer.call(tokens, w1, identity(1, k, n), alpha=torch.tensor((1 / ONE_GATE,)), a2_scale=scale)
    stored = out[0, :, lone].double()

    def accepts(sums: Tensor, step: int, columns: int) -> Tensor:
        blocks = torch.zeros(*sums.shape, BLOCK, dtype=torch.float64)
        blocks[..., 0] = sums.to(rounded).double()
        legal = quantized_values(Interval(blocks.flatten(1), blocks.flatten(1)), scale[0], Arithmetic())
        low, high = (end[:, ::BLOCK].bfloat16().double() for end in (legal.low, legal.high))
        got = stored[::step, :columns]
        return (got >= low) & (got <= high)

    return Sums(a, b, accepts)


def _encode_scale(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> Tensor:
    """Return a power of two `(1,)` that gives what a unit loses a block scale of about 1."""
    lost = _sums(Summation("sm_90 f16"), a, b).abs()
    middle = lost[lost > 0].median() if bool((lost > 0).any()) else torch.tensor(6.0)
    return torch.exp2(-torch.frexp(middle / 6)[1].float()).view(1)


def cast_finding(layer: Layer) -> Finding:
    """Return whether the layer's output is rounded after it is multiplied by alpha: of sums that every order adds exactly."""
    k = layer.padded(64)
    hidden = layer.padded(k + BLOCK)
    a, b = _operands(k, 0)
    tokens, w2 = Nvfp4.zeros(1, _ROWS, hidden), Nvfp4.zeros(1, hidden, k)
    tokens.codes[0, :, : k // 2], w2.codes[0, :_COLUMNS, : k // 2] = (
        codes[:, : k // 2] for codes, _ in (a, b)
    )
    _set_gate(tokens, k)
    out = layer.call(
        tokens,
        picking(1, k, hidden, gate_from=k),
        w2,
        alpha=torch.tensor((1 / ONE_GATE,)),
        out_alpha=torch.tensor((ALPHA,)),
    )
    one = torch.full_like(a[1], ONE), torch.full_like(b[1], ONE)
    left, right = (
        decode_blocks(codes[:, : k // 2], scale[:, : k // 2 // BLOCK], torch.float32)
        for codes, scale in zip((a[0], b[0]), one, strict=True)
    )
    sums = left @ right.T
    answers = {
        "after alpha": (sums * ALPHA).bfloat16(),
        "before alpha": (sums.bfloat16().float() * ALPHA).bfloat16(),
    }
    fitting = [name for name, value in answers.items() if torch.equal(value, out[0, :, :_COLUMNS])]
    evidence = f"all {sums.numel():,} outputs of sums that every order adds exactly"
    return Finding(SECOND, "cast", fitting[0] if fitting else "", (), evidence, "after alpha")


def _set_gate(tokens: Nvfp4, at: int) -> None:
    """Set an element of the tokens to 256, which `picking` makes a gate of."""
    tokens.codes[..., at], tokens.block_scale[..., at // BLOCK] = 6, powers(torch.tensor(6))


def _operands(
    k: int, first: int, *, window: bool = False
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return codes and block scales of rows and columns: what half of k adds, the other half takes back.

    Of every fourth row a few blocks are not taken back: the sum is a small part of its halves, so that the type of partial
    sums shows. Every other row and column has block scales of about 1, the rest of all exponents. Each block of the rows
    has a code of 6. What is in blocks before `first` is zero. With `window` the last two rows and columns are of one
    instruction: two blocks that take back each other, and a product 2^34 times smaller.
    """
    draw = torch.Generator().manual_seed(k)
    blocks = k // BLOCK
    half = (blocks - first) // 2
    there = first + torch.arange(half)
    # in another order, so that the halves do not lose the same
    back = first + half + torch.randperm(half, generator=draw)

    def drawn(rows: int) -> tuple[Tensor, Tensor]:
        codes = torch.randint(0, 16, (rows, blocks, BLOCK), generator=draw, dtype=torch.uint8)
        near, far = (
            torch.randint(*ends, (rows, blocks), generator=draw, dtype=torch.uint8)
            for ends in ((48, 64), (8, 0x7F))
        )
        scale = torch.where(torch.arange(rows).unsqueeze(1) % 2 == 0, near, far)
        codes[:, :first], codes[:, first + 2 * half :] = 0, 0
        codes[:, back], scale[:, back] = codes[:, there], scale[:, there]
        return codes, scale

    (a, a_scale), (b, b_scale) = drawn(_ROWS), drawn(_COLUMNS)
    a[:, there, 0] |= 7
    a[:, back] = a[:, there] ^ 8
    some = back[::_NOT_TAKEN_BACK]
    a[3::4, some] ^= 8
    if window:
        for codes, scale in ((a, a_scale), (b, b_scale)):
            codes[-2:], scale[-2:] = 0, ONE
            codes[-2:, 4:6], scale[-2:, 4:6] = 7, 0x7E
            codes[-2:, 6, 1], scale[-2:, 6] = 1, torch.tensor((9, 11), dtype=torch.uint8)
        a[-2:, 5] = 15
        a[-2:, 6, 0] = 7  # where the columns have a zero: the block keeps its scale
    return (a.flatten(1), a_scale), (b.flatten(1), b_scale)
