"""Question and few-shot rows: from JSON lines files, or from the Hugging Face hub when no file is given.

Files are read here and not by the `datasets` library: importing that costs 0.8 s and 120 MiB.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.verdict import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

Row = dict[str, Any]

KNOWN_FILES = {
    "3730d312f6e3440559ace48831e51066acaca737f6eabec99bccb9e4b3c39d14": "GSM8K test, 1,319 questions, as published",
    "17f347dc51477c50d4efb83959dbb7c56297aba886e5544ee2aaed3024813465": "GSM8K train, 7,473 questions, as published",
}
"""sha256 of the files in grade_school_math/data of github.com/openai/grade-school-math."""

HOW_TO_GET = (
    "download train.jsonl and test.jsonl from grade_school_math/data of github.com/openai/grade-school-math "
    "and pass --dataset test.jsonl --fewshot train.jsonl"
)


@dataclass(frozen=True)
class Rows:
    """Rows in file order, where they came from, and the hash of what they say.

    `digest` is over the parsed rows, so the same questions give the same digest from a file and from the hub.
    `file_digest` is over a file's bytes, "" for the hub.
    """

    rows: list[Row]
    source: str
    digest: str
    file_digest: str = ""

    @property
    def known_as(self) -> str:
        """What this file is, if its bytes are those of a published one."""
        return KNOWN_FILES.get(self.file_digest, "")


def digest_of(values: Iterable[Any]) -> str:
    """Return the sha256 of a sequence of JSON values, independent of key order and of the spacing of its source."""
    sha = hashlib.sha256()
    for value in values:
        sha.update(
            json.dumps(value, sort_keys=True, ensure_ascii=True, default=_stable_name).encode() + b"\n"
        )
    return sha.hexdigest()


def _stable_name(value: object) -> str:
    # The text of a function (a YAML's !function) holds its address, which changes with every run.
    return str(getattr(value, "__qualname__", value))


def read_jsonl(path: Path, option: str) -> Rows:
    """Read a JSON lines file.

    Raises:
        UsageError: the file is missing, unreadable, empty, or a line is not a JSON object; the message names the line.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{option} {path}: cannot be read ({error.strerror or error})") from error
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{option} {path}: is not UTF-8 text (byte {error.start})") from error
    rows: list[Row] = []
    # Not splitlines(): U+2028 and U+0085 may stand unescaped inside a JSON string and end no line of the format.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UsageError(
                f"{option} {path}: line {number} is not JSON ({error}); expected JSON lines"
            ) from error
        if not isinstance(row, dict):
            raise UsageError(
                f"{option} {path}: line {number} must be a JSON object, got {type(row).__name__}"
            )
        rows.append(row)
    if not rows:
        raise UsageError(f"{option} {path}: holds no questions")
    return Rows(rows, str(path.name), digest_of(rows), hashlib.sha256(raw).hexdigest())


def read_hub(path: str, name: str | None, split: str, arguments: dict[str, Any]) -> Rows:
    """Read one split through the `datasets` library, from its cache or from the hub.

    Raises:
        UsageError: the library is missing, or the data cannot be had (no network, no such split); says how to get it.
    """
    how = HOW_TO_GET if "gsm8k" in path else f"save its {split} split as JSON lines and pass --dataset FILE"
    try:
        import datasets
    except ImportError as error:
        raise UsageError(f"reading {path} from the hub needs `pip install datasets`; or {how}") from error
    datasets.disable_progress_bars()
    try:
        table = datasets.load_dataset(path, name, split=split, **arguments)
        rows = [dict(row) for row in table]
    except Exception as error:  # the library raises its own, the hub's, requests' and pyarrow's errors alike
        first = next(iter(str(error).splitlines()), "")
        detail = f"{type(error).__name__}: {first:.200}"
        raise UsageError(
            f"{path} ({split}) could not be read from the Hugging Face hub ({detail}). Without network, {how}"
        ) from error
    return Rows(rows, f"{path} ({name or 'default'}, {split})", digest_of(rows))
