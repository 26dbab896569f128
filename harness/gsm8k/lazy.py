"""Packages that lm-eval imports at its start and that a run never calls, imported when something of theirs is used."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType
from typing import Any

UNUSED = ("requests", "sacrebleu")
"""For lm-eval's own API models and for its translation metrics: a third of a second."""


class _Later(ModuleType):
    """Stands for a package until an attribute is asked of it. `importlib.util.LazyLoader` is woken by any second import."""

    def __getattr__(self, name: str) -> Any:
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        module = importlib.import_module(self.__name__)
        self.__dict__.update(vars(module))
        return getattr(module, name)


def import_when_used(*names: str) -> None:
    """Let the next import of these packages cost nothing; one that is imported already, or is missing, stays as it is."""
    for name in names:
        if name not in sys.modules and (spec := importlib.util.find_spec(name)) is not None:
            later = _Later(name)
            later.__spec__ = spec  # for those who only want to know whether the package is there
            sys.modules[name] = later
