"""LOAD by what the numbers mean: every convention that is right passes and is said, and what loaders get wrong is named."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from harness.candidates.eager import Eager
from harness.candidates.expert_parallel import slice_of_width
from harness.judging.compared import Compared
from harness.running.judge import Judge
from reference.e4m3 import take
from reference.loading import load_experts, tensor_name

PROBLEM = "4x8x64x64:8,4,0,1:normal:6"  # gate has the largest input scale of all


class Loader(Eager):
    """The reference's loader, with the checkpoint or the result changed."""

    def load_experts(self, checkpoint: Mapping[str, Tensor], experts: range) -> dict[str, Tensor]:
        """Load a changed checkpoint."""
        return self.after(load_experts(self.before(dict(checkpoint)), experts), checkpoint, experts)

    def before(self, checkpoint: dict[str, Tensor]) -> dict[str, Tensor]:
        """Change the checkpoint."""
        return checkpoint

    def after(
        self, loaded: dict[str, Tensor], checkpoint: Mapping[str, Tensor], experts: range
    ) -> dict[str, Tensor]:
        """Change what was loaded."""
        return loaded


def rescaled(
    loaded: dict[str, Tensor], scale: Tensor, names: tuple[str, str] = ("a2_global_scale", "w2_alpha")
):
    """Return the arguments with other encode scales, their alphas following."""
    encode, alpha = names
    return loaded | {encode: scale, alpha: loaded[alpha] * loaded[encode] / scale}


def inputs(checkpoint: Mapping[str, Tensor], experts: range, *projections: str) -> Tensor:
    """Return the largest input scale of each expert's projections."""
    there = [p for p in projections if tensor_name(0, p, "weight") in checkpoint]
    of = [[checkpoint[tensor_name(e, p, "input_scale")] for p in there] for e in experts]
    return torch.stack([torch.stack(each).amax() for each in of])


class CutScales(Loader):
    """Scales that are cut out of a wider tensor."""

    def after(self, loaded, checkpoint, experts):
        return {n: t if t.ndim > 1 else torch.stack((t, t), 1)[:, 0] for n, t in loaded.items()}


class SharedIntermediate(Loader):
    """As vLLM has it: one scale for all experts' intermediates."""

    def after(self, loaded, checkpoint, experts):
        total = len({name.split(".")[1] for name in checkpoint})
        largest = inputs(checkpoint, range(total), "down").amax()
        return rescaled(loaded, (1 / largest).expand(len(experts)).contiguous())


class OwnTokenScales(Loader):
    """Each expert's tokens have a scale of their own."""

    def after(self, loaded, checkpoint, experts):
        own = 1 / inputs(checkpoint, experts, "gate", "up")
        return rescaled(loaded, own, ("input_global_scale", "w1_alpha"))


def overwritten(checkpoint: dict[str, Tensor], kind: str, kept: str, lost: str) -> dict[str, Tensor]:
    changed = dict(checkpoint)
    for name, value in checkpoint.items():
        if name.endswith(f".{lost}_proj.{kind}"):
            changed[name] = checkpoint.get(name.replace(f".{lost}_", f".{kept}_"), value)
    return changed


class UpOverGate(Loader):
    """As SGLang has it: up's input_scale is written over gate's."""

    def before(self, checkpoint):
        return overwritten(checkpoint, "input_scale", "up", "gate")


class GateForBoth(Loader):
    """As SGLang has it: gate's weight_scale_2 is used for both."""

    def before(self, checkpoint):
        return overwritten(checkpoint, "weight_scale_2", "gate", "up")


class NotInverted(Loader):
    def after(self, loaded, checkpoint, experts):
        return loaded | {"input_global_scale": 1 / loaded["input_global_scale"]}


class ZeroWhereMissing(Loader):
    def before(self, checkpoint):
        return checkpoint | {
            f"{name.removesuffix('weight')}{kind}": torch.tensor(torch.finfo().tiny)
            for name in checkpoint if name.endswith(".weight")
            for kind in ("input_scale", "weight_scale_2") if f"{name.removesuffix('weight')}{kind}" not in checkpoint
        }  # fmt: skip

    def after(self, loaded, checkpoint, experts):
        return {n: t.masked_fill(t < 1e-30, 0) if t.dtype == torch.float32 else t for n, t in loaded.items()}


