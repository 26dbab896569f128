"""Problems that reach far in one extent at little work, and how far a run has reached. Imports neither torch nor hypothesis.

A kernel that is right on small problems may be wrong from the 25th expert, the 897th column or the 133rd tile on, behind
two empty experts, or past an offset of 2^31. Every rule that knows the right values judges each of these problems, the
others one of them; drawn problems stay small.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

from harness.candidates.protocol import Traits
from harness.problems.pool import in_pool
from harness.problems.problem import Problem

TILE = 128
"""Rows and columns of a tile as the path's GEMM counts them."""


@dataclass(frozen=True)
class Far:
    """One extent, the others being small.

    Attributes:
        name: of the extent.
        most: how far the problem reaches.
        shape: experts, capacity, hidden, inter and masked_m for a size and the candidate's smallest width.
        data: a key of harness.problems.problem.DATA.
        device_bytes: free memory of a GPU that the problem needs, 0 for one that is judged on every device.
        ranks: of which each has as many experts as the candidate declares that it needs.
        extras: options of the problem.
    """

    name: str
    most: int
    shape: Callable[[int, int], tuple[int, int, int, int, tuple[int, ...]]]
    data: str = "normal"
    device_bytes: int = 0
    ranks: int = 1
    extras: frozenset[str] = frozenset()

    def problem(self, size: int, traits: Traits, seed: int) -> Problem:
        """Return the problem of that size, rounded up to what the candidate declares that it takes."""
        step, rows = traits.width_multiple, traits.m_multiple
        experts, capacity, hidden, inter, masked_m = self.shape(size, step)
        masked_m += (0,) * (self.ranks * traits.min_experts - experts)
        masked_m = masked_m[: traits.at_most_experts(len(masked_m))]
        capacity, hidden, inter = _up(capacity, rows), _up(hidden, step), _up(inter, step)
        problem = Problem(len(masked_m), capacity, hidden, inter, masked_m, self.data, seed, self.extras)
        return in_pool(problem, traits)


