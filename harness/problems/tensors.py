"""The numbers of a problem: a pure function of its string, made on the candidate's device.

What there is one of for each expert, and the blocks of traps, are made on the host: the largest magnitude of each expert's
tokens is all that the device is waited for. Problems without a version are made on the CPU and moved.
"""

from __future__ import annotations

import math
import random
from functools import cached_property

import torch
from torch import Tensor

from harness.problems.draws import Source, draws_of
from harness.problems.problem import WEIGHT_SEEDS, Problem
from harness.problems.trap_writing import Places, blocks_of, draw_gates, draw_traps
from harness.problems.traps import TRAPS
from harness.problems.weights import ZERO_BLOCKS, Weights, make_weights
from reference.activations import Activation
from reference.formats import FORMATS
from reference.nvfp4 import SCALE_RANGE

POWERS = (
    (80, 96),
    (18, 24),
    (25, 70),
)  # of two, between which the traps large and small move the tokens of an expert
GAIN = (
    2.0**9
)  # of the first GEMM with the traps large and small: gates beyond +-88.7, an intermediate beyond 65,504
_GRID_ODD = (1, 3, 5, 7, 9, 11, 13)


def _grid_scale(experts: int, draws: Source) -> Tensor:
    """Return encode scales `(experts,)` float32: 28 different ones, a power of two over an odd number."""
    pairs = len(_GRID_ODD) * 4
    pair = draws.order(pairs)[torch.arange(experts) % pairs]
    return torch.ldexp(1 / torch.tensor(_GRID_ODD)[pair // 4].float(), pair % 4 + 3)


def _power_below(scale: Tensor, version: int) -> Tensor:
    """Return the largest powers of two that are not above scales, float32."""
    if version == 1:  # next to a power of two, the logarithm may round to the one above
        return torch.exp2(torch.log2(scale).floor())
    return torch.ldexp(torch.ones_like(scale), torch.frexp(scale)[1] - 1)


class ProblemTensors:
    """Tensors of one problem, each made when first asked for.

    Attributes:
        problem: what is described.
        device: torch device type.
        form: of the tokens and the intermediate when they are multiplied.
        weight_form: of the weights.
        way: the activation with a gate.
        masked_m: `(experts,)` int32.
        input_scale: `(experts,)` float32, encode scale of the tokens; distinct per expert, not 1.
        a2_scale: `(experts,)` float32, encode scale of the intermediate.
    """

    def __init__(
        self,
        problem: Problem,
        device: str = "cpu",
        activations: str = "nvfp4",
        weights: str = "nvfp4",
        gated: str = "silu",
        *,
        powers: bool = False,
    ) -> None:
        self.problem = p = problem
        self.device = device
        self.form, self.weight_form = FORMATS[activations], FORMATS[weights]
        self.way = Activation.of(gated)
        self._draws = draws = draws_of(p.version, "tensors", p.seed, device)
        self._traps = frozenset(name for name in p.extras if name in TRAPS)
        self.masked_m = torch.tensor(p.masked_m, dtype=torch.int32).to(device)
        # jitter keeps the scales distinct and off the value that exactly fills the range
        jitter = draws.fractions(2, p.experts, dtype=torch.float32) * 0.5 + 0.5
        self._gain = draws.fractions(p.experts, dtype=torch.float32) * 2 + 0.5  # deviation of the first GEMM
        if self.way.limit:  # one gate in three to none, by expert, lies beyond it
            self._gain *= self.way.limit / 3
        grid_scale = _grid_scale(p.experts, draws)
        apart = "magnitude_spread" in self._traps and p.experts > 1 and p.data != "grid"
        shape = (p.experts, p.capacity, p.hidden)
        self._deviation: Tensor | None  # of each expert's tokens from zero, where it is known
        x, self._deviation = draws.tokens(shape, p.data, grid_scale, apart=apart)
        places = Places.of(p.masked_m, p.hidden)
        if p.data == "grid":
            input_scale = grid_scale
        else:
            self._write_outliers(x, places)
            amax = x.abs().amax((1, 2)).float().cpu().clamp(min=1e-6)
            input_scale = SCALE_RANGE / amax * jitter[0]
        input_scale = self._at_other_magnitudes(x, input_scale)
        a2_scale = SCALE_RANGE / (3 * self._gain) ** 2 * jitter[1]
        if self.form.encoded:
            input_scale, a2_scale = (
                s * (self.form.encode_range / SCALE_RANGE) for s in (input_scale, a2_scale)
            )
        self._powers = powers
        if powers or any(TRAPS[name].ties for name in self._traps):
            input_scale, a2_scale = (_power_below(s, p.version) for s in (input_scale, a2_scale))
        x = x.to(self.layer_dtype)
        draw_traps(places, input_scale, self._traps, draws).store(blocks_of(x))
        self.x = x.to(device)
        self._scales = input_scale.float(), a2_scale.float()
        self.input_scale, self.a2_scale = (scale.to(device) for scale in self._scales)

    @property
    def layer_dtype(self) -> torch.dtype:
        """Type of the tokens, of what lies between the stages, and of the layer's output."""
        return self.form.layer_dtype

    def _at_other_magnitudes(self, x: Tensor, scale: Tensor) -> Tensor:
        """Move tokens with the traps large and small, in place, and the gain of the first GEMM; return the encode scales."""
        signs = [sign for trap, sign in (("large", 1), ("small", -1)) if trap in self._traps]
        if not signs:
            return scale
        draws = random.Random(f"magnitudes {self.problem}")
        victims = self._with_rows()
        draws.shuffle(victims)
        powers = torch.ones(self.problem.experts, dtype=torch.float64)
        for number, expert in enumerate(victims):
            sign = signs[number % len(signs)]
            powers[expert] = 2.0 ** (sign * draws.randint(*POWERS[number // len(signs) % len(POWERS)]))
            self._gain[expert] *= GAIN**sign
        x.mul_(powers.bfloat16().to(x.device).view(-1, 1, 1))
        if self._deviation is not None:
            self._deviation *= powers
        return scale / powers.float()

    def without_some_blocks(self, block_scale: Tensor) -> Tensor:
        """Return the tokens' block scales `(experts, capacity, k / 16)` uint8, some zero where the trap zero_scales is asked for."""
        if "zero_scales" not in self._traps or self.form.scale != "e4m3":
            return block_scale
        draws = draws_of(self.problem.version, "zero scales", self.problem.seed, self.device)
        zero = draws.integers(0, ZERO_BLOCKS, *block_scale.shape) == 0
        return block_scale.masked_fill(zero.to(block_scale.device), 0)

    def _with_rows(self) -> list[int]:
        """Return the experts that have a valid row."""
        return [expert for expert, rows in enumerate(self.problem.masked_m) if rows]

    def _write_outliers(self, x: Tensor, places: Places) -> None:
        """Make one block of each expert 100 times larger, in place."""
        if "outlier_block" not in self._traps:
            return
        for expert, rows in enumerate(self.problem.masked_m):
            if rows:
                row = self._draws.number(rows)
                places.blocks.add((expert, row, self._draws.number(places.columns)))
        if places.blocks:
            index = tuple(torch.tensor(sorted(places.blocks)).T.to(x.device))
            blocks = blocks_of(x)
            blocks[index] = blocks[index] * 100

    @cached_property
    def w1(self) -> Weights:
        """Weights of the first GEMM: `n = 2 * inter`, gate rows first (`inter` for relu2)."""
        p = self.problem
        n = p.inter if p.activation == "relu2" else 2 * p.inter
        return self._weights(n, p.hidden, p.seed % WEIGHT_SEEDS)

    @cached_property
    def w2(self) -> Weights:
        """Weights of the second GEMM: `n = hidden`, `k = inter`."""
        p = self.problem
        return self._weights(p.hidden, p.inter, p.seed % WEIGHT_SEEDS + WEIGHT_SEEDS)

    def _weights(self, n: int, k: int, seed: int) -> Weights:
        p = self.problem
        drawn = make_weights(
            p.experts, n, k, p.data, seed, self.device, version=p.version, form=self.weight_form,
            small_rows="subnormal_scales" in self._traps,
            zero_blocks="zero_scales" in self._traps,
            nan_rows="nan_scales" in self._traps,
        )  # fmt: skip
        return drawn.in_e4m3() if self.form.fp8 and self.weight_form.scale == "ue8m0" else drawn

    @cached_property
    def w1_alpha(self) -> Tensor:
        """`(experts,)` float32: 1 / (input encode scale * w1 encode scale), such that gate and up deviate by `gain`."""
        return self.w1_alpha_for(self.encoded_deviation)

    @property
    def encoded_deviation(self) -> Tensor:
        """How far each expert's tokens times their encode scale deviate from zero, `(experts,)` float64 on the host."""
        if self._deviation is not None:  # known, and the same wherever it is computed
            encode = self._scales[0].double() if self.form.encoded else 1.0
            return self._deviation * encode
        encoded = self.x.double().nan_to_num(0, 0, 0)
        if self.form.encoded:
            encoded *= self.input_scale.double().view(-1, 1, 1)
        return encoded.square().mean((1, 2)).sqrt().cpu()

    def w1_alpha_for(self, deviation: Tensor) -> Tensor:
        """Return the first GEMM's alphas for tokens that deviate so, `(experts,)` or `(1,)` float64."""
        return self._alpha(deviation, self.w1, self._gain)

    @cached_property
    def w2_alpha(self) -> Tensor:
        """`(experts,)` float32: 1 / (a2 encode scale * w2 encode scale), such that outputs deviate by about 1."""
        encode = self._scales[1] if self.form.encoded else 1
        return self._alpha(self._gain**2 * encode, self.w2, torch.ones_like(self._gain))

    def _alpha(self, operand_deviation: Tensor, weights: Weights, wanted: Tensor) -> Tensor:
        terms = weights.codes.shape[-1]
        limits = (1e-3, 1e9) if self.form.encoded else (1e-30, 1e30)  # encoded values have one magnitude
        got = operand_deviation.double().clamp(*limits) * weights.deviation * math.sqrt(terms)
        alpha = (wanted / got).float()
        alpha = torch.exp2(alpha.log2().round()) if self._powers else alpha
        return self._with_trapped_values(alpha).to(self.device)

    def _with_trapped_values(self, alpha: Tensor) -> Tensor:
        """Return alphas `(experts,)` with the traps that are written into them, in every other expert that has rows."""
        victims, seed = self._with_rows(), self.problem.seed
        chosen = victims[seed % 2 :: 2] or victims
        if "alpha_overflow" in self._traps:  # two in three results then stay finite
            largest = torch.finfo(getattr(torch, self.problem.out_dtype)).max
            alpha[chosen] = (alpha[chosen].double() * largest / self._gain[chosen]).clamp(max=3e38).float()
        if "alpha_subnormal" in self._traps:
            alpha[chosen] = torch.ldexp(1 + alpha[chosen].frac(), torch.tensor(-130))
        if "alpha_negative" in self._traps:
            alpha[chosen] *= -1
        if "alpha_zero" in self._traps and len(victims) > 1:
            zeros = [victims[(seed + number) % len(victims)] for number in range(min(2, len(victims) - 1))]
            alpha[zeros] = torch.tensor([0.0, -0.0])[: len(zeros)]
        # One that is taken for "no scale" by its place shows on the other experts. Unscaled, float16 would overflow.
        if "alpha_one" in self._traps and self.problem.out_dtype != "float16":
            alpha[[0, -1]] = 1.0
        if "alpha_specials" in self._traps:  # alpha_zero counts from the other end
            infinity = math.inf if seed % 4 < 2 else -math.inf
            for number, special in enumerate((math.nan, infinity, -infinity)[: max(len(victims) - 1, 0)]):
                alpha[victims[(seed - 1 - number) % len(victims)]] = special
        return alpha

    @cached_property
    def gate_up(self) -> Tensor:
        """`(experts, capacity, 2 * inter)` bfloat16, a drawn input of the activation stage, with the traps in it.

        A trap's value t is written as gate 32 and up t / 32: silu(32) is 32 in float32, so the product is t exactly.
        """
        p, way = self.problem, self.way
        gate_up = self._draws.gate_up((p.experts, p.capacity, 2 * p.inter), self._gain).to(self.layer_dtype)
        gate, up = (blocks_of(half) for half in gate_up.chunk(2, dim=-1))
        places, scale = Places.of(p.masked_m, p.inter), self._scales[1]
        written = draw_traps(places, scale, self._traps, self._draws)
        written.store(gate, lambda target: torch.full_like(target, 32))
        written.store(up, lambda target: torch.where(target.isnan(), target, target / 32 - way.beta))
        gates, ups = draw_gates(places, scale, self._traps, self._draws)
        gates.store(gate)
        ups.store(up)
        if way.interleave or way.up_first:
            gate_up = way.joined(*gate_up.chunk(2, dim=-1))
        return gate_up.to(self.device)
