"""The run record: everything one run found out, as one versioned JSON file (`record.json`).

HTML, JUnit, step summaries and comparisons are all drawn from it, so whatever a person may want to see later has to
be in here. Standard library only; no torch.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from harness.records.finding import Finding
from harness.records.from_json import RecordError, build_from_json
from harness.records.parts.canary import CanaryPart
from harness.records.parts.compile import CompileRun
from harness.records.parts.gsm8k import Gsm8kRun
from harness.records.parts.mutants import MutantsRun
from harness.records.parts.part import Part
from harness.records.parts.races import RacesRun
from harness.records.parts.replay import ReplayRun
from harness.records.parts.sharing import ShardPart, Sharing
from harness.records.whole_files import write_whole
from harness.verdict import Verdict

SCHEMA_VERSION = 1


class NotARecordError(RecordError):
    """JSON, but of something else: it has no schema."""


@dataclass
class Environment:
    """Where the run took place. `packages` maps distribution names to versions."""

    python: str = ""
    platform: str = ""
    cpu_count: int = 0
    device: str = "cpu"
    gpus: list[str] = field(default_factory=list)
    cuda: str = ""
    driver: str = ""
    packages: dict[str, str] = field(default_factory=dict)
    git_commit: str = ""
    git_dirty: bool | None = None


@dataclass
class CandidateRun:
    """One candidate: what it declared, what was measured through it, and why it did not run if it did not.

    `findings` say what its arithmetic is, `fingerprint` is a short hash of them and of outputs on fixed operands.
    """

    name: str
    requested: bool = False
    ran: bool = False
    reason: str = ""
    declared: dict[str, Any] = field(default_factory=dict)
    measured: dict[str, Any] = field(default_factory=dict)
    missing_stages: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    fingerprint: str = ""


@dataclass
class Histogram:
    """Counts of error divided by bound. `edges` are log2 of the ratio, `len(counts) == len(edges) + 1`.

    The first count holds everything up to `edges[0]` (exact hits included), count i holds `edges[i-1] < x <= edges[i]`, the
    last everything above `edges[-1]`. A ratio above 1 (log2 above 0) is illegal; 1 itself is legal. `worst` is the
    largest ratio counted (None where it was not kept), `worst_at` the element that has it and its problem.
    """

    edges: list[float]
    counts: list[int]
    worst: float | None = None
    worst_at: str = ""

    def add(self, other: Histogram) -> None:
        """Add another histogram with the same edges to this one."""
        if self.edges != other.edges:
            raise ValueError(f"Histogram.add: edges must be equal, got {self.edges} and {other.edges}")
        self.counts = [a + b for a, b in zip(self.counts, other.counts, strict=True)]
        if other.worst is not None and (self.worst is None or other.worst > self.worst):
            self.worst, self.worst_at = other.worst, other.worst_at


@dataclass
class Heatmap:
    """How many illegal elements fell into each cell of a grid, for example experts x blocks of rows.

    `title` says of what where that is not the failure itself: one expert's rows, another problem.
    """

    rows: list[str]
    columns: list[str]
    counts: list[list[int]]
    row_label: str = "expert"
    column_label: str = "row"
    title: str = ""


@dataclass
class Failure:
    """One failing problem of one rule, with everything needed to see it and to repeat it.

    `kind` is one of: illegal, crash, timeout, rejected, known. `heatmap` is the failing problem's by expert and
    row; `heatmaps` are further views: rows by blocks of columns, and the same two of the largest problem that failed,
    since a problem shrunk to one row shows no pattern.
    """

    rule: str
    candidate: str
    problem: str
    stage: str
    kind: str
    message: str
    reproduce: str
    place: dict[str, int] = field(default_factory=dict)
    extent: dict[str, Any] = field(default_factory=dict)
    heatmap: Heatmap | None = None
    diagnosis: list[dict[str, Any]] = field(default_factory=list)
    known_issue: str = ""
    heatmaps: list[Heatmap] = field(default_factory=list)


@dataclass
class RuleResult:
    """What one rule found on one candidate, over all problems.

    `judged` counts elements by how they were judged ("bit equality, accumulator of 24 bits measured": 51200).
    `powerless` counts examples on which zeros, x0.5, a rolled copy or one wrong element would have
    been accepted as well. `extents` is how far the problems reached on which it had power, each extent by itself
    (harness.problems.reach). `oracle` counts the elements of GEMMs by the arithmetic in which their dot products were
    exact ("float32, certified by the product of norms": reference/exact_products.py). `kernels` counts the problems on which each kernel ran, as the candidate's package names
    it. A rule that says
    nothing about the candidate has its reason in `skipped`, no examples, and a verdict that does not count.
    """

    rule: str
    title: str
    candidate: str
    verdict: Verdict
    reason: str = ""
    examples: int = 0
    empty: int = 0
    powerless: int = 0
    compared: int = 0
    judged: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    worst_ratio: float | None = None
    worst_problem: str = ""
    extents: dict[str, int] = field(default_factory=dict)
    histograms: dict[str, Histogram] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    skipped: str = ""
    kernels: dict[str, int] = field(default_factory=dict)
    oracle: dict[str, int] = field(default_factory=dict)


@dataclass
class Skip:
    """Something that did not run, and why."""

    what: str
    reason: str


@dataclass
class RunRecord:
    """One run. Each part beside the rules holds JSON of a documented structure; absent parts are None.

    Commands give a part as its type and readers get it back as that: `gsm8k_run`, `canary_part`, `mutants_run`,
    `compile_run`, `races_run`, `replay_run`, `sharing_part`, `shard_part` (harness/records/parts). What the fields mean: `gsm8k`: harness/gsm8k/README.md; `canary`:
    harness/canary/README.md; `mutants`: harness/mutants/README.md; `compile`: harness/compile/README.md; `races`:
    docs/cutedsl-cpu.md; `replay`: docs/capture.md.
    """

    run_id: str
    created: str
    command: list[str]
    verdict: Verdict = Verdict.UNKNOWN
    reason: str = ""
    schema: int = SCHEMA_VERSION
    harness_version: str = ""
    profile: str = ""
    seed: int = 0
    seconds: float = 0.0
    interrupted: bool = False
    environment: Environment = field(default_factory=Environment)
    candidates: list[CandidateRun] = field(default_factory=list)
    rules: list[RuleResult] = field(default_factory=list)
    traps: dict[str, int] = field(default_factory=dict)
    missing_traps: list[str] = field(default_factory=list)
    skips: list[Skip] = field(default_factory=list)
    known_failures: list[dict[str, Any]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    gsm8k: dict[str, Any] | None = None
    canary: dict[str, Any] | None = None
    mutants: dict[str, Any] | None = None
    compile: dict[str, Any] | None = None
    races: dict[str, Any] | None = None
    replay: dict[str, Any] | None = None
    sharing: dict[str, Any] | None = None
    shard: dict[str, Any] | None = None

    gsm8k_run = Part(Gsm8kRun, "gsm8k")
    canary_part = Part(CanaryPart, "canary")
    canary_stage = canary_part  # the older name
    mutants_run = Part(MutantsRun, "mutants")
    compile_run = Part(CompileRun, "compile")
    races_run = Part(RacesRun, "races")
    replay_run = Part(ReplayRun, "replay")
    sharing_part = Part(Sharing, "sharing")
    shard_part = Part(ShardPart, "shard")

    @property
    def failures(self) -> list[Failure]:
        """Every failing problem of every rule, known failures included (their kind is "known")."""
        return [failure for rule in self.rules for failure in rule.failures]

    def rule(self, rule: str, candidate: str) -> RuleResult | None:
        """Return what one rule found on one candidate, None where the run has no such result."""
        return next((r for r in self.rules if (r.rule, r.candidate) == (rule, candidate)), None)

    def to_json(self) -> str:
        """Return the record as JSON text, one field a line in field order; NaN and infinity are refused.

        Without json's own indent, which would take its slow encoder: a record can hold 1,319 answers.
        """
        lines = (
            f"{json.dumps(known.name)}: {json.dumps(getattr(self, known.name), allow_nan=False, default=asdict)}"
            for known in fields(self)
        )
        return "{\n" + ",\n".join(lines) + "\n}\n"

    def write(self, path: Path) -> None:
        """Write the record so that a reader never sees half of it. Raises OSError where it cannot be written."""
        write_whole(path, self.to_json())


def load_record(path: str | Path) -> RunRecord:
    """Read a record file.

    Raises:
        RecordError: the file is missing, is not JSON, comes from a newer schema, or a field has the wrong type; the
            message names the field.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "record.json"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecordError(f"{path}: cannot be read ({error.strerror or error})") from error
    except ValueError as error:
        raise RecordError(f"{path}: is not a JSON record ({error})") from error
    except RecursionError as error:
        raise RecordError(f"{path}: is not a JSON record (nested too deeply)") from error
    return parse_record(data, f"{path}: record")


def parse_record(data: Any, where: str) -> RunRecord:
    """Return the record that parsed JSON describes; `where` starts the messages. Raises RecordError."""
    if not isinstance(data, dict) or "schema" not in data:
        raise NotARecordError(f"{where} is not a run record: the field 'schema' is missing")
    schema = data["schema"]
    if not isinstance(schema, int) or isinstance(schema, bool) or schema > SCHEMA_VERSION:
        raise RecordError(
            f"{where} has schema {schema!r:.80}, this version of the harness reads up to {SCHEMA_VERSION}; "
            "read it with the version that wrote it, or a newer one"
        )
    record: RunRecord = build_from_json(RunRecord, data, where)
    return record
