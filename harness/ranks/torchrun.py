"""Ranks that torchrun has started: the first one judges, and the others serve its calls as those of a pool do.

The first one also starts a process for its own share, since whoever judges must not wait in a kernel. The others find it
through torchrun's store, on this host or another.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NoReturn

from harness.ranks.errors import RankLostError
from harness.ranks.pool import START_SECONDS, Pool, started
from harness.ranks.worker import RankSettings, serve, torch_threads
from harness.verdict import UsageError

if TYPE_CHECKING:
    from harness.ranks.messages import Channel

_KEY = "harness/judge"
_WORD_BYTES = 64  # of the word that a rank shows when it connects, its number included
_judging: Place | None = None


@dataclass(frozen=True)
class Place:
    """Where this process stands among those that torchrun started.

    Attributes:
        rank, ranks, local_rank: as torchrun numbers them.
        host, port: of its store.
        hosts_store: this process must host the store, since torchrun does not.
        one_host: all ranks are on this host.
    """

    rank: int
    ranks: int
    local_rank: int
    host: str
    port: int
    hosts_store: bool
    one_host: bool


def find_place(environment: Mapping[str, str] = os.environ) -> Place | None:
    """Return this process's place, None where torchrun did not start it.

    Raises:
        UsageError: it says less than torchrun does.
    """
    if "WORLD_SIZE" not in environment or "RANK" not in environment:
        return None
    try:
        rank, ranks = int(environment["RANK"]), int(environment["WORLD_SIZE"])
        return Place(
            rank, ranks, int(environment.get("LOCAL_RANK", "0")), environment["MASTER_ADDR"],
            int(environment["MASTER_PORT"]), rank == 0 and environment.get("TORCHELASTIC_USE_AGENT_STORE") != "True",
            environment.get("LOCAL_WORLD_SIZE") == str(ranks),
        )  # fmt: skip
    except (KeyError, ValueError) as error:
        raise UsageError(f"RANK and WORLD_SIZE are set, but not all that torchrun sets: {error}") from error


def judge_here(place: Place) -> None:
    """Have candidates of this process take the ranks that torchrun started, instead of starting their own."""
    global _judging  # noqa: PLW0603 - one judging process has one set of ranks
    _judging = place


def joined_pool(ranks: int, library: str, call_seconds: float) -> Pool | None:
    """Return a pool of the ranks that torchrun started, None in a process that is to start its own.

    Raises:
        RankLostError: there are not as many, or they did not come.
    """
    if _judging is None:
        return None
    if _judging.ranks != ranks:
        raise RankLostError(f"torchrun started {_judging.ranks} ranks, and the candidate is over {ranks}")
    return Pool(ranks, library, call_seconds=call_seconds, connect=_connect)


def serve_calls(place: Place) -> NoReturn:
    """Serve the judging process's calls until it has no more, and end this process: what every rank but the first does."""
    from harness.ranks.messages import Channel

    _find_each_other(place)
    torch_threads()
    store = open_store(place)
    said = json.loads(store.get(_KEY))
    connected = socket.create_connection((place.host, said["port"]), timeout=START_SECONDS)
    connected.settimeout(None)
    connected.sendall(f"{said['word']} {place.rank}".encode().ljust(_WORD_BYTES))
    settings = RankSettings(said["library"], place.rank, place.ranks, place.local_rank, -1, "")
    serve(Channel(connected), settings, store)


def open_store(place: Place) -> Any:
    """Return torchrun's store, under a prefix of ours."""
    import torch.distributed as dist

    store = dist.TCPStore(  # type: ignore[attr-defined]
        place.host,
        place.port,
        is_master=place.hosts_store,
        wait_for_workers=False,
        timeout=timedelta(seconds=START_SECONDS),
    )
    return dist.PrefixStore("harness", store)  # type: ignore[attr-defined]


def _connect(pool_ranks: int, library: str) -> tuple[list[subprocess.Popen[bytes] | None], list[Channel]]:
    """Start this process's own share and wait for the other ranks: a process where it is ours, and a channel of each."""
    from harness.ranks.messages import Channel

    if _judging is None:
        raise RankLostError("this process does not judge ranks of torchrun")
    _find_each_other(_judging)
    ours, theirs = socket.socketpair()
    store = open_store(_judging)  # hosts it, where torchrun does not
    with socket.create_server(("", 0)) as server, theirs:
        server.settimeout(START_SECONDS)
        word = secrets.token_hex(16)
        port = server.getsockname()[1]
        store.set(_KEY, json.dumps({"port": port, "word": word, "library": library}))
        where = json.dumps([_judging.host, _judging.port])
        own = started(RankSettings(library, 0, pool_ranks, _judging.local_rank, theirs.fileno(), where))
        channels = {0: Channel(ours)}
        while len(channels) < pool_ranks:
            try:
                connected, _ = server.accept()
                connected.settimeout(START_SECONDS)
                shown, _, rank = (
                    connected.recv(_WORD_BYTES, socket.MSG_WAITALL).decode(errors="replace").partition(" ")
                )
            except TimeoutError:
                own.kill()
                missing = sorted(set(range(pool_ranks)) - channels.keys())
                raise RankLostError(f"ranks {missing} did not come within {START_SECONDS:g} s") from None
            if secrets.compare_digest(shown.encode(), word.encode()):
                channels[int(rank)] = Channel(connected)
            else:
                connected.close()
    kept_store.append(store)
    return [own, *[None] * (pool_ranks - 1)], [channels[rank] for rank in range(pool_ranks)]


kept_store: list[Any] = []
"""The store that this process may host: it has to outlive the ranks."""


def _find_each_other(place: Place) -> None:
    if place.one_host:  # the host's name need not be known in a container
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
