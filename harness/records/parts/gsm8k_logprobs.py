"""`record.gsm8k.logprobs`: a comparison of two servers by their logprobs."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Gsm8kLogprobQuestion:
    """One question of a logprob comparison: mean KL in nats per token, and counts of tokens.

    `kl` is that between the servers, `within` and `within_server` those of `against` and of the server with themselves;
    each the larger of the reference answer's and of the own answer's. `agree` counts tokens of `tokens` with one likeliest.
    """

    index: int
    kl: float
    within: float
    within_server: float
    tokens: int
    agree: int


@dataclass(frozen=True)
class Gsm8kLogprobPlace:
    """One place of a logprob comparison: of the reference answer or of the server's own, counted from its first token."""

    index: int
    answer: str
    place: int
    token: str
    kl: float
    likeliest: str
    likeliest_against: str


@dataclass(frozen=True)
class Gsm8kLogprobs:
    """A logprob comparison (harness/gsm8k/logprobs/compare.py). KL in nats per token, over all places compared.

    `kl_by` has "reference" and "answer"; `forms` says how each was asked of the server; `improper` counts places where the
    server gave no distribution; `lost` are questions without logprobs by error; `worst` the places furthest apart.
    """

    planned: int = 0
    allowed: float = 0.0
    tokens: int = 0
    kl: float = 0.0
    kl_by: dict[str, float] = field(default_factory=dict)
    within: float = 0.0
    within_server: float = 0.0
    agreement: float | None = None
    agreement_interval: list[float] | None = None
    improper: int = 0
    forms: dict[str, str] = field(default_factory=dict)
    lost: dict[str, int] = field(default_factory=dict)
    questions: list[Gsm8kLogprobQuestion] = field(default_factory=list)
    worst: list[Gsm8kLogprobPlace] = field(default_factory=list)
