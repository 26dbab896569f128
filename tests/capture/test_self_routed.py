"""A fused layer that routes itself: judged for tokens whose experts and weights are certain, a wrong routing named."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.candidates.eager import EagerKernels
from harness.candidates.fused_weights import Matrix
from harness.capture.settings import CaptureSettings
from harness.judging.context import Context, Known
from harness.judging.routed import arguments
from harness.problems.problem import parse_problem
from harness.records.parts.replay import ReplayedCall
from harness.replay.reading import read_capture
from harness.replay.replay import replay
from reference.activations import SILU
from tests.capture import conftest
from tests.capture.conftest import Engine

Run = Callable[..., ReplayedCall]
TOKENS = 20


@pytest.fixture(name="run")
def run_fixture(engine: Engine, tmp_path: Path) -> Iterator[Run]:
    """Capture a call of the stand-in and replay it."""
    candidate = EagerKernels(k_multiple=128)
    problem = parse_problem("v2:8x20x128x128:20,0,7,3,3,9,0,1:normal:1")
    given = arguments(Context(candidate, problem, Known.declared(candidate.traits)), prequantized=True)
    first = Matrix.of(given["w1"], given["w1_blockscale"], 16).up_and_gate(SILU, 1).shuffled()
    second = Matrix.of(given["w2"], given["w2_blockscale"], 16).shuffled()
    scales = [one.swizzled.reshape(one.scale.shape).view(torch.float8_e4m3fn) for one in (first, second)]
    logits = torch.randn(TOKENS, given["num_experts"], generator=torch.Generator().manual_seed(3)) * 2
    with conftest.packages():
        module = importlib.import_module("flashinfer.core")
        conftest.hook._tap(engine.session, module)

        def run(tied: int = 0, mistaken: dict[str, Any] | None = None, **named: Any) -> ReplayedCall:
            engine.session.settings, engine.session.idle = CaptureSettings(str(tmp_path / "cap")), False
            engine.session._begin_anew()
            module.MISTAKEN = mistaken or {}
            own = logits.clone()
            own[:tied] = 1.0  # every expert alike: which are taken is open
            asked = {
                "routing_bias": None, "n_group": None, "topk_group": None, "routed_scaling_factor": None,
                "routing_method_type": 1, **named,
            }  # fmt: skip
            module.trtllm_fp4_block_scale_moe(
                routing_logits=own, hidden_states=given["hidden_states"][0], hidden_states_scale=given["hidden_states"][1],
                gemm1_weights=first.codes, gemm1_weights_scale=scales[0], gemm1_bias=None, gemm1_alpha=None,
                gemm1_beta=None, gemm1_clamp_limit=None, gemm2_weights=second.codes, gemm2_weights_scale=scales[1],
                gemm2_bias=None, output1_scale_scalar=given["w1_alpha"] * given["a2_global_scale"],
                output1_scale_gate_scalar=given["w1_alpha"], output2_scale_scalar=given["w2_alpha"],
                num_experts=given["num_experts"], top_k=3, intermediate_size=128,
                local_expert_offset=given["local_expert_offset"], local_num_experts=len(given["w1"]), **asked,
            )  # fmt: skip
            (line,) = replay(read_capture(tmp_path / "cap"))
            return line

        yield run
    engine.session.idle = True


def test_a_layer_that_routes_itself_passes_and_open_tokens_are_left_out(run: Run) -> None:
    line = run(tied=4)
    assert (line.stage, str(line.verdict), line.compared) == ("routed_moe", "PASS", 16 * 128), line.words
    assert line.error is not None
    assert 0.01 < line.error < 0.3, "of an intermediate in NVFP4"
    assert line.words == (
        "4 of 20 tokens not judged: their routing hangs on the rounding of scores or weights"
    )


def test_where_every_choice_is_open_nothing_is_judged(run: Run) -> None:
    line = run(tied=TOKENS)
    assert (str(line.verdict), line.words) == (
        "UNKNOWN", "the routing of every token hangs on the rounding of scores or weights"
    )  # fmt: skip


def test_a_wrong_method_is_seen_and_named(run: Run) -> None:
    line = run(mistaken={"routing_method_type": 0})
    assert str(line.verdict) == "FAIL"
    assert line.diagnosis[0]["title"] == "Experts are routed by default instead of renormalize"


def test_a_method_that_is_not_known_says_so(run: Run) -> None:
    line = run(mistaken={"routing_method_type": 1}, routing_method_type=99)
    assert (str(line.verdict), line.words) == (
        "UNKNOWN", "routing method 99 of flashinfer.RoutingMethodType: not judged yet"
    )  # fmt: skip
