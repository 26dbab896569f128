"""The captured calls of one process: which are taken, what of them is copied, and that an engine never fails by it."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from harness.capture.begun import Begun
from harness.capture.humming import PREPARED, address
from harness.capture.settings import CaptureSettings
from harness.capture.targets import WEIGHTS, Read, Target

if TYPE_CHECKING:
    from harness.capture.writer import Writer


_NOT_TAKEN = Begun("", "")
_A_WHILE = 256  # outermost calls: more than a model has layers


class _Inside(threading.local):
    """Where a thread is.

    Attributes:
        left_out: in a call whose turn it is not.
        calls: the calls that it is in otherwise, outermost first.
    """

    def __init__(self) -> None:
        self.left_out = False
        self.calls: list[Begun] = []


class Session:
    """What one process captures; in a forked child it begins anew.

    Args:
        settings: what is captured.

    Attributes:
        idle: nothing is captured (any more).
        inside: where the current thread is.
        resting: called when that begins: takes the taps away.
    """

    def __init__(self, settings: CaptureSettings) -> None:
        self.settings, self.idle = settings, False
        self.resting: Callable[[], None] = lambda: None
        self._lock = threading.Lock()
        self.inside = _Inside()
        self._warned: set[str] = set()
        self._begin_anew()

    def _begin_anew(self) -> None:
        self._pid = os.getpid()
        self._writer: Writer | None = None
        self._taken = self._number = 0
        self._wait, self._new_layers_for = self.settings.skip, _A_WHILE
        self._layers: dict[int, int] = {}
        self._prepared: dict[int, dict[str, Any]] = {}

    def is_its_turn(self, read: Read, args: Any, kwargs: Any) -> bool:
        """Count an outermost call, and return whether the counts choose it; yes for one inside another. Never raises.

        It is what an engine pays while it is sampled: a few microseconds, since its own work has left nothing in the caches.
        """
        if self.inside.calls:
            return True
        if self._new_layers_for:
            self._note_layer(read, args, kwargs)
        if self._wait:
            self._wait -= 1
            return False
        self._wait = self.settings.every - 1
        return True

    def _note_layer(self, read: Read, args: Any, kwargs: Any) -> None:
        """Number a layer that is seen for the first time, until no new one has come for a while."""
        known = len(self._layers)
        try:
            self._layer_of(read.weights(args, kwargs))
        except Exception as error:  # noqa: BLE001 - the engine goes on, whatever happens here
            self._stop(error)
        self._new_layers_for = _A_WHILE if len(self._layers) > known else self._new_layers_for - 1

    def begin(self, target: Target, where: str, read: Read, args: Any, kwargs: Any) -> Begun | None:
        """Copy what a call whose turn it is is given, where it is captured. Never raises."""
        stack = self.inside.calls
        if stack and not stack[-1].taken:
            return None  # inside a call that is not captured
        try:
            return self._begun(stack, target, where, read, args, kwargs)
        except Exception as error:  # noqa: BLE001 - as above
            self._stop(error)
            return None

    def _begun(
        self, stack: list[Begun], target: Target, where: str, read: Read, args: Any, kwargs: Any
    ) -> Begun | None:
        layer = None if stack else self._layer_of(read.weights(args, kwargs))
        from harness.capture.tensors import copied

        with self._lock:
            if self._pid != os.getpid():
                self._begin_anew()
            inputs = self._with_weights(read.inputs(args, kwargs))
            if inputs is None:
                return self._left_out(stack)
            if stack:
                call = Begun(target.stage, where, layer=stack[-1].layer, parent=stack[-1].number, taken=True)
            else:
                call = Begun(target.stage, where, layer=layer, taken=self._is_wanted(layer))
            stack.append(call)
            if call.taken:
                self._number += 1
                call.number = self._number
        call.inputs = copied(inputs) if call.taken else {}
        return call

    def _left_out(self, stack: list[Begun]) -> Begun | None:
        """Return what stands for a call that is none of its stage, or of weights that are not known."""
        if stack:
            return None
        stack.append(_NOT_TAKEN)
        return _NOT_TAKEN

    def _with_weights(self, inputs: dict[str, Any] | None) -> dict[str, Any] | None:
        """Return inputs with what prepared weights were made of, None where that is not known."""
        if inputs is None or PREPARED not in inputs:
            return inputs
        weights = self._prepared.get(inputs.pop(PREPARED))
        if weights is None:
            self.warn(
                "weights were prepared before the capture began or beyond --megabytes: their calls are left out"
            )
        return None if weights is None else {**inputs, **weights}

    def preparing(self, read: Read, args: Any, kwargs: Any) -> dict[str, Any] | None:
        """Copy weights before a kernel's own code brings them into its order. Never raises."""
        try:
            from harness.capture.tensors import copied

            return copied(read.inputs(args, kwargs) or {})
        except Exception as error:  # noqa: BLE001 - as in begin
            self._stop(error)
            return None

    def prepared(self, given: dict[str, Any] | None, result: Any) -> None:
        """Store those weights, and know them again by what was made of them. Never raises."""
        try:
            place = address(result)
            if given is None or place is None:
                return
            with self._lock:
                if (kept := self._writing().kept(given)) is not None:
                    self._prepared[place] = kept
        except Exception as error:  # noqa: BLE001 - as in begin
            self._stop(error)

    def end(self, call: Begun | None, read: Read, args: Any, kwargs: Any, result: Any) -> Any:
        """Copy what a call returned, and store it; return that. Never raises.

        A result whose last element is a hook is stored once the hook, which is replaced, has run.
        """
        if call is None:
            return result
        self._leave(call)
        if not call.taken or self.idle:
            return result
        if read.late and callable(result[-1]):
            return (*result[:-1], self._then(result[-1], call, read, args, kwargs, result))
        self._store(call, read, args, kwargs, result)
        return result

    def _then(self, hook: Any, call: Begun, read: Read, args: Any, kwargs: Any, result: Any) -> Any:
        def arrived(*given: Any, **named: Any) -> Any:
            found = hook(*given, **named)
            if not self.idle and not self._in_a_graph():
                self._store(call, read, args, kwargs, result)
            return found

        return arrived

    def _store(self, call: Begun, read: Read, args: Any, kwargs: Any, result: Any) -> None:
        try:
            from harness.capture.tensors import changes, copied

            if read.late:
                _wait_for(result)
            outputs = copied(read.outputs(args, kwargs, result))
            changed = {}
            if not read.late:  # by the time that a result is complete, its inputs may be used again
                left_out = (*WEIGHTS.get(call.stage, ()), "out")
                changed = changes(call.inputs, read.inputs(args, kwargs) or {}, left_out)
            with self._lock:
                if not self._writing().store(call, outputs, changed):
                    self._rest()
        except Exception as error:  # noqa: BLE001 - as above
            self._stop(error)

    def abandon(self, call: Begun | None) -> None:
        """Forget a call that raised."""
        if call is not None:
            self._leave(call)

    def warn(self, words: str) -> None:
        """Say something on stderr, once."""
        if words not in self._warned:
            self._warned.add(words)
            print(f"harness capture: {words}", file=sys.stderr, flush=True)  # noqa: T201 - into the engine's own log

    def _rest(self) -> None:
        self.idle = True
        self.resting()

    def _stop(self, error: Exception) -> None:
        self._rest()
        self.warn(f"stopped in process {os.getpid()}, the engine goes on: {type(error).__name__}: {error}")

    def _leave(self, call: Begun) -> None:
        stack = self.inside.calls
        if call in stack:
            del stack[stack.index(call) :]

    def _layer_of(self, weights: Any) -> int | None:
        return None if weights is None else self._layers.setdefault(weights.data_ptr(), len(self._layers))

    def _is_wanted(self, layer: int | None) -> bool:
        """Return whether an outermost call whose turn it is is captured."""
        s = self.settings
        if self._in_a_graph():
            return False
        if (s.ranks and rank() not in s.ranks) or (s.layers and layer is not None and layer not in s.layers):
            return False
        if self._taken >= s.calls:
            self._rest()
            return False
        self._taken += 1
        return True

    def _in_a_graph(self) -> bool:
        """Return whether a CUDA graph's capture records the current stream: nothing may wait for it."""
        if not _is_recording_a_graph():
            return False
        self.warn(
            "calls inside a CUDA graph's capture are not captured, and a replayed graph makes none: run the engine "
            "without CUDA graphs"
        )
        return True

    def _writing(self) -> Writer:
        from harness.capture.writer import Writer

        if self._writer is None:
            self._writer = Writer(self.settings, rank())
        return self._writer


def rank() -> int:
    """Return which rank this process is: torch.distributed's, or what a launcher said, or 0."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        found: int = distributed.get_rank()
        return found
    said = os.environ.get("RANK", "0")
    return int(said) if said.isdigit() else 0


def _wait_for(result: Any) -> None:
    """Let the current stream wait for the event of a result, where it has one."""
    for part in result:
        if getattr(part, "event", None) is not None and hasattr(part, "current_stream_wait"):
            part.current_stream_wait()


def _is_recording_a_graph() -> bool:
    torch = sys.modules.get("torch")
    return bool(torch and torch.cuda.is_available() and torch.cuda.is_current_stream_capturing())
