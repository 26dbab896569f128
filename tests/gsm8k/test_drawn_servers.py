"""Every ill server of the generator gets the verdict that its ground truth asks for."""

from __future__ import annotations

import pytest

from harness.gsm8k import sweep
from tests.gsm8k.ill_servers import LATENCY, QUESTIONS, drawn

SEEDS = (0, 1, 2)
CHEAP = {"no mark", "cuts answers"}
NAMES = [server.name.rstrip("0123456789 ") for server in drawn(0)]


@pytest.fixture(scope="module")
def files(write_data):
    return write_data(QUESTIONS)


def judged(server, serve, run_here, files):
    config = {"data": str(files[0]), "latency": LATENCY, **server.config}
    stage = run_here(serve(**config).url, sweep=True, dataset=files[0], fewshot=files[1], **server.settings)
    label = f"{stage['verdict']} ({stage['qualifier']})" if stage["qualifier"] else stage["verdict"]
    assert label in server.verdicts, f"{server.family}, {server.name}: {stage['reason']}"


@pytest.mark.parametrize("name", sorted(CHEAP))
def test_an_ill_server_gets_its_verdict(name, serve, run_here, files):
    (server,) = [server for server in drawn(0) if server.name == name]
    judged(server, serve, run_here, files)


@pytest.mark.long
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("place", range(len(NAMES)), ids=NAMES)
def test_all_ill_servers_of_several_seeds_get_their_verdicts(
    place, seed, serve, run_here, files, monkeypatch
):
    monkeypatch.setattr(sweep, "AFTER_DEAD_S", 60.0)  # what a busy machine takes is not in question
    judged(drawn(seed)[place], serve, run_here, files)


def test_there_are_twenty_of_eight_families_and_a_seed_makes_them():
    assert len(NAMES) >= 20
    assert {server.family for server in drawn(0)} == {
        "load", "order", "time", "length", "format", "null", "cache", "restart",
    }  # fmt: skip
    assert drawn(3) == drawn(3)
    assert drawn(3) != drawn(4)
