"""The shape of a canary: what config.json of a Qwen3-MoE folder says, as one frozen value."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

MODEL = Path(__file__).parent / "model"
"""The folder of canary-256."""


@dataclass(frozen=True)
class CanaryConfig:
    """Sizes of a Qwen3-MoE model; names and meanings are those of its config.json."""

    vocab_size: int = 1024
    hidden_size: int = 256
    num_hidden_layers: int = 4
    num_attention_heads: int = 8
    num_key_value_heads: int = 2
    head_dim: int = 64
    num_experts: int = 8
    num_experts_per_tok: int = 2
    moe_intermediate_size: int = 256
    max_position_embeddings: int = 2048
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-6
    eos_token_id: int = 0

    def huggingface(self) -> dict[str, Any]:
        """Return the contents of config.json: what transformers, vLLM and SGLang load as Qwen3MoeForCausalLM."""
        return {
            "architectures": ["Qwen3MoeForCausalLM"],
            "model_type": "qwen3_moe",
            "torch_dtype": "bfloat16",
            **asdict(self),
            "pad_token_id": self.eos_token_id,
            "bos_token_id": None,
            "intermediate_size": self.moe_intermediate_size * self.num_experts_per_tok,
            "hidden_act": "silu",
            "attention_bias": False,
            "attention_dropout": 0.0,
            "decoder_sparse_step": 1,
            "initializer_range": 0.02,
            "mlp_only_layers": [],
            "norm_topk_prob": True,
            "output_router_logits": False,
            "rope_scaling": None,
            "router_aux_loss_coef": 0.01,
            "sliding_window": None,
            "tie_word_embeddings": True,
            "use_cache": True,
            "use_sliding_window": False,
        }


def read_config(folder: Path) -> CanaryConfig:
    """Return the configuration of a model folder.

    Raises:
        ValueError: another architecture, or an option that this forward pass does not implement.
    """
    raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    known = CanaryConfig().huggingface()
    fields = CanaryConfig.__dataclass_fields__
    for name in (
        "architectures", "hidden_act", "attention_bias", "decoder_sparse_step", "mlp_only_layers", "norm_topk_prob",
        "tie_word_embeddings", "rope_scaling", "use_sliding_window",
    ):  # fmt: skip
        if raw.get(name, known[name]) != known[name]:
            raise ValueError(
                f"{folder}/config.json: {name} must be {known[name]!r} here, got {raw[name]!r}; only canaries are read"
            )
    return CanaryConfig(**{name: raw[name] for name in fields if name in raw})


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON object with sorted keys, as every file of a model folder has them."""
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")
