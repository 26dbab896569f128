"""The device's reciprocal, where it is known."""

from __future__ import annotations

from typing import Any

import torch

from harness.candidates.errors import in_words
from harness.candidates.protocol import traits_of
from harness.judging.reciprocal import verified
from reference.quantizer_formulas import Reciprocal


def find_reciprocal(candidate: Any) -> tuple[Reciprocal | None, str]:
    """Return the device's rcp.approx.ftz as a function, or None, and how it was found in words."""
    own = getattr(candidate, "reciprocal", None)
    if own is not None:
        return verified(own), "known: the candidate gives its reciprocal; one scale and one code are legal"
    if traits_of(candidate).device != "cuda":
        return None, "not probed: no CUDA device; next to a rounding boundary two codes are legal"
    try:
        from harness.identification.probe_rcp import device_reciprocal

        device_reciprocal(torch.tensor([6.0], device="cuda"))
    except Exception as error:  # noqa: BLE001 - triton missing or failing leaves the range of one unit, nothing worse
        return (
            None,
            f"not probed: {in_words(error)}; next to a rounding boundary two codes are legal",
        )
    return device_reciprocal, "probed: rcp.approx.ftz of the GPU under test; one scale and one code are legal"
