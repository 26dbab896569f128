"""`humming-routed` on a CPU: all of it but the kernels, for which a stand-in computes the right product."""

from __future__ import annotations

import inspect
import sys
from dataclasses import replace
from functools import cached_property
from typing import Any

import pytest
import torch

from harness.candidates import humming_package
from harness.candidates.eager import EagerKernels
from harness.candidates.humming_routed import HummingRouted
from harness.candidates.slots import Slots
from harness.candidates.support import Support, supported
from harness.candidates.traits import Traits
from harness.faults.named import plant
from harness.judging.context import Context, Known
from harness.judging.routed import arguments
from harness.problems.problem import parse_problem
from harness.running.judge import Judge
from harness.running.outcome import Outcome
from tests.candidates import humming_stand_in

PROBLEMS = ("v2:4x33x128x128:33,0,9,1:normal:3", "v2:3x9x256x128:9,4,0:grid:5:sharded")
RULES = (
    "ROUTED",
    "SLOTS",
    "PREPARE",
    "PAD-ROWS",
    "PAD-OUT",
    "INPUTS",
    "LAYOUT-IN",
    "REPEAT",
    "EXPERTS",
    "TOKENS",
)
FAULTS = (
    "weight_scales_of_neighbour_expert", "weights_of_neighbour_expert", "weight_halves_swapped", "weight_scale_rows_moved",
    "last_expert_not_prepared", "alpha_of_neighbour", "alpha_rounded_to_bf16", "weight_nibbles_swapped",
    "alphas_of_first_preparation",
)  # fmt: skip


class OnCpu(HummingRouted):
    """The candidate where the stand-in is: its sums are exact, whatever is declared of a GPU's."""

    @cached_property
    def traits(self) -> Traits:
        made = HummingRouted.traits.func(self)  # type: ignore[attr-defined]
        steady = {"deterministic": True, "place_invariant": True}
        return replace(made, device="cpu", summation="exact", far=False, **steady)

    def support(self) -> Support:
        return supported()


class OnTheUnit(OnCpu):
    """The candidate as it declares itself, for a stand-in that adds as the unit of FP8 does."""

    @cached_property
    def traits(self) -> Traits:
        return replace(super().traits, summation="sm_90 f8")


def install(monkeypatch: pytest.MonkeyPatch, **like: Any) -> None:
    humming_stand_in.install(monkeypatch, **like)
    monkeypatch.setattr(humming_package, "is_installed", lambda: False)  # so that nobody asks for its tiles


def judged(candidate: object, rule: str, problems: tuple[str, ...] = PROBLEMS) -> list[Outcome]:
    judge = Judge(candidate, threads=1, probe=False)
    return [judge.judge(rule, problem) for problem in problems]


@pytest.mark.parametrize("mode", HummingRouted.modes)
def test_every_mode_is_right(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)
    candidate = OnCpu(mode)
    assert candidate.name == f"humming-routed:{mode}"
    for rule in RULES if "nvfp4" in mode and candidate.gemm.one_pass else RULES[:2]:
        outcomes = judged(candidate, rule)
        compared = sum(c.compared for outcome in outcomes for c in outcome.comparisons)
        assert compared > 0, (rule, [(outcome.status, outcome.error) for outcome in outcomes])
        for outcome in outcomes:
            assert outcome.status == "judged", (rule, outcome.error)
            assert outcome.illegal == [], outcome.illegal[0].message
            assert bool(outcome.kernels) == (rule != "PREPARE")


