"""The Python files of a tree, each parsed once: what it imports and when, its lines, its functions."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Import:
    """One imported name in full: `from a.b import c` and `import a.b.c` both give "a.b.c"."""

    name: str
    line: int
    at_once: bool
    """Whether it happens when the file is imported: not inside a function, nor for type checkers alone."""


@dataclass(frozen=True)
class Function:
    name: str
    line: int
    length: int


@dataclass(frozen=True)
class Source:
    """One file."""

    path: str
    module: str
    lines: int
    imports: tuple[Import, ...]
    functions: tuple[Function, ...]
    relative: tuple[int, ...]
    """Lines of relative imports."""

    @property
    def layer(self) -> str:
        """The package or the file that it stands in, below its topmost package: "" for that package's __init__."""
        return [*self.module.split("."), ""][1]


Tree = dict[str, Source]
"""Module name to file."""


def read_tree(root: Path, *packages: str) -> Tree:
    """Parse every Python file of these folders of `root`; a folder without any is an error."""
    tree = {}
    for package in packages:
        paths = sorted((root / package).rglob("*.py"))
        assert paths, f"{package} has no files: a test would pass for nothing"
        for path in paths:
            source = read_source(path, root)
            tree[source.module] = source
    return tree


def read_source(path: Path, root: Path) -> Source:
    """Parse one file."""
    text = path.read_text(encoding="utf-8")
    place = path.relative_to(root)
    parts = place.with_suffix("").parts
    imports: list[Import] = []
    functions: list[Function] = []
    relative: list[int] = []
    for node, at_once in _statements(ast.parse(text), at_once=True):
        if isinstance(node, ast.Import):
            imports += [Import(alias.name, node.lineno, at_once) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level:
            relative.append(node.lineno)
        elif isinstance(node, ast.ImportFrom):
            imports += [Import(f"{node.module}.{alias.name}", node.lineno, at_once) for alias in node.names]
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            functions.append(Function(node.name, node.lineno, length))
    module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    return Source(
        place.as_posix(), module, len(text.splitlines()), tuple(imports), tuple(functions), tuple(relative)
    )


def _statements(node: ast.AST, *, at_once: bool) -> Iterator[tuple[ast.stmt, bool]]:
    """Yield every statement below a node, and whether it runs when the file is imported."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.expr):
            continue
        if isinstance(child, ast.stmt):
            yield child, at_once
        later = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
        typing = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
        yield from _statements(child, at_once=at_once and not later and not typing)
