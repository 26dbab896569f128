"""The counter-based stream: its words are those of SplitMix64, and simple statistics tell it from a bad one."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from harness.problems import counter, tables
from harness.problems.counter import Counter, words

MASK = (1 << 64) - 1
LIMIT = (
    5.0  # deviations: one statistic in two million lies beyond by chance, and these draw the same each time
)
SAMPLE = 1 << 18  # words


def splitmix64(key: int, number: int) -> int:
    """Return a word as the paper has it, in Python's integers."""
    z = (key + number * 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def drawn(key: int, first: int = 0) -> Tensor:
    """Return as many words as the statistics take."""
    most = counter.WORDS["cpu"]
    return torch.cat([words(key, first + start, most, "cpu") for start in range(0, SAMPLE, most)])


def deviation(counts: Tensor) -> float:
    """Return how far counts of cells that are equally likely are off, in deviations of chi-square."""
    expected = counts.sum().double() / len(counts)
    chi, freedom = float(((counts - expected) ** 2 / expected).sum()), len(counts) - 1
    return abs(chi - freedom) / math.sqrt(2 * freedom)


def statistics(draw: Callable[[int], Tensor]) -> dict[str, float]:
    """Return the deviations of a stream by the statistic's name."""
    one, other = draw(12345), draw(12346)
    lanes = one.view(torch.int16).int() & 0xFFFF
    of_other = other.view(torch.int16).int() & 0xFFFF
    found = {"16 bits": deviation(torch.bincount(lanes, minlength=1 << 16))}
    for lane in range(4):
        own = lanes[lane::4]
        found[f"lane {lane} low"] = deviation(torch.bincount(own & 0xFF, minlength=256))
        found[f"lane {lane} high"] = deviation(torch.bincount(own >> 8, minlength=256))
    for apart in (1, 2, 3, 4, 8, 16, 64, 1024):
        pairs = (lanes[apart:] >> 12) << 4 | lanes[:-apart] >> 12
        found[f"{apart} apart"] = deviation(torch.bincount(pairs, minlength=256))
    found["two keys"] = deviation(torch.bincount((lanes >> 12) << 4 | of_other >> 12, minlength=256))
    flipped = one ^ other
    ones = torch.stack([(flipped >> bit & 1).double().mean() for bit in range(64)])
    found["flipped bits"] = float((ones - 0.5).abs().max()) * 2 * math.sqrt(SAMPLE)
    return found


def test_words_are_those_of_splitmix64() -> None:
    """COUNTER: the published first outputs for seed 0, and others in exact integers, from any place of a stream."""
    first = [int(word) & MASK for word in words(0, 1, 3, "cpu")]
    assert first == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    for key, place in ((0, 0), (MASK, 5), (0x0123456789ABCDEF, 1 << 40), (1 << 63, (1 << 62) + 3)):
        got = [int(word) & MASK for word in words(key, place, 9, "cpu")]
        assert got == [splitmix64(key, place + number) for number in range(9)]


def test_a_stream_is_uniform_and_independent() -> None:
    """COUNTER: lanes, pairs of lanes, and streams of keys that differ in one bit."""
    found = statistics(drawn)
    assert max(found.values()) < LIMIT, found


@pytest.mark.parametrize(
    "fault", ["no second round", "no first round", "counters as they are", "sign comes in"]
)
def test_the_statistics_see_a_bad_mixer(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    """COUNTER: each of these would pass a glance at the numbers, and fails here."""
    if fault == "sign comes in":

        def folded(word: Tensor, shift: int, shifted: Tensor) -> Tensor:
            torch.bitwise_right_shift(word, shift, out=shifted)
            return word.bitwise_xor_(shifted)

        monkeypatch.setattr(counter, "_fold", folded)
    elif fault == "counters as they are":
        monkeypatch.setattr(counter, "_ROUNDS", ())
        monkeypatch.setattr(counter, "_fold", lambda word, *_: word)
    else:
        monkeypatch.setattr(counter, "_ROUNDS", counter._ROUNDS[: 1 if "second" in fault else 0])
    found = statistics(drawn)
    assert max(found.values()) > LIMIT, found


def test_names_are_streams_of_their_own_and_numbers_go_on() -> None:
    """COUNTER: nothing is drawn twice, in one stream or in two."""
    one, again, other = Counter("weights 1", "cpu"), Counter("weights 1", "cpu"), Counter("weights 2", "cpu")
    table = torch.arange(tables.ENTRIES)
    first, second = one.pick(table, 5, 401), one.pick(table, 5, 401)
    assert torch.equal(first, again.pick(table, 5, 401))
    for different in (second, other.pick(table, 5, 401)):
        assert (different == first).sum() < 5


def test_a_pick_is_of_the_whole_table_each_entry_as_often() -> None:
    """COUNTER: through the tables of even shares, of whatever number of values."""
    draws = Counter("even", "cpu")
    for count in (2, 3, 5, 11, 448):
        numbers = draws.integers(7, 7 + count, 300, 1000)
        assert (int(numbers.min()), int(numbers.max())) == (7, 6 + count)
        assert deviation(torch.bincount(numbers.flatten() - 7, minlength=count)) < LIMIT
    normal = draws.normal(1 << 20).double()
    assert abs(float(normal.mean())) < LIMIT / 1024
    assert abs(float(normal.square().mean()) - 1) < 0.01
    assert abs(float(draws.uniform(1 << 20).mean()) - 0.5) < LIMIT / 1024 * 0.29


def test_the_few_numbers_of_the_host_are_what_they_always_were() -> None:
    """COUNTER: no version of Python draws others."""
    draws = Counter("few", "cpu")
    assert [draws.number(1000) for _ in range(5)] == [820, 359, 523, 314, 747]
    assert draws.order(8).tolist() == [0, 4, 2, 7, 3, 5, 1, 6]
    assert draws.bits(8).tolist() == [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0]
    assert draws.fractions(2).tolist() == [0.8691137461185772, 0.7502569825035063]
    assert draws.gaussian(2).tolist() == [-0.10620498657226562, 0.8783073425292969]
    orders = torch.stack([draws.order(6) for _ in range(6000)])
    assert all(deviation(torch.bincount(orders[:, place])) < LIMIT for place in range(6))
