"""A candidate's process gets memory that it has freed before, instead of new pages from the kernel."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from harness.running.session import DEFAULT_ENVIRONMENT

FREED_AND_ASKED_FOR_AGAIN = """
import ctypes, resource
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
before = 0
for turn in range(5):
    place = libc.malloc(100 << 20)
    libc.memset(place, 1, 100 << 20)
    libc.free(place)
    before = before or resource.getrusage(resource.RUSAGE_SELF).ru_minflt
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(
    not hasattr(os, "confstr") or "CS_GNU_LIBC_VERSION" not in os.confstr_names, reason="needs glibc"
)
def test_memory_is_asked_of_the_kernel_once() -> None:
    faults = {}
    for name, environment in (("plain", {}), ("ours", DEFAULT_ENVIRONMENT)):
        done = subprocess.run(
            [sys.executable, "-c", FREED_AND_ASKED_FOR_AGAIN],
            env={n: v for n, v in os.environ.items() if n not in DEFAULT_ENVIRONMENT} | environment,
            capture_output=True, text=True, check=True, timeout=60,
        )  # fmt: skip
        faults[name] = int(done.stdout)
    assert faults["ours"] < 100 < faults["plain"], faults
