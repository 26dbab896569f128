"""`sglang-cutedsl` and `vllm-cutedsl`: the engines' own functions over the real FlashInfer, kernels replaced (conftest).

The engines' files are executed alone, out of an installed package or an unpacked wheel on PYTHONPATH, because importing
an engine needs its hundred dependencies. Where an engine is absent its tests skip; stand-ins with the published
signatures, written here, exercise the same adapters everywhere.
"""

from __future__ import annotations

import importlib.util
import inspect
import sys
import types
from pathlib import Path

import pytest
import torch

from harness.candidates import sglang_cutedsl, vllm_cutedsl
from harness.candidates.flashinfer_cutedsl import FlashInferCuteDsl
from harness.candidates.sglang_cutedsl import SglangCuteDsl
from harness.candidates.taps import TapError, expected_stages
from harness.candidates.vllm_cutedsl import VllmCuteDsl

pytestmark = pytest.mark.flashinfer

STAND_IN = """
import torch
from flashinfer import scaled_fp4_grouped_quantize, silu_and_mul_scaled_nvfp4_experts_quantize
from flashinfer.gemm import grouped_gemm_nt_masked as {gemm}

DTYPES = dict(ab_dtype="float4_e2m1fn", sf_dtype="float8_e4m3fn", c_dtype="bfloat16", sf_vec_size=16)

def flashinfer_cutedsl_moe_masked({signature}):
    if {pair}:
        a, a_sf = hidden_states
        {prepare}
    else:
        a, a_sf = scaled_fp4_grouped_quantize({plain}, masked_m, input_global_scale)
    alphas = [alpha.view(1, 1, -1) for alpha in (w1_alpha, w2_alpha)]
    {allocate}
    gemm1, result = workspace.permute(1, 2, 0), out.permute(1, 2, 0)
    {gemm}((a, a_sf), (w1.permute(1, 2, 0), w1_blockscale), gemm1, masked_m,
           alpha=alphas[0], alpha_dtype="float32", **DTYPES)
    d, d_sf = silu_and_mul_scaled_nvfp4_experts_quantize(workspace, masked_m, a2_global_scale)
    {gemm}((d, d_sf), (w2.permute(1, 2, 0), w2_blockscale), result, masked_m,
           alpha=alphas[1], alpha_dtype="float32", **DTYPES)
    return out
"""
COMMON = "hidden_states, input_global_scale, w1, w1_blockscale, w1_alpha, w2, a2_global_scale, w2_blockscale, w2_alpha, masked_m"
SGLANG = {
    "gemm": "grouped_gemm_nt_masked",
    "pair": "hidden_states[1] is not None",
    "prepare": "",
    "plain": "hidden_states[0]",
    "allocate": "workspace, out = (torch.empty(a.shape[2], a.shape[0], w.shape[1], dtype=torch.bfloat16) for w in (w1, w2))",
    "signature": f"{COMMON}, down_sm_count=None, down_signals=None, down_start_event=None",
}
VLLM = {
    "gemm": "flashinfer_cutedsl_grouped_gemm_nt_masked",
    "pair": "isinstance(hidden_states, tuple)",
    "prepare": "assert input_global_scale is None; a = a.permute(1, 2, 0)",
    "plain": "hidden_states",
    "allocate": "assert workspace.is_contiguous() and out.is_contiguous()",
    "signature": f"{COMMON}, workspace, out",
}


def install(monkeypatch: pytest.MonkeyPatch, name: str, source: str) -> types.ModuleType:
    module = types.ModuleType(name)
    exec(source, module.__dict__)  # noqa: S102 - a stand-in written above
    monkeypatch.setitem(sys.modules, name, module)
    return module


