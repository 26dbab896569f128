"""Asking a server for log-probabilities, and reading them out of what it answers.

Of a reference answer: `echo` of prompt and answer (OpenAI's completions, vLLM, SGLang), or `prompt_logprobs` (vLLM, also
in chat). Of the server's own answer: `logprobs` of completions or chat.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from harness.gsm8k.dialect import Dialect
from harness.gsm8k.logprobs.divergence import Position
from harness.gsm8k.payload import MAX_STOP

if TYPE_CHECKING:
    from harness.gsm8k.client import Client
    from harness.gsm8k.payload import Reply
    from harness.gsm8k.task import Question

TOPS = (20, 5)
"""How many of the likeliest tokens are asked for: vLLM's and the chat API's limit, and that of OpenAI's completions."""

Json = dict[str, Any]


class LogprobError(Exception):
    """No logprobs of a question: what the server answered instead."""


@dataclass(frozen=True)
class Form:
    """One way to ask for logprobs.

    Attributes:
        name: "echo", "prompt_logprobs" or "answer".
        top: how many of the likeliest tokens.
    """

    name: str
    top: int


REFERENCE_FORMS = tuple(Form(name, top) for name in ("echo", "prompt_logprobs") for top in TOPS)
ANSWER_FORMS = tuple(Form("answer", top) for top in TOPS)


@dataclass(frozen=True)
class LogprobServer:
    """A server to ask.

    Attributes:
        client: within its context.
        model: name of the model.
        chat: ask by /chat/completions.
        stop: of the task.
        dialect: what is added to every request, and what the server refuses in one.
    """

    client: Client
    model: str
    chat: bool = False
    stop: tuple[str, ...] = ()
    dialect: Dialect = field(default_factory=Dialect)

    async def ask(self, question: Question, form: Form, max_tokens: int) -> list[Position]:
        """Return the positions of the reference answer, or of the server's own.

        Args:
            question: with its prompt or messages.
            form: how to ask.
            max_tokens: most tokens of the server's own answer.

        Raises:
            LogprobError: there are none.
        """
        own = form.name == "answer"
        fields = self._answer(question, form, max_tokens) if own else self._reference(question, form)
        body = self.dialect.write({"model": self.model, "temperature": 0, **fields})
        path = "chat/completions" if self.chat else "completions"
        exchange = await self.client.ask(path, body)
        if exchange.reply is None:
            raise LogprobError(str(exchange.error))
        try:
            if own:
                return read_answer(exchange.reply)
            read = read_echo if form.name == "echo" else read_prompt
            return spelled(read(exchange.reply), question.reference)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise LogprobError(
                f"logprobs in a form that is not known: {type(error).__name__}: {error}"
            ) from None

    def _answer(self, question: Question, form: Form, max_tokens: int) -> Json:
        fields: Json = {"max_tokens": max_tokens}
        if self.stop:
            fields["stop"] = list(self.stop[:MAX_STOP])
        if self.chat:
            return {"messages": question.messages, "logprobs": True, "top_logprobs": form.top, **fields}
        return {"prompt": question.prompt, "logprobs": form.top, **fields}

    def _reference(self, question: Question, form: Form) -> Json:
        if not question.reference.strip():
            raise LogprobError("the task states no reference answer")
        if form.name == "echo":
            if self.chat:
                raise LogprobError("echo is of completions, not of chat")
            text = f"{question.prompt}{question.reference}"
            return {"prompt": text, "echo": True, "logprobs": form.top, "max_tokens": 1}
        fields: Json = {"prompt_logprobs": form.top, "max_tokens": 1}
        if not self.chat:
            return {"prompt": f"{question.prompt}{question.reference}", **fields}
        answer = {"role": "assistant", "content": question.reference.strip()}
        # The answer is the beginning of the assistant's turn: no end of turn and no new turn behind it.
        form_of_turn = {"add_generation_prompt": False, "continue_final_message": True}
        return {"messages": [*(question.messages or []), answer], **form_of_turn, **fields}


def read_echo(reply: Reply) -> list[Position]:
    """Return the positions of the prompt from an echo; the first token has no distribution and is left out."""
    found = _of_completion(_choice(reply))
    tokens = reply.prompt_tokens or len(found)
    return [position for position in found[:tokens] if position is not None]


def read_prompt(reply: Reply) -> list[Position]:
    """Return the positions of vLLM's prompt_logprobs: a dictionary by token id a place, the prompt's own token first."""
    stated = _choice(reply).get("prompt_logprobs") or reply.data.get("prompt_logprobs")
    if not stated:
        raise LogprobError("the server gives no prompt_logprobs")
    found = []
    for place in stated:
        if place is not None:
            entries = list(place.values())
            found.append(_position(entries[0]["decoded_token"], _by_text(entries, "decoded_token")))
    return found


def read_answer(reply: Reply) -> list[Position]:
    """Return the positions of a server's own answer, from completions or chat."""
    choice = _choice(reply)
    content = (choice.get("logprobs") or {}).get("content")
    if content is None:
        return [position for position in _of_completion(choice) if position is not None]
    return [_position(one["token"], _by_text([*one["top_logprobs"], one], "token")) for one in content]


def spelled(positions: list[Position], text: str) -> list[Position]:
    """Return the last positions that spell a text.

    Raises:
        LogprobError: they do not.
    """
    text = text.strip()
    whole = "".join(position.token for position in positions)
    at = whole.rfind(text)
    if at < 0:
        raise LogprobError(f"the server's tokens do not spell the reference answer: {whole[-60:]!r}")
    found, start = [], 0
    for position in positions:
        end = start + len(position.token)
        if end > at and start < at + len(text):
            found.append(position)
        start = end
    return found


def _choice(reply: Reply) -> Json:
    found: Json = reply.data["choices"][0]
    return found


def _of_completion(choice: Json) -> list[Position | None]:
    """Return the positions of the completions API's `logprobs`; None for a token without a distribution."""
    stated = choice.get("logprobs")
    if not stated or stated.get("top_logprobs") is None:
        raise LogprobError("the server gives no logprobs")
    rows = zip(stated["tokens"], stated["token_logprobs"], stated["top_logprobs"], strict=True)
    return [
        None if own is None or top is None else _position(token, {token: own} | top)
        for token, own, top in rows
    ]


def _by_text(entries: list[Json], name: str) -> dict[str, float]:
    """Return logprobs by text; of two tokens with one text the likelier, which stands first."""
    found: dict[str, float] = {}
    for entry in sorted(entries, key=lambda entry: -entry["logprob"]):
        found.setdefault(entry[name], entry["logprob"])
    return found


def _position(token: str, top: Mapping[str, float]) -> Position:
    return Position(str(token), {str(t): min(float(p), 0.0) for t, p in top.items()})
