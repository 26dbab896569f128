"""`marlin` against the real sglang package: only the modules that it compiles are replaced (marlin_launches)."""

from __future__ import annotations

import inspect
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch

from harness.candidates import layouts, marlin_package
from harness.candidates.eager import EagerKernels
from harness.candidates.marlin import Marlin, MarlinAsContract
from harness.faults.named import plant
from harness.judging.context import Context, Known
from harness.judging.routed import arguments
from harness.problems.problem import parse_problem
from harness.problems.traps import TRAPS
from harness.running.judge import Judge
from harness.running.outcome import Outcome
from tests.candidates.marlin_launches import MarlinLaunches, replace_launches

pytestmark = pytest.mark.flashinfer

PROBLEMS = ("v2:4x33x128x128:33,0,9,1:normal:3", "v2:3x9x256x128:9,4,0:grid:5:sharded")
RULES = ("ROUTED", "SLOTS", "PREPARE", "PAD-ROWS", "PAD-OUT", "INPUTS", "LAYOUT-IN")
FAULTS = (
    "weight_scales_of_neighbour_expert", "weights_of_neighbour_expert", "weight_halves_swapped", "weight_scale_rows_moved",
    "last_expert_not_prepared", "alpha_of_neighbour", "weight_nibbles_swapped", "alphas_of_first_preparation",
)  # fmt: skip


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> MarlinLaunches:
    return replace_launches(monkeypatch)


def judged(candidate: object, rule: str, problems: tuple[str, ...] = PROBLEMS) -> list[Outcome]:
    judge = Judge(candidate, threads=1, probe=False)
    return [judge.judge(rule, problem) for problem in problems]


@pytest.mark.parametrize("mode", Marlin.modes)
def test_every_mode_is_right(launches: MarlinLaunches, mode: str) -> None:
    candidate = Marlin(mode, device="cpu")
    for rule in (*RULES, *(() if candidate.atomic else ("REPEAT",))):
        outcomes = judged(candidate, rule)
        compared = sum(c.compared for outcome in outcomes for c in outcome.comparisons)
        assert compared > 0, (rule, [(outcome.status, outcome.error) for outcome in outcomes])
        for outcome in outcomes:
            assert outcome.status == "judged", (rule, outcome.error)
            assert outcome.illegal == [], outcome.illegal[0].message
    assert {launch["atomic"] for launch in launches.launches} == {mode == "nvfp4-bf16"}
    assert all(launch["fp32_reduce"] for launch in launches.launches)


@pytest.mark.parametrize("mode", ["nvfp4-bf16", "mxfp4-bf16"])
def test_the_layer_is_what_its_arguments_mean(launches: MarlinLaunches, mode: str) -> None:
    """Under factors and weights that are powers of two, all that the kernel rounds besides is exact: `eager`'s bits."""
    candidate = Marlin(mode, device="cpu")
    traits = candidate.traits
    eager = EagerKernels(
        activation_format="bf16", weight_format=traits.weight_format, activations=("silu",), k_multiple=128,
        final_sum=traits.final_sum,
    )  # fmt: skip
    for problem in PROBLEMS:
        call = arguments(Context(candidate, parse_problem(problem), Known.declared(traits)))
        for name in ("w1_alpha", "w2_alpha", "topk_weights"):
            call[name] = torch.exp2(call[name].log2().round())
        wanted = eager.routed_moe(**(call | {"out": call["out"].clone()}))
        assert torch.equal(candidate.routed_moe(**call), wanted)
    assert [launch["weighted"] for launch in launches.launches] == [False, True] * len(PROBLEMS)


@pytest.mark.usefixtures("launches")
@pytest.mark.parametrize("fault", FAULTS)
def test_faults_of_prepared_weights_are_caught(fault: str) -> None:
    candidate = Marlin("nvfp4-bf16-ordered", device="cpu")
    assert any(outcome.fails for outcome in judged(plant(candidate, fault), "ROUTED")), fault


