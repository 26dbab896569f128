"""Mistakes planted into a kernel's PTX or into its arguments, each one that a kernel's author could make.

A mutation of PTX finds its place by what the instruction is, not by line, so that the catalog fits every tile shape; one
that finds no place does not apply to that kernel. Mutations over all places of a kind ("every wait") are numbered.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harness.races.problem import RaceProblem

_WAIT = re.compile(r"mbarrier\.try_wait\.parity[\w.:]*\s+(?P<p>%?\w+),\s*(?P<at>\[[^\]]+\]),[^;]*;")
_FEW = 4  # unrolled loops repeat an instruction up to fifty times: the first ones and the last will do
_COMMIT = re.compile(r"tcgen05\.commit[^;]*;")


@dataclass(frozen=True)
class Mutation:
    """One planted mistake.

    Attributes:
        name: its name in tables.
        says: what is wrong, in a sentence.
        ptx: PTX to changed PTX, None for mutations of arguments.
        arguments: changes the arguments of the call, None for mutations of PTX.
        benign: why it need not be seen, "" where it must be.
    """

    name: str
    says: str
    ptx: Callable[[str], str] | None = None
    arguments: Callable[[RaceProblem], None] | None = None
    benign: str = ""


def mutations_of(ptx: str) -> list[Mutation]:
    """Return every mutation that applies to a kernel, then those of the arguments."""
    found = [*_waits(ptx), *_numbered(ptx), *_single(ptx)]
    return [*found, *ARGUMENT_MUTATIONS]


def _waits(ptx: str) -> Iterator[Mutation]:
    """Every wait on an mbarrier returns at once. Waits behind the producer's loop only keep the CTA alive.

    A wait is often written twice: a first look, and a second one where that failed. The first look's answer skips the second,
    so the second is not planted by itself.
    """
    places = list(_WAIT.finditer(ptx))
    for number, place in enumerate(places):
        looks = [other["at"] for other in places[max(number - 2, 0) : number] if "acquire" in other[0]]
        if place["at"] in looks and "acquire" not in place[0]:
            continue
        loop = _in_loop(ptx, place.start())
        yield Mutation(
            f"wait-{number}",
            f"wait {number} of {len(places)} on an mbarrier ({place['at']}) returns at once",
            _replacing(place.start(), place.end(), f"mov.pred {place['p']}, -1;"),
            benign=""
            if loop
            else "outside the main loops: it only keeps the CTA alive until its partners are done",
        )


def _numbered(ptx: str) -> Iterator[Mutation]:
    kinds = (
        ("commit", _COMMIT, "", "a tcgen05.commit is missing: nobody learns that the tensor core is done"),
        ("scale-copy", re.compile(r"tcgen05\.cp[^;]*;"), "", "a copy of block scales to tensor memory is missing"),
        ("fence", re.compile(r"fence\.proxy\.async[^;]*;"), "", "the fence before a TMA store is missing"),
        ("store-wait", re.compile(r"cp\.async\.bulk\.wait_group\.read\s+[1-9]\d*;"), "",
         "the epilogue reuses its buffer without waiting for the TMA store to read it"),
        ("arrive", re.compile(r"mbarrier\.arrive\.shared(?:::cluster)?\.b64[^;]*;"), "",
         "the epilogue does not give the accumulator back"),
        ("free", re.compile(r"tcgen05\.dealloc[^;]*;"), "", "tensor memory is not freed"),
    )  # fmt: skip
    for name, pattern, text, says in kinds:
        places = list(enumerate(pattern.finditer(ptx)))
        for number, place in places if len(places) <= _FEW else [*places[: _FEW - 1], places[-1]]:
            yield Mutation(f"no-{name}-{number}", says, _replacing(place.start(), place.end(), text))
    barriers = list(re.finditer(r"bar\.sync\s+1, 128;", ptx))
    for number, place in enumerate(barriers[:2]):
        yield Mutation(
            f"no-barrier-{number}",
            "a barrier among the epilogue's warps is missing",
            _replacing(place.start(), place.end(), ""),
        )


def _single(ptx: str) -> Iterator[Mutation]:
    rules: tuple[tuple[str, str, str, str | Callable[[re.Match[str]], str]], ...] = (
        ("commit-early", "the accumulator is announced before the tensor core is done",
         r"tcgen05\.commit[\w.:]*shared::cluster\.b64\s+(\[[^\]]+\]);(?![\s\S]*tcgen05\.commit)",
         lambda m: f"mbarrier.arrive.shared.b64 _, {m[1]};"),
        ("expect-less", "the producer announces 16 bytes less than TMA brings",
         r"(mov\.b32\s+(%r\d+), )(\d+)(;\s+mbarrier\.arrive\.expect_tx)", lambda m: f"{m[1]}{int(m[3]) - 16}{m[4]}"),
        ("expect-more", "the producer announces 16 bytes more than TMA brings",
         r"(mov\.b32\s+(%r\d+), )(\d+)(;\s+mbarrier\.arrive\.expect_tx)", lambda m: f"{m[1]}{int(m[3]) + 16}{m[4]}"),
        ("init-count", "the accumulator's barrier expects one arrival less than there are threads",
         r"(mov\.b32\s+%r\d+, )128(;\s+mbarrier\.init)", lambda m: f"{m[1]}127{m[2]}"),
        ("accumulate-first", "the first MMA of a tile adds to what tensor memory held",
         r"(mov\.pred\s+%p\d+, )0(;\s+tcgen05\.mma)", lambda m: f"{m[1]}-1{m[2]}"),
        ("accumulate-never", "one MMA replaces the accumulator instead of adding",
         r"(mov\.pred\s+%p\d+, )-1(;\s+tcgen05\.mma)", lambda m: f"{m[1]}0{m[2]}"),
        ("scales-swapped", "scales of A and B change places",
         r"(tcgen05\.mma[^;]*)(\[%r\d+\]), (\[%r\d+\]), (%p\d+;)", lambda m: f"{m[1]}{m[3]}, {m[2]}, {m[4]}"),
        ("swizzle-store", "one bit of the epilogue's swizzle is lost", r"(and\.b32\s+%r\d+, %r\d+, )(?:48|112)(;\s+xor)",
         lambda m: f"{m[1]}16{m[2]}"),
        ("group-stride", "rows of an operand are read 64 bytes too close, 8 at a time",
         r"4611756662049538048", lambda _: str(4611756662049538048 - (4 << 32))),
        ("accumulator-stage", "the second accumulator overlaps the first", r"(shl\.b32\s+%r\d+, %r\d+, )7(;\s+add\.s32\s+%r\d+, %r\d+, %r\d+;[\s\S]{0,80}?shl\.b32\s+%r\d+, %r\d+, 3;)",
         lambda m: f"{m[1]}5{m[2]}"),
        ("allocation", "half of the tensor memory is allocated", r"(mov\.b32\s+%r\d+, )512(;\s+tcgen05\.alloc)",
         lambda m: f"{m[1]}256{m[2]}"),
        ("column-step", "the epilogue reads the same 32 columns again",
         r"(add\.s32\s+(%r\d+), \2, )32(;\s+add\.s32)", lambda m: f"{m[1]}0{m[3]}"),
        ("load-expert", "TMA loads an operand of expert 0 for every expert",
         r"(cp\.async\.bulk\.tensor\.3d\.shared[^;]*\{%r\d+, %r\d+, )%r\d+(\})", lambda m: f"{m[1]}0{m[2]}"),
        ("store-expert", "every expert's output goes to expert 0",
         r"(cp\.async\.bulk\.tensor\.3d\.global[^;]*\{%r\d+, %r\d+, )%r\d+(\})", lambda m: f"{m[1]}0{m[2]}"),
        ("load-row", "TMA loads the operand's first row tile again and again",
         r"(cp\.async\.bulk\.tensor\.3d\.shared[^;]*\{%r\d+, )%r\d+(, %r\d+\})", lambda m: f"{m[1]}0{m[2]}"),
        ("multicast", "a multicast load leaves out the other CTA", r"(multicast::cluster[\w.:]*\s[^;]*\], )(%rs\d+)(, %rd\d+;)",
         lambda m: f"{m[1]}1{m[3]}"),
    )  # fmt: skip
    for name, says, pattern, new in rules:
        if place := re.search(pattern, ptx):
            text = new(place) if callable(new) else place.expand(new)
            yield Mutation(name, says, _replacing(place.start(), place.end(), text))
    yield from _alpha(ptx)
    yield from _short_loop(ptx)


def _alpha(ptx: str) -> Iterator[Mutation]:
    """The epilogue multiplies by the first expert's alpha: the address loses its offset."""
    for splat in re.finditer(r"mov\.b64\s+%rd\d+, \{(%r\d+), \1\};", ptx):
        load = re.search(rf"ld\.global\.b32\s+{splat[1]}, \[(%rd\d+)\];", ptx)
        add = load and re.search(rf"add\.s64\s+{load[1]}, (%rd\d+), (%rd\d+);", ptx)
        if load and add:
            # of the two addends the pointer is the one that a parameter was loaded into
            base = add[1] if re.search(rf"ld\.param\.b64\s+{add[1]},", ptx) else add[2]
            yield Mutation(
                "alpha-index",
                "every expert gets the alpha of expert 0",
                _replacing(add.start(), add.end(), f"mov.b64 {load[1]}, {base};"),
            )
            return


