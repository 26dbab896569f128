"""A part of a record as an attribute: the record keeps JSON in a field, whoever asks gets a type."""

from __future__ import annotations

from typing import Any, Generic, Protocol, TypeVar

from harness.records.from_json import read_part


class _ToJson(Protocol):
    def to_json(self) -> dict[str, Any]:
        """Return what the record holds."""


P = TypeVar("P", bound=_ToJson)


class Part(Generic[P]):
    """An attribute that reads and writes a part, None where the record has none.

    Reading raises RecordError with the name of a damaged field.

    Args:
        kind: type of the part.
        field: of the record, with its JSON.
    """

    def __init__(self, kind: type[P], field: str) -> None:
        self._kind, self._field = kind, field

    def __get__(self, record: object, _: type | None = None) -> P | None:
        return read_part(self._kind, getattr(record, self._field), f"record.{self._field}")

    def __set__(self, record: object, part: P | None) -> None:
        setattr(record, self._field, part.to_json() if part is not None else None)
