"""A canary of a larger hidden size that computes the same: for kernels that take few sizes, as DeepEP's do from 2,048 on."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from harness.canary.config import CanaryConfig
from harness.verdict import UsageError

_READ_HIDDEN = ("q_proj", "k_proj", "v_proj", "mlp.gate", "gate_proj", "up_proj")
_WRITE_HIDDEN = ("embed_tokens", "o_proj", "down_proj", "layernorm", "model.norm")


def widened(
    config: CanaryConfig, tensors: dict[str, Tensor], hidden: int
) -> tuple[CanaryConfig, dict[str, Tensor]]:
    """Return a model whose hidden state is that of another one, several times side by side.

    What writes the hidden state writes it several times; what reads it has its weights divided by as many, a power of two,
    and repeated. Norms see the same mean square, blocks of 16 are the old ones: all is exact but for the order of sums.

    Args:
        config: of the model.
        tensors: its BF16 tensors under their Hugging Face names, input and output embedding the same.
        hidden: the new hidden size.

    Raises:
        UsageError: it is no power of two times the old one.
    """
    times, rest = divmod(hidden, config.hidden_size)
    if rest or times < 1 or times & (times - 1):
        raise UsageError(f"the hidden size must be {config.hidden_size} times a power of two, got {hidden}")
    found = {}
    for name, tensor in tensors.items():
        part = name.removesuffix(".weight")
        if part.endswith(_READ_HIDDEN):
            found[name] = tensor.repeat(1, times) / times
        elif part.endswith(_WRITE_HIDDEN):
            axis = 1 if part.endswith("embed_tokens") else 0
            found[name] = tensor.repeat(*[times if i == axis else 1 for i in range(tensor.ndim)])
        else:
            found[name] = tensor
    # The output embedding is the input embedding: what it reads is divided instead.
    found["model.norm.weight"] = found["model.norm.weight"] / times
    return replace(config, hidden_size=hidden), found