def _short_loop(ptx: str) -> Iterator[Mutation]:
    """The producer's loop over k tiles ends one tile early (the loop around the MMAs is unrolled)."""
    last = ptx.rfind("cp.async.bulk.tensor.3d.shared")
    loop = re.compile(
        r"add\.s32\s+(%r\d+), \1, 1;[\s\S]{0,400}?setp\.(?:ne|eq|lt)\.[bs]32\s+%p\d+, \1, (\d+);\s+@%p\d+ bra"
    )
    if place := loop.search(ptx, max(last - 6000, 0)):
        start, end = place.span(2)
        yield Mutation(
            "k-short", "the loop over k stops one tile early", _replacing(start, end, str(int(place[2]) - 1))
        )


def _in_loop(ptx: str, at: int) -> bool:
    """Return whether a place lies inside a loop: between a label and a later branch back to it."""
    for label in re.finditer(r"^(\$L__BB\w+):", ptx[:at], re.MULTILINE):
        back = re.compile(rf"bra(?:\.uni)?\s+{re.escape(label[1])};")
        if any(True for _ in back.finditer(ptx, at)):
            return True
    return False


def _replacing(start: int, end: int, text: str) -> Callable[[str], str]:
    return lambda ptx: ptx[:start] + text + ptx[end:]


