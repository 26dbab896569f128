"""Problems from a seed. The same seed gives the same problems on every machine and in every process."""

from __future__ import annotations

import json
import random
from collections.abc import Container, Iterator, Sequence
from functools import cache
from pathlib import Path

from harness.canary.problems.families import FAMILIES, UNSEEN_FAMILIES
from harness.canary.problems.problem import WordProblem, key_of
from harness.canary.problems.story import TEMPLATES, RedrawError, Story

DATA = Path(__file__).parents[1] / "data"
TEST, UNSEEN = DATA / "test.jsonl", DATA / "unseen.jsonl"


def tell(template: str, seeded: random.Random, exclude: Container[str] = frozenset()) -> WordProblem:
    """Return one problem of a template whose key is not in `exclude`."""
    family = template.partition("/")[0]
    template_function = TEMPLATES[family][template]
    while True:
        story = Story(seeded)
        try:
            template_function(story)
        except RedrawError:
            continue
        answer = "\n".join((*story.lines, f"#### {story.value}"))
        numbers = tuple(story.numbers)
        problem = WordProblem(story.question, answer, template, family, numbers, len(story.lines))
        if problem.key() not in exclude:
            return problem


def generate(
    seed: int, count: int, *, families: Sequence[str] | None = None, exclude: Container[str] = frozenset()
) -> Iterator[WordProblem]:
    """Yield problems, every template of the families about equally often, in random order.

    Args:
        seed: different seeds give different problems.
        count: how many.
        families: names from `FAMILIES` or `UNSEEN_FAMILIES`; all of `FAMILIES` by default.
        exclude: keys (`WordProblem.key`) that are never drawn.

    Raises:
        ValueError: a family that does not exist.
    """
    chosen = FAMILIES if families is None else tuple(families)
    if unknown := [name for name in chosen if name not in TEMPLATES]:
        known = ", ".join((*FAMILIES, *UNSEEN_FAMILIES))
        raise ValueError(f"generate: families must be among {known}; got {', '.join(unknown)}")
    return _generate(random.Random(seed), count, [t for name in chosen for t in TEMPLATES[name]], exclude)


def _generate(
    seeded: random.Random, count: int, templates: list[str], exclude: Container[str]
) -> Iterator[WordProblem]:
    waiting: list[str] = []
    for _ in range(count):
        if not waiting:
            # One round holds each template once: a corpus of any size is balanced.
            waiting = sorted(templates, key=lambda _: seeded.random())
        yield tell(waiting.pop(), seeded, exclude)


@cache
def held_out_keys() -> frozenset[str]:
    """Return the keys of the problems that are shipped as tests: training must not see them."""
    keys = set()
    for path in (TEST, UNSEEN):
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            keys.add(key_of(row["template"], tuple(row["numbers"])))
    return frozenset(keys)


def training_problems(seed: int, count: int) -> Iterator[WordProblem]:
    """Yield problems to train on: of all `FAMILIES`, none of them held out."""
    return generate(seed, count, exclude=held_out_keys())
