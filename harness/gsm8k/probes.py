"""Requests beside the task: does the server answer the same request the same way, and prompts of any length?

Sanity and determinism (two requests) are part of every run. `--probe` adds repeats, the prefix cache, places in a batch
and prompt lengths. How many requests are in flight is the sweep's concern (load.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from harness.gsm8k import cache_probe, length_probe, place_probe
from harness.gsm8k.answer_pairs import same

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.gsm8k.client import Exchange
    from harness.gsm8k.questions import Asker, Planned
    from harness.gsm8k.task import Question

SANITY_TOKENS = 64
TARGETS = 16
REPEATS = 4
SURPRISE = 0.01

Probe = dict[str, Any]


class Sanity:
    """Two byte-identical short requests. Started from the pool as two steps, so that they wait for no answer of the wave."""

    def __init__(self, asker: Asker, question: Question) -> None:
        self._asker = asker
        self._question = question
        self._exchanges: list[Exchange] = []

    async def ask(self) -> Probe | None:
        """Ask once; return the probe's result after the second time."""
        exchange = await self._asker.ask(self._asker.prompt(self._question), SANITY_TOKENS)
        self._exchanges.append(exchange)
        if len(self._exchanges) < 2:
            return None
        return {"ran": True, "index": self._question.index, **same(self._exchanges)}


async def run_probes(
    asker: Asker, planned: Sequence[Planned], journaled: dict[str, Probe], tokens: int
) -> dict[str, Probe]:
    """Run the suite of `--probe`, except what the journal holds; the caller journals what is returned.

    Args:
        asker: asks the server.
        planned: the questions of the run, in its order.
        journaled: results of an earlier part of this run, by name.
        tokens: length of the long prompts.
    """
    targets = [p.question for p in planned if p.repeat == 0][:TARGETS]
    others = [p.question for p in planned if p.repeat == 0][TARGETS:]
    results: dict[str, Probe] = {}
    if "repeats" not in journaled:
        results["repeats"] = same([await _ask(asker, targets[0]) for _ in range(REPEATS)])
    if "cache" not in journaled:
        results["cache"] = await cache_probe.run(asker, targets)
    if "places" not in journaled:
        results["places"] = await place_probe.run(asker, targets, others)
    if "lengths" not in journaled:
        results["lengths"] = await length_probe.run(asker, targets, others, tokens)
    return results


def notes(probes: dict[str, Probe]) -> list[str]:
    """Return what the probes found out, in words, most serious first."""
    said = cache_probe.notes(probes.get("cache", {}), SURPRISE)
    said += place_probe.notes(probes.get("places", {}), SURPRISE)
    said += length_probe.notes(probes.get("lengths", {}), SURPRISE)
    for name in ("sanity", "repeats"):
        probe = probes.get(name, {})
        if probe.get("same") is False:
            said.append(
                f"the same request at temperature 0 gave {probe['distinct']} different answers in {probe['answered']} "
                f"(from character {probe['first_difference']} on): expect flip noise"
            )
    return list(dict.fromkeys(said))


async def _ask(asker: Asker, question: Question) -> Exchange:
    return await asker.ask(asker.prompt(question))
