"""`vllm-emulation` in torch against the real vllm package, on a CPU: nothing of it is replaced."""

from __future__ import annotations

import inspect
import sys
from typing import Any

import pytest
import torch

from harness.candidates import vllm_emulation
from harness.candidates.vllm_emulation import VllmEmulation
from harness.faults.named import plant
from harness.running.judge import Judge
from harness.running.outcome import Outcome

pytestmark = pytest.mark.flashinfer

PROBLEMS = (
    "v2:4x33x128x64:33,0,9,1:normal:3",
    "v2:3x9x256x192:9,4,0:grid:5:sharded",
    "v2:3x12x64x64:12,3,7:normal:8:prequantized",
    "v2:2x9x64x128:4,9:spread:2:relu2",
)
RULES = ("ROUTED", "SLOTS", "PAD-ROWS", "PAD-OUT", "INPUTS", "LAYOUT-IN", "REPEAT")
FAULTS = ("routed_up_for_gate", "routed_weights_twice", "routed_scale_of_next_token", "routed_sum_in_bf16")


def judged(candidate: object, rule: str, problems: tuple[str, ...] = PROBLEMS) -> list[Outcome]:
    judge = Judge(candidate, threads=1)
    return [judge.judge(rule, problem) for problem in problems]


@pytest.fixture(scope="module")
def candidate() -> VllmEmulation:
    return VllmEmulation(device="cpu")


@pytest.mark.parametrize("rule", RULES)
def test_its_functions_in_torch_are_nvfp4(candidate: VllmEmulation, rule: str) -> None:
    outcomes = judged(candidate, rule)
    for outcome in outcomes:
        assert outcome.status == "judged", outcome.error
        assert outcome.illegal == [], outcome.illegal[0].message
    assert sum(c.compared for outcome in outcomes for c in outcome.comparisons) > 0


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_around_it_are_caught(candidate: VllmEmulation, fault: str) -> None:
    assert any(outcome.fails for outcome in judged(plant(candidate, fault), "ROUTED")), fault


def test_scales_whose_tiles_are_not_full_are_refused_by_the_package() -> None:
    """Why k is a multiple of 64: docs/found.md."""
    candidate = VllmEmulation(device="cpu")
    one = torch.ones(1)
    with candidate.engine.running(), pytest.raises(RuntimeError, match="must match the size"):
        candidate.engine.get(vllm_emulation.DEQUANTIZE)(
            torch.zeros(128, 48, dtype=torch.uint8),
            torch.zeros(128, 8, dtype=torch.uint8),
            one,
            torch.bfloat16,
        )


def test_other_factors_than_powers_of_two_are_rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Why none is drawn: a factor is rounded to bfloat16 with each weight, and a scale with each token."""
    from dataclasses import replace

    candidate = VllmEmulation(device="cpu")
    traits = candidate.traits
    monkeypatch.setattr(VllmEmulation, "traits", property(lambda _: replace(traits, power_scales=False)))
    judge = Judge(candidate, threads=1, probe=False)
    assert any(judge.judge("ROUTED", problem).fails for problem in PROBLEMS)


@pytest.mark.parametrize("target", vllm_emulation.PARAMETERS)
def test_a_renamed_parameter_is_named(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    candidate = VllmEmulation("triton", device="cpu")
    with candidate.engine.running():
        assert candidate.engine.called_otherwise(vllm_emulation.PARAMETERS) == ""
        function = candidate.engine.get(target)
        name = vllm_emulation.PARAMETERS[target][0]
        signature = inspect.signature(function)
        renamed = [
            p.replace(name=f"{p.name}_new") if p.name == name else p for p in signature.parameters.values()
        ]
        other: Any = lambda *_, **__: None  # noqa: E731 - a function whose signature is another one
        other.__signature__ = signature.replace(parameters=renamed)
        module, _, attribute = target.partition(":")
        monkeypatch.setattr(sys.modules[module], attribute, other)
        assert f"unknown {name}" in candidate.engine.called_otherwise(vllm_emulation.PARAMETERS)


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert VllmEmulation(device="cpu").support().ok
    assert "needs a CUDA device" in VllmEmulation("triton").support().reason
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert "vllm is not installed" in VllmEmulation(device="cpu").support().reason
