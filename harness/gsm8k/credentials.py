"""The API key, and keeping it (and credentials in URLs) out of records, journals, reports, logs and arguments.

A key comes from an environment variable or a file, never from an option: options are visible to every user of the
machine. Servers echo keys in error messages, so every response is cleaned before anything else sees it.
"""

from __future__ import annotations

import json
import os
import re
from base64 import b64encode
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any
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

    @property
    def host(self) -> str:
        """Name or address of the server."""
        return urlsplit(self.url).hostname or ""

    @property
    def port(self) -> int:
        """Its port, where the URL names none that of its scheme."""
        parts = urlsplit(self.url)
        return parts.port or (443 if parts.scheme == "https" else 80)

    def other_base(self) -> Endpoint:
        """Return the same server with `/v1` behind the base URL, or without it where it is there."""

        def other(url: str) -> str:
            base, mark, query = url.partition("?")
            return (base.removesuffix("/v1") if base.endswith("/v1") else f"{base}/v1") + mark + query

        return replace(self, url=other(self.url), display=other(self.display))


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
    for suffix in ("/chat/completions", "/completions", "/models"):
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


_FIELD = re.compile(
    r"(?:^|[_-])(?:key|api[_-]?key|secret|password|passwd|auth|authorization|credentials?"
    r"|(?:access|api|auth|bearer|hf|refresh)[_-]?token)$|^token$",
    re.IGNORECASE,
)
"""Names of JSON fields that hold secrets; `max_tokens` and `bad_words_token` do not."""
_TYPED = re.compile(
    r"(?P<name>(?:--?(?:[\w-]*[-_])?(?:key|token|secret|password)[= ]+)"
    r"|(?:\b(?:\w+_)?(?:KEY|TOKEN|SECRET|PASSWORD)=)|://)"
    r"(?P<secret>(?<=://)[^/\s@]+(?=@)|(?<!://)[^\s'\"]+|'[^']*'|\"[^\"]*\")"
)
"""Secrets in a shell command: values of options and variables with such names, and user and password of a URL."""


def field_secrets(fields: Any) -> list[str]:
    """Return the values of all JSON fields whose names say that they are secret."""
    if isinstance(fields, list):
        return [secret for value in fields for secret in field_secrets(value)]
    if not isinstance(fields, dict):
        return []
    found = []
    for name, value in fields.items():
        found += [value] if isinstance(value, str) and _FIELD.search(name) else field_secrets(value)
    return found


def clean_fields(fields: Any) -> Any:
    """Return JSON fields as they may be written: without the values of `field_secrets`."""
    if isinstance(fields, list):
        return [clean_fields(value) for value in fields]
    if not isinstance(fields, dict):
        return fields
    return {
        name: HIDDEN if isinstance(value, str) and _FIELD.search(name) else clean_fields(value)
        for name, value in fields.items()
    }


def shell_secrets(command: str) -> list[str]:
    """Return what a shell command says that is secret."""
    return [found["secret"].strip("'\"") for found in _TYPED.finditer(command)]


def clean_shell(command: str) -> str:
    """Return a shell command as it may be written: without `shell_secrets`."""
    return _TYPED.sub(lambda found: found["name"] + HIDDEN, command)


def clean_command(arguments: list[str]) -> list[str]:
    """Return command-line arguments with the credentials of every URL, JSON object and shell command hidden."""
    cleaned: list[str] = []
    for argument in arguments:
        name, mark, value = argument.partition("=")
        is_option = bool(mark) and name.startswith("--")
        option, text = (name, value) if is_option else (cleaned[-1] if cleaned else "", argument)
        cleaned.append(f"{name}={_cleaned(option, text)}" if is_option else _cleaned(option, text))
    return cleaned


def _cleaned(option: str, text: str) -> str:
    if option == "--serve":
        return clean_shell(text)
    if text.startswith("{"):
        try:
            return json.dumps(clean_fields(json.loads(text)))
        except ValueError:
            return HIDDEN
    if "://" in text:
        try:
            return parse_base_url(text).display
        except UsageError:
            return HIDDEN
    return text
