"""Before the first question: is the server there and ready, which model does it serve, which version is it?"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.gsm8k.errors import Kind, RequestError, one_line
from harness.verdict import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness.gsm8k.client import Client

POLL_S = 1.0
GET_S = 10.0
VERSION_S = 2.0


class NotReadyError(Exception):
    """The server cannot be asked. The run ends as UNKNOWN (infra)."""


@dataclass(frozen=True)
class Server:
    """What is known of the server before the first question. `version` is empty where it does not say."""

    url: str
    model: str
    version: str
    ready_s: float


async def find_server(client: Client, model: str | None, wait_s: float, say: Callable[[str], None]) -> Server:
    """Wait until the server answers, for at most `wait_s` seconds, then read its model and version.

    Raises:
        NotReadyError: it is not there, refuses the key, or still loads.
        UsageError: the model's name has to be given: the server has none, or several.
    """
    started = time.monotonic()
    said = ""
    while True:
        status, listing, trouble = await _look(client)
        if not trouble:
            break
        waited = time.monotonic() - started
        if waited + POLL_S > wait_s or trouble.final:
            advice = (
                ""
                if trouble.final
                else f" after {wait_s:g} s"
                if wait_s
                else "; --wait-ready SECONDS waits for it"
            )
            raise NotReadyError(f"{client.endpoint.display}: {trouble.text}{advice}")
        if trouble.text != said:
            said = trouble.text
            say(f"waiting for the server: {said}")
        await asyncio.sleep(POLL_S)
    name = model or _only_model(status, listing)
    version = await _version(client)
    return Server(client.endpoint.display, name, version, time.monotonic() - started)


@dataclass(frozen=True)
class _Trouble:
    text: str
    final: bool = False

    def __bool__(self) -> bool:
        return bool(self.text)


async def _look(client: Client) -> tuple[int, Any, _Trouble]:
    """Ask for the models and the health once. Servers without either of the two are ready as far as anyone can say."""
    try:
        status, listing = await client.get_json(client.endpoint.join("models"), GET_S)
        if status in {401, 403}:
            return status, None, _Trouble(f"HTTP {status}: the API key is missing or refused", final=True)
        if status >= 500 or status == 429:
            return status, None, _Trouble(f"HTTP {status} from /models: still loading?")
        health, _ = await client.get_json(client.endpoint.root("health"), GET_S)
        if health in {500, 502, 503, 504}:
            return status, None, _Trouble(f"HTTP {health} from /health: still loading?")
    except RequestError as error:
        return 0, None, _Trouble(str(error), final=error.kind is Kind.REJECTED)
    return status, listing, _Trouble("")


def _only_model(status: int, listing: Any) -> str:
    """Return the name of the one model that is served."""
    models = listing.get("data") if isinstance(listing, dict) else None
    names = [m["id"] for m in models or [] if isinstance(m, dict) and isinstance(m.get("id"), str)]
    # Adapters name the model that they sit on as their parent.
    base: list[str] = [
        m["id"] for m in models or [] if isinstance(m, dict) and m.get("id") in names and not m.get("parent")
    ]
    if len(base) == 1:
        return base[0]
    if not names:
        raise UsageError(f"the server does not list its model (/models answered {status}): give --model NAME")
    raise UsageError(
        f"the server serves {len(names)} models: give --model NAME, one of {', '.join(map(one_line, names[:8]))}"
    )


async def _version(client: Client) -> str:
    """Return what the server says of its version: vLLM and TensorRT-LLM, SGLang, llama.cpp. Never fails, never waits long."""
    paths = {"version": "version", "get_server_info": "version", "props": "build_info"}

    async def one(path: str, name: str) -> str:
        try:
            status, data = await client.get_json(client.endpoint.root(path), VERSION_S)
        except RequestError:
            return ""
        value = data.get(name) if status == 200 and isinstance(data, dict) else None
        return one_line(value) if isinstance(value, str) else ""

    found = await asyncio.gather(*(one(path, name) for path, name in paths.items()))
    return next((version for version in found if version), "")
