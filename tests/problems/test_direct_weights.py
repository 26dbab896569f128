"""Weights that are drawn as codes and scales have the frequencies of Gaussian numbers that were quantized."""

from __future__ import annotations

import dataclasses
import hashlib
import math

import pytest
import torch
from torch import Tensor

from harness.problems import direct_weights, tables
from harness.problems.direct_weights import BlockTable, DrawnWeights, block_table
from harness.problems.draws import Draws
from reference.formats import FORMATS, Coded, Format
from reference.nvfp4 import SCALE_RANGE

SHAPE = (2, 1024, 1024)
FORMS = ("nvfp4", "mxfp4", "nvfp4_46")
LIMIT = 6.0  # deviations; a code's share of 2^21 elements deviates by 1/4000 at most
LARGEST = 5.03125
"""Magnitude that the table of NVFP4 holds, in deviations: it fills the encoded range."""


def weights(form: str, data: str = "normal", name: str = "test") -> DrawnWeights:
    return Draws(name, "cpu").weights(SHAPE, data, FORMATS[form])


def quantized(form: str, data: str = "normal") -> Coded:
    """Return Gaussian numbers of torch's generator, quantized by definition."""
    own = FORMATS[form]
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(3))
    encode = 512.0 if own.divisors else SCALE_RANGE / LARGEST
    if data == "spread":
        power = torch.randint(
            -5, 6, (*SHAPE[:2], SHAPE[2] // own.block, 1), generator=torch.Generator().manual_seed(4)
        )
        x = torch.ldexp(x.view(*power.shape[:3], own.block), power).view(SHAPE)
        encode /= 32
    return own.quantize(x.bfloat16(), torch.tensor([encode]) if own.encoded else None)


def difference(one: Tensor, other: Tensor, cells: int, together: int = 1) -> float:
    """Return how far the shares of cells differ between two samples, in deviations of the largest one that chance allows.

    Args:
        one: numbers below `cells`.
        other: likewise.
        cells: of which shares are compared.
        together: numbers that depend on one another: a block's codes share its scale.
    """
    shares = [torch.bincount(each.flatten().long(), minlength=cells) / each.numel() for each in (one, other)]
    mean = (shares[0] + shares[1]) / 2
    deviations = (mean * (1 - mean) * (together / one.numel() + together / other.numel())).sqrt()
    return float(((shares[0] - shares[1]).abs() / deviations.clamp(min=2.0**-15)).max())


def worst(drawn: DrawnWeights, wanted: Coded, form: Format) -> dict[str, float]:
    """Return the differences of what is drawn from what is quantized, by name."""
    codes, others = (each.codes.view(-1, form.block).int() for each in (drawn, wanted))
    scales = [each.block_scale.flatten().int() for each in (drawn, wanted)]
    found = {
        "scales": difference(*scales, 256),
        "codes": difference(codes, others, 16, 4),
        "pairs": difference(
            codes[:, ::2] << 4 | codes[:, 1::2], others[:, ::2] << 4 | others[:, 1::2], 256, 4
        ),
    }
    # Codes and scales depend on one another: the shares of the codes by scale.
    joint = [s.unsqueeze(-1) << 3 | c & 7 for s, c in zip(scales, (codes, others), strict=True)]
    found["codes by scale"] = difference(*joint, 2048, 4)
    place = [c.bitwise_and(7).argmax(-1) for c in (codes, others)]
    found["place of the largest"] = difference(*place, form.block)
    largest = [
        (c & 7).amax(-1) << 4 | (c & 7 == (c & 7).amax(-1, keepdim=True)).sum(-1) for c in (codes, others)
    ]
    found["largest and how many"] = difference(*largest, 512)
    return found


@pytest.mark.parametrize("data", ["normal", "spread"])
@pytest.mark.parametrize("form", ["nvfp4", "mxfp4"])
def test_frequencies_are_those_of_quantized_numbers(form: str, data: str) -> None:
    """WEIGHTS: scales, codes, pairs, codes given the scale, where the largest stands and how often it does."""
    found = worst(weights(form, data), quantized(form, data), FORMATS[form])
    assert max(found.values()) < LIMIT, found


def wrong(table: BlockTable, fault: str) -> BlockTable:
    """Return a table with a fault."""
    pairs, scales = table.pairs, table.scales
    if fault == "of the next class":
        return dataclasses.replace(table, pairs=pairs.roll(tables.ENTRIES))
    if fault == "of the next scale":
        return dataclasses.replace(table, scales=scales.roll(1))
    if fault == "no negative zero":
        return dataclasses.replace(table, pairs=torch.where(pairs & 15 == 8, pairs & ~8, pairs))
    if fault == "both codes the same":
        return dataclasses.replace(table, pairs=(pairs & 15) << 8 | pairs & 15)
    assert fault == "a fifth of the codes one lower"
    lower = (pairs & 7 > 0) & (torch.arange(len(pairs)) % 5 == 0)
    return dataclasses.replace(table, pairs=pairs - lower.to(torch.int16))


@pytest.mark.parametrize(
    "fault",
    ["of the next class", "of the next scale", "no negative zero", "both codes the same", "a fifth of the codes one lower"],
)  # fmt: skip
def test_a_wrong_table_is_seen(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    """WEIGHTS: by the limit that the right one keeps."""
    table = wrong(block_table(FORMATS["nvfp4"], "cpu", grid=False), fault)
    monkeypatch.setattr(direct_weights, "block_table", lambda *_, **__: table)
    found = worst(weights("nvfp4"), quantized("nvfp4"), FORMATS["nvfp4"])
    assert max(found.values()) > 2 * LIMIT, found


def test_four_over_six_is_quantized_from_coarse_numbers() -> None:
    """WEIGHTS: multiples of 1/256, in an encode scale of a power of two: codes and scales within a percent."""
    drawn, wanted = weights("nvfp4_46"), quantized("nvfp4_46")
    for one, other in zip(drawn[:2], (wanted.codes, wanted.block_scale), strict=True):
        shares = [
            torch.bincount(each.flatten().long(), minlength=256) / each.numel() for each in (one, other)
        ]
        assert (shares[0] - shares[1]).abs().max() < 0.01
    assert drawn.codes.unique().tolist() == list(range(16))


@pytest.mark.parametrize("data", ["normal", "spread", "grid"])
@pytest.mark.parametrize("form", FORMS)
def test_the_known_deviation_is_that_of_the_numbers(form: str, data: str) -> None:
    """WEIGHTS: alphas are made of it, the same on every device."""
    drawn = weights(form, data)
    values = FORMATS[form].values(Coded(drawn.codes, drawn.block_scale))
    measured = float(values.double().square().mean().sqrt())
    assert drawn.deviation is not None
    assert abs(drawn.deviation / measured - 1) < (0.03 if data == "spread" else 0.003)


@pytest.mark.parametrize("form", FORMS)
def test_on_the_grid_codes_are_few_and_scales_two_powers(form: str) -> None:
    """WEIGHTS: one +-6 in a block, 0 to +-2 beside it: dot products stay exact up to k 7,168 (docs/bounds.md)."""
    drawn, own = weights(form, "grid"), FORMATS[form]
    magnitudes = drawn.codes.view(-1, own.block) & 7
    assert ((magnitudes == 7).sum(-1) == 1).all()
    assert magnitudes[magnitudes < 7].max() == 4
    assert own.scales(drawn.block_scale).unique().tolist() == [0.5, 1.0]
    shares = torch.bincount(drawn.codes.flatten().long(), minlength=16) / drawn.codes.numel()
    few = [*range(5), *range(8, 13)]
    assert (shares[few] - (1 - 1 / own.block) / 10).abs().max() < 0.002
    assert (shares[[7, 15]] - 1 / own.block / 2).abs().max() < 0.001


def test_block_scales_of_spread_lie_in_eleven_binades_and_are_normal_numbers() -> None:
    """WEIGHTS: as encoded ones do, and those of MXFP4 around 1."""
    bytes_ = weights("nvfp4", "spread").block_scale
    assert bytes_.min() >= 8
    assert 124 <= bytes_.max() <= 126
    assert len((bytes_ >> 3).unique()) >= 13
    powers = weights("mxfp4", "spread").block_scale
    assert (int(powers.min()), int(powers.max())) == (127 - 2 - 5, 127 + 5)


PINS = {
    "quantiles": "2751fa8aea04e088ce510e4b",
    "bfloat16": "b963a397194c112e27514bd4",
    "nvfp4": "c81e1da73631cf41e0e048e0",
    "mxfp4": "6d64b34101217b5f570fd7a5",
    "grid": "c99632f819e3671e9eca2e64",
}


def test_tables_are_what_they_always_were() -> None:
    """WEIGHTS: no library of functions makes others."""
    made = {
        "quantiles": [tables.quantiles()],
        "bfloat16": [tables.normal(torch.bfloat16, "cpu")],
        **{name: _tensors(block_table(FORMATS[name], "cpu", grid=False)) for name in ("nvfp4", "mxfp4")},
        "grid": _tensors(block_table(FORMATS["nvfp4"], "cpu", grid=True)),
    }
    found = {
        name: hashlib.sha256(b"".join(bytes(t.view(torch.uint8).numpy()) for t in parts)).hexdigest()[:24]
        for name, parts in made.items()
    }
    assert found == PINS


def _tensors(table: BlockTable) -> list[Tensor]:
    deviation = torch.tensor([round(table.deviation * 2**20)])
    return [table.classes, table.scales, table.largest, table.pairs, deviation]


def test_quantiles_are_those_of_the_normal_distribution() -> None:
    """WEIGHTS: symmetric, each once, of mean 0 and nearly of deviation 1."""
    values = tables.quantiles()
    assert len(values.unique()) == tables.ENTRIES
    assert torch.equal(values, -values.flip(0))
    assert abs(float(values.square().mean()) - 1) < 2e-4
    inside = torch.erf(values / math.sqrt(2)) / 2 + 0.5
    assert (inside - (torch.arange(tables.ENTRIES) + 0.5) / tables.ENTRIES).abs().max() < 2e-6
