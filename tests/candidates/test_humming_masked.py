"""`humming-masked` on a CPU: all of it but the kernels, for which a stand-in computes the right product."""

from __future__ import annotations

import threading
from dataclasses import replace
from functools import cache, cached_property

import pytest
import torch

from harness.candidates import humming_package, layouts, load_candidate, stages_of, support_of
from harness.candidates.humming_masked import HummingMasked, StreamAsOnePass
from harness.candidates.support import Support, supported
from harness.candidates.traits import Traits
from harness.faults.fault import all_faults
from harness.faults.named import plant
from harness.mutants.places import place_of
from harness.mutants.problems import drawn_problems, quick_first
from harness.problems.profiles import find_profile
from harness.rules import find_rules
from harness.running.judge import Judge
from harness.running.outcome import Outcome
from harness.verdict import UsageError
from tests.candidates.humming_stand_in import install

PROBLEMS = (
    "v2:4x33x128x128:33,0,9,1:normal:3",
    "v2:3x9x256x128:9,4,0:grid:5",
    "v2:4x8x128x128:8,1,0,5:normal:6",
)
RULES = ("PREPARE", "GEMM", "MOE", "LAYOUT-IN", "LAYOUT-OUT", "SHAPES")
FAULTS = (
    ("weight_scales_of_neighbour_expert", "GEMM"),
    ("weights_of_neighbour_expert", "GEMM"),
    ("weights_of_first_preparation", "EXPERTS"),
    ("alphas_of_first_preparation", "GEMM"),
    ("weight_halves_swapped", "GEMM"),
    ("weight_scale_rows_moved", "GEMM"),
    ("last_expert_not_prepared", "GEMM"),
    ("alpha_of_neighbour", "GEMM"),
    ("alpha_rounded_to_bf16", "GEMM"),
    ("weight_nibbles_swapped", "GEMM"),
    ("prepared_over_the_next_expert", "PREPARE"),
    ("prepared_from_memory_not_written", "PREPARE"),
    ("prepared_in_place", "PREPARE"),
    ("masked_m_of_previous_call", "EXPERTS"),
)

CANNOT_SHOW = {
    # n and k are multiples of 128 and 64: nothing lies between padded and unpadded scales.
    "weight_scale_pitch_unpadded", "expert_scale_stride_unpadded", "padding_blocks_multiplied",
    # Tokens stay as they are, in all rows: no quantizer reads counts.
    "masked_m_minus_1", "masked_m_of_neighbour",
}  # fmt: skip


class OnCpu(HummingMasked):
    """The candidate where the stand-in is: its sums are exact, whatever is declared of a GPU's."""

    @cached_property
    def traits(self) -> Traits:
        made = HummingMasked.traits.func(self)
        steady = {"deterministic": True, "place_invariant": True}
        return replace(made, device="cpu", summation="exact", cuda_graph=False, far=False, **steady)

    def support(self) -> Support:
        return supported()


def judged(candidate: object, rule: str, problems: tuple[str, ...] = PROBLEMS) -> list[Outcome]:
    judge = Judge(candidate, threads=1, probe=False)
    return [judge.judge(rule, problem) for problem in problems]


@pytest.mark.parametrize("mode", HummingMasked.modes)
def test_every_mode_is_right(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)
    candidate = OnCpu(mode)
    assert candidate.name == f"humming-masked:{mode}"
    for rule in RULES if mode == "nvfp4-bf16" else RULES[:2]:
        for outcome in judged(candidate, rule):
            assert outcome.status == "judged", (rule, outcome.error)
            assert sum(c.compared for c in outcome.comparisons) > 0
            assert outcome.illegal == [], outcome.illegal[0].message
            assert bool(outcome.kernels) == (rule != "PREPARE")


def test_names_of_the_oldest_version_do_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, older=True, columns=256)
    candidate = OnCpu("mxfp4-fp8")  # 9 and 8 rows: few
    assert candidate.traits.n_multiple == 256
    assert all(inter % 256 == hidden % 256 == 0 for _, hidden, inter in candidate.traits.shapes)
    for rule in ("GEMM", "MOE"):
        assert not any(outcome.fails for outcome in judged(candidate, rule, ("v2:2x9x256x256:9,4:grid:5",)))


@pytest.mark.parametrize(("fault", "rule"), FAULTS)
def test_faults_around_the_kernels_are_caught(fault: str, rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)
    assert any(outcome.fails for outcome in judged(plant(OnCpu(), fault), rule)), fault


class OnTheUnit(OnCpu):
    """The candidate as it declares itself, for a stand-in that adds as the unit does."""

    @cached_property
    def traits(self) -> Traits:
        return replace(super().traits, summation="sm_90 f16")


class Varying(OnCpu):
    """The same, said to give other bits from call to call, as parts of k that are added as they arrive do."""

    @cached_property
    def traits(self) -> Traits:
        return replace(super().traits, deterministic=False, place_invariant=False)


