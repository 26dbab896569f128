"""An installed engine: its modules, imported as they are, its names, looked up, and, on a CPU, what asks for a GPU, answered."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from enum import EnumMeta
from typing import Any

from harness.candidates.cutedsl_support import installed_version
from harness.candidates.engines.stubs import Stubs
from harness.candidates.taps import called_otherwise

BLACKWELL = (10, 0)
ENGINES = ("sglang", "vllm")


class EngineChangedError(NotImplementedError):
    """The installed engine has no such name, or another signature: nothing of it can be judged. Says which."""


class Engine:
    """One engine's package. Its code runs inside `running()` only.

    Args:
        name: "sglang" or "vllm": package and distribution.
        modules: that are imported when it first runs.
        on_gpu: it runs on the GPU that is there.

    Attributes:
        name: its name.
        stubs: what was stubbed for it so far.
    """

    def __init__(self, name: str, modules: tuple[str, ...], *, on_gpu: bool = False) -> None:
        self.name, self._modules, self._on_gpu = name, modules, on_gpu
        self.stubs = Stubs(name)
        self._imported = False

    @property
    def version(self) -> str:
        """Name and version of what is installed."""
        return f"{self.name} {installed_version(self.name)}".rstrip()

    @contextmanager
    def running(self, replaced: Mapping[str, Any] | None = None) -> Iterator[None]:
        """Let the engine's code run until the block ends.

        Args:
            replaced: "module:name" or "module:class.name" -> what stands there instead.

        Raises:
            EngineChangedError: a module cannot be imported, or a name that is to be replaced is not there.
        """
        import torch

        with ExitStack() as stack:
            stack.enter_context(self.stubs.installed())
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")  # of the engine about this machine
            if not self._on_gpu:
                stack.enter_context(_instead(torch, "compile", _as_it_is))
                stack.enter_context(_instead(torch.Tensor, "cuda", lambda tensor, *_, **__: tensor))
            if not self._imported:
                self._import()
            if not self._on_gpu:
                stack.enter_context(_instead(torch.cuda, "get_device_capability", lambda *_: BLACKWELL))
            for target, value in (replaced or {}).items():
                self.get(target)
                module, _, path = target.partition(":")
                owner, _, attribute = path.rpartition(".")
                place = self.get(f"{module}:{owner}") if owner else self._module(module)
                stack.enter_context(_instead(place, attribute, value))
            yield

    def get(self, target: str) -> Any:
        """Return the object "module:name.name".

        Raises:
            EngineChangedError: it is not there.
        """
        module, _, path = target.partition(":")
        found = self._module(module)
        for place, name in enumerate(path.split("."), 1):
            if not hasattr(found, name) or _is_a_bases(found, name):
                where = ".".join((module, *path.split(".")[: place - 1]))
                raise EngineChangedError(f"{where} of {self.version} has no {name}")
            found = getattr(found, name)
        return found

    def of(self, owner: Any, name: str) -> Any:
        """Return an attribute of an engine's object.

        Raises:
            EngineChangedError: it has none of that name.
        """
        if not hasattr(owner, name):
            raise EngineChangedError(f"{type(owner).__name__} of {self.version} has no {name}")
        return getattr(owner, name)

    def made(self, target: str, *given: Any, **named: Any) -> Any:
        """Call "module:name" and return what comes back.

        Raises:
            EngineChangedError: it is not there, or takes other arguments.
        """
        function = self.get(target)
        try:
            return function(*given, **named)
        except TypeError as error:
            if "argument" not in str(error):
                raise
            raise EngineChangedError(f"{target} of {self.version} is called otherwise: {error}") from error

    def called_otherwise(self, parameters: Mapping[str, Sequence[str]]) -> str:
        """Return which function cannot be called with the keyword arguments that are passed to it, or "".

        Args:
            parameters: names of them by "module:name".

        Raises:
            EngineChangedError: a function is not there.
        """
        for target, names in parameters.items():
            if changed := called_otherwise(target, self.version, self.get(target), names):
                return changed
        return ""

    def _import(self) -> None:
        # Each looks whether the other is there, and importing the other would need stubs of its own.
        hidden = [other for other in ENGINES if other != self.name and other not in sys.modules]
        sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None: an import finds nothing
        try:
            for name in self._modules:
                self._module(name)
        finally:
            for other in hidden:
                sys.modules.pop(other, None)
        self._imported = True

    def _module(self, name: str) -> Any:
        if name in sys.modules:
            return sys.modules[name]
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            raise EngineChangedError(f"{self.version} has no module {error.name or name}") from error
        except Exception as error:
            raise EngineChangedError(
                f"import {name} of {self.version} failed with {type(error).__name__}: {error}"
            ) from error


def _is_a_bases(owner: Any, name: str) -> bool:
    """Return whether a class has a name only from a base of another module: what its engine's interface declares."""
    if not isinstance(owner, type) or isinstance(owner, EnumMeta):
        return False
    own = (base for base in owner.__mro__ if base.__module__ == owner.__module__)
    return not any(name in vars(base) for base in own)


@contextmanager
def _instead(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Put a value in the place of an attribute until the block ends."""
    there = name in vars(owner)
    before = vars(owner).get(name)  # not getattr, which unwraps a class's functions
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before) if there else delattr(owner, name)


def _as_it_is(model: Callable[..., Any] | None = None, **_: Any) -> Any:
    """Stand in for torch.compile, which would look for the stubbed triton: a function stays what it is."""
    return (lambda function: function) if model is None else model
