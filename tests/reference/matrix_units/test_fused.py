"""What the host does for the Triton kernels, without triton; tests/gpu/test_matrix_units.py compares their bits."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from reference.fast import launch
from reference.matrix_units import FMA, UNITS, Operand, fused

F16, F8, FP4 = UNITS["sm_90 f16"], UNITS["sm_90 f8"], UNITS["sm_100 mxf4nvf4"]


def operand(k: int = 128, block: int = 0, value: float = 1.5) -> Operand:
    scales = torch.ones(3, k // block) if block else None
    return Operand.of(torch.full((3, k), value), "bfloat16", scales)


@pytest.fixture
def triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton's interpreter, as far as `has_kernel` looks."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(launch, "_has_triton", lambda: True)


def test_a_cpu_has_no_kernel_and_neither_has_who_has_no_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "_has_triton", lambda: True)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert not fused.has_kernel(F16, operand(), operand(), [0])
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert fused.has_kernel(F16, operand(), operand(), [0])
    monkeypatch.setattr(launch, "_has_triton", lambda: False)
    assert not fused.has_kernel(F16, operand(), operand(), [0])


@pytest.mark.usefixtures("triton")
@pytest.mark.parametrize(
    ("unit", "given", "starts", "has"),
    [
        (F8, operand(), [0, 3], True),
        (F8, operand(0), [0], False),
        (FMA, operand(), [0], False),
        (dataclasses.replace(F16, result="float16", zero=-21), operand(), [0], False),
        (dataclasses.replace(F16, k=4), operand(), [0], False),
        (FP4, operand(block=16), [0, 16], True),
        (dataclasses.replace(FP4, group=32), operand(block=32), [0], False),
        (FP4, operand(block=64), [0, 64], True),
        (FP4, operand(), [0], False),  # no scales
        (FP4, operand(block=16), [0, 24], False),  # half a block
        (FP4, operand(block=8), [0], False),  # half a group
        (FP4, operand(96, block=48), [0], False),  # blocks that end inside of instructions
        (FP4, operand(block=16, value=1.25), [0], False),  # no value of E2M1
        (FP4, operand(block=16, value=torch.nan), [0], False),
    ],
)
def test_which_products_have_a_kernel(unit, given, starts, has) -> None:
    assert fused.has_kernel(unit, given, given, starts) is has


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (2.0**100, torch.bfloat16),
        (1 + 2.0**-10, torch.float16),
        (1 + 2.0**-20, torch.float32),
        (2.0**200, torch.float64),
        (torch.inf, torch.bfloat16),
    ],
)
def test_elements_are_held_in_the_narrowest_type_that_is_exact(value: float, dtype: torch.dtype) -> None:
    values = torch.tensor([[value, 1.0, torch.nan]], dtype=torch.float64)
    narrow = fused._narrowed(values)
    assert narrow.dtype == dtype
    assert torch.equal(narrow.double()[:, :2], values[:, :2])
    assert narrow.isnan()[0, 2]
