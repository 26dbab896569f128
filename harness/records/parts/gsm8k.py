"""`record.gsm8k`, as `record.gsm8k_run`: one GSM8K run. What each field means: harness/gsm8k/README.md."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any, NotRequired, TypedDict

from harness.records.parts.gsm8k_logprobs import Gsm8kLogprobs
from harness.verdict import ExitCode, Verdict

NOT_DEAD = "NOT DEAD"
ONLY_SERVED = ("path", "requests", "errors", "resumed", "probes", "notes", "logprobs")
"""Fields that are left out of the JSON where the questions were answered in this process, without a server."""


class Gsm8kUsage(TypedDict):
    """Tokens of one answer, None where the server does not count them."""

    prompt_tokens: int | None
    completion_tokens: int | None


# A dict because the journal holds it line by line as it stands, and because "class" is no name that a field may have.
Gsm8kSample = TypedDict(
    "Gsm8kSample",
    {
        "index": int,
        "repeat": int,
        "wave": bool,
        "order": NotRequired[int | None],
        "question": str,
        "expected": str,
        "answer": str | None,
        "reasoning": str | None,
        "class": str | None,
        "strict": bool,
        "flexible": bool,
        "numeric": bool,
        "extracted_strict": str,
        "extracted_flexible": str,
        "extracted_numeric": str | None,
        "in_reasoning": NotRequired[dict[str, bool] | None],
        "finish_reason": str | None,
        "usage": Gsm8kUsage,
        "latency_s": float | None,
        "ttft_s": float | None,
        "attempts": int,
        "error": str | None,
        "scored": NotRequired[str],
    },
)
"""One question, asked once ("One sample" in harness/gsm8k/README.md). Older records lack the optional fields."""


class Gsm8kTask(TypedDict, total=False):
    """What was asked. `stop`, `num_fewshot` and `notes` only of a run over HTTP."""

    name: str
    version: str
    hashes: dict[str, str]
    generation: dict[str, Any]
    stop: list[str]
    num_fewshot: int
    notes: list[str]


class Gsm8kServer(TypedDict, total=False):
    """Who was asked. `version` is empty where the server does not say; `refused`: fields that it took in no request."""

    url: str
    model: str
    version: str
    refused: list[str]


@dataclass(frozen=True)
class Decision:
    """A verdict. `word`: PASS, FAIL, UNKNOWN or NOT DEAD; `qualifier`: what kind of FAIL or UNKNOWN, "" otherwise."""

    word: str
    qualifier: str
    reason: str
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The word with its qualifier: FAIL (dead)."""
        return f"{self.word} ({self.qualifier})" if self.qualifier else self.word

    @property
    def verdict(self) -> Verdict:
        """The verdict of the harness. NOT DEAD passes a run that was asked for no more than a wave."""
        return Verdict.PASS if self.word == NOT_DEAD else Verdict(self.word)

    @property
    def exit_code(self) -> ExitCode:
        """The exit code of a run that ends with this decision."""
        return ExitCode[self.verdict.value]


@dataclass(frozen=True)
class Gsm8kDecisions:
    """What wave, whole run, baseline, load sweep and the comparison with a live server say; None where there was none."""

    smoke: Decision | None = None
    full: Decision | None = None
    paired: Decision | None = None
    load: Decision | None = None
    live: Decision | None = None
    logprobs: Decision | None = None


@dataclass(frozen=True)
class Gsm8kRepeat:
    """The counts of one repeat of all questions."""

    repeat: int = 0
    questions: int = 0
    answered: int = 0
    correct_strict: int = 0
    correct_flexible: int = 0
    correct_numeric: int = 0


@dataclass(frozen=True)
class Gsm8kSpread:
    """The accuracies of a run's repeats, their mean, standard deviation, and the share of questions that flip."""

    accuracies: list[float] = field(default_factory=list)
    mean: float = 0.0
    deviation: float = 0.0
    flip_noise: float = 0.0


@dataclass(frozen=True)
class PathPoint:
    """The accuracy after `n` answered questions, of which `right` are right, with Wilson's interval `low` to `high`."""

    n: int = 0
    right: int = 0
    share: float = 0.0
    low: float = 0.0
    high: float = 0.0


