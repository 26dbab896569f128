"""A capture against an earlier one of the same requests: what regressed, and what is other than it was though no stage made it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from harness.cli import run
from harness.records.parts.replay import ReplayedCall
from harness.replay.baseline import Baseline
from harness.replay.reading import read_capture
from harness.replay.replay import replay
from tests.capture.conftest import Engine


def compared(folder: Path, before: Path) -> tuple[list[ReplayedCall], Baseline]:
    baseline = Baseline(read_capture(before), "fast")
    return list(replay(read_capture(folder), baseline=baseline)), baseline


def captured_with(engine: Engine, folder: Path, change: Callable[[dict[str, object]], None]) -> Path:
    """Capture a layer whose arguments were changed first."""
    engine.capture(folder, count=0)
    arguments = engine._loaded(0)
    change(arguments)
    engine.moe.flashinfer_cutedsl_moe_masked(**arguments)
    return folder


def test_the_same_run_again_is_the_same(captured: Callable[..., Path], tmp_path: Path) -> None:
    healthy = captured(count=2)
    lines, baseline = compared(healthy, healthy)
    assert {line.distance for line in lines} == {0.0}
    assert [line.differs for line in lines] == [[]] * 10
    assert (baseline.changes, baseline.faulty) == ([], False)


def test_a_fault_regressed_and_its_stage_is_the_first_difference(captured: Callable[..., Path]) -> None:
    lines, baseline = compared(captured("alpha_twice", count=2), captured(count=2))
    first = next(line for line in lines if line.verdict == "FAIL")
    assert first.regressed
    assert first.distance is not None
    assert first.distance > 0.5
    assert baseline.changes == [
        f"first difference: {first.place} returns something else for the same inputs, beyond what is legal"
    ]
    assert lines[lines.index(first) + 1].differs == ["x"], "what follows gets other tokens"


def test_what_was_wrong_before_did_not_regress(captured: Callable[..., Path]) -> None:
    faulty = captured("alpha_twice")
    lines, _ = compared(faulty, faulty)
    assert {line.regressed for line in lines if line.verdict == "FAIL"} == {False}


def test_another_legal_choice_is_a_difference_and_no_fault(engine: Engine, tmp_path: Path) -> None:
    """Twice the tokens with half the factor: one step of FP4 either way is not even needed."""
    before = engine.capture(tmp_path / "before")

    def change(arguments: dict[str, object]) -> None:
        tokens, _ = arguments["hidden_states"]  # type: ignore[misc]
        arguments["hidden_states"] = (tokens * 1.5, None)

    lines, baseline = compared(captured_with(engine, tmp_path / "after", change), before)
    assert {str(line.verdict) for line in lines} == {"PASS"}
    assert baseline.changes[0].startswith(
        "first difference: rank 0, layer 0, call 2, quantize_grouped is given other x"
    )
    assert not baseline.faulty


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("w2_blockscale", "rank 0, layer 0, masked_moe: other w2_blockscale than in the baseline"),
        ("w1_alpha", "rank 0, layer 0, masked_moe: other w1_alpha than in the baseline"),
    ],
)
def test_other_weights_or_factors_are_a_fault_that_no_stage_shows(
    engine: Engine, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str,
    words: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    before = engine.capture(tmp_path / "before")

    def change(arguments: dict[str, object]) -> None:
        value = arguments[name]
        assert isinstance(value, torch.Tensor)
        arguments[name] = (
            value.clone().view(torch.uint8).flip(0).view(value.dtype) if value.ndim > 1 else value.flip(0)
        )

    after = captured_with(engine, tmp_path / "after", change)
    assert run(["replay", str(after), "--baseline", str(before), "--out", "out"]) == 1
    said = capsys.readouterr().out
    assert words in said
    assert "FAIL: not as in the baseline: rank 0, layer 0" in said
    assert run(["replay", str(after), "--out", "out"]) == 0


def test_other_rows_and_missing_calls_are_said(engine: Engine, tmp_path: Path) -> None:
    before = engine.capture(tmp_path / "before", count=2)

    def change(arguments: dict[str, object]) -> None:
        arguments["masked_m"] = torch.tensor([3, 0, 4], dtype=torch.int32)

    lines, baseline = compared(captured_with(engine, tmp_path / "after", change), before)
    assert lines[0].distance is None
    assert "rank 0, layer 0: other rows of its experts (masked_m), first in call 2" in baseline.changes
    assert baseline.changes[-1].startswith(
        "5 calls of the baseline are missing, the first: rank 0, layer 1, "
    )
    _, other = compared(before, tmp_path / "after")
    assert any("the baseline has no such call" in words for words in other.changes)


def test_padding_is_not_compared(engine: Engine, tmp_path: Path) -> None:
    before = engine.capture(tmp_path / "before")

    def change(arguments: dict[str, object]) -> None:
        tokens, _ = arguments["hidden_states"]  # type: ignore[misc]
        other = tokens.clone()
        other[1] = 7.0  # an expert without rows
        other[2, 4:] = torch.nan
        arguments["hidden_states"] = (other, None)

    lines, baseline = compared(captured_with(engine, tmp_path / "after", change), before)
    assert [line.differs for line in lines] == [[]] * 5
    assert baseline.changes == []
