"""Published floors: each with its source and protocol, judging only a run of that protocol, always shown."""

from __future__ import annotations

import pytest

from harness.gsm8k.presets import find_preset, preset_of_model, presets
from harness.verdict import UsageError

FLOORS = {
    "deepseek-r1": 0.91, "deepseek-v4": 0.91, "glm-5": 0.94, "gpt-oss": 0.91, "kimi-k2.5": 0.90, "minimax-m2.5": 0.92,
    "qwen3.5": 0.94,
}  # fmt: skip


def test_the_table_is_the_published_one():
    assert {name: preset.floor for name, preset in presets().items()} == FLOORS
    for preset in presets().values():
        assert preset.source == "SemiAnalysisAI/InferenceX#1721"
        assert preset.runs >= 90


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("nvidia/DeepSeek-R1-0528-NVFP4-v2", "deepseek-r1"),
        ("deepseek-ai/DeepSeek-V4-Flash", "deepseek-v4"),
        ("zai-org/GLM-5-FP8", "glm-5"),
        ("zai-org/GLM-5.1", None),
        ("openai/gpt-oss-120b", "gpt-oss"),
        ("moonshotai/Kimi-K2.5", "kimi-k2.5"),
        ("Qwen/Qwen3.5-397B-A17B", "qwen3.5"),
        ("deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", None),
        ("deepseek-ai/DeepSeek-V3", None),
        ("meta-llama/Llama-3.1-8B", None),
    ],
)
def test_a_served_model_has_its_floor_by_its_name(model, name):
    found = preset_of_model(model)
    assert (found.name if found else None) == name


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(UsageError, match=r"unknown preset 'deepseekr1': did you mean 'deepseek-r1'\?"):
        find_preset("deepseekr1")


def test_only_the_published_protocol_is_the_same():
    preset = find_preset("glm-5")
    same = {**preset.setup, "task": "gsm8k"}
    assert preset.unlike(same) == []
    assert preset.note(same, judges=True).endswith("; it judges this run")
    assert preset.note(same, judges=False).endswith("; --preset glm-5 judges by it")
    for change, said in (
        ({"interface": "completions"}, "interface completions, not chat"),
        ({"answer budget": 1024}, "answer budget 1024, not 16384"),
        ({"generation temperature": None}, "generation temperature none, not 0.0"),
        ({"extra body": {"top_k": 1}}, "extra body {'top_k': 1}, not none"),
        ({"prompts": "0" * 64}, "prompts 00000000..., not 5669c63d..."),
    ):
        assert preset.unlike(same | change) == [said]
        assert f"shown only, this run's protocol differs: {said}" in preset.note(same | change, judges=True)
