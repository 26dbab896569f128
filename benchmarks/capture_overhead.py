"""What a tap costs a call: bare, idle, while sampling (a layer that is not its turn, and a stage inside of it), in microseconds.

The functions do nothing, so that only the tap is measured; the smallest of several rounds counts, since others work on the
machine too.

    python benchmarks/capture_overhead.py [--calls 200000]
"""

from __future__ import annotations

import argparse
import sys
import time
import types
from collections.abc import Callable
from typing import Any

import torch

from harness.capture.hook import _tap
from harness.capture.session import Session
from harness.capture.settings import CaptureSettings

_ROUNDS = 7


def _package() -> types.ModuleType:
    """Return a module of FlashInfer's, of functions that do nothing."""
    module = types.ModuleType("flashinfer.bench")
    sys.modules[module.__name__] = module
    source = (
        "def scaled_fp4_grouped_quantize(a, mask, a_global_sf):\n    return a, mask\n"
        "def cute_dsl_fused_moe(x, w1_weight, w1_weight_sf=None, inner=None):\n"
        "    return x if inner is None else inner(x, None, None)\n"
    )
    exec(compile(source, "<bench>", "exec"), vars(module))  # noqa: S102 - the two functions above
    return module


def microseconds(call: Callable[[], Any], calls: int) -> float:
    """Return what one call takes, the least of several rounds."""
    best = float("inf")
    for _ in range(_ROUNDS):
        begun = time.process_time()
        for _ in range(calls):
            call()
        best = min(best, time.process_time() - begun)
    return best / calls * 1e6


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--calls", type=int, default=200_000, metavar="N")
    calls = parser.parse_args().calls
    module, x, w = _package(), torch.zeros(1), torch.zeros(1)
    bare, stage = module.cute_dsl_fused_moe, module.scaled_fp4_grouped_quantize
    session = Session(CaptureSettings("nowhere", every=1 << 60, skip=1 << 60))
    session.resting = lambda: None
    _tap(session, module)
    tapped, inner = module.cute_dsl_fused_moe, module.scaled_fp4_grouped_quantize

    def nested(layer: Any, inside: Any) -> float:
        return microseconds(lambda: layer(x, w, inner=inside), calls)

    plain, both = microseconds(lambda: bare(x, w), calls), nested(bare, stage)
    rows = [("sampling: a layer", microseconds(lambda: tapped(x, w), calls) - plain)]
    rows.append(("sampling: a stage inside of it", nested(tapped, inner) - both - rows[0][1]))
    session.idle = True
    rows.append(("idle", microseconds(lambda: tapped(x, w), calls) - plain))
    print(f"bare call {plain:.2f} us; more than that, Python {sys.version.split()[0]}:")
    for name, value in rows:
        print(f"  {name:<32}{value:6.2f} us")


if __name__ == "__main__":
    main()
