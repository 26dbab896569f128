"""Modes of a candidate, by name and all at once, and what is said of the kernels that ran."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness.candidates import candidate_modes, load_candidate
from harness.candidates.eager import EagerKernels
from harness.candidates.modes import names_in_modes
from harness.candidates.witness import asked_of, contradiction, ran_of
from harness.cli import run
from harness.verdict import UsageError

HERE = "tests.candidates.test_modes_and_kernels"
CHECK = ["check", "--no-canary", "--no-isolate", "--rule", "GEMM", "--problem", "v2:3x9x64x32:9,4,7:normal:3"]


class InModes(EagerKernels):
    """A right candidate with two modes, one of which falls back to the other's kernel."""

    modes = ("plain", "tuned", "lost")

    def __init__(self, mode: str = "plain") -> None:
        super().__init__(activations=("silu",))
        self.mode = mode
        self.asked = {"mode": mode}
        self._ran: list[dict[str, str]] = []

    def masked_grouped_gemm(self, *arguments: Any) -> None:
        super().masked_grouped_gemm(*arguments)
        self._ran.append(
            {"mode": "plain" if self.mode == "lost" else self.mode, "tile": str(arguments[0].shape[0])}
        )

    def ran(self) -> list[dict[str, str]]:
        found, self._ran = self._ran, []
        return found


def test_a_name_may_say_the_mode() -> None:
    assert load_candidate(f"{HERE}:InModes").mode == "plain"
    assert load_candidate(f"{HERE}:InModes:tuned").mode == "tuned"
    assert load_candidate("humming-masked:mxfp4-fp8").name == "humming-masked:mxfp4-fp8"
    for wrong, said in (
        (f"{HERE}:InModes:tuneb", "did you mean 'tuned'"),
        ("eager:fast", "has no modes"),
        (f"{HERE}:EagerKernels:fast", "has no modes"),
    ):
        with pytest.raises(UsageError, match=said):
            load_candidate(wrong)


def test_modes_are_names() -> None:
    modes = candidate_modes(f"{HERE}:InModes+alpha_dropped")
    assert modes == InModes.modes
    assert candidate_modes("eager") == candidate_modes("control:eager_bf16") == ()
    assert candidate_modes(f"{HERE}:InModes:tuned") == ()
    assert names_in_modes("a:B+fault@7", modes, "plain, tuned") == ["a:B:plain+fault@7", "a:B:tuned+fault@7"]
    assert names_in_modes("a:B", modes, "all") == ["a:B:plain", "a:B:tuned", "a:B:lost"]
    assert names_in_modes("a:B", (), "all") == ["a:B"]
    with pytest.raises(UsageError, match="unknown mode of a:B 'fast'"):
        names_in_modes("a:B", modes, "fast")


def test_every_mode_is_judged_and_a_kernel_that_was_not_asked_for_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*CHECK, "--candidate", f"{HERE}:InModes", "--modes", "all", "--out", str(tmp_path)]) == 1
    capsys.readouterr()
    record = json.loads((tmp_path / "record.json").read_text())
    verdicts = {result["candidate"].rpartition(":")[2]: result for result in record["rules"]}
    assert {mode: result["verdict"] for mode, result in verdicts.items()} == {
        "plain": "PASS", "tuned": "PASS", "lost": "FAIL",
    }  # fmt: skip
    assert "asked for mode lost, plain ran: mode plain, tile" in verdicts["lost"]["reason"]
    kernels = verdicts["tuned"]["kernels"]
    assert all(name.startswith("mode tuned, tile ") for name in kernels)
    assert sum(kernels.values()) >= verdicts["tuned"]["examples"] > 0
    tuned = next(c for c in record["candidates"] if c["name"].endswith(":tuned"))
    assert tuned["measured"]["asked of its package"] == "mode tuned"
    assert tuned["measured"]["kernels that ran"].startswith(f"{len(kernels)}, by problems: mode tuned, tile ")


def test_modes_without_a_candidate_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*CHECK, "--modes", "all"]) == 64
    assert "give --candidate as well" in capsys.readouterr().err


def test_a_candidate_that_says_nothing_of_its_kernels_contradicts_nothing() -> None:
    assert (asked_of(object()), ran_of(object())) == ({}, [])
    assert contradiction({"a": "1"}, [{"b": "2"}, {"a": "1"}]) == ""
    assert contradiction({"a": "1"}, [{"a": "1"}, {"a": "2", "b": "3"}]) == "asked for a 1, 2 ran: a 2, b 3"
