"""The masked MoE in torch alone, some experts at a time, has the bits of the definition, expert after expert."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from reference import moe, nvfp4
from reference.fast import moe as fast

COUNTS = [7, 0, 20, 1]


def weights(n: int, k: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    x = torch.randn(len(COUNTS), n, k, generator=generator)
    of = nvfp4.quantize_nvfp4(x, 2688 / x.abs().amax((1, 2)))
    return of.codes, of.block_scale, torch.linspace(1e-6, 3e-6, len(COUNTS))


def layer(activation: str) -> tuple[dict[str, Any], Tensor]:
    """Return the arguments of the fast form, and what the definition says of their rows."""
    generator = torch.Generator().manual_seed(5)
    w1, w2 = weights(96 if activation == "silu" else 48, 272, generator), weights(272, 48, generator)
    x = torch.randn(len(COUNTS), 20, 272, generator=generator).bfloat16()
    masked_m, scale, a2 = torch.tensor(COUNTS), torch.linspace(300, 500, 4), torch.linspace(30, 60, 4)
    valid = moe.valid_rows(masked_m, 20)
    wanted = moe.masked_moe(x, scale, *w1, w2[0], a2, *w2[1:], masked_m, activation)[valid]
    given = {"rows": (x[valid],), "input_scale": scale, "w1": w1, "w2": w2, "a2_scale": a2, "counts": COUNTS}
    return given | {"activation": activation}, wanted


@pytest.mark.parametrize("elements", [1, 1 << 28], ids=["one expert at a time", "all"])
@pytest.mark.parametrize("activation", ["silu", "relu2"])
def test_the_layer_is_the_same(activation: str, elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast, "_ELEMENTS", elements)
    given, wanted = layer(activation)
    assert torch.equal(fast.masked_moe(**given), wanted)


def test_scales_without_thresholds_are_taken_as_well() -> None:
    given, _ = layer("silu")
    scale = given["input_scale"].clone()
    scale[1] = 0.0  # of an expert that has no rows
    wanted = fast.masked_moe(**given)
    assert torch.equal(fast.masked_moe(**given | {"input_scale": scale}), wanted)


@pytest.mark.parametrize("rows", [1, 20, 27, 1 << 13])
def test_groups_have_so_many_rows(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast, "_ROWS", rows)
    found = [*fast._groups(COUNTS, 9)]
    assert sum(of.stop - of.start for _, of in found) == sum(COUNTS)
    assert all(of.stop - of.start <= rows or experts.stop - experts.start == 1 for experts, of in found)
    given, wanted = layer("silu")
    assert torch.equal(fast.masked_moe(**given), wanted)


def test_the_layer_of_quantized_rows_is_the_same() -> None:
    given, wanted = layer("silu")
    of = nvfp4.quantize_nvfp4(given["rows"][0], given["input_scale"].repeat_interleave(torch.tensor(COUNTS)))
    assert torch.equal(
        fast.masked_moe(**given | {"rows": (of.codes, of.block_scale), "input_scale": None}), wanted
    )


@pytest.mark.parametrize(
    "groups",
    [
        [(slice(2, 3), slice(0, 7)), (slice(0, 1), slice(7, 27)), (slice(3, 4), slice(27, 28))],
        [(slice(0, 1), slice(0, 7)), (slice(2, 3), slice(7, 27))],
    ],
    ids=["the weights of another expert", "one left out"],
)
def test_a_group_of_experts_that_is_taken_for_another_is_seen(
    groups: list[tuple[slice, slice]], monkeypatch: pytest.MonkeyPatch
) -> None:
    given, wanted = layer("silu")
    monkeypatch.setattr(fast, "_groups", lambda *_: groups)
    counts = [each.stop - each.start for _, each in groups]
    by_expert = {experts.start: rows for (experts, _), rows in zip(groups, counts, strict=True)}
    given["counts"] = [by_expert.get(expert, 0) for expert in range(4)]
    assert not torch.equal(fast.masked_moe(**given), wanted)


def test_packed_weights_are_refused() -> None:
    given, _ = layer("silu")
    codes, *rest = given["w1"]
    with pytest.raises(ValueError, match="got 255; packed bytes need unpack_e2m1"):
        fast.masked_moe(**given | {"w1": (codes | 0xF0, *rest)})
