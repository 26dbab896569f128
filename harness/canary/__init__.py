"""The canary: a small mixture-of-experts model that solves word problems, and collapses as a real model does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.canary.load import Canary, load_canary

__all__ = ["Canary", "load_canary"]


def __getattr__(name: str) -> Any:
    # torch is imported only when a model is loaded: the command line imports this package.
    if name in __all__:
        from harness.canary import load

        return getattr(load, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
