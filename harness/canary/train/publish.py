"""From a trained network to a model folder that transformers, vLLM and SGLang load.

Experts get magnitudes that differ by powers of two: up times 2^p, down times 2^-p. The function is the same to the bit, in
bfloat16 and in NVFP4, but each expert's alpha and input scale are far from its neighbour's, so that one given to the wrong
expert shows.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from harness.canary.config import CanaryConfig, write_json

_POWERS = (
    0.0,
    3.0,
    0.0,
    4.0,
    1.0,
    5.0,
    1.0,
    4.0,
)  # neighbours, the last and the first too, differ by 8 or more


def magnitudes(config: CanaryConfig, layer: int) -> list[float]:
    """Return the binary order of magnitude of each expert's up projection in a layer."""
    return [_POWERS[(expert + 2 * layer) % len(_POWERS)] for expert in range(config.num_experts)]


def huggingface_tensors(state: dict[str, Tensor], config: CanaryConfig) -> dict[str, Tensor]:
    """Return the checkpoint's tensors, bfloat16, under Qwen3-MoE's names, of a network's state."""
    found = {"model.embed_tokens.weight": state["embedding"], "model.norm.weight": state["norm"]}
    names = {
        "input_norm": "input_layernorm.weight",
        "post_norm": "post_attention_layernorm.weight",
        "q_norm": "self_attn.q_norm.weight",
        "k_norm": "self_attn.k_norm.weight",
        "q": "self_attn.q_proj.weight",
        "k": "self_attn.k_proj.weight",
        "v": "self_attn.v_proj.weight",
        "o": "self_attn.o_proj.weight",
        "router": "mlp.gate.weight",
    }
    for layer in range(config.num_hidden_layers):
        prefix = f"model.layers.{layer}."
        for ours, theirs in names.items():
            found[prefix + theirs] = state[f"layers.{layer}.{ours}"]
        for expert, power in enumerate(magnitudes(config, layer)):
            gate, up = state[f"layers.{layer}.w13"][expert].chunk(2)
            down = state[f"layers.{layer}.w2"][expert]
            experts = f"{prefix}mlp.experts.{expert}."
            found[f"{experts}gate_proj.weight"] = gate
            found[f"{experts}up_proj.weight"] = up * 2**power
            found[f"{experts}down_proj.weight"] = down * 2**-power
    return {name: tensor.detach().cpu().bfloat16().contiguous() for name, tensor in found.items()}


def write_folder(state: dict[str, Tensor], config: CanaryConfig, tokenizer_json: Path, folder: Path) -> None:
    """Write config.json, generation_config.json, tokenizer files and model.safetensors; the same bytes every time."""
    from safetensors.torch import save_file

    from harness.canary.tokenizer import tokenizer_config

    folder.mkdir(parents=True, exist_ok=True)
    end = config.eos_token_id
    write_json(folder / "config.json", config.huggingface())
    write_json(
        folder / "generation_config.json", {"do_sample": False, "eos_token_id": end, "pad_token_id": end}
    )
    write_json(folder / "tokenizer_config.json", tokenizer_config(config.max_position_embeddings))
    (folder / "tokenizer.json").write_bytes(tokenizer_json.read_bytes())
    save_file(huggingface_tensors(state, config), folder / "model.safetensors", metadata={"format": "pt"})
