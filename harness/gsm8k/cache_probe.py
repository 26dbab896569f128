"""Does an answer depend on what the server has cached? The same questions again, and again after the cache is emptied.

The second, cached run was wrong where the first was right (vllm#40172): a run that asks each question once never sees it.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from harness.gsm8k.answer_pairs import compared
from harness.gsm8k.errors import RequestError

if TYPE_CHECKING:
    from harness.gsm8k.client import Exchange
    from harness.gsm8k.questions import Asker
    from harness.gsm8k.task import Question

FLUSHES = ("flush_cache", "reset_prefix_cache")
"""SGLang's, and vLLM's with VLLM_SERVER_DEV_MODE=1; both are POST, beside the API."""
FLUSH_S = 10.0


async def run(asker: Asker, targets: list[Question]) -> dict[str, Any]:
    """Ask the targets after a flush, again, and again after a flush; compare with the first time."""
    flush = await _flush(asker)
    first = await _ask(asker, targets)
    second = compared(asker, targets, first, await _ask(asker, targets))
    if flush is None:
        return {"flush": None, "second": second, "flushed": None}
    await _flush(asker)
    return {
        "flush": flush,
        "second": second,
        "flushed": compared(asker, targets, first, await _ask(asker, targets)),
    }


def notes(probe: dict[str, Any], surprise: float) -> list[str]:
    """Return what was found, in words, where chance explains it with less than this probability."""
    times = {"second": "from the cache", "flushed": f"after /{probe.get('flush')}"}
    return [
        f"accuracy changes with the cache: {found['right']} of {found['compared']} right {when}, "
        f"{found['right_alone']} the first time (two-sided mid-p {found['p']:.1g})"
        for name, when in times.items()
        if (found := probe.get(name)) and found["p"] is not None and found["p"] < surprise
    ]


async def _ask(asker: Asker, targets: list[Question]) -> dict[int, Exchange]:
    exchanges = await asyncio.gather(*(asker.ask(asker.prompt(q)) for q in targets))
    return {q.index: e for q, e in zip(targets, exchanges, strict=True)}


async def _flush(asker: Asker) -> str | None:
    """Empty the server's cache; return the path that did it, None where the server has none."""
    for path in FLUSHES:
        try:
            status = await asker.client.post(asker.client.endpoint.root(path), FLUSH_S)
        except RequestError:
            continue
        if status == 200:
            return path
    return None
