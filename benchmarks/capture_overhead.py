"""What the taps of `harness.capture` cost a running engine while nothing is captured: docs/capture.md shows the figures.

    python benchmarks/capture_overhead.py --candidate humming-masked --device cuda
    python benchmarks/capture_overhead.py --candidate eager --rounds 40

An engine's step is a decode step of the canary for some requests, its experts through the candidate and everything else on
the same device: the forward pass and the choice of the next tokens. Each round times one step in each state, in an order
that is drawn, so that what drifts does so in all of them; what is printed of a state is the median of its steps with the
quartiles, and the median of the ratios of each step to that of the same round without taps, with its 95 % interval.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

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


def states(folder: str) -> dict[str, Callable[[], None]]:
    """Install the capture, and return what puts each state in place."""
    from harness.capture.hook import install_taps
    from harness.capture.session import Session
    from harness.capture.settings import CaptureSettings

    session = Session(CaptureSettings(folder, skip=1 << 40))
    install_taps(session)
    assert isinstance(session.resting, partial)
    taps = session.resting.args[1]

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
        SAMPLING: partial(with_taps, idle=False),
        USED_UP: without_taps,  # as `session.resting` leaves it
        COPIES: partial(with_taps, idle=True),
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
        ways = states(folder)
        seconds = timed(step, ways, options.rounds)
        assert not any(Path(folder).rglob("call-*"))
        ways[SAMPLING]()
        assert step() == expected
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


if __name__ == "__main__":
    main()
