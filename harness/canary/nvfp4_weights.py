"""NVFP4 tensors of a canary's experts in ModelOpt's layout, quantized from its BF16 weights or read from a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from harness.canary.config import CanaryConfig
from reference.e2m1 import pack_e2m1
from reference.loading import tensor_name
from reference.nvfp4 import global_scale_enc, quantize_nvfp4

CALIBRATION = "input_amax.json"
Amax = list[dict[str, list[float]]]
"""Per layer, largest magnitude of each expert's input under "gate_up" and of its intermediate under "down"."""


def read_calibration(folder: Path) -> Amax:
    """Return the calibrated magnitudes of a model folder.

    Raises:
        FileNotFoundError: the folder has none; `python -m harness.canary.train.calibrate FOLDER` writes it.
    """
    found: Amax = json.loads((folder / CALIBRATION).read_text(encoding="utf-8"))["layers"]
    return found


def layer_prefix(layer: int) -> str:
    """Return what the names of a layer's expert tensors begin with in a checkpoint."""
    return f"model.layers.{layer}.mlp."


def quantize_layer(
    tensors: Mapping[str, Tensor], config: CanaryConfig, layer: int, amax: dict[str, list[float]]
) -> dict[str, Tensor]:
    """Return one layer's experts as ModelOpt tensors, named as reference.loading reads them.

    gate and up share one weight_scale_2: masked_moe takes one w1_alpha per expert. `weight_scale_2` and `input_scale` are
    amax / (448 * 6), reciprocals of the encode scales.

    Args:
        tensors: the BF16 checkpoint.
        config: sizes.
        layer: which.
        amax: of the layer's inputs, see `Amax`.
    """
    found: dict[str, Tensor] = {}
    for expert in range(config.num_experts):
        weights = {
            p: tensors[f"{layer_prefix(layer)}experts.{expert}.{p}_proj.weight"]
            for p in ("gate", "up", "down")
        }
        first = torch.stack([weights[p].abs().amax() for p in ("gate", "up")]).amax()
        for projection, weight in weights.items():
            enc = global_scale_enc(weight.abs().amax() if projection == "down" else first)
            quantized = quantize_nvfp4(weight, enc)
            kind = "down" if projection == "down" else "gate_up"
            input_enc = global_scale_enc(torch.tensor(amax[kind][expert]))
            for name, tensor in (
                ("weight", pack_e2m1(quantized.codes)),
                ("weight_scale", quantized.block_scale.view(torch.float8_e4m3fn)),
                ("weight_scale_2", enc.reciprocal()),
                ("input_scale", input_enc.reciprocal()),
            ):
                found[tensor_name(expert, projection, name)] = tensor
    return found


def is_modelopt(folder: Path) -> bool:
    """Return whether a folder holds an NVFP4 checkpoint, such as `harness canary export` writes."""
    return (folder / "hf_quant_config.json").is_file()


def layers_of(folder: Path, tensors: Mapping[str, Tensor], config: CanaryConfig) -> list[dict[str, Tensor]]:
    """Return the NVFP4 experts of all layers: read where the folder holds them, quantized where it is BF16."""
    layers = range(config.num_hidden_layers)
    if is_modelopt(folder):
        return [
            {
                name.removeprefix(layer_prefix(i)): tensor
                for name, tensor in tensors.items()
                if name.startswith(f"{layer_prefix(i)}experts.")
            }
            for i in layers
        ]
    calibration = read_calibration(folder)
    return [quantize_layer(tensors, config, i, calibration[i]) for i in layers]
