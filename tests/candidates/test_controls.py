"""Kernels that do it differently and right: none may be called wrong, and each really does something differently."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from functools import cache

import pytest
import torch
from torch import Tensor

from harness.candidates import layouts
from harness.candidates.controls import catalog
from harness.candidates.controls.catalog import CONTROLS
from harness.candidates.controls.in_formats import IN_FORMATS
from harness.candidates.controls.layer_variants import LAYER_HABITS
from harness.candidates.controls.prepared_weights import PreparedKernels
from harness.candidates.controls.variant import Habit, Variant
from harness.cli import run
from harness.emulation.accumulate import aligned_gemm, blocked_gemm
from harness.emulation.activations import ACTIVATIONS
from harness.emulation.orders import Order, accumulate
from harness.emulation.quantize import quantize_real_with_fma, reciprocal_table
from harness.faults.named import load_named, plant
from harness.judging.context import Context, Known
from harness.mutants import false_alarms
from harness.mutants.false_alarms import count_false_alarms
from harness.problems.problem import parse_problem
from harness.problems.tensors import ProblemTensors
from harness.problems.traps import TRAPS
from harness.records.parts.mutants import FalseAlarmCount
from harness.rules import RULE_IDS
from harness.verdict import UsageError
from reference.nvfp4 import quantize_nvfp4

COUNTED = (*CONTROLS, PreparedKernels.name)
VARIANTS = [name for name in CONTROLS if isinstance(CONTROLS[name](), Variant)]


def check(result: FalseAlarmCount, examples: int) -> None:
    """Assert that a count found nothing, and that it looked."""
    assert result.false_alarms == []
    assert result.examples == examples
    assert set(result.controls) == set(COUNTED)
    assert all(control.examples for control in result.controls.values())
    assert result.judged["derived bound"] > 10_000
    assert result.judged["bit equality"] > 10_000


def test_a_right_kernel_is_never_called_wrong() -> None:
    """GEMM-2, GEMM-3, QUANT-1, QUANT-2, MOE-2: every control, an example each."""
    check(count_false_alarms(len(COUNTED), seed=1, controls=COUNTED), len(COUNTED))


PARTS = 4


@pytest.mark.long
@pytest.mark.parametrize("part", range(PARTS))
def test_a_right_kernel_is_never_called_wrong_in_10000_examples(part: int) -> None:
    """GEMM-2, GEMM-3, QUANT-1, QUANT-2, MOE-2: the same at length, in parts that workers share."""
    result = count_false_alarms(10_000 // PARTS, seed=1000 + part, controls=COUNTED)
    check(result, 10_000 // PARTS)
    assert set(result.rules) == set(RULE_IDS) - {"GRAPH"}  # CUDA only
    assert set(result.traps) >= set(TRAPS)


@pytest.mark.long
@pytest.mark.parametrize("part", range(PARTS))
def test_a_right_kernel_with_mxfp4_is_never_called_wrong_in_20000_examples(
    part: int, record_property: Callable[[str, object], None]
) -> None:
    """GEMM-2, GEMM-3, MOE-2: every control whose weights or activations are MXFP4."""
    controls = [name for name in IN_FORMATS if "mxfp4" in name]
    result = count_false_alarms(20_000 // PARTS, seed=2000 + part, controls=controls)
    figures = f"{result.examples:,} examples, {len(controls)} controls with MXFP4, {sum(result.judged.values()):,} elements"
    record_property("measured", f"{len(result.false_alarms)} false alarms in {figures}")
    assert result.false_alarms == []
    assert result.examples == 20_000 // PARTS


def test_a_control_that_is_wrong_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = plant("eager", "output_scaled")
    monkeypatch.setattr(catalog, "CONTROLS", {"wrong": lambda: wrong, "eager": CONTROLS["eager"]})
    false_alarms._measured.cache_clear()
    result = count_false_alarms(2 * 40, seed=3)
    false_alarms._measured.cache_clear()
    assert result.controls["eager"].false_alarms == 0
    assert result.controls["wrong"].false_alarms == len(result.false_alarms) > 0
    alarm = next(a for a in result.false_alarms if a.rule == "GEMM")
    assert "exact result" in alarm.message
    assert alarm.reproduce.startswith("harness check --rule GEMM --candidate control:wrong --problem ")
    assert result.rules["GEMM"]["false_alarms"] > 0
    json.dumps(asdict(result), allow_nan=False)


def test_the_count_stops_when_the_time_is_over() -> None:
    result = count_false_alarms(10_000_000, max_seconds=0.5)
    assert 0 < result.examples < result.wanted == 10_000_000


@cache
def outputs(name: str) -> dict[str, Tensor]:
    """Return everything that a variant's stages write, padding included."""
    candidate = Variant("physical", Habit()) if name == "default" else CONTROLS[name]()
    found: dict[str, Tensor] = {}
    for text in ("2x20x1024x16:17,20:spread:3", "2x140x64x48:9,130:normal:5:e2m1_ties+negative_zero"):
        ctx = Context(candidate, parse_problem(text), Known.declared(candidate.traits))
        t = ctx.tensors
        for stage, (packed, scales) in (
            ("quantize", candidate.quantize_grouped(t.x, t.masked_m, t.input_scale)),
            ("silu", candidate.silu_mul_quantize_grouped(t.gate_up, t.masked_m, t.a2_scale)),
        ):
            found[f"{text} {stage}"] = torch.cat((packed.flatten(), layouts.swizzled_bytes(scales).flatten()))
        shape = (ctx.problem.experts, ctx.problem.capacity, t.w1.codes.shape[1])
        out = layouts.empty_out(*shape, torch.float32, "cpu", 13.0)
        operands = *ctx.reference_operand(), layouts.operand(t.w1.codes), layouts.scales(t.w1.block_scale)
        candidate.masked_grouped_gemm(*operands, out, t.masked_m, t.w1_alpha)
        found[f"{text} gemm"] = out.nan_to_num(12345.0)
    return found


