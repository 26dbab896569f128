"""Recording an engine's stage calls: what is copied, what is restored, and that a silent tap is an error."""

from __future__ import annotations

import types

import pytest
import torch

from harness.candidates.taps import (
    StageCall,
    TapError,
    expected_stages,
    missing_parameters,
    run_tapped,
    tapped,
    unfilled_parameters,
)

NAMES = {"quantize": "quantize_grouped", "gemm": "masked_grouped_gemm"}


def engine(source: str = "") -> types.ModuleType:
    """A module whose functions call each other through its own globals, as an engine's do."""
    module = types.ModuleType("engine")
    text = """
import torch
seen = []
def quantize(a, mask, a_global_sf):
    seen.append("quantize")
    scale = torch.ones(a.shape[0], 1, 1, 32, 4, 4).to(torch.float8_e4m3fn).permute(3, 4, 1, 5, 2, 0)
    return a[..., : a.shape[-1] // 2].to(torch.uint8).permute(1, 2, 0), scale
def gemm(lhs, rhs, out, masked_m, *, alpha=None, **options):
    seen.append("gemm")
    out.add_(1)
    lhs[0].zero_()  # later stages may reuse the memory
def moe(x, mask, scale, w, w_scale, out, alpha):
    packed, block_scale = quantize(x, mask, scale)
    gemm((packed, block_scale), (w.permute(1, 2, 0), w_scale), out, mask, alpha=alpha.view(1, 1, -1), c_dtype="f")
    return out
"""
    exec(text + source, module.__dict__)  # noqa: S102 - globals of a made-up module
    return module


def arguments():
    x = torch.arange(2 * 4 * 64, dtype=torch.float32).reshape(2, 4, 64) % 7
    w = torch.ones(2, 8, 32, dtype=torch.uint8)
    swizzled = torch.arange(2 * 512).to(torch.uint8).view(2, 128, 4).view(torch.float8_e4m3fn)
    out = torch.zeros(2, 4, 8).permute(1, 2, 0)
    return (
        x,
        torch.tensor([4, 1], dtype=torch.int32),
        torch.ones(2),
        w,
        swizzled,
        out,
        torch.tensor([2.0, 3.0]),
    )


def test_stage_calls_are_copies_in_the_protocols_layouts() -> None:
    module, (x, mask, scale, w, swizzled, out, alpha) = engine(), arguments()
    with tapped(module, NAMES, ["quantize_grouped", "masked_grouped_gemm"]) as taps:
        module.moe(x, mask, scale, w, swizzled, out, alpha)
    quantize, gemm = taps.calls
    assert taps.calls.index(gemm) == 1
    assert quantize != StageCall(quantize.stage, quantize.inputs, quantize.outputs), "compared by identity"
    assert list(quantize.inputs) == ["x", "masked_m", "global_scale_enc"]
    assert torch.equal(quantize.inputs["x"], x)
    assert quantize.inputs["x"].data_ptr() != x.data_ptr()
    assert torch.equal(quantize.outputs["packed"], x[..., :32].to(torch.uint8).permute(1, 2, 0)), (
        "copied before reuse"
    )
    assert list(gemm.inputs) == ["a", "a_scale", "b", "b_scale", "masked_m", "alpha"]
    assert torch.equal(gemm.inputs["a"], quantize.outputs["packed"]), "copied before the call"
    assert gemm.inputs["a"].stride() == (32, 1, 4 * 32)
    assert gemm.inputs["b_scale"].shape == (32, 4, 1, 4, 1, 2)
    memory = gemm.inputs["b_scale"].permute(5, 2, 4, 0, 1, 3)
    assert torch.equal(memory.reshape(-1).view(torch.uint8), swizzled.reshape(-1).view(torch.uint8))
    assert torch.equal(gemm.inputs["alpha"], alpha)
    assert torch.equal(gemm.outputs["out"], torch.ones(4, 8, 2)), "as it was after the call"
    out.zero_()
    assert (gemm.outputs["out"] == 1).all()
    assert gemm.outputs["out"].stride() == out.stride()


def test_globals_are_restored_and_an_exception_of_the_block_passes_unchanged() -> None:
    module = engine()
    before = dict(vars(module))
    with pytest.raises(ZeroDivisionError), tapped(module, NAMES):
        module.gemm = 1 / (module.gemm is before["gemm"])  # tapped: divides by zero
    assert vars(module) == before
    with pytest.raises(TapError, match="never called"), tapped(module, NAMES):
        pass
    assert vars(module) == before


def test_a_tap_that_never_fired_is_an_error() -> None:
    module = engine()
    with pytest.raises(TapError, match="engine: gemm was tapped but never called"), tapped(module, NAMES):
        module.quantize(*arguments()[:3])


