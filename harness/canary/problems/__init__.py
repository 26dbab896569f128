"""Word problems in GSM8K's form for the canary: a seeded generator, and the test sets that are shipped.

Standard library only. README.md says how a template is written.
"""

from __future__ import annotations

from harness.canary.problems.families import FAMILIES, UNSEEN_FAMILIES
from harness.canary.problems.generate import generate, held_out_keys, training_problems
from harness.canary.problems.problem import WordProblem, key_of

__all__ = [
    "FAMILIES",
    "UNSEEN_FAMILIES",
    "WordProblem",
    "generate",
    "held_out_keys",
    "key_of",
    "training_problems",
]
