"""What the wheel leaves out, no module in it needs; read from pyproject.toml and the imports, without building one."""

from __future__ import annotations

import tomllib
from fnmatch import fnmatch

from tests.test_layers import ROOT, repository

SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
LEFT_OUT = SETUPTOOLS["packages"]["find"]["exclude"]


def is_left_out(module: str) -> bool:
    return any(fnmatch(module, pattern) for pattern in LEFT_OUT)


def test_no_module_of_the_wheel_imports_what_makes_a_canary() -> None:
    tree = repository()
    inside = [source for source in tree.values() if is_left_out(source.module)]
    found = [
        f"{source.path}:{imported.line} imports {imported.name}"
        for source in tree.values()
        if source not in inside
        for imported in source.imports
        if is_left_out(imported.name)
    ]
    assert found == []
    assert len(inside) > 30, "the patterns match the packages that they name"


def test_what_is_left_out_is_no_data_of_another_package_either() -> None:
    """Patterns of package data reach below a package; what is below it and left out has to be taken out again."""
    assert {pattern.removesuffix("*") for pattern in LEFT_OUT} == {
        f"harness.{pattern.removesuffix('/*').replace('/', '.')}"
        for pattern in SETUPTOOLS["exclude-package-data"]["harness"]
    }
