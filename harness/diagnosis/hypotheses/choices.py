"""The random choices of a fault (which call, which row, which tile), tried one after the other instead of drawn.

A race strikes here and there. Where it struck can be seen, so its choices are not guessed: a choice among rows takes an
illegal row, a choice among columns the illegal columns, and what cannot be seen is enumerated.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from random import Random
from typing import Any

import torch
from torch import Tensor

from harness.diagnosis.hypotheses.taken_over import ThroughLayer

MOST_TRIES = 64  # two cuts along a k of 128 are 49 pairs
FEW_TRIES = 16  # after which at least something must fit
_MOST_OPTIONS = 32
_FIRST_SOURCES = 4


def _in_turn(rows: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Order rows so that each group's first one comes first: only so many are tried."""
    turn: dict[int, int] = {}
    turns = []
    for group, _ in rows:
        turns.append(turn.setdefault(group, 0))
        turn[group] += 1
    return [row for _, row in sorted(zip(turns, rows, strict=True), key=lambda pair: pair[0])]


class Choices(Random):
    """A source of "random" numbers that goes through the likely choices.

    Args:
        illegal: `(groups, rows, columns)` bool, where the fault showed; None for a call in which it did not.
        seen: `(groups, rows, columns)`, what was observed.
        healthy: the same, of the right model.
        through: of a layer: reads off its output what the first stage call with a choice did.
        strikes: of a layer: in which of its planted stage calls the fault strikes; () for all.

    Attributes:
        used: whether anything was chosen.
        asked: whether the fault asked whether to strike.
        placed: whether a place was chosen: what strikes by chance is elsewhere in another repetition.
        of_rows: whether a row was chosen, which is then explained or not, whatever else is chosen.
        tries: how many choices were tried.
    """

    def __init__(
        self,
        illegal: Tensor | None,
        seen: Tensor | None = None,
        healthy: Tensor | None = None,
        *,
        through: ThroughLayer | None = None,
        strikes: tuple[bool, ...] = (),
    ) -> None:
        super().__init__(0)
        self._illegal, self._seen, self._healthy = illegal, seen, healthy
        self._through, self._strikes = through, strikes
        self._path: list[int] = []
        self._widths: list[int] = []
        self._at = 0
        self.tries = 0
        self.used = self.asked = self.placed = self.of_rows = False
        self._call = 0
        self._row: tuple[int, int] | None = None
        self._source: tuple[int, int] | None = None

    @cached_property
    def _bad_rows(self) -> list[tuple[int, int]]:
        """Where the fault showed, the worst rows first; found only for a fault that chooses."""
        if self._illegal is None:
            return []
        counts = self._illegal.sum(-1)
        worst_first = counts.nonzero()[counts[counts > 0].argsort(descending=True, stable=True)]
        return _in_turn([(group, row) for group, row in worst_first.tolist()])

    @cached_property
    def _columns(self) -> list[int]:
        """In which columns the fault showed."""
        if self._illegal is None:
            return []
        return self._illegal.flatten(0, 1).any(0).nonzero().flatten().tolist()

    def begin(self, number: int) -> None:
        """Go to a layer's next planted stage call, of that number."""
        self._call, self._row, self._source = number, None, None

    def advance(self) -> bool:
        """Go to the next choices; False where all were tried, or enough."""
        self._at, self._row, self._source = 0, None, None
        self.tries += 1
        while self._path and self._path[-1] + 1 >= self._widths[-1]:
            self._path.pop()
            self._widths.pop()
        if not self._path or self.tries >= MOST_TRIES:
            return False
        self._path[-1] += 1
        return True

    def _pick(self, options: Sequence[Any]) -> Any:
        self.placed |= len(options) > 1  # the only row that there is was not chosen by chance
        if self._at == len(self._path):
            self._path.append(0)
            self._widths.append(min(len(options), _MOST_OPTIONS))
        chosen = options[self._path[self._at]]
        self._at += 1
        return chosen

    def random(self) -> float:
        """Return 0 where the fault is to strike, and 1 elsewhere, which even a chance of 1 does not reach."""
        self.used = self.asked = True
        strikes = self._illegal is not None and (not self._strikes or self._strikes[self._call])
        return 0.0 if strikes else 1.0

    def choice(self, seq: Any) -> Any:
        """Return an illegal place first."""
        self.used = True
        return self._pick(self._likely(seq))

    def sample(self, population: Sequence[Any], k: int, *, counts: Any = None) -> list[Any]:  # noqa: ARG002 - Random's signature
        """Return illegal places first; of rows, first an illegal one, then those that its values may come from."""
        self.used = True
        if self._row is not None and self._source is not None and isinstance(population[0], int):
            return self._taken_over(population, k)
        likely = self._likely(population)
        if k == 1 or not likely or not isinstance(likely[0], tuple):
            return list(likely[:k])
        first = self._pick(likely[: max(1, len(self._bad_rows))])
        self._row = first
        others = self._sources(first, [p for p in likely if p != first])
        start = self._pick(range(len(others)))
        self._source = others[start]
        return [first, *(others[start:] + others[:start])[: k - 1]]

    def randrange(self, start: int, stop: int | None = None, step: int = 1) -> int:
        """Return numbers that are illegal columns or rows first, then the others in order."""
        self.used = True
        numbers = range(start) if stop is None else range(start, stop, step)
        return int(self._pick(self._likely(numbers)))

    def randint(self, a: int, b: int) -> int:
        """Return one of a to b, the likely ones first."""
        return self.randrange(a, b + 1)

    def shuffle(self, x: Any) -> None:  # noqa: ARG002 - Random's signature
        """Leave the order as it is: an order cannot be seen."""
        self.used = True

    def _likely(self, seq: Sequence[Any]) -> list[Any]:
        items = list(seq)
        if not items or self._illegal is None:
            return items
        if isinstance(items[0], tuple):
            self.of_rows = True
            rank = {row: i for i, row in enumerate(self._bad_rows)}
            return sorted(items, key=lambda item: rank.get(item, len(rank)))
        if not isinstance(items[0], int):
            return items
        columns = self._columns
        if self._row is not None:
            columns = self._illegal[self._row].nonzero().flatten().tolist()
        bad = set(columns)
        return sorted(items, key=lambda item: item not in bad)

    def _taken_over(self, columns: Sequence[int], k: int) -> list[int]:
        """Return the columns in which the chosen row looks most like its source, and least like itself."""
        through = self._through if self._call == 0 else None
        if through is not None and self._row is not None and self._source is not None:
            likely = through.columns(self._row, self._source).tolist()
            return likely[:k] if len(likely) == len(columns) else list(columns[:k])
        seen, own, other = (
            t[place].float() if t is not None else torch.zeros(len(columns))
            for t, place in (
                (self._seen, self._row),
                (self._healthy, self._row),
                (self._healthy, self._source),
            )
        )
        if len(seen) != len(columns):  # what is overwritten is not what was seen
            return list(columns[:k])
        nearer = ((seen - other).abs() - (seen - own).abs()).nan_to_num(0, posinf=0, neginf=0)
        return [columns[i] for i in nearer.argsort(stable=True)[:k].tolist()]

    def _sources(self, row: tuple[int, int], others: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """Order other rows by how many of the illegal elements of a row are theirs."""
        if self._illegal is None or self._seen is None or self._healthy is None:
            return others
        if self._through is not None and self._call == 0:
            return self._through.sources(row) or others[:1]
        bad = self._illegal[row]
        index = torch.tensor(others)
        theirs = self._healthy[index[:, 0], index[:, 1]][:, bad]
        equal = (theirs == self._seen[row][bad]).sum(-1)
        far = (theirs.float() - self._seen[row][bad].float()).abs().nan_to_num(torch.inf).median(-1).values
        # Of those that are equally often equal, the nearest first.
        likeness = equal - far.clamp(max=1e30) / far.clamp(1e-30, 1e30).max()
        return [others[i] for i in likeness.argsort(descending=True, stable=True).tolist()][:_FIRST_SOURCES]
