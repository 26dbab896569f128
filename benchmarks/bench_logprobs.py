"""Which planted faults a logprob comparison of the canary finds with 32 questions (docs/gsm8k-logprobs.md).

    python benchmarks/bench_logprobs.py [NAME ...] [--answer-tokens 64] [--jobs 1]

Each fault, planted in the variant of the layer that `harness canary table` takes for it, against that variant without it; and
the right variants against plain `eager`. Prints a line each as it is done.
"""

from __future__ import annotations

import argparse
import asyncio
import concurrent.futures
import multiprocessing
import random
import time
from dataclasses import dataclass, field
from functools import cache
from typing import Any

QUESTIONS = 32
TWICE = ("races",)
"""Categories whose faults differ from themselves: their second pass is run too."""


@dataclass
class Heard:
    """A source that remembers its own answers."""

    source: Any
    answers: dict[int, list[str]] = field(default_factory=dict)

    async def prepare(self, question: Any) -> Any:
        return await self.source.prepare(question)

    async def passes(self, questions: Any) -> Any:
        found = await self.source.passes(questions)
        self.answers |= {index: [p.token for p in passes.second["answer"]] for index, passes in found.items()}
        return found


@cache
def asked() -> tuple[list[Any], tuple[str, ...]]:
    """Return the questions and the stop strings."""
    from harness.gsm8k.task import load_task

    task = load_task("gsm_canary")
    questions = list(task.questions)
    random.Random(0).shuffle(questions)
    return questions[:QUESTIONS], task.stop


def source_of(candidate: str, options: dict[str, Any], tokens: int, *, twice: bool) -> Heard:
    """Return a canary with a candidate as a source."""
    import torch

    from harness.canary import load_canary
    from harness.canary.logprob_source import InProcess

    torch.set_num_threads(1)
    return Heard(InProcess(load_canary(candidate=candidate, **options), asked()[1], tokens, twice=twice))


@cache
def healthy(candidate: str, options: tuple[tuple[str, Any], ...], tokens: int) -> Any:
    """Return a variant without a fault, asked twice, once for all faults that it is compared with."""
    from harness.gsm8k.logprobs.passes import record_passes

    source = source_of(candidate, dict(options), tokens, twice=True)
    return asyncio.run(record_passes(source, asked()[0], {}))


def line_of(line: Any, tokens: int) -> str:
    """Return what is printed of a fault or a right variant."""
    from harness.gsm8k.logprobs.compare import compare_logprobs

    started = time.monotonic()
    options = {"ranks": line.ranks, "shard": line.shard, "transport": line.transport}
    base, plus, _ = line.candidate.partition("+")
    variant = (base, options) if plus else ("eager", {"ranks": 1, "shard": "experts", "transport": "bf16"})
    against = healthy(variant[0], tuple(variant[1].items()), tokens)
    try:
        twice = not plus or line.facts.category in TWICE
        source = source_of(line.candidate, options, tokens, twice=twice)
        found = asyncio.run(compare_logprobs(source, against, asked()[0]))
    except Exception as error:  # noqa: BLE001 - a broken candidate may raise anything
        return f"| {line.name} | raised {type(error).__name__} | | | | | | |"
    part, decision = found.part(), found.decision()
    changed = sum(
        words != [p.token for p in against.found[index].first["answer"]]
        for index, words in source.answers.items()
    )
    kl = " | ".join(f"{part.kl_by[kind]:.1e}" for kind in ("reference", "answer"))
    most = max(question.kl for question in part.questions)
    return (
        f"| {line.name} | {decision.label} | {len(part.questions)} | {kl} | {most:.1e} | {part.agreement:.4f} | "
        f"{changed} | {time.monotonic() - started:.0f} s |"
    )


def main() -> None:
    from harness.canary.table import planned_lines

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--answer-tokens", type=int, default=64)
    parser.add_argument("--jobs", type=int, default=1)
    options = parser.parse_args()
    lines = [
        line
        for line in planned_lines("eager", [])
        if (line.name in options.names if options.names else line.candidate != "bf16")
    ]
    print("| fault | verdict | questions | KL reference | KL answer | most | agreement | changed | time |")
    print("|---|---|---|---|---|---|---|---|---|")
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(options.jobs, context) as pool:
        running = [pool.submit(line_of, line, options.answer_tokens) for line in lines]
        for done in concurrent.futures.as_completed(running):
            print(done.result(), flush=True)


if __name__ == "__main__":
    main()
