"""Parsed JSON to the annotated types of a record, naming the field on any mismatch. Standard library only."""

from __future__ import annotations

import types
import typing
from dataclasses import MISSING, fields, is_dataclass
from enum import StrEnum
from functools import cache
from typing import Any, TypeVar

T = TypeVar("T")


class RecordError(Exception):
    """A record file that cannot be read: it names the file, the field and what was expected."""


@cache
def _annotations(kind: type) -> dict[str, tuple[Any, bool]]:
    """Return the fields of a dataclass as name to (annotation, whether it must be given)."""
    hints = typing.get_type_hints(kind)
    required = {f.name: f.default is MISSING and f.default_factory is MISSING for f in fields(kind)}
    return {name: (hints[name], needed) for name, needed in required.items()}


def build_from_json(kind: Any, value: Any, where: str) -> Any:  # noqa: PLR0911, PLR0912, C901 - one branch a kind of annotation
    """Turn parsed JSON into the annotated type, naming the field on any mismatch. Unknown keys are ignored."""
    if kind is Any or type(value) is kind:  # most fields are plain text and numbers
        return value
    origin = typing.get_origin(kind)
    if origin in (types.UnionType, typing.Union):
        options = typing.get_args(kind)
        if value is None and type(None) in options:
            return None
        return build_from_json(next(o for o in options if o is not type(None)), value, where)
    if is_dataclass(kind):
        if not isinstance(value, dict):
            raise RecordError(f"{where} must be an object, got {type(value).__name__}")
        made: Any = kind
        values = {}
        for name, (hint, needed) in _annotations(made).items():
            if name in value:
                values[name] = build_from_json(hint, value[name], f"{where}.{name}")
            elif needed:
                raise RecordError(f"{where}.{name} is missing")
        return made(**values)
    if origin in (list, tuple):
        if not isinstance(value, list):
            raise RecordError(f"{where} must be a list, got {type(value).__name__}")
        built = [build_from_json(typing.get_args(kind)[0], v, f"{where}[{i}]") for i, v in enumerate(value)]
        return origin(built)
    if origin is dict or typing.is_typeddict(kind):
        if not isinstance(value, dict):
            raise RecordError(f"{where} must be an object, got {type(value).__name__}")
        if (
            origin is None
        ):  # a dict that stays one is for its reader to look into: a record holds 1,319 answers
            return value
        of = typing.get_args(kind)[1]
        return value if of is Any else {k: build_from_json(of, v, f"{where}.{k}") for k, v in value.items()}
    if issubclass(kind, StrEnum):
        if not isinstance(value, str) or value not in set(kind):
            raise RecordError(f"{where} must be one of {', '.join(kind)}, got {value!r}")
        return kind(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise RecordError(f"{where} must be {kind.__name__}, got {value!r:.80}")
    return value


def read_part(kind: type[T], value: dict[str, Any] | None, where: str) -> T | None:
    """Return a part of a record as its type, None where there is none; `where` starts the messages. Raises RecordError."""
    if value is None:
        return None
    built: T = build_from_json(kind, value, where)
    return built
