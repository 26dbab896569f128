"""Pools of ranks that end with their test, and a look at which processes are left."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness.candidates.over_ranks import EagerGloo
from harness.ranks.pool import Pool

STAND_IN = Path(__file__).parent / "stand_in"


@pytest.fixture
def start() -> Iterator[Callable[..., Pool]]:
    """Start a pool over gloo that ends with the test."""
    pools = []

    def started(ranks: int = 2, **named: float) -> Pool:
        pools.append(Pool(ranks, "gloo", **named))
        return pools[-1]

    yield started
    for pool in pools:
        pool.close()


@pytest.fixture(scope="session")
def two_over_gloo() -> Iterator[Callable[[], EagerGloo]]:
    """Make candidates over the same two ranks: to start ranks costs more than most tests."""
    first = EagerGloo(2)

    def made() -> EagerGloo:
        first.start_ranks()
        another = EagerGloo(2)
        another._pool = first._pool
        return another

    yield made
    first.close()


def gone(pids: list[int]) -> bool:
    """Return whether none of these processes is left, after a while at most: the kernel ends them in its own time."""
    for _ in range(100):
        if not any(Path(f"/proc/{pid}").exists() and not _is_zombie(pid) for pid in pids):
            return True
        time.sleep(0.05)
    return False


def _is_zombie(pid: int) -> bool:
    try:
        return "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return True


@pytest.fixture(scope="session")
def are_gone() -> Callable[[list[int]], bool]:
    return gone


@pytest.fixture(scope="module")
def stand_in() -> Iterator[None]:
    """Processes find the stand-ins for deep_ep and nccl, and this one the candidates of them."""
    sys.path.insert(0, str(STAND_IN))
    yield
    sys.path.remove(str(STAND_IN))
    for name in list(sys.modules):
        if name.partition(".")[0] in ("deep_ep", "nccl", "on_cpu"):
            del sys.modules[name]
