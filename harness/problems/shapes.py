"""Shapes of real models, by name or from a Hugging Face config.json. Imports nothing heavy."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from harness.verdict import UsageError, unknown_name


@dataclass(frozen=True)
class ModelShape:
    """The MoE layer of a model, as one rank of expert parallelism sees it.

    Attributes:
        name: where it comes from.
        hidden: width of the tokens.
        inter: width of one expert's intermediate.
        experts: experts of the whole layer.
        topk: experts per token.
        ep: ranks that share the experts.
    """

    name: str
    hidden: int
    inter: int
    experts: int
    topk: int
    ep: int = 1

    @property
    def local_experts(self) -> int:
        """Experts on one rank."""
        return self.experts // self.ep


# From the models' published config.json files: hidden_size, moe_intermediate_size, routed experts, experts per token.
MODELS = {
    "deepseek-r1": ModelShape("deepseek-r1", 7168, 2048, 256, 8),
    "deepseek-v3": ModelShape("deepseek-v3", 7168, 2048, 256, 8),
    "kimi-k2": ModelShape("kimi-k2", 7168, 2048, 384, 8),
    "qwen3-235b": ModelShape("qwen3-235b", 4096, 1536, 128, 8),
    "qwen3-30b": ModelShape("qwen3-30b", 2048, 768, 128, 8),
    "qwen3-coder-480b": ModelShape("qwen3-coder-480b", 6144, 2560, 160, 8),
    "qwen3-next-80b": ModelShape("qwen3-next-80b", 2048, 512, 512, 10),
    "gpt-oss-120b": ModelShape("gpt-oss-120b", 2880, 2880, 128, 4),
    "gpt-oss-20b": ModelShape("gpt-oss-20b", 2880, 2880, 32, 4),
}
_KEYS = {
    "hidden": ("hidden_size",),
    "inter": ("moe_intermediate_size", "expert_intermediate_size", "intermediate_size"),
    "experts": ("n_routed_experts", "num_experts", "num_local_experts", "moe_num_experts"),
    "topk": ("num_experts_per_tok", "experts_per_token", "top_k", "moe_topk", "moe_k"),
}


def find_shape(name: str, ep: int) -> ModelShape:
    """Return a model's shape for one of `ep` ranks.

    Args:
        name: a key of MODELS, or the path of a config.json.
        ep: ranks of expert parallelism.

    Raises:
        UsageError: unknown name, unreadable file, a missing key, or experts that do not divide by ep.
    """
    if name in MODELS:
        shape = MODELS[name]
    elif name.endswith(".json"):
        shape = _from_config(Path(name))
    else:
        raise unknown_name("shapes", name, MODELS, also="the path of a config.json")
    if ep < 1 or shape.experts % ep:
        raise UsageError(f"--ep must divide the {shape.experts} experts of {shape.name}, got {ep}")
    return ModelShape(shape.name, shape.hidden, shape.inter, shape.experts, shape.topk, ep)


def _from_config(path: Path) -> ModelShape:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read as a config.json ({error})") from error
    config = config if isinstance(config, dict) else {}
    text = config.get("text_config")  # of a model that sees or hears too
    config = text if isinstance(text, dict) else config
    found = {}
    for field, keys in _KEYS.items():
        value = next((config[key] for key in keys if type(config.get(key)) is int), None)
        if value is None:
            raise UsageError(
                f"{path}: has none of the keys {', '.join(keys)}: not the config of a mixture of experts"
            )
        if value < 1 or (field in {"hidden", "inter"} and value % 16):
            wanted = "a positive multiple of 16" if field in {"hidden", "inter"} else "positive"
            raise UsageError(f"{path}: {field} ({' or '.join(keys)}) must be {wanted}, got {value}")
        found[field] = value
    return ModelShape(str(path), found["hidden"], found["inter"], found["experts"], found["topk"])