@pytest.mark.parametrize(
    "mode", ["nvfp4-bf16-indexed", "mxfp4-bf16-grouped", "mxfp4-fp8-indexed", "mxfp4-fp8-grouped"]
)
def test_the_layer_is_what_its_arguments_mean(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through preparation, routing and the final sum come the bits that `eager` makes of what was handed over."""
    install(monkeypatch)
    candidate = OnCpu(mode)
    traits = candidate.traits
    eager = EagerKernels(
        activation_format=traits.activation_format,
        weight_format=traits.weight_format,
        activations=("silu",),
        k_multiple=64,
    )
    for problem in PROBLEMS:
        call = arguments(Context(candidate, parse_problem(problem), Known.declared(traits)))
        wanted = eager.routed_moe(**(call | {"out": call["out"].clone()}))
        assert candidate.routed_moe(**call) is call["out"]
        assert torch.equal(call["out"], wanted)


@pytest.mark.parametrize("kind", ["indexed", "grouped"])
def test_sums_of_fp8_that_keep_13_fractional_bits_are_legal(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The layer hides them: they are bounded by what is known of the unit."""
    install(monkeypatch, unit="sm_90 f8")
    problems = ("v2:1x1x256x128:1:normal:0", "v2:2x24x512x384:17,9:spread:1944")
    for rule in ("ROUTED", "SLOTS"):
        for outcome in judged(OnTheUnit(f"mxfp4-fp8-{kind}"), rule, problems):
            assert outcome.status == "judged", outcome.error
            assert outcome.illegal == [], outcome.illegal[0].message
            # A token that goes to the same expert twice has rows that are alike.
            assert rule == "SLOTS" or not any(c.accepted_altered for c in outcome.comparisons)
            assert {f"routed layer, {what} in FP8" for what in ("tokens", "activation")} <= {
                c.stage.replace("one token, ", "") for c in outcome.comparisons
            }


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_of_prepared_weights_are_caught(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)
    assert any(outcome.fails for outcome in judged(plant(OnCpu(), fault), "ROUTED")), fault


def test_weights_of_an_earlier_layer_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)
    candidate = plant(OnCpu(), "weights_of_first_preparation")
    assert any(outcome.fails for outcome in judged(candidate, "EXPERTS"))


def test_weights_are_prepared_once(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)
    candidate, made = OnCpu(), []
    prepare = candidate.prepare
    monkeypatch.setattr(candidate, "prepare", lambda *given: made.append(1) or prepare(*given))
    call = arguments(Context(candidate, parse_problem(PROBLEMS[0]), Known.declared(candidate.traits)))
    candidate.routed_moe(**call)
    candidate.routed_moe(**(call | {"topk_weights": call["topk_weights"] * 2}))
    assert len(made) == 2
    call["w2_alpha"] *= 2
    candidate.routed_moe(**call)
    assert len(made) == 3


class Stream(OnCpu):
    """The package's default mode, under its own declaration."""

    @cached_property
    def traits(self) -> Traits:
        return replace(HummingRouted.traits.func(self), device="cpu", far=False)  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", ["indexed", "grouped"])
