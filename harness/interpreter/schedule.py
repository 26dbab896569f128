"""In which order warps and asynchronous units take turns. Hardware promises none, so each seed is a legal execution.

`late` runs every asynchronous operation as late as possible: only when no warp can go on. That alone shows most missing
waits, costs nothing and is the same every time. `seeded` draws the order.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

_UNLIMITED = 1 << 60
_INSISTENCE = 0.9  # how often a taste decides
_TASTES = {"tensor core": "tcgen05", "TMA load": "TMA load"}


@dataclass
class Schedule:
    """A source of scheduling decisions.

    Attributes:
        seed: of the drawn decisions; None: as late as possible, warps in order.
        asynchronous: probability that a turn goes to an asynchronous unit while warps could go on.
        burst: most basic blocks that a warp runs in one turn.
        spurious: probability that a try_wait that must wait returns false at once.
        taste: which asynchronous operation usually goes first: "any", the "newest", the "tensor core"'s or a "TMA load".
    """

    seed: int | None = None
    asynchronous: float = 0.0
    burst: int = _UNLIMITED
    spurious: float = 0.0
    taste: str = "any"
    _random: random.Random = field(default_factory=random.Random)

    @property
    def drawn(self) -> bool:
        """Whether decisions are drawn at all."""
        return self.seed is not None

    def turn(self, warps: int, operations: Sequence[str]) -> tuple[str, int]:
        """Return whose turn it is: ("warp" or "unit", index).

        Args:
            warps: how many could go on.
            operations: names of the pending operations that could be done, oldest first. Not both are none.
        """
        if self.seed is None:
            return ("warp", 0) if warps else ("unit", 0)
        if operations and (not warps or self._random.random() < self.asynchronous):
            return "unit", self._operation(operations)
        return "warp", self._random.randrange(warps)

    def _operation(self, operations: Sequence[str]) -> int:
        if self.taste != "any" and self._random.random() < _INSISTENCE:
            if self.taste == "newest":
                return len(operations) - 1
            liked = [at for at, name in enumerate(operations) if name.startswith(_TASTES[self.taste])]
            if liked:
                return liked[-1]
        return self._random.randrange(len(operations))

    def blocks(self) -> int:
        """Return how many basic blocks the warp may run in its turn."""
        return self.burst if self.seed is None else self._random.randint(1, self.burst)

    def returns_early(self) -> bool:
        """Return whether a try_wait that must wait returns false at once."""
        return self.spurious > 0 and self._random.random() < self.spurious

    def order(self, count: int) -> list[int]:
        """Return the order in which clusters run."""
        numbers = list(range(count))
        if self.seed is not None:
            self._random.shuffle(numbers)
        return numbers


def late() -> Schedule:
    """Return the schedule in which every asynchronous operation is as late as possible."""
    return Schedule()


def seeded(seed: int) -> Schedule:
    """Return a drawn schedule; the pace of the asynchronous units and of the warps is drawn as well."""
    draw = random.Random(seed)
    return Schedule(
        seed,
        asynchronous=draw.choice([0.0, 0.01, 0.05, 0.3, 0.7, 0.95]),
        burst=draw.choice([1, 4, 16, 200]),
        spurious=draw.choice([0.0, 0.3, 1.0]),
        taste=draw.choice(["any", "newest", "tensor core", "TMA load"]),
        _random=draw,
    )
