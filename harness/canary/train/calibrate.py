"""Input scales of a canary's experts: the largest magnitudes seen while it reads training problems.

python -m harness.canary.train.calibrate FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from harness.canary.config import read_config, write_json
from harness.canary.moe_layer import PlainExperts
from harness.canary.nvfp4_weights import CALIBRATION, Amax
from harness.canary.train.data import prompt_of

if TYPE_CHECKING:
    from harness.canary.load import Canary

PROBLEMS, SEED = 512, 77


class _Watched:
    """Experts that remember the largest magnitudes that go into their two products."""

    def __init__(self, experts: PlainExperts) -> None:
        self.experts = experts
        count = len(experts.gate_up)
        self.gate_up, self.down = [0.0] * count, [0.0] * count

    def __call__(self, x: Tensor, logits: Tensor) -> Tensor:
        ids, _ = self.experts.route(logits)
        for expert in range(len(self.gate_up)):
            rows = x[(ids == expert).any(-1)]
            if len(rows):
                gate, up = (rows @ self.experts.gate_up[expert].T).chunk(2, dim=-1)
                hidden = torch.nn.functional.silu(gate) * up
                self.gate_up[expert] = max(self.gate_up[expert], rows.abs().amax().item())
                self.down[expert] = max(self.down[expert], hidden.abs().amax().item())
        return self.experts(x, logits)


def calibrate(canary: Canary, texts: list[str]) -> Amax:
    """Return the largest magnitudes over texts, rounded up to bfloat16-like steps of 1/64 so that they are stable.

    Args:
        canary: with plain experts.
        texts: questions with their answers.
    """
    from harness.canary.forward import batch_of

    model = canary.model
    watched = [_Watched(experts) for experts in model.experts if isinstance(experts, PlainExperts)]
    plain, model.experts = model.experts, list(watched)
    try:
        for start in range(0, len(texts), 32):
            sequences = [canary.tokenizer.encode(text).ids for text in texts[start : start + 32]]
            model.forward(batch_of(sequences, [0] * len(sequences)), model.new_cache())
    finally:
        model.experts = plain
    return [
        {"gate_up": [_round_up(v) for v in w.gate_up], "down": [_round_up(v) for v in w.down]}
        for w in watched
    ]


def _round_up(x: float) -> float:
    """Return the next larger number of 7 significant bits: free of the machine's last bits, 1.6 % of headroom at most."""
    mantissa, exponent = torch.frexp(torch.tensor(max(x, 2.0**-20), dtype=torch.float64))
    return float(torch.ldexp(torch.ceil(mantissa * 128) / 128, exponent))


def write_calibration(folder: Path) -> None:
    """Calibrate a BF16 model folder on problems that the training could have drawn."""
    from harness.canary.load import load_canary
    from harness.canary.problems import training_problems

    read_config(folder)
    texts = [f"{prompt_of(p.question)} {p.answer}" for p in training_problems(SEED, PROBLEMS)]
    layers = calibrate(load_canary(folder), texts)
    write_json(folder / CALIBRATION, {"problems": PROBLEMS, "seed": SEED, "layers": layers})


if __name__ == "__main__":
    write_calibration(Path(sys.argv[1]))
