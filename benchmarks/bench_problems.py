"""How long the numbers of a problem take: tokens, weights, alphas and the activation's input, on the CPU and on a GPU.

python benchmarks/bench_problems.py
python benchmarks/bench_problems.py cuda                                  # the GPU only
python benchmarks/bench_problems.py cpu 32x1024x7168x2048:256*32:normal   # one problem: what stands before its seed

Version 1, made by torch's generator on the CPU and moved, stands beside version 2 in the same process. Of small problems
the least of several times is printed, of large ones the first.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import torch

from harness.problems.problem import parse_problem
from harness.problems.tensors import ProblemTensors
from harness.problems.weights import make_weights

PROBLEMS = {
    "quick, smallest": "1x1x16x16:1:normal",
    "quick": "4x127x240x144:19,126,1,126:normal",
    "quick, largest": "8x200x512x384:200*8:spread",
    "standard": "16x300x1024x512:300*16:normal",
    "standard, grid": "16x300x1024x512:300*16:grid",
    "8 experts": "8x128x2048x1024:128*8:normal",
    "DeepSeek-R1, EP 8": "32x1024x7168x2048:256*32:normal",
    "DeepSeek-R1, EP 8, spread": "32x1024x7168x2048:256*32:spread",
}
LARGE = 1 << 28  # weights: no second time
PATIENCE = 1 << 29  # weights: version 1 takes minutes


def seconds(run: Callable[[], object], device: str, times: int) -> float:
    """Return the shortest of several times of a call, until the device is done."""
    least = float("inf")
    for _ in range(times):
        _wait(device)
        start = time.perf_counter()
        run()
        _wait(device)
        least = min(least, time.perf_counter() - start)
    return least


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def make(text: str, device: str) -> dict[str, float]:
    """Return the seconds of the parts of a problem, nothing being cached."""
    make_weights.cache_clear()
    made: list[ProblemTensors] = []
    parts = {"x": lambda: made.append(ProblemTensors(parse_problem(text), device))}
    parts |= {
        name: lambda name=name: getattr(made[0], name)
        for name in ("w1", "w2", "w1_alpha", "w2_alpha", "gate_up")
    }
    return {name: seconds(part, device, 1) for name, part in parts.items()}


def main() -> None:
    """Print a line for each problem, version and device."""
    devices = [word for word in sys.argv[1:] if word in {"cpu", "cuda"}]
    given = {word: word for word in sys.argv[1:] if word not in {"cpu", "cuda"}}
    devices = devices or ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    for device in devices:
        make("v2:" + PROBLEMS["quick"] + ":0", device)  # the tables
        make("v2:" + PROBLEMS["standard, grid"] + ":0", device)
        where = torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} threads"
        print(f"{device}, {where}, torch {torch.__version__}")
        for name, problem in (given or PROBLEMS).items():
            p = parse_problem(f"{problem}:0")
            elements = 3 * p.experts * p.hidden * p.inter
            for version in ("", "v2:"):
                if not version and elements > PATIENCE:
                    continue
                runs = [make(f"{version}{problem}:1", device) for _ in range(1 if elements > LARGE else 5)]
                best = min(runs, key=lambda parts: sum(parts.values()))
                each = ", ".join(f"{part} {taken * 1e3:.2f}" for part, taken in best.items())
                print(
                    f"  {name:27}{version or 'v1:':4}{sum(best.values()) * 1e3:10.2f} ms: {each}", flush=True
                )


if __name__ == "__main__":
    main()
