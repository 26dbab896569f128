"""Planted faults: mistakes that real kernels and engines made, put around a correct candidate. See README.md here.

`plant("physical", "alpha_of_neighbour@7")` is a candidate with one; on every command line it is `physical+alpha_of_neighbour@7`.
"""

from __future__ import annotations

from harness.faults.fault import Fault, Planting, all_faults, fault, find_fault, parse_planting
from harness.faults.mutant import Mutant, plant

__all__ = [
    "Fault",
    "Mutant",
    "Planting",
    "all_faults",
    "fault",
    "find_fault",
    "parse_planting",
    "plant",
]
