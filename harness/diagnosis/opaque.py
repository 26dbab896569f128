"""A layer of which only the final output was seen: rows are compared, since one legal code flips a whole row a little.

A row is explained where the prediction comes much nearer to it than the right output does. A fault may sit in one of two
stage calls of a row, and a fault of blocks in some of its blocks: both are tried.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import product
from typing import Any

import torch
from torch import Tensor

from harness.diagnosis.case import Case, same
from harness.diagnosis.choices import Choices
from harness.diagnosis.explain import Score
from harness.diagnosis.hypotheses import Failed, Hypothesis, predict, unharmed
from harness.diagnosis.layer import Planted, faulted_calls, is_inner, quantized_in
from harness.diagnosis.models import at_once
from harness.diagnosis.observation import MASKED_MOE, Observed
from harness.faults.fault import Parameters

NEAR = 0.05  # relative distance of a row that legal code flips may cause
MUCH_NEARER = 0.3
EXACTLY = 1e-6
PROMISING = 0.85  # what the best choice in one of the two quantizations must reach
_ENUMERATED = 8  # blocks of which all subsets are tried
_ROUNDS = 16
_REMEMBERED = 2  # layers before the failing one that a fault may remember


class LayerCase(Case):
    """A call of masked_moe with illegal elements."""

    def _choose_model(self) -> None:
        rows = self.valid & self.legal.all(-1).all(-1)
        distances = []
        for model in self.models[:4]:
            right = predict(model, self.call, None)["output"]
            distance = relative(self.seen, right)[rows]
            distances.append((float(distance.mean()) if len(distance) else 0.0, right))
        best = min(range(len(distances)), key=lambda i: distances[i][0])
        self.healthy = distances[best][1]
        self.models = [self.models[best], *(m for i, m in enumerate(self.models) if i != best)]
        self.exact = False
        self.care = None
        self.wild = False

    def screened(self, experts: int = 2) -> Case:
        """Return the case of a few failing rows, in a model that adds at once: rows are compared with some tolerance."""
        part = super().screened(experts)
        part.models = [replace(model, product=at_once) for model in part.models]
        part.__dict__.pop("_stages", None)
        return part

    @property
    def healthy_stages(self) -> dict[int, Any]:
        """Return what the model's stage calls give, filled as they are needed, apart for a screened case."""
        stages: dict[int, dict[int, Any]] = self.__dict__.setdefault("_stages", {})
        return stages.setdefault(id(self.model), {})

    def work(self) -> int:
        """Return about how many multiplications one prediction costs."""
        return self.seen.numel() * int(self.call.arguments["w2"].shape[2]) * 6


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
            variants = _variants(cases[number], calls, hypothesis)
            _judge(result, number, cases[number], variants)
    except Failed:
        return None
    return result


def _variants(case: Case, calls: list[Observed], hypothesis: Hypothesis) -> Iterable[Tensor]:
    if not is_inner(hypothesis):
        yield predict(case.model, case.call, hypothesis)["output"]
        return
    if hypothesis.fault.unit == "call":
        yield from _by_chance(case, calls, hypothesis)
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


def _by_chance(case: Case, calls: list[Observed], hypothesis: Hypothesis) -> Iterable[Tensor]:
    """Yield the outputs under the likely random choices of a fault of memory or order, until one is what was seen."""
    differs = ~same(case.seen, case.healthy) & case.illegal.any(-1, keepdim=True)
    choices = Choices(*(t.flatten(2) for t in (differs, case.seen, case.healthy)))
    earlier = replace(hypothesis.parameters(), random=Choices(None))
    for call in calls[: next((i for i, call in enumerate(calls) if call is case.call), 0)][-_REMEMBERED:]:
        if call.stage == MASKED_MOE:
            with unharmed(call):
                Planted(case.model.keep_to(None), hypothesis, earlier).masked_moe(**call.arguments)
    while True:
        parameters = replace(earlier, random=choices, state=dict(earlier.state))
        predicted = planted_output(case, hypothesis, None, parameters=parameters)
        yield predicted
        rows = case.illegal.any(-1).any(-1)
        if (
            not choices.used
            or bool((relative(case.seen, predicted)[rows] <= EXACTLY).all())
            or not choices.advance()
        ):
            break


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
        return planted.masked_moe(**case.call.arguments).unsqueeze(2)


def _judge(result: Score, number: int, case: Case, variants: Iterable[Tensor]) -> None:
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


def score_blocks(cases: list[Case], hypothesis: Hypothesis) -> Score | None:
    """Test a fault of blocks that only some blocks of the rows have; None where it cannot be planted or finds no blocks.

    The blocks are looked for in one failing row, all subsets of few blocks at once, and then tried on all rows.
    """
    result = Score(
        hypothesis, {n: int(case.illegal.sum()) for n, case in enumerate(cases) if bool(case.illegal.any())}
    )
    try:
        for number in result.of:
            case = cases[number]
            variants = []
            for expert, row in _telling_rows(case):
                if (found := _blocks_of_row(case, hypothesis, expert, row)) is not None:
                    first, second = found
                    none = torch.zeros_like(first), torch.zeros_like(second)
                    kept = {
                        (first, second),
                        *([(first, none[1]), (none[0], second)] if first.any() and second.any() else []),
                    }
                    variants += [_with_blocks(case, hypothesis, *blocks) for blocks in kept]
            if not variants:
                return None
            _judge(result, number, case, variants)
    except Failed:
        return None
    return result


