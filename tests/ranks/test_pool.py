"""A rank that dies, hangs or was told another size ends a call in bounded time, is named, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.candidates.over_ranks import EagerGloo
from harness.ranks.collectives import Sizes
from harness.ranks.errors import RankError, RankLostError
from harness.ranks.pool import Pool

SIZES = Sizes(max_tokens=4, hidden=128, experts=4, topk=2)
GIVEN: list[dict[str, Any]] = [
    {"x": torch.full((tokens, 128), 2.5).bfloat16(), "topk_idx": torch.tensor([0, 3]).expand(tokens, 2)}
    for tokens in (4, 0)
]
Start = Callable[..., Pool]
Gone = Callable[[list[int]], bool]


def test_ranks_that_disagree_or_refuse_say_which_and_what(start: Start, are_gone: Gone) -> None:
    pool = start()
    other = Sizes(max_tokens=6, hidden=128, experts=4, topk=2)
    with pytest.raises(RankError) as raised:
        pool.call("dispatch", [SIZES, other], GIVEN)
    words = str(raised.value)
    assert "call 1 (dispatch: bf16, max_tokens 4" in words
    assert "the ranks disagree: rank 0 is in call 1 (dispatch: bf16, max_tokens 4," in words
    assert "rank 1 is in call 1 (dispatch: bf16, max_tokens 6," in words
    received = pool.call("dispatch", SIZES, GIVEN)
    assert [got["masked_m"].tolist() for got in received] == [[4, 0], [0, 4]]
    refused_by_all_and_by_one(pool)
    assert are_gone(pool.pids)


def refused_by_all_and_by_one(pool: Pool) -> None:
    """What all ranks refuse is an error of each; where only one does, the others wait for it, and are ended."""
    unknown = Sizes(4, 128, 4, 2, transport="fp4")
    with pytest.raises(RankError, match=r"call 3 .*rank 0: dispatch: transport must be one of.*; rank 1: "):
        pool.call("dispatch", unknown, GIVEN)
    outside = [GIVEN[0] | {"topk_idx": torch.tensor([[0, 9]] * 4)}, GIVEN[1]]
    with pytest.raises(
        RankLostError,
        match=r"^call 4 \(dispatch.*; rank 0: dispatch: topk_idx must lie in .*; rank 1 of 2 still waits 3 s later",
    ):
        pool.call("dispatch", SIZES, outside)


def kill_rank_1_in_a_call(pool: Pool) -> str:
    """Have a rank die while the others wait for it: it is stopped first, so that they do. Return what is said."""
    pool.call("dispatch", SIZES, GIVEN)
    os.kill(pool.pids[1], signal.SIGSTOP)
    timer = threading.Timer(0.3, os.kill, (pool.pids[1], signal.SIGKILL))
    timer.start()
    with pytest.raises(RankLostError) as raised:
        pool.call("dispatch", SIZES, GIVEN)
    timer.join()
    with pytest.raises(RankLostError, match="call 2"):
        pool.call("dispatch", SIZES, GIVEN)
    return str(raised.value)


def test_a_rank_that_is_killed_ends_the_call_and_the_next_run_works(are_gone: Gone) -> None:
    candidate = EagerGloo()
    candidate.start_ranks()
    pool = candidate._pool
    assert pool is not None
    said = kill_rank_1_in_a_call(pool)
    assert said.startswith("rank 1 of 2 was killed by SIGKILL in call 2 (dispatch: bf16, max_tokens 4")
    assert are_gone(pool.pids)
    received = candidate.dispatch(
        [given["x"] for given in GIVEN], [given["topk_idx"] for given in GIVEN], 4, 4
    )
    assert [got.masked_m.tolist() for got in received] == [[4, 0], [0, 4]]
    candidate.close()


@pytest.mark.long
@pytest.mark.parametrize("_", range(10))
def test_a_rank_that_is_killed_is_named_every_time(_: int, start: Start, are_gone: Gone) -> None:
    pool = start()
    assert "rank 1 of 2 was killed by SIGKILL in call 2" in kill_rank_1_in_a_call(pool)
    assert are_gone(pool.pids)


def test_a_rank_that_hangs_is_told_from_those_that_wait_for_it(start: Start, are_gone: Gone) -> None:
    pool = start(call_seconds=3.0)
    pool.call("dispatch", SIZES, GIVEN)
    os.kill(pool.pids[1], signal.SIGSTOP)
    with pytest.raises(RankLostError, match=r"^rank 1 of 2 hangs: it has not begun call 2 .* within 3 s"):
        pool.call("dispatch", SIZES, GIVEN)
    assert are_gone(pool.pids)


def test_ranks_end_with_the_process_that_started_them(are_gone: Gone) -> None:
    """It is killed, so that it ends nothing itself."""
    program = (
        "from harness.ranks.pool import Pool; p = Pool(1, 'gloo'); print(p.pids[0], flush=True); input()"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert Path(f"/proc/{pid}").exists()
    parent.kill()
    parent.communicate()
    assert are_gone([pid])


def test_a_library_that_cannot_be_used_is_the_reason_why_the_ranks_do_not_start(are_gone: Gone) -> None:
    with pytest.raises(RankLostError, match="the ranks did not start: rank 0: ValueError: library must be"):
        Pool(1, "nccl")
