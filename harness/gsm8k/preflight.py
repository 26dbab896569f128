"""Before the first question: is the server there and ready, which model does it serve, which version is it?"""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.gsm8k.errors import Kind, RequestError, one_line
from harness.verdict import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness.gsm8k.client import Client
    from harness.gsm8k.credentials import Endpoint

POLL_S = 1.0
GET_S = 10.0
VERSION_S = 2.0
CONNECT_S = 2.0
ADVICE = "; --wait-ready SECONDS waits for it"


class NotReadyError(Exception):
    """The server cannot be asked. The run ends as UNKNOWN (infra)."""


@dataclass(frozen=True)
class Server:
    """What is known of the server before the first question. `version` is empty where it does not say."""

    url: str
    model: str
    version: str
    ready_s: float
    notes: tuple[str, ...] = ()


def unreachable(endpoint: Endpoint) -> str:
    """Return why no connection to the server's port can be made, "" where one can. Takes two seconds at most.

    Looked at before the task's data: from the hub they may take half a minute to fail.
    """
    found: list[str] = []

    def connect() -> None:
        try:
            socket.create_connection((endpoint.host, endpoint.port), CONNECT_S).close()
            found.append("")
        except OSError as error:
            named = not isinstance(error, socket.gaierror) and (error.errno or 0) > 0
            found.append(f"cannot connect: {os.strerror(error.errno or 0) if named else error}")

    thread = threading.Thread(
        target=connect, daemon=True
    )  # the look-up of a name has no time limit of its own
    thread.start()
    thread.join(CONNECT_S)
    return found[0] if found else f"cannot connect: no answer within {CONNECT_S:g} s"


async def find_server(client: Client, model: str | None, wait_s: float, say: Callable[[str], None]) -> Server:
    """Wait until the server answers, for at most `wait_s` seconds, then read its model and version.

    Raises:
        NotReadyError: it is not there, refuses the key, or still loads.
        UsageError: the model's name has to be given: the server has none, or several.
    """
    started = time.monotonic()
    given = client.endpoint.display
    said = ""
    while True:
        status, listing, trouble = await _look(client)
        if not trouble:
            break
        waited = time.monotonic() - started
        if waited + POLL_S > wait_s or trouble.final:
            advice = "" if trouble.final else f" after {wait_s:g} s" if wait_s else ADVICE
            raise NotReadyError(f"{client.endpoint.display}: {trouble.text}{advice}")
        if trouble.text != said:
            said = trouble.text
            say(f"waiting for the server: {said}")
        await asyncio.sleep(POLL_S)
    notes = []
    if not _models(listing) and (other := await _other_listing(client)):
        notes.append(f"the API is at {client.endpoint.display}, not at --base-url {given}")
        say(notes[0])
        status, listing = 200, other
    name = model or _only_model(status, listing)
    version = await _version(client)
    return Server(client.endpoint.display, name, version, time.monotonic() - started, tuple(notes))


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


async def _other_listing(client: Client) -> Any:
    """Look for the models with `/v1` or without it; use that base URL from now on if they are there, else return None."""
    given, client.endpoint = client.endpoint, client.endpoint.other_base()
    try:
        status, listing = await client.get_json(client.endpoint.join("models"), GET_S)
    except RequestError:
        status, listing = 0, None
    if status == 200 and _models(listing):
        return listing
    client.endpoint = given
    return None


def _models(listing: Any) -> list[dict[str, Any]]:
    """Return the models of a listing, none where it is not one."""
    models = listing.get("data") if isinstance(listing, dict) else None
    return (
        [m for m in models if isinstance(m, dict) and isinstance(m.get("id"), str)]
        if isinstance(models, list)
        else []
    )


def _only_model(status: int, listing: Any) -> str:
    """Return the name of the one model that is served."""
    models = _models(listing)
    names = [m["id"] for m in models]
    # Adapters name the model that they sit on as their parent.
    base: list[str] = [m["id"] for m in models if not m.get("parent")]
    if len(base) == 1:
        return base[0]
    if not names:
        raise UsageError(
            f"the server does not list its model (/models answered {status}, with /v1 and without it): "
            "give --model NAME, or another --base-url"
        )
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
