"""Which GPU is whose, told without a GPU: by the environment of a process, and within one that may have used CUDA before."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from harness.running import gpus
from harness.running.gpus import chosen_gpus, on_own_gpu, visible_gpus
from harness.verdict import UsageError


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder of devices in the place of /dev, with four GPUs and what else lies there."""
    for name in ("nvidia0", "nvidia1", "nvidia2", "nvidia3", "nvidiactl", "nvidia-uvm", "null"):
        (tmp_path / name).touch()
    monkeypatch.setattr(gpus, "DEVICES", tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return tmp_path


def test_all_gpus_of_a_machine_or_those_that_this_process_sees(machine: Path, monkeypatch) -> None:
    assert visible_gpus() == chosen_gpus("all") == ["0", "1", "2", "3"]
    assert chosen_gpus("2") == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,MIG-7")
    assert chosen_gpus("all") == ["3", "MIG-7"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert visible_gpus() == []


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ("5", "5 asked for, 4 here"), ("0", "expected all or a number"), ("-1", "expected all or"), ("two", "expected all or"),
        ("\u0662", "expected all or"),
    ],
)  # fmt: skip
def test_gpus_that_are_not_there_are_refused(machine: Path, asked: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        chosen_gpus(asked)


def test_without_a_gpu_the_way_without_is_named(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(UsageError, match="all asked for, none here; --workers N shares"):
        chosen_gpus("all")


@pytest.mark.parametrize(
    ("worker", "device", "used"),
    [
        ("gw0", "cuda", [0]),
        ("gw5", "cuda", [1]),
        ("gw5", "cpu", []),
        ("", "cuda", []),
        ("master", "cuda", []),
    ],
)
def test_a_worker_of_xdist_judges_on_its_own_gpu(
    worker: str, device: str, used: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    entered: list[int] = []

    class Device:
        def __init__(self, number: int) -> None:
            self.number = number

        def __enter__(self) -> None:
            entered.append(self.number)

        def __exit__(self, *_: object) -> None:
            entered.append(-1)

    monkeypatch.setenv("PYTEST_XDIST_WORKER", worker)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "device", Device)
    with on_own_gpu(device):
        assert entered == used
    assert entered == [*used, *[-1] * len(used)]
