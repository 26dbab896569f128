"""A layer of which only the final output was seen: rows are compared, since one legal code flips a whole row a little.

A row is explained where the prediction comes much nearer to it than the right output does. A fault may sit in one of two
stage calls of a row, and a fault of blocks in some of its blocks: both are tried.
"""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from harness.diagnosis.cases.case import Case, same
from harness.diagnosis.cases.habits import Habits
from harness.diagnosis.cases.models import at_once
from harness.diagnosis.cases.observation import MASKED_MOE, Observed
from harness.diagnosis.cases.views import input_bytes
from harness.diagnosis.hypotheses.blocks import MUCH_NEARER
from harness.diagnosis.hypotheses.choices import FEW_TRIES, Choices
from harness.diagnosis.hypotheses.hypothesis import Failed, Hypothesis, predict, unharmed
from harness.diagnosis.hypotheses.planted_layer import Planted, faulted_calls, is_inner
from harness.diagnosis.hypotheses.stage_calls import Score
from harness.diagnosis.hypotheses.taken_over import ThroughLayer
from harness.faults.fault import Parameters

NEAR = 0.05  # relative distance of a row that legal code flips may cause
EXACTLY = 1e-6
SAME = 0.01  # relative distance of a row that another order of addition may cause
_REMEMBERED = 2  # layers before the failing one that a fault may remember


class LayerCase(Case):
    """A call of masked_moe whose output is illegal, or (view "inputs") that changed its inputs."""

    def _choose_model(self) -> None:
        rows = self.valid & self.legal.all(-1).all(-1)
        distances = []
        for model in self.models[:4]:
            right = predict(model, self.call, None, views=(self.view,))[self.view]
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
        self.exact = False
        self.care = None
        self.wild = False

    def screened(self, experts: int = 2) -> Case:
        """Return the case of a few failing rows, in a model that adds at once: rows are compared with some tolerance."""
        return _adding_at_once(self.few_rows(experts))

    @property
    def healthy_stages(self) -> dict[int, Any]:
        """Return what the model's stage calls give, filled as they are needed, apart for a screened case."""
        stages: dict[int, dict[int, Any]] = self.__dict__.setdefault("_stages", {})
        return stages.setdefault(id(self.model), {})

    def work(self) -> int:
        """Return about how many multiplications one prediction costs."""
        return self.seen.numel() * int(self.call.arguments["w2"].shape[2]) * 6


def _adding_at_once(case: Case) -> Case:
    case = copy.copy(case)
    case.models = [replace(model, product=at_once) for model in case.models]
    case.__dict__.pop("_stages", None)
    return case


def relative(seen: Tensor, predicted: Tensor) -> Tensor:
    """Return the distance of each row from a prediction, relative to the larger of the two, `(groups, rows)` float64."""
    o, p = seen.flatten(2).double(), predicted.flatten(2).double()
    finite = o.isfinite() & p.isfinite()
    alike = same(o, p) | finite  # NaN and infinity must be where they are predicted
    o, p = o.masked_fill(~finite, 0), p.masked_fill(~finite, 0)
    distance = (o - p).norm(dim=-1) / torch.maximum(o.norm(dim=-1), p.norm(dim=-1)).clamp(min=1e-30)
    distance = torch.where((o == p).all(-1), torch.zeros_like(distance), distance)
    return torch.where(alike.all(-1), distance, torch.inf)


def score_layer(cases: list[Case], calls: list[Observed], hypothesis: Hypothesis) -> Score | None:
    """Test one hypothesis on opaque layers; None where it cannot be planted."""
    result = Score(
        hypothesis, {n: int(case.illegal.sum()) for n, case in enumerate(cases) if bool(case.illegal.any())}
    )
    try:
        for number in result.of:
            variants = _variants(cases[number], calls, hypothesis, result)
            judge_variants(result, number, cases[number], variants)
    except Failed:
        return None
    return result


def _variants(case: Case, calls: list[Observed], hypothesis: Hypothesis, result: Score) -> Iterable[Tensor]:
    if not is_inner(hypothesis):
        yield predict(case.model, case.call, hypothesis, views=(case.view,))[case.view]
        return
    if hypothesis.fault.unit == "call":
        yield from _by_chance(case, calls, hypothesis, result)
        return
    activation = case.call.arguments.get("activation", "silu")
    places: list[int | None] = [None]
    if faulted_calls(hypothesis, activation) > 1:
        places += [0, 1]
    failing = case.illegal.any(-1).any(-1)
    partly = bool((failing != case.valid).any())
    for only in places:
        yield planted_output(case, hypothesis, only)
        if partly and not case.part:  # where values come from other rows, it matters that those are right
            yield planted_output(case, hypothesis, only, rows=failing)


