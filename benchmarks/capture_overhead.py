"""What the taps of `harness.capture` cost a running engine while nothing is captured: docs/capture.md shows the figures.

    python benchmarks/capture_overhead.py --candidate humming-masked --device cuda
    python benchmarks/capture_overhead.py --candidate eager --rounds 40

An engine's step is a decode step of the canary for some requests, its experts through the candidate and everything else on
the same device: the forward pass and the choice of the next tokens. Each round times one step in each state, in an order
that is drawn, so that what drifts does so in all of them; what is printed of a state is the median of its steps with the
quartiles, and the median of the ratios of each step to that of the same round without taps, with its 95 % interval. On a host
that others use those ratios wander by a percent ("budget used up" puts the functions back, and should be 0). So the time that
passes inside the taps is measured as well: from before a tap to the function that it calls, and back.
"""

from __future__ import annotations

import argparse
import functools
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from harness.capture.hook import _around, install_taps
from harness.capture.session import Session
from harness.capture.settings import CaptureSettings
from harness.capture.targets import TARGETS

NONE, SAMPLING, USED_UP, COPIES = "no taps", "sampling, not its turn", "budget used up", "used up, taps left"
_WARM_UP, _POSITION = 5, 200


def engine(candidate: str, hidden: int, device: str, requests: int) -> Callable[[], list[int]]:
    """Return what runs one decode step and returns the next token of each request."""
    from safetensors.torch import load_file

    from harness.canary.config import MODEL, read_config
    from harness.canary.forward import CanaryModel, batch_of
    from harness.canary.moe_layer import CandidateExperts
    from harness.canary.nvfp4_weights import layers_of
    from harness.canary.widen import widened
    from harness.faults.named import load_named

    config, tensors = read_config(MODEL), load_file(MODEL / "model.safetensors")
    if hidden:
        config, tensors = widened(config, tensors, hidden)
    loaded = load_named(candidate)
    experts: Any = [
        CandidateExperts(loaded, layer, config, ranks=1, transport="bf16", shard="experts")
        for layer in layers_of(MODEL, tensors, config)
    ]
    torch.set_default_device(device)
    model = CanaryModel(config, {n: t.to(device) for n, t in tensors.items()}, experts, torch.bfloat16)
    cache = model.new_cache()
    batch = batch_of([[7 + r] for r in range(requests)], [_POSITION] * requests)
    return lambda: model.forward(batch, cache).argmax(-1).tolist()


def installed(folder: str) -> tuple[Session, list[Any]]:
    """Install the capture, which skips more calls than there are, and return it with its taps."""
    session = Session(CaptureSettings(folder, skip=1 << 40))
    install_taps(session)
    assert isinstance(session.resting, functools.partial)
    return session, session.resting.args[1]


def states(session: Session, taps: list[Any]) -> dict[str, Callable[[], None]]:
    """Return what puts each state in place."""

    def with_taps(*, idle: bool) -> None:
        session.idle = idle
        for tap in taps:
            setattr(tap.holder, tap.name, tap.tapped)

    def without_taps() -> None:
        session.idle = True
        for tap in taps:
            setattr(tap.holder, tap.name, tap.function)

    return {
        NONE: without_taps,
        SAMPLING: functools.partial(with_taps, idle=False),
        USED_UP: without_taps,  # as `session.resting` leaves it
        COPIES: functools.partial(with_taps, idle=True),
    }


def timed(
    step: Callable[[], list[int]], ways: dict[str, Callable[[], None]], rounds: int
) -> dict[str, list[float]]:
    """Return the seconds of a step in each state, round by round."""
    rng = random.Random(0)
    found: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(-_WARM_UP, rounds):
        for name in rng.sample(list(ways), len(ways)):
            ways[name]()
            started = time.perf_counter()
            step()
            if number >= 0:
                found[name].append(time.perf_counter() - started)
    return found


class Clock:
    """The time that passes between `outside` and `inside` of a function, both ways."""

    def __init__(self) -> None:
        self.seconds, self.calls = 0.0, 0
        self._at: list[float] = []

    def outside(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return what stands before whatever is measured."""

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            self._at.append(time.perf_counter())
            result = function(*args, **kwargs)
            self.seconds += time.perf_counter() - self._at.pop()
            return result

        return call

    def inside(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return what stands behind it."""

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            self.seconds += time.perf_counter() - self._at.pop()
            result = function(*args, **kwargs)
            self._at.append(time.perf_counter())
            return result

        return call


def in_taps(step: Callable[[], list[int]], session: Any, taps: list[Any], rounds: int) -> tuple[float, int]:
    """Return the seconds of a step that pass in the taps while it is not their turn, and how many calls of a step are tapped."""
    spent: dict[bool, list[float]] = {True: [], False: []}
    clock = Clock()
    session.idle = False
    for number in range(-_WARM_UP, rounds):
        for with_taps in (True, False):
            for tap in taps:
                function = clock.inside(tap.function)
                target = next(t for t in TARGETS if t.name.rpartition(".")[2] == tap.name)
                between = _around(session, target, function, tap.name) if with_taps else function
                setattr(tap.holder, tap.name, clock.outside(between or function))
            clock.seconds, clock.calls = 0.0, 0
            step()
            if number >= 0:
                spent[with_taps].append(clock.seconds)
    return statistics.median(spent[True]) - statistics.median(spent[False]), clock.calls


def interval(values: list[float]) -> tuple[float, float]:
    """Return the 95 % interval of a median by the order of the values."""
    ordered, half = sorted(values), 0.98 * len(values) ** 0.5
    low, high = int(len(values) / 2 - half), int(len(values) / 2 + half)
    return ordered[max(low, 0)], ordered[min(high, len(values) - 1)]


def main() -> None:
    """Time and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--candidate", default="eager")
    parser.add_argument("--hidden", type=int, default=0, help="a wider canary; 0 for the 256 of the model")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=300)
    options = parser.parse_args()
    step = engine(options.candidate, options.hidden, options.device, options.requests)
    expected = step()  # imports and compiles whatever is tapped
    with tempfile.TemporaryDirectory() as folder:
        session, taps = installed(folder)
        ways = states(session, taps)
        seconds = timed(step, ways, options.rounds)
        assert not any(Path(folder).rglob("call-*"))
        ways[SAMPLING]()
        assert step() == expected
        inside, calls = in_taps(step, session, taps, max(options.rounds // 4, 10))
    print(
        f"{options.candidate}, {options.requests} requests, hidden {options.hidden or 256}, {options.rounds} rounds"
    )
    for name, values in seconds.items():
        low, middle, high = (1e6 * s for s in statistics.quantiles(values, n=4))
        ratios = [100 * (a / b - 1) for a, b in zip(values, seconds[NONE], strict=True)]
        least, most = interval(ratios)
        print(
            f"  {name:24} {middle:9.1f} us (quartiles {low:.1f} to {high:.1f}), "
            f"{statistics.median(ratios):+.2f} % ({least:+.2f} to {most:+.2f})"
        )
    share = inside / statistics.median(seconds[NONE])
    print(
        f"  in the taps while it is not their turn: {1e6 * inside:.1f} us of a step, {calls} calls, {100 * share:.3f} %"
    )


if __name__ == "__main__":
    main()
