"""What this machine is: for the record and for `harness doctor`. Imports torch only where there may be a GPU to ask about."""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import os
import platform
import runpy
import subprocess
import sys
from pathlib import Path

from harness.records.record import Environment

PACKAGES = (
    "torch",
    "triton",
    "hypothesis",
    "pytest",
    "flashinfer-python",
    "nvidia-cutlass-dsl",
    "sglang",
    "vllm",
    "deep_ep",
    "nccl-extensions",
    "lm_eval",
    "aiohttp",
    "tenacity",
    "transformers",
    "ray",
)


def describe_environment(device: str = "cpu", *, devices: bool = True) -> Environment:
    """Return versions, devices and the state of the git checkout in the current directory.

    Args:
        device: device type that the run uses.
        devices: ask torch about GPUs, where there is a driver; without it torch is not imported.
    """
    packages = {}
    for name in PACKAGES:
        try:
            packages[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    environment = Environment(
        python=platform.python_version(),
        platform=platform.platform(),
        cpu_count=len(os.sched_getaffinity(0)),
        device=device,
        packages=packages,
    )
    environment.git_commit, environment.git_dirty = _git()
    if devices and "torch" in packages:
        _add_devices(environment)
    return environment


def _add_devices(environment: Environment) -> None:
    if "torch" not in sys.modules and not has_gpu_driver():
        environment.cuda = _cuda_of_torch()  # importing torch takes longer than most runs on a CPU
        return
    import torch

    environment.cuda = torch.version.cuda or ""
    if not torch.cuda.is_available():
        return
    environment.gpus = [
        f"{torch.cuda.get_device_name(i)} (sm_{''.join(map(str, torch.cuda.get_device_capability(i)))})"
        for i in range(torch.cuda.device_count())
    ]
    driver = _run(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"])
    environment.driver = driver.splitlines()[0] if driver else ""


def has_gpu_driver() -> bool:
    """Return whether CUDA's or ROCm's driver is here; without one, torch finds no GPU."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return Path("/dev/kfd").exists()
    return True


def _cuda_of_torch() -> str:
    """Return `torch.version.cuda` without importing torch."""
    found = importlib.util.find_spec("torch")
    if found is None or found.origin is None:
        return ""
    version = runpy.run_path(str(Path(found.origin).with_name("version.py")))
    return str(version.get("cuda") or "")


def _git() -> tuple[str, bool | None]:
    commit = _run(["git", "rev-parse", "HEAD"])
    if not commit:
        return "", None
    return commit, bool(_run(["git", "status", "--porcelain", "--untracked-files=no"]))


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(  # noqa: S603 - fixed commands
            command, capture_output=True, text=True, timeout=10, cwd=Path.cwd(), check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
