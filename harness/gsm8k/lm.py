"""The harness's transport as an lm-eval model class: `lm_eval` drives, this asks.

Answers stream to `on_answer` as they arrive; retries, error lines and limits are those of `harness gsm8k`. lm-eval has no
word for "unanswered", so a run with unanswered questions raises instead of scoring them as wrong.

    lm_eval.simple_evaluate(model=HarnessLM(base_url="http://127.0.0.1:8000/v1", model="name"), tasks=["gsm8k"])
"""

from __future__ import annotations

import asyncio
import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Self

from harness.extras import MissingExtraError

try:
    from lm_eval.api.model import LM
    from lm_eval.api.registry import register_model
except ModuleNotFoundError as error:
    raise MissingExtraError("HarnessLM", "gsm8k") from error

from harness.gsm8k.client import Client, Exchange, Limits
from harness.gsm8k.credentials import parse_base_url, read_key
from harness.gsm8k.payload import MAX_STOP, request_fields
from harness.gsm8k.pool import Pool, Step

if TYPE_CHECKING:
    from collections.abc import Callable

    from lm_eval.api.instance import Instance


class UnansweredError(Exception):
    """Some questions stayed unanswered after all retries; `exchanges` holds every one, by request."""

    def __init__(self, message: str, exchanges: list[Exchange]) -> None:
        super().__init__(message)
        self.exchanges = exchanges


@register_model("harness")  # type: ignore[untyped-decorator, unused-ignore]
class HarnessLM(LM):  # type: ignore[misc, unused-ignore]
    """An OpenAI-compatible server as lm-eval sees it. The API key comes from the environment or a file, not an argument."""

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        concurrency: int = 32,
        max_gen_toks: int = 1024,
        timeout: float = 300.0,
        retry_seconds: float = 120.0,
        api_key_env: str = "OPENAI_API_KEY",
        api_key_file: str | None = None,
        on_answer: Callable[[Any, Exchange], None] | None = None,
        **_: Any,
    ) -> None:
        super().__init__()
        self._endpoint = parse_base_url(base_url)
        self._key = read_key(api_key_env, Path(api_key_file) if api_key_file else None)
        self._model = model
        self._concurrency = int(concurrency)
        self._max_gen_toks = int(max_gen_toks)
        self._limits = Limits(float(timeout), float(retry_seconds))
        self._on_answer = on_answer

    @property
    def tokenizer_name(self) -> str:
        """The server applies its own chat template; lm-eval asks for a name to key its cache by."""
        return self._model

    def apply_chat_template(
        self,
        chat_history: list[dict[str, str]],
        add_generation_prompt: bool = True,  # noqa: ARG002 - their signature
    ) -> Any:
        """Return the messages as they are: the server renders them."""
        return _Messages(chat_history)

    def generate_until(
        self,
        requests: list[Instance],
        disable_tqdm: bool = True,  # noqa: ARG002 - their signature
    ) -> list[str]:
        """Ask every request and return the texts in their order.

        Raises:
            UnansweredError: some had no answer after all retries.
        """
        exchanges = asyncio.run(self._ask_all(requests))
        missing = [e for e in exchanges if e.reply is None]
        if missing:
            raise UnansweredError(
                f"{len(missing)} of {len(exchanges)} questions unanswered: {missing[0].error}", exchanges
            )
        return [(e.reply.text or "") if e.reply else "" for e in exchanges]

    def loglikelihood(self, requests: list[Instance]) -> NoReturn:
        """Not offered: only generation is judged."""
        raise NotImplementedError("HarnessLM generates; it has no log-likelihoods")

    def loglikelihood_rolling(self, requests: list[Instance]) -> NoReturn:
        """Not offered: only generation is judged."""
        raise NotImplementedError("HarnessLM generates; it has no log-likelihoods")

    async def _ask_all(self, requests: list[Instance]) -> list[Exchange]:
        exchanges: list[Exchange | None] = [None] * len(requests)
        async with Client(self._endpoint, self._key, self._concurrency, self._limits) as client:

            async def one(place: int, request: Instance) -> None:
                context, generation = request.args
                exchange = await self._ask(client, context, dict(generation))
                exchanges[place] = exchange
                if self._on_answer is not None:
                    self._on_answer(request, exchange)

            steps: list[Step] = [partial(one, place, request) for place, request in enumerate(requests)]
            await Pool(self._concurrency).run(steps)
        return [e for e in exchanges if e is not None]

    async def _ask(self, client: Client, context: Any, generation: dict[str, Any]) -> Exchange:
        until = generation.get("until") or []
        stop = (until,) if isinstance(until, str) else tuple(until)
        chat = isinstance(context, _Messages)
        fields = request_fields(
            context.messages if chat else context,
            model=self._model,
            max_tokens=int(generation.get("max_gen_toks", self._max_gen_toks)),
            stop=stop[:MAX_STOP],
            generation=generation,
        )
        return await client.ask("chat/completions" if chat else "completions", json.dumps(fields).encode())


class _Messages(str):  # noqa: SLOT000 - carries its messages
    """A chat as lm-eval can sort, hash and print it."""

    messages: list[dict[str, str]]

    def __new__(cls, messages: list[dict[str, str]]) -> Self:
        text = super().__new__(cls, "\n".join(f"{m['role']}: {m['content']}" for m in messages))
        text.messages = messages
        return text
