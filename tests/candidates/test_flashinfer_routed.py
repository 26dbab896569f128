"""The fused layers' candidates against the real flashinfer-python package; only the launches are replaced (fused_launches)."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.candidates import candidate_modes, fused_support, load_candidate
from harness.candidates.eager import EagerKernels
from harness.candidates.flashinfer_routed import (
    FlashInferFusedCuteDsl,
    FlashInferFusedCutlass,
    FlashInferFusedTrtllm,
)
from harness.candidates.fused_layer import ATOMIC, FusedLayer
from harness.candidates.fused_tactics import tactics_noted
from harness.candidates.witness import asked_of, contradiction, ran_of
from harness.judging.context import Context, Known
from harness.judging.routed import arguments
from harness.problems.problem import parse_problem
from tests.candidates.fused_launches import FusedLaunches, replace_launches

pytestmark = pytest.mark.flashinfer

KINDS = {
    "cutedsl": FlashInferFusedCuteDsl,
    "cutedsl, w4a8": lambda *a, **o: FlashInferFusedCuteDsl(*a, mode="w4a8", **o),
    "cutedsl, w4a16": lambda *a, **o: FlashInferFusedCuteDsl(*a, mode="w4a16", **o),
    "trtllm": FlashInferFusedTrtllm,
    "cutlass": FlashInferFusedCutlass,
}
ACTIVATIONS = ("silu", "silu; limit 10", "silu; alpha 1.5; beta 1; limit 8")
NEWER = ("mxfp8_grouped_quantize", "silu_and_mul_mxfp8_experts_quantize")
"""Of 0.7.4: tests/candidates/test_flashinfer_mxfp8.py."""
PROBLEM = "v2:3x20x256x128:20,0,7:normal:1"


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> FusedLaunches:
    return replace_launches(monkeypatch)


def made(kind: str, activation: str = "silu", **options: Any) -> FusedLayer:
    candidate: FusedLayer = KINDS[kind](activation, device="cpu", **options)
    return candidate


def given(candidate: FusedLayer, problem: str, *, prequantized: bool = False) -> dict[str, Any]:
    """Return the arguments of a problem, alphas being powers of two: what kernels fold into them comes back."""
    ctx = Context(candidate, parse_problem(problem), Known.declared(candidate.traits))
    found = arguments(ctx, prequantized=prequantized)
    for name in ("w1_alpha", "w2_alpha"):
        found[name] = torch.exp2(found[name].log2().round())
    return found


def expected(candidate: FusedLayer, call: dict[str, Any]) -> Tensor:
    """Return what `eager` makes of the same arguments."""
    traits = candidate.traits
    eager = EagerKernels(
        activation_format=traits.activation_format, weight_format=traits.weight_format, k_multiple=128,
        activations=traits.activations, final_sum=traits.final_sum,
    )  # fmt: skip
    return eager.routed_moe(**(call | {"out": call["out"].clone()}))


@pytest.mark.parametrize("activation", [*ACTIVATIONS, "relu2"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_layer_is_what_its_arguments_mean(launches: FusedLaunches, kind: str, activation: str) -> None:
    """Weights, scales, alphas and the activation arrive in the kernel's order and mean what the caller meant."""
    candidate = made(kind, "silu" if activation == "relu2" else activation)
    call = given(candidate, f"{PROBLEM}:relu2" if activation == "relu2" else PROBLEM)
    assert call["activation"] == activation
    wanted = expected(candidate, call)
    out = candidate.routed_moe(**call)
    assert out is call["out"]
    assert torch.equal(out, wanted)
    (launch,) = launches.launches
    assert launch.final_sum == candidate.traits.final_sum


@pytest.mark.parametrize("kind", ["cutedsl", "cutedsl, w4a8", "trtllm", "cutlass"])
def test_quantized_tokens_on_a_rank_of_several(launches: FusedLaunches, kind: str) -> None:
    """Experts behind an offset, slots of other ranks' experts, tokens that come quantized."""
    candidate = made(kind)
    call = given(candidate, f"{PROBLEM}:sharded", prequantized=True)
    assert call["local_expert_offset"] > 0
    wanted = expected(candidate, call)
    assert torch.equal(candidate.routed_moe(**call), wanted)
    assert len(launches.launches) == 1


@pytest.mark.parametrize("kind", ["cutedsl", "cutlass"])
def test_a_finalize_in_the_order_of_the_slots_can_be_asked_for(launches: FusedLaunches, kind: str) -> None:
    candidate = made(kind, fused_finalize=False)
    assert candidate.traits.final_sum == "slots"
    call = given(candidate, PROBLEM)
    wanted = expected(candidate, call)
    assert torch.equal(candidate.routed_moe(**call), wanted)
    assert launches.launches[0].given["use_fused_finalize"] is False


