"""A recorded call repeated in a right implementation, on the arguments that it was recorded with."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import is_dataclass
from typing import Any

from torch import Tensor

from harness.candidates.protocol import ROUTED
from harness.diagnosis.cases.observation import MASKED_GEMM, Observed, with_memory
from harness.diagnosis.cases.views import elements
from harness.faults.calls import Call
from harness.faults.mutant import CALLS


class ReplayError(Exception):
    """A call cannot be repeated: the implementation refuses it, or the fault that is planted in it raised."""


def replayed(
    model: Any,
    call: Observed,
    views: Iterable[str] = ("output",),
    *,
    kind: type[Call] | None = None,
    run: Callable[[Any], None] | None = None,
) -> dict[str, Tensor]:
    """Return what a call does in a right implementation, as elements of each view.

    Args:
        model: the implementation.
        call: with the arguments.
        views: what of the call, see harness.diagnosis.cases.views.elements.
        kind: how a fault sees the call; None for the usual kind of its stage.
        run: runs the call, as a fault does that is planted in it; None to run it as it is.

    Raises:
        ReplayError: the call raised.
    """
    arguments = dict(call.arguments)
    if call.stage == MASKED_GEMM:
        arguments["out"] = with_memory(arguments["out"])
    elif call.stage == ROUTED and arguments.get("out") is not None:
        arguments["out"] = arguments["out"].clone()
    planted = (kind or CALLS[call.stage])(call.stage, getattr(model, call.stage), model, arguments)
    with unharmed(call):
        if run is None:
            planted.run()
        else:
            run(planted)
        result = arguments["out"] if call.stage == MASKED_GEMM else planted.result()
        return {view: elements(call.stage, arguments, result, view, call.forms) for view in views}


@contextlib.contextmanager
def unharmed(call: Observed) -> Iterator[None]:
    """Put back what a planted fault writes into a call's arguments: the next hypothesis needs them as they were.

    Raises:
        ReplayError: in place of whatever was raised.
    """
    call.keep()
    before = {name: _version(value) for name, value in call.arguments.items()}
    try:
        yield
    except Exception as error:
        raise ReplayError(f"{type(error).__name__}: {error}") from error
    finally:
        call.restore([n for n, v in call.arguments.items() if n != "out" and _version(v) != before[n]])


def _version(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value._version  # noqa: SLF001 - no public name for it
    if isinstance(value, (tuple, list)):
        return tuple(_version(v) for v in value)
    if isinstance(value, dict):
        return tuple(_version(v) for v in value.values())
    return tuple(_version(v) for v in vars(value).values()) if is_dataclass(value) else None
