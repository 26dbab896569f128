"""The load sweep: servers that are ill at some sizes only, the sweep's errors and power, and what it adds to a run."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import pytest

from harness.gsm8k import sweep
from harness.gsm8k.client import Exchange
from harness.gsm8k.load import (
    ALONE_ERROR,
    SWEEP_ERROR,
    TARGETS,
    Sweep,
    _alone_p,
    load_decision,
    with_load,
)
from harness.gsm8k.payload import Reply
from harness.gsm8k.sweep import Waves
from harness.gsm8k.task import Question
from harness.records.parts.gsm8k import Decision

WRONG = {"effect": "wrong"}
# What is ill, the verdict of a full run at --concurrency 32, and what its reason names.
SERVERS = {
    "dead above 2": ({"in_flight": [3, None]}, "alone"),
    "dead above 16": ({"in_flight": [17, None]}, "8 at a time 24 of 24, 32 at a time 0 of 24"),
    "dead above 64": (
        {"in_flight": [65, None]},
        "8 at a time 24 of 24, 32 at a time 24 of 24, 128 at a time",
    ),
    "dead alone": ({"in_flight": [1, 1]}, "alone 0 of 6 right"),
    "dead at 8": ({"in_flight": [8, 8]}, "8 at a time 0 of 24"),
    "half dead above 64": ({"in_flight": [65, None], "chance": 0.5}, "with 128 requests in flight"),
}


@pytest.fixture
def many(write_data):
    """Data of 128 questions: enough for a wave of targets and the others in it."""
    return write_data(128)


@pytest.fixture
def swept(serve, run_here, many):
    """Run the stage with its sweep on a server that is ill."""

    def call(*ill, config=None, **settings):
        config = {"latency": 0.06, **(config or {})}
        server = serve(data=str(many[0]), illness=list(ill), **config)
        settings = {"sweep": True, "dataset": many[0], "fewshot": many[1], **settings}
        return run_here(server.url, **settings), server

    return call


@pytest.mark.parametrize("name", ["dead above 16", "dead above 64", "dead alone"])
def test_what_depends_on_the_load_fails_and_names_the_sizes(name, swept, monkeypatch):
    monkeypatch.setattr(sweep, "AFTER_DEAD_S", 60.0)  # what a busy machine takes is not in question
    conditions, named = SERVERS[name]
    stage, _ = swept(WRONG | conditions)
    assert (stage["verdict"], stage["qualifier"]) == ("FAIL", "load"), stage["reason"]
    assert named in stage["reason"]
    assert stage["decisions"]["load"]["qualifier"] == "load"


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name in SERVERS if name not in {"dead above 16", "dead alone"}])
@pytest.mark.parametrize("concurrency", [1, 8, 32, 128])
def test_it_is_found_at_every_concurrency_of_the_run(name, concurrency, swept, monkeypatch):
    monkeypatch.setattr(sweep, "AFTER_DEAD_S", 60.0)  # what a busy machine takes is not in question
    conditions, _ = SERVERS[name]
    stage, _ = swept(WRONG | conditions, concurrency=concurrency)
    assert (stage["verdict"], stage["qualifier"]) == ("FAIL", "load"), stage["reason"]


def test_a_healthy_server_passes_and_is_asked_for_ten_latencies_more(swept):
    stage, server = swept(min_accuracy=0.9)
    assert (stage["verdict"], stage["qualifier"]) == ("PASS", "")
    words = "alone 3 of 3 right, 8 at a time 24 of 24, 32 at a time 24 of 24, 128 at a time 24 of 24"
    assert stage["decisions"]["load"]["reason"] == f"no difference: {words}"
    stats = server.stats()
    assert stats["completions"] == 128 + 2 + 3 + 24 + 128
    assert 64 < stats["most_in_flight"] <= 128


def simulated(generator, accuracy, noise, alive=lambda size, number: 1.0, own=32, total=128):
    """The sweep's decision on a model: each answer is its own with chance 1 - noise / 2, and is lost if not alive."""
    known = [generator.random() < accuracy for _ in range(total)]
    number = 0

    def draw(index, size):
        nonlocal number
        number += 1
        right = known[index] != (generator.random() < noise / 2)
        return right and generator.random() < alive(size, number)

    async def ask(size, targets):
        return [draw(index, size) for index in targets]

    found = Sweep(own, {index: draw(index, own) for index in range(total)})
    with pytest.raises(StopIteration):  # nothing is waited for
        found.run(ask).send(None)
    return load_decision(found.as_json())


