"""Names of candidates whose ranks are processes: `NAME[:RANKS][:TRANSPORTS][:experts=CANDIDATE]`. Imports nothing heavy."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from harness.candidates.traits import COMBINE_TRANSPORTS, TRANSPORTS
from harness.verdict import UsageError, unknown_name

_EXPERTS = "experts="
_SENT = tuple(dict.fromkeys((*TRANSPORTS, *COMBINE_TRANSPORTS)))


@dataclass(frozen=True)
class OverName:
    """What such a name says, without faults.

    Attributes:
        library: the candidate's own name, a key of harness.candidates.CANDIDATES.
        ranks: how many; 0 where the name does not say.
        transports: those alone that are judged; () for all.
        experts: name of the candidate whose experts run between dispatch and combine, "" for its own.
    """

    library: str
    ranks: int = 0
    transports: tuple[str, ...] = ()
    experts: str = ""

    @classmethod
    def of(cls, name: str) -> OverName:
        """Return what a name says.

        Raises:
            UsageError: a part of it is no number of ranks, no transports and no experts, or stands in another place.
        """
        before, with_experts, experts = name.partition(f":{_EXPERTS}")
        library, *parts = before.split(":")
        if with_experts and not experts:
            raise UsageError(f"candidate {name!r}: the name of a candidate must follow {_EXPERTS}")
        ranks, transports = 0, ""
        if parts and parts[0].isascii() and parts[0].isdigit():
            ranks = int(parts.pop(0))
            if not ranks:
                raise UsageError(f"candidate {name!r}: ranks must be at least 1, got 0")
        if parts:
            transports = parts.pop(0)
        if parts:
            raise UsageError(
                f"candidate {name!r} is not of the form {library}[:RANKS][:TRANSPORTS][:{_EXPERTS}CANDIDATE]"
            )
        return cls(library, ranks, transports_of(transports), experts)

    def __str__(self) -> str:
        parts = [self.library, str(self.ranks or ""), ",".join(self.transports)]
        parts += [f"{_EXPERTS}{self.experts}"] if self.experts else []
        return ":".join(filter(None, parts))

    def made(self, known: Mapping[str, str], load: Any) -> Any:
        """Return the candidate.

        Args:
            known: name -> "module:attribute", of harness.candidates.CANDIDATES.
            load: harness.candidates.load_candidate, for the experts.

        Raises:
            UsageError: no such experts.
        """
        module_name, _, attribute = known[self.library].partition(":")
        kind = getattr(importlib.import_module(module_name), attribute)
        over = kind(self.ranks) if self.ranks else kind()
        if self.transports:
            over.keep_to(self.transports)
        if not self.experts:
            return over
        from harness.candidates.with_experts import WithExperts

        return WithExperts(over, load(self.experts))


def transports_of(text: str) -> tuple[str, ...]:
    """Return the transports that a list with commas names, () for "".

    Raises:
        UsageError: there is no such transport.
    """
    found = tuple(dict.fromkeys(text.split(","))) if text else ()
    for name in found:
        if name not in _SENT:
            raise unknown_name("transport", name, _SENT)
    return found
