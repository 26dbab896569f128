"""What cannot be declared is refused in one sentence, where it is declared and by every command."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from harness import Traits, conformance
from harness.candidates.eager import Eager
from harness.candidates.left_out import out_of_contract
from harness.candidates.protocol import traits_of
from harness.problems.problem import parse_problem
from harness.problems.sparse import tensors_of
from harness.problems.traps import TRAPS
from harness.running.outcome import traits_from
from harness.verdict import UsageError

WHOLE = "must be a whole number, got "
ACTIVATIONS = 'must be a tuple of one such as "silu" or "silu; limit 10", "relu2", or both, got '
REFUSED: list[tuple[str, Any, str]] = [
    *((name, 1.5, f"{WHOLE}1.5") for name in ("k_multiple", "n_multiple", "m_multiple", "store_rows")),
    *((name, 0, "must be at least 1, got 0") for name in ("k_multiple", "accumulator_chunk", "min_experts")),
    *((name, -64, "must be at least 1, got -64") for name in ("n_multiple", "m_multiple", "store_rows")),
    ("max_experts", -1, "must be at least 0, got -1"),
    ("n_multiple", math.nan, f"{WHOLE}nan"),
    ("k_multiple", math.inf, f"{WHOLE}inf"),
    ("m_multiple", "128", f"{WHOLE}'128'"),
    ("m_multiple", None, f"{WHOLE}None"),
    ("k_multiple", True, f"{WHOLE}True"),
    ("store_rows", 10**9, "must be at most 16,384, got 1000000000"),
    ("min_experts", 257, "must be at most 256, got 257"),
    ("arithmetic", "quick", "must be one of fast, exact, real, got 'quick'"),
    ("arithmetic", ["fast"], "must be one of fast, exact, real, got ['fast']"),
    ("out_dtypes", (), "must be one or more of bfloat16, float16, float32, got ()"),
    ("out_dtypes", ("float8",), "must be a tuple of some of bfloat16, float16, float32, got ('float8',)"),
    ("out_dtypes", "bfloat16", "must be a tuple of some of bfloat16, float16, float32, got 'bfloat16'"),
    ("activations", (), f"{ACTIVATIONS}()"),
    ("activations", ("swish",), f"{ACTIVATIONS}('swish',)"),
    ("activations", ("silu; limit none",), f"{ACTIVATIONS}('silu; limit none',)"),
    ("activations", {"silu": 1}, f"{ACTIVATIONS}{{'silu': 1}}"),
    ("activations", ("silu", "gelu"), "must be at most one with a gate, and relu2, got ('silu', 'gelu')"),
    (
        "activation_format", "int8",
        "must be one of nvfp4, nvfp4_46, bf16, fp16, fp8, fp8_token, fp8_128, mxfp8, mxfp8_up, mxfp4, mxfp4_up, got 'int8'",
    ),
    ("unrounded", ("gate",), "must be a tuple of some of gemm1, hidden, got ('gate',)"),
    ("unrounded", "gemm1", "must be a tuple of some of gemm1, hidden, got 'gemm1'"),
    ("hints", ("tile",), "must be a tuple of dicts of keyword arguments, got ('tile',)"),
    ("hints", {"tile": 1}, "must be a tuple of dicts of keyword arguments, got {'tile': 1}"),
    ("hints", ({1: 2},), "must be a tuple of dicts of keyword arguments, got ({1: 2},)"),
    ("device", "", "must be a torch device type such as \"cuda\", got ''"),
    ("device", 0, 'must be a torch device type such as "cuda", got 0'),
    ("deterministic", 1, "must be True or False, got 1"),
    ("finite_only", "no", "must be True or False, got 'no'"),
    ("far", math.nan, "must be True or False, got nan"),
    ("keeps_sign_of_zero", None, "must be True or False, got None"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value", "reason"), REFUSED)
def test_what_cannot_be_declared_is_refused_with_what_it_must_be(name: str, value: Any, reason: str) -> None:
    with pytest.raises(UsageError) as refused:
        Traits(**{name: value})
    assert str(refused.value) == f"Traits: {name} {reason}"


def test_fewer_experts_at_most_than_at_least_are_refused() -> None:
    with pytest.raises(
        UsageError, match="max_experts must be 0, for no limit, or at least min_experts, which is 4"
    ):
        Traits(min_experts=4, max_experts=3)


def test_a_long_value_is_cut() -> None:
    with pytest.raises(UsageError) as refused:
        Traits(arithmetic="x" * 1000)
    assert len(str(refused.value)) < 150


def test_every_trait_is_checked() -> None:
    class Nothing:
        """Is no value of any trait."""

    for field in dataclasses.fields(Traits):
        with pytest.raises(UsageError, match=f"Traits: {field.name} must be "):
            Traits(**{field.name: Nothing()})  # type: ignore[arg-type]


def test_what_can_be_declared_survives_the_border_of_processes() -> None:
    traits = Traits(hints=({"tile": [1, 2]},), unrounded=("gemm1",), max_experts=512, out_dtypes=("float16",))
    assert traits_from(dataclasses.asdict(traits)) == traits


def test_traits_of_another_kind_are_bad_usage() -> None:
    class Mine:
        traits = {"device": "cpu"}  # noqa: RUF012 - wrong on purpose

    with pytest.raises(UsageError, match=r"candidate\.traits must be a harness\.Traits, got dict"):
        traits_of(Mine())


class Fractional(Eager):
    def __init__(self) -> None:
        super().__init__()
        self.traits = dataclasses.replace(self.traits, n_multiple=1.5)  # type: ignore[arg-type]


def test_a_test_that_declares_nonsense_gets_the_sentence() -> None:
    with pytest.raises(UsageError, match=r"Traits: n_multiple must be a whole number, got 1\.5"):
        conformance(Fractional)


def test_what_is_left_out_is_said_for_the_verdict() -> None:
    assert out_of_contract(Traits()) == []
    narrow = Traits(finite_only=True, keeps_subnormals=False, keeps_sign_of_zero=False, alpha_required=True)
    assert out_of_contract(narrow) == [
        "NaN and infinities", "subnormal numbers", "the sign of zero", "a GEMM without alpha",
    ]  # fmt: skip
    assert out_of_contract(Traits(power_scales=True, most_alpha=512)) == [
        "alphas and encode scales that are no powers of two", "alphas of 512 and more",
    ]  # fmt: skip


def test_problems_of_powers_of_two_hold_nothing_else() -> None:
    problem = parse_problem("v2:3x9x128x64:9,4,0:normal:5")
    t = tensors_of(problem, powers=True)
    for scale in (t.input_scale, t.a2_scale, t.w1_alpha, t.w2_alpha):
        assert bool((torch.frexp(scale)[0] == 0.5).all())
    assert not bool((torch.frexp(tensors_of(problem).w1_alpha)[0] == 0.5).all())
    assert not TRAPS["alpha_negative"].in_contract(Traits(power_scales=True))
    assert not TRAPS["small"].in_contract(Traits(most_alpha=512))
    with pytest.raises(UsageError, match="most_alpha must be a number that is not negative, got -1"):
        Traits(most_alpha=-1)


@pytest.mark.long
@pytest.mark.parametrize(
    ("declared", "reason"),
    [
        ("n_multiple=1.5", "Traits: n_multiple must be a whole number, got 1.5"),
        ("hints=('tile',)", "Traits: hints must be a tuple of dicts of keyword arguments, got ('tile',)"),
        ("store_rows='128'", "Traits: store_rows must be a whole number, got '128'"),
    ],
)
def test_the_command_line_ends_with_64_and_that_line(declared: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import dataclasses\nfrom harness.candidates.eager import Eager\n\n\nclass Kernel(Eager):\n"
        "    def __init__(self):\n        super().__init__()\n"
        f"        self.traits = dataclasses.replace(self.traits, {declared})\n"
    )
    command = [sys.executable, "-m", "harness.cli", "check", "--no-canary", "--candidate", "mine:Kernel"]
    for rules in ([], ["--rule", "QUANT", "--problem", "2x8x32x32:3,8:normal:1"], ["--no-isolate"]):
        done = subprocess.run([*command, *rules], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (64, f"harness: {reason}\n"), done.stdout


@pytest.mark.parametrize(("name", "block"), [("fp8_128", 128), ("mxfp8", 32), ("mxfp4_up", 32)])
def test_a_format_of_blocks_needs_whole_blocks_along_k(name: str, block: int) -> None:
    with pytest.raises(
        UsageError, match=f"k_multiple must be a multiple of {block}, the block of {name} with nvfp4"
    ):
        Traits(activation_format=name, k_multiple=16)


def test_interleaved_columns_come_in_whole_groups() -> None:
    assert Traits(k_multiple=16, n_multiple=8, activations=("silu; interleave 64",)).width_multiple == 64
