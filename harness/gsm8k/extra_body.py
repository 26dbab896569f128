"""`--extra-body JSON`: fields that the user adds to every request, as the OpenAI client's `extra_body` does."""

from __future__ import annotations

import json
from typing import Any, NoReturn

from harness.verdict import UsageError

_TAKEN = {
    "prompt": "the task states it",
    "messages": "the task states them",
    "stop": "the task states it",
    "n": "one answer is read; --repeat N asks again",
    "model": "--model NAME names it",
    "max_tokens": "--max-tokens N sets it",
    "max_completion_tokens": "--max-tokens N sets it, under the name that the server takes",
    "stream": "--stream sets it",
    "stream_options": "--stream sets it",
}


def parse_extra_body(text: str | None) -> dict[str, Any]:
    """Return the fields of the option, none where it is not given.

    Raises:
        UsageError: it is not a JSON object, or holds a field that has its own option. The message repeats no value.
    """
    if text is None:
        return {}
    try:
        fields = json.loads(text, parse_constant=_no_number)
    except ValueError as error:
        raise UsageError(f"--extra-body is not JSON ({error})") from None
    if not isinstance(fields, dict):
        raise UsageError(f"--extra-body must be a JSON object, got {type(fields).__name__}")
    for name in fields:
        if name in _TAKEN:
            raise UsageError(f"--extra-body must not hold {name!r}: {_TAKEN[name]}")
    return fields


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")
