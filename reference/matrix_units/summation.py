"""How a GEMM of NVFP4 operands adds, unit and order together: what a candidate declares, and what a probe finds.

As text, unit first, then what differs from one pass over k:

* `sm_100 mxf4nvf4`: one pass.
* `sm_90 f16; parts 4; tile 128`: split k, four parts of whole tiles of 128, added one after the other.
* `sm_90 f16; parts 8; pairwise`: the same, added as a tree.
* `sm_90 f8; promote 128`: added to float32 registers every 128 of k.
* `sm_90 f16; lanes 2`: two accumulators take 64 of k in turn, of FP8 128; `sm_90 f16; parts 4; last first`: from the end of k.
* `sm_90 f16; length 512; stream`: stream k. A part is stored in the output's type, after alpha, and the others are added to
  it in that type, in the order in which they arrive; where the parts begin may differ from tile to tile.
* `sm_90 f16; from 576; parts 2`: one pass below k 576, two parts from there on; `from 576; varies`: not known from there.
* `exact 64`: 64 products added exactly, then truncated; `exact`: all of them, rounded once; `fma`: float32 FMA in order.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

from torch import Tensor

from reference.matrix_units.order import ONE_PASS, KOrder, chosen, even_cuts, matmul
from reference.matrix_units.step import Operand
from reference.matrix_units.unit import EXACT, FMA, UNITS, MatrixUnit, exact_chunks

_NUMBERS = ("parts", "tile", "promote", "length", "lanes", "width")
_FLAGS = {"pairwise": "pairwise", "last first": "reverse", "stream": "stream"}
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
        reverse: parts are added from the last one on.
        lanes: accumulators of a part, which take `width` elements of k in turn.
        width: 0: that of the unit, 64, of FP8 128.
        stream: parts are added in the output's type, in the order in which they arrive. The sums of a tile that is not
            split are those of this summation; others no summation gives (harness.judging.stream).
        later: from which k on it is another one, ascending; None where that is not known.
    """

    name: str
    parts: int = 1
    length: int = 0
    tile: int = 64
    promote: int = 0
    partial: str = "float32"
    pairwise: bool = False
    reverse: bool = False
    lanes: int = 1
    width: int = 0
    stream: bool = False
    later: tuple[tuple[int, Summation | None], ...] = ()

    @staticmethod
    def of(text: str) -> Summation:
        """Return the summation of a declaration.

        Raises:
            ValueError: the text is none: what was expected.
        """
        name, *options = (part.strip() for part in text.split(";"))
        _unit(name)
        modes: list[tuple[int, list[str]]] = [(0, [])]
        for option in options:
            key, _, value = option.partition(" ")
            if key == "from" and _is_number(value) and int(value) > modes[-1][0]:
                modes.append((int(value), []))
            else:
                modes[-1][1].append(option)
        if modes[0][1] == ["varies"]:
            raise ValueError("a summation that varies from the smallest k on is declared as 'varies' alone")
        first, *later = (
            (k, None if k and given == ["varies"] else Summation(name, **_options(given)))  # type: ignore[arg-type]
            for k, given in modes
        )
        return replace(first[1], later=tuple(later)) if first[1] else Summation(name)

    def __str__(self) -> str:
        said = [self.name, *self._said()]
        for k, mode in self.later:
            said += [f"from {k}", *(mode._said() if mode else ["varies"])]  # noqa: SLF001 - another of this class
        return "; ".join(said)

    def _said(self) -> list[str]:
        """Return what differs from one pass, as text."""
        none = Summation(self.name)
        said = [
            f"{name} {getattr(self, name)}"
            for name in ("parts", "length", "promote", "lanes", "width", "partial")
            if getattr(self, name) != getattr(none, name)
        ]
        if self.parts > 1 and self.tile != Summation.tile:
            said.insert(1, f"tile {self.tile}")
        return said + [text for text, name in _FLAGS.items() if getattr(self, name)]

    def at(self, k: int) -> Summation | None:
        """Return the summation of a k, which is the same for all; None where it is not known."""
        if not self.later:
            return self
        modes = [(0, replace(self, later=())), *self.later]
        return [mode for start, mode in modes if start <= k][-1]

    @property
    def unit(self) -> MatrixUnit:
        """The unit of each instruction."""
        return _unit(self.name)

    @property
    def turn(self) -> int:
        """Elements of k that each of several accumulators takes in turn."""
        return self.width or self.unit.width

    @property
    def takes_scales(self) -> bool:
        """Whether the unit multiplies E2M1 elements with block scales; otherwise operands are decoded before."""
        return bool(self.unit.group)

    @property
    def streams(self) -> bool:
        """Whether parts are added in the output's type at some k."""
        return self.stream or any(mode is not None and mode.stream for _, mode in self.later)

    def order(self, k: int) -> KOrder:
        """Return the order along a k; of tiles that are not split, where the parts are streamed.

        Raises:
            ValueError: it is not known at this k.
        """
        mode = self.at(k)
        if mode is None:
            raise ValueError(f"the order along k is not known at k {k}")
        return _order(mode, k)

    def rounds_once(self, k: int) -> bool:
        """Return whether the sum over a k is the exact one, rounded once to float32: then no order of additions matters."""
        mode = self.at(k)
        return mode is not None and not mode.stream and mode.unit == EXACT and mode.order(k) == ONE_PASS

    def cuts(self, k: int) -> tuple[int, ...]:
        """Return where the parts begin."""
        return (
            tuple(range(self.length, k, self.length)) if self.length else even_cuts(k, self.parts, self.tile)
        )

    def operand(
        self,
        values: Tensor,
        block_scale: Tensor,
        number_format: str = "bfloat16",
        scale_format: str = "e4m3",
    ) -> Operand:
        """Return one side of the product.

        Args:
            values: `(rows, k)` code times block scale.
            block_scale: `(rows, k / block)` decoded block scales; `(rows, 0)` where there are none.
            number_format: type of the values for a unit that takes them decoded, a key of FORMATS.
            scale_format: type of the block scales, likewise.
        """
        if not self.takes_scales or not block_scale.shape[-1]:
            return Operand.of(values, number_format)
        scale, block = block_scale.to(values.dtype), values.shape[-1] // block_scale.shape[-1]
        elements = values / scale.repeat_interleave(block, -1)
        zero = (scale == 0).repeat_interleave(block, -1)
        return Operand.of(elements.masked_fill(zero, 0), "e2m1", scale, scale_format)

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
        return chosen(self.unit, a, b, where, self.order(a.k))


@lru_cache(maxsize=1 << 14)
def _order(mode: Summation, k: int) -> KOrder:
    cuts = () if mode.stream else mode.cuts(k)
    order = KOrder(cuts, mode.promote, mode.partial, mode.pairwise, mode.reverse)
    return replace(order, lanes=mode.lanes, width=mode.turn) if mode.lanes > 1 else order


def _is_number(value: str) -> bool:
    return value.isascii() and value.isdigit() and 0 < int(value) <= 1 << 16


def _options(options: list[str]) -> dict[str, int | str | bool]:
    """Return the options of one mode as arguments of a Summation."""
    given: dict[str, int | str | bool] = {}
    for option in options:
        key, _, value = option.partition(" ")
        if key in _NUMBERS and _is_number(value):
            given[key] = int(value)
        elif key == "partial" and value in _PARTIALS:
            given[key] = value
        elif option in _FLAGS:
            given[_FLAGS[option]] = True
        else:
            wanted = (
                f"{', '.join(f'{name} N' for name in _NUMBERS)}, {', '.join(_FLAGS)}, "
                f"partial {'|'.join(_PARTIALS)}, and from N before those that hold from that k on"
            )
            raise ValueError(f"options of a summation are {wanted}, got {option!r}")
    return given


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