def _roll_alpha(problem: RaceProblem) -> None:
    problem.alpha = problem.alpha.roll(1)


def _masked_m_short(problem: RaceProblem) -> None:
    problem.masked_m = (problem.masked_m - 1).clamp(min=0)


def _scales_linear(problem: RaceProblem) -> None:
    from harness.candidates.layouts import as_mma

    problem.a_scale = as_mma(
        problem.a_block_scale
    )  # rows and columns are multiples of the tile: no padding to add


def _scales_of_another_expert(problem: RaceProblem) -> None:
    from harness.candidates import layouts

    problem.b_scale = layouts.scales(problem.b_block_scale.roll(1, dims=0))


def _nibbles(problem: RaceProblem) -> None:
    physical_order = problem.a.permute(2, 0, 1)
    problem.a = (physical_order >> 4 | physical_order << 4).permute(1, 2, 0)


def _experts_innermost(problem: RaceProblem) -> None:
    problem.a = problem.a.contiguous()


ARGUMENT_MUTATIONS = (
    Mutation("argument-alpha", "alphas are one expert off", arguments=_roll_alpha),
    Mutation("argument-masked-m", "masked_m is one short, at the edge of a tile", arguments=_masked_m_short),
    Mutation("argument-scale-layout", "A's scales are linear instead of 128x4", arguments=_scales_linear),
    Mutation("argument-scale-expert", "B's scales are one expert off", arguments=_scales_of_another_expert),
    Mutation("argument-nibbles", "the two codes of A's bytes have changed places", arguments=_nibbles),
    Mutation("argument-strides", "A lies with the expert axis innermost", arguments=_experts_innermost),
)
