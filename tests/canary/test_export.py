"""The NVFP4 checkpoint, read back without the project's own readers: the file's bytes, numpy and ml_dtypes."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch

from harness.canary import load_canary
from harness.canary.config import MODEL, read_config
from harness.canary.export import export_modelopt
from harness.canary.nvfp4_weights import layers_of, read_calibration
from harness.verdict import UsageError
from tests.canary.conftest import STOP

DTYPES = {"U8": np.uint8, "F8_E4M3": ml_dtypes.float8_e4m3fn, "F32": np.float32, "BF16": ml_dtypes.bfloat16}
LAYERS, EXPERTS, HIDDEN, INTER = 4, 8, 256, 256


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """The format in six lines: a length, a JSON header with offsets, the bytes."""
    raw = path.read_bytes()
    (size,) = struct.unpack("<Q", raw[:8])
    found = {}
    for name, entry in json.loads(raw[8 : 8 + size]).items():
        if name != "__metadata__":
            start, end = (8 + size + offset for offset in entry["data_offsets"])
            found[name] = np.frombuffer(raw[start:end], DTYPES[entry["dtype"]]).reshape(entry["shape"])
    return found


def dequantize(tensors: dict[str, np.ndarray], name: str) -> np.ndarray:
    """codes x block scale x weight_scale_2, in float64; the even element in the low nibble."""
    packed = tensors[f"{name}.weight"]
    codes = np.stack((packed & 0xF, packed >> 4), axis=-1).reshape(packed.shape[0], -1)
    table = np.arange(16, dtype=np.uint8).view(ml_dtypes.float4_e2m1fn).astype(np.float64)
    scale = np.repeat(tensors[f"{name}.weight_scale"].astype(np.float64), 16, axis=1)
    return table[codes] * scale * float(tensors[f"{name}.weight_scale_2"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    target = tmp_path_factory.mktemp("export") / "nvfp4"
    export_modelopt(target)
    return target


@pytest.fixture(scope="module")
def tensors(folder) -> dict[str, np.ndarray]:
    return read_safetensors(folder / "model.safetensors")


@pytest.fixture(scope="module")
def original() -> dict[str, np.ndarray]:
    return read_safetensors(MODEL / "model.safetensors")


def _experts():
    for layer in range(LAYERS):
        for expert in range(EXPERTS):
            yield layer, expert, f"model.layers.{layer}.mlp.experts.{expert}."


def test_names_dtypes_and_shapes_are_modelopts(tensors, original) -> None:
    expected = {name for name in original if ".experts." not in name}
    for _, _, prefix in _experts():
        for projection, (rows, columns) in (
            ("gate_proj", (INTER, HIDDEN)),
            ("up_proj", (INTER, HIDDEN)),
            ("down_proj", (HIDDEN, INTER)),
        ):
            for kind, dtype, shape in (
                ("weight", np.uint8, (rows, columns // 2)),
                ("weight_scale", ml_dtypes.float8_e4m3fn, (rows, columns // 16)),
                ("weight_scale_2", np.float32, ()),
                ("input_scale", np.float32, ()),
            ):
                found = tensors[f"{prefix}{projection}.{kind}"]
                assert (found.dtype, found.shape) == (dtype, shape)
                expected.add(f"{prefix}{projection}.{kind}")
    assert set(tensors) == expected


def test_what_is_not_quantized_is_as_it_was(tensors, original) -> None:
    for name, tensor in original.items():
        if ".experts." not in name:
            assert tensors[name].tobytes() == tensor.tobytes()


def test_it_dequantizes_to_what_was_quantized(tensors, original) -> None:
    """No element is further off than half of E2M1's widest gap (1 of 6) and a block scale rounded by 1/16 allow."""
    for _, _, prefix in _experts():
        for projection in ("gate_proj", "up_proj", "down_proj"):
            weight = original[f"{prefix}{projection}.weight"].astype(np.float64)
            found = dequantize(tensors, f"{prefix}{projection}")
            amax = np.abs(weight).reshape(len(weight), -1, 16).max(-1)
            off = np.abs(found - weight).reshape(len(weight), -1, 16).max(-1)
            assert (off <= amax * (1 / 6) * (1 + 1 / 16) + 1e-12).all()
            assert np.linalg.norm(found - weight) < 0.12 * np.linalg.norm(weight)


def test_scales_are_reciprocals_of_the_encode_scales(tensors, original) -> None:
    calibration = read_calibration(MODEL)
    for layer, expert, prefix in _experts():
        amax = {
            p: np.abs(original[f"{prefix}{p}_proj.weight"].astype(np.float64)).max()
            for p in ("gate", "up", "down")
        }
        first = max(amax["gate"], amax["up"])
        for projection, largest, kind in (
            ("gate", first, "gate_up"), ("up", first, "gate_up"), ("down", amax["down"], "down"),
        ):  # fmt: skip
            assert float(tensors[f"{prefix}{projection}_proj.weight_scale_2"]) == pytest.approx(
                largest / 2688, rel=3e-7
            )
            input_scale = float(tensors[f"{prefix}{projection}_proj.input_scale"])
            assert input_scale == pytest.approx(calibration[layer][kind][expert] / 2688, rel=3e-7)


def test_the_configuration_says_what_is_quantized(folder) -> None:
    said = json.loads((folder / "hf_quant_config.json").read_text())["quantization"]
    assert (said["quant_algo"], said["group_size"], said["kv_cache_quant_algo"]) == ("NVFP4", 16, None)
    assert "lm_head" in said["exclude_modules"]
    assert not any("experts" in module for module in said["exclude_modules"])
    config = json.loads((folder / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "modelopt"
    assert read_config(folder) == read_config(MODEL)


def test_the_same_bytes_every_time(folder, tmp_path) -> None:
    export_modelopt(tmp_path)
    for file in folder.iterdir():
        assert (tmp_path / file.name).read_bytes() == file.read_bytes(), file.name


def test_the_exported_folder_runs_as_the_original_does(folder, prompts) -> None:
    from safetensors.torch import load_file

    config = read_config(folder)
    exported = layers_of(folder, load_file(folder / "model.safetensors"), config)
    quantized = layers_of(MODEL, load_file(MODEL / "model.safetensors"), config)
    for one, other in zip(exported, quantized, strict=True):
        assert one.keys() == other.keys()
        assert all(
            torch.equal(one[n].view(torch.uint8), other[n].view(torch.uint8)) for n in one if one[n].ndim
        )
    assert load_canary(folder, "eager").answer(prompts[:1], stop=STOP) == load_canary(None, "eager").answer(
        prompts[:1], stop=STOP
    )


def test_an_exported_folder_is_not_exported_again(folder, tmp_path) -> None:
    with pytest.raises(UsageError, match="NVFP4 checkpoint already"):
        export_modelopt(tmp_path, folder)
    with pytest.raises(UsageError, match="name a candidate"):
        load_canary(folder)


def test_a_wider_checkpoint_computes_the_same(tmp_path, prompts) -> None:
    """Twice the hidden state side by side: the codes are the old ones, scales and sums differ by powers of two."""
    export_modelopt(tmp_path / "wide", hidden=512)
    assert read_config(tmp_path / "wide").hidden_size == 512
    wide = load_canary(tmp_path / "wide", candidate="eager")
    one = prompts[:1]
    assert wide.answer(one, stop=STOP) == load_canary(candidate="eager").answer(one, stop=STOP)


def test_a_hidden_size_that_is_no_power_of_two_times_the_models_is_refused(tmp_path) -> None:
    with pytest.raises(UsageError, match="256 times a power of two, got 768"):
        export_modelopt(tmp_path, hidden=768)
