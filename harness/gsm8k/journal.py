"""Every answer on disk as it arrives, and reading them back with `--resume`.

One JSON object a line, appended with a single write, so a process that is killed leaves whole lines and at most one torn
one at the end. The first line binds the journal to what was asked of whom; another run's journal is refused, because an
answer cache that ignores the model once scored 1.0 with no request sent.
"""

from __future__ import annotations

import fcntl
import json
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from harness.verdict import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from harness.records.parts.gsm8k import Gsm8kSample

VERSION = 1
NAME = "journal.jsonl"


@dataclass
class Found:
    """What a journal holds: answered samples by (index, repeat), those of `--against`, probes by name, refused fields."""

    samples: dict[tuple[int, int], Gsm8kSample] = field(default_factory=dict)
    against: dict[tuple[int, int], Gsm8kSample] = field(default_factory=dict)
    probes: dict[str, Any] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)
    torn: bool = False


class Journal:
    """An open journal. Unanswered questions are not written: `--resume` asks them again."""

    def __init__(self, handle: int, path: Path, found: Found) -> None:
        self._handle = handle
        self.path = path
        self.found = found

    @classmethod
    def open(cls, folder: Path, binding: dict[str, Any], *, resume: bool) -> Journal:
        """Open the journal of a run; with `resume` read what it holds first. Without, no journal is ever read.

        An old journal is kept as `journal.jsonl.previous` when a new one begins.

        Raises:
            UsageError: another run is writing it, it belongs to another run, or it is damaged.
        """
        path = folder / NAME
        if not resume and path.exists():
            _refuse_if_locked(path)
            path.replace(path.with_name(NAME + ".previous"))
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            _lock(handle, path)
            content = path.read_bytes() if resume else b""
            found, keep = _read(content, binding, path)
            if keep < len(content):
                os.ftruncate(handle, keep)
            journal = cls(handle, path, found)
            if keep == 0:
                journal.write("binding", {"version": VERSION, **binding})
        except BaseException:
            os.close(handle)
            raise
        return journal

    def write(self, kind: str, value: Mapping[str, Any] | list[str]) -> None:
        """Append one line: a `sample`, one of `against`, a `probe`, what is `refused`, or the `binding`."""
        line = json.dumps({kind: value}, allow_nan=False).encode() + b"\n"
        while line:  # a full disk or a signal may cut one write short
            line = line[os.write(self._handle, line) :]

    def close(self) -> None:
        """Flush to the disk and let go of the file."""
        if self._handle >= 0:
            os.fsync(self._handle)
            os.close(self._handle)
            self._handle = -1


def _read(content: bytes, binding: dict[str, Any], path: Path) -> tuple[Found, int]:
    """Return what the journal holds and how many of its bytes are whole lines."""
    found = Found()
    keep = 0
    bound = False
    for number, line in enumerate(content.splitlines(keepends=True), 1):
        last = keep + len(line) == len(content)
        try:
            entry = json.loads(line) if line.endswith(b"\n") else None
        except ValueError:
            entry = None
        if not isinstance(entry, dict):
            if last:
                found.torn = True
                break
            raise UsageError(f"{path}: line {number} is damaged; move the journal away to start again")
        if not bound:
            _check_binding(entry.get("binding"), binding, path)
            bound = True
        elif "sample" in entry:
            sample = entry["sample"]
            found.samples[sample["index"], sample["repeat"]] = sample
        elif "against" in entry:
            sample = entry["against"]
            found.against[sample["index"], sample["repeat"]] = sample
        elif "probe" in entry:
            found.probes[entry["probe"]["name"]] = entry["probe"]["result"]
        elif "refused" in entry:
            found.refused = entry["refused"]
        keep += len(line)
    return found, keep


def _check_binding(written: Any, binding: dict[str, Any], path: Path) -> None:
    """Refuse a journal that was bound to anything else, and say to what."""
    if not isinstance(written, dict) or written.get("version") != VERSION:
        raise UsageError(f"{path}: is not a journal of this version of the harness")
    expected = json.loads(json.dumps(binding))
    different = [name for name in expected if written.get(name) != expected[name]]
    if different:
        stated = "; ".join(
            f"{n} was {_short(written.get(n))}, is {_short(expected[n])}" for n in different[:3]
        )
        raise UsageError(
            f"{path}: belongs to another run ({stated}); use another --out, or leave out --resume"
        )


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:40]}... ({len(text)} characters)"


def _lock(handle: int, path: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise UsageError(f"{path}: another run is writing it") from None


def _refuse_if_locked(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        _lock(handle, path)
    finally:
        os.close(handle)
