"""Weights of a problem, in any format: drawn from a small pool of seeds and cached, since runs ask for the same shapes again."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from harness.candidates import layouts
from harness.problems.draws import Source, draws_of
from harness.problems.problem import NEWEST
from reference.certificate import is_full_float32, step_exponents
from reference.formats import NVFP4, Coded, Format, in_e4m3
from reference.nvfp4 import BLOCK

SMALL_ROWS = 8  # with the trap subnormal_scales, one row of the weights in so many has small scales only
NAN_ROWS = 8  # with the trap nan_scales: so few that no half of a block of the intermediate is NaN
ZERO_BLOCKS = 4  # with the trap zero_scales, one block of the weights in so many has a scale of zero
KEPT = 1 << 31
"""Elements of weights that may be cached: a byte each, half a one where they were packed, four where their values were asked
for."""
_kept: list[int] = []
_BLOCKS = 1 << 13  # squared at a time, so that they stay in a CPU's cache


@dataclass(frozen=True)
class Weights:
    """One GEMM's weights of all experts.

    Attributes:
        codes: `(experts, n, k)` uint8.
        block_scale: `(experts, n, k / block)` uint8.
        form: their format.
        known: deviation of the distribution that they were drawn from; None: it is measured.
    """

    codes: Tensor
    block_scale: Tensor
    form: Format = NVFP4
    known: float | None = None

    def in_e4m3(self) -> Weights:
        """Return them with such powers of two alone as a kernel can decode to E4M3 (reference.formats)."""
        return replace(self, block_scale=in_e4m3(self.block_scale))

    @cached_property
    def values(self) -> Tensor:
        """Codes times block scales, `(experts, n, k)` float32, exact."""
        return self.form.values(Coded(self.codes, self.block_scale))

    @cached_property
    def deviation(self) -> Tensor:
        """Root mean square of the values of each expert that are numbers, `(experts,)` float64 on the CPU."""
        if self.known is not None:
            return torch.full(self.codes.shape[:1], self.known, dtype=torch.float64)
        if self.form == NVFP4 and is_full_float32():
            return torch.stack([_mean_square(values) for values in self.values]).sqrt().cpu()
        return self.values.double().square().nanmean((1, 2)).sqrt().cpu()

    @cached_property
    def _stored(self) -> layouts.Pair:
        return layouts.stored(self.form, Coded(self.codes, self.block_scale))

    def operand(self) -> layouts.Pair:
        """Return them as the GEMM takes them: packed, and their scales, the padding zeros; the caller's own to write to."""
        packed, scales = self._stored
        return packed.clone(), scales if scales is None else scales.clone()

    def for_layer(self) -> tuple[Tensor, Tensor]:
        """Return them as masked_moe takes them: packed codes `(experts, n, k / 2)`, swizzled scales; the caller's own."""
        packed, scales = self.operand()
        return packed.permute(2, 0, 1), layouts.swizzled_bytes(scales).view(scales.dtype)

    @cached_property
    def steps(self) -> Tensor:
        """Grid step of each row, `(experts, n)`: see reference.certificate."""
        return step_exponents(self.values)


def _mean_square(values: Tensor) -> Tensor:
    """Return the mean square of NVFP4 values `(n, k)` that are numbers, `()` float64.

    The squares of a block add up to at most 16 * 144 quarters of a squared scale: 20 bits, which float32 holds in any order.
    NaN comes in whole blocks.
    """
    ones = values.new_ones(BLOCK)
    sums = [torch.mv(part.square(), ones) for part in torch.split(values.view(-1, BLOCK), _BLOCKS)]
    return torch.cat(sums).double().nanmean() / BLOCK


@lru_cache(maxsize=32)
def make_weights(
    experts: int,
    n: int,
    k: int,
    data: str,
    seed: int,
    device: str,
    *,
    version: int = NEWEST,
    form: Format = NVFP4,
    small_rows: bool = False,
    zero_blocks: bool = False,
    nan_rows: bool = False,
) -> Weights:
    """Return weights for one GEMM. Cached: treat them as read-only (rules check that candidates do).

    Args:
        experts: experts on this rank.
        n: rows of each expert's weights.
        k: their width.
        data: a key of harness.problems.problem.DATA.
        seed: of the numbers.
        device: torch device type.
        version: of the problem that they belong to.
        form: of the weights.
        small_rows: give every eighth row block scales that are E4M3 subnormals (bytes 1 to 7), as a checkpoint has them
            whose per-tensor scale was folded into its block scales (flashinfer#3932).
        zero_blocks: give every fourth block, by chance, the block scale zero and leave its codes; small_rows and this are
            of E4M3 scales.
        nan_rows: give one block of every eighth row the block scale NaN.
    """
    _make_room(experts * n * k)
    if version == 1 and (small_rows or zero_blocks) and not nan_rows:
        form = NVFP4  # as those problems have it
    elif form.scale != "e4m3":
        small_rows = zero_blocks = False
    options = {"small_rows": small_rows, "zero_blocks": zero_blocks, "nan_rows": nan_rows}
    last = next((name for name in reversed(options) if options[name]), "")
    number = seed * 1_000_003 + n * 1009 + k if version == 1 else seed
    draws = draws_of(version, f"weights {n} {k} {last}", number, device)
    if last:
        options[last] = False
        plain = make_weights(experts, n, k, data, seed, device, version=version, form=form, **options)
        return _changed(plain, last, draws)
    drawn = draws.weights((experts, n, k), data, form)
    return Weights(drawn.codes.to(device), drawn.block_scale.to(device), form, drawn.deviation)


def _make_room(elements: int) -> None:
    """Forget all weights before more are made than memory may hold: those of a real model take gigabytes."""
    if sum(_kept) + elements > KEPT:
        make_weights.cache_clear()
        _kept.clear()
    _kept.append(elements)


def _changed(plain: Weights, option: str, draws: Source) -> Weights:
    """Return weights with other block scales, sharing the codes with the plain ones."""
    scale, known = plain.block_scale.clone(), plain.known
    if option == "nan_rows":
        rows = scale[:, ::NAN_ROWS]
        place = draws.integers(0, rows.shape[2], *rows.shape[:2], 1)
        rows.scatter_(2, place.to(rows.device), plain.form.nan_scale)
    elif option == "zero_blocks":
        scale.masked_fill_((draws.integers(0, ZERO_BLOCKS, *scale.shape) == 0).to(scale.device), 0)
        known = known and known * math.sqrt(1 - 1 / ZERO_BLOCKS)
    else:
        rows = scale[:, ::SMALL_ROWS]
        rows.copy_(draws.integers(1, 8, *rows.shape, dtype=torch.uint8))
        known = known and known * math.sqrt(1 - 1 / SMALL_ROWS)
    return Weights(plain.codes, scale, plain.form, known)
