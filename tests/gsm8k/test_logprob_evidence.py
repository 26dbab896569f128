"""KL from the likeliest tokens, and the two tests: their error rates on healthy noise of every kind, and what they see."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest

from harness.gsm8k.logprobs.divergence import LEAST, Position, along, divergence, mean_kl
from harness.gsm8k.logprobs.evidence import TIMES, Compared, confirmed, judged, needed


def position(**shares: float) -> Position:
    return Position(next(iter(shares)), {token: math.log(share) for token, share in shares.items()})


def full_kl(p: dict[str, float], q: dict[str, float]) -> float:
    return sum(a * math.log(a / q[token]) for token, a in p.items())


def test_kl_is_exact_where_both_servers_name_everything():
    p, q = {"a": 0.7, "b": 0.2, "c": 0.1}, {"a": 0.5, "b": 0.1, "c": 0.4}
    found = divergence(position(**p), position(**q))
    assert found.kl == pytest.approx(full_kl(p, q), abs=1e-4)
    assert (found.token, found.agree) == ("a", True)
    assert not divergence(position(a=0.6, b=0.4), position(b=0.6, a=0.4)).agree
    assert divergence(position(**p), position(**p)).kl == 0.0


@pytest.mark.parametrize("seed", range(40))
def test_kl_of_the_likeliest_tokens_is_never_above_that_of_all(seed):
    """The unnamed tokens may be spread as they are: what is stated is a lower bound, and no empty one."""
    rng = random.Random(seed)
    sharp = rng.choice((0.3, 1.0, 3.0))

    def drawn() -> dict[str, float]:
        weights = [math.exp(sharp * rng.gauss(0, 1)) for _ in range(30)]
        return {f"t{i}": w / sum(weights) for i, w in enumerate(weights)}

    def named(shares: dict[str, float], count: int) -> Position:
        likeliest = sorted(shares, key=lambda t: -shares[t])[:count]
        return Position("t0", {t: math.log(shares[t]) for t in [*likeliest, "t0"]})

    p, q = drawn(), drawn()
    few, some, every = (divergence(named(p, n), named(q, n)).kl for n in (3, 8, 30))
    assert 0 <= few <= full_kl(p, q) + 1e-9
    assert 0 < some <= full_kl(p, q) + 1e-9
    floored = [{t: max(share, LEAST) for t, share in shares.items()} for shares in (p, q)]
    assert every == pytest.approx(full_kl(*floored), abs=1e-4)


def test_servers_that_name_no_token_in_common_are_far_apart():
    assert divergence(position(a=0.9, b=0.05), position(c=0.9, d=0.05)).kl > 2


def test_what_is_no_distribution_is_as_far_as_can_be():
    for broken in ({"a": math.nan}, {"a": -9999.0}, {}, {"a": math.inf}):
        found = divergence(position(a=1.0), Position("a", broken))
        assert (found.kl, found.agree) == (pytest.approx(-math.log(LEAST)), False)
    assert position(a=1e-5).proper


def test_answers_are_compared_as_far_as_they_are_the_same_text():
    first = [position(a=0.9, b=0.1), position(b=0.6, c=0.4), position(d=0.9, e=0.1)]
    second = [position(a=0.9, b=0.1), position(c=0.6, b=0.4), position(x=0.9, d=0.1)]
    assert [d.agree for d in along(first, second)] == [True, False]
    assert [d.token for d in along(first, first[:1])] == ["a"]
    assert along([], second) == []
    assert mean_kl(along(first, [])) == pytest.approx(-math.log(LEAST))
    assert mean_kl([]) == 0.0


NOISES: dict[str, Callable[[random.Random], float]] = {
    "none": lambda rng: 0.0,
    "floating point": lambda rng: math.exp(rng.gauss(-14, 2)),
    "as much as is allowed": lambda rng: math.exp(rng.gauss(-9, 1)),
    "batches": lambda rng: math.exp(rng.gauss(-6, 1.5)),
    "now and then another expert": lambda rng: 0.3 * rng.random() if rng.random() < 0.03 else 1e-5,
    "a tail of 1 / x": lambda rng: 1e-3 / (1 - rng.random()),
}


@pytest.mark.parametrize("noise", NOISES)
def test_no_healthy_pair_of_a_thousand_alarms(noise):
    """Both tests, the first after every block; a question's noise has its own size, as long questions have."""
    rng = random.Random(1)
    draw = NOISES[noise]

    def asked(sizes: list[float]) -> list[Compared]:
        return [Compared(size * draw(rng), size * draw(rng)) for size in sizes]

    alarms = 0
    for _ in range(1000):
        sizes = [math.exp(rng.gauss(0, 1)) for _ in range(32)]
        questions = asked(sizes)
        looks = [judged(questions[:n], 1e-4, last=n == 32) for n in (8, 16, 24, 32)]
        few = looks[-1].in_a_few and confirmed(questions, asked(sizes), 1e-4)
        alarms += any(look.everywhere for look in looks) or few
    assert alarms == 0


