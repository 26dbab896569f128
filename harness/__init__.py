"""The harness: problems, rules, candidates, verdicts, records and the command line. See ARCHITECTURE.md.

`conformance` and `load_record` are the public entry points for other projects; both are imported when first used, so
that `import harness` loads neither torch nor hypothesis.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.candidates.protocol import Traits
    from harness.conform import conformance
    from harness.record import load_record
    from harness.support import Support

__version__ = "0.1.0"
__all__ = ["Support", "Traits", "__version__", "conformance", "load_record"]

# No submodule may have one of these names: importing it would put the module in the place of the object.
_PUBLIC = {
    "Support": "harness.support",
    "Traits": "harness.candidates.protocol",
    "conformance": "harness.conform",
    "load_record": "harness.record",
}


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'harness' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_PUBLIC[name]), name)
