"""Does an answer depend on its place in a batch? The same request at the start, within and at the end of a wave.

A place is the order in which requests are sent; a server batches them about so. The last rows of a tile and rows behind
an expert's last token are where kernels forget a mask.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from harness.gsm8k.answer_pairs import compared

if TYPE_CHECKING:
    from harness.gsm8k.client import Exchange
    from harness.gsm8k.questions import Asker
    from harness.gsm8k.task import Question

PLACES = (0, 5, 10, 15)
TARGETS = 8


async def run(asker: Asker, targets: list[Question], others: list[Question]) -> dict[str, Any]:
    """Ask each of some targets at every place of a wave of other questions; compare with its answer at the first place."""
    targets = targets[:TARGETS]
    size = PLACES[-1] + 1
    company = (others or targets) * size
    found: dict[int, dict[int, Exchange]] = {place: {} for place in PLACES}
    for number, target in enumerate(targets):
        wave = [target if place in PLACES else company[number + place] for place in range(size)]
        exchanges = await asyncio.gather(*(asker.ask(asker.prompt(q)) for q in wave))
        for place in PLACES:
            found[place][target.index] = exchanges[place]
    return {
        "size": size,
        "places": [{"place": p, **compared(asker, targets, found[PLACES[0]], found[p])} for p in PLACES[1:]],
    }


def notes(probe: dict[str, Any], surprise: float) -> list[str]:
    """Return what was found, in words, where chance explains it with less than this probability."""
    return [
        f"accuracy changes with the place in a batch: {found['right']} of {found['compared']} right at place "
        f"{found['place'] + 1} of {probe['size']}, {found['right_alone']} at the first (two-sided mid-p {found['p']:.1g})"
        for found in probe.get("places", [])
        if found["p"] is not None and found["p"] < surprise
    ]
