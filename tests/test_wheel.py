"""What the wheel leaves out, no module in it needs; read from pyproject.toml and the imports, without building one."""

from __future__ import annotations

import tomllib
from fnmatch import fnmatch

from tests.test_layers import ALLOWED, ROOT, files, imports

SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
LEFT_OUT = SETUPTOOLS["packages"]["find"]["exclude"]


def is_left_out(module: str) -> bool:
    return any(fnmatch(module, pattern) for pattern in LEFT_OUT)


def test_no_module_of_the_wheel_imports_what_makes_a_canary() -> None:
    inside, found = 0, []
    for layer in ALLOWED:
        for path in files(layer):
            if is_left_out(".".join(path.relative_to(ROOT).parent.parts)):
                inside += 1
                continue
            found += [
                f"{path.relative_to(ROOT)}:{line} imports {module}"
                for module, line, _ in imports(path)
                if is_left_out(module)
            ]
    assert found == []
    assert inside > 30, "the patterns match the packages that they name"


def test_what_is_left_out_is_no_data_of_another_package_either() -> None:
    """Patterns of package data reach below a package; what is below it and left out has to be taken out again."""
    assert {pattern.removesuffix("*") for pattern in LEFT_OUT} == {
        f"harness.{pattern.removesuffix('/*').replace('/', '.')}"
        for pattern in SETUPTOOLS["exclude-package-data"]["harness"]
    }
