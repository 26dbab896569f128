"""What is known about a candidate besides its code, as the rules judge by it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from harness.candidates.traits import VARIES, Traits
from harness.verdict import UsageError
from reference.bounds import Accumulator
from reference.epilogue import CASTS, EACH, Epilogue
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
        return cls(
            arithmetic,
            Accumulator(chunk=traits.accumulator_chunk, epilogue=_declared_epilogue(traits)),
            declared_summation(traits),
            tuple(traits.unrounded),
            torch.float32 if "hidden" in traits.unrounded else torch.bfloat16,
        )


def _declared_epilogue(traits: Traits) -> Epilogue:
    """Return the epilogue that a candidate means to have; where its GEMM can be called it is judged as found."""
    meant = {text.partition(": ")[::2] for text in traits.deviations}
    casts = [cast for cast in CASTS if ("cast", cast) in meant]
    return Epilogue(casts[0] if casts else CASTS[0], each=EACH in traits.deviations)


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
