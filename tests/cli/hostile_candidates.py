"""Candidates composed of hostile behaviours from a seed: `hostile_candidates:C17` is a class, always the same one.

Each is the control `eager` but for one method, which misbehaves before, after, or instead of what it should do.
"""

from __future__ import annotations

import ctypes
import dataclasses
import os
import random
import signal
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch

from harness import Support, Traits
from harness.candidates.eager import Eager

RULES = {
    "quantize_grouped": "QUANT", "silu_mul_quantize_grouped": "ACT", "masked_grouped_gemm": "GEMM", "masked_moe": "MOE",
    "route_topk": "ROUTE", "dispatch": "DISPATCH", "combine": "COMBINE", "load_experts": "LOAD",
}  # fmt: skip
ELSEWHERE = ("__init__", "support", "traits", "name", "warning", "reciprocal", "__getattr__")


class _SilentError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


class _Gone(BaseException):
    pass


class _Mine(torch.Tensor):
    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError("not with my tensors")


class _Pair(tuple):  # noqa: SLOT001 - as a candidate would write it
    def __len__(self) -> int:
        raise RuntimeError("no length")


class _Liar:
    __class__ = torch.Tensor  # type: ignore[assignment]


def _raiser(error: BaseException | type[BaseException]) -> Callable[..., None]:
    def behave(*_: Any) -> None:
        raise error

    return behave


def _each(write: Callable[[int], object]) -> Callable[..., None]:
    def behave(*_: Any) -> None:
        for handle in range(3, 64):
            try:
                write(handle)
            except OSError:
                continue

    return behave


def _fork(then: Callable[[], object] | None) -> Callable[..., None]:
    def behave(*_: Any) -> None:
        if os.fork() == 0 and then is not None:
            then()
            os._exit(3)

    return behave


def _in_a_lost_folder(*_: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)


