"""What needs a GPU: references and suites on CUDA, probes of the device, graphs, and a lost CUDA context."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from harness import Support, Traits, conformance
from harness.faults.named import plant
from harness.problems.profiles import PROFILES
from harness.rules import find_rules
from harness.running.judge import Judge
from harness.running.runner import RuleRun
from harness.running.session import Child, InProcess
from harness.running.settings import RunSettings
from harness.verdict import Verdict

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
ROOT = Path(__file__).parents[2]


@pytest.fixture
def tensor_core(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    from examples.tensor_core_candidate import TensorCore

    return TensorCore()


def test_the_references_and_all_rules_work_on_cuda():
    from harness.candidates.eager import EagerCuda

    results = conformance(EagerCuda())
    for result in results:
        print(result.rule, result.examples, result.compared, f"{result.seconds:.1f} s")
    assert {r.rule for r in results} >= {"QUANT", "ACT", "GEMM", "PIPELINE", "MOE"}
    assert {r.verdict for r in results} == {Verdict.PASS}
    assert all(r.compared for r in results)


def test_a_tensor_core_candidate_passes_with_its_accumulator_measured(tensor_core):
    session = InProcess(tensor_core)
    print(session.describe().measured)
    results = conformance(tensor_core)
    assert "GRAPH" in {r.rule for r in results}
    for result in results:
        print(result.rule, result.examples, result.compared, result.judged, f"{result.seconds:.1f} s")


@pytest.mark.parametrize(
    ("example", "rules"),
    [
        ("triton_gemm:TritonGemm", {"GEMM", "WRITES", "LAYOUT-IN"}),
        ("cuda_quantizer:CudaQuantizer", {"QUANT", "POW2"}),
    ],
)
def test_an_example_passes(monkeypatch, example, rules):
    module, name = example.split(":")
    monkeypatch.syspath_prepend(str(ROOT))
    pytest.importorskip("triton" if "triton" in module else "ninja")
    kernel = getattr(importlib.import_module(f"examples.{module}"), name)()
    assert kernel.support().ok, kernel.support().reason
    results = conformance(kernel)
    assert {r.verdict for r in results} == {Verdict.PASS}
    assert {r.rule for r in results} >= rules


def test_a_graph_that_keeps_an_old_masked_m_fails(tensor_core):
    """GRAPH: masked_m read on the host when the graph is captured never changes again."""

    class Stale(type(tensor_core)):
        def masked_moe(self, **kwargs):
            if torch.cuda.is_current_stream_capturing():
                kwargs["masked_m"] = self.seen
            else:
                self.seen = kwargs["masked_m"].clone()
            return super().masked_moe(**kwargs)

    # The stale copy is one of an expert-wise reversed masked_m: symmetric ones hide it, so several problems are drawn.
    settings = RunSettings(PROFILES["quick"], candidate="stale")
    result = RuleRun(find_rules(["GRAPH"])[0], InProcess(Stale()), settings).draw()
    assert result.verdict is Verdict.FAIL


def test_the_probed_reciprocal_is_within_a_unit_and_exact_where_it_should_be():
    pytest.importorskip("triton")
    from harness.identification.probe_rcp import device_reciprocal

    x = torch.arange(1 << 23, dtype=torch.int32, device="cuda").add_(127 << 23).view(torch.float32)
    got, rounded = device_reciprocal(x), (1 / x.double()).float()
    units = got.view(torch.int32) - rounded.view(torch.int32)
    share = {int(u): round(float((units == u).double().mean()), 5) for u in units.unique()}
    print(f"rcp.approx.ftz on {torch.cuda.get_device_name()}: units from correctly rounded, share: {share}")
    assert int(units.abs().max()) <= 1
    exact = torch.tensor([6.0, 448.0, 855.617, 0.5, 1.0, 2.0, 1024.0], device="cuda")
    assert torch.equal(device_reciprocal(exact), (1 / exact.double()).float())


def test_flashinfers_fp4_quantizer_forced_to_run_on_hopper_is_said_to_write_nothing():
    """PAD-OUT: the bodies of its kernels are empty below sm_100; the call returns without an error."""
    if importlib.util.find_spec("flashinfer") is None:
        pytest.skip("flashinfer-python is not installed")
    if torch.cuda.get_device_capability() >= (10, 0):
        pytest.skip("the quantizers work on this GPU")
    from harness.candidates.flashinfer_cutedsl import FlashInferCuteDsl

    refused = FlashInferCuteDsl().support()
    print(refused)
    assert not refused
    assert "sm_90" in refused.reason or "nvidia-cutlass-dsl" in refused.reason

    class Forced:
        traits = Traits()
        name = "forced"
        _real = FlashInferCuteDsl()

        def support(self):
            return Support(ok=True)

        def quantize_grouped(self, x, masked_m, global_scale_enc):
            return self._real.quantize_grouped(x, masked_m, global_scale_enc)

    result = RuleRun(
        find_rules(["PAD-OUT"])[0], InProcess(Forced()), RunSettings(PROFILES["quick"], candidate="forced")
    ).draw()
    print(result.failures[0].message)
    assert result.verdict is Verdict.FAIL
    assert "output never written" in result.failures[0].message


LOST = """
import torch, triton, triton.language as tl
from examples.tensor_core_candidate import TensorCore

@triton.jit
def wild(p):
    tl.store(p + 1000000000000 + tl.arange(0, 32), 1.0)

class Lost(TensorCore):
    calls = 0
    def masked_grouped_gemm(self, a, a_scale, b, b_scale, out, masked_m, alpha):
        if a.shape[2] == 3:
            wild[(1,)](torch.zeros(32, device="cuda"))
            torch.cuda.synchronize()
        super().masked_grouped_gemm(a, a_scale, b, b_scale, out, masked_m, alpha)
"""


def test_a_lost_cuda_context_costs_one_problem(tmp_path, monkeypatch):
    """An illegal address in a kernel makes every later call of the process fail: the next problem gets a new one."""
    pytest.importorskip("triton")
    (tmp_path / "lost_candidate.py").write_text(LOST)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
    monkeypatch.setattr(sys, "path", [str(tmp_path), str(ROOT), *sys.path])
    session = Child("lost_candidate:Lost")
    try:
        fine = "2x16x64x64:16,3:normal:1"
        assert session.judge("GEMM", fine, 60).status == "judged"
        lost = session.judge("GEMM", "3x16x64x64:16,3,1:normal:1", 60)
        print(lost)
        assert lost.status == "crashed"
        assert session.judge("GEMM", fine, 120).status == "judged"
    finally:
        session.close()


def test_a_fault_in_a_kernel_with_the_gpus_reciprocals_is_named(tensor_core):
    """Recorded calls lie on the CPU, and the probed reciprocal is the GPU's."""
    judge = Judge(plant(tensor_core, "codes_truncated"), threads=1)
    problem = "2x24x256x256:24,7:normal:5"
    assert judge.judge("QUANT", problem).illegal
    found = judge.diagnose("QUANT", problem, "harness diagnose")
    assert found[0]["fault"] == "codes_truncated", found[0]