class Stubs:
    """Finds every `vllm.*` module that is not loaded yet as one whose attributes are empty classes."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> object:
        stubbed = name.partition(".")[0] == "vllm" and name not in vllm_cutedsl.MODULES
        return importlib.util.spec_from_loader(name, self) if stubbed else None

    def create_module(self, spec: object) -> types.ModuleType:
        return types.ModuleType(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        def attribute(name: str) -> type:
            if name.startswith("__"):
                raise AttributeError(name)
            return type(name, (), {"__init__": lambda *_, **__: None})

        module.__getattr__ = attribute
        module.__path__ = []


def execute(monkeypatch: pytest.MonkeyPatch, name: str, path: Path) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


def engine_file(engine: str, *relative: str) -> Path:
    spec = importlib.util.find_spec(engine)
    roots = [Path(p) for p in (spec.submodule_search_locations or [])] if spec else []
    found = [root / part for part in relative for root in roots if (root / part).is_file()]
    if not found:
        pytest.skip(
            f"{engine} is not installed; to run this: pip install --no-deps {engine}, or its wheel on PYTHONPATH"
        )
    return found[0]


@pytest.fixture
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, launches):
    """A candidate with its engine in place: the real file of SGLang or vLLM, or a stand-in."""
    loaded = dict(sys.modules)
    yield candidate_of(request.param, monkeypatch)
    for name in set(sys.modules) - set(loaded):  # the stubs, and what was imported with them
        if name.partition(".")[0] in {"sglang", "vllm"}:
            del sys.modules[name]


def candidate_of(kind: str, monkeypatch: pytest.MonkeyPatch):
    match kind:
        case "sglang":
            file = engine_file("sglang", "srt/layers/moe/flashinfer_cutedsl_moe.py")
            execute(monkeypatch, sglang_cutedsl.MODULE, file)
            return SglangCuteDsl()
        case "vllm":
            part = "model_executor/layers/fused_moe"
            names = (
                "experts/flashinfer_cutedsl_batched_moe",
                "experts/flashinfer_cutedsl_moe",
                "flashinfer_cutedsl_moe",
            )
            file = engine_file("vllm", *(f"{part}/{name}.py" for name in names))
            wrappers = engine_file("vllm", "utils/flashinfer.py")
            monkeypatch.setattr(sys, "meta_path", [Stubs(), *sys.meta_path])
            execute(monkeypatch, "vllm.utils.flashinfer", wrappers)
            name = "vllm." + str(file.relative_to(wrappers.parent.parent).with_suffix("")).replace("/", ".")
            execute(monkeypatch, name, file)
            return VllmCuteDsl()
        case "sglang stand-in":
            install(monkeypatch, sglang_cutedsl.MODULE, STAND_IN.format(**SGLANG))
            return SglangCuteDsl()
        case "vllm stand-in":
            install(monkeypatch, vllm_cutedsl.MODULES[0], STAND_IN.format(**VLLM))
            return VllmCuteDsl()
    raise AssertionError(kind)


ENGINES = ["sglang", "vllm", "sglang stand-in", "vllm stand-in"]


@pytest.mark.parametrize("prequantized", [False, True])
@pytest.mark.parametrize("engine", ENGINES, indirect=True)
def test_the_engines_function_equals_the_dequantize_reference(
    engine, launches, gated_moe, prequantized
) -> None:
    out = engine.masked_moe(**gated_moe.arguments(prequantized=prequantized))
    assert (out.shape, out.dtype) == ((3, 160, 128), torch.bfloat16)
    assert torch.equal(out[gated_moe.valid()], gated_moe.stages("silu")["out"][gated_moe.valid()])
    assert [g.shape for g in launches.gemms] == [(160, 128, 128, 3), (160, 128, 64, 3)]
    assert [q.silu for q in launches.quantized] == [False, True][prequantized:]


@pytest.mark.parametrize("engine", ["sglang"], indirect=True)
def test_sglangs_relu2_equals_the_dequantize_reference(engine, launches, tools) -> None:
    moe = tools.make_moe("relu2")
    if (
        "activation"
        not in inspect.signature(sys.modules[sglang_cutedsl.MODULE].flashinfer_cutedsl_moe_masked).parameters
    ):
        with pytest.raises(ValueError, match=r"it came with 0\.5\.16"):
            engine.masked_moe(**moe.arguments(), activation="relu2")
        return
    out, calls = engine.masked_moe_tapped(**moe.arguments(), activation="relu2")
    assert torch.equal(out[moe.valid()], moe.stages("relu2")["out"][moe.valid()])
    assert [c.stage for c in calls] == expected_stages("relu2", prequantized=False)
    with pytest.raises(ValueError, match="activation"):
        engine.masked_moe(**moe.arguments(), activation="gelu")


@pytest.mark.parametrize("prequantized", [False, True])
@pytest.mark.parametrize("engine", ENGINES, indirect=True)
def test_tapped_stages_are_what_the_engine_computed(engine, gated_moe, tools, prequantized) -> None:
    arguments = gated_moe.arguments(prequantized=prequantized)
    plain = engine.masked_moe(**arguments)
    out, calls = engine.masked_moe_tapped(**arguments)
    valid, stages = gated_moe.valid(), gated_moe.stages("silu")
    assert torch.equal(out[valid], plain[valid])
    assert [c.stage for c in calls] == expected_stages("silu", prequantized=prequantized)
    first, middle, last = calls[-3:]
    assert torch.equal(first.outputs["out"].permute(2, 0, 1)[valid], stages["gemm1"][valid])
    assert torch.equal(middle.inputs["gate_up"][valid], stages["gemm1"][valid])
    assert torch.equal(last.outputs["out"].permute(2, 0, 1)[valid], stages["out"][valid])
    if not prequantized:
        assert torch.equal(calls[0].inputs["x"], gated_moe.x)
        assert torch.equal(calls[0].inputs["global_scale_enc"], gated_moe.dense["input_global_scale"])
    # the recorded inputs are in the protocol's layouts: another candidate's stages take them as they are
    other = FlashInferCuteDsl()
    packed, _ = other.silu_mul_quantize_grouped(**middle.inputs)
    assert torch.equal(packed.permute(2, 0, 1)[valid], middle.outputs["packed"].permute(2, 0, 1)[valid])
    for call in (first, last):
        again = torch.empty_like(call.outputs["out"])
        other.masked_grouped_gemm(**call.inputs, out=again)
        assert torch.equal(again.permute(2, 0, 1)[valid], call.outputs["out"].permute(2, 0, 1)[valid])


@pytest.mark.parametrize(
    "change",
    [
        ("w1_alpha, w2", "w13_alpha, w2", "no longer takes w1_alpha and also needs w13_alpha"),
        ("down_sm_count=None", "layer_id, down_sm_count=None", "also needs layer_id"),
        ("w2_alpha, masked_m", "masked_m", "no longer takes w2_alpha;"),
    ],
)
def test_a_changed_signature_of_the_engine_is_unsupported_and_not_a_type_error(
    monkeypatch, launches, gated_moe, change
) -> None:
    old, new, reason = change
    signature = SGLANG["signature"].replace(old, new)
    install(monkeypatch, sglang_cutedsl.MODULE, STAND_IN.format(**SGLANG | {"signature": signature}))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (10, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA B200")
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: name if name == "sglang" else real(name, *a)
    )
    support = SglangCuteDsl().support()
    assert not support
    assert reason in support.reason
    for call in (SglangCuteDsl().masked_moe, SglangCuteDsl().masked_moe_tapped):
        with pytest.raises(RuntimeError, match="this adapter does not know that version"):
            call(**gated_moe.arguments())
    install(monkeypatch, sglang_cutedsl.MODULE, STAND_IN.format(**SGLANG))
    assert SglangCuteDsl().support().ok, SglangCuteDsl().support().reason


@pytest.mark.parametrize("engine", ["sglang stand-in", "vllm stand-in"], indirect=True)
def test_an_activation_that_the_engine_lacks_is_a_value_error(engine, gated_moe) -> None:
    with pytest.raises(ValueError, match="activation must be 'silu'"):
        engine.masked_moe(**gated_moe.arguments(), activation="relu2")


def test_sglangs_down_sm_count_is_passed_only_where_it_was_asked_for(
    monkeypatch, launches, gated_moe
) -> None:
    module = install(monkeypatch, sglang_cutedsl.MODULE, STAND_IN.format(**SGLANG))
    seen = []

    def note(down_sm_count=None, **arguments):
        seen.append(down_sm_count)
        return arguments["hidden_states"][0]

    monkeypatch.setattr(module, sglang_cutedsl.FUNCTION, note)
    SglangCuteDsl().masked_moe(**gated_moe.arguments())
    SglangCuteDsl(down_sm_count=8).masked_moe(**gated_moe.arguments())
    assert seen == [None, 8]


@pytest.mark.parametrize("engine", ["sglang stand-in"], indirect=True)
def test_an_engine_that_bypasses_its_globals_is_a_tap_error(engine, gated_moe, monkeypatch) -> None:
    """What a `functools.cache` or a closure over the kernel does: the result is right and nothing was recorded."""
    module = sys.modules[sglang_cutedsl.MODULE]
    inner = types.FunctionType(module.flashinfer_cutedsl_moe_masked.__code__, dict(vars(module)))
    inner.__defaults__ = module.flashinfer_cutedsl_moe_masked.__defaults__
    monkeypatch.setattr(module, sglang_cutedsl.FUNCTION, inner)
    assert engine.masked_moe(**gated_moe.arguments()).shape == (3, 160, 128)
    with pytest.raises(TapError, match="recorded none"):
        engine.masked_moe_tapped(**gated_moe.arguments())


def test_vllms_module_is_the_one_that_has_the_function(monkeypatch, launches, gated_moe) -> None:
    """0.24 and later have an unrelated experts/flashinfer_cutedsl_moe.py beside the batched module."""
    for name in vllm_cutedsl.MODULES:
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    with pytest.raises(RuntimeError, match="has no flashinfer_cutedsl_moe_masked in any of"):
        VllmCuteDsl().masked_moe(**gated_moe.arguments())
    install(monkeypatch, vllm_cutedsl.MODULES[2], STAND_IN.format(**VLLM))
    out = VllmCuteDsl().masked_moe(**gated_moe.arguments())
    assert torch.equal(out[gated_moe.valid()], gated_moe.stages("silu")["out"][gated_moe.valid()])