def _up(extent: int, multiple: int) -> int:
    return -(-extent // multiple) * multiple


def _neighbours(size: int) -> tuple[int, ...]:
    """Return the rows of experts in every pattern of four, empty or not: none to three empty ones between others.

    A de Bruijn sequence, and its beginning again.
    """
    pattern = "0000100110101111" + "0001" + "00"
    rows = (3, 130, 1, 2)  # more than a tile of 128 among them
    taken = [rows[pattern[:place].count("1") % len(rows)] for place in range(size)]
    return tuple(count if one == "1" else 0 for count, one in zip(taken, pattern, strict=False))


FAR = (
    # Each expert has a row: the wrong one may be any of them. As many experts are as many tiles.
    Far("experts", 256, lambda size, w: (size, 8, w, w, (1,) * (size - size // 2) + (2,) * (size // 2))),
    Far("capacity", 8192, lambda size, w: (3, size, w, w, (min(size, 3), 0, min(size, 2)))),
    Far("rows", 2048, lambda size, w: (2, size, w, w, (size, min(size, 5)))),
    Far("tokens", 2560, lambda size, w: (16, -(-size // 16), w, w, (-(-size // 16),) * 16)),
    # On the grid the sum over k is exact, so that a lost block of 16 products shows whatever the order.
    Far("hidden", 7168, lambda size, w: (2, 4, size, w, (4, 2)), "grid"),
    Far("inter", 7168, lambda size, w: (2, 4, w, size, (4, 2)), "grid"),
    # Every number of rows up to a tile and a half: some kernels go wrong at one of them, or at its multiples.
    Far("counts", 160, lambda size, w: (size, size, w, w, tuple(range(1, size + 1)))),
    Far("neighbours", 22, lambda size, w: (size, 130, w, w, _neighbours(size))),
)


def _around(name: str, most: int, ranks: int, shape: Callable[[int, int], tuple[int, int, int, int]]) -> Far:
    """Return a problem of the stages around the layer: experts of all ranks, tokens of a rank, hidden and inter."""

    def with_rows(size: int, w: int) -> tuple[int, int, int, int, tuple[int, ...]]:
        extents = shape(size, w)
        return (*extents, (1,) * extents[0])

    return Far(name, most, with_rows, ranks=ranks, extras=frozenset({"whole_layer"}))


AROUND = (
    _around(
        "experts", 256, 8, lambda size, w: (size, 16, w, w)
    ),  # several rows each, whatever a transport leaves out
    _around(
        "tokens", 2560, 4, lambda size, w: (4, size, w, w)
    ),  # a capacity of 10,240, rows of an expert 2,048 or more
    _around("hidden", 7168, 2, lambda size, w: (4, 4, size, w)),
    _around("inter", 7168, 2, lambda size, w: (4, 4, w, size)),
)
"""For the rules about the stages around the layer: each judges those whose extent it knows (harness.rules.Rule.extents)."""

SHARED = tuple(far for far in FAR if far.name != "counts")
"""For the rules that judge one of them: which one follows from the rule's name."""

WIDE, DEEP = 8192, 16384
"""Columns and capacity of a tensor whose 17th expert begins at element 2^31, an offset that 32 bits do not hold."""
_COPIES = 16  # of that tensor, which a candidate and a judge may hold at a time: decoded, in float32, an input's copy


def _offset(hidden: bool) -> Far:
    """Return the problem of 17 experts with rows in the first and the last: the tokens are that wide, or the product."""

    def shape(size: int, w: int) -> tuple[int, int, int, int, tuple[int, ...]]:
        rows = (2,) + (0,) * (size - 2) + (3,) * (size > 1)
        return (size, DEEP, *((WIDE, w) if hidden else (w, WIDE // 2)), rows)

    return Far("offset", 17, shape, device_bytes=_COPIES * 17 * DEEP * WIDE * 2)


OFFSETS = {"QUANT": _offset(hidden=True), "ACT": _offset(hidden=False), "GEMM": _offset(hidden=False)}
"""By the rule that judges it, where the candidate's tensors live on a GPU with that much free memory."""


def far_for(
    rule: str, traits: Traits, *, all_of_them: bool, device_bytes: int = 0, around: Collection[str] = ()
) -> list[Far]:
    """Return what a rule reaches for: all, or the one that its name picks, so that the rules share them out.

    Args:
        rule: its id.
        traits: what the candidate declares.
        all_of_them: the rule judges each.
        device_bytes: free memory of the candidate's GPU, 0 where it has none.
        around: extents that a rule about the stages around the layer knows.
    """
    if not traits.far:
        return []
    if around:
        return [far for far in AROUND if far.name in around]
    if not all_of_them:
        return [SHARED[zlib.crc32(rule.encode()) % len(SHARED)]]
    every = [far for far in FAR if far.name != "counts" or rule != "PIPELINE"]  # its stages judge that one
    offset = OFFSETS.get(rule)
    fits = offset is not None and traits.device == "cuda" and device_bytes >= offset.device_bytes
    return [*every, offset] if offset is not None and fits else every


def extents_of(problem: Problem) -> dict[str, int]:
    """Return the extents of a problem, in elements, rows and tiles of 128 x 128 of its first GEMM."""
    columns = -(-2 * problem.inter // TILE)
    return {
        "experts": problem.experts,
        "capacity": problem.capacity,
        "rows": max(problem.masked_m),
        "tokens": problem.tokens,
        "hidden": problem.hidden,
        "inter": problem.inter,
        "tiles": sum(-(-rows // TILE) for rows in problem.masked_m) * columns,
    }


def larger(one: Mapping[str, int], other: Mapping[str, int]) -> dict[str, int]:
    """Return the larger of two runs' extents, each by itself."""
    return {name: max(one.get(name, 0), other.get(name, 0)) for name in {**one, **other}}


def reached_by_all(extents: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Return how far each of several rules has reached at least, in each extent those that know it."""
    least: dict[str, int] = {}
    for each in extents:
        least |= {name: min(size, least.get(name, size)) for name, size in each.items()}
    return least


def in_words(extents: Mapping[str, int]) -> str:
    """Return the sentence that limits a verdict: "up to experts 256, ...; beyond that not tested", or ""."""
    if not extents:
        return ""
    sizes = dict(extents)
    if {"hidden", "inter"} <= sizes.keys():
        # Of every stage: the first GEMM sums over hidden, the second over inter, and each sets the other's columns.
        hidden, inter = sizes.pop("hidden"), sizes.pop("inter")
        sizes |= {"k": min(hidden, inter), "n": min(hidden, 2 * inter)}
    order = ("experts", "capacity", "rows", "tokens", "hidden", "k", "n", "tiles")
    said = [f"{name} {sizes[name]:,}" for name in order if name in sizes]
    return f"up to {', '.join(said)}; beyond that not tested"