def test_calls_in_another_order_are_an_error() -> None:
    module = engine()
    message = "expected the stage calls masked_grouped_gemm, recorded quantize_grouped, masked_grouped_gemm"
    with pytest.raises(TapError, match=message), tapped(module, NAMES, ["masked_grouped_gemm"]):
        module.moe(*arguments())


def test_an_engine_that_copied_the_functions_elsewhere_is_noticed() -> None:
    """The engine's entry holds its own reference, so the module's globals tap nothing."""
    module = engine("def hidden(*a, quantize=quantize): return quantize(*a)\n")
    with pytest.raises(TapError, match="recorded none"), tapped(module, NAMES, ["quantize_grouped"]):
        module.hidden(*arguments()[:3])


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("del gemm\n", r"engine has no function 'gemm' to tap \(it has moe, quantize\)"),
        ("def quantize(a, lengths, a_global_sf): pass\n", r"has no parameter mask or masked_m"),
        ("def gemm(left, rhs, out, masked_m): pass\n", r"has no parameter lhs"),
    ],
)
def test_a_function_that_is_gone_or_renamed_its_parameters_is_an_error(source, message) -> None:
    module = engine(source)
    before = dict(vars(module))
    with pytest.raises(TapError, match=message):  # noqa: SIM117 - entering fails
        with tapped(module, NAMES):
            pytest.fail("the block must not run")
    assert vars(module) == before


def test_arguments_are_bound_by_name_and_not_by_place() -> None:
    """sgl_kernel's quantizers take (input, scale, mask): the scale must not be recorded as the mask."""
    module = engine(
        "def quantize(input_tensor, input_global_scale, mask): return input_tensor, input_tensor\n"
    )
    with tapped(module, {"quantize": "quantize_grouped"}) as taps:
        module.quantize(torch.zeros(1), torch.full((1,), 5.0), mask=torch.ones(1))
    assert taps.calls[0].inputs["global_scale_enc"].item() == 5.0
    assert taps.calls[0].inputs["masked_m"].item() == 1.0


def test_a_wrapper_without_a_signature_is_read_in_flashinfers_order() -> None:
    module = engine("def quantize(*args, **kwargs): return args[0], args[0]\n")
    with tapped(module, {"quantize": "quantize_grouped"}) as taps:
        module.quantize(torch.zeros(1), torch.ones(1), a_global_sf=torch.full((1,), 5.0))
    assert taps.calls[0].inputs["masked_m"].item() == 1.0
    assert taps.calls[0].inputs["global_scale_enc"].item() == 5.0
    with (
        pytest.raises(TapError, match="was called without global_scale_enc"),
        tapped(module, {"quantize": "quantize_grouped"}),
    ):
        module.quantize(torch.zeros(1), torch.ones(1))


def test_run_tapped_expects_the_stages_of_the_call_that_is_made() -> None:
    module = engine("def silu(a, mask, a_global_sf): return quantize(a, mask, a_global_sf)\n")
    names = NAMES | {"silu": "silu_mul_quantize_grouped"}
    x, mask, scale, w, swizzled, out, alpha = arguments()

    def masked_moe(hidden_states, activation="silu"):
        if hidden_states[1] is None:
            module.quantize(x, mask, scale)
        for step in (module.silu if activation == "silu" else module.quantize, None):
            module.gemm(
                (x.clone().permute(1, 2, 0), swizzled), (w.permute(1, 2, 0), swizzled), out, mask, alpha=alpha
            )
            if step is not None:
                step(x, mask, scale)
        return out

    # a silu that calls quantize is one call too many: the order is checked, not only that each name fired
    with pytest.raises(TapError, match="quantize_grouped, masked_grouped_gemm, quantize_grouped, silu_mul"):
        run_tapped(masked_moe, module, names, ((x, None),), {})
    _, calls = run_tapped(masked_moe, module, names, ((x, None), "relu2"), {})
    assert [c.stage for c in calls] == expected_stages("relu2", prequantized=False)
    _, calls = run_tapped(masked_moe, module, names, (), {"hidden_states": (x, x), "activation": "relu2"})
    assert [c.stage for c in calls] == ["masked_grouped_gemm", "quantize_grouped", "masked_grouped_gemm"]


def test_signatures_are_inspected() -> None:
    def function(a, /, b, *, c=1):
        pass

    def open_ended(a, **options):
        pass

    assert missing_parameters(function, ["b", "c"]) == []
    assert missing_parameters(function, ["a", "d"]) == ["a", "d"]
    assert missing_parameters(open_ended, ["d"]) == []
    assert unfilled_parameters(function, ["a"]) == ["b"]
    assert unfilled_parameters(open_ended, ["a"]) == []