def test_the_stated_errors_are_those_of_the_tests():
    """At an error of 5 % and at the edge of what each allows: no more alarms, and some, so the bounds are no idle ones."""
    rng = random.Random(2)
    betting = tail = 0
    runs = 1500
    for _ in range(runs):
        questions = [Compared(rng.paretovariate(0.5), rng.paretovariate(0.5)) for _ in range(32)]
        capital = [judged(questions[:n], 0.0, last=False).evidence for n in range(4, 33)]
        betting += max(capital) >= 20
        heavy = [Compared(TIMES * rng.paretovariate(1), rng.paretovariate(1)) for _ in range(32)]
        tail += judged(heavy, 0.0).tail <= 0.05
    assert 0.005 < betting / runs <= 0.05
    assert 0.001 < tail / runs <= 0.05


@pytest.mark.parametrize(
    ("questions", "everywhere"),
    [
        ([Compared(3e-4, 0.0)] * needed(), True),
        ([Compared(4e-3, 1e-3)] * needed(), True),
        ([Compared(0.0, 0.0)] * 28 + [Compared(2e-3, 0.0)] * 4, False),
        ([Compared(1e-3, 1e-3)] * 28 + [Compared(6e-2, 1e-3)] * 4, False),
        ([Compared(4e-4, 0.0)] * 12 + [Compared(5e-5, 0.0)] * 20, False),
    ],
)
def test_what_is_wrong_everywhere_and_what_is_wrong_in_a_few_questions_is_seen(questions, everywhere):
    found = judged(questions, 1e-4)
    assert (found.everywhere, everywhere or found.in_a_few) == (everywhere, True)
    early = judged(questions, 1e-4, last=False)
    assert (early.everywhere, early.in_a_few) == (everywhere, False)


@pytest.mark.parametrize(
    "questions",
    [
        [],
        [Compared(9e-5, 0.0)] * 32,
        [Compared(2.9e-3, 1e-3)] * 32,
        [Compared(0.5, 0.0)],
        [Compared(0.0, 1e-2)] * 32,
        [Compared(2e-3, 0.0)] * 3 + [Compared(0.0, 0.0)] * 29,
    ],
)
def test_what_is_allowed_is_no_difference(questions):
    found = judged(questions, 1e-4)
    assert not found.everywhere
    assert not found.in_a_few


def test_a_few_questions_are_believed_where_as_many_are_far_apart_again():
    healthy, ill = [Compared(0.0, 0.0)] * 28, [Compared(2e-3, 0.0)] * 4
    assert confirmed(healthy + ill, ill + healthy, 1e-4)
    assert not confirmed(healthy + ill, ill[:2] + healthy, 1e-4)
    assert not confirmed([*healthy, *ill, Compared(0.0, 1e-3)], ill + healthy, 1e-4)
    assert not confirmed(ill, [], 1e-4)


def test_all_questions_further_apart_decide_from_seventeen_on():
    assert needed() == 17
    assert judged([Compared(1.0, 0.0)] * 17, 1e-4, last=False).everywhere
    assert not judged([Compared(1.0, 0.0)] * 16, 1e-4, last=False).everywhere