# What differs in these is not in the outputs of one call.
SAME_OUTPUTS = {
    "reciprocals_unknown": "what the harness knows",
    "layouts_refused": "what is refused",
    "tiles_reversed": "the order of the tiles",
    "tiles_shuffled": "the order of the tiles",
    "aligned_extents": "what it may be asked for",
    "hints_change_tiles": "what a hint does",
    "silu_by_sigmoid": "one float32 in many, see the test of ACTIVATIONS",
    "silu_by_exp2": "as above",
    "silu_by_reciprocal": "as above",
    "silu_with_fma": "as above",
}


@pytest.mark.parametrize("name", [name for name in VARIANTS if name not in SAME_OUTPUTS])
def test_a_control_writes_other_bits_than_physical(name: str) -> None:
    """A control that does what `physical` does proves nothing."""
    assert any(not torch.equal(outputs(name)[key], outputs("default")[key]) for key in outputs("default"))


def test_every_activation_differs_from_the_others_in_float32() -> None:
    gate, up = torch.randn(2, 4096, generator=torch.Generator().manual_seed(5)) * 4
    results = {name: activation(gate, up) for name, activation in ACTIVATIONS.items()}
    for name, result in results.items():
        assert all(other == name or not torch.equal(result, results[other]) for other in results)
        exact = (gate.double() * torch.sigmoid(gate.double()) * up.double()).float()
        assert ((result - exact).abs() <= exact.abs() * 2.0**-17).all(), name


def test_the_orders_are_those_of_the_plain_emulations() -> None:
    t = ProblemTensors(parse_problem("1x5x320x16:5:spread:2"))
    a, b = torch.randn(5, 320), t.w1.values[0]
    assert torch.equal(accumulate(a, b, Order()), blocked_gemm(a, b))
    assert torch.equal(accumulate(a, b, Order(chunk=16, bits=20)), blocked_gemm(a, b, chunk=16, bits=20))
    assert torch.equal(accumulate(a, b, Order(window=24)), aligned_gemm(a, b, window=24))


@pytest.mark.parametrize("trap", [None, *TRAPS])
def test_midpoints_compared_with_fma_round_as_the_real_numbers_do(trap: str | None) -> None:
    """NVFP4-1, NVFP4-2: float32 and FMA alone give what the reference computes in float64."""
    t = ProblemTensors(parse_problem(f"2x24x128x16:24,20:spread:4{f':{trap}' if trap else ''}"))
    for expert in range(2):
        codes, block_scale = quantize_real_with_fma(t.x[expert], t.input_scale[expert].expand(24))
        wanted = quantize_nvfp4(t.x[expert], t.input_scale[expert])
        assert torch.equal(block_scale, wanted.block_scale)
        kept = ~((block_scale == 0) | (block_scale == 0x7F)).repeat_interleave(16, -1)
        assert torch.equal(codes[kept], wanted.codes[kept])


def test_a_reciprocal_table_stays_within_one_unit() -> None:
    x = torch.randint(1 << 23, 0x7E800000, (50_000,), generator=torch.Generator().manual_seed(3)).int()
    x = x.view(torch.float32)
    x = x[(x < 2.0**126) & (x >= 2.0**-126)]
    rounded = x.reciprocal()
    for below, above in ((1000, 0), (0, 1000), (300, 300)):
        got = reciprocal_table(1, below, above)(x)
        off = got.view(torch.int32) - rounded.view(torch.int32)
        assert int(off.abs().max()) == 1
        unit = (torch.nextafter(rounded, rounded * 2).double() - rounded.double()).abs()
        assert ((got.double() - x.double().reciprocal()).abs() <= unit).all()


def test_controls_have_names_on_the_command_line() -> None:
    assert load_named("control:split_k_4").name == "split_k_4"
    assert load_named("control:physical").name == "physical_strict"
    assert load_named("control:combine_with_fma").habit is LAYER_HABITS["combine_with_fma"]
    with pytest.raises(UsageError, match="did you mean 'split_k_4'"):
        load_named("control:splitk4")


def test_the_command_counts_and_writes_a_record(tmp_path, capsys) -> None:
    code = run(["mutants", "--controls", "--examples", "8", "--jobs", "1", "--out", str(tmp_path)])
    assert code == 0
    assert "0 false alarms" in capsys.readouterr().out
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["mutants"]["controls"]["examples"] == 8
    assert record["verdict"] == "PASS"
