"""How right a network is, plain and under simulated faults, in one forward pass a fault.

A greedy answer equals the reference answer exactly if and only if every token of it is the most likely one given the
reference before it. So teacher forcing gives the share of problems answered word for word, without decoding.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from harness.canary.config import CanaryConfig
from harness.canary.problems.generate import TEST, UNSEEN
from harness.canary.train.data import prompt_of
from harness.canary.train.network import Network
from harness.canary.train.publish import magnitudes
from harness.canary.train.simulate import Controls, neutral, to_device

_LENGTH = 320  # tokens of the longest problem with its answer, and some more


def read_rows(path: Path, tokenizer_folder: Path, limit: int) -> tuple[Tensor, Tensor]:
    """Return tokens `(B, 320)` int64 and which are answers `(B, 320)` bool, one problem a row."""
    from harness.canary.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(tokenizer_folder)
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()[:limit]]
    tokens = torch.zeros(len(rows), _LENGTH, dtype=torch.int64)
    answers = torch.zeros(len(rows), _LENGTH, dtype=torch.bool)
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
    return float(right.all(-1).float().mean())


def faults(config: CanaryConfig) -> dict[str, dict[str, Tensor]]:
    """Return the simulated faults: name to the controls that it sets, each for one row, all layers."""
    layers, experts = config.num_hidden_layers, config.num_experts
    powers = torch.tensor([magnitudes(config, layer) for layer in range(layers)])
    one = torch.ones(())

    def output(gain: float, *of: int) -> dict[str, Tensor]:
        gains = torch.ones(experts)
        gains[list(of or range(experts))] = gain
        return {"out_gain": gains}

    found = {
        "none": {},
        "fp8 dispatch": {"fp8": one.bool()},
        "weights dropped": {"weight_power": one * 0},
        "weights twice": {"weight_power": one * 2},
        "alpha of the neighbour": {"gate_gain": torch.exp2(powers.roll(-1, -1) - powers)},
        "fp8 scale rounded up": {"scale_rounding": one},
        "fp8 scale rounded down": {"scale_rounding": -one},
        "gate and up swapped": {"swap": one.bool()},
        "experts rolled": {"roll": one.long()},
        "half of the experts zero": output(0.0, *range(experts // 2)),
    }
    found |= {f"expert {expert} dropped": output(0.0, expert) for expert in range(experts)}
    return found | {f"output x{gain}": output(gain) for gain in (0.5, 0.8, 0.9, 0.95, 1.05, 1.1, 1.25, 2.0)}


def table(network: Network, tokenizer_folder: Path, device: str, limit: int = 500) -> dict[str, float]:
    """Return the accuracy on the shipped test sets by name of the fault."""
    torch.compiler.set_stance("force_eager")  # other shapes than in training: not worth compiling
    tokens, answers = (t.to(device) for t in read_rows(TEST, tokenizer_folder, limit))
    found = {"bf16": accuracy(network, tokens, answers, None)}
    for name, changes in faults(network.config).items():
        controls = neutral(len(tokens), network.config, "cpu", quantize=True)
        for field, value in changes.items():
            setattr(controls, field, value.expand_as(getattr(controls, field)))
        found[f"nvfp4, {name}"] = accuracy(network, tokens, answers, to_device(controls, device))
    tokens, answers = (t.to(device) for t in read_rows(UNSEEN, tokenizer_folder, limit))
    found["bf16, unseen families"] = accuracy(network, tokens, answers, None)
    return found
