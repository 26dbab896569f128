"""The wheel in an environment beside pytest's other plugins: their sessions pass, and ours run from an empty folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PLUGINS = ("pytest-profiling", "pytest-randomly", "pytest-cov", "pytest-timeout", "pytest-benchmark")
FOREIGN = "from harness import double\n\ndef test_double():\n    assert double(2) == 4\n"

pytestmark = pytest.mark.long  # a wheel is built, plugins are downloaded


def environment() -> dict[str, str]:
    """What a user's shell has: nothing that points into this checkout."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PYTEST"))}
    return kept | {"OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel and the plugins, over the packages of this one."""
    folder = tmp_path_factory.mktemp("installed")

    def pip(*words: str) -> None:
        subprocess.run(
            [sys.executable, "-m", "pip", *words, "--quiet"], cwd=ROOT, env=environment(), check=True
        )

    source = folder / "source"  # setuptools leaves its build folder beside what it builds
    for name in ("harness", "reference", "reports", "suites"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("fp4_moe_harness_plugin.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip("wheel", "--no-deps", "--wheel-dir", str(folder), str(source))
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")], check=True)
    python = folder / "venv/bin/python"
    (wheel,) = folder.glob("*.whl")
    pip("--python", str(python), "install", "--no-deps", str(wheel))
    pip("--python", str(python), "install", *PLUGINS, "-c", "constraints.txt")
    (packages,) = (folder / "venv/lib").glob("python*/site-packages")
    (packages / "zz_below.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "venv/bin"


@pytest.fixture
def run(installed: Path, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a program of that environment in an empty folder."""

    def call(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(installed / words[0]), *words[1:]],
            cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False,
        )  # fmt: skip

    return call


def write(folder: Path, **files: str) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.mark.parametrize(
    "options",
    [
        ("--profile", "-W", "error"),
        ("--cov=.", "--timeout=60", "-p", "randomly", "-n", "2"),
        ("--benchmark-disable", "-n", "2", "-W", "error"),
    ],
)
def test_a_session_with_other_plugins_and_an_own_harness_passes(run, tmp_path: Path, options) -> None:
    write(
        tmp_path, **{"harness/__init__.py": "def double(x):\n    return 2 * x\n", "test_double.py": FOREIGN}
    )
    done = run("python", "-m", "pytest", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout
    assert f"`harness` is shadowed by {tmp_path}" in done.stdout


@pytest.mark.parametrize(
    ("own", "options"),
    [
        ("", ("--candidate",)),
        ("suites/test_own.py", ("-n", "2", "-p", "no:benchmark", "--moe-candidate")),
        ("suites/__init__.py", ("--moe-rule-seconds=1000", "--moe-candidate")),
    ],
)
def test_the_suites_run_from_a_folder_with_a_candidate(run, tmp_path: Path, own: str, options) -> None:
    write(tmp_path, **{"my/kernels.py": "from harness.candidates.eager import Eager as Moe\n"})
    if own:
        write(tmp_path, **{own: "def test_own(): assert 0\n"})
    done = run("pytest", "--pyargs", "suites", "-k", "gemm", *options, "my.kernels:Moe")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "PASS: 1 results on my.kernels:Moe" in done.stdout


def test_the_command_judges_in_a_folder_whose_packages_are_named_as_ours(run, tmp_path: Path) -> None:
    write(tmp_path, **{"my/kernels.py": "from harness.candidates.eager import Eager as Moe\n"})
    write(tmp_path, **{f"{name}/__init__.py": "" for name in ("harness", "reference", "reports", "suites")})
    done = run(
        "harness",
        "check",
        "--candidate",
        "my.kernels:Moe",
        "--problem",
        "1x4x32x32:2:normal:1",
        "--rule",
        "GEMM",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    doctor = run("harness", "doctor")
    assert f"harness: shadowed by {tmp_path / 'harness/__init__.py'}" in doctor.stdout
