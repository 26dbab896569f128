"""Stand-ins for FlashInfer and its compiler, and short ways to make cases and results."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.candidates.support import supported
from harness.compile.case import make_case
from harness.compile.matrix import Entry
from harness.compile.packages import Packages
from harness.records.parts.compile import CompileResult
from harness.records.record import load_record

FAKE = Path(__file__).parent / "fake_packages"
PACKAGES = Packages({"flashinfer-python": "9.9.0", "nvidia-cutlass-dsl": "9.8.0"}, "digest")


@pytest.fixture(scope="session")
def cubin():
    spec = importlib.util.spec_from_file_location("elf", FAKE / "elf.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.cubin


@pytest.fixture
def case():
    def make(arch="sm_100a", **options):
        return make_case("masked_gemm", arch, **{"l": 2, "m": 128, "n": 256, "k": 512, **options})

    return make


@pytest.fixture
def entry(case):
    def make(*, guard=False, **options):
        return Entry(case(**options), "test", guard)

    return make


@pytest.fixture
def compiled():
    def make(**changes):
        usual = {
            "seconds": 1.2, "cpu_seconds": 1.0, "effort": 300.0, "measured": 1, "registers": 50, "spill_bytes": 0,
            "shared_bytes": 226_304, "threads": 192, "code_bytes": 20_000, "ptx_lines": 2000, "ptx_digest": "ab",
            "features": {"mbarrier": 40},
        }  # fmt: skip
        return CompileResult("compiled", **{**usual, **changes})

    return make


@pytest.fixture(scope="session")
def packages():
    return PACKAGES


@pytest.fixture
def find():
    return lambda: (supported(), PACKAGES)


@pytest.fixture(scope="session")
def fake_environment(tmp_path_factory):
    """An environment whose Python finds the stand-ins first, with their distributions' metadata."""
    metadata = tmp_path_factory.mktemp("metadata")
    for name, version in (("flashinfer-python", "9.9.0"), ("nvidia-cutlass-dsl", "9.8.0")):
        folder = metadata / f"{name.replace('-', '_')}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("FAKE_")}
    path = os.pathsep.join([str(FAKE), str(metadata)])
    return {**inherited, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "GIT_DIR": os.devnull}


@pytest.fixture
def harness_compile(fake_environment, tmp_path):
    """Run `harness compile` in a process, with the stand-ins, and return the process and the record it wrote."""

    def run(*arguments, **variables):
        done = subprocess.run(
            [sys.executable, "-m", "harness.cli", "compile", "--out", str(tmp_path / "out"),
             "--cache", str(tmp_path / "cache"), "--jobs", "1", *arguments],
            env={**fake_environment, **variables}, capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
        record = load_record(tmp_path / "out") if (tmp_path / "out" / "record.json").exists() else None
        return done, record

    return run
