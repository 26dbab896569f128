"""What of an answer is reasoning, and what is scored: `--reasoning keep`, `strip` or `score`.

A server with a reasoning parser sends the reasoning apart (`reasoning_content`), one without leaves it in the text, between
`<think>` and `</think>`. Some chat templates open the tag in the prompt, so that only its end is seen.
"""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harness.gsm8k.payload import Reply

BEGIN, END = "<think>", "</think>"


class Reasoning(StrEnum):
    """What is done with reasoning."""

    KEEP = "keep"
    """The text is scored as it came, tags included, as lm-eval's API models do."""
    STRIP = "strip"
    """The text is scored behind its last `</think>`, as lm-eval does with `think_end_token`."""
    SCORE = "score"
    """As strip; where no text is left, the reasoning is scored, and the sample says so."""


def read_reasoning(reply: Reply, mode: Reasoning) -> Reply:
    """Return the reply with its text and its reasoning apart, and with what is scored."""
    if mode is Reasoning.KEEP:
        return reply
    said = reply.text
    if said is not None:
        thought, end, rest = said.rpartition(END)
        if end:
            reply = _apart(reply, rest.lstrip(), thought)
        elif said.lstrip().startswith(BEGIN):  # it was cut before it came to its answer
            reply = _apart(reply, "", said)
    if mode is Reasoning.SCORE and reply.reasoning and not (reply.text or "").strip():
        reply = replace(reply, scored=reply.reasoning)
    return reply


def _apart(reply: Reply, text: str, thought: str) -> Reply:
    thought = thought.replace(BEGIN, "", 1).replace(END, "").strip()
    return replace(reply, text=text, reasoning=reply.reasoning or thought or None)
