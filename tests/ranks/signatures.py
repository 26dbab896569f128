"""Signatures of a package that cannot be imported here, read from its source, to compare a stand-in with."""

from __future__ import annotations

import ast
import importlib.metadata
import os
from pathlib import Path


def folder_of(distribution: str, below: str, variable: str) -> Path | None:
    """Where a package's source lies: named by an environment variable, or installed; None where it is neither."""
    if named := os.environ.get(variable):
        return Path(named)
    try:
        found = Path(str(importlib.metadata.distribution(distribution).locate_file(below)))
    except importlib.metadata.PackageNotFoundError:
        return None
    return found if found.is_dir() else None


def classes_of(folder: Path | None) -> dict[str, dict[str, str]]:
    """By class: its fields and members with their values, and its public functions with their parameters, as text."""
    assert folder is not None
    found: dict[str, dict[str, str]] = {}
    nodes = (node for path in sorted(folder.glob("*.py")) for node in ast.parse(path.read_text()).body)
    for node in nodes:
        if not isinstance(node, ast.ClassDef):
            continue
        here = found.setdefault(node.name, {})
        for part in node.body:
            if isinstance(part, ast.FunctionDef) and (
                part.name == "__init__" or not part.name.startswith("_")
            ):
                names = [arg.arg for arg in (*part.args.args, *part.args.kwonlyargs)]
                given = [
                    None if value is None else ast.unparse(value)
                    for value in (*part.args.defaults, *part.args.kw_defaults)
                ]
                here[part.name] = f"{names} {len(part.args.kwonlyargs)} by name, {given}"
            elif isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name):
                here[part.target.id] = "field"
            elif isinstance(part, ast.Assign) and isinstance(part.targets[0], ast.Name):
                here[part.targets[0].id] = ast.unparse(part.value)
    return found


def others(here: dict[str, dict[str, str]], real: dict[str, dict[str, str]], own: set[str]) -> list[str]:
    """What a stand-in has otherwise than the package, but for what is its own."""
    return [
        f"{name}.{part}"
        for name, parts in here.items()
        for part, text in parts.items()
        if f"{name}.{part}" not in own and real.get(name, {}).get(part) != text
    ]
