"""From scores to an ordered list: the best explanation, what explains the rest, and what else would explain it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from harness.diagnosis.cases.case import CallCase
from harness.diagnosis.cases.layer_case import LayerCase
from harness.diagnosis.cases.views import same
from harness.diagnosis.hypotheses.score import Score
from harness.diagnosis.telling.evidence import NEARLY_ALL, coincidental, share

_MOST_FINDINGS = 4
_LEAST_SHARE = 0.02  # of the illegal elements, for an explanation to be worth a line
_MOST_PARTS = 2  # stories about one output, each of which explains a part of it
_MOSTLY = 0.9  # of the rows of an opaque layer, for two explanations to be one


@dataclass(eq=False)
class Explanation:
    """One fault that explains some of what was seen.

    Attributes:
        score: of the best hypothesis.
        masks: by case, the illegal elements that it explains and no better explanation did.
        same: other hypotheses that predict the same output on these inputs.
        alternative: it explains what a better one has explained already.
    """

    score: Score
    masks: dict[int, Tensor]
    same: list[Score] = field(default_factory=list)
    alternative: bool = False

    @property
    def elements(self) -> int:
        """Illegal elements in `masks`."""
        return sum(int(mask.sum()) for mask in self.masks.values())


def ranked(scores: list[Score], cases: Sequence[CallCase]) -> list[Explanation]:
    """Order scores: greedily by what they explain of what is left, then the alternatives.

    Where nothing explains an output, many faults explain a little of it: those are no explanations, and left out.
    """
    left = [case.illegal for case in cases]
    by_key = sorted(scores, key=Score.key, reverse=True)
    found: list[Explanation] = []
    while by_key and len(found) < _MOST_FINDINGS:
        best = max(by_key, key=lambda s: _worth(s, left))
        masks = _of(best, left)
        if best.share_of(masks) < _LEAST_SHARE:
            break
        explanation = Explanation(best, masks)
        by_key = _without_same(by_key, explanation, cases)
        if coincidental(best, masks, cases) or _one_of_many(explanation, found):
            continue
        found.append(explanation)
        for n, m in masks.items():
            left[n] = left[n] & ~m
    for other in by_key:
        if len(found) >= _MOST_FINDINGS or other.share < _LEAST_SHARE:
            break
        if coincidental(other, other.explained, cases):
            continue
        if other in [s for f in found for s in f.same]:
            continue
        alternative = Explanation(other, other.explained, alternative=True)
        _without_same(by_key, alternative, cases)
        found.append(alternative)
    return found


def _one_of_many(explanation: Explanation, found: Sequence[Explanation]) -> bool:
    """Return whether an explanation is one more story about an output of which others explain a part each."""
    if share(explanation.score, explanation.masks) >= NEARLY_ALL:
        return False
    parts = [f for f in found if f.score.of.keys() & explanation.score.of.keys()]
    return len(parts) >= _MOST_PARTS


def _worth(found: Score, left: list[Tensor]) -> tuple[float, ...]:
    """Return what a score is worth: the share of what is left of its stages, then in how many calls, then the rest.

    A factor that was measured on the output itself explains what any error of that size does: a fault of the catalog that
    explains nearly all comes before it.
    """
    masks = _of(found, left)
    most = NEARLY_ALL if found.hypothesis.fitted else 1.0
    return round(min(found.share_of(masks), most), 4), len(masks), *found.key()


def _of(found: Score, left: list[Tensor]) -> dict[int, Tensor]:
    """Return what a score explains of what is left, by case."""
    masks = {n: mask & left[n] for n, mask in found.explained.items()}
    return {n: mask for n, mask in masks.items() if bool(mask.any())}


def _without_same(scores: list[Score], explanation: Explanation, cases: Sequence[CallCase]) -> list[Score]:
    """Move what predicts the same output into the explanation, and return what is left."""
    best, left = explanation.score, []
    for other in scores:
        if other is best:
            continue
        if other.hypothesis.fault.name == best.hypothesis.fault.name:
            # The same fault in another strength, or in other calls: one line is enough.
            if other.explained.keys() == best.explained.keys() and other.share <= best.share:
                continue
            left.append(other)
        elif _is_same(best, other, cases):
            explanation.same.append(other)
        else:
            left.append(other)
    return left


def _is_same(one: Score, other: Score, cases: Sequence[CallCase]) -> bool:
    a, b = one.hypothesis.fault, other.hypothesis.fault
    if a.name in b.same_as or b.name in a.same_as:
        return True
    if one.explained.keys() != other.explained.keys() or one.prediction.keys() != other.prediction.keys():
        return False
    for n in one.prediction:
        case = cases[n]
        equal = same(one.prediction[n], other.prediction[n]).flatten(2).all(-1)
        if isinstance(case, LayerCase) and n in one.explained:
            # Of an opaque layer each prediction is put together from variants, and only what it explains counts.
            rows, others = (s.explained[n].flatten(2).any(-1) for s in (one, other))
            both = rows & others
            if int(both.sum()) < _MOSTLY * int(rows.sum()):
                return False
            if int((equal & both).sum()) < _MOSTLY * int(both.sum()):
                return False
        elif not bool((equal | ~case.valid).all()):
            return False
    return True


def unexplained(found: Sequence[Explanation], cases: Sequence[CallCase]) -> list[Tensor]:
    """Return the illegal elements of each case that nothing explains."""
    left = [case.illegal for case in cases]
    for explanation in found:
        if not explanation.alternative:
            for n, m in explanation.masks.items():
                left[n] = left[n] & ~m
    return left
