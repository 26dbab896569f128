"""From a model folder and a candidate's name to a canary that answers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from harness.canary.config import MODEL, CanaryConfig, read_config
from harness.canary.forward import CanaryModel, MoeLayer
from harness.canary.generate import Engine
from harness.canary.moe_layer import CandidateExperts, PlainExperts
from harness.canary.nvfp4_weights import is_modelopt, layers_of
from harness.canary.tokenizer import load_tokenizer
from harness.extras import require
from harness.verdict import UsageError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

DEFAULT_TOKENS = 192


@dataclass
class Canary:
    """A loaded model with its tokenizer.

    Attributes:
        name: of the candidate that its experts run through, "bf16" for its own.
        model: the forward pass.
        tokenizer: of the folder.
    """

    name: str
    model: CanaryModel
    tokenizer: Tokenizer

    def engine(self, max_rows: int = 256) -> Engine:
        """Return a new engine, which decodes at most `max_rows` requests at once."""
        return Engine(self.model, self.tokenizer, max_rows)

    def answer(
        self, prompts: list[str], max_new_tokens: int = DEFAULT_TOKENS, stop: list[str] | None = None
    ) -> list[str]:
        """Return the greedy answers to prompts, in order, without what ended them."""
        engine = self.engine()
        numbers = [engine.add(prompt, max_new_tokens=max_new_tokens, stop=stop) for prompt in prompts]
        texts = dict.fromkeys(numbers, "")
        running = len(numbers)
        while running:
            for step in engine.step():
                texts[step.number] += step.text
                running -= step.finish_reason is not None
        return [texts[number] for number in numbers]


def load_canary(
    folder: Path | None = None,
    candidate: Any = "bf16",
    *,
    ranks: int = 1,
    transport: str = "bf16",
    shard: str = "experts",
    dtype: torch.dtype = torch.float32,
) -> Canary:
    """Load a canary whose experts run through a candidate.

    Args:
        folder: BF16 model folder or an exported NVFP4 one; canary-256 by default.
        candidate: "bf16" for the model's own experts, a candidate's name, faults included, or a candidate.
        ranks: simulated ranks.
        transport: of dispatch, "bf16", "fp8" or "nvfp4".
        shard: "experts" (each rank owns some) or "width" (each owns a slice of every one).
        dtype: of everything outside the experts, and of "bf16" experts (the weights are bfloat16 numbers either way).

    Raises:
        UsageError: no such candidate, one that cannot run here, or options that do not fit.
        MissingExtraError: the extra `canary` is not installed.
    """
    require("the canary", "canary")
    from safetensors.torch import load_file

    folder = MODEL if folder is None else Path(folder)
    try:
        config = read_config(folder)
        tensors = load_file(folder / "model.safetensors")
        tokenizer = load_tokenizer(folder)
    except FileNotFoundError as error:
        raise UsageError(f"{folder} is no model folder: {error.filename or error} is missing") from error
    if isinstance(candidate, str) and candidate == "bf16":
        if ranks != 1 or transport != "bf16" or is_modelopt(folder):
            raise UsageError(
                "bf16 runs the model's own experts: no ranks, no transport, no NVFP4 checkpoint; name a candidate"
            )
        experts: list[MoeLayer] = list(plain_experts(tensors, config, dtype))
        name = "bf16"
    else:
        experts, name = _candidate_experts(folder, tensors, config, candidate, ranks, transport, shard)
    return Canary(name, CanaryModel(config, tensors, experts, dtype), tokenizer)


def plain_experts(tensors: dict[str, Tensor], config: CanaryConfig, dtype: torch.dtype) -> list[PlainExperts]:
    """Return the BF16 experts of every layer."""
    found = []
    for layer in range(config.num_hidden_layers):
        weights = {
            p: torch.stack(
                [
                    tensors[f"model.layers.{layer}.mlp.experts.{e}.{p}_proj.weight"]
                    for e in range(config.num_experts)
                ]
            ).to(dtype)
            for p in ("gate", "up", "down")
        }
        gate_up = torch.cat((weights["gate"], weights["up"]), dim=1)
        found.append(PlainExperts(gate_up, weights["down"], config.num_experts_per_tok))
    return found


def _candidate_experts(
    folder: Path,
    tensors: dict[str, Tensor],
    config: CanaryConfig,
    candidate: Any,
    ranks: int,
    transport: str,
    shard: str,
) -> tuple[list[MoeLayer], str]:
    from harness.candidates import stages_of, support_of
    from harness.faults.named import load_named

    name = (
        candidate if isinstance(candidate, str) else str(getattr(candidate, "name", type(candidate).__name__))
    )
    found = load_named(candidate) if isinstance(candidate, str) else candidate
    support = support_of(found)
    if not support:
        raise UsageError(f"{name} cannot run here: {support.reason}")
    if "masked_moe" not in stages_of(found):
        raise UsageError(f"{name} has no stage masked_moe: the canary runs whole layers")
    experts: list[MoeLayer] = []
    for layer in layers_of(folder, tensors, config):
        try:
            experts.append(
                CandidateExperts(found, layer, config, ranks=ranks, transport=transport, shard=shard)
            )
        except ValueError as error:
            raise UsageError(f"{name}: {error}") from error
    return experts, name