@pytest.mark.usefixtures("launches")
def test_the_roundings_that_it_declares_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under the contract, sums are multiplied in float32 and rounded once: what Marlin returns is found illegal."""
    candidate = Marlin("nvfp4-bf16-ordered", device="cpu")
    declared = candidate.traits
    monkeypatch.setattr(
        Marlin, "traits", property(lambda _: replace(declared, deviations=(), summation="exact"))
    )
    assert any(outcome.fails for outcome in judged(candidate, "ROUTED"))
    monkeypatch.setattr(Marlin, "traits", property(lambda _: replace(declared, summation="exact")))
    assert not any(outcome.fails for outcome in judged(candidate, "ROUTED"))


@pytest.mark.usefixtures("launches")
def test_a_factor_of_512_overflows() -> None:
    """What a GPU showed as NaN: the package's own function makes infinity of it. docs/found.md."""
    problem = "v2:1x1x512x128:1:normal:0:small"
    outcome = Judge(MarlinAsContract(device="cpu"), threads=1, probe=False).judge("ROUTED", problem)
    assert "first GEMM[expert 0, row 0, col 0] = nan, legal are" in outcome.illegal[0].message
    candidate = Marlin(device="cpu")
    with candidate.engine.running():
        made = candidate.engine.get(marlin_package.NVFP4_FACTOR)(
            global_scale=torch.tensor([511.0, 512.0]).bfloat16()
        )
    assert made.isinf().tolist() == [True, True]  # bfloat16 rounds 511 to 512
    assert not TRAPS["small"].in_contract(candidate.traits)


@pytest.mark.usefixtures("launches")
def test_an_alpha_that_mxfp4_cannot_hold_is_refused() -> None:
    b, scale = torch.zeros(64, 64, 1, dtype=torch.uint8), torch.full((1, 64, 4), 127, dtype=torch.uint8)
    with pytest.raises(ValueError, match="alpha must be a power of two"):
        Marlin("mxfp4-bf16", device="cpu").prepare(b, layouts.scales(scale), torch.tensor([1.5]))


@pytest.mark.parametrize("target", marlin_package.PARAMETERS)
def test_a_renamed_parameter_is_named(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    candidate = Marlin(device="cpu")
    with candidate.engine.running():
        assert candidate.engine.called_otherwise(marlin_package.PARAMETERS) == ""
        function = candidate.engine.get(target)
        name = marlin_package.PARAMETERS[target][0]
        signature = inspect.signature(function)
        renamed = [
            p.replace(name=f"{p.name}_new") if p.name == name else p for p in signature.parameters.values()
        ]
        other: Any = lambda *_, **__: None  # noqa: E731 - a function whose signature is another one
        other.__signature__ = signature.replace(parameters=renamed)
        module, _, attribute = target.partition(":")
        monkeypatch.setattr(sys.modules[module], attribute, other)
        assert f"unknown {name}" in candidate.engine.called_otherwise(marlin_package.PARAMETERS)


def test_a_source_that_does_not_compile_is_unknown(
    launches: MarlinLaunches, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise RuntimeError("Failed to build JIT module moe_wna16_marlin: nvcc: no such option")

    module = marlin_package.GEMM.partition(":")[0]
    monkeypatch.setattr(sys.modules[module], "_jit_moe_wna16_marlin_module", fails)
    with pytest.raises(NotImplementedError, match=r"sglang 0\.5.*no such option"):
        Marlin(device="cpu").compile_ahead()
    assert launches.launches == []


def test_without_sglang_or_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "needs a CUDA device" in Marlin().support().reason
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert "sglang is not installed" in Marlin().support().reason


def test_one_small_layer_compiles_everything(launches: MarlinLaunches) -> None:
    candidate = Marlin("mxfp4-bf16", device="cpu")
    candidate.compile_ahead()
    assert len(launches.launches) == 2
    assert candidate.ran() == []
