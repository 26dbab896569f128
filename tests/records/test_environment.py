"""What the record says of the machine, and that a machine without a GPU is not asked for one by importing torch."""

from __future__ import annotations

import subprocess
import sys

import pytest

from harness.records import environment
from harness.records.environment import describe_environment, has_gpu_driver


def test_without_a_driver_torch_is_described_and_not_imported() -> None:
    code = """
import sys
from harness.records import environment
environment.has_gpu_driver = lambda: False
found = environment.describe_environment()
assert "torch" not in sys.modules
import torch
assert (found.gpus, found.cuda, found.driver) == ([], torch.version.cuda or "", "")
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_with_a_driver_torch_names_the_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: f"GPU {i}")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (10, 0))
    monkeypatch.setattr(
        environment, "_run", lambda command: "580.1\n580.1" if "nvidia-smi" in command else ""
    )
    found = describe_environment()
    assert found.gpus == ["GPU 0 (sm_100)", "GPU 1 (sm_100)"]
    assert found.driver == "580.1"


def test_where_torch_finds_a_gpu_there_is_a_driver() -> None:
    import torch

    assert has_gpu_driver() or not torch.cuda.is_available()
