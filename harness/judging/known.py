"""What is known about a candidate besides its code, as the rules judge by it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from harness.candidates.traits import VARIES, Traits
from harness.verdict import UsageError
from reference.bounds import Accumulator
from reference.epilogue import CASTS, EACH, Epilogue, held_by
from reference.legal import Arithmetic
from reference.matrix_units import Summation


@dataclass(frozen=True)
class Known:
    """What is known about a candidate besides its code: declared, or measured through it (harness.identification).

    Attributes:
        arithmetic: of its quantizers.
        accumulator: what is measured or assumed of it.
        summation: of its GEMMs, bit for bit.
        unrounded: values of its layer that stay float32, as Traits.unrounded names them.
        activated: type that silu_mul_quantize_grouped quantizes silu(gate) * up in.
    """

    arithmetic: Arithmetic
    accumulator: Accumulator
    summation: Summation | None = None
    unrounded: tuple[str, ...] = ()
    activated: torch.dtype = torch.bfloat16

    @classmethod
    def declared(cls, traits: Traits) -> Known:
        """Return what the traits say, nothing measured."""
        arithmetic = Arithmetic(traits.arithmetic, keeps_subnormals=traits.keeps_subnormals)
        summation = declared_summation(traits)
        accumulator = narrow_accumulator(summation) or Accumulator(chunk=traits.accumulator_chunk)
        return cls(
            arithmetic,
            replace(accumulator, epilogue=_declared_epilogue(traits)),
            summation,
            tuple(traits.unrounded),
            torch.float32 if "hidden" in traits.unrounded else torch.bfloat16,
        )


def _declared_epilogue(traits: Traits) -> Epilogue:
    """Return the epilogue that a candidate means to have; where its GEMM can be called it is judged as found."""
    meant = {text.partition(": ")[::2] for text in traits.deviations}
    casts = [cast for cast in CASTS if ("cast", cast) in meant]
    cast = casts[0] if casts else CASTS[0]
    return Epilogue(cast, each=EACH in traits.deviations, held=held_by(traits.deviations))


def narrow_accumulator(summation: Summation | None) -> Accumulator | None:
    """Return the bound of a unit whose sums keep fewer bits than float32 has, those of FP8 before Blackwell; else None.

    A layer that hides its GEMMs, and FP8 operands, which cannot hold the probe of an accumulator, leave it to what is known
    of the unit.
    """
    if summation is None or summation.unit.result != "13 bits" or summation.unit.fraction is None:
        return None
    kept = summation.unit.fraction + 1
    return Accumulator(kept, summation.unit.k, window=kept)


def declared_summation(traits: Traits) -> Summation | None:
    """Return how a candidate says that its GEMM adds, or None.

    Raises:
        UsageError: the trait names none.
    """
    if traits.summation in ("", VARIES):
        return None
    try:
        return Summation.of(traits.summation)
    except ValueError as error:
        raise UsageError(f"Traits: {error}") from None
