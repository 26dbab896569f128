"""The canary as an NVFP4 checkpoint in ModelOpt's layout, for engines and for loaders under test."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from harness.canary.config import MODEL, read_config, write_json
from harness.canary.nvfp4_weights import is_modelopt, layer_prefix, quantize_layer, read_calibration
from harness.canary.widen import widened
from harness.verdict import UsageError


def quantization(layers: int) -> dict[str, Any]:
    """Return the `quantization` entry of hf_quant_config.json: NVFP4 in blocks of 16, experts only."""
    kept = [f"model.layers.{i}.{module}" for i in range(layers) for module in ("self_attn*", "mlp.gate")]
    return {
        "quant_algo": "NVFP4",
        "kv_cache_quant_algo": None,
        "group_size": 16,
        "exclude_modules": ["lm_head", *kept],
    }


def export_modelopt(target: Path, source: Path | None = None, hidden: int | None = None) -> None:
    """Write the NVFP4 checkpoint of a canary; the same source gives the same bytes.

    Args:
        target: folder to write into; made where it is not there.
        source: BF16 model folder with calibrated input scales; canary-256 by default.
        hidden: hidden size of the checkpoint, a power of two times the model's: it computes the same.

    Raises:
        UsageError: the source is an NVFP4 checkpoint already, or another hidden size.
    """
    from safetensors.torch import load_file, save_file

    source = MODEL if source is None else source
    if is_modelopt(source):
        raise UsageError(f"{source} is an NVFP4 checkpoint already: export takes the BF16 folder")
    config = read_config(source)
    tensors = load_file(source / "model.safetensors")
    amax = read_calibration(source)
    if hidden is not None:
        config, tensors = widened(config, tensors, hidden)
    found = {name: tensor for name, tensor in tensors.items() if ".mlp.experts." not in name}
    for i in range(config.num_hidden_layers):
        layer = quantize_layer(tensors, config, i, amax[i])
        found |= {layer_prefix(i) + name: tensor for name, tensor in layer.items()}
    target.mkdir(parents=True, exist_ok=True)
    save_file(dict(sorted(found.items())), target / "model.safetensors", metadata={"format": "pt"})
    entry = quantization(config.num_hidden_layers)
    write_json(
        target / "hf_quant_config.json",
        {"producer": {"name": "modelopt", "version": "fp4-moe-harness"}, "quantization": entry},
    )
    in_config = {
        "quant_method": "modelopt",
        "quant_algo": "NVFP4",
        "ignore": entry["exclude_modules"],
        "group_size": 16,
        "kv_cache_scheme": None,
    }
    write_json(target / "config.json", config.huggingface() | {"quantization_config": in_config})
    for name in ("generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(source / name, target / name)
