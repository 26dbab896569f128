"""How much a run does: examples and extents. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass

from harness.verdict import unknown_name


@dataclass(frozen=True)
class Profile:
    """One size of run.

    Attributes:
        name: its name on the command line.
        examples: problems per rule; rules with a smaller share get fewer, at least `least`.
        least: fewest problems of any rule.
        experts: most experts.
        capacity: most rows per expert.
        k: most elements of a dot product.
        n: most columns.
        work: most multiply-adds of one GEMM, in units of 2^20: keeps the extremes from meeting.
        trap_floor: every trap must be drawn this often, else the run fails (0: not checked).
        problem_seconds: time limit of one problem.
        canary: questions of the canary.
    """

    name: str
    examples: int
    least: int
    experts: int
    capacity: int
    k: int
    n: int
    work: int
    trap_floor: int
    problem_seconds: float
    canary: int = 64


PROFILES = {
    "quick": Profile("quick", 40, 10, 8, 200, 512, 384, 256, 0, 60),
    "standard": Profile("standard", 150, 30, 32, 400, 2048, 1024, 512, 5, 120, 200),
    "deep": Profile("deep", 1000, 200, 128, 1024, 7168, 4096, 4096, 5, 300, 500),
}


def find_profile(name: str) -> Profile:
    """Return the profile of that name.

    Raises:
        UsageError: no such profile.
    """
    if name not in PROFILES:
        raise unknown_name("profile", name, PROFILES)
    return PROFILES[name]
