"""Ill servers, made from a seed: twenty illnesses of eight families, each with the verdict that its ground truth asks for.

`drawn(seed)` gives one server of each illness, its strength and moment drawn from the seed: `config` is for fault_server.py
(`illness`: illness.py), `settings` are those of the run. All have 200 questions and answer right but for what is wrong with
them, so what a run should say follows from the illness alone. `verdicts` holds one, or two where both are true.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

QUESTIONS = 200
LATENCY = 0.06
JUDGED = {"min_accuracy": 0.8}
"""Without a threshold a healthy run has nothing to pass."""


@dataclass(frozen=True)
class IllServer:
    family: str
    name: str
    verdicts: tuple[str, ...]
    config: dict = field(default_factory=dict)
    settings: dict = field(default_factory=dict)


def ill(
    family: str, name: str, verdict: str, *rules: dict, settings: dict | None = None, **config
) -> IllServer:
    config |= {"illness": list(rules)}
    return IllServer(family, name, tuple(verdict.split(" or ")), config, {**JUDGED, **(settings or {})})


def load(draw: random.Random) -> Iterator[IllServer]:
    k = draw.choice([8, 12, 16, 24, 64, 80])
    yield ill("load", f"dead above {k}", "FAIL (load)", {"effect": "wrong", "in_flight": [k + 1, None]})
    yield ill("load", "dead alone", "FAIL (load)", {"effect": "wrong", "in_flight": [1, 1]})
    size = draw.choice([8, 32])
    yield ill("load", f"dead at {size}", "FAIL (load)", {"effect": "wrong", "in_flight": [size, size]})
    k = draw.choice([48, 64])
    half = {"effect": "wrong", "in_flight": [k + 1, None], "share": 0.5}
    yield ill("load", f"half dead above {k}", "FAIL (load)", half)
    k = draw.choice([40, 64])
    yield ill("load", f"floods above {k}", "FAIL (load)", {"effect": "flood", "in_flight": [k + 1, None]})


def order(draw: random.Random) -> Iterator[IllServer]:
    after = draw.randrange(60, 140)
    yield ill(
        "order",
        f"wrong from request {after} on",
        "FAIL (degenerate)",
        {"effect": "wrong", "requests": [after, None]},
    )
    requests = draw.randrange(220, 320)
    yield ill(
        "order",
        f"all wrong by request {requests}",
        "FAIL (degenerate) or FAIL (accuracy)",
        {"effect": "wrong", "grows": requests},
    )


def time(draw: random.Random) -> Iterator[IllServer]:
    slow = {"fault": "silent", "share": 0.1, "tries": 1, "latency": 0}
    yield ill("time", "a tenth hangs once", "PASS", faults=[slow], settings={"timeout": 1.0})
    stuck = {"fault": "hang", "share": draw.uniform(0.1, 0.2)}
    settings = {"timeout": 0.5, "concurrency": 64}
    yield ill("time", "some always hang", "UNKNOWN (infra)", faults=[stuck], settings=settings)


def length(draw: random.Random) -> Iterator[IllServer]:
    yield ill(
        "length", "never stops", "FAIL (degenerate)", {"effect": "runs_on"}, settings={"max_tokens": 256}
    )
    cut = {"effect": "cut", "chance": draw.uniform(0.3, 0.5)}
    yield ill("length", "cuts answers", "FAIL (truncated)", cut)
    yield ill(
        "length",
        "long prompts are lost",
        "FAIL (dead)",
        {"effect": "wrong", "longer": draw.randrange(200, 500)},
    )


def formats(draw: random.Random) -> Iterator[IllServer]:
    yield ill("format", "no mark", "FAIL (format)", {"effect": "unmarked"})
    accuracy = draw.uniform(0.2, 0.3)
    weak = {"settings": {"expect": 0.1, "min_accuracy": None}, "wrong_share": 1 - accuracy}
    yield ill("format", "no mark of a weak model", "FAIL (format)", {"effect": "unmarked"}, **weak)


def nulls(draw: random.Random) -> Iterator[IllServer]:
    yield ill("null", "all is reasoning", "FAIL (format)", {"effect": "reasoning"}, settings={"chat": True})
    yield ill(
        "null", "some are null", "FAIL (degenerate)", {"effect": "null", "chance": draw.uniform(0.2, 0.4)}
    )
    yield ill(
        "null", "some are empty", "FAIL (degenerate)", {"effect": "empty", "share": draw.uniform(0.2, 0.4)}
    )


def cache(draw: random.Random) -> Iterator[IllServer]:
    yield ill(
        "cache", "what was asked before is spoiled", "FAIL (degenerate)", {"effect": "wrong", "seen": 1}
    )
    other = {"effect": "other", "chance": draw.uniform(0.4, 0.5)}
    yield ill("cache", "answers of others", "FAIL (accuracy)", other, settings={"expect": 0.2})


def restart(draw: random.Random) -> Iterator[IllServer]:
    after = draw.randrange(40, 120)
    away = {"fault": "status", "status": 503, "after": after, "for_s": 1.0}
    yield ill(
        "restart",
        f"loads again after request {after}",
        "PASS",
        faults=[away],
        settings={"retry_seconds": 30.0},
    )
    closed = {"fault": "reset_before", "after": after, "for_s": draw.uniform(4.0, 6.0)}
    yield ill(
        "restart",
        f"a proxy closes after request {after}",
        "PASS",
        faults=[closed],
        settings={"retry_seconds": 60.0},
    )


FAMILIES: tuple[Callable[[random.Random], Iterator[IllServer]], ...] = (
    load, order, time, length, formats, nulls, cache, restart,
)  # fmt: skip


def drawn(seed: int) -> list[IllServer]:
    """Return the servers of one seed, in a fixed order."""
    draw = random.Random(seed)
    return [server for family in FAMILIES for server in family(draw)]