def _alarm_raises(*_: Any) -> None:
    signal.signal(signal.SIGALRM, lambda *_: 1 // 0)
    signal.setitimer(signal.ITIMER_REAL, 0.01)


def _recurse(*_: Any) -> None:
    _recurse()


def _other_error() -> BaseException:
    from harness.judging.contract import ContractError
    from harness.rules import NotApplicableError
    from harness.verdict import UsageError

    return random.choice([ContractError("c"), NotApplicableError("n"), UsageError("u")])


RAISES: dict[str, Callable[..., object]] = {
    "value error": _raiser(ValueError("no")),
    "silent": _raiser(_SilentError()),
    "base": _raiser(_Gone("no driver")),
    "generator exit": _raiser(GeneratorExit),
    "stop": _raiser(StopIteration),
    "exit 0": _raiser(SystemExit(0)),
    "exit text": _raiser(SystemExit("bye")),
    "not implemented": _raiser(NotImplementedError()),
    "memory": _raiser(MemoryError()),
    "ours": lambda *_: _raiser(_other_error())(),
    "long text": _raiser(ValueError("x" * 3_000_000)),
    "odd text": _raiser(ValueError("a\nb\0\x1b[31m\udcff\u202e")),
    "group": _raiser(BaseExceptionGroup("two", [_Gone(), ValueError()])),
    "recursion": _recurse,
}
ENDS: dict[
    str, Callable[..., object]
] = {  # the process, or what it answers through: not without one of its own
    "_exit 0": lambda *_: os._exit(0),
    "_exit 64": lambda *_: os._exit(64),
    "abort": lambda *_: os.abort(),
    "kill": lambda *_: os.kill(os.getpid(), signal.SIGKILL),
    "terminate": lambda *_: os.kill(os.getpid(), signal.SIGTERM),
    "segfault": lambda *_: ctypes.string_at(0),
    "close all": lambda *_: os.closerange(3, 256),
    "interrupt": _raiser(KeyboardInterrupt),
    "forge": _each(lambda handle: os.write(handle, b'{"status": "judged", "comparisons": []}\n')),
    "junk": _each(lambda handle: os.write(handle, b"\xff\0" * 999)),
    "shut output": lambda *_: (os.close(1), os.close(2)),
    "fork and wait": _fork(lambda: time.sleep(30)),
}
LEAVES: dict[str, Callable[..., object]] = {
    "dtype": lambda *_: torch.set_default_dtype(torch.float64),
    "half": lambda *_: torch.set_default_dtype(torch.bfloat16),
    "device": lambda *_: torch.set_default_device("meta"),
    "no grad": lambda *_: torch.set_grad_enabled(False),
    "fork": _fork(None),
    "fork and exit": _fork(lambda: os._exit(7)),
    "thread": lambda *_: threading.Thread(target=time.sleep, args=(20,)).start(),
    "print": lambda *_: print("chatter " * 50_000),
    "stdout": lambda *_: sys.stdout.close(),
    "no stdout": lambda *_: setattr(sys, "stdout", None),
    "folder": lambda *_: os.chdir("/"),
    "lost folder": _in_a_lost_folder,
    "handlers": lambda *_: [signal.signal(n, signal.SIG_IGN) for n in (2, 15, 17)],
    "alarm": _alarm_raises,
    "seeds": lambda *_: (random.seed(1), torch.manual_seed(1)),
    "warnings": lambda *_: warnings.simplefilter("error"),
    "recursion limit": lambda *_: sys.setrecursionlimit(len(_frames()) + 20),
    "trace": lambda *_: sys.settrace(lambda *_: 1 // 0),
    "environment": lambda *_: os.environ.clear(),
    "umask": lambda *_: os.umask(0o777),
    "threads": lambda *_: torch.set_num_threads(3),
    "arguments resized": lambda *a: [t.resize_(1) for t in _tensors(a)],
    "arguments set": lambda *a: [t.set_(torch.zeros(1, dtype=t.dtype)) for t in _tensors(a)],
    "arguments zeroed": lambda *a: [t.zero_() for t in _tensors(a)],
    "arguments need gradients": lambda *a: [t.requires_grad_() for t in _tensors(a) if t.is_floating_point()],
}
RETURNS: dict[str, Callable[[Any], Any]] = {
    "none": lambda _: None,
    "text": lambda _: "\udcff",
    "number": lambda _: 3,
    "itself": lambda _: LEAVES,
    "list": lambda r: list(r) if isinstance(r, (tuple, list)) else [r],
    "pair": lambda r: _Pair(r) if isinstance(r, tuple) else _Pair((r,)),
    "generator": lambda r: (t for t in [r]),
    "empty": lambda r: type(r)() if isinstance(r, (list, dict, tuple)) else torch.zeros(0),
    "lies": lambda r: _mapped(r, lambda _: _Liar()),
    "meta": lambda r: _mapped(r, lambda t: t.to("meta")),
    "subclass": lambda r: _mapped(r, lambda t: t.as_subclass(_Mine)),
    "sparse": lambda r: _mapped(r, lambda t: t.float().to_sparse()),
    "double": lambda r: _mapped(r, lambda t: t.double()),
    "flat": lambda r: _mapped(r, torch.flatten),
    "one row": lambda r: _mapped(r, lambda t: t[:1].expand(t.shape)),
    "no memory": lambda r: _mapped(r, _without_memory),
    "wild numbers": lambda r: _mapped(r, lambda t: t.view(torch.uint8).fill_(255).view(t.dtype)),
    "numpy": lambda r: _mapped(r, lambda t: t.float().numpy()),
}


def _frames() -> list[Any]:
    frame, found = sys._getframe(), []
    while frame is not None:
        found.append(frame)
        frame = frame.f_back
    return found


def _tensors(values: Any) -> list[torch.Tensor]:
    if isinstance(values, torch.Tensor):
        return [values]
    if isinstance(values, (tuple, list)):
        return [t for value in values for t in _tensors(value)]
    return _tensors(list(values.values())) if isinstance(values, dict) else []


def _mapped(value: Any, change: Callable[[torch.Tensor], Any]) -> Any:
    """Change every tensor of a result; a result that has none becomes one."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if type(value) in {tuple, list}:
        return type(value)(_mapped(one, change) for one in value)
    if isinstance(value, dict):
        return {name: _mapped(one, change) for name, one in value.items()}
    if dataclasses.is_dataclass(value):
        fields = {f.name: _mapped(getattr(value, f.name), change) for f in dataclasses.fields(value)}
        return dataclasses.replace(value, **fields)
    return change(torch.zeros(2)) if value is None else value


def _without_memory(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.clone()
    tensor.untyped_storage().resize_(0)
    return tensor


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a seed makes.

    Attributes:
        place: the method that misbehaves.
        rule: that calls it.
        before: names of behaviours before the right result is computed.
        result: name of what becomes of it, "" for nothing.
        isolated: in a process of its own.
    """

    place: str
    rule: str
    before: tuple[str, ...]
    result: str
    isolated: bool


def plan(seed: int) -> Plan:
    """Return what the candidate of a seed does."""
    draw = random.Random(f"hostile {seed}")
    isolated = draw.random() < 0.7
    place = draw.choice([*RULES, *RULES, *ELSEWHERE])
    stages = [*RULES] if place in ELSEWHERE else [place]
    doing = {**RAISES, **LEAVES, **(ENDS if isolated else {})}
    before = tuple(draw.sample(sorted(doing), draw.choice([0, 1, 1, 1, 2])))
    result = draw.choice(sorted(RETURNS)) if not before or draw.random() < 0.2 else ""
    return Plan(place, RULES[draw.choice(stages)], before, result, isolated)


def composed(seed: int) -> type:
    """Return the class of a seed."""
    made, known = plan(seed), {**RAISES, **ENDS, **LEAVES}

    def misbehave(right: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        for name in made.before:
            known[name](*arguments, *named.values())
        result = right(*arguments, **named)
        return RETURNS[made.result](result) if made.result else result

    def method(self: Any, *arguments: Any, **named: Any) -> Any:
        return misbehave(getattr(super(kind, self), made.place), *arguments, **named)

    members: dict[str, Any] = {
        "support": lambda self: misbehave(lambda: Support(ok=True)),
        "traits": property(
            lambda self: misbehave(
                lambda: Traits(device="cpu", arithmetic="fast", k_multiple=16, n_multiple=1)
            )
        ),
        "name": property(lambda self: misbehave(lambda: "hostile")),
        "warning": property(lambda self: misbehave(lambda: "careful")),
        "reciprocal": lambda self, x: misbehave(lambda x: 1 / x, x),
        "__getattr__": lambda self, name: misbehave(lambda: object.__getattribute__(self, name)),
    }
    own = {made.place: members.get(made.place, method)}
    if made.place == "traits":
        own["__init__"] = lambda self: None  # Eager's sets them
    kind: type = type(f"C{seed}", (Eager,), own)
    return kind


def __getattr__(name: str) -> Any:
    if name[:1] == "C" and name[1:].isdigit():
        return composed(int(name[1:]))
    raise AttributeError(name)
