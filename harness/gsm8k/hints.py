"""From the refusal of a request to what its user can do about it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from harness.gsm8k.errors import RequestError

_NO_ROUTE = frozenset({404, 405, 501})


def hint(  # noqa: PLR0911 - one return a hint
    error: RequestError, path: str, extra: Mapping[str, Any]
) -> str:
    """Return what to do about a refused request, "" where nobody knows.

    Args:
        error: the refusal.
        path: `completions` or `chat/completions`.
        extra: the fields of `--extra-body`.
    """
    chat = path.startswith("chat/")
    said = error.said.lower()
    if chat and re.search(r"chat[_ ]?template", said):
        return "the model has no chat template: leave out --chat, or give the server one (--chat-template)"
    if not chat and re.search(r"chat model|chat/completions", said):
        return "the model takes chat only: give --chat"
    if error.status in _NO_ROUTE and "model" not in said:
        if chat:
            return "the server may have no /chat/completions (leave out --chat), or --base-url lacks its /v1"
        return "the server may take chat only (give --chat), or --base-url lacks its /v1"
    if error.status in {401, 403}:
        return "--api-key-env or --api-key-file names the key"
    if named := [name for name in extra if re.search(rf"(?<!\w){re.escape(name.lower())}(?!\w)", said)]:
        return f"--extra-body holds {', '.join(named)}"
    if re.search(r"context (?:length|window)|maximum.{0,20}length|max_model_len|too large", said):
        return "--max-tokens and --num-fewshot make requests smaller"
    return ""
