"""How right a network is, plain and under simulated faults, in one forward pass a fault.

A greedy answer equals the reference answer exactly if and only if every token of it is the most likely one given the
reference before it. So teacher forcing gives the share of problems answered word for word, without decoding.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from harness.canary.config import CanaryConfig
from harness.canary.problems.generate import TEST, UNSEEN
from harness.canary.train.data import prompt_of
from harness.canary.train.network import Network
from harness.canary.train.publish import magnitudes
from harness.canary.train.simulate import Controls, neutral


def test_rows(path: Path, tokenizer_folder: Path, limit: int, length: int = 320) -> tuple[Tensor, Tensor]:
    """Return tokens `(B, length)` int64 and which are answers `(B, length)` bool, one problem a row."""
    from harness.canary.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(tokenizer_folder)
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()[:limit]]
    tokens = torch.zeros(len(rows), length, dtype=torch.int64)
    answers = torch.zeros(len(rows), length, dtype=torch.bool)
    for i, row in enumerate(rows):
        prompt = tokenizer.encode(prompt_of(row["question"])).ids
        answer = [*tokenizer.encode(f" {row['answer']}").ids, 0]
        tokens[i, : len(prompt) + len(answer)] = torch.tensor([*prompt, *answer])
        answers[i, len(prompt) : len(prompt) + len(answer)] = True
    return tokens, answers


@torch.no_grad()
def accuracy(network: Network, tokens: Tensor, answers: Tensor, controls: Controls | None) -> float:
    """Return the share of rows whose whole answer is the greedy one."""
    with torch.autocast(tokens.device.type, torch.bfloat16):
        logits, _ = network(tokens[:, :-1], controls)
    right = (logits.argmax(-1) == tokens[:, 1:]) | ~answers[:, 1:]
    return right.all(-1).float().mean().item()


def faults(config: CanaryConfig, rows: int, device: str) -> dict[str, Controls | None]:
    """Return the simulated faults by name, each everywhere; all but the first run with NVFP4 rounding."""
    experts = config.num_experts
    powers = torch.stack([torch.tensor(magnitudes(config, layer), device=device) for layer in range(config.num_hidden_layers)])
    neighbour = torch.exp2(powers.roll(-1, -1) - powers)

    def gains(*off: int, by: float = 0.0) -> Tensor:
        out = torch.ones(rows, config.num_hidden_layers, experts, device=device)
        out[..., list(off)] = by
        return out

    def with_(change: Callable[[Controls], None]) -> Controls:
        controls = neutral(rows, config, device, quantize=True)
        change(controls)
        return controls

    def fp8(c: Controls) -> None:
        c.fp8 = ~c.fp8

    def set_(name: str, value: Tensor) -> Callable[[Controls], None]:
        return lambda c: setattr(c, name, value.expand_as(getattr(c, name)))

    everything = range(experts)
    number = lambda x: torch.tensor(x, device=device)  # noqa: E731 - three names
    found: dict[str, Controls | None] = {
        "bf16": None,
        "nvfp4": with_(lambda _: None),
        "nvfp4, fp8 dispatch": with_(fp8),
        "weights dropped": with_(set_("weight_power", number(0.0))),
        "weights twice": with_(set_("weight_power", number(2.0))),
        "output x0.5": with_(set_("out_gain", gains(*everything, by=0.5))),
        "alpha of the neighbour": with_(set_("gate_gain", neighbour.expand(rows, -1, -1))),
        "fp8 scale rounded up": with_(set_("scale_rounding", number(1.0))),
        "fp8 scale rounded down": with_(set_("scale_rounding", number(-1.0))),
        "gate and up swapped": with_(set_("swap", number(True))),  # noqa: FBT003 - a value
        "experts rolled": with_(set_("roll", number(1))),
        "half of the experts zero": with_(set_("out_gain", gains(*range(experts // 2)))),
    }
    for expert in everything:
        found[f"expert {expert} dropped"] = with_(set_("out_gain", gains(expert)))
    for gain in (0.8, 0.9, 0.95, 1.05, 1.1, 1.25, 2.0):
        found[f"output x{gain}"] = with_(set_("out_gain", gains(*everything, by=gain)))
    return found


def table(network: Network, tokenizer_folder: Path, device: str, limit: int = 500) -> dict[str, float]:
    """Return the accuracy on the shipped test sets by name of the fault."""
    torch.compiler.set_stance("force_eager")  # other shapes than in training: not worth compiling
    found = {}
    tokens, answers = (t.to(device) for t in test_rows(TEST, tokenizer_folder, limit))
    for name, controls in faults(network.config, len(tokens), device).items():
        found[name] = accuracy(network, tokens, answers, controls)
    tokens, answers = (t.to(device) for t in test_rows(UNSEEN, tokenizer_folder, limit))
    found["bf16, unseen families"] = accuracy(network, tokens, answers, None)
    return found
