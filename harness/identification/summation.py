"""How a candidate's GEMM adds along k, found through the GEMM itself: the models that give every bit of the probes.

Few elements are tried first, with all models; the models that are left then have to give all outputs at every k. Where none
gives them at every k, each k has models of its own, and where one follows the other is found by halving; so it is
for many and for few rows.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from math import lcm
from typing import Any

import torch
from torch import Tensor

from harness.candidates.errors import in_words
from harness.candidates.protocol import Traits, traits_of
from harness.candidates.traits import VARIES
from harness.identification.calls import call_gemm, forms_of, multiple, widest_type
from harness.identification.summation_probe import COLUMNS, Probe, asked, models, narrow_models
from harness.judging.context import declared_summation, device_is_lost
from harness.verdict import UsageError
from reference.epilogue import CONTRACT, Epilogue
from reference.matrix_units import Summation

# One instruction, which tells units apart, before orders are tried; 1,600 tells tiles of 64, 128 and 256 apart.
WIDTHS = (64, 256, 1024, 1600, 7168)
_NEAR = (64, 256, 512)  # of candidates that are too slow for large ones
_ROWS, _FEW_ROWS, _MANY_ROWS = 32, 8, 192
_LONG = 4096  # k from which on half as many rows are asked
_OF_ROWS = 1024  # k of the probes of few and of many rows
_TILE, _STRIDE = 64, 5  # of rows that may share an order; of those that are compared
_UNITS = (
    "sm_100 mxf4nvf4", "sm_90 f16", "exact", "exact 64", "exact 32", "exact 16", "sm_80 f16", "fma",
)  # fmt: skip
_OF_BYTES = (
    "sm_90 f8",
    "sm_89 f8",
    "sm_100 f8f6f4",
)  # of FP8 activations, with weights decoded to E4M3 or wider
_REAL = frozenset(
    {"sm_100 mxf4nvf4", "sm_90 f16", "sm_80 f16", *_OF_BYTES}
)  # every order is tried, of the others the simple ones
_MOST_ALIKE = 6
_ALPHA = 1.34375 + 2.0**-23  # float32


@dataclass(frozen=True)
class Added:
    """How a candidate's GEMM adds, as it was found.

    Attributes:
        summation: for every k, or None where no model gives the bits.
        words: for the record.
        alike: other models that give the same bits.
        modes: what holds elsewhere, each with where.
        widths: k that were asked.
        of: the output's type that was asked.
    """

    summation: Summation | None
    words: str
    alike: tuple[str, ...] = ()
    modes: tuple[str, ...] = ()
    widths: tuple[int, ...] = ()
    of: str = ""


def added_of(candidate: Any, epilogue: Epilogue | None = CONTRACT) -> Added:
    """Return `find_added`, or the reason where the candidate raises: the rules will say so of a problem."""
    try:
        return find_added(candidate, epilogue)
    except UsageError:
        raise
    except (Exception, SystemExit) as error:
        if device_is_lost(error):
            raise
        return Added(None, f"not measured: masked_grouped_gemm raised {in_words(error)}")


def find_summation(candidate: Any) -> tuple[Summation | None, str]:
    """Return how a candidate's masked_grouped_gemm adds, or None, and how that was found in words."""
    found = find_added(candidate)
    return found.summation, found.words


def find_added(candidate: Any, epilogue: Epilogue | None = CONTRACT) -> Added:
    """Return how a candidate's masked_grouped_gemm adds.

    Args:
        candidate: with that stage.
        epilogue: what it makes of its accumulators; None where that is not known.
    """
    traits = traits_of(candidate)
    declared = declared_summation(traits)
    varies = not (traits.deterministic and traits.place_invariant) and not (declared and declared.streams)
    if traits.summation == VARIES or varies:
        return Added(None, "not asked for: the candidate says that it varies; the bound judges")
    widest = widest_type(traits)
    # Stream k adds its parts in the output's type, which a float32 output does not show.
    narrow = "bfloat16" in traits.out_dtypes and widest != torch.bfloat16
    search = _Search(candidate, traits, epilogue, widest, may_stream=not narrow)
    found = search.found(declared)
    if narrow and (known := found.summation) is not None:
        narrower = _Search(candidate, traits, epilogue, torch.bfloat16)
        if known.later or not all(narrower.fits(known, k) for k in search.widths[2:]):
            other = narrower.found(declared)
            return other if other.summation and other.summation.streams else found
    return found


