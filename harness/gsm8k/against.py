"""What a run's accuracy is held against: a baseline's record, a published floor; and whether their setups are alike."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from harness.gsm8k.counts import Counts, count
from harness.gsm8k.paired import paired_decision
from harness.gsm8k.presets import Preset, find_preset, preset_of_model
from harness.gsm8k.setups import Setup, differences, refused_fields, setup_of_run
from harness.records.from_json import RecordError
from harness.records.parts.gsm8k import Decision, Gsm8kRun
from harness.records.record import load_record
from harness.verdict import UsageError, Verdict

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from harness.gsm8k.sample import Sample
    from harness.gsm8k.settings import Gsm8kSettings
    from harness.gsm8k.task import Task


@dataclass(frozen=True)
class Against:
    """What the user named to judge by, and how this run's setup differs from theirs."""

    settings: Gsm8kSettings
    setup: Setup
    baseline: Gsm8kRun | None = None
    preset: Preset | None = None

    @property
    def unlike_baseline(self) -> list[str]:
        """What of this run's setup is not the baseline's."""
        return [] if self.baseline is None else differences(self.setup, setup_of_run(self.baseline))

    @property
    def min_accuracy(self) -> float | None:
        """The accuracy to judge by: the user's, else the preset's where the protocol is its own."""
        if self.settings.min_accuracy is not None or self.preset is None:
            return self.settings.min_accuracy
        return None if self.preset.unlike(self.setup) else self.preset.floor

    def of_server(self, refused: Sequence[str]) -> Against:
        """Return this with what the server refused: known only when it was asked."""
        return replace(self, setup=self.setup | refused_fields(refused))

    @property
    def _judged_otherwise(self) -> bool:
        """Whether something beside a preset judges the run."""
        s = self.settings
        compared = (self.baseline, s.against, s.logprobs_baseline)
        return self.min_accuracy is not None or any(there is not None for there in compared)

    def refusal(self) -> Decision | None:
        """Return UNKNOWN (unlike) where a comparison would say nothing, so that nothing needs to be asked."""
        if self.settings.force_unlike:
            return None
        if unlike := self.unlike_baseline:
            found = f"this run and the baseline are unlike: {'; '.join(unlike)}"
        elif preset := self.unlike_preset():
            found = preset.reason
        else:
            return None
        return Decision(
            "UNKNOWN",
            "unlike",
            f"{found}. Nothing was asked; --force-unlike asks and shows both, without judging by it",
        )

    def unlike_preset(self) -> Decision | None:
        """Return UNKNOWN (unlike) where a preset of another protocol is all that could judge the run."""
        if self.preset is None or self._judged_otherwise or self.settings.force_unlike:
            return None
        unlike = "; ".join(self.preset.unlike(self.setup))
        named = f"--preset {self.preset.name} ({self.preset.options})"
        return Decision("UNKNOWN", "unlike", f"this run is unlike the protocol of {named}: {unlike}")

    def counts(self, stop: Sequence[str]) -> Counts | None:
        """Return the counts of the baseline, where they may be held against this run."""
        if self.baseline is None or self.unlike_baseline:
            return None
        return count(self.baseline.samples, stop)

    def compare(self, samples: Sequence[Sample]) -> Decision | None:
        """Return the paired comparison with the baseline; where the setups are unlike it is shown and not judged."""
        if self.baseline is None:
            return None
        s = self.settings
        paired = paired_decision(samples, self.baseline.samples, max_drop=s.max_drop, metric=s.metric)
        if self.baseline.verdict == Verdict.FAIL:
            asked = f"{self.baseline.answered:,} of {self.baseline.questions:,} questions"
            said = f"the baseline itself was {self.baseline.label}, with {asked} answered: no worse than that says little"
            paired = replace(
                paired, details={**paired.details, "warnings": [*paired.details.get("warnings", []), said]}
            )
        if unlike := self.unlike_baseline:
            shown = f"not judged, the setups are unlike ({'; '.join(unlike)}): {paired.reason}"
            return replace(paired, word="UNKNOWN", qualifier="unlike", reason=shown)
        return paired

    def notes(self, model: str) -> list[str]:
        """Return the published floor of the named model, or of the one that the server serves."""
        preset = self.preset or preset_of_model(model)
        if preset is None:
            return []
        judges = preset is self.preset and self.settings.min_accuracy is None
        return [preset.note(self.setup, judges=judges)]


def against_what(settings: Gsm8kSettings, task: Task, setup: Setup) -> Against:
    """Read what the run is judged by.

    Raises:
        UsageError: the baseline cannot be read, holds no GSM8K samples or other questions; no such preset.
    """
    baseline = None if settings.baseline is None else _read(settings.baseline)
    if baseline is not None:
        _refuse_other_questions(task, baseline.samples, settings.metric)
    return Against(settings, setup, baseline, find_preset(settings.preset) if settings.preset else None)


def _read(path: Path) -> Gsm8kRun:
    try:
        baseline = load_record(path).gsm8k_run
    except RecordError as error:
        raise UsageError(f"--baseline {error}") from None
    if baseline is None or not any(s.get("error") is None for s in baseline.samples):
        raise UsageError(f"--baseline {path}: holds no answered GSM8K question")
    return baseline


def _refuse_other_questions(task: Task, baseline: Sequence[Sample], metric: str) -> None:
    """Refuse a baseline of other data now, not after the last answer."""
    unjudged = [
        {"index": q.index, "question": q.question, "error": None, "class": "", metric: False}
        for q in task.questions
    ]
    paired_decision(unjudged, baseline, metric=metric)
