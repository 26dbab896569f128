"""Shapes of real models: by name, from the config.json of several families, and clear words where neither fits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness.problems.problem import Problem
from harness.problems.shapes import MODELS, find_shape
from harness.verdict import UsageError

# The keys that matter here of published config.json files, as each family spells them.
CONFIGS: dict[str, tuple[dict[str, Any], tuple[int, int, int, int]]] = {
    "deepseek_v3": (
        {"hidden_size": 7168, "intermediate_size": 18432, "moe_intermediate_size": 2048, "n_routed_experts": 256,
         "n_shared_experts": 1, "num_experts_per_tok": 8},
        (7168, 2048, 256, 8),
    ),
    "qwen3_moe": (
        {"hidden_size": 2048, "intermediate_size": 6144, "moe_intermediate_size": 768, "num_experts": 128,
         "num_experts_per_tok": 8},
        (2048, 768, 128, 8),
    ),
    "mixtral": (
        {"hidden_size": 4096, "intermediate_size": 14336, "num_local_experts": 8, "num_experts_per_tok": 2},
        (4096, 14336, 8, 2),
    ),
    "gpt_oss": (
        {"hidden_size": 2880, "intermediate_size": 2880, "num_local_experts": 128, "experts_per_token": 4,
         "num_experts_per_tok": 4},
        (2880, 2880, 128, 4),
    ),
    "llama4": (
        {"model_type": "llama4", "text_config": {"hidden_size": 5120, "intermediate_size": 8192,
         "intermediate_size_mlp": 16384, "num_local_experts": 128, "num_experts_per_tok": 1}, "vision_config": {}},
        (5120, 8192, 128, 1),
    ),
    "ernie4_5_moe": (
        {"hidden_size": 2560, "intermediate_size": 12288, "moe_intermediate_size": 1536, "moe_num_experts": 64,
         "moe_k": 6},
        (2560, 1536, 64, 6),
    ),
    "glm4_moe": (
        {"hidden_size": 4096, "intermediate_size": 10944, "moe_intermediate_size": 1408, "n_routed_experts": 128,
         "num_experts_per_tok": 8, "text_config": None},
        (4096, 1408, 128, 8),
    ),
}  # fmt: skip


@pytest.mark.parametrize("family", CONFIGS)
def test_a_config_json_gives_the_shape_of_its_moe_layer(tmp_path: Path, family: str) -> None:
    config, (hidden, inter, experts, topk) = CONFIGS[family]
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    shape = find_shape(str(path), 1)
    assert (shape.hidden, shape.inter, shape.experts, shape.topk) == (hidden, inter, experts, topk)


@pytest.mark.parametrize("name", MODELS)
def test_every_named_shape_makes_a_problem(name: str) -> None:
    shape = find_shape(name, 8)
    assert shape.local_experts * 8 == shape.experts
    Problem(shape.local_experts, 1, shape.hidden, shape.inter, (1,) * shape.local_experts)


MOE = CONFIGS["mixtral"][0]


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("{", "cannot be read as a config.json"),
        ("[1]", "has none of the keys hidden_size"),
        (json.dumps({"hidden_size": 4096, "intermediate_size": 14336}), "has none of the keys n_routed_experts"),
        (json.dumps(MOE | {"hidden_size": "4096"}), "has none of the keys hidden_size"),
        (json.dumps(MOE | {"hidden_size": True}), "has none of the keys hidden_size"),
        (json.dumps(MOE | {"hidden_size": 100}), "hidden (hidden_size) must be a positive multiple of 16, got 100"),
        (json.dumps(MOE | {"hidden_size": 0}), "must be a positive multiple of 16, got 0"),
        (json.dumps(MOE | {"num_local_experts": 0}), "must be positive, got 0"),
        (json.dumps({"text_config": 3}), "has none of the keys hidden_size"),
    ],
)  # fmt: skip
def test_a_config_that_is_not_a_mixture_of_experts_says_what_is_missing(
    tmp_path: Path, config: str, words: str
) -> None:
    path = tmp_path / "config.json"
    path.write_text(config)
    with pytest.raises(UsageError) as caught:
        find_shape(str(path), 1)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "ep", "words"),
    [
        ("deepseek-r2", 1, "did you mean 'deepseek-r1'"),
        ("nowhere/config.json", 1, "cannot be read as a config.json"),
        ("deepseek-r1", 7, "--ep must divide the 256 experts of deepseek-r1, got 7"),
        ("deepseek-r1", 0, "--ep must divide"),
        ("deepseek-r1", -8, "--ep must divide"),
        ("deepseek-r1", 512, "--ep must divide"),
    ],
)
def test_bad_shapes_are_bad_usage(name: str, ep: int, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        find_shape(name, ep)
