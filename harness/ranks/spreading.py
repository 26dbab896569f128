"""A problem's ranks over the processes that there are: as many, or several processes for each.

With several, a problem's rank owns their experts together and sends its tokens from the first of them, so that one rank is
judged through the same kernels as many. Experts and tokens are filled up to what the processes and the library need.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from harness.ranks.collectives import Sizes
from harness.ranks.messages import from_message
from reference.routing import NO_EXPERT, Dispatched


@dataclass(frozen=True)
class Spread:
    """How a problem's ranks lie over processes.

    Attributes:
        processes: that there are.
        ranks: of the problem, a divisor of the processes.
        experts: of the problem, a multiple of its ranks.
        max_tokens: most tokens that a rank of the problem sends.
        row_multiple: what processes * max_tokens is filled up to, as the library needs it.

    Raises:
        ValueError: ranks that do not divide.
    """

    processes: int
    ranks: int
    experts: int
    max_tokens: int
    row_multiple: int = 1

    def __post_init__(self) -> None:
        if self.processes % self.ranks or self.experts % self.ranks:
            raise ValueError(
                f"{self.ranks} ranks must divide the {self.processes} processes and the {self.experts} experts"
            )

    @property
    def each(self) -> int:
        """Processes of one rank."""
        return self.processes // self.ranks

    @property
    def local(self) -> int:
        """Experts of one process, some of which may be no expert of the problem."""
        return -(-self.experts // self.ranks // self.each)

    def sizes(self, hidden: int, topk: int, transport: str = "bf16", style: str = "plain") -> Sizes:
        """Return what every process is told."""
        step = self.row_multiple // math.gcd(self.row_multiple, self.processes)
        tokens = -(-self.max_tokens // step) * step
        return Sizes(tokens, hidden, self.local * self.processes, topk, transport, style)

    def tokens(self, of_ranks: list[Tensor], fill: Tensor) -> list[Tensor]:
        """Return the tokens of each process: those of its rank in the first one, `fill` (without rows) in the others."""
        return [of_ranks[p // self.each] if p % self.each == 0 else fill for p in range(self.processes)]

    def routes(self, of_ranks: list[Tensor]) -> list[Tensor]:
        """Return `tokens` of expert ids, as the processes number their experts."""
        owned = self.experts // self.ranks
        moved = [
            torch.where(ids == NO_EXPERT, ids, ids // owned * self.each * self.local + ids % owned)
            for ids in of_ranks
        ]
        return self.tokens(moved, moved[0][:0])

    def received(self, of_processes: list[dict[str, Any]], device: str) -> list[Dispatched]:
        """Return what the problem's ranks received, from what the processes did.

        Raises:
            ValueError: an expert that is none of the problem, or a rank that has none, received or sent something.
        """
        capacity = self.ranks * self.max_tokens
        found = []
        for rank in range(self.ranks):
            mine = of_processes[rank * self.each : (rank + 1) * self.each]
            gathered = [from_message(got, device) for got in mine]
            parts = {
                name: _joined([getattr(got, name) for got in gathered])
                for name in ("x", "masked_m", "source", "scales")
            }
            self._check(parts["masked_m"], capacity)
            owned = slice(0, self.experts // self.ranks)
            x, source, scales = (_first(parts[name], owned, capacity) for name in ("x", "source", "scales"))
            sender = source[..., :1]
            sender = torch.where((sender >= 0) & (sender % self.each == 0), sender // self.each, -1)
            source = torch.cat((sender, source[..., 1:]), dim=-1)
            counts = parts["masked_m"][owned].contiguous()
            found.append(in_order(Dispatched(x, counts, source, scales)))
        return found

    def _check(self, counts: Tensor, capacity: int) -> None:
        extra = counts[self.experts // self.ranks :]
        if bool((extra != 0).any()) or bool((counts > capacity).any()):
            raise ValueError(
                f"dispatch: the experts received {counts.tolist()} rows, expected at most {capacity}, and none for the "
                f"last {len(extra)}, to which no token was sent"
            )

    def rows(self, of_ranks: list[Tensor], fill: float, hidden_or_two: int) -> list[Tensor]:
        """Return the rows of each process's experts, `(local, processes * max_tokens, width)`, filled up with a value."""
        capacity = self.processes * self.sizes(1, 1).max_tokens
        found = []
        for rows in of_ranks:
            shape = (self.each * self.local, capacity, hidden_or_two)
            whole = torch.full(shape, fill, dtype=rows.dtype, device=rows.device)
            whole[: rows.shape[0], : rows.shape[1]] = rows
            found += list(torch.split(whole, self.local))
        return found

    def sources(self, of_ranks: list[Dispatched]) -> list[Tensor]:
        """Return where the rows of each process's experts came from, as the processes number themselves."""
        moved = []
        for got in of_ranks:
            source = got.source.clone()
            source[..., 0] = torch.where(source[..., 0] >= 0, source[..., 0] * self.each, -1)
            moved.append(source)
        return self.rows(moved, -1, 2)