def _telling_rows(case: Case) -> list[tuple[int, int]]:
    """Return the failing rows that are furthest from right, of two experts at most."""
    far = (
        relative(case.seen, case.healthy)
        .nan_to_num(0, posinf=0)
        .masked_fill(~case.illegal.any(-1).any(-1), 0)
    )
    best = far.max(-1)
    experts = best.values.argsort(descending=True)[:2].tolist()
    return [(e, int(best.indices[e])) for e in experts if best.values[e] > 0]


def _subsets(blocks: int) -> Tensor:
    """Return all subsets but the empty one, `(subsets, blocks)` bool; of many blocks each single one and all of them."""
    if blocks <= _ENUMERATED:
        return torch.tensor(list(product([False, True], repeat=blocks))[1:])
    return torch.cat((torch.eye(blocks, dtype=torch.bool), torch.ones(1, blocks, dtype=torch.bool)))


def _blocks_of_row(case: Case, hypothesis: Hypothesis, expert: int, row: int) -> tuple[Tensor, Tensor] | None:
    """Find the blocks of the two quantizations whose faulty versions give a row; None where none come much nearer."""
    arguments = case.call.arguments
    x, x_scale = arguments["hidden_states"]
    if x_scale is not None:
        return None
    sizes = x.shape[2] // 16, arguments["w2"].shape[2] // 8
    target = case.seen[expert, row].flatten()
    subsets = [torch.cat((torch.zeros(1, size, dtype=torch.bool), _subsets(size))) for size in sizes]

    def nearest(first: Tensor, second: Tensor) -> tuple[float, Tensor, Tensor]:
        distance = _row_distances(case, hypothesis, expert, row, (first, second), target)
        best = int(distance.argmin())
        return float(distance[best]), first[best], second[best]

    # The two quantizations have subsets of their own: look for one given the other, in turn.
    none = [torch.zeros(len(subsets[1 - i]), sizes[i], dtype=torch.bool) for i in (0, 1)]
    firsts, seconds = (
        [subsets[0], none[0], torch.ones(1, sizes[0], dtype=torch.bool)],
        [none[1], subsets[1], torch.ones(1, sizes[1], dtype=torch.bool)],
    )
    if sizes[0] == sizes[1]:
        firsts.append(subsets[0])
        seconds.append(subsets[1])
    found, *chosen = nearest(torch.cat(firsts), torch.cat(seconds))
    right = float(relative(case.seen, case.healthy)[expert, row])
    if found > PROMISING * right:
        return None
    for turn in range(_ROUNDS):
        if found <= EXACTLY:
            break
        which = turn % 2
        options = subsets[which] if sizes[which] <= _ENUMERATED else _flips(chosen[which])
        fixed = chosen[1 - which].expand(len(options), -1)
        better = nearest(*((options, fixed) if which == 0 else (fixed, options)))
        if better[0] >= found and turn % 2:
            break
        if better[0] < found:
            found, *chosen = better
    return (chosen[0], chosen[1]) if found <= MUCH_NEARER * right else None


def _flips(chosen: Tensor) -> Tensor:
    """Return a choice of blocks with each single block flipped, `(blocks, blocks)` bool."""
    return chosen ^ torch.eye(len(chosen), dtype=torch.bool)


def _row_distances(
    case: Case, hypothesis: Hypothesis, expert: int, row: int, masks: tuple[Tensor, Tensor], target: Tensor
) -> Tensor:
    """Return how far one row is from its prediction under each choice of faulty blocks, `(choices,)`."""
    arguments = dict(case.call.arguments)
    x, count = arguments["hidden_states"][0], len(masks[0])
    copies = x[:, :1].expand(-1, count, -1).clone()
    copies[expert] = x[expert, row]
    arguments["hidden_states"] = (copies, None)
    arguments["masked_m"] = torch.zeros_like(arguments["masked_m"])
    arguments["masked_m"][expert] = count
    masks_of = [m.unsqueeze(0).expand(x.shape[0], -1, -1) for m in masks]
    predicted = _merged(case, hypothesis, arguments, masks_of)
    seen = target.expand(1, count, -1)
    return relative(seen, predicted[expert : expert + 1])[0]


def _with_blocks(case: Case, hypothesis: Hypothesis, first: Tensor, second: Tensor) -> Tensor:
    arguments = case.call.arguments
    experts, rows = arguments["hidden_states"][0].shape[:2]
    masks = [m.expand(experts, rows, -1) for m in (first, second)]
    return _merged(case, hypothesis, dict(arguments), masks).unsqueeze(2)


def _merged(case: Case, hypothesis: Hypothesis, arguments: dict[str, Any], masks: list[Tensor]) -> Tensor:
    """Return the layer's output `(experts, rows, k)` with the fault in some blocks of each quantization only."""

    def merge(_: str, number: int, healthy: Any, faulty: Any) -> Any:
        return quantized_in(masks[min(number, 1)], healthy, faulty)

    planted = Planted(case.model.keep_to(None), hypothesis, hypothesis.parameters(), None, merge)
    with unharmed(case.call):
        return planted.masked_moe(**arguments)


def has_blocks(hypothesis: Hypothesis) -> bool:
    """Return whether a fault can sit in single blocks of a quantization."""
    return hypothesis.fault.unit == "block" and all("quantize" in stage for stage in hypothesis.fault.stages)
