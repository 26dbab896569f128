"""What the user asked for, checked before the first request."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.gsm8k.counts import METRICS, checked_limits
from harness.gsm8k.credentials import clean_fields, field_secrets, shell_secrets
from harness.gsm8k.judgement import EXPECT, MAX_DROP, MAX_UNANSWERED
from harness.gsm8k.reasoning import Reasoning
from harness.verdict import UsageError

if TYPE_CHECKING:
    from harness.gsm8k.credentials import Endpoint

MAX_CONCURRENCY = 4096
WAVE = 32
MAX_TOKENS = 1024
"""Limit of an answer where neither the user nor the task (`max_gen_toks`) states one."""
SERVE_S = 1800.0
"""Seconds that a server which is started here may load, where --wait-ready does not say."""
PROBE_TOKENS = 8000
"""Length of the long prompts of `--probe`: a kernel was right up to 5,500 tokens (TensorRT-LLM#15295)."""


@dataclass(frozen=True)
class Gsm8kSettings:
    """One run's settings. Shares are fractions: 0.9, not 90."""

    endpoint: Endpoint
    out: Path
    api_key: str = field(default="", repr=False)
    model: str | None = None
    task: str = "gsm8k"
    dataset: Path | None = None
    fewshot: Path | None = None
    num_fewshot: int | None = None
    chat: bool = False
    multiturn: bool = True
    system_instruction: str | None = None
    mode: str = "full"
    questions: int | None = None
    repeat: int = 1
    seed: int = 0
    concurrency: int = 32
    max_tokens: int | None = None
    timeout: float = 300.0
    retry_seconds: float = 120.0
    wait_ready: float = 0.0
    stream: bool = False
    expect: float = EXPECT
    metric: str = "strict"
    min_accuracy: float | None = None
    baseline: Path | None = None
    max_drop: float | None = None
    preset: str | None = None
    force_unlike: bool = False
    against: Endpoint | None = None
    against_model: str | None = None
    max_unanswered: float = MAX_UNANSWERED
    limits: dict[str, float] = field(default_factory=dict)
    logprobs: bool = False
    logprobs_baseline: Path | None = None
    max_kl: float | None = None
    resume: bool = False
    sweep: bool = True
    probe: bool = False
    probe_tokens: int = PROBE_TOKENS
    reasoning: Reasoning = Reasoning.KEEP
    extra_body: dict[str, Any] = field(default_factory=dict, repr=False)
    serve: str = field(default="", repr=False)

    @property
    def hidden(self) -> tuple[str, ...]:
        """Secrets among the settings, beside the key and those of the base URL."""
        return (*field_secrets(self.extra_body), *shell_secrets(self.serve))

    @property
    def ready_s(self) -> float:
        """Seconds that the server may take until it is ready. One that is started here loads its model first."""
        return self.wait_ready or (SERVE_S if self.serve else 0.0)

    def check(self) -> None:
        """Refuse what cannot be meant.

        Raises:
            UsageError: one line that names the option, what it must be and what it is.
        """
        for name in ("expect", "min_accuracy", "max_drop", "max_unanswered"):
            _check_share(name, getattr(self, name))
        if not 0 < self.expect < 1:
            raise UsageError(f"--expect must lie between 0 and 1, got {self.expect:g}")
        self._check_numbers()
        if self.metric not in METRICS:
            raise UsageError(f"--metric must be one of {', '.join(METRICS)}, got {self.metric!r}")
        if self.mode == "smoke" and (
            self.baseline is not None
            or self.min_accuracy is not None
            or self.preset is not None
            or self.repeat > 1
        ):
            raise UsageError(
                "--mode smoke asks one wave: it cannot judge --min-accuracy, --baseline, --preset or --repeat"
            )
        if self.max_drop is not None and self.baseline is None and self.against is None:
            raise UsageError("--max-drop is judged against a baseline: give --baseline or --against URL too")
        if self.force_unlike and self.baseline is None and self.preset is None:
            raise UsageError("--force-unlike is about a comparison: give --baseline or --preset too")
        self._check_against()
        self._check_logprobs()
        checked_limits(self.limits)

    @property
    def may_stop_early(self) -> bool:
        """Whether a comparison of two servers may end the run: not where something else needs all questions."""
        return self.min_accuracy is None and self.baseline is None and self.preset is None

    def _check_against(self) -> None:
        if self.against is None:
            if self.against_model is not None:
                raise UsageError(
                    "--against-model names the model of the second server: give --against URL too"
                )
            return
        if self.repeat > 1 or (self.mode == "smoke" and not self.logprobs):
            raise UsageError(
                "--against URL asks every question once of both: leave out --repeat, and --mode smoke without --logprobs"
            )
        if self.against.url == self.endpoint.url and self.against_model in {None, self.model}:
            raise UsageError(
                "--against URL is the server of --base-url: the two must differ, at least in the model"
            )

    def _check_logprobs(self) -> None:
        if self.logprobs_baseline is not None and self.against is not None:
            raise UsageError("--logprobs-baseline and --against URL: compare with one of them")
        if not self.logprobs and (self.logprobs_baseline is not None or self.max_kl is not None):
            raise UsageError("--logprobs-baseline and --max-kl belong to --logprobs: give it too")
        if self.max_kl is not None and not 0 < self.max_kl < float("inf"):
            raise UsageError(f"--max-kl must be a number of nats per token above 0, got {self.max_kl:g}")

    def _check_numbers(self) -> None:
        for name, smallest in (
            ("concurrency", 1),
            ("repeat", 1),
            ("max_tokens", 1),
            ("questions", 1),
            ("num_fewshot", 0),
            ("probe_tokens", 1),
        ):
            value = getattr(self, name)
            if value is not None and value < smallest:
                raise UsageError(f"{_option(name)} must be at least {smallest}, got {value}")
        if self.concurrency > MAX_CONCURRENCY:
            raise UsageError(f"--concurrency must be at most {MAX_CONCURRENCY}, got {self.concurrency}")
        for name in ("timeout", "retry_seconds", "wait_ready"):
            value = getattr(self, name)
            if not 0 <= value < float("inf") or (name == "timeout" and value == 0):
                raise UsageError(f"{_option(name)} must be a number of seconds, got {value:g}")

    def as_json(self) -> dict[str, Any]:
        """Return the settings that shape the result, for the record: no key, no path, no credentials."""
        names = (
            "task",
            "num_fewshot",
            "chat",
            "multiturn",
            "system_instruction",
            "mode",
            "questions",
            "repeat",
            "seed",
            "concurrency",
            "max_tokens",
            "timeout",
            "retry_seconds",
            "wait_ready",
            "stream",
            "expect",
            "metric",
            "min_accuracy",
            "max_drop",
            "preset",
            "force_unlike",
            "max_unanswered",
            "limits",
            "logprobs",
            "max_kl",
            "sweep",
            "probe",
            "probe_tokens",
        )
        settings = {name: getattr(self, name) for name in names}
        settings["task"] = Path(self.task).name
        settings |= {"reasoning": self.reasoning.value, "extra_body": clean_fields(self.extra_body)}
        settings["serve"] = bool(self.serve)
        settings["baseline"] = self.baseline is not None
        settings["against"] = self.against is not None
        settings["logprobs_baseline"] = self.logprobs_baseline is not None
        if (self.baseline or self.against) and self.max_drop is None:
            settings["max_drop"] = MAX_DROP
        return settings


def check_output(folder: Path) -> None:
    """Create the output folder and write to it, so that no run ends with nowhere to put its result.

    Raises:
        UsageError: it cannot be created or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".check-") as file:
            file.write(b"x" * 4096)
            file.flush()
    except OSError as error:
        raise UsageError(f"--out {folder}: cannot be written ({error.strerror or error})") from None
    for name in ("record.json", "journal.jsonl", "report.html", "junit.xml"):
        if (folder / name).is_dir():
            raise UsageError(f"--out {folder}: {name} is a folder")


def check_file(path: Path, option: str) -> None:
    """Create the folder of an output file and open the file, without changing it.

    Raises:
        UsageError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8"):
            pass
    except OSError as error:
        raise UsageError(f"{option} {path}: cannot be written ({error.strerror or error})") from None


def allow_files(concurrency: int) -> None:
    """Raise the limit of open files as far as the connections need; the sweep uses up to 128 of them.

    Raises:
        UsageError: the system does not allow that many.
    """
    import resource

    needed = max(concurrency, 128) + 64
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise UsageError(f"--concurrency {concurrency} needs {needed} open files, this system allows {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _check_share(name: str, value: float | None) -> None:
    if value is None or 0 <= value <= 1:
        return
    hint = f"; did you mean {value / 100:g}?" if 1 < value <= 100 else ""
    raise UsageError(f"{_option(name)} must be a fraction between 0 and 1, got {value:g}{hint}")