def _first(part: Tensor | None, experts: slice, rows: int) -> Any:
    return None if part is None else part[experts, :rows].contiguous()


def in_order(got: Dispatched) -> Dispatched:
    """Return what a rank received with the rows of each expert in order of source rank and token, where ranks lie together.

    Any order that keeps a rank's rows together means the same, and kernels have another one in every call: this one lets
    two calls be compared, by a diagnosis for example. An expert whose ranks do not lie together stays as it is.
    """
    rank, token = got.source.unbind(-1)
    row = torch.arange(rank.shape[1], device=rank.device)
    valid = row < got.masked_m.unsqueeze(-1)
    starts = torch.ones_like(valid)
    starts[:, 1:] = rank[:, 1:] != rank[:, :-1]
    most = int(rank.max()) + 2 if rank.numel() else 1
    ranks = torch.zeros((len(rank), most), dtype=torch.bool, device=rank.device)
    ranks.scatter_(1, torch.where(valid, rank + 1, 0), value=True)
    together = (starts & valid).sum(1) == ranks[:, 1:].sum(1)
    sortable = valid & together.unsqueeze(-1)
    key = torch.where(
        sortable, rank * (int(token.max()) + 1 if token.numel() else 1) + token, torch.iinfo(torch.int64).max
    )
    order = torch.where(together.unsqueeze(-1), key.argsort(dim=1, stable=True), row)
    return with_rows_at(got, order)


def with_rows_at(got: Dispatched, order: Tensor) -> Dispatched:
    """Return a copy whose rows are taken from others of the same expert, `(local experts, capacity)` int64."""

    def moved(part: Tensor) -> Tensor:
        as_bytes = part.view(torch.uint8) if part.dtype.itemsize == 1 else part
        return as_bytes.gather(1, order.unsqueeze(-1).expand(-1, -1, as_bytes.shape[-1])).view(part.dtype)

    scales = None if got.scales is None else moved(got.scales)
    return Dispatched(moved(got.x), got.masked_m, moved(got.source), scales)


def _joined(parts: list[Tensor | None]) -> Any:
    given = [part for part in parts if part is not None]
    if not given:
        return None
    # float8 cannot be concatenated everywhere
    whole = torch.cat([part.view(torch.uint8) if part.dtype.itemsize == 1 else part for part in given])
    return whole.view(given[0].dtype)


def distinct(ids: Tensor) -> Tensor:
    """Return routes in which no token names an expert twice: kernels would send it twice, past the room for its rank."""
    again = (ids.unsqueeze(-1) == ids.unsqueeze(-2)).tril(-1).any(-1)
    return ids.masked_fill(again, NO_EXPERT)


def not_empty(rows: Tensor, fill: int) -> Tensor:
    """Return rows, or one row of `fill` where there are none: for libraries that take no tensor without memory."""
    return rows if len(rows) else rows.new_full((1, rows.shape[1]), fill)


def ranks_together(got: Dispatched) -> Dispatched:
    """Return the rows of each expert in order of rank and token, those of no known source after them, padding last.

    For libraries that promise no order of rows at all.
    """
    rank, token = got.source.unbind(-1)
    last = torch.iinfo(torch.int64).max
    capacity = rank.shape[1]
    key = torch.where(rank >= 0, rank * (capacity + 1) + token, last - 1)
    row = torch.arange(capacity, device=rank.device)
    key = torch.where(row < got.masked_m.unsqueeze(-1), key, last)
    return with_rows_at(got, key.argsort(dim=1, stable=True))


def rows_at(y: Tensor, source: Tensor, wanted: Tensor, ranks: int) -> Tensor:
    """Return rows in another order.

    Args:
        y: `(local, capacity, hidden)`.
        source: `(local, capacity, 2)`, rank and token of its rows, -1 in padding.
        wanted: the same of the rows that are returned.
        ranks: a divisor of the capacity.

    Returns:
        As y; NaN where a wanted row is not in y, and in padding.
    """
    local, capacity, hidden = y.shape
    tokens = capacity // ranks

    def place_of(pairs: Tensor) -> Tensor:
        rank, token = pairs.unbind(-1)
        exists = (rank >= 0) & (rank < ranks) & (token >= 0) & (token < tokens)
        return torch.where(exists, rank * tokens + token, capacity)

    nowhere = capacity  # the row of NaN that is put after the others
    row_of = torch.full((local, capacity + 1), nowhere, device=y.device)
    row_of.scatter_(1, place_of(source), torch.arange(capacity, device=y.device).expand(local, -1))
    row_of[:, capacity] = nowhere
    row = row_of.gather(1, place_of(wanted))
    whole = torch.cat((y, torch.full((local, 1, hidden), torch.nan, dtype=y.dtype, device=y.device)), dim=1)
    return whole.gather(1, row.unsqueeze(-1).expand(-1, -1, hidden))
