"""Packages that an engine imports and that are missing here, stubbed for as long as the engine's code runs.

An engine imports a hundred packages before its loader can be called, and the loader uses none of them. A missing one
becomes a module whose every name is an empty class, if three things hold:

* it is a top-level name that nothing else finds: a package that is there is never shadowed, nor completed;
* a file of the engine asks for it, with an `import` that no `try` around it, in any file of the engine that is being
  executed, would survive: what the engine itself takes for optional stays missing;
* it is imported, not looked for: `importlib.util.find_spec` says the truth.

`Stubs.names` says what was stubbed and who asked. Outside the `with` block nobody sees a stub.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import inspect
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

_SURVIVES = {"ImportError", "ModuleNotFoundError", "Exception", "BaseException"}
_MACHINERY = ("<frozen importlib", str(Path(importlib.__file__)), __file__)
_VERSION = "0.0.0"


class Stubs:
    """Finds what an engine's code imports and nobody else finds.

    Args:
        engine: the engine's package.

    Attributes:
        names: top-level name of each stub -> "file:line" of the import that asked for it first.
    """

    def __init__(self, engine: str) -> None:
        self._engine = engine
        self._folders: tuple[str, ...] = ()
        self.names: dict[str, str] = {}
        self._modules: dict[str, types.ModuleType] = {}

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: Any = None
    ) -> ModuleSpec | None:
        """Return the spec of a stub, or None where the name is none of an import that must succeed."""
        del path, target
        top = name.partition(".")[0]
        if top not in self.names and ("." in name or not self._needed(name)):
            return None
        return ModuleSpec(name, self, is_package=True)  # type: ignore[arg-type]  # a loader by its methods

    def create_module(self, spec: ModuleSpec) -> types.ModuleType:
        """Return the stub, the same one for a name that was stubbed before."""
        return self._modules.setdefault(spec.name, types.ModuleType(spec.name))

    def exec_module(self, module: types.ModuleType) -> None:
        """Give it a version and, for every other name, an empty class."""
        module.__dict__.update(__path__=[], __version__=_VERSION, __getattr__=_attribute)

    @contextmanager
    def installed(self) -> Iterator[Stubs]:
        """Let imports find stubs until the block ends; then they are gone from sys.modules too."""
        spec = importlib.util.find_spec(self._engine)
        self._folders = (
            tuple(f"{place}/" for place in (spec.submodule_search_locations or ())) if spec else ()
        )
        sys.modules.update(self._modules)
        sys.meta_path.append(self)  # last: whatever another finder finds is the real thing
        try:
            yield self
        finally:
            sys.meta_path.remove(self)
            for name, module in self._modules.items():
                if sys.modules.get(name) is module:
                    del sys.modules[name]

    def _needed(self, name: str) -> bool:
        """Return whether the import that is running now is the engine's and would end it, were the name not found."""
        frame: types.FrameType | None = inspect.currentframe()
        asked_by = ""
        while frame is not None:
            file, line = frame.f_code.co_filename, frame.f_lineno
            if file == "<frozen importlib.util>":
                return False
            if not file.startswith(_MACHINERY):
                ours = file.startswith(self._folders)
                if not asked_by and not ours:
                    return False
                asked_by = asked_by or f"{file}:{line}"
                if ours and any(line in lines for lines in _guarded(file)):
                    return False
            frame = frame.f_back
        if asked_by:
            self.names[name] = asked_by
        return bool(asked_by)


@functools.cache
def _guarded(file: str) -> tuple[range, ...]:
    """Return the lines of a file where a missing module is survived: bodies of `try` and of `with suppress`."""
    found = []
    for node in ast.walk(ast.parse(Path(file).read_text(encoding="utf-8"))):
        survived = isinstance(node, ast.Try) and any(map(_survives, node.handlers))
        survived |= isinstance(node, ast.With) and "suppress" in "".join(map(ast.dump, node.items))
        if survived:
            body: list[ast.stmt] = node.body  # type: ignore[attr-defined]
            found.append(range(body[0].lineno, (body[-1].end_lineno or body[-1].lineno) + 1))
    return tuple(found)


def _survives(handler: ast.ExceptHandler) -> bool:
    """Return whether a handler catches a missing module and does not end by raising again."""
    caught = [handler.type] if not isinstance(handler.type, ast.Tuple) else handler.type.elts
    names = {getattr(each, "id", getattr(each, "attr", "Exception")) for each in caught}
    return bool(names & _SURVIVES) and not isinstance(handler.body[-1], ast.Raise)


class _Empty(type):
    """The type of what a stub holds: a class that can be inherited from, called, decorated with and annotated with."""

    def __getattr__(cls, name: str) -> Any:
        return _attribute(name)

    def __getitem__(cls, _: Any) -> Any:
        return cls

    def __iter__(cls) -> Iterator[Any]:
        return iter(())  # without it, `for x in stub` asks for __getitem__ for ever

    def __or__(cls, _: Any) -> Any:
        return object

    __ror__ = __or__


def _attribute(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    return _Empty(
        name,
        (),
        {
            "__init__": lambda _self, *_, **__: None,
            "__call__": lambda self, *given, **_: given[0] if given and callable(given[0]) else self,
            "__getattr__": lambda _self, inner: _attribute(inner),
            "__get_pydantic_core_schema__": classmethod(_any_value),
        },
    )


def _any_value(*_: Any) -> Any:
    """Return pydantic's schema of a field whose type is a stub."""
    return importlib.import_module("pydantic_core.core_schema").any_schema()
