"""What a problem means to a routed layer: tokens, which experts each of them goes to, and the weights of this rank's experts.

`masked_m[e]` is the number of tokens that go to expert e, and the capacity the number of tokens; a problem without a valid
row has none, or tokens without an expert. All tokens share one encode scale. With the option `sharded` this rank holds some
experts of more, behind an offset; with `redundant` some experts are there twice, and ids are those of the slots.
"""

from __future__ import annotations

import random
from copy import copy
from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor

from harness.candidates.protocol import Traits
from harness.problems.draws import Source, draws_of
from harness.problems.problem import Problem
from harness.problems.route_values import IN_TOPK_WEIGHTS
from harness.problems.rows import Rows
from harness.problems.sparse import tensors_of
from harness.problems.tensors import ProblemTensors
from harness.problems.weights import Weights
from reference.final_sum import FinalSum
from reference.formats import Coded
from reference.routed import NO_EXPERT, Routes, routes_of

_MOST_RANKS = 4


class RoutedProblem:
    """Tokens, routes and weights of one problem.

    Args:
        problem: experts are those of this rank.
        traits: formats, activation and final sum of the candidate.

    Attributes:
        tokens: how many there are.
        way: how the candidate adds their rows.
        total_experts: experts of all ranks.
        offset: global id of this rank's first expert.
        held: `(local,)` int64: which of the problem's experts each of this rank's slots holds; all of them in their places
            but for `redundant`.
    """

    def __init__(self, problem: Problem, traits: Traits) -> None:
        self.problem, self.traits, self.device = problem, traits, traits.device
        self.way = FinalSum.of(traits.final_sum)
        rng = random.Random(f"routed {problem}")
        self.tokens = problem.capacity if problem.tokens or problem.seed % 2 else 0
        ranks = rng.randint(2, _MOST_RANKS) if "sharded" in problem.extras else 1
        self.local = problem.experts
        self.total_experts, self.offset = ranks * self.local, rng.randrange(ranks) * self.local
        self.held = torch.arange(self.local)
        if "redundant" in problem.extras:
            # EPLB fills slots in an order of its own; what is there twice stands for experts that are not there.
            order = rng.sample(range(self.local), self.local)
            order[: self.local // 4] = order[-(self.local // 4) :] if self.local > 3 else []
            self.held = torch.tensor(order)
        self._spare = rng.random() < 0.4
        self._draws: Source = draws_of(problem.version, "routes", problem.seed, self.device)

    def changed(self, **values: Tensor) -> RoutedProblem:
        """Return the same problem with other values of some of its properties: `topk_idx`, `topk_weights`, `x`."""
        other = copy(self)
        other.__dict__ = {name: value for name, value in vars(self).items() if name != "routes"} | values
        return other

    def only(self, tokens: Tensor) -> RoutedProblem:
        """Return the problem with some of its tokens, `(some,)` int64."""
        other = self.changed(
            topk_idx=self.topk_idx[tokens], topk_weights=self.topk_weights[tokens], x=self.x[tokens]
        )
        other.__dict__["quantized"] = self.quantized.map(lambda part: part[tokens])
        other.tokens = len(tokens)
        return other

    @cached_property
    def routes(self) -> Routes:
        """Rows of this rank's experts."""
        return routes_of(self.topk_idx, self.local, self.offset)

    @cached_property
    def topk_idx(self) -> Tensor:
        """`(tokens, topk)` int32, distinct in each token; -1, or experts of other ranks, in slots that are left over."""
        counts = self.problem.masked_m if self.tokens else ()
        order = self._draws.order(max(self.tokens, 1)).cpu()
        # Expert after expert takes the tokens that follow, so that each token gets as many experts, one more or less.
        expert = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts, dtype=torch.int64))
        number = torch.arange(len(expert))
        token = order[number % max(self.tokens, 1)]
        topk = int(number[-1] // self.tokens) + 1 if len(number) else 1
        ids = torch.full((self.tokens, topk + self._spare), NO_EXPERT, dtype=torch.int64)
        ids[token, number // max(self.tokens, 1)] = expert + self.offset
        if most := 1 if self.way.weight == "tokens" else self.traits.most_topk:
            ids = ids[:, :most]
        self._fill(ids)
        mixed = self._draws.uniform(*ids.shape).cpu().argsort(-1)
        return ids.gather(1, mixed).int().to(self.device)

    def _fill(self, ids: Tensor) -> None:
        """Put experts of other ranks into half of the empty slots, in place."""
        others = self.total_experts - self.local
        if not others:
            return
        slot = torch.arange(ids.shape[1])
        number = (torch.arange(len(ids)).unsqueeze(1) * 7 + slot) % others
        elsewhere = torch.where(number < self.offset, number, number + self.local)
        free = (ids == NO_EXPERT) & (slot < others) & (self._draws.uniform(*ids.shape).cpu() < 0.5)
        ids[free] = elsewhere[free]

    @cached_property
    def topk_weights(self) -> Tensor:
        """`(tokens, topk)` float32 in [0.1, 0.9), or as traps have them; slots without an expert hold numbers as well."""
        weights = self._draws.uniform(*self.topk_idx.shape).float() * 0.8 + 0.1
        for trap in IN_TOPK_WEIGHTS:
            if trap in self.problem.extras and len(weights):
                weights = IN_TOPK_WEIGHTS[trap](weights, self._draws)
        return weights.to(self.device)

    @cached_property
    def _of_experts(self) -> ProblemTensors:
        """Weights, alphas and encode scales of the intermediate; of its tokens there are none but one an expert."""
        p = self.problem
        few = replace(p, capacity=1, masked_m=tuple(min(count, 1) for count in p.masked_m))
        return self._tensors(few)

    @cached_property
    def _of_tokens(self) -> ProblemTensors:
        """All tokens as those of one expert, which share an encode scale."""
        rows = max(self.tokens, 1)
        extras = self.problem.extras - {"zero_expert", "magnitude_spread"}
        one = replace(self.problem, experts=1, capacity=rows, masked_m=(rows,), extras=extras)
        return self._tensors(one)

    def _tensors(self, problem: Problem) -> ProblemTensors:
        t = self.traits
        return tensors_of(problem, self.device, *t.formats, t.gated, powers=t.power_scales)

    @cached_property
    def x(self) -> Tensor:
        """`(tokens, hidden)` of the layer's type."""
        return self._of_tokens.x[0, : self.tokens]

    @property
    def input_scale(self) -> Tensor:
        """`(1,)` float32, the encode scale of all tokens; ones where the format has none."""
        scale = self._of_tokens.input_scale
        return scale if self._of_tokens.form.encoded else torch.ones_like(scale)

    @cached_property
    def quantized(self) -> Coded:
        """The tokens in the candidate's format, by the reference, `(tokens, hidden)`."""
        t = self._of_tokens
        coded = t.form.quantize(t.x, self.input_scale)
        coded = replace(coded, block_scale=t.without_some_blocks(coded.block_scale))
        return coded.map(lambda part: part[0, : self.tokens])

    @cached_property
    def w1(self) -> Weights:
        """Weights of the first GEMM, of this rank's slots."""
        return self._in_slots(self._of_experts.w1)

    @cached_property
    def w2(self) -> Weights:
        """Weights of the second GEMM."""
        return self._in_slots(self._of_experts.w2)

    def _in_slots(self, weights: Weights) -> Weights:
        held = self.held.to(weights.codes.device)
        return weights if self._in_place else replace(
            weights, codes=weights.codes[held], block_scale=weights.block_scale[held]
        )  # fmt: skip

    @property
    def _in_place(self) -> bool:
        return "redundant" not in self.problem.extras

    @cached_property
    def w1_alpha(self) -> Tensor:
        """`(local,)` float32: 1 / (input encode scale * w1 encode scale)."""
        alpha = self._of_experts.w1_alpha_for(self._of_tokens.encoded_deviation)
        return alpha[self.held.to(alpha.device)]

    @cached_property
    def a2_scale(self) -> Tensor:
        """`(local,)` float32, encode scales of the intermediate: all the smallest of a candidate that takes one."""
        t = self._of_experts
        scale = t.a2_scale if t.form.encoded else torch.ones_like(t.a2_scale)
        if self.traits.one_a2_scale:
            scale = scale.amin().expand(scale.shape).contiguous()
        return scale[self.held.to(scale.device)]

    @cached_property
    def w2_alpha(self) -> Tensor:
        """`(local,)` float32: 1 / (a2 encode scale * w2 encode scale)."""
        t = self._of_experts
        alpha = t.w2_alpha[self.held.to(self.device)]
        if self.traits.one_a2_scale and t.form.encoded:
            alpha = alpha * (t.a2_scale[self.held.to(self.device)] / self.a2_scale)
        return alpha

    def held_before(self, fill: float | None = None) -> Tensor:
        """Return what the output holds before the call, `(tokens, hidden)`: numbers for a sum onto it, else `fill` or NaN."""
        shape = self.tokens, self.problem.hidden
        if not self.way.onto:
            return torch.full(
                shape, torch.nan if fill is None else fill, dtype=self.layer_dtype, device=self.device
            )
        draws = draws_of(self.problem.version, "held", self.problem.seed, self.device)
        return draws.normal(*shape).to(self.layer_dtype).to(self.device)

    @property
    def layer_dtype(self) -> torch.dtype:
        """Type of the tokens and of the output."""
        return self._of_tokens.layer_dtype

    def token_rows(self) -> Rows:
        """Return where the rows of the output come from."""
        return replace(
            Rows.valid([self.tokens], max(self.tokens, 1), self.device), expert_name="layer", row_name="token"
        )
