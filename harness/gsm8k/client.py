"""One question to the server: request, time limit, retries with back-off and jitter, one `Exchange` as the result.

`Client.ask` never raises for anything the server does: it returns what was answered or why nothing was.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from harness.extras import MissingExtraError

try:
    import aiohttp
    import tenacity
except ModuleNotFoundError as error:
    raise MissingExtraError("harness.gsm8k", "gsm8k") from error

from harness.gsm8k.credentials import Endpoint, Redactor
from harness.gsm8k.errors import ErrorLog, Kind, RequestError
from harness.gsm8k.payload import Reply, StreamedReply, check_status, parse_reply
from harness.gsm8k.retrying import Liveness, Retries, pause
from harness.records.parts.gsm8k import Gsm8kRequests

if TYPE_CHECKING:
    from types import TracebackType

MAX_BODY = 16 << 20
"""An answer of 1,024 tokens is a few kilobytes; a body past this never ends."""

NOT_FOUND = 404

Adapt = Callable[[RequestError, bytes], bytes | None]
"""From a refusal and the body that was refused to the body to send instead, None where there is no other."""


@dataclass(frozen=True)
class Exchange:
    """The end of one question: a reply, or the error that was the last word."""

    reply: Reply | None
    error: RequestError | None
    attempts: int
    latency_s: float | None
    ttft_s: float | None = None


@dataclass
class Limits:
    """How long one question may take."""

    timeout_s: float = 300.0
    """One attempt, from connecting to the last byte."""
    retry_s: float = 120.0
    """From the first failed attempt of a question to the start of its last one."""


@dataclass
class Client:
    """Asks questions over kept-alive connections. Use as an async context manager.

    `hidden` are secrets beside those of the endpoint and the key: no response that holds one is passed on with it.
    """

    endpoint: Endpoint
    api_key: str = field(default="", repr=False)
    concurrency: int = 32
    limits: Limits = field(default_factory=Limits)
    stream: bool = False
    on_new_error: Callable[[RequestError], None] | None = None
    hidden: tuple[str, ...] = field(default=(), repr=False)
    requests: Gsm8kRequests = field(default_factory=Gsm8kRequests)
    errors: ErrorLog = field(default_factory=ErrorLog)

    def __post_init__(self) -> None:
        self.redactor = Redactor(self.api_key, *self.endpoint.hidden, *self.hidden)
        self.liveness = Liveness(self._attempt)

    async def __aenter__(self) -> Self:
        headers = {"Accept": "application/json, text/event-stream" if self.stream else "application/json"}
        if self.endpoint.authorization:
            headers["Authorization"] = self.endpoint.authorization
        if self.api_key:
            headers["Authorization"] = f"Bearer {self.api_key}"
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=60),
            headers=headers,
            timeout=aiohttp.ClientTimeout(total=None),
            raise_for_status=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            max_field_size=65536,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.liveness.close()
        await self._session.close()

    async def ask(self, path: str, body: bytes, adapt: Adapt | None = None) -> Exchange:
        """Post one body to `completions` or `chat/completions` until it is answered or given up.

        Args:
            path: below the base URL.
            body: JSON.
            adapt: is asked for another body when the server refuses this one; may raise a RequestError that says more.
        """
        retries = Retries(self.limits.retry_s, self.liveness)
        retrying = tenacity.AsyncRetrying(
            stop=retries.give_up,  # type: ignore[arg-type] # AsyncRetrying awaits it
            wait=pause,
            retry=tenacity.retry_if_exception_type(RequestError),
            reraise=True,
        )
        try:
            async for attempt in retrying:
                with attempt:
                    try:
                        return await self._adapted(path, body, adapt, retries)
                    except RequestError as error:
                        retries.failed(error)
                        if self.errors.add(error) and self.on_new_error is not None:
                            self.on_new_error(error)
                        raise
        except RequestError as error:
            self.errors.give_up(error)
            return Exchange(None, error, retries.attempts, None)
        raise AssertionError("unreachable: AsyncRetrying returns or raises")

    async def _adapted(self, path: str, body: bytes, adapt: Adapt | None, retries: Retries) -> Exchange:
        """Make one attempt, in another form at once where the server refuses this one and there is another."""
        while True:
            number = retries.sends()
            self.requests.retried += number > 1
            try:
                exchange = await self._attempt(path, body, number)
            except RequestError as error:
                if error.status == NOT_FOUND and self.liveness.knows(path):
                    raise error.again(kind=Kind.LOST) from None
                other = adapt(error, body) if adapt and error.kind is Kind.REJECTED else None
                if other is None:
                    raise
                body = other
            else:
                self.liveness.answered(path, body)
                return exchange

    async def get_json(self, url: str, timeout_s: float) -> tuple[int, Any]:
        """Get a URL once; return its status and its JSON (None when it is not JSON).

        Raises:
            RequestError: no response came.
        """
        async with (
            _Guard(timeout_s, self.redactor) as _,
            self._session.get(url, allow_redirects=False) as response,
        ):
            body = await self._read(response)
            try:
                return response.status, await asyncio.to_thread(_parse, body) if len(
                    body
                ) > 1 << 20 else _parse(body)
            except ValueError:
                return response.status, None

    async def post(self, url: str, timeout_s: float) -> int:
        """Post nothing to a URL once; return the status.

        Raises:
            RequestError: no response came.
        """
        async with (
            _Guard(timeout_s, self.redactor) as _,
            self._session.post(url, allow_redirects=False) as response,
        ):
            await self._read(response)
            return response.status

    async def _attempt(self, path: str, body: bytes, number: int = 1) -> Exchange:
        """Post a body once, and count it."""
        self.requests.sent += 1
        try:
            exchange = await self._post(path, body, number)
        except RequestError:
            self.requests.failed += 1
            raise
        self.requests.answered += 1
        return exchange

    async def _post(self, path: str, body: bytes, number: int) -> Exchange:
        started = time.monotonic()
        guard = _Guard(self.limits.timeout_s, self.redactor)
        async with (
            guard,
            self._session.post(
                self.endpoint.join(path), data=body, headers=_JSON_CONTENT, allow_redirects=False
            ) as response,
        ):
            guard.headers_came = True
            content_type = response.headers.get("Content-Type", "")
            ttft: float | None = None
            if response.status == 200 and content_type.startswith("text/event-stream"):
                streamed = StreamedReply()
                async for line in self._lines(response):
                    streamed.line(line)
                    if ttft is None and streamed.started:
                        ttft = time.monotonic() - started
                    if streamed.done:
                        break
                reply = streamed.reply()
            else:
                content = await self._read(response)
                check_status(response.status, response.reason, content, response.headers.get("Retry-After"))
                reply = parse_reply(content, content_type)
        return Exchange(reply, None, number, time.monotonic() - started, ttft)

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        """Read a body of bounded size, with secrets taken out."""
        chunks, size = [], 0
        async for chunk in response.content.iter_any():
            chunks.append(chunk)
            size += len(chunk)
            if size > MAX_BODY:
                raise RequestError(Kind.BROKEN, f"the body does not end ({MAX_BODY >> 20} MiB read)")
        return self.redactor.body(b"".join(chunks))

    async def _lines(self, response: aiohttp.ClientResponse) -> Any:
        """Yield the lines of an event stream of bounded size, with secrets taken out."""
        size, rest = 0, b""
        async for chunk in response.content.iter_any():
            size += len(chunk)
            if size > MAX_BODY:
                raise RequestError(Kind.BROKEN, f"the stream does not end ({MAX_BODY >> 20} MiB read)")
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                yield self.redactor.body(line)
        if rest:
            yield self.redactor.body(rest)


_JSON_CONTENT = {"Content-Type": "application/json"}


def _parse(body: bytes) -> Any:
    import json

    return json.loads(body)


class _Guard:
    """Sets the time limit of one exchange and turns everything the network can do into a `RequestError`."""

    def __init__(self, timeout_s: float, redactor: Redactor) -> None:
        self._timeout_s = timeout_s
        self._redactor = redactor
        self.headers_came = False

    async def __aenter__(self) -> Self:
        self._limit = asyncio.timeout(self._timeout_s)
        await self._limit.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            await self._limit.__aexit__(kind, error, traceback)
        except TimeoutError:
            where = "the headers came, the body did not end" if self.headers_came else "no response"
            raise RequestError(Kind.SLOW, f"timed out after {self._timeout_s:g} s ({where})") from None
        if isinstance(error, aiohttp.ClientConnectorError):
            reason = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error.os_error)
            raise RequestError(Kind.AWAY, f"cannot connect: {reason}") from None
        if isinstance(error, aiohttp.ClientPayloadError | aiohttp.ClientConnectionError | ConnectionError):
            where = "in the middle of the body" if self.headers_came else "before the response"
            raise RequestError(Kind.LOST, f"connection lost {where}") from None
        if isinstance(error, aiohttp.ClientError | OSError | ValueError):
            message = self._redactor.text(f"{type(error).__name__}: {error}")
            raise RequestError(Kind.BROKEN, message) from None
