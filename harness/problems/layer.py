"""What a problem means to the stages around the masked MoE: ranks, their tokens, logits, routes, and a checkpoint.

Everything is a pure function of the problem, like harness.problems.tensors: the same string gives the same ranks. Extents
are kept small, since these stages move data and compute little; with the option whole_layer they are the problem's own.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor

from harness.candidates.protocol import Traits
from harness.problems.draws import Source, draws_of
from harness.problems.problem import WEIGHT_SEEDS, Problem
from harness.problems.route_values import IN_LOGITS, IN_TOPK_WEIGHTS
from harness.problems.rows import Rows
from harness.problems.traps import IN_ROUTES, TRAPS
from harness.problems.weights import make_weights
from reference.e2m1 import pack_e2m1
from reference.fp8_tokens import CHANNELS
from reference.loading import tensor_name
from reference.nvfp4 import SCALE_RANGE
from reference.routing import NO_EXPERT

MOST_RANKS = 8
MOST_TOKENS = 24  # of one rank
MOST_TOPK = 8
_MOST_HIDDEN, _MOST_INTER = 256, 128  # half of it for many experts
_MANY_EXPERTS, _FEW_EXPERTS = 32, 4


class LayerProblem:
    """Ranks, routes and weights of one problem.

    Args:
        problem: experts are all experts of the layer; capacity bounds the tokens of a rank; the seed decides the rest.
        traits: alignments of the candidate.

    Attributes:
        ranks: simulated ranks, a divisor of the experts.
        counts: tokens of each rank; a rank may have none.
        max_tokens: what a rank may send at most.
        topk: experts per token.
        hidden, inter: extents of the checkpoint, multiples of what the candidate needs.
    """

    def __init__(self, problem: Problem, traits: Traits) -> None:
        self.problem, self.device = problem, traits.device
        rng = random.Random(f"layer {problem}")
        most = max(1, problem.experts // traits.min_experts)
        divisors = [r for r in range(1, min(MOST_RANKS, most) + 1) if problem.experts % r == 0]
        if traits.ranks:  # they are processes: each rank of the problem has as many
            divisors = [r for r in divisors if traits.ranks % r == 0]
        self.ranks = (
            rng.choice(divisors[-3:]) if rng.random() < 0.2 else rng.choice(divisors[1:][-3:] or divisors)
        )
        step = traits.m_multiple
        self.max_tokens = -(-max(1, min(problem.capacity, MOST_TOKENS)) // step) * step
        self.counts = [
            rng.choice((self.max_tokens, rng.randint(0, self.max_tokens))) for _ in range(self.ranks)
        ]
        fewer = max(1, problem.experts - (rng.random() > 0.1))  # now and then every expert gets every token
        self.topk = rng.randint(1, min(fewer, MOST_TOPK))
        self.normalize = rng.random() < 0.5
        width, share = traits.width_multiple, 2 if problem.experts > _MANY_EXPERTS else 1
        self.hidden, self.inter = (
            min(extent, max(most // share // width, 1) * width)
            for extent, most in ((problem.hidden, _MOST_HIDDEN), (problem.inter, _MOST_INTER))
        )
        self._most_tokens, self._hidden_sizes = traits.most_tokens, sorted(traits.hidden_sizes)
        if self._hidden_sizes:
            # Wide ones for few experts: the weights of many take longer to make than everything else.
            sizes = self._hidden_sizes if problem.experts <= _FEW_EXPERTS else self._hidden_sizes[:1]
            self.hidden = sizes[problem.seed % len(sizes)]
        self._shift = rng.choice((0.0, -20.0, 12.0))
        self._lonely = rng.random() < 0.5
        self._skew = rng.choice((0.0, 0.0, 3.0))
        self._checkpoints: dict[tuple[bool, bool], dict[str, Tensor]] = {}
        self._draws = draws_of(problem.version, "layer", rng.getrandbits(48), self.device)
        self._traps = {name for name in problem.extras if name in TRAPS and TRAPS[name].into in IN_ROUTES}
        self._whole = "whole_layer" in problem.extras
        if self._traps:  # whatever was drawn, there are tokens and slots to hold them
            self.counts = [self.max_tokens] * self.ranks
            self.topk = max(self.topk, min(problem.experts, 3))
            self._shift = self._skew = 0.0
        if self._whole:
            self._take_whole(divisors[-1], step)

    def _take_whole(self, ranks: int, step: int) -> None:
        """Take the problem's extents as they are: two ranks send all the tokens that they may, the others few."""
        p = self.problem
        self.ranks, self.max_tokens = ranks, -(-p.capacity // step) * step
        if self._most_tokens:  # EP sends the tokens of all ranks from one
            self.max_tokens = min(self.max_tokens, self._most_tokens // ranks)
        few = min(self.max_tokens, MOST_TOKENS)
        self.counts = [*[few] * (ranks - 2), *[self.max_tokens] * min(ranks, 2)]
        self.topk = min(max(1, p.experts // 2), MOST_TOPK)
        self.hidden, self.inter = p.hidden, p.inter
        if sizes := self._hidden_sizes:
            self.hidden = next((size for size in sizes if size >= p.hidden), sizes[-1])

    def token_rows(self) -> Rows:
        """Return where the rows of all ranks' tokens, one rank after the other, come from."""
        rows = Rows.valid(self.counts, self.max_tokens, self.device)
        return replace(rows, expert_name="rank", row_name="token")

    @property
    def experts(self) -> int:
        """Experts of the layer."""
        return self.problem.experts

    @cached_property
    def logits(self) -> list[Tensor]:
        """Per rank `(tokens, experts)` float32: shifted (all negative, far above zero), sometimes skewed; with ties."""
        skew = self._skew * self._draws.normal(self.experts)
        found = []
        for count in self.counts:
            logits = 2 * self._draws.normal(count, self.experts) + skew
            logits[::4] = (logits[::4] * 2).round() / 2
            found.append(logits + self._shift)
        for trap in IN_LOGITS:
            if trap in self._traps:
                found = [IN_LOGITS[trap](logits, self._draws) for logits in found]
        if self._whole:  # every expert is a token's first choices
            for logits, reached in zip(found, self._reached(), strict=True):
                logits.add_(20.0 * reached.to(logits.device))
        return [logits.to(self.device) for logits in found]

    def _reached(self) -> Iterator[Tensor]:
        """Yield per rank `(tokens, experts)` bool: the first tokens share out all experts, topk of them each."""
        order = self.draws("reached").order(self.experts)
        reached = torch.zeros(sum(self.counts), self.experts, dtype=torch.bool)
        first = torch.arange(min(self.experts, len(reached) * self.topk))
        reached[first // self.topk, order[first]] = True
        start = 0
        for count in self.counts:
            yield reached[start : start + count]
            start += count

    @cached_property
    def topk_idx(self) -> list[Tensor]:
        """Per rank `(tokens, topk)` int64, distinct, a sixth of the slots -1; now and then a token has no expert."""
        found = []
        for logits, reached in zip(self.logits, self._reached(), strict=True):
            ids = self._largest(logits)
            empty = self._draws.uniform(*ids.shape) < 1 / 6
            empty[1:2] |= self._lonely
            if self._whole:
                empty &= ~reached.to(ids.device).gather(1, ids)
            found.append(ids.masked_fill(empty, NO_EXPERT).to(self.device))
        return found

    def _largest(self, logits: Tensor) -> Tensor:
        """Return the experts of each token's largest logits, `(tokens, topk)` int64, the first ones of those that are equal."""
        if self.problem.version == 1:
            return logits.cpu().topk(self.topk, dim=-1).indices
        # topk takes another one of equal logits on each device, and a radix sort tells zeros of either sign apart
        return torch.sort(logits + 0.0, dim=-1, descending=True, stable=True).indices[:, : self.topk]

    @cached_property
    def topk_weights(self) -> list[Tensor]:
        """Per rank `(tokens, topk)` float32 in [0.1, 0.9); slots without an expert hold numbers as well."""
        found = [self._draws.uniform(*ids.shape) * 0.8 + 0.1 for ids in self.topk_idx]
        for trap in IN_TOPK_WEIGHTS:
            if trap in self._traps:
                found = [IN_TOPK_WEIGHTS[trap](weights, self._draws) for weights in found]
        return [weights.to(self.device) for weights in found]

    @property
    def extents(self) -> dict[str, int]:
        """How far the stages around the layer are taken: names as in harness.problems.reach.extents_of, tokens of a rank."""
        sent = torch.cat(self.topk_idx).flatten().cpu()
        rows = torch.bincount(sent[sent != NO_EXPERT], minlength=1)
        return {
            "experts": len(rows) if int(rows[-1]) else 0,
            "capacity": self.ranks * self.max_tokens,
            "rows": int(rows.max()),
            "tokens": max(self.counts),
            "hidden": self.hidden,
            "inter": self.inter,
        }

    def tokens(self, hidden: int) -> list[Tensor]:
        """Return per rank `(tokens, hidden)` bfloat16: a zero row, a tiny one, groups of channels 50 times larger, -0.0."""
        draws, found = self.draws("tokens"), []
        for rank, count in enumerate(self.counts):
            x = draws.normal(count, hidden)
            row = torch.arange(count)
            kind = (row + rank) % 8
            x *= torch.where(kind == 2, 1e-6, 1.0).unsqueeze(-1).to(x.device)
            large = row[kind == 4]
            group = torch.tensor([draws.number(hidden // 16) for _ in large], dtype=torch.int64)
            groups = x.view(count, hidden // 16, 16)
            groups[large.to(x.device), group.to(x.device)] *= 50
            x[row[kind == 6].to(x.device), ::5] = -0.0
            x[row[(kind == 7) & (row > 8)].to(x.device)] = 0
            found.append(x.bfloat16().to(self.device))
        return found

    def draws(self, purpose: str) -> Source:
        """Return the source of numbers that are drawn beside the ranks, their logits and routes."""
        return draws_of(self.problem.version, f"layer {purpose}", self.problem.seed, self.device)

    @property
    def dispatch_hidden(self) -> int:
        """Width of the dispatched tokens: FP8 scales need multiples of 128."""
        return -(-self.hidden // CHANNELS) * CHANNELS

    def token_scale(self, x: list[Tensor]) -> Tensor:
        """Return one encode scale for all tokens, `(1,)` float32, a little less than what fills the range."""
        amax = max((float(tokens.abs().amax()) for tokens in x if len(tokens)), default=0.0) or 1.0
        return torch.tensor([SCALE_RANGE / amax * 0.9], dtype=torch.float32, device=self.device)

    def checkpoint(self, *, same_scales: bool = True, gated: bool = True) -> dict[str, Tensor]:
        """Return one layer's ModelOpt tensors; scales differ from expert to expert and from projection to projection.

        Args:
            same_scales: gate and up of an expert share their weight_scale_2, as masked_moe needs it; where they do not,
                every gate has a larger input_scale than any up.
            gated: there are gate projections.
        """
        if (same_scales, gated) not in self._checkpoints:
            made = self._make_checkpoint(same_scales=same_scales)
            kept = {name: t for name, t in made.items() if gated or ".gate_proj." not in name}
            self._checkpoints[same_scales, gated] = kept
        return dict(self._checkpoints[same_scales, gated])

    def _make_checkpoint(self, *, same_scales: bool) -> dict[str, Tensor]:
        p, seed = self.problem, self.problem.seed % WEIGHT_SEEDS
        w1 = make_weights(
            p.experts, 2 * self.inter, self.hidden, p.data, seed, self.device, version=p.version
        )
        w2 = make_weights(
            p.experts, self.hidden, self.inter, p.data, seed + WEIGHT_SEEDS, self.device, version=p.version
        )
        rng = random.Random(f"scales {p.seed}")
        found: dict[str, Tensor] = {}

        def put(expert: int, projection: str, kind: str, value: Tensor | float) -> None:
            tensor = value if isinstance(value, Tensor) else _invertible(value, self.device)
            found[tensor_name(expert, projection, kind)] = tensor

        for expert in range(p.experts):
            # w_scale_2 of trained models is about 1e-5 to 1e-3; neighbours differ several times
            scale = 2.0 ** (-14 + (expert * 5) % 7) * rng.uniform(0.7, 1.4) / self.hidden**0.5
            halves = {"gate": slice(0, self.inter), "up": slice(self.inter, None)}
            for projection, rows in halves.items():
                put(expert, projection, "weight", pack_e2m1(w1.codes[expert, rows]))
                put(
                    expert, projection, "weight_scale", w1.block_scale[expert, rows].view(torch.float8_e4m3fn)
                )
                other = projection == "up" and not same_scales
                put(expert, projection, "weight_scale_2", scale * (1.5 if other else 1))
                lifted = 16 if projection == "gate" and not same_scales else 1  # larger than any of up
                put(
                    expert,
                    projection,
                    "input_scale",
                    lifted * 5 / SCALE_RANGE * 2.0 ** -rng.uniform(0.0, 3.0),
                )
            put(expert, "down", "weight", pack_e2m1(w2.codes[expert]))
            put(expert, "down", "weight_scale", w2.block_scale[expert].view(torch.float8_e4m3fn))
            put(expert, "down", "weight_scale_2", scale * rng.uniform(2.0, 6.0))
            put(expert, "down", "input_scale", 3 / SCALE_RANGE * 2.0 ** -rng.uniform(0.0, 2.0))
        return found


def _invertible(value: float, device: str) -> Tensor:
    """Return a float32 scale next to a value that two reciprocals give back: formats differ in which of them they hold."""
    return torch.tensor(value, device=device).reciprocal().reciprocal()
