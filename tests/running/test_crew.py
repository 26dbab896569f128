"""Workers that share tasks: a lost one's task is judged again and counted once, and what differs at one of them is told."""

from __future__ import annotations

import dataclasses
import threading
import time
from typing import Any

import pytest

from harness.candidates.errors import CandidateStartError
from harness.candidates.protocol import Traits
from harness.running.outcome import Description, Outcome, Status
from harness.running.shared import crew as crews
from harness.running.shared.crew import Crew, WorkerLostError
from harness.running.shared.local import LocalWorker
from harness.running.shared.session import SharedSession
from harness.running.shared.tasks import Task, in_ranges, judge_task
from tests.running.conftest import ToldSession, judged

PROBLEMS = tuple(f"1x4x32x32:2:normal:{seed}" for seed in range(12))


class Worker:
    """Answers as told; `lost` says when it is."""

    def __init__(self, answer: Any = lambda _: judged(), lost: Any = lambda _: False, **traits: Any) -> None:
        declared = Traits(device="cpu", k_multiple=16, n_multiple=1)
        self.session = ToldSession(answer, dataclasses.replace(declared, **traits))
        self.lost, self.starts, self.tasks = lost, 0, []

    def start(self) -> Description:
        self.starts += 1
        return self.session.describe()

    def run(self, task: Task) -> list[Outcome]:
        self.tasks.append(task)
        if self.lost(self):
            raise WorkerLostError("the machine is gone")
        return judge_task(self.session, task)

    def diagnose(self, *asked: Any) -> list[dict[str, Any]]:
        return [{"asked": asked}]

    def stop(self) -> None:
        pass

    def close(self) -> None:
        pass


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crews, "RESTART_SECONDS", 0.01)


def task(*problems: str, seconds: float = 5) -> Task:
    return Task("QUANT", problems, seconds)


def test_tasks_are_judged_once_each_whoever_takes_them() -> None:
    workers = [Worker(lambda _: (time.sleep(0.005), judged())[1]) for _ in range(3)]
    crew = Crew(workers)
    answers = [crew.submit(task(*part)) for part in in_ranges(PROBLEMS, 2)]
    assert [len(crew.wait(answer)) for answer in answers] == [2] * 6
    crew.close()
    assert sorted(p for w in workers for t in w.tasks for p in t.problems) == sorted(PROBLEMS)


def test_the_task_of_a_lost_worker_is_judged_again_by_one_that_is_there() -> None:
    unlucky = Worker(lost=lambda worker: len(worker.tasks) == 1)
    crew = Crew([unlucky, Worker(lambda _: (time.sleep(0.01), judged())[1])])
    answers = [crew.submit(task(problem)) for problem in PROBLEMS]
    assert [outcome.status for answer in answers for outcome in crew.wait(answer)] == [Status.JUDGED] * 12
    crew.close()
    assert crew.rerun == 1
    assert unlucky.starts == 2


def test_a_task_that_loses_every_worker_is_given_up_and_the_rule_is_unknown() -> None:
    session = SharedSession(Crew([Worker(lost=lambda worker: worker.tasks[-1].problems == (PROBLEMS[3],))]))
    outcome = session.judge("QUANT", PROBLEMS[3], 5)
    assert outcome.status is Status.SLOW
    assert outcome.error == f"no answer: the machine is gone, the {crews.MOST_LOSSES}th time"
    assert session.judge("QUANT", PROBLEMS[4], 5).status is Status.JUDGED
    session.close()


def test_a_run_whose_workers_are_all_gone_ends() -> None:
    there = threading.Event()

    class Gone(Worker):
        def start(self) -> Description:
            if self.starts:
                there.wait(20)
                raise WorkerLostError("nowhere")
            return super().start()

    crew = Crew([Gone(lost=lambda _: True)], gone_seconds=0.05)
    with pytest.raises(WorkerLostError, match="all 1 workers are gone"):
        crew.wait(crew.submit(task(PROBLEMS[0])))
    there.set()
    crew.close()


def test_workers_that_do_not_have_the_same_candidate_are_refused() -> None:
    with pytest.raises(CandidateStartError, match="worker 2 has other traits than worker 1"):
        Crew([Worker(), Worker(min_experts=2)])


def test_a_worker_that_joins_later_with_another_candidate_ends_the_run() -> None:
    class Late(Worker):
        def start(self) -> Description:
            time.sleep(0.05)
            return super().start()

    crew = Crew([Worker(), Late(finite_only=True)], nodes=2)
    time.sleep(0.2)
    with pytest.raises(CandidateStartError, match="other traits"):
        crew.wait(crew.submit(task(PROBLEMS[0])))
    crew.close()


@pytest.mark.parametrize(
    ("status", "judged_"),
    [
        (Status.JUDGED, 12), (Status.NO_MEMORY, 12), (Status.NOT_IMPLEMENTED, 10), (Status.CRASHED, 3), (Status.TIMEOUT, 3),
        (Status.SLOW, 1), (Status.RAISED, 1), (Status.CONTRACT, 1), (Status.RANK_LOST, 1), (Status.NOT_APPLICABLE, 1),
        (Status.INTERNAL, 1),
    ],
)  # fmt: skip
def test_a_task_ends_where_a_run_would_judge_no_more_of_the_rule(status: Status, judged_: int) -> None:
    session = ToldSession(lambda _: Outcome(status))
    assert len(judge_task(session, task(*PROBLEMS))) == judged_
    assert len(session.problems) == judged_


def test_who_waits_for_one_answer_comes_before_all_tasks_and_keeps_a_worker() -> None:
    slow = Worker(lambda _: (time.sleep(0.02), judged())[1])
    crew = Crew([slow])
    answers = [crew.submit(task(problem)) for problem in PROBLEMS]
    for _ in range(3):
        crew.ask(lambda worker: worker.run(task("9x9x16x16:9*9:normal:0")))
    asked = [t.problems[0].startswith("9x9") for t in slow.tasks]
    assert sum(asked) == 3
    assert asked[asked.index(True) :] == [True] * 3, "no task between them"
    crew.relax()
    assert all(crew.wait(answer) for answer in answers)
    crew.close()


@pytest.mark.usefixtures("in_candidates_folder")
def test_two_processes_judge_and_are_gone_afterwards() -> None:
    workers = [LocalWorker("faulty:QuantizesOnly", threads=1) for _ in range(2)]
    crew = Crew(workers)
    answers = [crew.submit(task(problem, seconds=60)) for problem in PROBLEMS[:4]]
    assert all(outcome.comparisons for answer in answers for outcome in crew.wait(answer))
    crew.close()
    assert [worker._child._process for worker in workers] == [None, None]


def test_a_worker_on_a_gpu_sees_that_one_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []

    class Noted(ToldSession):
        def __init__(self, name: str, **words: Any) -> None:
            given.append((name, words["environment"]))
            super().__init__(lambda _: judged())

    monkeypatch.setattr("harness.running.shared.local.Child", Noted)
    LocalWorker("mine", "3").start()
    LocalWorker("mine").start()
    assert given == [("mine", {"CUDA_VISIBLE_DEVICES": "3"}), ("mine", {})]
