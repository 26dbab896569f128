"""The errors that the tests behind a verdict allow, and what counts where the user names nothing."""

from __future__ import annotations

EXPECT = 0.5
DEAD_ALPHA = 1e-6
"""A model whose true accuracy is the expected one is called dead once in a million runs."""
WAVE_LIMIT_ALPHA = 1e-6
LIMIT_ALPHA = 1e-3
"""A full run with exactly as many answers of a class as its limit allows fails once in a thousand."""
SMOKE_ALPHA = 0.05
"""A wave in which a class is more frequent than its limit explains at this error is not called NOT DEAD."""
DRIFT_ALPHA = 1e-3
"""A run whose answers do not depend on the order of its requests is said to drift once in a thousand runs."""
WARNING_ALPHA = 1e-2
"""The same for a warning in the verdict line."""
CHANCE_RIGHT = 0.02
"""Share of the wrong answers that an extractor finds right by chance: four systems' answers, scored as answers to other
questions, gave 0.7 to 1.8 % (`tests/gsm8k/test_published_answers.py`)."""
MORE_CUT = 0.05
"""Share of the answers that may end at the token limit beyond those of a baseline."""
CHANGED_LENGTH = 1.5
"""Factor from which lengths of answers are said to have changed."""
CONFIDENCE = 0.95
MAX_UNANSWERED = 0.01
MAX_DROP = 0.02
"""Accuracy that may be lost against a baseline, unless asked otherwise: what 1,319 paired questions can still exclude."""
