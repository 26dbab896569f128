"""Signs of an illness that do not decide a verdict and stand in its line as warnings, each by a stated rule."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.gsm8k.classify import AnswerClass
from harness.gsm8k.counts import NEVER_STOPS, PAST_STOP, Counts
from harness.gsm8k.drift import Drift, length_drift
from harness.gsm8k.ends import odd_ends
from harness.gsm8k.judgement import LIMIT_ALPHA, WARNING_ALPHA
from harness.gsm8k.sample import Sample, answered, in_order
from harness.gsm8k.statistics import exceeded_at

if TYPE_CHECKING:
    from collections.abc import Sequence

SOME = 0.05
"""Share of right answers that run into the token limit from which a warning is given."""


def warnings(evidence: Sequence[Sample], counts: Counts, drift: Drift | None) -> list[str]:
    """Return the warnings of a run that its limits let pass.

    * Any flood, any answer that is no text, any answer that goes on behind a stop string.
    * More than `SOME` of the answers right and then ended by length, tested at `LIMIT_ALPHA`.
    * Accuracy that changes along the requests, at `WARNING_ALPHA`; lengths that change a lot.
    * Ends of answers that are neither "stop" nor "length".
    """
    said = [
        f"{found} of {counts.answered:,} answers: {name}"
        for name in (AnswerClass.FLOOD, AnswerClass.NOT_TEXT, PAST_STOP)
        if (found := counts.of_class(name))
    ]
    n = counts.independent
    if counts.per_question(counts.never_stops) >= exceeded_at(n, SOME, LIMIT_ALPHA):
        said.append(
            f"{counts.never_stops} of {counts.answered:,} answers: {NEVER_STOPS}, right and ended by length"
        )
    if drift is not None and drift.p < WARNING_ALPHA:
        said.append(str(drift))
    said += [
        sentence for sentence in (length_drift(in_order(evidence)), odd_ends(answered(evidence))) if sentence
    ]
    return said