@dataclass
class _Search:
    """The probes of one candidate with one output type."""

    candidate: Any
    traits: Traits
    epilogue: Epilogue | None
    dtype: torch.dtype
    may_stream: bool = True
    _probes: dict[tuple[int, int], Probe] = field(default_factory=dict)

    @property
    def widths(self) -> list[int]:
        """The k that are asked."""
        every = WIDTHS if self.traits.far else _NEAR
        return sorted({multiple(k, self.traits.k_multiple) for k in every})

    @property
    def units(self) -> tuple[str, ...]:
        """Names of the units that could take the candidate's operands."""
        forms = forms_of(self.traits)
        scaled = all(form.element == "e2m1" for form in forms)
        bytes_too = _OF_BYTES if forms[0].element == "e4m3" else ()
        return (*bytes_too, *(name for name in _UNITS if scaled or not Summation(name).takes_scales))

    @property
    def _alpha(self) -> Tensor:
        """Of a float32 output 1, which keeps every bit; of a narrower one a number that tells when the sums are rounded."""
        exact = self.dtype == torch.float32 or self.epilogue is None
        return torch.tensor(1.0 if exact else _ALPHA)

    def _finish(self, sums: Tensor) -> Tensor:
        return (self.epilogue or CONTRACT)(sums, self._alpha, self.dtype)

    def probe(self, k: int, rows: int = _ROWS) -> Probe:
        """Return a probe; the GEMM is called once for each."""
        rows = multiple(rows // 2 if k > _LONG else rows, self.traits.m_multiple)
        if (k, rows) not in self._probes:
            of = asked(rows, multiple(COLUMNS, self.traits.n_multiple), k, forms_of(self.traits))
            alpha = self._alpha.expand(self.traits.min_experts)
            out = call_gemm(self.candidate, of.a, of.b, self.dtype, alpha)[0]
            self._probes[k, rows] = Probe(of, out, self._finish)
        return self._probes[k, rows]

    def fits(self, summation: Summation, k: int) -> bool:
        """Return whether the mode of a summation at a k gives every bit."""
        mode = summation.at(k)
        return mode is None or self.probe(k).fits(mode)

    def found(self, declared: Summation | None) -> Added:
        """Return what is found, the declared one first."""
        said = ""
        where = "k " + ", ".join(f"{k:,}" for k in self.widths)
        kind = str(self.dtype).removeprefix("torch.")
        if declared:
            if all(self.fits(declared, k) or self.fits(_not_split(declared), k) for k in self.widths):
                return Added(declared, _words(declared, where, ()), (), (), tuple(self.widths), kind)
            said = f"declared as {declared}, but the probes at {where} have other bits; "
        spans = self._spans()
        summation, alike, modes = self._modes(spans)
        if summation is None:
            words = f"{said}not known: no model gives the bits of the probes at {where}; the bound judges"
            return Added(None, words, (), (), tuple(self.widths), kind)
        by_rows = self._by_rows(summation) if self.traits.far else ()
        words = said + _words(summation, where, alike, (*modes, *by_rows))
        return Added(summation, words, alike, (*modes, *by_rows), tuple(self.widths), kind)

    def _spans(self) -> list[tuple[list[int], list[Summation]]]:
        """Return runs of k that share models, and the models; none where no model gives the bits."""
        every = models(self.units, _REAL, self.widths[-1])
        spans: list[tuple[list[int], list[Summation]]] = [([], every)]
        for k in self.widths:
            here, left = spans[-1]
            if now := self.probe(k).fitting(left):
                spans[-1] = [*here, k], now
            elif not here:
                return [([k], [])]  # no unit that is known
            elif fresh := self._fresh(k, left):
                spans[-1:] = self._parted(here, left, [k], fresh)
            elif len(spans) == 1 and here[-1] <= _TILE:
                return [([k], [])]  # one instruction says nothing of an order
            else:
                return [*spans, ([k], [])]
        return spans

    def _parted(
        self, here: list[int], left: list[Summation], there: list[int], right: list[Summation]
    ) -> list[tuple[list[int], list[Summation]]]:
        """Return two runs of k, the second one as long as its models reach, so that the first may have a simpler one."""
        begins = len(here)
        while here and left and self.probe(here[-1]).fits(right[0]):
            right = self.probe(here[-1]).fitting(right)
            here, there = here[:-1], [here[-1], *there]
        if not here:
            return [(there, right)]
        if len(here) < begins:
            left = models(self.units, _REAL, self.widths[-1])
            for k in here:
                left = self.probe(k).fitting(left)
        return [(here, left), (there, right)]

    def _fresh(self, k: int, before: list[Summation]) -> list[Summation]:
        """Return the models at a k where those of a smaller one do not hold: of the same unit, partial sums in any type."""
        names = tuple(dict.fromkeys(model.name for model in before))
        probe = self.probe(k)
        if wide := probe.fitting(models(names, frozenset(names), k)):
            return wide
        # The blocks of a kernel that streams its parts need not be those of the one that does not.
        bases = dict.fromkeys(
            Summation(model.name, lanes=n) for model in before for n in (model.lanes, 1, 2, 4)
        )
        streams = [replace(base, stream=True) for base in bases if self.may_stream]
        if found := probe.fitting(streams):
            return found
        return [found for base in bases for found in probe.fitting(narrow_models(base, k))]

    def _modes(
        self, spans: list[tuple[list[int], list[Summation]]]
    ) -> tuple[Summation | None, tuple[str, ...], tuple[str, ...]]:
        """Return one summation for all k, the models that are not told apart from its first mode, and the modes in words."""
        (_, first), *others = spans
        if not first:
            return None, (), ()
        later, words, alike = [], [], tuple(map(str, first[1:_MOST_ALIKE]))
        for i, ((here, left), (there, right)) in enumerate(zip(spans, others, strict=False)):
            begins, below, above = self._switch(here[-1], left, there[0], right)
            mode = above[0] if above else None
            later.append((begins, mode))
            words.append(f"{mode or 'not known'} from k {begins:,} on")
            alike = tuple(map(str, below[1:_MOST_ALIKE])) if i == 0 else alike
        return replace(first[0], later=tuple(later)), alike, tuple(words)

    def _switch(
        self, low: int, left: list[Summation], high: int, right: list[Summation]
    ) -> tuple[int, list[Summation], list[Summation]]:
        """Return the smallest k from which on models of a larger one hold, and those of either that are left."""
        step = lcm(_TILE, self.traits.k_multiple)
        while high - low > step:
            middle = low + max(1, (high - low) // step // 2) * step
            probe = self.probe(middle, _ROWS // 2)
            if left and probe.fits(left[0]):
                low, left = middle, probe.fitting(left)
                continue
            now = probe.fitting(right)
            if right and not now:
                break  # what lies between is neither: it is as much as not known, and other orders are tried there
            high, right = middle, now
        return high, left, right

    def _by_rows(self, summation: Summation) -> tuple[str, ...]:
        """Return the modes of few and of many rows, in words."""
        k = max((k for k in self.widths if k <= multiple(_OF_ROWS, self.traits.k_multiple)), default=0)
        mode = summation.at(k)
        if mode is None or mode.stream:
            return ()
        said = []
        for rows in (_FEW_ROWS, _MANY_ROWS):
            probe = self.probe(k, rows)
            tiles = range(0, len(probe.out), _TILE)
            found = Counter(self._of_tile(probe.rows(slice(at, at + _TILE, _STRIDE)), mode) for at in tiles)
            for name, count in found.items():
                if name != str(mode):
                    some = "" if count == len(tiles) else f" in {count} of {len(tiles)} tiles of {_TILE} rows"
                    said.append(f"{name} with {len(probe.out)} rows at k {k:,}{some}")
        return tuple(said)

    def _of_tile(self, tile: Probe, mode: Summation) -> str:
        """Return the model of a tile: the known one, another of the same unit, or that there is none."""
        if tile.fits(mode):
            return str(mode)
        other = tile.fitting(models((mode.name,), frozenset({mode.name}), tile.k))
        return str(other[0]) if other else "not known"


def _not_split(summation: Summation) -> Summation:
    """Return how the tiles are added that a kernel which streams k does not split."""
    later = tuple((k, mode and replace(mode, stream=False)) for k, mode in summation.later)
    return replace(summation, stream=False, later=later)


def _words(
    summation: Summation, where: str, alike: tuple[str, ...], modes: tuple[str, ...] = ()
) -> str:  # fmt: skip
    """Return how it was found, for the record."""
    apart = f"; not told apart from {', '.join(alike)}" if alike else ""
    elsewhere = "".join(f"; {mode}" for mode in modes)
    return f"{summation}: gives every bit of the probes at {where}; one value is legal{apart}{elsewhere}"
