"""Other processes of ours, and the current folder, which may hold packages of the same names as ours."""

from __future__ import annotations

import contextlib
import importlib
import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PACKAGES = ("harness", "reference", "reports", "suites")
_OURS = str(Path(__file__).parents[1])
# Ours are bound first: earlier on the paths there may be others of these names.
_START = f"""
import json, runpy, sys
ours, paths, module = sys.argv[1:4]
sys.path.insert(0, ours)
import {", ".join(PACKAGES)}
sys.path[:] = json.loads(paths)
del sys.argv[1:4]
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


def own_module(module: str, *arguments: str) -> list[str]:
    """Return the command that runs a module of ours as `python -m` does, with the same packages as this process.

    `python -m` itself looks in the current folder first, and a project may have a folder `harness` there.

    Args:
        module: name of the module, for example "harness.running.worker".
        arguments: what it finds in sys.argv.
    """
    paths = [str(Path(place).absolute()) for place in sys.path]  # "" is the current folder
    return [sys.executable, "-P", "-c", _START, _OURS, json.dumps(paths), module, *arguments]


def end_with_the_parent() -> None:
    """Have the kernel kill this process when its parent dies, so that one that hangs never keeps a GPU (Linux)."""
    import ctypes

    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


@contextmanager
def ours_first() -> Iterator[None]:
    """While processes are spawned: they take over sys.path, and only then import what is ours."""
    before = list(sys.path)
    sys.path.insert(0, _OURS)
    try:
        yield
    finally:
        sys.path[:] = before


def look_in_current_folder() -> None:
    """Have `import` look in the current folder first, but for our own packages."""
    for name in PACKAGES:
        importlib.import_module(name)
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
