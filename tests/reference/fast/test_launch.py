"""Where Triton cannot compile, the references run in torch alone and say so; without it nothing is tried."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from reference.fast import launch

HERE = torch.device("cpu")


@pytest.fixture(autouse=True)
def _not_tried() -> Iterator[None]:
    launch.compiles.cache_clear()
    yield
    launch.compiles.cache_clear()


def test_without_a_compiler_it_warns_once_and_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def decode(*_: Any) -> None:
        tried.append(1)
        raise RuntimeError("Failed to find C compiler.\nPlease specify via CC")

    monkeypatch.setattr(launch, "decode_blocks", decode)
    with pytest.warns(
        UserWarning, match=r"torch alone.* on cpu \(RuntimeError: Failed to find C compiler\.\)"
    ):
        assert not launch.compiles(HERE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not launch.compiles(HERE)
    assert tried == [1]


def test_where_it_compiles_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "decode_blocks", lambda *_: None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert launch.compiles(HERE)


def test_a_cpu_and_a_machine_without_triton_have_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert not launch.has_kernels(torch.zeros(1))
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(launch, "_has_triton", lambda: False)
    assert not launch.has_kernels(torch.zeros(1))
    monkeypatch.setattr(launch, "_has_triton", lambda: True)
    assert launch.has_kernels(torch.zeros(1))
