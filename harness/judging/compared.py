"""One comparison in plain numbers: what crosses the border of processes. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from harness.records.record import Heatmap, Histogram


@dataclass
class Compared:
    """The result of one comparison, in plain numbers.

    Attributes:
        stage: which output, for example "gemm1" or "quantize.codes".
        compared: elements that were compared.
        illegal: elements that were illegal.
        judged: elements by how they were judged.
        accepted_altered: altered copies that would have been accepted too: no power.
        worst_ratio: largest error over bound, None where the comparison is of bits.
        histogram: of error over bound, None where the comparison is of bits.
        message: first lines of the failure, "" where all is legal.
        place: of the worst illegal element, by the names of the axes.
        extent: how many illegal elements, rows and columns, and which experts.
        heatmap: illegal elements by expert and row.
        heatmaps: further views of them: row by block of columns, in the expert that has most.
        oracle: elements of a GEMM by the arithmetic in which their dot products were exact.
    """

    stage: str
    compared: int = 0
    illegal: int = 0
    judged: dict[str, int] = field(default_factory=dict)
    accepted_altered: list[str] = field(default_factory=list)
    worst_ratio: float | None = None
    histogram: Histogram | None = None
    message: str = ""
    place: dict[str, int] = field(default_factory=dict)
    extent: dict[str, Any] = field(default_factory=dict)
    heatmap: Heatmap | None = None
    heatmaps: list[Heatmap] = field(default_factory=list)
    oracle: dict[str, int] = field(default_factory=dict)
