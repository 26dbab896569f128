"""Numbers from a counter, in integer arithmetic: the same bytes on every device and in every version of torch.

A stream has a key, from its name, and its word i is mix(key + i * 0x9E3779B97F4A7C15) modulo 2^64: SplitMix64, whose
mix is Stafford's 13th variant of MurmurHash3's finalizer (Steele, Lea and Flood, "Fast Splittable Pseudorandom Number
Generators", OOPSLA 2014). It passes TestU01's BigCrush, has period 2^64, and every word depends on the counter alone, so
that any part of a stream is made by itself. Keys are 64 bits of BLAKE2b: two of a problem's streams overlap with a
probability below 2^-25. Each word gives four lanes of 16 bits, and each lane picks an entry of a table
(harness.problems.tables).

torch's own generators are not used: their numbers depend on the device and on the version. Neither is a function of floats
that two devices may round differently: what is not an integer or comes from a table is one +, - or * at a time. A division
of a CUDA tensor by a number is not of that kind: torch multiplies by the reciprocal.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Tensor

from harness.problems import tables

_GOLDEN = 0x9E3779B97F4A7C15
_ROUNDS = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
_LAST_SHIFT = 31
_LANES = 4  # of 16 bits in a word
WORDS = {"cpu": 1 << 16}  # made at a time: half a megabyte
WORDS_ELSEWHERE = 1 << 22  # 32 MiB
_HALF = 1 << 15


def _signed(word: int) -> int:
    """Return the number, from -2^63 to 2^63 - 1, whose 64 bits are those of a word."""
    word &= (1 << 64) - 1
    return word - (1 << 64) if word >> 63 else word


@lru_cache(maxsize=16)
def counters(device: str) -> Tensor:
    """Return i * 0x9E3779B97F4A7C15 modulo 2^64 for as many i as are made at a time, int64."""
    words = WORDS.get(device, WORDS_ELSEWHERE)
    return torch.arange(words, dtype=torch.int64, device=device) * _signed(_GOLDEN)


def words(key: int, first: int, count: int, device: str) -> Tensor:
    """Return words of a stream, `(count,)` int64, their bits being those of the unsigned words.

    Args:
        key: of the stream.
        first: index of the first word.
        count: of words, at most as many as are made at a time: 2^16 on a CPU, 2^22 elsewhere.
        device: torch device.
    """
    word = torch.add(counters(device)[:count], _signed(key + first * _GOLDEN))
    shifted = torch.empty_like(word)
    for shift, factor in _ROUNDS:
        _fold(word, shift, shifted)
        word.mul_(_signed(factor))
    return _fold(word, _LAST_SHIFT, shifted)


def _fold(word: Tensor, shift: int, shifted: Tensor) -> Tensor:
    """Exclusive-or words with themselves shifted to the right, zeros coming in, in place."""
    torch.bitwise_right_shift(word, shift, out=shifted)  # the sign's copies come in, and are masked
    return word.bitwise_xor_(shifted.bitwise_and_((1 << (64 - shift)) - 1))


class Counter:
    """One stream: a few numbers for the host, as many as are asked for on a device.

    Args:
        name: what is drawn, and the seed.
        device: torch device on which the many numbers are made; the few come from Python's `random`, on the host.

    Attributes:
        device: likewise.
    """

    def __init__(self, name: str, device: str) -> None:
        self.device = device
        self._key = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
        self._next = 0
        # The one method of Random whose numbers Python promises not to change.
        self._random = random.Random(name).random

    def number(self, count: int) -> int:
        """Return a number from 0 to `count` - 1."""
        return int(self._random() * count)

    def order(self, count: int) -> Tensor:
        """Return the numbers from 0 to `count` - 1 in a drawn order, `(count,)` int64, on the host."""
        return torch.tensor(sorted(range(count), key=lambda _: self._random()))

    def bits(self, count: int) -> Tensor:
        """Return zeros and ones, `(count,)` float64, on the host."""
        return torch.tensor([float(self._random() < 0.5) for _ in range(count)], dtype=torch.float64)

    def fractions(self, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
        """Return values from 0 to 1, of that type, on the host."""
        return torch.tensor([self._random() for _ in range(math.prod(shape))], dtype=dtype).view(shape)

    def gaussian(self, count: int) -> Tensor:
        """Return Gaussian values of deviation 1, `(count,)` float64, on the host."""
        return tables.quantiles()[[self.number(tables.ENTRIES) for _ in range(count)]]

    def uniform(self, *shape: int) -> Tensor:
        """Return values from 0 to 1, float32, on the device."""
        return self.pick(tables.uniform(self.device), *shape)

    def normal(self, *shape: int) -> Tensor:
        """Return Gaussian values of deviation 1, float32, on the device."""
        return self.pick(tables.normal(torch.float32, self.device), *shape)

    def integers(self, low: int, high: int, *shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
        """Return numbers from `low` to `high` - 1, on the device."""
        return self.pick(tables.evenly(range(low, high), dtype, self.device), *shape)

    def pick(self, table: Tensor, *shape: int) -> Tensor:
        """Return drawn entries of a table `(2^16,)`."""
        out = torch.empty(math.prod(shape), dtype=table.dtype, device=self.device)
        for part, lanes in self.lanes(len(out)):
            torch.index_select(table, 0, lanes.int().add_(_HALF), out=out[part])
        return out.view(shape)

    def lanes(self, count: int) -> Iterator[tuple[slice, Tensor]]:
        """Yield so many lanes of 16 bits, `(part,)` int16 a part, and where each part lies among all."""
        first, self._next = self._next, self._next - (-count // _LANES)
        most = WORDS.get(self.device, WORDS_ELSEWHERE) * _LANES
        for start in range(0, count, most):
            part = min(most, count - start)
            made = words(self._key, first + start // _LANES, -(-part // _LANES), self.device)
            yield slice(start, start + part), made.view(torch.int16)[:part]
