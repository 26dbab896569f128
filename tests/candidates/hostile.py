"""Candidates that turn against the process that they live in. Named on the command line from this folder: `hostile:Stage`."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections.abc import Callable
from typing import Any

import torch

from harness import Traits
from harness.candidates.eager import Eager
from harness.rules import NotApplicableError


class SilentError(Exception):
    """An exception whose text cannot be made."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


class DriverGone(BaseException):
    """What no `except Exception` sees."""


class Mine(torch.Tensor):
    """A tensor that refuses every question."""

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError("not with my tensors")


def _raise(error: BaseException) -> None:
    raise error


def _write_everywhere(what: bytes) -> None:
    for handle in range(3, 32):
        try:
            os.write(handle, what)
        except OSError:
            continue


def _fork_and_return() -> None:
    if os.fork() == 0:
        sys.stderr.close()


def _alarm() -> None:
    signal.signal(signal.SIGALRM, lambda *_: 1 // 0)
    signal.setitimer(signal.ITIMER_REAL, 0.3)  # after this call, while it is judged or long after


def _trace(frame: Any, *_: Any) -> None:
    if "judging" in frame.f_code.co_filename:
        raise ZeroDivisionError


BEFORE: list[Callable[[], object]] = [
    lambda: _raise(SilentError()),
    lambda: _raise(DriverGone("no driver")),
    lambda: _raise(KeyboardInterrupt()),
    lambda: _raise(NotApplicableError("this rule is not for me")),
    lambda: torch.set_default_dtype(torch.float64),
    lambda: torch.set_default_device("meta"),
    lambda: _write_everywhere(b'{"status": "judged", "comparisons": []}\n'),
    lambda: _write_everywhere(b"\xff\x00" * 100),
    lambda: os.closerange(3, 256),
    _fork_and_return,
    _alarm,
    lambda: os.chdir("/"),
    lambda: warnings.simplefilter("error"),
    lambda: sys.setrecursionlimit(120),
    lambda: sys.settrace(_trace),
    lambda: setattr(sys, "stdout", None),
    lambda: signal.signal(signal.SIGTERM, signal.SIG_IGN),
]
RESULTS: list[Callable[[torch.Tensor], Any]] = [
    lambda packed: packed.to("meta"),
    lambda packed: packed.as_subclass(Mine),
    lambda packed: packed.float().to_sparse(),
    lambda packed: (packed.untyped_storage().resize_(0), packed)[1],
]


class Stage(Eager):
    """Quantizes right but for what a number of experts stands for at k 32: the entries of BEFORE, then of RESULTS, from one."""

    def quantize_grouped(self, x, masked_m, global_scale_enc):
        if x.shape[2] != 32:  # a probe
            return super().quantize_grouped(x, masked_m, global_scale_enc)
        number = x.shape[0] - 1
        if number < len(BEFORE):
            BEFORE[number]()
        packed, block_scale = super().quantize_grouped(x, masked_m, global_scale_enc)
        if len(BEFORE) <= number < len(BEFORE) + len(RESULTS):
            packed = RESULTS[number - len(BEFORE)](packed)
        return packed, block_scale


class TakesItsInputApart(Eager):
    """Gives the tokens that it gets another shape."""

    def quantize_grouped(self, x, masked_m, global_scale_enc):
        result = super().quantize_grouped(x, masked_m, global_scale_enc)
        x.resize_(1)
        return result


class DiesWhenMade(Eager):
    """Raises a BaseException when it is made."""

    def __init__(self) -> None:
        raise DriverGone("no driver")


class ExitsWhenMade(Eager):
    """Asks the process to end when it is made."""

    def __init__(self) -> None:
        sys.exit(0)


class LeavesAnotherDtype(Eager):
    """Leaves another default dtype when it is made."""

    def __init__(self) -> None:
        super().__init__()
        torch.set_default_dtype(torch.bfloat16)


class OnCuda:
    """Declares nothing, and so a CUDA device."""

    quantize_grouped = Eager.quantize_grouped


class OnMeta(OnCuda):
    """Declares a device that holds no data."""

    traits = Traits(device="meta")


class Misdeclared(Eager):
    """Declares a trait that there is none of."""

    def __init__(self) -> None:
        super().__init__()
        self.traits = Traits(k_multipel=16)  # type: ignore[call-arg]


class DeclaresADict(Eager):
    """Declares its traits as something else."""

    def __init__(self) -> None:
        super().__init__()
        self.traits = {"device": "cpu"}  # type: ignore[assignment]


CALLABLE = print
