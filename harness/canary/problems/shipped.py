"""The two test sets that are shipped as data, and making them again."""

from __future__ import annotations

import json
import random
from pathlib import Path

from harness.canary.problems.families import FAMILIES, UNSEEN_FAMILIES, template_ids
from harness.canary.problems.generate import TEST, UNSEEN, tell
from harness.canary.problems.problem import WordProblem

SEED = 20_260_101
TEST_COUNT, UNSEEN_COUNT = 500, 100


def problems(families: tuple[str, ...], count: int, seed: int) -> list[WordProblem]:
    """Return problems of all templates in turn, no two with the same numbers."""
    seeded = random.Random(seed)
    templates = template_ids(families)
    taken: set[str] = set()
    found = []
    for index in range(count):
        problem = tell(templates[index % len(templates)], seeded, taken)
        taken.add(problem.key())
        found.append(problem)
    return found


def contents() -> dict[Path, str]:
    """Return what the data files must hold: one JSON object a line, `numbers` being what `key` is computed from."""
    sets = {
        TEST: problems(FAMILIES, TEST_COUNT, SEED),
        UNSEEN: problems(UNSEEN_FAMILIES, UNSEEN_COUNT, SEED + 1),
    }
    return {path: "".join(_line(problem) for problem in found) for path, found in sets.items()}


def _line(problem: WordProblem) -> str:
    row = {
        "question": problem.question,
        "answer": problem.answer,
        "template": problem.template,
        "family": problem.family,
        "numbers": problem.numbers,
    }
    return json.dumps(row) + "\n"


def outdated() -> list[Path]:
    """Return the data files that the generator would write differently."""
    return [
        path
        for path, text in contents().items()
        if not path.is_file() or path.read_text(encoding="utf-8") != text
    ]


def write() -> list[Path]:
    """Write the data files that differ and return them. A model trained before must be trained again."""
    changed = outdated()
    for path, text in contents().items():
        if path in changed:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    return changed
