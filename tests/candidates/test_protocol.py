"""The contract's types: mypy checks a kernel of a user against them, and they say what the contract's text says."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

from harness.candidates import protocol

ROOT = Path(__file__).parents[2]
KERNEL = '''
from torch import Tensor

from harness.candidates.protocol import MaskedGroupedGemm, MaskedMoe, QuantizeGrouped


class MyKernel:
    def quantize_grouped(
        self, x: Tensor, masked_m: Tensor, global_scale_enc: Tensor
    ) -> tuple[Tensor, Tensor]:
        return x, x

    def masked_grouped_gemm(
        self, a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor, out: Tensor, masked_m: Tensor,
        alpha: Tensor | None = None, *, tile: int = 128,
    ) -> None:
        """The hint `tile` is one argument more, and alpha has a default: both fit."""

    def masked_moe(
        self, hidden_states: tuple[Tensor, Tensor | None], input_global_scale: Tensor | None, w1: Tensor,
        w1_blockscale: Tensor, w1_alpha: Tensor, w2: Tensor, a2_global_scale: Tensor, w2_blockscale: Tensor,
        w2_alpha: Tensor, masked_m: Tensor, activation: str = "silu",
    ) -> Tensor:
        return w1


quantize: QuantizeGrouped = MyKernel().quantize_grouped
gemm: MaskedGroupedGemm = MyKernel().masked_grouped_gemm
layer: MaskedMoe = MyKernel().masked_moe
'''
# What is changed in it, and the type that must be named.
WRONG = {
    "another_name": ("global_scale_enc: Tensor", "scale: Tensor", "QuantizeGrouped"),
    "another_order": ("self, x: Tensor, masked_m: Tensor", "self, masked_m: Tensor, x: Tensor", "QuantizeGrouped"),
    "an_argument_is_missing": ("masked_m: Tensor,\n        alpha", "\n        alpha", "MaskedGroupedGemm"),
    "an_argument_too_many": ("tile: int = 128", "tile: int", "MaskedGroupedGemm"),
    "alpha_may_not_be_none": ("Tensor | None = None", "Tensor", "MaskedGroupedGemm"),
    "returns_something_else": ("-> tuple[Tensor, Tensor]:\n        return x, x", "-> Tensor:\n        return x", "QuantizeGrouped"),
    "activation_is_missing": (', activation: str = "silu"', "", "MaskedMoe"),
}  # fmt: skip


@pytest.fixture(scope="module")
def complaints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """What mypy --strict says about the kernel as it is ("right") and about each wrong one, in one run."""
    pytest.importorskip("mypy", reason="mypy is not installed")
    folder = tmp_path_factory.mktemp("kernels")
    texts = {"right": KERNEL} | {name: KERNEL.replace(a, b) for name, (a, b, _) in WRONG.items()}
    for name, text in texts.items():
        assert (text == KERNEL) == (name == "right"), name
        (folder / f"{name}.py").write_text(text, encoding="utf-8")
    # The project's own settings and cache: torch is read once for both, which takes most of the time.
    files = [str(folder / f"{name}.py") for name in texts]
    command = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", *files]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert said.returncode in {0, 1}, said.stdout + said.stderr
    return {
        name: [line for line in said.stdout.splitlines() if f"{name}.py:" in line and ": error: " in line]
        for name in texts
    }


def test_a_right_kernel_passes(complaints: dict[str, list[str]]) -> None:
    assert complaints["right"] == []


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_signature_fails_and_the_stage_is_named(complaints: dict[str, list[str]], name: str) -> None:
    (complaint,) = complaints[name]
    assert f'"{WRONG[name][2]}"' in complaint, complaint


@pytest.mark.parametrize("stage", protocol.ALL_STAGES)
def test_the_types_have_the_arguments_of_the_text(stage: str) -> None:
    kind = getattr(protocol, "".join(word.capitalize() for word in stage.split("_")))
    arguments = re.search(rf"^    {stage}\((.*?)\) ->", protocol.__doc__ or "", re.DOTALL | re.MULTILINE)
    assert arguments, stage
    defaults = {
        name: "" if parameter.default is parameter.empty else f"={parameter.default!r}".replace("'", '"')
        for name, parameter in inspect.signature(kind.__call__).parameters.items()
    }
    del defaults["self"]
    written = [word.strip() for word in arguments[1].split(",") if word.strip() != "*"]
    assert written == [name + default for name, default in defaults.items()]