@dataclass
class Gsm8kRequests:
    """Attempts: each is sent, and is answered or failed; retried are those after a first one. The client counts in it."""

    sent: int = 0
    answered: int = 0
    retried: int = 0
    failed: int = 0


@dataclass(frozen=True)
class Gsm8kError:
    """One distinct error: `count` attempts ended in it, and for `gave_up` questions it was the last word."""

    error: str = ""
    kind: str = ""
    count: int = 0
    gave_up: int = 0


@dataclass(frozen=True)
class Gsm8kResumed:
    """Whether `--resume` was given, and how many samples came from the journal."""

    flag: bool = False
    samples: int = 0


@dataclass(frozen=True)
class Gsm8kRun:
    """One GSM8K run; shares lie between 0 and 1.

    `interval` is Wilson's of strict, `intervals` that of each extractor, `[low, high]`; `seconds` by name. `requests` is
    None where the questions were answered in this process. `against` are the answers of a second live server.
    """

    verdict: str = "UNKNOWN"
    qualifier: str = ""
    reason: str = ""
    questions: int = 0
    answered: int = 0
    unanswered: int = 0
    not_asked: int = 0
    correct_strict: int = 0
    correct_flexible: int = 0
    correct_numeric: int = 0
    accuracy_strict: float | None = None
    accuracy_flexible: float | None = None
    accuracy_numeric: float | None = None
    interval: list[float] | None = None
    intervals: dict[str, list[float] | None] = field(default_factory=dict)
    metric: str = "strict"
    classes: dict[str, int] = field(default_factory=dict)
    finish_reasons: dict[str, int] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)
    repeats: list[Gsm8kRepeat] = field(default_factory=list)
    spread: Gsm8kSpread | None = None
    path: list[PathPoint] = field(default_factory=list)
    requests: Gsm8kRequests | None = None
    errors: list[Gsm8kError] = field(default_factory=list)
    seconds: dict[str, float | None] = field(default_factory=dict)
    task: Gsm8kTask = field(default_factory=Gsm8kTask)
    server: Gsm8kServer = field(default_factory=Gsm8kServer)
    settings: dict[str, Any] = field(default_factory=dict)
    resumed: Gsm8kResumed = field(default_factory=Gsm8kResumed)
    decisions: Gsm8kDecisions = field(default_factory=Gsm8kDecisions)
    probes: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    logprobs: Gsm8kLogprobs | None = None
    samples: list[Gsm8kSample] = field(default_factory=list)
    against: Gsm8kRun | None = None

    @property
    def label(self) -> str:
        """The verdict with its qualifier: FAIL (dead)."""
        return f"{self.verdict} ({self.qualifier})" if self.qualifier else self.verdict

    @property
    def task_name(self) -> str:
        """Name of the lm-eval task."""
        return str(self.task.get("name") or "gsm8k")

    @property
    def model(self) -> str:
        """Name of the model that the server stated."""
        return str(self.server.get("model") or "")

    @property
    def accuracy(self) -> float | None:
        """Share right by the extractor that counts (`metric`), of the answered questions; None where none was."""
        return self.accuracy_by(self.metric)

    @property
    def accuracy_interval(self) -> tuple[float, float] | None:
        """Wilson's 95 % interval of `accuracy`."""
        ends = self.intervals.get(self.metric) or self.interval
        return (ends[0], ends[1]) if ends is not None and len(ends) == 2 else None

    def accuracy_by(self, metric: str) -> float | None:
        """Return the share right by an extractor: strict, flexible or numeric; that of strict for any other word."""
        values = {"flexible": self.accuracy_flexible, "numeric": self.accuracy_numeric}
        return values.get(metric, self.accuracy_strict)

    def to_json(self) -> dict[str, Any]:
        """Return what the record holds: every field, without those of `ONLY_SERVED` where there was no server."""
        # The samples are JSON as they are; copying 1,319 of them deeply takes longer than writing them.
        found = asdict(replace(self, samples=[], against=None)) | {"samples": self.samples}
        for name in ONLY_SERVED if self.requests is None else ():
            del found[name]
        if self.against is None:
            del found["against"]
        else:
            found["against"] = self.against.to_json()
        return found
