"""Without an engine its loader does not run, and says what would be enough."""

from __future__ import annotations

import importlib.util

import pytest

from harness.candidates import load_candidate


@pytest.mark.parametrize("engine", ["sglang", "vllm"])
def test_a_missing_engine_is_no_support_and_its_files_are_enough(
    engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == engine else real(name, *a)
    )
    support = load_candidate(f"{engine}-loader").support()
    assert not support
    assert f"run: pip install --no-deps {engine} (docs/ci-for-{engine}.md" in support.reason
