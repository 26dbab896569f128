"""`harness diagnose` on files: tensors that someone saved, records, and what is wrong with either."""

from __future__ import annotations

import pytest
import torch

from harness.cli import run
from harness.diagnosis.cases.observation import Recorder
from harness.diagnosis.cases.repetition import run_rule_once
from harness.diagnosis.tensor_file import diagnose_file
from harness.faults.named import plant
from harness.identification.measure import measure
from harness.problems.problem import parse_problem
from harness.problems.tensors import ProblemTensors
from harness.verdict import UsageError


@pytest.fixture
def saved(tmp_path):
    """A file with one call of quantize_grouped, by a candidate of that name."""

    def save(candidate: str, **words):
        t = ProblemTensors(parse_problem("3x16x64x64:16,16,9:normal:2"))
        arguments = {"x": t.x, "masked_m": t.masked_m, "global_scale_enc": t.input_scale}
        made = candidate.partition("+")
        output = plant("physical", *([made[2]] if made[2] else [])).quantize_grouped(*arguments.values())
        path = tmp_path / "tensors.pt"
        torch.save({"stage": "quantize_grouped", "arguments": arguments, "output": output} | words, path)
        return path

    return save


def test_a_file_of_tensors_is_diagnosed(saved) -> None:
    path = saved("physical+global_scale_of_neighbour")
    first = diagnose_file(path)[0]
    assert first["fault"] == "global_scale_of_neighbour"
    assert first["explained"] == 1
    assert first["command"] == f"harness diagnose {path}"


def test_a_file_of_right_tensors_has_nothing_wrong(saved, capsys) -> None:
    assert run(["diagnose", str(saved("physical"))]) == 0
    assert "nothing is wrong" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"stage": "attention"}, "'stage' must be one of quantize_grouped"),
        ({"output": None}, "'output' is missing"),
        ({"arguments": {}}, "'arguments' lacks x, masked_m, global_scale_enc"),
        ({"arithmetic": "slow"}, "arithmetic must be one of real, exact, fast"),
    ],
)
def test_a_file_that_is_no_call_says_what_is_missing(saved, words, message) -> None:
    with pytest.raises(UsageError, match=message):
        diagnose_file(saved("physical", **words))


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--candidate", "physical"],
        ["record.json", "--rule", "GEMM"],
        ["no_such_record.json"],
        ["no_such.pt"],
    ],
)
def test_bad_usage_is_64(words, capsys) -> None:
    assert run(["diagnose", *words]) == 64
    assert capsys.readouterr().err.startswith("harness: ")


def test_a_race_in_a_file_is_weak_since_it_cannot_be_repeated(tmp_path) -> None:
    candidate = plant("physical", "row_overwritten_now_and_then")
    recorder = Recorder(candidate)
    known = measure(candidate, probe=False).known
    run_rule_once(recorder, known, "GEMM", "2x16x64x64:16,9:normal:1")
    calls = [{"stage": c.stage, "arguments": c.arguments, "output": c.output} for c in recorder.calls]
    torch.save({"calls": calls}, tmp_path / "calls.pt")
    races = [f for f in diagnose_file(tmp_path / "calls.pt") if f.get("category") == "races"]
    assert races
    assert all(f["weak"] for f in races)
