"""Run by Python at its start where `python -m harness.capture` put this folder first: taps, then the sitecustomize behind it."""

import sys
from pathlib import Path

_HERE = str(Path(__file__).parent)


def _run_the_next() -> None:
    import importlib.util
    import runpy

    kept = sys.modules.pop("sitecustomize", None)
    sys.path[:], before = [folder for folder in sys.path if folder != _HERE], list(sys.path)
    try:
        spec = importlib.util.find_spec("sitecustomize")
        if spec is not None and spec.origin and spec.origin != __file__:
            runpy.run_path(spec.origin)
    finally:
        sys.path[:] = before
        if kept is not None:
            sys.modules["sitecustomize"] = kept


try:
    from harness.capture import install

    install()
except Exception as error:  # noqa: BLE001 - the engine starts, whatever happens here
    print(f"harness capture: not installed: {type(error).__name__}: {error}", file=sys.stderr)  # noqa: T201
_run_the_next()
