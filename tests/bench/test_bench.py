"""`harness bench` measures what it says it measures, and ends where it cannot."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from harness.bench import growth, peers, references
from harness.bench.timing import Timing, timed
from harness.cli import run
from harness.problems.problem import Problem, parse_problem
from reference.nvfp4 import global_scale_enc


def test_a_call_is_timed() -> None:
    calls = []
    found = timed(lambda: (calls.append(1), time.sleep(0.01)), at_least=0.02)
    assert len(calls) > 3, "warmed up, and repeated"
    assert 0.01 <= found.least <= found.seconds <= found.most


def test_times_are_told_in_milliseconds() -> None:
    assert str(Timing(0.000152, 0.00015, 0.0001551)) == "0.152 ms (0.150 to 0.155)"
    assert str(Timing(1.3, 1.25, 2.0)) == "1,300.0 ms (1,250.0 to 2,000.0)"


@pytest.mark.filterwarnings("ignore:::torchao")
def test_other_libraries_run_or_say_why_not() -> None:
    x = torch.randn(4, 32).bfloat16()
    found = peers.quantizers(x, global_scale_enc(x.abs().max().float()))
    assert [*found] == ["torchao", "compressed-tensors"]
    assert all(
        callable(each) or each.startswith(("not installed: ", "does not run here: "))
        for each in found.values()
    )


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_one_extent_grows_at_a_time(device: str) -> None:
    base = growth.SMALL if device == "cpu" else growth.LARGE
    problems = dict(growth.problems(device))
    assert {name for name, _ in problems} == {"experts", "hidden", "rows"}
    for (name, size), problem in problems.items():
        assert parse_problem(str(problem)) == problem
        assert {"experts": problem.experts, "hidden": problem.hidden, "rows": max(problem.masked_m)}[
            name
        ] == size
        assert problem.hidden == base.hidden or name == "hidden"
    assert {problem.inter for problem in problems.values()} == {base.inter}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """So small that a test has the time."""
    monkeypatch.setattr(references, "TENSOR", {"cpu": (4, 64)})
    monkeypatch.setattr(references, "LAYER", {"cpu": "v2:2x4x64x32:3,1:normal:1"})
    monkeypatch.setattr(references, "timed", lambda call: (call(), Timing(1e-3, 1e-3, 2e-3))[1])
    monkeypatch.setattr(growth, "SMALL", Problem(2, 4, 64, 32, (2, 2), seed=1))
    monkeypatch.setattr(growth, "GROWTH", {"cpu": {"experts": (4,), "hidden": (128,), "rows": (3,)}})


@pytest.mark.filterwarnings("ignore:::torchao")
@pytest.mark.usefixtures("small")
def test_the_command_prints_both_tables(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert "quantize 4 x 64 " in printed
    assert "masked MoE, 2 experts, 64 x 32, 4 rows " in printed
    for decoded in ("", ", decoded by definition"):
        line = f"{f'  float32, expert by expert{decoded}':<52} 1.000 ms (1.000 to 2.000)    1.00 times ours"
        assert line in printed
    for grown, rule in (("experts 4", "QUANT"), ("hidden 128", "GEMM"), ("rows 3", "MOE")):
        assert any(line.startswith(grown) and f" {rule} " in line for line in printed.splitlines())


@pytest.mark.usefixtures("small")
def test_a_part_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "--device", "cpu", "--part", "problems", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert "references" not in found
    assert len(found["problems"]) == 3 * len(growth.RULES)
    assert all(one["seconds"] > 0 for one in found["problems"])


@pytest.mark.usefixtures("small")
def test_a_kernel_that_is_not_judged_right_is_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong(growth.Eager):
        def masked_grouped_gemm(self, *given: Any, **more: Any) -> None:
            super().masked_grouped_gemm(*given, **more)
            given[4].mul_(2)

    monkeypatch.setattr(growth, "Eager", Wrong)
    with pytest.raises(RuntimeError, match="expected a right kernel to be judged right"):
        [*growth.measured("cpu", ["GEMM"])]


@pytest.mark.usefixtures("small")
def test_a_problem_that_does_not_fit_is_no_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Large(growth.Eager):
        def masked_grouped_gemm(self, *_: Any, **__: Any) -> None:
            raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(growth, "Eager", Large)
    assert run(["bench", "--device", "cpu", "--part", "problems"]) == 0
    assert capsys.readouterr().out.count("no memory") == 6, "GEMM and MOE, but not QUANT"


def test_without_a_gpu_it_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answer: Callable[[], bool] = lambda: False  # noqa: E731
    monkeypatch.setattr(torch.cuda, "is_available", answer)
    assert run(["bench", "--device", "cuda"]) == 2
    assert "torch sees none" in capsys.readouterr().err
