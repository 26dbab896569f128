"""ROUTE where some experts are there twice: the slot that a token goes to holds its expert."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from harness.candidates.eager import Eager
from harness.running.judge import Judge
from harness.running.outcome import Outcome

PROBLEM = "4x8x64x128:8,4,0,1:normal:6"


class Spread(Eager):
    """Every other token goes to the last slot that holds its expert."""

    def place_topk(self, topk_idx: Tensor, places: Sequence[int], rank: int, ranks: int) -> dict[str, Tensor]:
        held = torch.tensor(places)
        first = (held == topk_idx.unsqueeze(-1)).int().argmax(-1)
        last = len(places) - 1 - (held.flip(0) == topk_idx.unsqueeze(-1)).int().argmax(-1)
        slots = first.clone()
        slots[::2] = last[::2]
        return {"in turns": slots}


class NotPlaced(Spread):
    """sglang#18213: ids of experts where those of slots belong, one further."""

    def place_topk(self, topk_idx: Tensor, places: Sequence[int], rank: int, ranks: int) -> dict[str, Tensor]:
        return {"in turns": (topk_idx + 1) % len(places)}


class Narrow(Spread):
    def place_topk(self, topk_idx: Tensor, places: Sequence[int], rank: int, ranks: int) -> dict[str, Tensor]:
        return {"in turns": super().place_topk(topk_idx, places, rank, ranks)["in turns"].int()}


def judged(candidate: Eager) -> Outcome:
    return Judge(candidate, threads=1, probe=False).judge("ROUTE", PROBLEM)


def test_any_slot_that_holds_the_expert_is_legal_on_every_rank() -> None:
    slots = [each for each in judged(Spread()).comparisons if each.stage.startswith("route.slots")]
    assert [each.stage for each in slots] == [
        f"route.slots (in turns, rank {rank})" for rank in range(len(slots))
    ]
    assert len(slots) > 1
    for each in slots:
        assert not each.illegal
        assert each.compared
        assert not each.accepted_altered


def test_another_experts_slot_is_illegal_and_the_places_are_said() -> None:
    wrong = next(each for each in judged(NotPlaced()).comparisons if each.illegal)
    assert wrong.stage == "route.slots (in turns, rank 0)"
    assert "for expert" in wrong.message
    assert "slots hold the experts [0, 1, 2, 3, " in wrong.message


def test_slots_of_another_type_break_the_contract() -> None:
    outcome = judged(Narrow())
    assert outcome.status == "contract"
    assert "place_topk" in outcome.error
