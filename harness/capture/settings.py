"""What is captured, and how much: given to a process by one environment variable, so that spawned workers have it too."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

VARIABLE = "HARNESS_CAPTURE"
OPTIONS = "HARNESS_CAPTURE_OPTIONS"


@dataclass(frozen=True)
class CaptureSettings:
    """What one process captures. A call is a whole layer, or a stage that is called outside of one.

    Attributes:
        folder: to write into.
        calls: how many, of a process.
        every: one in so many.
        skip: how many are left out at first, so that a warm-up is not captured.
        megabytes: after which nothing more is written, of a process.
        ranks: only these; empty for all.
        layers: only these, by the order in which their weights are first seen; empty for all.
    """

    folder: str
    calls: int = 256
    every: int = 1
    skip: int = 0
    megabytes: int = 4096
    ranks: tuple[int, ...] = ()
    layers: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name, least in (("calls", 1), ("every", 1), ("skip", 0), ("megabytes", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise ValueError(f"capture: {name} must be a whole number of at least {least}, got {value!r}")

    def environment(self) -> dict[str, str]:
        """Return the variables that give these settings to another process."""
        options = {name: value for name, value in asdict(self).items() if name != "folder"}
        return {VARIABLE: str(Path(self.folder).resolve()), OPTIONS: json.dumps(options)}

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> CaptureSettings | None:
        """Return what the environment says, None where it names no folder.

        Raises:
            ValueError: options that cannot be read, or a value that one cannot have.
        """
        folder = environment.get(VARIABLE, "")
        if not folder:
            return None
        known = {field.name for field in fields(cls)} - {"folder"}
        try:
            given = json.loads(environment.get(OPTIONS, "{}"))
            values: dict[str, Any] = {
                name: tuple(value) if isinstance(value, list) else value for name, value in given.items()
            }
        except (ValueError, AttributeError, TypeError) as error:
            raise ValueError(
                f"{OPTIONS} must be a JSON object of {', '.join(sorted(known))}: {error}"
            ) from None
        return cls.of(folder, values, OPTIONS)

    @classmethod
    def of(cls, folder: str, options: Mapping[str, Any], said_by: str) -> CaptureSettings:
        """Return settings of options by name.

        Raises:
            ValueError: an option that there is not, or a value that it cannot have.
        """
        known = {field.name for field in fields(cls)} - {"folder"}
        if unknown := sorted(set(options) - known):
            raise ValueError(f"{said_by}: unknown {unknown[0]!r}; known: {', '.join(sorted(known))}")
        return cls(folder, **options)