def test_rounded_partial_sums_are_judged_gemm_by_gemm(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through both GEMMs the range of a row widens until it holds x1.1; each GEMM on its own operands tells it."""
    install(monkeypatch, one_pass=False)
    candidate, problem = Stream(f"nvfp4-bf16-{kind}-stream"), "v2:4x33x512x512:33,0,9,1:normal:3"
    for rule in ("ROUTED", "SLOTS"):
        (outcome,) = judged(candidate, rule, (problem,))
        assert {c.stage.rpartition(", ")[2] for c in outcome.comparisons} >= {"first GEMM", "second GEMM"}
        for each in outcome.comparisons:
            assert (each.illegal, each.accepted_altered) == (0, []), each.stage
    monkeypatch.setattr(HummingRouted, "routed_moe_tapped", property())
    (outcome,) = judged(candidate, "ROUTED", (problem,))
    assert "x1.1" in outcome.comparisons[0].accepted_altered


@pytest.mark.parametrize(
    ("tap", "factor", "where"),
    [("gate_up", 1.02, "first GEMM"), ("rows", 1.02, "second GEMM"), ("out", 1.02, "")],
)
def test_what_a_gemm_stored_wrongly_is_seen_there(
    tap: str, factor: float, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Wrong(OnCpu):
        def routed_moe_tapped(self, **arguments: Any) -> Any:
            out, taps = super().routed_moe_tapped(**arguments)
            if tap == "out":
                return out * factor, taps
            return out, replace(taps, **{tap: getattr(taps, tap) * factor})

    install(monkeypatch)
    (outcome,) = judged(Wrong(), "ROUTED", PROBLEMS[:1])
    assert outcome.illegal[0].stage.removeprefix("routed layer").removeprefix(", ") == where


def test_an_option_that_gets_lost_is_a_failure_that_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, one_pass=False)
    outcome = judged(OnCpu(), "ROUTED")[0]
    assert outcome.status == "contract"
    assert outcome.error.startswith("asked for one pass True, False ran: activations bfloat16")


@pytest.mark.parametrize("target", [*humming_package.PARAMETERS, *humming_package._QUANTIZERS])
def test_a_renamed_parameter_is_named(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, older=target.endswith("quant_input"))
    assert humming_package.changed() == ""
    module, _, names = target.partition(":")
    owner, _, attribute = names.rpartition(".")
    place: Any = sys.modules[module] if not owner else getattr(sys.modules[module], owner)
    function, name = (
        getattr(place, attribute),
        (humming_package.PARAMETERS | humming_package._QUANTIZERS)[target][-1],
    )
    given = inspect.signature(function).parameters
    kinds = {p.kind for p in given.values()} - {inspect.Parameter.VAR_KEYWORD}
    assert kinds, target
    renamed = [
        p.replace(name=f"{p.name}_new") if p.name == name else p
        for p in given.values()
        if p.kind is not p.VAR_KEYWORD
    ]
    other: Any = lambda *_, **__: None  # noqa: E731 - a function whose signature is another one
    other.__signature__ = inspect.Signature(sorted(renamed, key=lambda p: p.kind))
    monkeypatch.setattr(place, attribute, staticmethod(other) if owner else other)
    assert f"unknown {name}" in humming_package.changed() or f", {name}" in humming_package.changed()
    for each, value in (("is_available", True), ("get_device_capability", (9, 0))):
        monkeypatch.setattr(torch.cuda, each, lambda value=value: value)
    monkeypatch.setattr(humming_package, "is_installed", lambda: True)
    assert target in HummingRouted().support().reason


@pytest.mark.parametrize("target", humming_package.PARAMETERS)
def test_a_function_that_is_gone_is_named(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)
    monkeypatch.delitem(sys.modules, target.partition(":")[0])
    assert f"has no {target.partition(':')[0]}:" in humming_package.changed()


@pytest.mark.parametrize("change", [{"activation": "relu2"}, {"topk_idx": torch.tensor([[9]])}])
def test_what_it_cannot_do_is_refused(change: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)
    candidate = OnCpu()
    call = arguments(Context(candidate, parse_problem(PROBLEMS[0]), Known.declared(candidate.traits)))
    with pytest.raises(
        ValueError, match=r"routed_moe: (activation must be one of silu|topk_idx must lie in)"
    ):
        candidate.routed_moe(**(call | change))


def test_slots_lie_in_blocks_of_one_expert_each() -> None:
    slots = Slots(torch.tensor([[5, -1, 4], [7, 5, 3], [2, 5, 4]], dtype=torch.int32), experts=3, offset=3)
    assert slots.there.tolist() == [[True, False, True], [False, True, True], [False, True, True]]
    assert slots.counts.tolist() == [1, 2, 3]
    assert slots.offsets.tolist() == [0, 1, 3, 6]
    assert slots.order[:6].tolist() == [5, 2, 8, 0, 4, 7]
    ids, experts, used = slots.aligned(4)
    assert (int(used), ids.dtype, experts.dtype) == (12, torch.int32, torch.int32)
    assert ids[:12].tolist() == [5, 9, 9, 9, 2, 8, 9, 9, 0, 4, 7, 9]
    assert set(ids[12:].tolist()) <= {9}
    assert experts[:3].tolist() == [0, 1, 2]
    assert len(ids) == 4 * len(experts)
