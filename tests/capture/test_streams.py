"""Work on side streams: what is captured is what the call's own stream has come to, whatever else is still to run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from harness.capture.hook import _around
from harness.capture.session import Session
from harness.capture.settings import CaptureSettings
from harness.capture.targets import Target
from harness.replay.captured import Captured
from harness.replay.reading import read_capture

FUSED = Target("flashinfer", "cute_dsl_fused_moe", "routed_moe")
DISPATCH = Target("deep_ep", "Buffer.low_latency_dispatch", "dispatch")


class Streams(TorchFunctionMode):
    """A device on which nothing runs until somebody waits: a copy to the host waits for the stream that it is made on alone.

    Attributes:
        current: name of the current stream.
        recording: streams that a graph's capture records.
    """

    def __init__(self) -> None:
        super().__init__()
        self.current, self.recording = "main", set[str]()
        self._queues: dict[str, list[Callable[[], Any]]] = {}

    def __torch_function__(self, function: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is Tensor.to and "cpu" in args:
            if kwargs.get("non_blocking"):
                late = torch.full_like(args[0], -1)
                self.launch(lambda: late.copy_(args[0]))
                return late
            self.run(self.current)
        return function(*args, **kwargs)

    def launch(self, work: Callable[[], Any]) -> None:
        """Queue work on the current stream."""
        self._queues.setdefault(self.current, []).append(work)

    def run(self, name: str) -> None:
        """Run what a stream has to do."""
        queue = self._queues.get(name, [])
        while queue:
            queue.pop(0)()

    def wait_for(self, other: str) -> None:
        """Let the current stream wait for what another one has to do by now (`Stream.wait_stream`)."""
        self.launch(lambda: self.run(other))

    def left(self, name: str) -> int:
        """Return how much a stream has still to do."""
        return len(self._queues.get(name, []))

    @contextmanager
    def on(self, name: str) -> Iterator[None]:
        """Make a stream the current one (`torch.cuda.stream`)."""
        before, self.current = self.current, name
        try:
            yield
        finally:
            self.current = before


@pytest.fixture(name="streams")
def streams_fixture(monkeypatch: pytest.MonkeyPatch) -> Iterator[Streams]:
    with Streams() as streams:
        monkeypatch.setattr("torch.cuda.is_available", lambda: True)
        monkeypatch.setattr(
            "torch.cuda.is_current_stream_capturing", lambda: streams.current in streams.recording
        )
        monkeypatch.setattr("harness.capture.writer._surroundings", dict)
        yield streams


def layer_on(streams: Streams, session: Session) -> Callable[..., Tensor]:
    """Return a captured layer that launches on the current stream, as a kernel does."""

    def cute_dsl_fused_moe(x: Tensor, w1_weight: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        streams.launch(lambda: out.copy_(x * w1_weight))
        return out

    found = _around(session, FUSED, cute_dsl_fused_moe, "flashinfer.cute_dsl_fused_moe")
    assert found is not None
    return found


def calls_in(folder: Path) -> list[Captured]:
    (process,) = read_capture(folder)
    return process.calls


def test_a_call_on_a_side_stream_is_stored_as_that_stream_leaves_it(streams: Streams, tmp_path: Path) -> None:
    """Its input comes from another stream that it was told to wait for; later work does not reach what was copied."""
    layer, x = layer_on(streams, Session(CaptureSettings(str(tmp_path)))), torch.zeros(4)
    streams.launch(lambda: x.fill_(3))
    with streams.on("later"):
        streams.launch(lambda: x.fill_(100))
    with streams.on("side"):
        streams.wait_for("main")
        out = layer(x, torch.tensor([2.0]))
        streams.launch(lambda: (x.fill_(50), out.fill_(50)))  # memory that is used again
        assert streams.left("later") == 1, "streams that the call has nothing to do with are not waited for"
        streams.run("side")
    (call,) = calls_in(tmp_path)
    assert call.inputs["x"].tolist() == [3.0] * 4
    assert call.outputs["result"].tolist() == [6.0] * 4
    assert call.changed == {}


def test_an_input_that_a_call_changes_on_a_side_stream_is_stored_again(
    streams: Streams, tmp_path: Path
) -> None:
    def cute_dsl_fused_moe(x: Tensor, w1_weight: Tensor) -> Tensor:
        streams.launch(lambda: x.mul_(w1_weight))
        return x

    layer = _around(
        Session(CaptureSettings(str(tmp_path))), FUSED, cute_dsl_fused_moe, "flashinfer.cute_dsl_fused_moe"
    )
    assert layer is not None
    with streams.on("side"):
        layer(torch.ones(4), torch.tensor([2.0]))
    (call,) = calls_in(tmp_path)
    assert (call.inputs["x"].tolist(), call.changed["x"].tolist()) == ([1.0] * 4, [2.0] * 4)


class Event:
    """DeepEP's EventOverlap of work on its communication stream."""

    def __init__(self, streams: Streams) -> None:
        self.event, self._streams = object(), streams

    def current_stream_wait(self) -> None:
        """Let the current stream wait for it."""
        self._streams.wait_for("communication")


@pytest.mark.parametrize("hooked", [False, True])
def test_what_arrives_on_a_librarys_own_stream_is_waited_for(
    streams: Streams, tmp_path: Path, *, hooked: bool
) -> None:
    """By its event, or, with a receive hook, once that has run, on the stream that it was called on."""

    def low_latency_dispatch(self: Any, x: Tensor) -> Any:
        received = torch.zeros_like(x)
        if hooked:
            return received, None, None, None, lambda: streams.launch(lambda: received.copy_(x))
        with streams.on("communication"):
            streams.launch(lambda: received.copy_(x))
        return received, None, None, Event(streams), None

    dispatch = _around(
        Session(CaptureSettings(str(tmp_path))),
        DISPATCH,
        low_latency_dispatch,
        "deep_ep.Buffer.low_latency_dispatch",
    )
    assert dispatch is not None
    *_, hook = dispatch(None, torch.full((4,), 7.0))
    if hooked:
        assert not list(tmp_path.glob("*/call-*")), "nothing has arrived"
        streams.recording = {"recorded"}
        with streams.on("recorded"):
            hook()
        assert streams.left("recorded") == 1, "what is recorded may not be waited for"
        with streams.on("receive"):
            hook()
    (call,) = calls_in(tmp_path)
    assert call.outputs["recv"].tolist() == [7.0] * 4


def test_a_side_stream_that_a_graph_records_is_left_out_with_the_reason(
    streams: Streams, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A stream that was forked in a graph's capture is recorded with it; the others' calls are captured."""
    layer = layer_on(streams, Session(CaptureSettings(str(tmp_path))))
    streams.recording = {"forked"}
    with streams.on("forked"):
        layer(torch.ones(4), torch.tensor([2.0]))
        assert streams.left("forked") == 1, "what is recorded may not be waited for"
    layer(torch.ones(4), torch.tensor([3.0]))
    (call,) = calls_in(tmp_path)
    assert call.outputs["result"].tolist() == [3.0] * 4
    assert capsys.readouterr().err.count("calls inside a CUDA graph's capture are not captured") == 1
