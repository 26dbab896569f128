"""How answers end: by the model, by a stop string, or at the token limit; alone and against a baseline's."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.gsm8k.judgement import CHANGED_LENGTH, LIMIT_ALPHA, MORE_CUT
from harness.gsm8k.sample import LENGTH, ends_by_length, length, tokens
from harness.gsm8k.statistics import Interval, at_least, exceeded_at, mcnemar_mid_p, paired_interval

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.gsm8k.sample import Sample

ENDED = ("stop", LENGTH, "eos", "eos_token", "end_turn", "stop_sequence")
"""What servers call the end of a whole answer, and the limit."""
ODD_ENDS = 0.01
_CONFIDENCE = 1 - 2 * LIMIT_ALPHA


def runs_past(text: str, stop: Sequence[str]) -> bool:
    """Return whether a text goes on behind a stop string. One that ends with it does not: some servers include it."""
    return any((at := text.find(one)) >= 0 and bool(text[at + len(one) :].strip()) for one in stop)


def odd_ends(answered: Sequence[Sample]) -> str:
    """Return a sentence where more than `ODD_ENDS` of the answers ended for another reason than the usual, else ""."""
    reasons = Counter(s.get("finish_reason") for s in answered)
    odd = {str(reason): n for reason, n in reasons.items() if reason is not None and reason not in ENDED}
    if sum(odd.values()) < exceeded_at(len(answered), ODD_ENDS, LIMIT_ALPHA):
        return ""
    said = ", ".join(
        f"{n} by {reason!r:.40}" for reason, n in sorted(odd.items(), key=lambda item: -item[1])[:3]
    )
    return (
        f"{sum(odd.values())} of {len(answered)} answers ended neither by themselves nor at the limit: {said}"
    )


@dataclass(frozen=True)
class EndsCompared:
    """The same questions in two runs: `more` end at the limit now and did not, `fewer` did and no longer do."""

    n: int
    now: int
    then: int
    more: int
    fewer: int
    longer: int
    shorter: int

    @property
    def interval(self) -> Interval:
        """Bonett and Price's interval of the difference of the shares, one-sided at `LIMIT_ALPHA`."""
        return paired_interval(self.fewer, self.more, self.n, _CONFIDENCE)

    @property
    def too_many(self) -> bool:
        """Whether it is shown that more than `MORE_CUT` of the answers are cut that were not."""
        return self.interval.low > MORE_CUT

    @property
    def more_at_the_limit(self) -> str:
        """Both counts in words."""
        return f"{self.now} of {self.n:,} answers end at the token limit, {self.then} of the baseline's"

    def warnings(self) -> list[str]:
        """Return what stands beside a verdict: more answers at the limit, and most answers much longer or shorter."""
        said = []
        if not self.too_many and mcnemar_mid_p(self.more, self.fewer) < LIMIT_ALPHA:
            said.append(self.more_at_the_limit)
        for found, word in ((self.longer, "longer"), (self.shorter, "shorter")):
            if at_least(found, self.n, 0.5) < LIMIT_ALPHA:
                said.append(
                    f"{found} of {self.n:,} answers are {CHANGED_LENGTH:g} times {word} than the baseline's"
                )
        return said


def compare_ends(pairs: Sequence[tuple[Sample, Sample]]) -> EndsCompared:
    """Compare how the answers to the same questions end; each pair is this run's answer and the baseline's."""
    now = [ends_by_length(s) for s, _ in pairs]
    then = [ends_by_length(s) for _, s in pairs]
    lengths = [_lengths(s, t) for s, t in pairs]
    return EndsCompared(
        n=len(pairs),
        now=sum(now),
        then=sum(then),
        more=sum(a and not b for a, b in zip(now, then, strict=True)),
        fewer=sum(b and not a for a, b in zip(now, then, strict=True)),
        longer=sum(a > CHANGED_LENGTH * max(1.0, b) for a, b in lengths),
        shorter=sum(b > CHANGED_LENGTH * max(1.0, a) for a, b in lengths),
    )


def _lengths(now: Sample, then: Sample) -> tuple[float, float]:
    """Return both lengths in tokens where both servers count them, else in characters."""
    if tokens(now) is None or tokens(then) is None:
        return len(now.get("answer") or ""), len(then.get("answer") or "")
    return length(now), length(then)
