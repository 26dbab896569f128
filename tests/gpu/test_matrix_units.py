"""The Triton kernels of reference/matrix_units equal its torch form bit for bit.

Needs triton and a CUDA device; without one, TRITON_INTERPRET=1 runs them on a CPU, in minutes (triton 3.6 needs
numpy below 2.4 for that).
"""

from __future__ import annotations

import importlib.util
import os

import pytest
import torch
from torch import Tensor

from reference.matrix_units import FMA, UNITS, KOrder, MatrixUnit, Operand, even_cuts, fused, matmul

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
pytestmark = [
    pytest.mark.skipif(not (torch.cuda.is_available() or INTERPRETED), reason="needs a CUDA device"),
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton"),
    pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning"),  # NumPy's, of NaN, when interpreted
    pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning"),  # Triton's interpreter
]
DEVICE = "cpu" if INTERPRETED else "cuda"
ROWS, COLUMNS = (5, 9) if INTERPRETED else (70, 530)
K = 416  # six and a half instructions of the FP4 units
INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32}
TYPES = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "e4m3": torch.float8_e4m3fn,
    "e5m2": torch.float8_e5m2,
    "float32": torch.float32,
}
KINDS = (
    "normal", "far apart", "mostly zero", "any bits", "any finite bits", "huge", "tiny", "cancelling",
    "cancelling halves", "one infinity",
)  # fmt: skip
ORDERS = {
    "one pass": KOrder(),
    "three parts": KOrder(even_cuts(K, 3)),
    "five parts, pairwise, in bfloat16": KOrder(even_cuts(K, 5), pairwise=True, partial="bfloat16"),
    "parts in float16": KOrder((64, 192), partial="float16"),
    "promoted every 128": KOrder(promote=128),
    "promoted to the last": KOrder(promote=K // 2),
    "parts that are promoted": KOrder((64, 128, 320), promote=64),
    "promoted between instructions": KOrder(promote=96),
}
PRODUCTS = [
    ("sm_80 f16", "bfloat16"), ("sm_89 f8", "e4m3"), ("sm_90 f16", "bfloat16"), ("sm_90 f16", "float16"),
    ("sm_90 f8", "e4m3"), ("sm_90 f8", "e5m2"), ("sm_100 f8f6f4", "e4m3"), ("sm_90 f16", "float32"),
]  # fmt: skip
SCALED = [
    ("sm_100 mxf4nvf4", "e2m1", "e4m3", 16),
    ("sm_100 mxf4nvf4", "e2m1", "ue8m0", 32),
    ("sm_100 mxf8f6f4", "e4m3", "ue8m0", 32),
    ("sm_100 mxf8f6f4", "e5m2", "ue8m0", 32),
]
E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])


