"""SHARDS: ranks that hold the wrong experts, slots or slices are found, right ones are not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.candidates.eager import Eager
from harness.candidates.physical import Physical
from harness.rules.shards import _slots
from harness.running.judge import Judge

PROBLEM = "v2:8x24x128x64:24*8:normal:5"


def judged(candidate: Any, problem: str = PROBLEM) -> list[str]:
    """Return the names of the comparisons that found something illegal; all of them must have compared something."""
    outcome = Judge(candidate, threads=1, probe=False).judge("SHARDS", problem)
    assert outcome.status == "judged", outcome
    assert len(outcome.comparisons) > 6
    return [c.stage for c in outcome.illegal]


@pytest.mark.parametrize("kind", [Eager, Physical])
def test_right_layers_are_right_on_every_rank(kind: Any) -> None:
    assert judged(kind()) == []


def test_an_offset_that_is_not_passed_on_shows_on_the_ranks_behind_the_first() -> None:
    class WithoutOffset(Eager):
        def routed_moe(self, *arguments: Any, **named: Any) -> Tensor:
            return super().routed_moe(*arguments, **(named | {"local_expert_offset": 0}))

    found = judged(WithoutOffset())
    assert any(name.startswith("routed layer, rank 1 of") for name in found)
    assert not any(name.startswith(("routed layer, one", "routed layer, slice")) for name in found)


def test_ids_of_experts_where_slots_are_meant_show_with_redundant_experts_alone() -> None:
    """sglang#18213: a layer in which experts are there twice is given logical numbers."""

    class LogicalIds(Physical):
        experts = 8

        def routed_moe(self, *arguments: Any, **named: Any) -> Tensor:
            if named["num_experts"] > self.experts:
                named["topk_idx"] = named["topk_idx"].clamp(max=self.experts - 1)
            return super().routed_moe(*arguments, **named)

        def load_redundant(
            self, checkpoint: Mapping[str, Tensor], slots: range, places: list[int]
        ) -> dict[str, Tensor]:
            parts = [self.load_experts(checkpoint, range(places[s], places[s] + 1)) for s in slots]
            return {
                n: torch.cat(
                    [p[n].view(torch.uint8) if p[n].element_size() == 1 else p[n] for p in parts]
                ).view(parts[0][n].dtype)
                for n in parts[0]
            }

    found = judged(LogicalIds())
    assert found
    assert all("experts there twice" in name for name in found)


def test_a_slice_of_the_wrong_place_shows() -> None:
    class SecondSliceTwice(Eager):
        def load_slice(
            self, checkpoint: Mapping[str, Tensor], experts: range, place: int, slices: int
        ) -> dict[str, Tensor]:
            from harness.candidates.expert_parallel import slice_of_width

            return self.load_experts(slice_of_width(checkpoint, place, slices), experts)

        def routed_moe(self, *arguments: Any, **named: Any) -> Tensor:
            out: Tensor = super().routed_moe(*arguments, **named)
            return out * 2 if named["w2"].shape[2] < 32 else out  # of a slice alone

    found = judged(SecondSliceTwice())
    assert found == ["routed layer, slice 0 of 2", "routed layer, slice 1 of 2"]


def test_slots_hold_the_experts_that_tokens_name() -> None:
    ids = torch.tensor([[0, 2], [2, -1], [1, 2]], dtype=torch.int32)
    places = [2, 0, 1, 2]
    slots = _slots(ids, places)
    assert slots.tolist() == [[1, 0], [3, -1], [2, 0]]
    there = slots >= 0
    assert torch.equal(torch.tensor(places)[slots.long()][there].int(), ids[there])
