"""What must hold of the packages and files of a tree; each check returns one line for everything that is wrong."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from tests.source_tree import Import, Source, Tree

MOST_LINES = 330
MOST_LINES_OF_A_FUNCTION = 60
MOST_FILES_IN_THE_ROOT = 8


def imports(tree: Tree, package: str = "") -> Iterator[tuple[Source, Import]]:
    """Yield every import of the files of a package, or of the whole tree."""
    for source in tree.values():
        if source.module == package or source.module.startswith(f"{package}." if package else ""):
            for found in source.imports:
                yield source, found


def line_of(source: Source, found: Import) -> str:
    """Say where an import stands."""
    return f"{source.path}:{found.line} imports {found.name}"


def imported(tree: Tree, name: str) -> Source | None:
    """Return the file of the tree that an imported name is, or stands in; `None` if it is foreign."""
    return tree.get(name) or tree.get(name.rpartition(".")[0])


def relative_imports(tree: Tree) -> list[str]:
    """Imports are absolute, so that they can be read from here."""
    return [
        f"{source.path}:{line} imports from a relative place"
        for source in tree.values()
        for line in source.relative
    ]


def foreign_imports(tree: Tree, package: str, allowed: Iterable[str]) -> list[str]:
    """A package imports only from the packages that it may."""
    allowed = set(allowed)
    return [line_of(s, i) for s, i in imports(tree, package) if i.name.partition(".")[0] not in allowed]


def unordered(tree: Tree, order: list[str]) -> list[str]:
    """Every folder and file of the root has its place in the order, and the order names nothing else."""
    there = {source.layer for source in tree.values()} - {""}
    return [f"{layer} has no place in the order" for layer in sorted(there - set(order))] + [
        f"{layer} is in the order and not in the tree" for layer in order if layer not in there
    ]


def climbs(tree: Tree, order: list[str]) -> list[str]:
    """Nothing imports what stands above it, nor the public names of the root, which are for other projects."""
    height = {layer: -place for place, layer in enumerate(order)}
    found = []
    for source, an_import in imports(tree):
        target = imported(tree, an_import.name)
        if not source.layer or target is None:
            continue
        if not target.layer:
            found.append(f"{line_of(source, an_import)}, from the root's public names")
        elif height.get(target.layer, 0) > height.get(source.layer, 0):
            found.append(f"{line_of(source, an_import)}, which stands above it")
    return found


def circles(tree: Tree) -> list[str]:
    """No file imports itself over others, also inside functions or for type checkers alone; public names do not count."""
    arrows = {
        source.module: {
            target.module
            for found in source.imports
            if (target := imported(tree, found.name)) is not None and target.layer and target is not source
        }
        for source in tree.values()
    }
    found = {}
    for module in arrows:
        circle = _way_back(arrows, module)
        if circle:
            found.setdefault(frozenset(circle), " -> ".join(tree[m].path for m in [*circle, module]))
    return list(found.values())


def _way_back(arrows: dict[str, set[str]], start: str) -> list[str]:
    """Return the shortest circle through a module, or nothing."""
    ways, seen = [[start]], set[str]()
    for way in ways:
        for target in sorted(arrows[way[-1]]):
            if target == start:
                return way
            if target not in seen:
                seen.add(target)
                ways.append([*way, target])
    return []


def long_files(tree: Tree) -> list[str]:
    """No file is too long to be read at once."""
    return [f"{s.path} has {s.lines} lines" for s in tree.values() if s.lines > MOST_LINES]


def long_functions(tree: Tree) -> list[str]:
    """No function is longer than a screen, docstring included."""
    return [
        f"{source.path}:{function.line} {function.name} has {function.length} lines"
        for source in tree.values()
        for function in source.functions
        if function.length > MOST_LINES_OF_A_FUNCTION
    ]


def strays(root: Path) -> list[str]:
    """Nothing lies in a root but packages, the mark of typed code and few Python files."""
    files = sorted(p.name for p in root.iterdir() if p.is_file())
    python = [name for name in files if name.endswith(".py")]
    found = [f"{root.name}/{name}" for name in files if name not in {*python, "py.typed"}]
    if len(python) > MOST_FILES_IN_THE_ROOT:
        found.append(f"{root.name} has {len(python)} Python files side by side: {', '.join(python)}")
    return found


def loaded_with(tree: Tree, doors: Iterable[str]) -> set[str]:
    """Return the modules of the tree that are loaded when these are imported, themselves and their packages included."""
    waiting, found = list(doors), set[str]()
    while waiting:
        module = waiting.pop()
        if module in found or module not in tree:
            continue
        found.add(module)
        waiting.append(module.rpartition(".")[0])
        for an_import in tree[module].imports:
            target = imported(tree, an_import.name)
            if an_import.at_once and target is not None:
                waiting.append(target.module)
    return found
