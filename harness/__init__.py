"""The harness: problems, rules, candidates, verdicts, records and the command line. See ARCHITECTURE.md.

The names below are the public entry points for other projects; each is imported when first used, so that
`import harness` loads neither torch nor hypothesis.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from harness.version import __version__

if TYPE_CHECKING:
    from harness.candidates.protocol import Traits
    from harness.candidates.support import Support
    from harness.comparing.runs import compare_records
    from harness.records.record import load_record
    from harness.running.conform import cases, conformance

__all__ = ["Support", "Traits", "__version__", "cases", "compare_records", "conformance", "load_record"]

# No submodule may have one of these names: importing it would put the module in the place of the object.
_PUBLIC = {
    "Support": "harness.candidates.support",
    "Traits": "harness.candidates.protocol",
    "cases": "harness.running.conform",
    "compare_records": "harness.comparing.runs",
    "conformance": "harness.running.conform",
    "load_record": "harness.records.record",
}


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'harness' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_PUBLIC[name]), name)
