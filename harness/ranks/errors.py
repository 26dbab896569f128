"""What goes wrong with ranks: an answer that is an error, and a rank that is gone."""

from __future__ import annotations


class RankError(RuntimeError):
    """A rank answered a call with an error; the ranks are still there."""


class RankLostError(RuntimeError):
    """A rank died or hangs, or cannot be reached: nothing further can be asked of the ranks of this process."""


class NoBuildError(Exception):
    """A library cannot be used here: the reason in one sentence, without a full stop."""
