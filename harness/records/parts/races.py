"""`record.races`, as `record.races_run`: an interpreted kernel under many schedules (docs/cutedsl-cpu.md)."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class MutationResult:
    """What became of one mutation.

    Attributes:
        name: of the mutation.
        says: what is wrong in it.
        how: what showed it: "wrong values", "deadlock", "protocol", "memory fault", "refused", or "" for nothing.
        schedule: under which: "late" or the seed.
        schedules: schedules that it was run under.
        detail: the message or the count.
        benign: why it need not be caught, "" where it must be.
    """

    name: str
    says: str = ""
    how: str = ""
    schedule: str = ""
    schedules: int = 0
    detail: str = ""
    benign: str = ""

    @property
    def survived(self) -> bool:
        """Whether nothing showed a mistake that must be seen."""
        return not self.how and not self.benign


@dataclass(frozen=True)
class KernelHunt:
    """What a hunt over one kernel found.

    Attributes:
        kernel: its name.
        schedules: drawn schedules, seeds 1 to this, under which the intact kernel ran.
        differing: seeds whose bits differ from the latest schedule, with what happened.
        elements: outputs compared per schedule.
        wrong: elements of the latest schedule outside float32 accumulation of the exact result.
        written: rows written of each expert.
        seconds: in all.
        caught: what became of each mutation.
    """

    kernel: str
    schedules: int = 0
    differing: dict[str, str] = field(default_factory=dict)
    elements: int = 0
    wrong: int = 0
    written: list[int] = field(default_factory=list)
    seconds: float = 0.0
    caught: list[MutationResult] = field(default_factory=list)

    @property
    def survivors(self) -> list[MutationResult]:
        """The mutations that must be seen and that nothing showed."""
        return [mutation for mutation in self.caught if mutation.survived]

    @property
    def passed(self) -> bool:
        """Whether the intact kernel is right in every schedule and every mutation that must be seen was caught."""
        return not self.differing and not self.wrong and not self.survivors


@dataclass(frozen=True)
class RacesRun:
    """One run of `harness races`.

    Attributes:
        schedules: drawn schedules a kernel and mutation, beside the latest one.
        mutate: whether mutations were planted; `only`: those whose name starts with this, "" for all.
        kernels: one hunt each, in the order in which they were hunted.
    """

    schedules: int = 0
    mutate: bool = False
    only: str = ""
    kernels: list[KernelHunt] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return what the record holds: every field."""
        return asdict(self)