class NotMissed(ZeroWhereMissing):
    """The same, of a contract that has complete checkpoints only."""

    def __init__(self) -> None:
        super().__init__()
        self.traits = replace(self.traits, complete_only=True)


class OwnSlices(Loader):
    """Cuts the layer itself, right."""

    def load_slice(self, checkpoint, experts, place, slices):
        return self.load_experts(slice_of_width(checkpoint, place, slices), experts)


class FirstSliceTwice(OwnSlices):
    """Every rank gets the first slice."""

    def load_slice(self, checkpoint, experts, place, slices):
        return super().load_slice(checkpoint, experts, 0, slices)


class Redundant(Loader):
    """Loads experts that are there twice, right."""

    def load_redundant(self, checkpoint, slots, places):
        loaded = self.load_experts(checkpoint, range(max(places) + 1))
        return {name: take(value, [places[slot] for slot in slots]) for name, value in loaded.items()}


class UsualPlaces(Redundant):
    """As SGLang has it: a slot's intermediate scale is that of slot modulo experts."""

    def load_redundant(self, checkpoint, slots, places):
        experts = max(places) + 1
        usual = super().load_redundant(checkpoint, slots, [s % experts for s in range(len(places))])
        return rescaled(super().load_redundant(checkpoint, slots, places), usual["a2_global_scale"])


class NoGateHalved(Loader):
    """A layer without gates loses its last rows."""

    def after(self, loaded, checkpoint, experts):
        gated = tensor_name(0, "gate", "weight") in checkpoint
        return loaded if gated else loaded | {"w1": loaded["w1"].clone().index_fill(1, torch.tensor([-1]), 0)}


def judged(candidate: Eager, problem: str = PROBLEM) -> dict[str, Compared]:
    outcome = Judge(candidate, threads=1, probe=False).judge("LOAD", problem)
    assert not outcome.error, outcome.error
    return {each.stage: each for each in outcome.comparisons}


@pytest.mark.parametrize(
    ("candidate", "tokens", "intermediate"),
    [
        (Eager, "one scale for all experts", "each expert's own scale"),
        (SharedIntermediate, "one scale for all experts", "one scale for all experts"),
        (OwnTokenScales, "each expert's own scale", "each expert's own scale"),
        (OwnSlices, "one scale for all experts", "each expert's own scale"),
        (Redundant, "one scale for all experts", "each expert's own scale"),
        (NotMissed, "one scale for all experts", "each expert's own scale"),
    ],
)
def test_a_right_loader_passes_and_its_convention_is_said(candidate, tokens: str, intermediate: str) -> None:
    found = judged(candidate())
    assert [each.message for each in found.values() if each.illegal] == []
    assert found["load.input_global_scale"].judged == {tokens: 4}
    assert found["load.a2_global_scale"].judged == {intermediate: 4}
    refused = found["load.w1 (gate and up scales differ)"]
    assert refused.judged == {"refused: gate and up must have one weight_scale_2": 1}
    assert {"load.slices", "load.w2 (not gated)", "load.ranks", "load.permuted"} <= set(found)


@pytest.mark.parametrize(
    ("candidate", "stage", "reason"),
    [
        (
            UpOverGate,
            "load.input_global_scale",
            "it is that of up_proj alone: gate_proj's input_scale is lost",
        ),
        (
            GateForBoth,
            "load.w1 (gate and up scales differ)",
            "gate_proj's weight_scale_2 is used for up_proj too",
        ),
        (NotInverted, "load.input_global_scale", "it is not inverted"),
        (ZeroWhereMissing, "load.missing", "the checkpoint has no experts."),
        (FirstSliceTwice, "load.slices", "inter is cut in two"),
        (UsualPlaces, "load.redundant", "not the same: a2_global_scale, w2_alpha"),
        (NoGateHalved, "load.w1 (not gated)", "decodes to 0, the checkpoint's is"),
    ],
)
def test_a_wrong_loader_is_found_and_named(candidate, stage: str, reason: str) -> None:
    found = judged(candidate())
    assert found[stage].illegal
    assert reason in found[stage].message


def test_scales_of_one_expert_may_have_any_stride() -> None:
    assert not any(each.illegal for each in judged(CutScales(), "1x8x64x64:8:normal:6").values())
