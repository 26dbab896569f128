"""What a candidate's call may not leave behind: settings of the process that the harness computes with, its arguments' shape.

Most of it is put back without a word. Another default dtype or device is a mistake, since it changes what every later call
of the caller's own code computes; so is another shape of a tensor that the caller holds.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM, signal.SIGCHLD, signal.SIGPIPE)


class Surroundings:
    """The settings of this process, as they are when this is made.

    Attributes:
        process: which process that is.
    """

    def __init__(self) -> None:
        self.process = os.getpid()
        self._dtype, self._device = torch.get_default_dtype(), torch.get_default_device()
        self._grad = torch.is_grad_enabled()
        self._filters = list(warnings.filters)
        self._folder, self._umask = _folder(), _umask()
        self._streams = sys.stdout, sys.stderr
        self._limit, self._trace = sys.getrecursionlimit(), sys.gettrace()
        self._timer = signal.getitimer(signal.ITIMER_REAL)[0]
        self._handlers = {number: signal.getsignal(number) for number in _SIGNALS}

    def restore(self) -> str:
        """Put everything back; return what no call may leave behind, in words, "" where that is nothing."""
        sys.setrecursionlimit(self._limit)  # first: what follows needs it
        self._restore_process()
        left = []
        if (dtype := torch.get_default_dtype()) is not self._dtype:
            left.append(f"dtype {dtype} ({self._dtype} before)")
            torch.set_default_dtype(self._dtype)
        if (device := torch.get_default_device()) != self._device:
            left.append(f"device {device} ({self._device} before)")
            # cpu is what holds where none was set; setting it would slow every later call down
            torch.set_default_device(None if self._device.type == "cpu" else self._device)
        if torch.is_grad_enabled() is not self._grad:
            torch.set_grad_enabled(self._grad)
        return f"left torch with another default {' and '.join(left)}" if left else ""

    def _restore_process(self) -> None:
        if sys.gettrace() is not self._trace:
            sys.settrace(self._trace)
        sys.stdout, sys.stderr = self._streams
        os.umask(self._umask)
        if warnings.filters != self._filters:
            warnings.filters[:] = self._filters  # type: ignore[index]
            with warnings.catch_warnings():  # its end makes Python look at them again
                pass
        if self._folder and _folder() != self._folder:
            with contextlib.suppress(OSError):
                os.chdir(self._folder)
        if threading.current_thread() is not threading.main_thread():
            return
        if not self._timer:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in self._handlers.items():
            if signal.getsignal(number) is not handler and handler is not None:
                signal.signal(number, handler)


class Arguments:
    """The tensors among a call's arguments: where each lies, and its shape.

    Args:
        values: the arguments, by name; tensors in tuples, lists, dicts and dataclasses are found too.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._tensors = list(_tensors(values))
        self._before = [_form(tensor) for _, tensor in self._tensors]

    def changed(self) -> str:
        """Return which tensor has another shape or other memory now, "" where none has."""
        for (name, tensor), before in zip(self._tensors, self._before, strict=True):
            if (now := _form(tensor)) != before:
                words = f"{_form_in_words(now)}, was {_form_in_words(before)}"
                return f"gave its argument {name} another form: {words}"
        return ""


def without_memory(result: Any) -> str:
    """Return which tensor of a call's result has given its memory back, "" where none has: reading it ends the process."""
    for name, tensor in _tensors({"its output": result}):
        if tensor.is_meta or tensor.layout is not torch.strided or not tensor.numel():
            continue
        last = sum(
            (extent - 1) * stride for extent, stride in zip(tensor.shape, tensor.stride(), strict=True)
        )
        needed = (tensor.storage_offset() + last + 1) * tensor.element_size()
        if (held := tensor.untyped_storage().nbytes()) < needed:
            return f"returned {name} with {held} bytes of memory, where its shape and strides need {needed}"
    return ""


def _tensors(values: Mapping[str, Any]) -> Iterable[tuple[str, Tensor]]:
    for name, value in values.items():
        if type(value) in {Tensor, torch.nn.Parameter}:
            yield name, value
        elif isinstance(value, (tuple, list)):
            yield from _tensors({f"{name}[{i}]": one for i, one in enumerate(value)})
        elif isinstance(value, dict):
            yield from _tensors({f"{name}[{key!r}]": one for key, one in value.items()})
        elif dataclasses.is_dataclass(value) and not isinstance(value, type):
            fields = [field.name for field in dataclasses.fields(value)]
            yield from _tensors({f"{name}.{field}": getattr(value, field) for field in fields})


def _form(tensor: Tensor) -> tuple[Any, ...]:
    """Return shape, dtype, strides, address and bytes of memory (None where there is none), and whether it requires grad."""
    memory = None if tensor.is_meta else (tensor.data_ptr(), tensor.untyped_storage().nbytes())
    return tensor.shape, tensor.dtype, tensor.stride(), memory, tensor.requires_grad


def _form_in_words(form: tuple[Any, ...]) -> str:
    shape, dtype, strides, held, requires_grad = form
    memory = f"at {held[0]:#x}, {held[1]} bytes" if held else "no memory"
    return f"{tuple(shape)} {dtype}, strides {strides}, {memory}{', requires grad' if requires_grad else ''}"


def _folder() -> str:
    try:
        return os.getcwd()  # noqa: PTH109 - as a string, thousands of times
    except OSError:  # it was removed
        return ""


def _umask() -> int:
    now = os.umask(0o077)
    os.umask(now)
    return now
