"""Results on disk, by content: the case, the packages that compile it, and the code here that describes the outcome.

One small JSON file a result. A damaged or unreadable one is compiled again; a cache that cannot be written costs a warning.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import tempfile
from pathlib import Path

from harness.compile.case import CompileCase
from harness.compile.packages import Packages
from harness.compile.result import result_from
from harness.records.parts.compile import CompileResult

# What decides a result besides the packages; an edit of the matrix or of the comparison recompiles nothing.
_OURS = (
    "kernels.py",
    "no_gpu.py",
    "worker.py",
    "measure.py",
    "ptx.py",
    "cubin.py",
    "result.py",
    "switches.py",
    "../records/parts/compile.py",
)


def default_folder() -> Path:
    """Return the cache of this user."""
    root = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(root) if root else Path.home() / ".cache") / "fp4-moe-harness" / "compile"


class Cache:
    """Results of earlier runs. `folder=None` keeps nothing."""

    def __init__(self, folder: Path | None, packages: Packages) -> None:
        self._folder = folder
        self._packages = packages
        self.trouble = ""

    def key(self, case: CompileCase) -> str:
        """Return the name of the case's file: a hash of everything that decides its result."""
        parts = [
            str(case),
            self._packages.digest,
            *sorted(map("=".join, self._packages.versions.items())),
            _ours(),
        ]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:40]

    def get(self, case: CompileCase) -> CompileResult | None:
        """Return the stored result of a case, if there is a readable one of the same case."""
        if self._folder is None:
            return None
        try:
            stored = json.loads((self._folder / f"{self.key(case)}.json").read_text(encoding="utf-8"))
            return result_from(stored["result"], "result") if stored["case"] == str(case) else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def put(self, case: CompileCase, result: CompileResult) -> None:
        """Store a result so that a reader never sees half of it. What may not come again is not stored."""
        if self._folder is None or result.status in {"crashed", "timeout"}:
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(
                "w", dir=self._folder, suffix=".tmp", delete=False, encoding="utf-8"
            ) as file:
                json.dump({"case": str(case), "result": result.to_json()}, file)
            Path(file.name).replace(self._folder / f"{self.key(case)}.json")
        except OSError as error:
            self.trouble = f"the cache {self._folder} cannot be written: {error.strerror}"


@functools.cache
def _ours() -> str:
    digest = hashlib.sha256()
    for name in _OURS:
        digest.update((Path(__file__).parent / name).read_bytes())
    return digest.hexdigest()