@pytest.mark.parametrize("runs", [50, pytest.param(500, marks=pytest.mark.long)])
def test_healthy_servers_are_called_ill_no_more_often_than_stated(runs):
    """10,000 in the long form: accuracy 0.3 to 0.99, flip noise 1 to 3 %, and answers that are thrown like a coin."""
    generator = random.Random(20394)
    verdicts = Counter()
    for accuracy in (0.3, 0.5, 0.8, 0.95, 0.99):
        for noise in (0.01, 0.02, 0.03, 1.0):
            verdicts.update(simulated(generator, accuracy, noise).word for _ in range(runs))
    assert verdicts.total() == 20 * runs
    assert verdicts["FAIL"] <= max(1, 2 * SWEEP_ERROR * verdicts.total())


@pytest.mark.parametrize("own", [1, 8, 32, 128, 200])
def test_ill_sizes_are_found_whatever_the_run_was_asked_at(own):
    generator = random.Random(own)
    ill = {
        **{f"dead above {k}": (lambda size, number, k=k: size <= k) for k in (2, 8, 16, 64, 100)},
        **{f"dead at {k}": (lambda size, number, k=k: size != k) for k in (1, 8, 32, 128)},
        "half dead above 64": lambda size, number: 1.0 if size <= 64 else 0.5,
    }
    for name, alive in ill.items():
        found = Counter(simulated(generator, 0.95, 0.02, alive, own).label for _ in range(40))
        assert found["FAIL (load)"] >= 38, (name, found)


def test_what_changes_with_time_is_not_called_load():
    generator = random.Random(7)

    def changes(after):
        return simulated(generator, 0.95, 0.02, lambda size, number: number < after).label

    # The run has 128 answers, the sweep begins with 24 requests at 8 and 3 alone.
    found = Counter(changes(after) for after in range(128, 128 + 24 + 3 + 24))
    assert found["FAIL (load)"] <= 1
    assert found["FAIL (degenerate)"] >= 24 + 3


def test_the_chance_of_an_answer_that_changes_alone_is_exact():
    chosen = range(6)
    again = [(index, True) for index in chosen for _ in range(6)]
    assert _alone_p(dict.fromkeys(chosen, False), again, in_run=True) == pytest.approx((1 / 7) ** 6)
    four = {index: index > 3 for index in chosen}
    assert _alone_p(four, again, in_run=True) == pytest.approx(ALONE_ERROR)
    noisy = [(0, False), *again[1:]]
    assert _alone_p(dict.fromkeys(chosen, False), noisy, in_run=True) == pytest.approx((1 / 7) ** 5 * 2 / 7)
    assert _alone_p(dict.fromkeys(chosen, True), again, in_run=True) == 1


def test_the_load_is_named_as_the_cause_but_for_infrastructure():
    load = Decision("FAIL", "load", "wrong alone", {"own": 32})
    dead, infra = Decision("FAIL", "dead", "0 of 32 right"), Decision("UNKNOWN", "infra", "away")
    assert with_load(dead, load).label == "FAIL (load)"
    assert with_load(dead, load).reason == "wrong alone; the run itself, at 32: 0 of 32 right"
    assert with_load(Decision("UNKNOWN", "undecided", ""), load).label == "FAIL (load)"
    assert with_load(infra, load) == infra
    assert with_load(dead, Decision("PASS", "", "")) == with_load(dead, None) == dead
    later = Decision("FAIL", "degenerate", "otherwise later", {"own": 32})
    assert with_load(dead, later).label == "FAIL (dead)"
    assert with_load(Decision("PASS", "", "fine"), later).label == "FAIL (degenerate)"


class _Asker:
    """Keeps what it was asked, in order, wave by wave; every answer is right."""

    def __init__(self) -> None:
        self.waves = []
        self._open = 0

    def prompt(self, question):
        return question

    async def ask(self, question):
        if self._open == 0:
            self.waves.append([])
        self._open += 1
        self.waves[-1].append(question.index)
        await asyncio.sleep(0.001)
        self._open -= 1
        return Exchange(Reply("yes"), None, 1, 0.0)

    def judged(self, question, reply):
        return {"strict": False, "flexible": True, "numeric": False}


