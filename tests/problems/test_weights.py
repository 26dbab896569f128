"""Weights are cached, as long as they fit, and what an option changes shares the codes of the plain ones."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from harness.candidates import layouts
from harness.problems import weights
from harness.problems.weights import NAN_ROWS, SMALL_ROWS, Weights, make_weights
from reference.e2m1 import pack_e2m1
from reference.formats import FORMATS, NVFP4, Coded

SHAPE = (2, 64, 128)
OPTIONS = ((False, False, False), (True, False, False), (True, True, True))


@pytest.fixture(autouse=True)
def nothing_is_kept() -> Iterator[None]:
    make_weights.cache_clear()
    weights._kept.clear()
    yield
    make_weights.cache_clear()
    weights._kept.clear()


def asked(version: int, small_rows: bool, zero_blocks: bool, nan_rows: bool) -> Weights:
    """Return weights as a problem's tensors ask for them."""
    return make_weights(
        *SHAPE, "normal", 1, "cpu", version=version, form=NVFP4,
        small_rows=small_rows, zero_blocks=zero_blocks, nan_rows=nan_rows,
    )  # fmt: skip


def test_they_are_cached_until_they_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """WEIGHTS: those of a real model take gigabytes, on a GPU that the candidate shares."""
    monkeypatch.setattr(weights, "KEPT", 2 * 2 * 64 * 128)
    first, second = (make_weights(*SHAPE, "normal", seed, "cpu") for seed in (1, 2))
    assert make_weights(*SHAPE, "normal", 1, "cpu") is first
    assert make_weights(*SHAPE, "normal", 2, "cpu") is second
    make_weights(*SHAPE, "normal", 3, "cpu")
    again = make_weights(*SHAPE, "normal", 1, "cpu")
    assert again is not first
    assert torch.equal(again.codes, first.codes)


@pytest.mark.parametrize("version", [1, 2])
def test_an_option_changes_scales_and_no_code(version: int) -> None:
    """WEIGHTS: zero_blocks and nan_rows go into what small_rows gives."""
    plain, small, every = (asked(version, *options) for options in OPTIONS)
    assert plain.codes is small.codes is every.codes
    changed = small.block_scale != plain.block_scale
    assert changed[:, ::SMALL_ROWS].all()
    assert changed.sum() == changed[:, ::SMALL_ROWS].numel()
    nan = every.block_scale == every.form.nan_scale
    assert (nan[:, ::NAN_ROWS].sum(-1) == 1).all()
    assert nan.sum() == nan[:, ::NAN_ROWS, 0].numel()
    zero = every.block_scale == 0
    assert 0.2 < zero.double().mean() < 0.3
    assert torch.equal(every.block_scale[~zero & ~nan], small.block_scale[~zero & ~nan])


def test_scales_that_are_powers_of_two_have_neither_subnormals_nor_zero() -> None:
    """WEIGHTS: E8M0 has no such bytes."""
    plain, asked = (
        make_weights(*SHAPE, "normal", 1, "cpu", form=FORMATS["mxfp4"], small_rows=on, zero_blocks=on)
        for on in (False, True)
    )
    assert torch.equal(plain.block_scale, asked.block_scale)


def test_the_two_versions_are_not_the_same() -> None:
    """WEIGHTS: in what they draw, and in where their deviation comes from."""
    old, new = (make_weights(*SHAPE, "normal", 1, "cpu", version=version) for version in (1, 2))
    assert not torch.equal(old.codes, new.codes)
    assert (old.known, len(new.deviation.unique())) == (None, 1)
    measured = new.values.double().square().mean((1, 2)).sqrt()
    assert ((new.deviation / measured - 1).abs() < 0.05).all()
    assert torch.equal(old.deviation, old.values.double().square().nanmean((1, 2)).sqrt())


@pytest.mark.parametrize("data", ["normal", "spread", "grid"])
def test_deviations_in_float32_are_those_of_float64(data: str) -> None:
    """WEIGHTS: v1's alphas follow from them; blocks of NaN are left out."""
    for nan_rows in (False, True):
        made = make_weights(3, 48, 2048, data, 5, "cpu", version=1, nan_rows=nan_rows)
        wanted = made.values.double().square().nanmean((1, 2)).sqrt()
        torch.testing.assert_close(made.deviation, wanted, rtol=1e-14, atol=0)
        assert torch.equal((1 / made.deviation).float(), (1 / wanted).float())


@pytest.mark.parametrize("name", [form.name for form in FORMATS.values() if form.element == "e2m1"])
def test_who_writes_into_an_operand_writes_into_his_own(name: str) -> None:
    """WEIGHTS: the packed form is kept; a candidate that changes its inputs must spoil no later call."""
    form = FORMATS[name]
    drawn = make_weights(2, 40, 64, "normal", 1, "cpu", form=form)
    wanted = layouts.stored(form, Coded(drawn.codes, drawn.block_scale))
    for_layer = pack_e2m1(drawn.codes), layouts.weight_scales(form, drawn.block_scale)
    for give, right in ((drawn.operand, wanted), (drawn.for_layer, for_layer)) * 2:
        for got, as_stored in zip(give(), right, strict=True):
            assert got.dtype == as_stored.dtype
            assert got.stride() == as_stored.stride()
            assert torch.equal(got.view(torch.uint8), as_stored.view(torch.uint8))
            got.view(torch.uint8).bitwise_xor_(1)