@pytest.mark.parametrize(("rule", "fault"), [("PAD-ROWS", "padding_rows_times_zero"), ("PAD-OUT", "rows_never_written")])  # fmt: skip
def test_padding_is_judged_with_power_where_bits_may_vary(rule: str, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    install(monkeypatch)
    for problem in PROBLEMS[:2]:
        (right,) = judged(Varying(), rule, (problem,))
        assert not right.fails
        assert {c.stage for c in right.comparisons} >= {"tapped gemm1", "tapped gemm2", "layer output"}
        assert not any(c.accepted_altered for c in right.comparisons)
        assert judged(plant(Varying(), fault), rule, (problem,))[0].fails


def test_no_rule_fails_a_right_kernel_whose_bits_may_vary(monkeypatch: pytest.MonkeyPatch) -> None:
    """What such a candidate returns is judged on what it was given, which is not the problem's own where a rule changes it."""
    install(monkeypatch)
    rules = [rule.id for rule in find_rules([]) if set(rule.stages) <= set(stages_of(Varying()))]
    outcomes = {rule: judged(Varying(), rule, PROBLEMS[:1])[0] for rule in rules}
    assert {rule: outcome.illegal for rule, outcome in outcomes.items() if outcome.fails} == {}
    assert sum(one.stage == "gemm" for one in outcomes["LAYOUT-IN"].comparisons) > 4


@pytest.mark.long
def test_every_fault_that_can_show_is_caught_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, unit="sm_90 f16")
    stages, traits, quick = stages_of(OnCpu()), OnTheUnit().traits, find_profile("quick")
    problems = cache(lambda rule: quick_first(drawn_problems(find_rules([rule])[0], traits, quick)))
    missed, unnamed, planted = set(), {}, 0
    for fault in all_faults().values():
        place = place_of(fault, "humming-masked", stages, traits)
        if not place.candidate:
            continue
        planted += 1
        judge = Judge(plant(OnTheUnit(), fault.name), threads=1)
        failing = (p for p in map(str, problems(place.rule)) if judge.judge(place.rule, p).fails)
        if (problem := next(failing, None)) is None:
            missed.add(fault.name)
            continue
        first = judge.diagnose(place.rule, problem, "")[0]
        if fault.name not in {first["fault"], *first.get("same_as", ())}:
            unnamed[fault.name] = first
    assert planted >= 85
    assert missed == CANNOT_SHOW
    assert unnamed == {}


def test_an_option_that_gets_lost_is_a_failure_that_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, one_pass=False)
    outcome = judged(OnCpu(), "GEMM")[0]
    assert outcome.status == "contract"
    assert outcome.error.startswith("asked for one pass True, False ran: activations bfloat16")
    assert not any(outcome.fails for outcome in judged(OnCpu("nvfp4-bf16-stream"), "GEMM"))


def test_weights_are_prepared_once_as_long_as_they_stay_what_they_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    install(monkeypatch)
    candidate, made = OnCpu(), []
    prepare = candidate.prepare
    monkeypatch.setattr(candidate, "prepare", lambda *given: made.append(1) or prepare(*given))
    b, scale = torch.zeros(2, 128, 32, dtype=torch.uint8), torch.zeros(2, 128, 4, dtype=torch.uint8)
    a, masked_m = torch.zeros(2, 8, 64).bfloat16(), torch.tensor([8, 3], dtype=torch.int32)
    out, alpha = layouts.empty_out(2, 8, 128, torch.bfloat16, "cpu", 0.0), torch.ones(2)
    b_scale = layouts.scales(scale)

    def prepared_by_now() -> int:
        candidate.masked_grouped_gemm(a.permute(1, 2, 0), None, b.permute(1, 2, 0), b_scale, out, masked_m, alpha)  # fmt: skip
        return len(made)

    assert [prepared_by_now(), prepared_by_now()] == [1, 1]
    a += 1  # tokens have no say
    assert prepared_by_now() == 1
    b += 1
    assert [prepared_by_now(), prepared_by_now()] == [2, 2]
    alpha *= 2
    assert prepared_by_now() == 3


@pytest.mark.parametrize("older", [False, True])
def test_kernels_of_all_shapes_are_compiled_ahead(older: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = install(monkeypatch, older=older)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    candidate = OnCpu()
    candidate.compile_ahead()
    for thread in threading.enumerate():
        if thread.name == "compile ahead":
            thread.join(60)
    pairs = {(extents[1:]) for extents in _gemms(candidate.traits)}
    assert len(pairs) >= 12
    assert len(stand_in.compiled) >= 2 * len({*_gemms(candidate.traits)})


def _gemms(traits: Traits) -> list[tuple[int, int, int]]:
    return [
        gemm
        for experts, hidden, inter in traits.shapes
        for gemm in ((experts, 2 * inter, hidden), (experts, hidden, inter))
    ]


def test_it_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(humming_package, "is_installed", lambda: False)
    said = support_of(load_candidate("humming-masked"))
    assert not said
    assert said.reason == "humming-kernels is not installed; run: pip install 'fp4-moe-harness[hopper]'"
    assert StreamAsOnePass().traits == HummingMasked().traits


def test_a_mode_that_there_is_not_is_refused_with_the_nearest() -> None:
    with pytest.raises(UsageError, match="unknown mode of humming-masked 'mxfp4': did you mean 'mxfp4-"):
        load_candidate("humming-masked:mxfp4")
