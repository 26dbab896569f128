"""How well one hypothesis explains what was seen: what every test of one returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from harness.diagnosis.hypotheses.hypothesis import Hypothesis


@dataclass(eq=False)  # compared by identity: tensors have no single truth value
class Score:
    """How well one hypothesis explains the cases of its stages.

    Attributes:
        hypothesis: which.
        of: for each case with illegal elements of the fault's stages, how many.
        explained: for each case, the illegal elements in explained units.
        near: share of the illegal elements that agree, whatever the rest of their units does.
        exact: whether all explained elements agree bit for bit.
        predicted: units in which the fault would show.
        shown: of those, units that it explains.
        nearby: of those, units in the experts where it explains any: a fault of whole experts would show in all of them.
        absent: calls in which the fault would show, and in which nothing is illegal.
        chosen: whether the fault's random choices were fitted to what was seen.
        placed: whether they were choices of a place.
        prediction: for each case, the predicted elements.
        step: which of the fault's two stage calls in an opaque layer it is in, 0 or 1; None for both, or where it has one.
        trying: the same of what is predicted at the moment.
        inside: rows of each weight in which the fault was found, `(experts, rows)` bool by name; empty for everywhere.
    """

    hypothesis: Hypothesis
    of: dict[int, int]
    explained: dict[int, Tensor] = field(default_factory=dict)
    near: float = 0.0
    exact: bool = True
    predicted: int = 0
    shown: int = 0
    nearby: int = 0
    absent: int = 0
    chosen: bool = False
    placed: bool = False
    prediction: dict[int, Tensor] = field(default_factory=dict)
    inside: dict[str, Tensor] = field(default_factory=dict)
    step: int | None = None
    trying: int | None = None

    @property
    def share(self) -> float:
        """Of all illegal elements of its stages; every case counts alike, since a block has fewer elements than a row."""
        return self.share_of(self.explained)

    def share_of(self, masks: Mapping[int, Tensor]) -> float:
        """Return the share that some masks are of the illegal elements of its stages."""
        if not self.of:
            return 0.0
        return sum(int(mask.sum()) / self.of[n] for n, mask in masks.items()) / len(self.of)

    def key(self) -> tuple[float, ...]:
        """Return what scores are ordered by, the best one largest.

        Of two that predict the same, the last entry takes the fault that traps alone show: the other one would have
        been found on ordinary numbers. A layer that is NaN throughout looks like one whose output was not cleared.
        """
        coverage = self.shown / self.predicted if self.predicted else 0.0
        return (
            round(self.share, 4),
            float(self.exact),
            -float(self.hypothesis.fitted),
            -float(self.absent),
            -float(self.chosen),
            round(self.near, 4),
            self.shown / self.nearby if self.nearby and self.hypothesis.fault.unit == "expert" else 1.0,
            coverage,
            float(not self.hypothesis.fault.random_data),
        )
