"""How a GEMM of NVFP4 operands adds, unit and order together: what a candidate declares, and what a probe finds.

As text, unit first, then what differs from one pass over k:

* `sm_100 mxf4nvf4`: one pass.
* `sm_90 f16; parts 4; tile 128`: split k, four parts of whole tiles of 128, added one after the other.
* `sm_90 f16; parts 8; pairwise`: the same, added as a tree.
* `sm_90 f8; promote 128`: added to float32 registers every 128 of k.
* `exact 64`: 64 products added exactly, then truncated; `exact`: all of them, rounded once; `fma`: float32 FMA in order.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from reference.matrix_units.order import KOrder, dot, even_cuts, matmul
from reference.matrix_units.step import Operand
from reference.matrix_units.unit import EXACT, FMA, UNITS, MatrixUnit, exact_chunks

_BLOCK = 16
_PAIRS = 1 << 21  # products of pairs of rows that are held at a time
_SPARSE = 1 / 16  # share of a product's elements up to which they are added one by one
_NUMBERS = ("parts", "tile", "promote", "length")
_PARTIALS = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Summation:
    """A unit and an order along k that hold for every k.

    Attributes:
        name: of the unit: a key of UNITS, "exact", "exact N" or "fma".
        parts: parts that k is split into, of whole tiles whose number differs by one at most.
        length: instead: elements of k of each part.
        tile: elements of k of a tile.
        promote: elements of k after which the accumulator is added to a float32 register; 0: never.
        partial: type that the sum of a part is rounded to.
        pairwise: parts are added as a tree.
    """

    name: str
    parts: int = 1
    length: int = 0
    tile: int = 64
    promote: int = 0
    partial: str = "float32"
    pairwise: bool = False

    @staticmethod
    def of(text: str) -> Summation:
        """Return the summation of a declaration.

        Raises:
            ValueError: the text is none: what was expected.
        """
        name, *options = (part.strip() for part in text.split(";"))
        _unit(name)
        given: dict[str, int | str | bool] = {}
        for option in options:
            key, _, value = option.partition(" ")
            if key in _NUMBERS and value.isascii() and value.isdigit() and 0 < int(value) <= 1 << 16:
                given[key] = int(value)
            elif key == "partial" and value in _PARTIALS:
                given[key] = value
            elif option == "pairwise":
                given[key] = True
            else:
                wanted = (
                    f"{', '.join(f'{name} N' for name in _NUMBERS)}, pairwise, partial {'|'.join(_PARTIALS)}"
                )
                raise ValueError(f"options of a summation are {wanted}, got {option!r}")
        return Summation(name, **given)  # type: ignore[arg-type]

    def __str__(self) -> str:
        said = [self.name]
        said += [
            f"{name} {getattr(self, name)}"
            for name, none in (("parts", 1), ("length", 0), ("promote", 0), ("partial", "float32"))
            if getattr(self, name) != none
        ]
        if self.parts > 1 and self.tile != Summation.tile:
            said.append(f"tile {self.tile}")
        return "; ".join([*said, "pairwise"] if self.pairwise else said)

    @property
    def unit(self) -> MatrixUnit:
        """The unit of each instruction."""
        return _unit(self.name)

    @property
    def takes_scales(self) -> bool:
        """Whether the unit multiplies E2M1 elements with block scales; otherwise operands are decoded before."""
        return bool(self.unit.group)

    def order(self, k: int) -> KOrder:
        """Return the order along a k."""
        cuts = (
            tuple(range(self.length, k, self.length)) if self.length else even_cuts(k, self.parts, self.tile)
        )
        return KOrder(cuts, self.promote, self.partial, self.pairwise)

    def operand(self, values: Tensor, block_scale: Tensor) -> Operand:
        """Return one side of the product.

        Args:
            values: `(rows, k)` code times block scale.
            block_scale: `(rows, k / 16)` decoded block scales.
        """
        if not self.takes_scales:
            return Operand.of(values, "bfloat16")
        scale = block_scale.to(values.dtype)
        elements = values / scale.repeat_interleave(_BLOCK, -1)
        return Operand.of(elements.masked_fill((scale == 0).repeat_interleave(_BLOCK, -1), 0), "e2m1", scale)

    def matmul(self, a: Operand, b: Operand) -> Tensor:
        """Return a @ b.T, `(m, n)` float32."""
        return matmul(self.unit, a, b, self.order(a.k))

    def chosen(self, a: Operand, b: Operand, where: Tensor) -> Tensor:
        """Return some elements of a @ b.T.

        Args:
            a: `(m, k)`.
            b: `(n, k)`.
            where: `(m, n)` bool.

        Returns:
            float32, those where it is set, in the order of `where.nonzero()`.
        """
        # On a GPU a kernel adds all of them sooner than torch adds a few.
        if where.is_cuda or self.unit.fraction is None or float(where.float().mean()) > _SPARSE:
            rows = where.any(1)
            return self.matmul(a.at(rows), b)[where[rows]]
        row, column = where.nonzero().unbind(1)
        step = max(1, _PAIRS // a.k)
        parts = [
            dot(self.unit, a.at(row[at : at + step]), b.at(column[at : at + step]), self.order(a.k))
            for at in range(0, len(row), step)
        ]
        return torch.cat(parts) if parts else torch.zeros(0, device=where.device)


def _unit(name: str) -> MatrixUnit:
    """Return the unit of a name."""
    kind, _, chunk = name.partition(" ")
    if kind == "exact" and chunk.isascii() and chunk.isdigit() and 0 < int(chunk) <= 512:
        return exact_chunks(int(chunk))
    known = UNITS | {"exact": EXACT, "fma": FMA}
    if name not in known:
        wanted = ", ".join(map(repr, known))
        raise ValueError(
            f"a summation begins with a unit: {wanted} or 'exact N' with N up to 512, got {name!r}"
        )
    return known[name]