def _places(seed: int) -> list[int]:
    """Where 24 targets stand in a wave of 128."""
    questions = [Question(i, f"question {i}", "1") for i in range(200)]
    asker = _Asker()
    right = asyncio.run(Waves(asker, questions, seed, 0.0).ask(128, range(TARGETS)))
    assert right == [True] * TARGETS
    (wave,) = asker.waves
    assert len(wave) == 128
    assert len(set(wave)) == 128, "no question twice while there are others"
    return [place for place, index in enumerate(wave) if index < TARGETS]


def test_targets_stand_at_random_places_of_a_wave():
    first = _places(0)
    assert first == _places(0)
    assert first != _places(1)
    assert max(first) - min(first) > 64


def test_waves_are_asked_one_after_another_and_filled_up():
    questions = [Question(i, f"question {i}", "1") for i in range(12)]
    asker = _Asker()
    assert asyncio.run(Waves(asker, questions, 0, 0.0).ask(8, range(12))) == [True] * 12
    assert [len(wave) for wave in asker.waves] == [8, 8]
    assert [len(set(range(8)) & set(asker.waves[0])), set(range(8, 12)) <= set(asker.waves[1])] == [8, True]
    assert asyncio.run(Waves(asker, questions[:1], 0, 0.0).ask(8, [0])) == [True]


def test_a_dead_server_stays_dead(swept):
    stage, _ = swept(WRONG)
    assert (stage["verdict"], stage["qualifier"]) == ("FAIL", "dead")
    assert stage["decisions"]["load"] is None or stage["decisions"]["load"]["word"] == "PASS"


def test_the_verdict_on_a_slow_dead_server_does_not_wait_for_the_sweep(swept):
    stage, _ = swept(WRONG, config={"latency": 1.2})
    assert (stage["verdict"], stage["qualifier"]) == ("FAIL", "dead")
    assert "is asked no more without --probe" in stage["probes"]["load"]["reason"]
    assert stage["seconds"]["requests"] < 1.2 + 2


@pytest.mark.long
def test_an_answer_that_is_wrong_when_it_is_asked_again_is_not_the_load(swept):
    stage, _ = swept(WRONG | {"seen": 1})
    assert (stage["verdict"], stage["qualifier"]) == ("FAIL", "degenerate"), stage["reason"]
    assert (
        "the same questions at the same load (32 at a time) are answered otherwise later: 24 lost"
        in stage["reason"]
    )


def test_smoke_mode_asks_alone_only(swept):
    stage, server = swept(mode="smoke")
    assert stage["verdict"] == "NOT DEAD"
    assert server.stats()["completions"] == 32 + 2 + 3
    stage, _ = swept(WRONG | {"in_flight": [1, 1]}, mode="smoke")
    assert (stage["verdict"], stage["qualifier"]) == ("FAIL", "load")


@pytest.mark.long
def test_a_size_that_the_server_refuses_is_said_and_not_judged(swept):
    refusal = {"fault": "status", "status": 429, "after": 128 + 2 + 3 + 24 + 40, "until": 1000, "tries": 9}
    stage, _ = swept(config={"faults": [refusal]}, retry_seconds=0.1)
    assert "128 at a time" in stage["decisions"]["load"]["reason"]
    assert "unanswered" in stage["decisions"]["load"]["reason"]
    assert stage["decisions"]["load"]["word"] == "PASS"


def test_too_few_questions_are_not_swept(swept):
    stage, _ = swept(questions=TARGETS - 1, min_accuracy=0.5)
    assert stage["probes"]["load"] == {"ran": False, "reason": "23 answered questions are too few"}
    assert stage["decisions"]["load"] is None


@pytest.mark.long
def test_the_sweep_is_journaled(swept, serve, run_here, many):
    first, server = swept()
    again = run_here(server.url, sweep=True, resume=True, dataset=many[0], fewshot=many[1])
    assert again["requests"]["sent"] == 0
    assert again["probes"]["load"] == first["probes"]["load"]
    assert again["decisions"]["load"] == first["decisions"]["load"]
