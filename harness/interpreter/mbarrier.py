"""mbarrier objects: phase, pending arrivals, pending transaction bytes (PTX ISA 9.7.13.15)."""

from __future__ import annotations

from collections.abc import Callable

from harness.interpreter.errors import ProtocolError

_TX_LIMIT = (1 << 20) - 1


class MBarrier:
    """One mbarrier.

    Attributes:
        where: its address, for messages.
        phase: phases completed so far.
        waiters: called once when the current phase completes.
    """

    def __init__(self, where: str, count: int) -> None:
        if not 1 <= count <= _TX_LIMIT:
            raise ProtocolError(f"mbarrier.init of {where}: count {count} is outside [1, 2^20 - 1]")
        self.where = where
        self.expected = count
        self.pending = count
        self.bytes = 0
        self.phase = 0
        self.waiters: list[Callable[[], None]] = []

    def arrive(self, count: int = 1) -> None:
        """Count arrivals; the phase completes when none is pending and all announced bytes have come."""
        if count > self.pending:
            raise ProtocolError(
                f"mbarrier {self.where}: {count} arrivals where {self.pending} of {self.expected} are pending in phase "
                f"{self.phase}"
            )
        self.pending -= count
        self._settle()

    def expect(self, size: int) -> None:
        """Announce bytes (expect-tx)."""
        self.bytes += size
        self._check()

    def complete(self, size: int) -> None:
        """Count bytes that have come (complete-tx)."""
        self.bytes -= size
        self._check()
        self._settle()

    def passed(self, parity: int) -> bool:
        """Return whether the phase of that parity has completed (try_wait.parity, test_wait.parity)."""
        return (self.phase & 1) != (parity & 1)

    def describe(self) -> str:
        """Return its state in words."""
        return (
            f"phase {self.phase}, {self.pending} of {self.expected} arrivals and {self.bytes} bytes pending"
        )

    def _check(self) -> None:
        if abs(self.bytes) > _TX_LIMIT:
            raise ProtocolError(
                f"mbarrier {self.where}: {self.bytes} pending bytes are outside the range of tx-count"
            )

    def _settle(self) -> None:
        if self.pending or self.bytes:
            return
        self.phase += 1
        self.pending = self.expected
        waiters, self.waiters = self.waiters, []
        for wake in waiters:
            wake()
