"""Which GPUs there are, without asking any of them: by their numbers, or as CUDA_VISIBLE_DEVICES names them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.verdict import UsageError

DEVICES = Path("/dev")


def visible_gpus() -> list[str]:
    """Return the GPUs that processes of this one see, each as CUDA_VISIBLE_DEVICES takes it."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [gpu for gpu in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if gpu]
    return [str(number) for number in range(len(list(DEVICES.glob("nvidia[0-9]*"))))]


def chosen_gpus(asked: str) -> list[str]:
    """Return the GPUs that `--gpus` asks for: "all", or how many.

    Raises:
        UsageError: neither, or more than there are.
    """
    there = visible_gpus()
    if asked != "all" and not (asked.isascii() and asked.isdigit() and 0 < int(asked) <= 1024):
        raise UsageError(f"--gpus: expected all or a number of GPUs, got {asked!r}")
    wanted = max(len(there), 1) if asked == "all" else int(asked)
    if wanted > len(there):
        raise UsageError(
            f"--gpus: {asked} asked for, {len(there) or 'none'} here; --workers N shares a run among processes without GPUs"
        )
    return there[:wanted]


@contextmanager
def on_own_gpu(device: str) -> Iterator[None]:
    """While it lasts, "cuda" is this worker's GPU in a pytest session of several workers: its number modulo the GPUs.

    For a candidate in the process of a test that may have used CUDA before; elsewhere the environment says it.
    """
    number = os.environ.get("PYTEST_XDIST_WORKER", "").removeprefix("gw")
    if device != "cuda" or not number.isdigit():
        yield
        return
    import torch

    with torch.cuda.device(int(number) % max(1, torch.cuda.device_count())):
        yield
