"""A run on a Ray cluster of two nodes, in processes of this machine: the record of one run, also when one of them dies.

`make test-cluster` installs Ray and runs this.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.records.record import RunRecord
from harness.running.shared.asked import AskedSharing
from harness.running.shared.cluster import RayWorker
from tests.running.conftest import CANDIDATES
from tests.running.shared_runs import judged, what_was_found

if importlib.util.find_spec("ray"):  # read when it is imported: every address is 127.0.0.1
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.filterwarnings("ignore"),  # Ray's own
]
ray = pytest.importorskip("ray", reason="needs Ray: make test-cluster")

WHAT = (["faulty:TakesItsTime"], ["QUANT", "PAD-ROWS"])


@pytest.fixture(scope="module")
def alone() -> RunRecord:
    """One process judges all."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(CANDIDATES)
        return judged(*WHAT)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Two nodes of one processor each, one of which can be lost: the other one has what Ray keeps about both."""
    monkeypatch.chdir(CANDIDATES)
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    node = {"num_cpus": 1, "num_gpus": 0, "node_ip_address": "127.0.0.1", "object_store_memory": 100 << 20}
    made = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    made.second = made.add_node(**node)
    yield made
    ray.shutdown()
    made.shutdown()


def node_of(worker: RayWorker) -> str:
    """Return the node that a worker's actor is on, once that is there."""
    found: str = ray._private.state.actors(worker._actor._actor_id.hex())["Address"]["NodeID"]
    return found


def kill(node: Any) -> None:
    """End all processes of a node at once, as a machine does that loses its power."""
    ending = [info.process.pid for infos in node.all_processes.values() for info in infos]
    for process in ending:
        ending += map(int, Path(f"/proc/{process}/task/{process}/children").read_text().split())
    for process in ending:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def test_two_nodes_give_the_record_of_one_run(cluster: Any, alone: RunRecord) -> None:
    record = judged(*WHAT, AskedSharing(ray=cluster.address))
    assert what_was_found(record) == what_was_found(alone)
    sharing = record.sharing_part
    assert (sharing.nodes, sharing.workers, sharing.rerun) == (2, 2, 0)


@pytest.mark.parametrize("after", [1, 2, 3, 4, 5])
def test_a_node_that_is_killed_loses_nothing_and_nothing_is_counted_twice(
    cluster: Any, alone: RunRecord, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks, asked, killing = [], RayWorker._asked, threading.Event()

    def watched(self: RayWorker, method: str, *arguments: Any) -> Any:
        if method == "run" and node_of(self) == cluster.second.node_id:
            tasks.append(arguments)
            if len(tasks) == after:  # each takes a quarter of a second and more
                threading.Timer(0.1, kill, [cluster.second]).start()
                killing.set()
        elif method == "run":
            killing.wait(60)  # however long the other one takes to start, there is work for it
        return asked(self, method, *arguments)

    monkeypatch.setattr(RayWorker, "_asked", watched)
    record = judged(*WHAT, AskedSharing(ray=cluster.address))
    assert what_was_found(record) == what_was_found(alone)
    assert record.sharing_part.rerun == 1, "the task that it had when it was killed"


def test_an_address_without_a_cluster_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    from harness.cli import run

    assert run(["check", "--candidate", "eager", "--ray", "auto"]) == 64
    assert capsys.readouterr().err.startswith("harness: --ray auto: ")
