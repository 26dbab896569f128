"""Dispatch, the experts of any candidate, and combine over real ranks: each judged on what it received."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from harness.candidates import load_candidate, support_of
from harness.candidates.composition import compose_tapped
from harness.candidates.layer_stages import LayerStages
from harness.candidates.out_of_contract import out_of_contract
from harness.candidates.over_ranks import EagerGloo
from harness.candidates.physical import Physical
from harness.candidates.traits import Traits
from harness.candidates.with_experts import WithExperts
from harness.faults.named import load_named, plant
from harness.running.judge import Judge
from harness.running.outcome import Outcome

BF16 = "4x20x128x64:5,0,7,20:normal:0"
FP8 = "8x24x128x64:24*8:normal:6"
NVFP4 = "8x24x128x64:24*8:normal:7"
PROBLEMS = {"bf16": BF16, "fp8": FP8, "nvfp4": NVFP4}


@pytest.fixture(scope="module")
def over(two_over_gloo: Callable[[], EagerGloo]) -> EagerGloo:
    return two_over_gloo()


def judged(candidate: object, rule: str, problem: str) -> Outcome:
    outcome = Judge(candidate, threads=1, probe=False).judge(rule, problem)
    assert outcome.status == "judged", outcome
    return outcome


@pytest.mark.parametrize("transport", PROBLEMS)
@pytest.mark.parametrize("experts", ["physical", "control:opaque_shuffled"])
def test_right_experts_pass_and_every_stage_is_judged(over: EagerGloo, experts: str, transport: str) -> None:
    outcome = judged(WithExperts(over, load_candidate(experts)), "EP", PROBLEMS[transport])
    assert not outcome.illegal, outcome
    stages = [one.stage for one in outcome.comparisons]
    assert stages[:2] == [f"dispatch.{transport}.count", f"dispatch.{transport}.source"]
    assert stages[-4:] == [
        "experts of rank 0: layer, propagated", "experts of rank 1: layer, propagated", "combine", "layer",
    ]  # fmt: skip
    assert all(one.compared and one.accepted_altered == [] for one in outcome.comparisons)


class Tapped(Physical):
    """`physical` as an engine's adapter shows it: with the stage calls of the layer."""

    def masked_moe_tapped(self, **arguments: Any) -> Any:
        return compose_tapped(self, **arguments)


@pytest.mark.parametrize("transport", PROBLEMS)
def test_experts_with_taps_are_judged_call_by_call(over: EagerGloo, transport: str) -> None:
    outcome = judged(WithExperts(over, Tapped()), "EP", PROBLEMS[transport])
    assert not outcome.illegal, outcome
    calls = [
        "tapped gemm1",
        "tapped activation.scale",
        "tapped activation.codes",
        "tapped gemm2",
        "layer output",
    ]
    if transport != "nvfp4":  # which comes quantized
        calls = ["tapped quantize.scale", "tapped quantize.codes", *calls]
    here = [one.stage for one in outcome.comparisons if one.stage.startswith("experts of rank 1")]
    assert here == [f"experts of rank 1: {call}" for call in calls]


@pytest.mark.parametrize("fault", ["alpha_of_neighbour", "output_scaled"])
def test_a_fault_in_the_experts_is_found_there_and_named(over: EagerGloo, fault: str) -> None:
    """Dispatch and combine stay right: combine is judged on what the experts gave."""
    judge = Judge(plant(WithExperts(over, load_candidate("physical")), fault), threads=1, probe=False)
    illegal = {one.stage.partition(":")[0] for one in judge.judge("EP", FP8).illegal}
    assert illegal - {"layer"} == {"experts of rank 0", "experts of rank 1"}
    assert fault in [one["fault"] for one in judge.diagnose("EP", FP8, "harness diagnose")]


@pytest.mark.parametrize("fault", ["fp8_scale_rounded_up", "weights_applied_twice"])
def test_a_fault_of_the_ranks_is_found_in_its_stage_alone(over: EagerGloo, fault: str) -> None:
    faulty = plant(WithExperts(over, load_candidate("physical")), fault)
    stages = {one.stage for one in judged(faulty, "EP", FP8).illegal} - {"layer"}
    assert stages == ({"combine"} if fault == "weights_applied_twice" else {"dispatch.fp8.scale"})


@pytest.mark.parametrize("rule", ["DISPATCH", "COMBINE", "ROUTE"])
def test_what_was_sent_is_judged_by_the_senders_arithmetic(over: EagerGloo, rule: str) -> None:
    """`physical` quantizes otherwise than `eager`, which sends."""
    both = WithExperts(over, load_candidate("physical"))
    assert (both.traits.arithmetic, both.traits.sender_arithmetic) == ("fast", "real")
    assert not judged(both, rule, NVFP4).illegal


def test_bits_that_depend_on_their_place_are_judged_by_stage_alone(over: EagerGloo) -> None:
    outcome = judged(WithExperts(over, load_candidate("control:stream_k")), "EP", BF16)
    assert not outcome.illegal, outcome
    assert outcome.comparisons[-1].stage == "combine"


class OnlyLayer(LayerStages):
    traits = Traits(device="cpu")


def test_what_does_not_fit_is_a_reason() -> None:
    for name, reason in (
        (
            "eager-gloo:experts=control:eager_bf16_with_mxfp4",
            "the checkpoints are NVFP4, and the experts take mxfp4",
        ),
        ("eager-gloo:fp8:experts=eager-cuda", "needs a CUDA device"),
    ):
        assert reason in support_of(load_named(name)).reason, name
    ranks = EagerGloo(2)
    assert (
        support_of(WithExperts(ranks, OnlyLayer())).reason == "the candidate of the experts has no masked_moe"
    )
    ranks.traits = replace(ranks.traits, hidden_sizes=(2560,))
    wide = Physical(k_multiple=1024)
    assert (
        "carry tokens of 2560 channels, and the experts take multiples of 1024"
        in WithExperts(ranks, wide).support().reason
    )
    ranks.keep_to(("fp8",))
    ranks._carried = ("bf16",), ("bf16",)
    assert support_of(ranks).reason == "it has no transport fp8: it has bf16"


def test_transports_that_are_not_asked_for_are_carried_and_not_judged(over: EagerGloo) -> None:
    kept = over.traits
    try:
        over.keep_to(("fp8", "logfmt"))
        assert (over.traits.transports, over.traits.combine_transports) == (("fp8",), ("bf16", "logfmt"))
        names = {one.stage.split(".")[1] for one in judged(over, "DISPATCH", BF16).comparisons}
        assert names == {"fp8"}
        assert [one.stage for one in judged(over, "COMBINE", BF16).comparisons] == [
            "combine",
            "combine.logfmt",
        ]
        over.keep_to(("nvfp4",))
        assert [one.stage for one in judged(over, "COMBINE", BF16).comparisons] == ["combine"]
        assert "combine by logfmt" in over.traits.left_out
        assert out_of_contract(over.traits) == []
    finally:
        over.keep_to(())
        over.traits = kept
