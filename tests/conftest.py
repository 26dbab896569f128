"""What every test run needs: one thread per worker, and no deadline, since workers share the processor.

Imports no torch: the thread count is an environment variable, read when a test imports torch, and inherited by children.
"""

from __future__ import annotations

import os

from hypothesis import settings

if "PYTEST_XDIST_WORKER" in os.environ:
    # Several workers with a thread per core each spend their time waiting for one another.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

settings.register_profile("tests", deadline=None, derandomize=True, database=None)
settings.load_profile("tests")
