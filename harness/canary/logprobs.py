"""Log-probabilities of tokens: what the engine keeps of its logits, and the forms in which the OpenAI API and vLLM state them."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

MOST_TOP = 20
"""vLLM's default limit of `logprobs`, and the OpenAI chat API's."""

LEAST = -9999.0
"""What vLLM sends for a probability of zero, which JSON has no logarithm of. Here NaN too."""

Json = dict[str, Any]


@dataclass(frozen=True)
class TokenLogprob:
    """One token of a prompt or an answer.

    Attributes:
        token: its id.
        logprob: natural logarithm of its probability, at temperature 1; None for the first token of a prompt.
        rank: 1 for the likeliest token; 0 where there is no logprob.
        top: ids and logprobs of the likeliest tokens, likeliest first.
    """

    token: int
    logprob: float | None = None
    rank: int = 0
    top: tuple[tuple[int, float], ...] = ()


def token_logprobs(logits: Tensor, tokens: Sequence[int], top: int) -> list[TokenLogprob]:
    """Return the logprobs of tokens.

    Args:
        logits: `(n, vocab)`, row i says which token comes at place i.
        tokens: the n tokens that came.
        top: how many of the likeliest to name, 0 for none.
    """
    shares = torch.log_softmax(logits.float(), dim=-1).nan_to_num(nan=LEAST).clamp_min(LEAST)
    own = shares.gather(1, torch.tensor(tokens).unsqueeze(1))
    ranks = (shares > own).sum(-1) + 1
    likeliest = shares.topk(top, dim=-1)
    rows = zip(
        tokens,
        own.squeeze(1).tolist(),
        ranks.tolist(),
        likeliest.indices.tolist(),
        likeliest.values.tolist(),
        strict=True,
    )
    return [TokenLogprob(t, p, rank, tuple(zip(ids, ps, strict=True))) for t, p, rank, ids, ps in rows]


class Spelling:
    """The forms of the API. A token that is no whole character is shown with U+FFFD.

    Args:
        pieces: bytes of each token, see `harness.canary.text.token_bytes`.
        end: the token that ends an answer, which has no bytes.
        end_text: its name.
    """

    def __init__(self, pieces: list[bytes], end: int, end_text: str) -> None:
        self._pieces, self._names = pieces, {end: end_text}

    def _text(self, token: int) -> str:
        return self._names.get(token) or self._pieces[token].decode("utf-8", "replace")

    def completion(self, found: Sequence[TokenLogprob]) -> Json:
        """Return `logprobs` of the completions API; offsets count characters from the first token given."""
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        offsets, length = [], 0
        for one in found:
            offsets.append(length)
            length += len(decoder.decode(self._pieces[one.token]))
        return {
            "tokens": [self._text(one.token) for one in found],
            "token_logprobs": [one.logprob for one in found],
            "top_logprobs": [self._top(one) for one in found],
            "text_offset": offsets,
        }

    def _top(self, one: TokenLogprob) -> dict[str, float] | None:
        """Return the likeliest tokens by text and, as OpenAI and vLLM do, the token itself where it is none of them."""
        if one.logprob is None:
            return None
        found: dict[str, float] = {}
        for token, logprob in (*one.top, (one.token, one.logprob)):
            found.setdefault(self._text(token), logprob)
        return found

    def chat(self, found: Sequence[TokenLogprob]) -> Json:
        """Return `logprobs` of the chat API."""

        def entry(token: int, logprob: float) -> Json:
            text = self._text(token)
            return {"token": text, "logprob": logprob, "bytes": list(self._pieces[token] or text.encode())}

        return {
            "content": [
                {**entry(one.token, one.logprob or 0.0), "top_logprobs": [entry(*pair) for pair in one.top]}
                for one in found
            ]
        }

    def prompt(self, found: Sequence[TokenLogprob]) -> list[dict[str, Json] | None]:
        """Return vLLM's `prompt_logprobs`: by id, the likeliest tokens and the prompt's own; None for the first."""

        def entry(token: int, logprob: float, rank: int) -> Json:
            return {"logprob": logprob, "rank": rank, "decoded_token": self._text(token)}

        stated: list[dict[str, Json] | None] = []
        for one in found:
            if one.logprob is None:
                stated.append(None)
                continue
            own = {str(one.token): entry(one.token, one.logprob, one.rank)}
            stated.append(
                own | {str(t): entry(t, p, rank) for rank, (t, p) in enumerate(one.top, 1) if t != one.token}
            )
        return stated
