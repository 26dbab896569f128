"""Who may import whom, read from the source, and what importing loads."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
STANDARD = set(sys.stdlib_module_names)
OURS = {"reference", "harness", "suites", "reports", "tests", "benchmarks", "examples"}

# What each layer may import besides the standard library. The engines are imported inside the functions that use them.
ENGINES = {"flashinfer", "sglang", "vllm", "cutlass", "sgl_kernel"}
ALLOWED = {
    "reference": {"reference", "torch"},
    "harness": {
        "harness", "reference", "torch", "click", "hypothesis", "pytest", "packaging", "triton", "lm_eval",
        "datasets", "aiohttp", "tenacity", "safetensors", "tokenizers", "reports", *ENGINES,  # reports: see below
        "numpy", "cuda",  # numpy: the interpreter, see below; cuda: the type of a stream, for FlashInfer's calls
    },
    "reports": {"reports", "harness", "jinja2", "markupsafe"},
    "suites": {"suites", "harness", "reference", "pytest", "hypothesis"},
}  # fmt: skip
HEAVY = {"triton", "lm_eval", "transformers", "datasets", "pandas", *ENGINES}


def imports(path: Path) -> Iterator[tuple[str, int, bool]]:
    """Yield every module that a file imports: full name, line, and whether that happens when the file is imported."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inside = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for node in ast.walk(function)
    }
    typing_only = {
        id(node)
        for test in ast.walk(tree)
        if isinstance(test, ast.If) and "TYPE_CHECKING" in ast.unparse(test.test)
        for node in ast.walk(test)
    }
    for node in ast.walk(tree):
        at_once = id(node) not in inside | typing_only
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno, at_once
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, (
                f"{path}:{node.lineno}: imports are absolute, so that they can be read from here"
            )
            for alias in node.names:
                yield f"{node.module}.{alias.name}", node.lineno, at_once


def files(layer: str) -> list[Path]:
    found = sorted((ROOT / layer).rglob("*.py"))
    assert found, f"{layer} has no files: this test would pass for nothing"
    return found


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("layer", ALLOWED)
def test_each_layer_imports_only_what_it_may(layer: str) -> None:
    foreign = [
        f"{name(path)}:{line} imports {module}"
        for path in files(layer)
        for module, line, _ in imports(path)
        if module.split(".")[0] not in STANDARD | ALLOWED[layer]
    ]
    assert foreign == []


def test_only_commands_and_the_end_of_a_run_draw_reports_and_only_when_they_are_called() -> None:
    found = []
    for path in files("harness"):
        for module, line, at_once in imports(path):
            if module.split(".")[0] == "reports":
                drawn_here = path.parent.name == "cli" or name(path) == "harness/ci/outputs.py"
                assert drawn_here, f"{name(path)}:{line} imports {module}"
                assert not at_once, f"{name(path)}:{line} imports {module} before it is called"
                found.append(name(path))
    assert "harness/ci/outputs.py" in found


def test_reports_know_nothing_of_the_harness_but_its_record() -> None:
    allowed = ("harness.records.", "harness.verdict")
    foreign = [
        f"{name(path)}:{line} imports {module}"
        for path in files("reports")
        for module, line, _ in imports(path)
        if module.startswith("harness") and not module.startswith(allowed)
    ]
    assert foreign == []


def test_nobody_imports_the_tests() -> None:
    for layer in (*ALLOWED, "benchmarks", "examples"):
        for path in sorted((ROOT / layer).rglob("*.py")):
            for module, line, _ in imports(path):
                assert module.split(".")[0] != "tests", f"{name(path)}:{line} imports {module}"


def test_engines_are_imported_only_inside_the_function_that_needs_them() -> None:
    """An installation without them must be able to import every module, and to say why something does not run."""
    found = [
        f"{name(path)}:{line} imports {module}"
        for path in files("harness")
        for module, line, at_once in imports(path)
        if at_once and module.split(".")[0] in HEAVY and name(path) not in GPU_ONLY
    ]
    assert found == []


# Modules that are themselves imported inside a function, because what they define needs the package to be defined.
GPU_ONLY = {"harness/running/probe_rcp.py", "harness/gsm8k/lm.py"}


@pytest.mark.parametrize(
    "path",
    [
        "harness/__init__.py", "harness/pytest_plugin.py", "harness/verdict.py", "harness/candidates/support.py",
        "harness/problems/problem.py", "harness/problems/profiles.py", "harness/records/record.py", "harness/running/runner.py", "harness/running/session.py",
        "harness/running/tally.py",
        "harness/running/check.py", "harness/running/judge.py", "harness/running/worker.py", "harness/problems/shapes.py", "harness/problems/strategies.py",
        "harness/running/known_failures.py", "harness/records/environment.py", "harness/rules/__init__.py",
        "harness/candidates/__init__.py", "harness/candidates/eager.py", "harness/candidates/physical.py",
    ],
)  # fmt: skip
def test_what_the_parent_process_imports_has_no_torch_at_its_top(path: str) -> None:
    assert [
        line for module, line, at_once in imports(ROOT / path) if at_once and module.startswith("torch")
    ] == []


def test_every_public_name_of_the_harness_is_there_and_is_no_module() -> None:
    """A submodule of the same name would take the place of the object as soon as it is imported."""
    import types

    import harness

    for public in harness.__all__:
        assert not isinstance(getattr(harness, public), types.ModuleType), public
        assert not (ROOT / "harness" / f"{public}.py").exists(), public
    with pytest.raises(AttributeError, match="has no attribute 'confromance'"):
        _ = harness.confromance


# Who may use the interpreter: the candidate that it was written for, and the race hunt.
INTERPRETER_USERS = {
    "harness/candidates/cuda_quantizers.py", "harness/candidates/cutedsl_on_cpu.py",
    "harness/candidates/flashinfer_cutedsl_cpu.py", "harness/races/hunt.py", "harness/races/problem.py",
}  # fmt: skip


def test_only_the_candidate_and_the_race_hunt_use_the_interpreter() -> None:
    users = {
        name(path)
        for layer in ("reference", "harness", "reports", "suites")
        for path in files(layer)
        for module, _, _ in imports(path)
        if module.startswith("harness.interpreter") and "interpreter" not in path.parts
    }
    assert users == INTERPRETER_USERS


def test_only_the_interpreter_knows_numpy_and_it_knows_no_candidate() -> None:
    numpy = {
        name(path)
        for path in files("harness")
        for module, _, at_once in imports(path)
        if at_once and module.split(".")[0] == "numpy" and "interpreter" not in path.parts
    }
    assert numpy == set()
    known = {
        module.split(".")[0] for path in files("harness/interpreter") for module, _, _ in imports(path)
    } - STANDARD
    assert known == {"harness", "numpy", "cutlass"}
    assert [
        f"{name(path)}:{line} imports {module}"
        for path in files("harness/interpreter")
        for module, line, _ in imports(path)
        if module.startswith("harness.") and not module.startswith("harness.interpreter")
    ] == []
    assert {
        name(path)
        for path in files("harness/interpreter")
        for module, _, _ in imports(path)
        if module.startswith("cutlass")
    } == {"harness/interpreter/host.py"}
