"""What counts as a refusal: an error that says that a call's arguments are not taken, and a device that is still there."""

from __future__ import annotations

from harness.judging.comparison import Comparison
from harness.judging.context import device_is_lost

REFUSALS = (ValueError, TypeError, AssertionError, RuntimeError)


def refused(stage: str, error: Exception) -> Comparison:
    """Return that a call was refused; raise the error where it says that the device is lost."""
    if device_is_lost(error):
        raise error  # the launch went ahead and broke the context: the opposite of a refusal
    return Comparison(stage, compared=1, judged={"refused with an error": 1})
