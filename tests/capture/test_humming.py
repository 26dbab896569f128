"""Humming's masked GEMM, whose weights are prepared once: captured with the weights that it was made of, inside its layer."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from harness.candidates import composition, layouts
from harness.candidates.composition import ComposedMoe
from harness.candidates.traits import Traits
from harness.capture.settings import CaptureSettings
from harness.records.parts.replay import ReplayedCall
from harness.replay.captured import Captured
from harness.replay.reading import read_capture
from harness.replay.replay import replay
from tests.capture import conftest
from tests.capture.conftest import Engine

CONFIG = SimpleNamespace(a_dtype="bfloat16", b_dtype="float4e2m1", bs_dtype="float8e4m3")
MASKED = {"gemm_type": "grouped_masked", "use_batch_invariant": True}


class Served(ComposedMoe):
    """A layer that runs through Humming, as an engine composes it.

    Args:
        package: the stand-in.
        compute_config: of every GEMM.
    """

    traits = Traits(activation_format="bf16", accumulator_chunk=16)

    def __init__(self, package: Any, compute_config: Any = MASKED) -> None:
        self.package, self.compute_config = package, compute_config
        self.kept: dict[int, dict[str, torch.Tensor]] = {}
        self.loaded: list[dict[str, Any]] = []  # an engine's weights stay where they are

    def load(self, given: dict[str, Any], *, allow_inplace: bool = False) -> None:
        self.loaded.append(given)
        for name in ("w1", "w2"):
            codes = given[name].clone()
            scale = layouts.block_scales_of(
                layouts.as_mma(given[f"{name}_blockscale"].view(torch.uint8)),
                codes.shape[1],
                codes.shape[2] // 8,
            )
            tensors = {
                "weight": codes.view(torch.int32), "weight_scale": scale.view(torch.float8_e4m3fn),
                "weight_scale_2": given[f"{name}_alpha"],
            }  # fmt: skip
            self.kept[given[name].data_ptr()] = self.package.transform.transform_humming_tensors(
                CONFIG, tensors, allow_inplace=allow_inplace
            )

    def quantize_grouped(self, x: torch.Tensor, masked_m: torch.Tensor, _: Any) -> Any:
        return x.permute(1, 2, 0), None

    def silu_mul_quantize_grouped(self, gate_up: torch.Tensor, masked_m: torch.Tensor, _: Any) -> Any:
        gate, up = gate_up.float().chunk(2, dim=-1)
        return (torch.nn.functional.silu(gate) * up).bfloat16().permute(1, 2, 0), None

    def masked_grouped_gemm(self, a: Any, _: Any, b: Any, __: Any, out: Any, masked_m: Any, ___: Any) -> None:
        experts = len(masked_m)
        rows, stored = (t.permute(2, 0, 1).reshape(-1, t.shape[1]) for t in (a, out))
        assert stored.data_ptr() == out.data_ptr()
        assert len(rows) % experts == 0
        self.package.forward.humming_forward(
            CONFIG, rows, outputs=stored, expert_layout=masked_m, compute_config=self.compute_config,
            **self.kept[b.data_ptr()],
        )  # fmt: skip


@pytest.fixture(name="humming")
def humming_fixture(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The stand-in, and the harness's composed layer, tapped by the engine's session, which captures into tmp_path."""
    with conftest.packages():
        package = SimpleNamespace(
            **{name: importlib.import_module(f"humming.{name}") for name in ("transform", "forward", "ops")}
        )
        before = ComposedMoe.masked_moe
        for module in (package.transform, package.forward, composition):
            conftest.hook._tap(engine.session, module)
        engine.session.settings, engine.session.idle = CaptureSettings(str(tmp_path / "cap")), False
        engine.session._begin_anew()
        engine.session._warned.clear()
        yield package
        ComposedMoe.masked_moe = before  # type: ignore[method-assign]
        engine.session.idle = True


def served(engine: Engine, humming: Any, layers: int = 2, **named: Any) -> Served:
    """Load and run some layers."""
    layer = Served(humming, **named)
    every = [engine._loaded(number) for number in range(layers)]
    for given in every:
        layer.load(given)
    run(layer, every)
    return layer


def run(layer: Served, every: list[dict[str, Any]]) -> None:
    for given in every:
        layer.masked_moe(**{**given, "input_global_scale": torch.ones(3), "a2_global_scale": torch.ones(3)})


def calls_of(folder: Path) -> list[Captured]:
    (process,) = read_capture(folder / "cap")
    return process.calls


def lines_of(folder: Path) -> list[ReplayedCall]:
    return list(replay(read_capture(folder / "cap")))


def test_a_layers_gemms_are_captured_with_the_weights_of_the_checkpoint(
    engine: Engine, humming: Any, tmp_path: Path
) -> None:
    served(engine, humming)
    calls = calls_of(tmp_path)
    assert [call.stage for call in calls] == ["masked_grouped_gemm", "masked_grouped_gemm", "masked_moe"] * 2
    assert [call.layer for call in calls] == [0] * 3 + [1] * 3
    assert torch.equal(calls[0].inputs["b"], engine._loaded(0)["w1"])
    lines = lines_of(tmp_path)
    assert [str(line.verdict) for line in lines] == ["PASS"] * 6, [line.words for line in lines]
    assert all(line.error is not None and line.error < 0.01 for line in lines), "bfloat16's rounding"


def test_weights_that_are_prepared_in_place_are_stored_as_they_were(
    engine: Engine, humming: Any, tmp_path: Path
) -> None:
    layer, given = Served(humming), engine._loaded(0)
    layer.load(given, allow_inplace=True)
    run(layer, [given])
    assert torch.equal(calls_of(tmp_path)[0].inputs["b"], given["w1"])
    assert {str(line.verdict) for line in lines_of(tmp_path)} == {"PASS"}


def test_a_fault_below_the_launch_is_found_at_its_layer_and_named(
    engine: Engine, humming: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = served(engine, humming)
    monkeypatch.setattr(humming.ops, "FAULT", "alpha_of_neighbour")
    other = engine._loaded(2)
    layer.load(other)
    run(layer, [other])
    wrong = [line for line in lines_of(tmp_path) if line.verdict == "FAIL"]
    assert (wrong[0].layer, wrong[0].stage) == (2, "masked_grouped_gemm")
    assert "alpha_of_neighbour" in {one["fault"] for one in wrong[0].diagnosis}


def test_weights_that_were_prepared_before_are_left_out_with_one_warning(
    engine: Engine, humming: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layer, given = Served(humming), engine._loaded(0)
    engine.session.idle = True
    layer.load(given)
    engine.session.idle = False
    run(layer, [given])
    assert [call.stage for call in calls_of(tmp_path)] == ["masked_moe"], "the layer, without its GEMMs"
    assert capsys.readouterr().err.count("weights were prepared before the capture began") == 1


@pytest.mark.parametrize("compute", [{"gemm_type": "indexed"}, json.dumps({"gemm_type": "indexed"}), None])
def test_another_kind_of_gemm_is_left_out(engine: Engine, humming: Any, tmp_path: Path, compute: Any) -> None:
    served(engine, humming, layers=1, compute_config=compute)
    assert [call.stage for call in calls_of(tmp_path)] == ["masked_moe"]


def test_a_format_without_a_rule_is_said(
    engine: Engine, humming: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CONFIG, "b_dtype", "uint4")
    served(engine, humming, layers=1)
    lines = lines_of(tmp_path)
    assert lines[0].words.endswith("of bfloat16 x uint4 x float8e4m3: a format that no rule judges")
