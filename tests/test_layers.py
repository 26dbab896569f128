"""Who may import whom, read from the source, and how long files and functions are; planted trees show that each check sees."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from tests import layer_checks as checks
from tests.source_tree import Tree, read_source, read_tree

ROOT = Path(__file__).parent.parent
STANDARD = set(sys.stdlib_module_names)

# From the top: each folder and each file of harness/ imports only from itself and from what stands below it.
ORDER = [
    "cli", "bench", "compile", "races", "mutants", "running", "ci", "comparing", "canary", "gsm8k", "reproduction", "replay", "diagnosis",
    "rules", "identification", "judging", "faults", "problems", "capture", "candidates", "ranks", "interpreter", "emulation", "records", "processes", "streams",
    "terminal", "ending", "extras", "verdict", "version",
]  # fmt: skip

# What each package may import besides the standard library. The engines are imported inside the functions that use them.
ENGINES = {"flashinfer", "sglang", "vllm", "cutlass", "sgl_kernel", "deep_ep", "nccl", "humming"}
ALLOWED = {
    "reference": {"reference", "torch", "triton"},  # triton: its kernels, see below
    "harness": {
        "harness", "reference", "torch", "click", "hypothesis", "pytest", "packaging", "triton", "lm_eval",
        "datasets", "aiohttp", "ray", "tenacity", "safetensors", "tokenizers", "reports", *ENGINES,  # reports: see below
        "numpy", "cuda",  # numpy: the interpreter, see below; cuda: the type of a stream, for FlashInfer's calls
        "torchao", "compressed_tensors",  # what `harness bench` compares with
    },
    "reports": {"reports", "harness", "jinja2", "markupsafe"},
    "suites": {"suites", "harness", "reference", "pytest", "hypothesis"},
}  # fmt: skip
HEAVY = {
    "triton",
    "lm_eval",
    "transformers",
    "datasets",
    "pandas",
    "ray",
    "torchao",
    "compressed_tensors",
    *ENGINES,
}

# Modules that are themselves imported inside functions, because what they define needs the package to be defined.
IMPORTED_WHEN_CALLED = {"harness.identification.probe_rcp", "harness.gsm8k.lm"}

# What the parent process loads: these whole layers, every candidate of the catalog, and running/.
LIGHT = {
    "",
    "cli",
    "ci",
    "running",
    "comparing",
    "records",
    "processes",
    "terminal",
    "extras",
    "verdict",
    "version",
}

# Who may use the interpreter: the candidate that it was written for, and the race hunt.
INTERPRETER_USERS = {
    "harness.candidates.cuda_quantizers", "harness.candidates.cutedsl_on_cpu",
    "harness.candidates.flashinfer_cutedsl_cpu", "harness.races.hunt", "harness.races.problem",
}  # fmt: skip


@cache
def repository() -> Tree:
    """Every file of the four packages, parsed once."""
    return read_tree(ROOT, *ALLOWED)


@cache
def harness() -> Tree:
    return {m: source for m, source in repository().items() if source.path.startswith("harness/")}


def users(package: str, *, at_once: bool = False) -> set[str]:
    """Modules of the harness that import a package, or import it when they are imported."""
    return {
        source.module
        for source, found in checks.imports(harness())
        if f"{found.name}.".startswith(f"{package}.") and (found.at_once or not at_once)
    }


def nothing_wrong(found: list[str]) -> None:
    assert not found, "\n".join(["", *found])


def test_imports_are_absolute() -> None:
    nothing_wrong(checks.relative_imports(repository()))


@pytest.mark.parametrize("package", ALLOWED)
def test_each_package_imports_only_what_it_may(package: str) -> None:
    nothing_wrong(checks.foreign_imports(repository(), package, STANDARD | ALLOWED[package]))


def test_every_folder_of_the_harness_has_its_place() -> None:
    nothing_wrong(checks.unordered(harness(), ORDER))


def test_no_folder_imports_one_above_it() -> None:
    nothing_wrong(checks.climbs(harness(), ORDER))


def test_no_file_imports_itself_over_others() -> None:
    nothing_wrong(checks.circles(repository()))


def test_nothing_but_packages_lies_in_the_root_of_the_harness() -> None:
    nothing_wrong(checks.strays(ROOT / "harness"))


def test_no_file_is_too_long_to_be_read_at_once() -> None:
    nothing_wrong(checks.long_files(harness()))


def test_no_function_is_longer_than_a_screen() -> None:
    nothing_wrong(checks.long_functions(harness()))


def test_the_tests_mirror_the_packages() -> None:
    folders = {path.parent.relative_to(ROOT / "tests").parts[0] for path in ROOT.glob("tests/*/**/test_*.py")}
    assert folders - set(ORDER) == {"browser", "gpu", "reference", "reports"}


def test_only_commands_and_the_end_of_a_run_draw_reports_and_only_when_they_are_called() -> None:
    drawing = users("reports")
    assert "harness.ci.outputs" in drawing
    assert [m for m in drawing if m != "harness.ci.outputs" and harness()[m].layer != "cli"] == []
    assert users("reports", at_once=True) == set()


def test_the_plugin_imports_nothing_of_the_harness_before_it_is_used_and_nobody_imports_it() -> None:
    name = "fp4_moe_harness_plugin"
    at_once = {i.name.partition(".")[0] for i in read_source(ROOT / f"{name}.py", ROOT).imports if i.at_once}
    assert at_once - STANDARD == {"pluggy"}, "the command begins in it, and is quick without pytest"
    nothing_wrong([checks.line_of(s, i) for s, i in checks.imports(repository()) if i.name.startswith(name)])


def test_reports_know_nothing_of_the_harness_but_its_records() -> None:
    allowed = ("harness.records.", "harness.verdict.")
    nothing_wrong(
        [
            checks.line_of(source, found)
            for source, found in checks.imports(repository(), "reports")
            if found.name.startswith("harness") and not found.name.startswith(allowed)
        ]
    )


def test_nobody_imports_the_tests() -> None:
    everything = repository() | read_tree(ROOT, "benchmarks", "examples")
    nothing_wrong(
        [
            checks.line_of(source, found)
            for source, found in checks.imports(everything)
            if found.name.partition(".")[0] == "tests"
        ]
    )


def test_engines_are_imported_only_inside_the_function_that_needs_them() -> None:
    """An installation without them must be able to import every module, and to say why something does not run."""
    at_once = set().union(*(users(package, at_once=True) for package in HEAVY))
    assert at_once - IMPORTED_WHEN_CALLED == set()
    assert set().union(*(users(module, at_once=True) for module in IMPORTED_WHEN_CALLED)) == set()


def test_the_reference_needs_triton_only_where_a_kernel_is_launched() -> None:
    found = checks.imports(repository(), "reference")
    kernels = (
        "reference.matrix_units.fused_kernels", "reference.fast.kernels", "reference.fast.quantize_kernel",
    )  # fmt: skip
    assert {source.module for source, i in found if i.name.startswith("triton")} == {*kernels}
    assert [
        checks.line_of(source, i)
        for source, i in found
        if i.name.startswith(kernels) and i.at_once and source.module not in kernels
    ] == []


def test_what_the_parent_process_imports_has_no_torch_at_its_top() -> None:
    from harness.candidates import CANDIDATES

    doors = {source.module for source in harness().values() if source.layer in LIGHT}
    doors |= {place.partition(":")[0] for place in CANDIDATES.values()}
    loaded = checks.loaded_with(harness(), doors)
    assert loaded >= {"harness.rules", "harness.problems.problem", "harness.candidates.physical"}
    assert loaded & users("torch", at_once=True) == set()


def test_every_public_name_of_the_harness_is_there_and_is_no_module() -> None:
    """A submodule of the same name would take the place of the object as soon as it is imported."""
    import types

    import harness as package

    for public in package.__all__:
        assert not isinstance(getattr(package, public), types.ModuleType), public
        assert f"harness.{public}" not in harness(), public
    with pytest.raises(AttributeError, match="has no attribute 'confromance'"):
        _ = package.confromance


def test_only_the_candidate_and_the_race_hunt_use_the_interpreter() -> None:
    found = {m for m in users("harness.interpreter") if harness()[m].layer != "interpreter"}
    assert found == INTERPRETER_USERS


def test_only_the_interpreter_knows_numpy_and_it_knows_no_candidate() -> None:
    assert {harness()[m].layer for m in users("numpy", at_once=True)} == {"interpreter"}
    known = {found.name for _, found in checks.imports(harness(), "harness.interpreter")}
    ours = {name for name in known if name.startswith("harness.")}
    outside = {name for name in known if name.partition(".")[0] not in STANDARD | {"harness"}}
    assert {name.partition(".")[0] for name in outside} == {"numpy", "cutlass", "torch", "reference"}
    of_reference = {name for name in outside if name.startswith("reference")}
    assert all(name.startswith("reference.matrix_units") for name in of_reference)
    assert [name for name in ours if not name.startswith("harness.interpreter.")] == []
    assert {m for m in users("cutlass") if harness()[m].layer == "interpreter"} == {
        "harness.interpreter.host"
    }


# Small trees with a mistake in each. `top` stands above `low`.

Plant = Callable[..., Tree]
GOOD = {"__init__.py": "from p.top.a import f\n", "top/a.py": "import p.low.b\n", "low/b.py": "import os\n"}
LATE = "def f():\n    from p.top import a\n"
TYPED = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from p.top.a import A\n"


@pytest.fixture
def plant(tmp_path: Path) -> Plant:
    """Write a package `p` of these files, over a good one, and parse it."""

    def write(**files: str) -> Tree:
        for name, text in (GOOD | files).items():
            path = tmp_path / "p" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return read_tree(tmp_path, "p")

    return write


def test_a_good_tree_is_good(plant: Plant, tmp_path: Path) -> None:
    tree = plant()
    assert checks.relative_imports(tree) == []
    assert checks.foreign_imports(tree, "p", {"p", "os"}) == []
    assert checks.unordered(tree, ["top", "low"]) == []
    assert checks.climbs(tree, ["top", "low"]) == []
    assert checks.circles(tree) == []
    assert checks.long_files(tree) == []
    assert checks.long_functions(tree) == []
    assert checks.strays(tmp_path / "p") == []


@pytest.mark.parametrize(
    ("text", "line"), [("import p.top.a\n", 1), ("from p.top.a import f\n", 1), (LATE, 2), (TYPED, 3)]
)
def test_a_climb_is_seen_wherever_it_stands(plant: Plant, text: str, line: int) -> None:
    (found,) = checks.climbs(plant(**{"low/c.py": text}), ["top", "low"])
    assert found.startswith(f"p/low/c.py:{line} imports p.top.a")


def test_the_public_names_are_not_for_the_package_itself(plant: Plant) -> None:
    (found,) = checks.climbs(plant(**{"top/c.py": "from p import f\n"}), ["top", "low"])
    assert found == "p/top/c.py:1 imports p.f, from the root's public names"


def test_a_new_folder_and_a_stale_name_are_seen(plant: Plant) -> None:
    assert checks.unordered(plant(**{"new/c.py": "", "single.py": ""}), ["top", "low", "gone"]) == [
        "new has no place in the order",
        "single has no place in the order",
        "gone is in the order and not in the tree",
    ]


@pytest.mark.parametrize("back", ["import p.top.a\n", LATE, TYPED])
def test_a_circle_is_seen_over_several_files_and_whatever_closes_it(plant: Plant, back: str) -> None:
    tree = plant(**{"low/b.py": "from p.low import c\n", "low/c.py": back})
    assert checks.circles(tree) == ["p/low/b.py -> p/low/c.py -> p/top/a.py -> p/low/b.py"]


def test_circles_that_share_a_file_are_both_seen(plant: Plant) -> None:
    tree = plant(**{"low/b.py": "import p.low.c, p.low.d\n", "low/c.py": "import p.low.b\n", "low/d.py": "import p.low.b\n"})  # fmt: skip
    assert len(checks.circles(tree)) == 2


def test_a_foreign_and_a_relative_import_are_seen(plant: Plant) -> None:
    tree = plant(**{"low/c.py": "from . import b\ndef f():\n    import numpy.linalg\n"})
    assert checks.foreign_imports(tree, "p", {"p", "os"}) == ["p/low/c.py:3 imports numpy.linalg"]
    assert checks.relative_imports(tree) == ["p/low/c.py:1 imports from a relative place"]


def test_a_long_file_and_a_long_function_are_seen_and_one_line_less_is_not(plant: Plant) -> None:
    method = "class A:\n    @property\n    def {}(self):\n" + "        pass\n" * 58
    text = method.format("fits") + "        pass\n" + method.format("async_").replace("def", "async def")
    full = "\n" * checks.MOST_LINES
    tree = plant(**{"low/c.py": text + "        pass\n" * 2, "low/d.py": full, "low/e.py": full + "\n"})
    assert checks.long_functions(tree) == ["p/low/c.py:65 async_ has 61 lines"]
    assert checks.long_files(tree) == ["p/low/e.py has 331 lines"]


def test_what_lies_in_the_root_is_seen(plant: Plant, tmp_path: Path) -> None:
    plant(**{f"single{i}.py": "" for i in range(7)}, **{"py.typed": ""})
    assert checks.strays(tmp_path / "p") == []
    plant(**{"single7.py": "", "notes.md": ""})
    stray, crowd = checks.strays(tmp_path / "p")
    assert stray == "p/notes.md"
    assert crowd.startswith("p has 9 Python files side by side: __init__.py, single0.py")


def test_what_a_door_loads_is_followed_through_packages_and_not_into_functions(plant: Plant) -> None:
    tree = plant(
        **{"low/__init__.py": "import p.low.d\n", "low/c.py": LATE, "low/d.py": "", "top/__init__.py": ""}
    )
    assert checks.loaded_with(tree, ["p.low.c"]) == {"p", "p.top", "p.top.a", "p.low", "p.low.b", "p.low.c", "p.low.d"}  # fmt: skip
    tree = plant(**{"__init__.py": ""})
    assert checks.loaded_with(tree, ["p.low.c"]) == {"p", "p.low", "p.low.c", "p.low.d"}


def test_a_tree_without_files_is_no_pass(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="nothing has no files"):
        read_tree(tmp_path, "nothing")
