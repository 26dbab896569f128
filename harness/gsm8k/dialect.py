"""What one server takes in a request, learnt from what it refuses: other words, or nothing in their place.

Newer models refuse `max_tokens` and ask for `max_completion_tokens`, some servers take no `stop`, no temperature 0 or no
`stream_options`; 1,319 refusals were once reported as an accuracy of 0.0. Only what the harness adds is left out: a
field of `--extra-body` was asked for, so its refusal ends the run.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from harness.gsm8k.errors import RequestError
from harness.gsm8k.hints import hint

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from harness.gsm8k.payload import Reply

RENAMED = {"max_tokens": "max_completion_tokens"}
OMITTED = ("stop", "temperature", "top_p", "stream_options")
STATUSES = frozenset({400, 422})

_NOTES = {
    "max_tokens": "max_completion_tokens is sent instead",
    "stop": "the task's stop strings are applied to the answer here, after the server has written what follows them",
    "temperature": "none is sent, so the server samples as it likes and answers may change from run to run",
    "top_p": "none is sent",
    "stream_options": "none is sent, so tokens may not be counted",
}
_REFUSAL = (
    r"unsupported|not (?:currently )?support|n't support|unrecogni[sz]ed|unknown|unexpected"
    r"|extra[_ ](?:inputs|fields|forbidden)|not (?:permitted|allowed|accepted)|no longer|deprecated"
    r"|invalid (?:parameter|argument|field)"
)
_OF_VALUES = {
    "stop": r"|at most|too many|too_long|no more than|maximum",
    "temperature": r"|only the default|positive|greater than 0|> ?0",
}
_NEAR = 120


class Dialect:
    """The form of requests to one server.

    Args:
        extra: fields of `--extra-body`; they are sent as they are and win over everything else.
    """

    def __init__(self, extra: Mapping[str, Any] | None = None) -> None:
        self._extra = dict(extra or {})
        self.refused: list[str] = []

    def write(self, fields: Mapping[str, Any]) -> bytes:
        """Return the body of a request; byte-identical for identical fields, until something is refused."""
        written = dict(fields)
        for name in self.refused:
            value = written.pop(name, None)
            if name in RENAMED and value is not None:
                written[RENAMED[name]] = value
        return json.dumps(written | self._extra).encode()

    def learn(self, error: RequestError, fields: Mapping[str, Any]) -> bool:
        """Return whether the error refuses a field that can be sent otherwise; it is from now on."""
        if error.status not in STATUSES:
            return False
        ours = (n for n in (*RENAMED, *OMITTED) if n in fields and n not in {*self._extra, *self.refused})
        refused = next((name for name in ours if refuses(error.said, name)), None)
        self.refused += [refused] if refused else []
        return refused is not None

    def other(self, error: RequestError, sent: bytes, fields: Mapping[str, Any], path: str) -> bytes | None:
        """Return the body to send instead of one that was refused, None where there is no other.

        Raises:
            RequestError: there is none, and the error can be explained.
        """
        self.learn(error, fields)
        written = self.write(fields)  # in another form too where another worker has learnt
        if written != sent:
            return written
        if said := hint(error, path, self._extra):
            raise error.again(hint=said)
        return None

    def applied(self, reply: Reply, stop: Sequence[str]) -> Reply:
        """Return the reply up to the first stop string, where the server was not told about them."""
        if "stop" not in self.refused or reply.text is None:
            return reply
        ends = [at for mark in stop if (at := reply.text.find(mark)) >= 0]
        return replace(reply, text=reply.text[: min(ends)], finish_reason="stop") if ends else reply

    @property
    def notes(self) -> list[str]:
        """What was changed, in words."""
        return [f"the server refuses {name}: {_NOTES[name]}" for name in self.refused]


def refuses(said: str, name: str) -> bool:
    """Return whether a response refuses a field, or the value that it is always sent with.

    OpenAI names it in `error.param`, FastAPI in the `loc` of `detail`, others in a sentence.
    """
    words = re.compile(_REFUSAL + _OF_VALUES.get(name, ""), re.IGNORECASE)
    try:
        data = json.loads(said)
    except ValueError:
        data = None
    if isinstance(data, dict):
        inner, detail = data.get("error"), data.get("detail")
        if isinstance(inner, dict) and isinstance(inner.get("param"), str):
            return inner["param"] == name and bool(
                words.search(f"{inner.get('code')} {inner.get('message')}")
            )
        if isinstance(detail, list):
            located = [d for d in detail if isinstance(d, dict) and name in (d.get("loc") or ())]
            return any(words.search(f"{d.get('type')} {d.get('msg')}") for d in located)
    places = re.finditer(rf"(?<![\w-]){name}(?![\w-])", said)
    return any(words.search(said[max(0, place.start() - _NEAR) : place.end() + _NEAR]) for place in places)
