"""The wheel with each extra, in an environment of its own: what its row of docs/install.md promises runs there.

Everything but torch comes in the newest version that pyproject.toml allows: what a user gets today. Minutes each, with the
network of package installation: run by make test-install and make test-all.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from harness.records.record import RunRecord, load_record

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[1]
DATA = ROOT / "tests/gsm8k/data"
NO_SERVER = "http://127.0.0.1:9/v1"
ON_CPU = "harness check --candidate flashinfer-cutedsl-cpu --rule GEMM --problem 1x4x64x64:2:normal:1"


@dataclass
class Done:
    """What a command said; its output folder is `out` below the environment's folder."""

    code: int
    out: str
    err: str
    folder: Path

    @property
    def said(self) -> str:
        return f"exit {self.code}\n{self.out}\n{self.err}"

    @property
    def record(self) -> RunRecord:
        return load_record(self.folder)


@dataclass
class Environment:
    """A virtual environment, and the folder that its commands run in."""

    folder: Path
    variables: dict[str, str]

    def __call__(self, command: str) -> Done:
        """Run a command as a document shows it."""
        program, *arguments = shlex.split(command)
        path = self.folder / "environment/bin" / program
        done = subprocess.run(
            [path, *arguments], cwd=self.folder, env=self.variables, capture_output=True, text=True,
            check=False, timeout=1800,
        )  # fmt: skip
        return Done(done.returncode, done.stdout, done.stderr, self.folder / "out")

    def must(self, command: str) -> Done:
        """Run a command that has to succeed."""
        done = self(command)
        assert done.code == 0, f"{command}: {done.said}"
        return done


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from a copy of the sources: a build folder of an earlier one would come along."""
    copy, target = tmp_path_factory.mktemp("sources"), tmp_path_factory.mktemp("wheel")
    named = ("pyproject.toml", "README.md", "LICENSE", "MANIFEST.in")
    for path in (*map(ROOT.joinpath, named), *ROOT.glob("*.py")):
        shutil.copy(path, copy)
    for name in ("harness", "reference", "reports", "suites"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    pip = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--wheel-dir",
        str(target),
        str(copy),
    ]
    subprocess.run(pip, check=True)
    (built,) = target.glob("*.whl")
    return built


@pytest.fixture
def installed(wheel: Path, tmp_path: Path) -> Callable[..., object]:
    """Return a context manager: an environment with the wheel and an extra, gone when the block ends."""
    (torch,) = re.findall(r"^torch==\S+$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    constraints = tmp_path / "constraints.txt"
    constraints.write_text(torch + "\n")

    @contextmanager
    def environment(extra: str = "") -> Iterator[Environment]:
        hidden = {"PYTHONPATH", "PYTHONWARNINGS", "PYTEST_ADDOPTS"}
        variables = {name: value for name, value in os.environ.items() if name not in hidden}
        variables |= {"OMP_NUM_THREADS": "1", "PIP_CONSTRAINT": str(constraints), "PIP_QUIET": "1"}
        found = Environment(tmp_path, variables)
        shutil.copytree(ROOT / "examples", tmp_path / "examples")
        subprocess.run([sys.executable, "-m", "venv", tmp_path / "environment"], check=True)
        try:
            found.must("pip install torch")
            found.must(f"pip install '{wheel}{extra and f'[{extra}]'}'")
            yield found
        finally:
            shutil.rmtree(tmp_path / "environment")

    return environment


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """A served model that is right: the fault server without a fault, in the interpreter of the tests."""
    config = tmp_path / "server.json"
    config.write_text(json.dumps({"data": str(DATA / "questions.jsonl"), "max_seconds": 3600}))
    script = ROOT / "tests/gsm8k/fault_server.py"
    with subprocess.Popen([sys.executable, script, config], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{json.loads(process.stdout.readline())['port']}/v1"
        process.kill()


def hint(done: Done) -> str:
    """Return the command that a message tells to run."""
    return re.findall(r"run: (pip install '\S+')$", done.err.strip(), re.MULTILINE)[-1]


def test_base_judges_kernels_and_says_how_to_get_the_rest(installed, server: str) -> None:
    with installed() as run:
        assert "pip install 'fp4-moe-harness[cutedsl]'" in run.must("harness doctor").out
        done = run.must("harness check --candidate examples.my_kernel_test:MyKernel --out out")
        assert done.record.verdict == "PASS"
        assert [skip.what for skip in done.record.skips if "canary" in skip.what] == ["canary"]
        assert hint(done) == "pip install 'fp4-moe-harness[canary]'"
        assert "Warning" not in done.err
        run.must("harness report out")
        # The example imports torch, which warns where numpy is absent; nothing of ours adds a warning to that one.
        run.must("pytest -W error -W 'ignore:Failed to initialize NumPy' examples/my_kernel_test.py")
        run.must("pytest --pyargs suites -k gemm")
        kept = ROOT / "tests/records/kept/gsm8k_pass.json"
        run.must(f"harness report '{kept}' --out drawn")
        assert run(f"{ON_CPU} --out out").code == 2

        asked = gsm8k(server)
        done = run(asked)
        assert (done.code, done.out) == (2, "")
        run.must(hint(done))
        assert run.must(asked).record.verdict == "PASS"


def gsm8k(url: str) -> str:
    files = f"--dataset '{DATA / 'questions.jsonl'}' --fewshot '{DATA / 'fewshot.jsonl'}'"
    return (
        f"harness gsm8k --base-url {url} {files} --retry-seconds 1 --min-accuracy 0.5 --out out --overwrite"
    )


def test_gsm8k_gates_a_served_model(installed, server: str) -> None:
    with installed("gsm8k") as run:
        done = run.must(gsm8k(server))
        assert (done.record.verdict, done.record.gsm8k_run.answered) == ("PASS", 12)
        run.must("harness report out")
        done = run(gsm8k(NO_SERVER).replace("--out out", "--out out/none"))
        assert done.code == 2
        assert "Traceback" not in done.err
        assert hint(run("harness canary run")) == "pip install 'fp4-moe-harness[canary]'"


def test_canary_runs_in_a_process_and_over_http(installed) -> None:
    with installed("canary") as run:
        assert (
            run.must("harness canary run --candidate eager --questions 64 --out out").record.verdict == "PASS"
        )
        check = "harness check --candidate eager --rule QUANT --problem 2x8x64x32:3,5:normal:1 --out out --overwrite"
        record = run.must(f"{check} --canary-questions 16").record
        assert [part.verdict for part in record.canary_part.runs] == ["PASS"]
        assert [part.verdict for part in record.canary_part.controls] == ["FAIL"]
        run.must("harness canary export checkpoint")


def test_cutedsl_brings_a_pair_of_versions_that_the_interpreted_candidate_knows(installed) -> None:
    with installed("cutedsl") as run:
        said = run.must("harness doctor").out.splitlines()
        (line,) = (line for line in said if line.startswith("flashinfer-cutedsl-cpu: "))
        assert line.startswith("flashinfer-cutedsl-cpu: runs here"), line
        assert run.must(f"{ON_CPU} --out out").record.verdict == "PASS"


def test_all_has_each_of_them(installed, server: str) -> None:
    with installed("all") as run:
        assert run.must(gsm8k(server)).record.verdict == "PASS"
        assert (
            run.must(
                "harness canary run --candidate eager --questions 64 --out out --overwrite"
            ).record.verdict
            == "PASS"
        )
        assert run.must(f"{ON_CPU} --out out --overwrite").record.verdict == "PASS"
