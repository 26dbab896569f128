"""The errors that the tests behind a verdict allow, and what counts where the user names nothing."""

from __future__ import annotations

EXPECT = 0.5
DEAD_ALPHA = 1e-6
"""A model whose true accuracy is the expected one is called dead once in a million runs."""
WAVE_LIMIT_ALPHA = 1e-6
LIMIT_ALPHA = 1e-3
"""A full run with exactly as many answers of a class as its limit allows fails once in a thousand."""
CONFIDENCE = 0.95
MAX_UNANSWERED = 0.01
MAX_DROP = 0.02
"""Accuracy that may be lost against a baseline, unless asked otherwise: what 1,319 paired questions can still see."""