def _by_chance(case: Case, calls: list[Observed], hypothesis: Hypothesis, result: Score) -> Iterable[Tensor]:
    """Yield the outputs under the likely random choices of a fault of memory or order, until one is what was seen."""
    differs = ~same(case.seen, case.healthy) & case.illegal.any(-1, keepdim=True)
    earlier = replace(hypothesis.parameters(), random=Choices(None))
    layers = [call for call in calls if call.stage == MASKED_MOE]
    before = layers[: next((i for i, call in enumerate(layers) if call is case.call), 0)][-_REMEMBERED:]
    # The first call that was recorded comes after the failure itself, on the same inputs.
    for call in before or [case.call]:
        with unharmed(call):
            Planted(case.model.keep_to(None), hypothesis, earlier).masked_moe(**call.arguments)
    rows = case.illegal.any(-1).any(-1)
    count = faulted_calls(hypothesis, case.call.arguments.get("activation", "silu"))
    everywhere = (True,) * count
    ways: list[tuple[int | None, tuple[bool, ...]]] = [(None, everywhere)]
    through = ThroughLayer(case)
    nearest = right = relative(case.seen, case.healthy)
    while ways:
        only, strikes = ways.pop(0)
        tensors = (t.flatten(2) for t in (differs, case.seen, case.healthy))
        choices = Choices(*tensors, through=through, strikes=strikes)
        while True:
            parameters = replace(earlier, random=choices, state=dict(earlier.state))
            predicted = planted_output(case, hypothesis, only, parameters=parameters)
            result.chosen |= choices.used
            yield predicted
            nearest = torch.minimum(nearest, relative(case.seen, predicted))
            if bool((nearest[rows] <= EXACTLY).all()):
                return
            explained = nearest[rows] <= MUCH_NEARER * right[rows]
            hopeless = choices.of_rows and choices.tries >= FEW_TRIES and not bool(explained.any())
            if hopeless or not choices.used or not choices.advance():
                break
        if strikes == everywhere and count > 1:  # then in one stage call alone, the last one first
            alone = range(count - 1, -1, -1)
            # What strikes by chance is there in the other calls too, and may remember them.
            ways = [
                (None, tuple(n == call for n in range(count))) if choices.asked else (call, ())
                for call in alone
            ]


def reading_other_rows(tried: list[Hypothesis], cases: list[Case], end: float) -> list[Hypothesis]:
    """Return the faults that a few rows do not show: with all rows there, they predict something else for those few."""
    pairs = [(_adding_at_once(cases[n]), cases[n].screened()) for n in failing_outputs(cases)]
    found = []
    for hypothesis in filter(is_inner, tried):
        if time.thread_time() > end:
            break
        with contextlib.suppress(Failed):
            if any(_shows_more(whole, part, hypothesis) for whole, part in pairs):
                found.append(hypothesis)
    return found


def _shows_more(whole: Case, part: Case, hypothesis: Hypothesis) -> bool:
    """Return whether a fault does something else to the rows of a part where all other rows are there."""
    everywhere, there = (planted_output(case, hypothesis, None) for case in (whole, part))
    return bool((relative(everywhere, there)[part.valid] > SAME).any())


def planted_output(
    case: Case,
    hypothesis: Hypothesis,
    only: int | None,
    *,
    rows: Tensor | None = None,
    parameters: Parameters | None = None,
) -> Tensor:
    """Return the layer's output with a fault in its stages, as elements. Raises Failed where it cannot be planted."""
    healthy = getattr(case, "healthy_stages", None)
    parameters = parameters or hypothesis.parameters()
    planted = Planted(case.model, hypothesis, parameters, only, rows=rows, healthy=healthy)
    with unharmed(case.call):
        output = planted.masked_moe(**case.call.arguments).unsqueeze(2)
        return input_bytes(case.call.arguments) if case.view == "inputs" else output


def judge_variants(result: Score, number: int, case: Case, variants: Iterable[Tensor]) -> None:
    """Add to a score which rows of a case are explained by one of several outputs that a fault may have caused."""
    failing = case.illegal.any(-1).any(-1)
    right = relative(case.seen, case.healthy)
    nearest = torch.full_like(right, torch.inf)
    exact = torch.zeros_like(failing)
    shows = torch.zeros_like(failing)
    composed = case.healthy
    for predicted in variants:
        distance = relative(case.seen, predicted)
        composed = torch.where((distance < nearest)[..., None, None], predicted, composed)
        # An infinite distance of the right output (NaN against numbers) is beaten by any finite one.
        nearest = torch.minimum(nearest, distance)
        exact |= same(predicted, case.seen).all(-1).all(-1)
        shows |= (~same(predicted, case.healthy)).any(-1).any(-1) & case.valid
    result.prediction[number] = composed
    explained = failing & (nearest <= NEAR) & (nearest <= MUCH_NEARER * right)
    mask = case.illegal & explained[..., None, None]
    gained = 1 - (nearest / right.clamp(min=1e-30)).nan_to_num(1.0).clamp(max=1.0)
    result.near += float(gained[failing].mean()) / len(result.of)
    result.predicted += int(shows.sum())
    result.shown += int((shows & explained).sum())
    if bool(explained.any()):
        result.explained[number] = mask
        result.exact &= bool(exact[explained].double().mean() > 0.9)


def failing_outputs(cases: list[Case]) -> dict[int, int]:
    """Return how many illegal elements each case of an output has."""
    return {
        n: int(c.illegal.sum()) for n, c in enumerate(cases) if c.view == "output" and bool(c.illegal.any())
    }
