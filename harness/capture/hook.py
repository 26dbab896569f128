"""Putting taps around functions: of modules that are imported already, and of those that will be, right after they ran.

Engines copy functions into their own modules (`from flashinfer import ...`). A module of a tapped package is patched before
anybody can copy from it; of what was imported before, every module's globals are searched for the function.
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

from harness.capture.targets import PACKAGES, PREPARE, TARGETS, Read, Target, reading_of

if TYPE_CHECKING:
    from harness.capture.session import Session

_TAPPED = "__harness_tapped__"


def install_taps(session: Session) -> None:
    """Tap what is there, and what will be imported."""
    if any(isinstance(finder, _Finder) for finder in sys.meta_path):
        return
    taps: list[_Tap] = []
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] in PACKAGES and module is not None:
            taps += _tap_everywhere(session, module)
    finder = _Finder(session, taps)
    session.resting = functools.partial(_remove, finder, taps)
    sys.meta_path.insert(0, finder)


@dataclass(frozen=True)
class _Tap:
    """A function and what stands in its place, and where that is."""

    holder: Any
    name: str
    function: Any
    tapped: Any


def _remove(finder: _Finder, taps: list[_Tap]) -> None:
    """Put functions back where nothing is captured any more: what is called then costs nothing, but for hidden copies."""
    if finder in sys.meta_path:
        sys.meta_path.remove(finder)
    for tap in taps:
        if vars(tap.holder).get(tap.name) is tap.tapped:
            setattr(tap.holder, tap.name, tap.function)
        _replace_copies(tap.tapped, tap.function)


def _replace_copies(old: Any, new: Any) -> None:
    """Replace what modules copied from each other."""
    for other in list(sys.modules.values()):
        for name, value in list(vars(other).items()) if isinstance(other, ModuleType) else ():
            if value is old:
                setattr(other, name, new)


class _Finder(importlib.abc.MetaPathFinder):
    """Lets the other finders find a module of a tapped package, and taps it once it has run."""

    def __init__(self, session: Session, taps: list[_Tap]) -> None:
        self._session, self._taps = session, taps
        self._asking: set[str] = set()

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name.partition(".")[0] not in PACKAGES or name in self._asking:
            return None
        self._asking.add(name)
        try:
            spec = importlib.util.find_spec(name) if path is None else _found(name, path, target)
        finally:
            self._asking.discard(name)
        if spec is not None and spec.loader is not None and hasattr(spec.loader, "exec_module"):
            _run_then_tap(spec.loader, self._session, self._taps)
        return spec


def _found(
    name: str, path: Sequence[str] | None, target: ModuleType | None
) -> importlib.machinery.ModuleSpec | None:
    for finder in sys.meta_path:
        if not isinstance(finder, _Finder) and (spec := finder.find_spec(name, path, target)) is not None:
            return spec
    return None


def _run_then_tap(loader: Any, session: Session, taps: list[_Tap]) -> None:
    run = loader.exec_module

    @functools.wraps(run)
    def exec_module(module: ModuleType) -> None:
        run(module)
        if not session.idle:
            taps.extend(_tap(session, module))

    try:
        loader.exec_module = exec_module
    except AttributeError:  # a loader of an extension module, which defines no function of ours
        return


def _tap(session: Session, module: ModuleType) -> list[_Tap]:
    """Tap the functions that a module defines."""
    done = []
    package = module.__name__.partition(".")[0]
    for target in TARGETS:
        if target.package != package:
            continue
        owner, _, name = target.name.rpartition(".")
        holder = vars(module).get(owner) if owner else module
        function = getattr(holder, name, None) if holder is not None else None
        here = getattr(function if not owner else holder, "__module__", None) == module.__name__
        if not callable(function) or not here or hasattr(function, _TAPPED):
            continue
        tapped = _around(session, target, function, f"{module.__name__}.{target.name}")
        if tapped is not None:
            setattr(holder, name, tapped)
            done.append(_Tap(holder, name, function, tapped))
    return done


def _tap_everywhere(session: Session, module: ModuleType) -> list[_Tap]:
    """Tap a module that is there, and replace the copies that others have of its functions."""
    taps = _tap(session, module)
    for tap in taps:
        _replace_copies(tap.function, tap.tapped)
    return taps


def _around(
    session: Session, target: Target, function: Callable[..., Any], where: str
) -> Callable[..., Any] | None:
    try:
        read = reading_of(target, function, where)
    except Exception as error:  # noqa: BLE001 - a version that cannot be read is left as it is
        session.warn(f"{where} is not captured: {error}")
        return None

    if target.stage == PREPARE:
        return _around_preparation(session, read, function)

    @functools.wraps(function)
    def tapped(*args: Any, **kwargs: Any) -> Any:
        if session.idle:
            return function(*args, **kwargs)
        call = session.begin(target, where, read, args, kwargs)
        try:
            result = function(*args, **kwargs)
        except BaseException:
            session.abandon(call)
            raise
        return session.end(call, read, args, kwargs, result)

    setattr(tapped, _TAPPED, target.name)
    return tapped


def _around_preparation(session: Session, read: Read, function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def tapped(*args: Any, **kwargs: Any) -> Any:
        if session.idle:
            return function(*args, **kwargs)
        given = session.preparing(read, args, kwargs)  # before: it may be done in place
        result = function(*args, **kwargs)
        session.prepared(given, result)
        return result

    setattr(tapped, _TAPPED, function.__name__)
    return tapped
