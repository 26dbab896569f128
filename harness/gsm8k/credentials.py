"""The API key, and keeping it (and credentials in URLs) out of records, journals, reports, logs and arguments.

A key comes from an environment variable or a file, never from an option: options are visible to every user of the
machine. Servers echo keys in error messages, so every response is cleaned before anything else sees it.
"""

from __future__ import annotations

import json
import os
from base64 import b64encode
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, quote, unquote, urlsplit, urlunsplit

from harness.verdict import UsageError

if TYPE_CHECKING:
    from pathlib import Path

HIDDEN = "[hidden]"


@dataclass(frozen=True)
class Endpoint:
    """The base URL in two forms: `url` without user and password for requests, `display` for everything that is written."""

    url: str
    display: str
    query: str = field(repr=False, default="")
    authorization: str = field(repr=False, default="")
    hidden: tuple[str, ...] = field(repr=False, default=())

    def join(self, path: str) -> str:
        """Return the URL of an API path below the base URL."""
        return f"{self.url}/{path}" + (f"?{self.query}" if self.query else "")

    def root(self, path: str) -> str:
        """Return the URL of a path beside the API, such as `health`, which servers keep outside `/v1`."""
        base = self.url.removesuffix("/v1")
        return f"{base}/{path}" + (f"?{self.query}" if self.query else "")


def parse_base_url(text: str) -> Endpoint:
    """Split a base URL into what is requested and what may be shown.

    Raises:
        UsageError: it is not an http(s) URL with a host. The message never repeats the URL, which may hold a password.
    """
    try:
        parts = urlsplit(text.strip())
        port = parts.port
    except ValueError as error:
        raise UsageError(f"--base-url is not a URL ({type(error).__name__})") from None
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise UsageError("--base-url must look like http://host:port/v1")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    netloc = host if port is None else f"{host}:{port}"
    path = parts.path.rstrip("/")
    for suffix in ("/chat/completions", "/completions"):
        path = path.removesuffix(suffix)
    url = urlunsplit((parts.scheme, netloc, path, "", ""))
    hidden: list[str] = []
    authorization = ""
    if parts.username is not None:
        user, password = unquote(parts.username), unquote(parts.password or "")
        token = b64encode(f"{user}:{password}".encode()).decode()
        authorization = f"Basic {token}"
        hidden += [parts.password or "", password, token, *([] if password else [user])]
    pairs = parse_qsl(parts.query, keep_blank_values=True)
    hidden += [value for _, value in pairs if len(value) >= 8]
    shown = url + ("?" + "&".join(f"{quote(name)}={HIDDEN}" for name, _ in pairs) if pairs else "")
    if parts.username is not None:
        shown = shown.replace("://", f"://{HIDDEN}@", 1)
    return Endpoint(url, shown, parts.query, authorization, tuple(hidden))


def read_key(environment_name: str | None, file: Path | None) -> str:
    """Return the API key from a file, else from the environment variable, else the empty string.

    Raises:
        UsageError: the file cannot be read or is empty, or the key cannot be sent as a header.
    """
    if file is not None:
        try:
            key = file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
            raise UsageError(f"--api-key-file {file}: {reason}") from None
        if not key:
            raise UsageError(f"--api-key-file {file}: the file is empty")
    else:
        key = os.environ.get(environment_name or "", "").strip()
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise UsageError("the API key holds characters that cannot be sent in a header")
    return key


class Redactor:
    """Replaces every known secret by `[hidden]`, in the forms in which a server may echo it."""

    def __init__(self, *secrets: str) -> None:
        forms: set[str] = set()
        for secret in secrets:
            if len(secret) >= 4:  # shorter ones would eat ordinary words
                forms |= {
                    secret,
                    quote(secret, safe=""),
                    json.dumps(secret)[1:-1],
                    json.dumps(secret)[1:-1].replace("/", "\\/"),
                }
        self._forms = sorted(forms, key=len, reverse=True)
        self._bytes = [form.encode() for form in self._forms]

    def text(self, text: str) -> str:
        """Return the text without secrets."""
        for form in self._forms:
            if form in text:
                text = text.replace(form, HIDDEN)
        return text

    def body(self, body: bytes) -> bytes:
        """Return a response body without secrets; done before it is parsed, so nothing behind can leak one."""
        for form in self._bytes:
            if form in body:
                body = body.replace(form, HIDDEN.encode())
        return body


def clean_command(arguments: list[str]) -> list[str]:
    """Return command-line arguments with the credentials of every URL hidden, for the record."""
    cleaned = []
    for argument in arguments:
        name, mark, value = argument.partition("=")
        is_option = bool(mark) and name.startswith("--")
        url = value if is_option else argument
        if "://" in url:
            try:
                url = parse_base_url(url).display
            except UsageError:
                url = HIDDEN
            cleaned.append(f"{name}={url}" if is_option else url)
        else:
            cleaned.append(argument)
    return cleaned
