"""What a prompt of the tests asks, for fault_server.py and small_server.py."""

from __future__ import annotations


def last_question(prompt: str) -> str:
    """Return the question behind the examples."""
    for mark, end in (("Question: ", "\nAnswer:"), ("Q: ", "\nA:")):
        if mark in prompt:
            return prompt.rpartition(mark)[2].partition(end)[0].strip()
    return prompt.strip()