def drawn(kind: str, number_format: str, rows: int, k: int, draw: torch.Generator) -> Tensor:
    """Return float64 values of a format."""
    shape = (rows, k)
    x = torch.randn(shape, generator=draw, dtype=torch.float64)
    if kind == "far apart":
        x *= torch.exp2(torch.randint(-14, 15, shape, generator=draw))
    if kind == "mostly zero":
        x *= torch.rand(shape, generator=draw) < 0.1
    if number_format == "e2m1":
        code = (x.abs().nan_to_num().unsqueeze(-1) - E2M1).abs().argmin(-1)
        return E2M1[code].double() * x.sign()
    dtype = TYPES[number_format]
    if kind.startswith("any"):
        bits = torch.randint(0, 1 << 8 * dtype.itemsize, shape, generator=draw)
        x = bits.to(INTEGERS[dtype.itemsize]).view(dtype).double()
        return x if kind == "any bits" else x.where(x.isfinite(), 0.0)
    least, most = torch.finfo(dtype).tiny, torch.finfo(dtype).max
    if kind == "huge":
        x *= most**0.5 if dtype.itemsize == 1 else 2.0 ** (62 if most > 1e30 else 8)
    if kind == "tiny":
        x *= least if dtype.itemsize == 1 else 2.0 ** (-70 if most > 1e30 else -16)
    x = x.clamp(-most, most).to(dtype).double()
    if kind == "one infinity":
        x[0, k // 2], x[1, 3], x[1, k // 3] = torch.inf, torch.inf, -torch.inf
        x[2, k - 1], x[3, 0], x[4, k // 2] = torch.nan, -torch.inf, 0.0
        x = x if number_format != "e4m3" else torch.where(x.isinf(), torch.nan, x)
    return x


def operands(kind: str, number_format: str, k: int, scale: tuple[str, int] | None = None) -> list[Operand]:
    draw = torch.Generator().manual_seed(len(kind))
    a, b = (drawn(kind, number_format, rows, k, draw) for rows in (ROWS, COLUMNS))
    if kind == "cancelling":  # every second product of an instruction or a group takes the one before it back
        a[:, 1::2], b[:, 1::2] = -a[:, ::2], b[:, ::2]
        a[:, ::7] *= torch.arange(len(a))[:, None] % 2  # in half of the rows not all of them
    if kind == "cancelling halves":
        for x, sign in ((a, -1), (b, 1)):
            x[:, k // 2 :] = sign * x[:, : k // 2]
    given = []
    for x in (a, b):
        scales = None
        if scale:
            near = {
                "e4m3": {
                    "tiny": (0, 20),
                    "mostly zero": (1, 127),
                },  # most groups are zero, whatever their scales
                "ue8m0": {"tiny": (54, 70), "mostly zero": (90, 165)},
            }[scale[0]]
            near |= {"any bits": (0, 256), "far apart": (0, 256), "cancelling halves": (60, 61)}
            low, high = near.get(kind, (50, 62) if scale[0] == "e4m3" else (120, 132))
            codes = torch.randint(low, high, (len(x), k // scale[1]), generator=draw).to(torch.uint8)
            dtype = torch.float8_e4m3fn if scale[0] == "e4m3" else torch.float8_e8m0fnu
            scales = codes.view(dtype).float().to(DEVICE)
        given.append(Operand.of(x.to(DEVICE), number_format, scales, scale[0] if scale else "e4m3"))
    return given


def same_bits(unit: MatrixUnit, a: Operand, b: Operand, order: KOrder) -> Tensor:
    """Return the product, which was asserted to be the torch form's, bit for bit."""
    assert fused.has_kernel(unit, a, b, [start for start, _ in order.parts(a.k)])
    got, wanted = matmul(unit, a, b, order), matmul(unit, a, b, order, in_torch=True)
    differ = got.view(torch.int32) != wanted.view(torch.int32)
    assert not differ.any(), (int(differ.sum()), got[differ][:4], wanted[differ][:4])
    return got


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("name", "number_format"), PRODUCTS)
def test_products_of_every_kind_of_operands(name: str, number_format: str, kind: str) -> None:
    # The last instruction is not full. Of any bits a long sum is NaN.
    k = 2 * UNITS[name].k - 4 if kind == "any bits" else K - 8
    got = same_bits(UNITS[name], *operands(kind, number_format, k), KOrder())
    if kind == "one infinity":
        assert got.isnan().any()


@pytest.mark.parametrize("kind", KINDS[:-1])
@pytest.mark.parametrize(("name", "number_format", "scale_format", "block"), SCALED)
def test_scaled_products_of_every_kind_of_operands(
    name: str, number_format: str, scale_format: str, block: int, kind: str
) -> None:
    k = 2 * UNITS[name].k if kind == "any bits" else K
    got = same_bits(UNITS[name], *operands(kind, number_format, k, (scale_format, block)), KOrder())
    if kind in ("normal", "any bits"):
        assert got[got.isfinite()].unique().numel() > ROWS


@pytest.mark.parametrize("words", ORDERS)
@pytest.mark.parametrize("kind", ["normal", "any bits"])
def test_every_order(kind: str, words: str) -> None:
    for name, number_format in (("sm_90 f16", "bfloat16"), ("sm_90 f8", "e4m3")):
        same_bits(UNITS[name], *operands(kind, number_format, K), ORDERS[words])
    same_bits(UNITS["sm_100 mxf4nvf4"], *operands(kind, "e2m1", K, ("e4m3", 16)), ORDERS[words])


def test_a_part_may_begin_anywhere_where_there_are_no_scales() -> None:
    same_bits(UNITS["sm_90 f16"], *operands("normal", "bfloat16", 100), KOrder((3, 20, 37, 99)))


def test_one_row_and_one_column_and_k_of_7168() -> None:
    k = 448 if INTERPRETED else 7168
    for scale, name, number_format in (
        (None, "sm_90 f16", "bfloat16"),
        (("e4m3", 16), "sm_100 mxf4nvf4", "e2m1"),
    ):
        a, b = operands("normal", number_format, k, scale)
        same_bits(UNITS[name], a.at(slice(0, 1)), b, KOrder())
        same_bits(UNITS[name], a, b.at(slice(0, 1)), KOrder())


def test_what_has_no_kernel_is_the_torch_form() -> None:
    a, b = operands("normal", "bfloat16", 64)
    assert not fused.has_kernel(FMA, a, b, [0])
    assert torch.equal(matmul(FMA, a, b), matmul(FMA, a, b, in_torch=True))