@pytest.mark.parametrize("name", ["flashinfer-fused-cutedsl", "flashinfer-fused-cutlass"])
def test_each_mode_is_a_candidate_of_its_own(launches: FusedLaunches, name: str) -> None:
    """`--modes all`: what is asked for reaches the launch, and the declared final sum is that of the mode."""
    modes = candidate_modes(name)
    assert len(modes) == (6 if name.endswith("cutedsl") else 2)
    for mode in modes:
        candidate = load_candidate(f"{name}:{mode}")
        candidate.device = "cpu"
        slots = mode.endswith("slots")
        assert candidate.traits.final_sum == ("slots" if slots else ATOMIC)
        call = given(candidate, PROBLEM)
        wanted = expected(candidate, call)
        assert torch.equal(candidate.routed_moe(**call), wanted)
        assert launches.launches[-1].given["use_fused_finalize"] is not slots
        assert asked_of(candidate)["fused finalize"] == str(not slots)


@pytest.mark.parametrize("kind", ["cutedsl", "cutedsl, w4a8", "cutedsl, w4a16"])
def test_the_tactic_that_the_tuner_chose_is_told(launches: FusedLaunches, kind: str) -> None:
    """The real tuner is asked; nothing was tuned, so that it chooses its runner's default."""
    candidate = made(kind)
    candidate.routed_moe(**given(candidate, PROBLEM))
    (ran,) = ran_of(candidate)
    assert "Runner" in ran["runner"], ran
    assert "CuteDsl" in ran["op"], ran
    assert ran["tactic"] == "the default"
    assert ran_of(candidate) == [], "told once"
    assert not contradiction(asked_of(candidate), [ran])


def test_another_tactic_of_the_tuner_is_told_and_the_tuner_left_as_it_was(
    launches: FusedLaunches, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flashinfer.autotuner import AutoTuner

    monkeypatch.setattr(
        AutoTuner, "choose_one", lambda _self, _op, runners, *_, **__: (runners[0], ((128, 64), 2))
    )
    candidate = made("cutedsl")
    for _ in range(2):
        with tactics_noted(candidate._ran):
            AutoTuner.get().choose_one("an op", [candidate], None, [])
    assert ran_of(candidate) == [
        {"op": "an op", "runner": "FlashInferFusedCuteDsl", "tactic": "((128, 64), 2)"}
    ]
    assert "choose_one" not in vars(AutoTuner.get())


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_launched_for_no_token(launches: FusedLaunches, kind: str) -> None:
    candidate = made(kind)
    call = given(candidate, PROBLEM)
    none = {name: call[name][:0] for name in ("topk_idx", "topk_weights", "out")}
    out = candidate.routed_moe(**(call | none | {"hidden_states": (call["hidden_states"][0][:0], None)}))
    assert out.shape == (0, 256)
    assert launches.launches == []


@pytest.mark.parametrize("kind", KINDS)
def test_another_activation_is_refused(kind: str) -> None:
    candidate = made(kind)
    call = given(candidate, PROBLEM)
    with pytest.raises(ValueError, match="activation must be 'silu' or 'relu2', got 'swigluoai'"):
        candidate.routed_moe(**(call | {"activation": "swigluoai"}))


@pytest.mark.parametrize("name", [name for name in fused_support.FUNCTIONS if name not in NEWER])
def test_the_package_has_every_function_and_parameter(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each parameter that is passed is there; one that is renamed is named, and so is a new one without a default."""
    replace_launches(monkeypatch)
    assert fused_support.changed(name) == ""
    module, positional, by_keyword = fused_support.FUNCTIONS[name]
    renamed = (*positional, *by_keyword)[0]
    function = getattr(fused_support.import_quietly(module), name)
    signature = inspect.signature(function)
    changed = [
        p.replace(name=f"{p.name}_new") if p.name == renamed else p for p in signature.parameters.values()
    ]
    other = lambda *_, **__: None  # noqa: E731 - a function whose signature is another one
    other.__signature__ = signature.replace(parameters=changed)  # type: ignore[attr-defined]
    monkeypatch.setattr(fused_support.import_quietly(module), name, other)
    assert renamed in fused_support.changed(name)


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_gpu_it_does_not_run_and_says_why(kind: str) -> None:
    found = KINDS[kind]("silu").support()
    assert not found
    assert "needs a CUDA device of compute capability" in found.reason
