"""Layers of which only the final output was seen: rows are compared, since one legal code flips a whole row a little."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cached_property
from typing import Any, Self

import torch
from torch import Tensor

from harness.diagnosis.cases.case import CallCase
from harness.diagnosis.cases.habits import Habits
from harness.diagnosis.cases.models import at_once
from harness.diagnosis.cases.observation import Observed
from harness.diagnosis.cases.replay import replayed
from harness.diagnosis.cases.views import same
from reference.routed import routes_of

_SCREENED_EXPERTS = 2
_SCREENED_TOKENS = 8


class LayerCase(CallCase):
    """A call of masked_moe whose output is illegal, or (view "inputs") that changed its inputs.

    Attributes:
        healthy_stages: what the model's stage calls give, by number, filled as they are needed.
    """

    healthy_stages: dict[int, Any]

    def _choose_model(self) -> None:
        self.healthy_stages = {}
        rows = self.valid & self.legal.all(-1).all(-1)
        distances = []
        for model in self.models[:4]:
            right = replayed(model, self.call, (self.view,))[self.view]
            distance = relative(self.seen, right)[rows]
            distances.append((float(distance.mean()) if len(distance) else 0.0, right))
        best = min(range(len(distances)), key=lambda i: distances[i][0])
        self.healthy = distances[best][1]
        self.models = [self.models[best], *(m for i, m in enumerate(self.models) if i != best)]
        empty = self.valid & (self.seen == 0).all(-1).all(-1) & (self.healthy != 0).any(-1).any(-1)
        if self.view == "output" and bool(empty.any()):
            # Padding cannot be seen: rows of zeros are the only sign of what it holds.
            for model in self.models:
                model.habits = Habits(fill=0)

    def screened(self) -> Self:
        """Return the case of a few failing rows, in a model that adds at once: rows are compared with some tolerance."""
        return self._few_rows(_SCREENED_EXPERTS).adding_at_once()

    def adding_at_once(self) -> Self:
        """Return the same case in models whose products are rounded once, at the end: the fastest ones."""
        case = copy.copy(self)
        case.models = [replace(model, product=at_once) for model in self.models]
        case.healthy_stages = {}
        return case

    def suspected(self) -> Tensor | None:
        """Return where a fault must be if it is not everywhere, `(experts, rows or 1)` bool; None where it may be anywhere."""
        partly = bool((self.failing != self.valid).any()) and not self.of_few_rows
        return self.failing if partly else None

    @property
    def activation(self) -> str:
        """Of the layer: "silu" or "relu2"."""
        return str(self.call.arguments.get("activation", "silu"))

    def work(self) -> int:
        """Return about how many multiplications one prediction costs."""
        return self.seen.numel() * int(self.call.arguments["w2"].shape[2]) * 6


class RoutedLayerCase(LayerCase):
    """A call of routed_moe whose output is illegal: what its stages did wrong inside, of which a token shows a sum."""

    def suspected(self) -> Tensor | None:
        """Return the experts that no right token has, `(experts, 1)` bool; None where that is all of them or none."""
        suspects = self._suspects
        return None if bool(suspects.all()) or not bool(suspects.any()) else suspects.unsqueeze(-1)

    @cached_property
    def _suspects(self) -> Tensor:
        return ~self._experts_of_tokens[~self.failing[0]].any(0)

    @property
    def _experts_of_tokens(self) -> Tensor:
        """Which experts of this rank each token has, `(tokens, experts)` bool."""
        a = self.call.arguments
        routes = routes_of(a["topk_idx"], len(a["w1"]), a.get("local_expert_offset", 0))
        found = torch.zeros(len(a["topk_idx"]), len(a["w1"]), dtype=torch.bool)
        found[routes.token, routes.expert] = True
        return found

    def screened(self) -> Self:
        """Return the case of a few failing tokens that share few experts, as a call of its own."""
        here = self._experts_of_tokens
        served = self.failing[0] & here.any(-1)
        failing = (served if bool(served.any()) else self.failing[0]).nonzero().flatten()
        fewest = here[failing[here[failing].sum(-1).argmin()]]
        few = failing[(~here[failing] | fewest).all(-1)][:_SCREENED_TOKENS]
        part = type(self)(_of_tokens(self.call, few), self.legal[:, few], self.models, self.bounds, self.view)
        part.__dict__["_suspects"] = self._suspects
        return part


def _of_tokens(call: Observed, tokens: Tensor) -> Observed:
    """Return a call of routed_moe with some of its tokens."""
    a = call.arguments
    some = {name: a[name][tokens] for name in ("topk_idx", "topk_weights", "out") if a.get(name) is not None}
    some["hidden_states"] = tuple(None if part is None else part[tokens] for part in a["hidden_states"])
    return replace(call, arguments=a | some, output=call.output[tokens], changed={}, pristine={})


def relative(seen: Tensor, predicted: Tensor) -> Tensor:
    """Return the distance of each row from a prediction, relative to the larger of the two, `(groups, rows)` float64."""
    o, p = seen.flatten(2).double(), predicted.flatten(2).double()
    finite = o.isfinite() & p.isfinite()
    alike = same(o, p) | finite  # NaN and infinity must be where they are predicted
    o, p = o.masked_fill(~finite, 0), p.masked_fill(~finite, 0)
    distance = (o - p).norm(dim=-1) / torch.maximum(o.norm(dim=-1), p.norm(dim=-1)).clamp(min=1e-30)
    distance = torch.where((o == p).all(-1), torch.zeros_like(distance), distance)
    return torch.where(alike.all(-1), distance, torch.inf)
