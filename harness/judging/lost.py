"""Which errors say that a device, or its memory, is gone: nothing about the candidate's numbers."""

from __future__ import annotations

import torch

from harness.candidates.errors import text_of


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that there is not memory enough, on the host or on a GPU."""
    text = text_of(error)
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(error, RuntimeError)
        and any(w in text for w in ("can't allocate memory", "not enough memory"))
    )


def device_is_lost(error: BaseException) -> bool:
    """Return whether a CUDA error makes every later call in this process fail, ours included."""
    text = text_of(error)
    return any(
        word in text for word in ("CUDA error", "device-side assert", "illegal memory access", "cudaError")
    )
