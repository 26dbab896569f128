"""An engine in this process whose calls are captured, and as many captures of it as a test wants."""

from __future__ import annotations

import functools
import importlib
import runpy
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.capture import hook
from harness.capture.session import Session
from harness.capture.settings import CaptureSettings
from harness.faults.named import load_named

ENGINE = Path(__file__).parent / "engine"
PACKAGES = ("flashinfer", "sglang", "deep_ep", "humming")


class Engine:
    """An engine with the taps in place, see engine/.

    Args:
        session: what captures it.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self.flashinfer = importlib.import_module("flashinfer")
        self.kernels = importlib.import_module("flashinfer.kernels")
        self.moe = importlib.import_module("sglang.moe")
        self._loaded = runpy.run_path(str(ENGINE / "serve.py"))["loaded"]

    def capture(self, folder: Path, fault: str = "", count: int = 1, **options: Any) -> Path:
        """Run layers with a fault planted in the kernels, captured into a folder."""
        self.session.settings = replace(CaptureSettings(str(folder)), **options)
        self.session.idle = False
        self.session._begin_anew()
        self.kernels.KERNELS = load_named(f"physical+{fault}" if fault else "physical")
        held = [self._loaded(layer) for layer in range(count)]
        for arguments in held:
            self.moe.flashinfer_cutedsl_moe_masked(**arguments)
        return folder


@functools.cache
def the_engine() -> Engine:
    """The one engine of this process; other tests see the real packages."""
    session = Session(CaptureSettings("nowhere"))
    with packages():
        hook.install_taps(session)
        session.resting = lambda: None  # the taps stay for the next test
        found = Engine(session)
        sys.meta_path[:] = [one for one in sys.meta_path if not isinstance(one, hook._Finder)]
    return found


@pytest.fixture(name="engine")
def engine_fixture() -> Engine:
    return the_engine()


class packages:  # noqa: N801 - a block
    """The stand-ins in place of the real packages, for as long as the block runs."""

    def __enter__(self) -> None:
        self._kept = {name: sys.modules.pop(name) for name in list(sys.modules) if is_one(name)}
        sys.path.insert(0, str(ENGINE))

    def __exit__(self, *_: object) -> None:
        sys.path.remove(str(ENGINE))
        for name in [name for name in sys.modules if is_one(name)]:
            del sys.modules[name]
        sys.modules.update(self._kept)


def is_one(name: str) -> bool:
    return name.partition(".")[0] in PACKAGES


@pytest.fixture(name="captured")
def captured_fixture(tmp_path: Path) -> Callable[..., Path]:
    """Capture the engine into a folder of this test."""
    return lambda fault="", **named: the_engine().capture(tmp_path / (fault or "healthy"), fault, **named)
