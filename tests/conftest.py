"""What every test run needs: one thread per worker, no deadline, since workers share the processor, and interrupts.

Imports no torch: the thread count is an environment variable, read when a test imports torch, and inherited by children.
"""

from __future__ import annotations

import os
import signal
from typing import Any

from hypothesis import settings

if "PYTEST_XDIST_WORKER" in os.environ:
    # Several workers with a thread per core each spend their time waiting for one another.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # A shell starts what runs in the background so, and the programs that the tests interrupt would inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("tests", deadline=None, derandomize=True, database=None)
settings.load_profile("tests")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say what long tests counted: `record_property("measured", ...)`."""
    for reports in list(terminalreporter.stats.values()):
        for report in reports:
            for name, value in getattr(report, "user_properties", ()):
                if name == "measured" and report.when == "call":
                    terminalreporter.write_line(f"measured: {value}")
