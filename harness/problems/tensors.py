"""The numbers of a problem: a pure function of its string, made on the CPU and moved to the candidate's device."""

from __future__ import annotations

import math
import random
from functools import cached_property

import torch
from torch import Tensor

from harness.problems.problem import WEIGHT_SEEDS, Problem
from harness.problems.trap_writing import write_gates, write_traps
from harness.problems.traps import TRAPS
from harness.problems.weights import ZERO_BLOCKS, Weights, block_gains, grid_codes, make_weights
from reference.activations import Activation
from reference.formats import FORMATS
from reference.nvfp4 import BLOCK, SCALE_RANGE

POWERS = (
    (80, 96),
    (18, 24),
    (25, 70),
)  # of two, between which the traps large and small move the tokens of an expert
GAIN = (
    2.0**9
)  # of the first GEMM with the traps large and small: gates beyond +-88.7, an intermediate beyond 65,504
_GRID_ODD = (1, 3, 5, 7, 9, 11, 13)


def _grid_scale(experts: int, generator: torch.Generator) -> Tensor:
    """Return encode scales `(experts,)` float32: 28 different ones, a power of two over an odd number."""
    pairs = len(_GRID_ODD) * 4
    pair = torch.randperm(pairs, generator=generator)[torch.arange(experts) % pairs]
    return torch.ldexp(1 / torch.tensor(_GRID_ODD)[pair // 4].float(), pair % 4 + 3)


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
    ) -> None:
        self.problem = p = problem
        self.device = device
        self.form, self.weight_form = FORMATS[activations], FORMATS[weights]
        self.way = Activation.of(gated)
        self._generator = generator = torch.Generator().manual_seed(p.seed)
        self._traps = frozenset(name for name in p.extras if name in TRAPS)
        self.masked_m = torch.tensor(p.masked_m, dtype=torch.int32).to(device)
        # jitter keeps the scales distinct and off the value that exactly fills the range
        jitter = torch.rand(2, p.experts, generator=generator) * 0.5 + 0.5
        self._gain = torch.rand(p.experts, generator=generator) * 2 + 0.5  # deviation of the first GEMM
        if self.way.limit:  # one gate in three to none, by expert, lies beyond it
            self._gain *= self.way.limit / 3
        grid_scale = _grid_scale(p.experts, generator)
        raw = torch.randn(p.experts, p.capacity, p.hidden, generator=generator)
        taken = None
        if p.data == "grid":
            input_scale = grid_scale
            x = self._grid_tokens(input_scale, generator)
        else:
            x, taken = self._tokens(raw, generator)
            amax = x.abs().amax((1, 2)).float().clamp(min=1e-6)
            input_scale = SCALE_RANGE / amax * jitter[0]
        x, input_scale = self._at_other_magnitudes(x, input_scale)
        a2_scale = SCALE_RANGE / (3 * self._gain) ** 2 * jitter[1]
        if self.form.encoded:
            input_scale, a2_scale = (
                s * (self.form.encode_range / SCALE_RANGE) for s in (input_scale, a2_scale)
            )
        if any(TRAPS[name].ties for name in self._traps):
            input_scale, a2_scale = (torch.exp2(torch.log2(s).floor()) for s in (input_scale, a2_scale))
        write_traps(x, list(p.masked_m), input_scale, self._traps, generator, taken)
        self.x = x.to(self.layer_dtype).to(device)
        self.input_scale = input_scale.float().to(device)
        self.a2_scale = a2_scale.float().to(device)

    @property
    def layer_dtype(self) -> torch.dtype:
        """Type of the tokens, of what lies between the stages, and of the layer's output."""
        return self.form.layer_dtype

    def _tokens(self, raw: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return tokens made of Gaussian numbers, with the traps that encode scales follow, and the blocks of those."""
        p = self.problem
        values = raw * block_gains(raw, generator) if p.data == "spread" else raw
        if "magnitude_spread" in self._traps and p.experts > 1:
            spread = 100 ** (torch.arange(p.experts) / (p.experts - 1) - 0.5)
            values = values * spread.view(-1, 1, 1)
        x = values.bfloat16()
        return x, self._write_outliers(x, generator)

    def _grid_tokens(self, scale: Tensor, generator: torch.Generator) -> Tensor:
        p = self.problem
        shape = (p.experts, p.capacity, p.hidden // BLOCK)
        codes = grid_codes(shape, generator)
        magnitudes = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6], dtype=torch.float64)[(codes & 7).int()]
        values = torch.where(codes > 7, -magnitudes, magnitudes)
        step = torch.randint(0, 3, shape, generator=generator)
        values = torch.ldexp(values, step.unsqueeze(-1)).view(p.experts, p.capacity, p.hidden)
        return (values / scale.double().view(-1, 1, 1)).bfloat16()

    def _at_other_magnitudes(self, x: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """Return tokens and encode scales with the traps large and small, and move the gain of the first GEMM with them."""
        signs = [sign for trap, sign in (("large", 1), ("small", -1)) if trap in self._traps]
        draws = random.Random(f"magnitudes {self.problem}")
        victims = self._with_rows() if signs else []
        draws.shuffle(victims)
        for number, expert in enumerate(victims):
            sign = signs[number % len(signs)]
            power = 2.0 ** (sign * draws.randint(*POWERS[number // len(signs) % len(POWERS)]))
            x[expert] = x[expert].double().mul(power).bfloat16()
            scale[expert] /= power
            self._gain[expert] *= GAIN**sign
        return x, scale

    def without_some_blocks(self, block_scale: Tensor) -> Tensor:
        """Return the tokens' block scales `(experts, capacity, k / 16)` uint8, some zero where the trap zero_scales is asked for."""
        if "zero_scales" not in self._traps or self.form.scale != "e4m3":
            return block_scale
        generator = torch.Generator().manual_seed(self.problem.seed)
        zero = torch.randint(ZERO_BLOCKS, block_scale.shape, generator=generator) == 0
        return block_scale.masked_fill(zero.to(block_scale.device), 0)

    def _with_rows(self) -> list[int]:
        """Return the experts that have a valid row."""
        return [expert for expert, rows in enumerate(self.problem.masked_m) if rows]

    def _write_outliers(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Make one block of each expert 100 times larger; return which blocks those are."""
        p = self.problem
        taken = torch.zeros(p.experts, p.capacity, p.hidden // BLOCK, dtype=torch.bool)
        if "outlier_block" not in self._traps:
            return taken
        for expert, rows in enumerate(p.masked_m):
            if rows:
                row = int(torch.randint(rows, (), generator=generator))
                block = int(torch.randint(p.hidden // BLOCK, (), generator=generator))
                x[expert, row, block * BLOCK : (block + 1) * BLOCK] *= 100
                taken[expert, row, block] = True
        return taken

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
        return make_weights(
            p.experts, n, k, p.data, seed, self.device, form=self.weight_form,
            small_rows="subnormal_scales" in self._traps,
            zero_blocks="zero_scales" in self._traps,
            nan_rows="nan_scales" in self._traps,
        )  # fmt: skip

    @cached_property
    def w1_alpha(self) -> Tensor:
        """`(experts,)` float32: 1 / (input encode scale * w1 encode scale), such that gate and up deviate by `gain`."""
        encoded = self.x.double().nan_to_num(0, 0, 0)
        if self.form.encoded:
            encoded *= self.input_scale.double().view(-1, 1, 1)
        return self._alpha(encoded.square().mean((1, 2)).sqrt().cpu(), self.w1, self._gain)

    @cached_property
    def w2_alpha(self) -> Tensor:
        """`(experts,)` float32: 1 / (a2 encode scale * w2 encode scale), such that outputs deviate by about 1."""
        encode = self.a2_scale.cpu() if self.form.encoded else 1
        return self._alpha(self._gain**2 * encode, self.w2, torch.ones_like(self._gain))

    def _alpha(self, operand_deviation: Tensor, weights: Weights, wanted: Tensor) -> Tensor:
        terms = weights.values.shape[-1]
        limits = (1e-3, 1e9) if self.form.encoded else (1e-30, 1e30)  # encoded values have one magnitude
        got = operand_deviation.double().clamp(*limits) * weights.deviation * math.sqrt(terms)
        return self._with_trapped_values((wanted / got).float()).to(self.device)

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
        p, generator = self.problem, self._generator
        values = torch.randn(p.experts, p.capacity, 2 * p.inter, generator=generator)
        gate_up = (values * self._gain.view(-1, 1, 1)).bfloat16()
        target = torch.zeros(p.experts, p.capacity, p.inter, dtype=torch.bfloat16)
        written = write_traps(target, list(p.masked_m), self.a2_scale.cpu(), self._traps, generator)
        mask = written.repeat_interleave(BLOCK, -1)
        gate_up[..., : p.inter][mask] = 32
        gate_up[..., p.inter :][mask] = torch.where(target.isnan(), target, target / 32 - self.way.beta)[mask]
        write_gates(gate_up, list(p.masked_m), self.a2_scale.cpu(), self._traps, generator, written)
        gate_up = self.way.joined(*gate_up.chunk(2, dim=-1))
        return gate_up.to(self.layer_dtype).to(self.device)
