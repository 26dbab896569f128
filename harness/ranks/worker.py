"""The process of one rank: joins the others, and answers call after call until the judging process is gone.

Started by harness.ranks.pool, or under torchrun by harness.ranks.torchrun; not for use by hand.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import socket
import sys
import threading
import time
import traceback
from dataclasses import asdict, dataclass
from typing import Any, NoReturn

from harness.extras import accept_no_numpy
from harness.processes import end_with_the_parent
from harness.ranks.collectives import LATE, Collectives, Sizes
from harness.ranks.errors import RankError

LEAVE_SECONDS = 5.0  # after which a rank that nobody asks any more ends whatever it is in
LATE_SECONDS = 0.02  # far longer than a call takes
JOIN_SECONDS = 300.0  # until all ranks are there, the first of which may have loaded its packages long before


@dataclass(frozen=True)
class RankSettings:
    """What a rank is started with.

    Attributes:
        library: "gloo", "deep_ep", "deep_ep_elastic" or "nccl_ep".
        rank, ranks: which one of how many.
        local_rank: number of its GPU.
        connected: descriptor of the socket to the judging process.
        store: path of the file through which the ranks find each other, or host and port of a store as JSON.
    """

    library: str
    rank: int
    ranks: int
    local_rank: int
    connected: int
    store: str


def main(argument: str) -> NoReturn:
    """Serve calls until the judging process closes the connection.

    Args:
        argument: RankSettings as JSON.
    """
    settings = RankSettings(**json.loads(argument))
    end_with_the_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the judging process ends its ranks itself
    accept_no_numpy()
    import torch.distributed as dist

    from harness.ranks.messages import Channel

    torch_threads()
    channel = Channel(socket.socket(fileno=settings.connected))
    channel.socket.set_inheritable(False)
    if not settings.store.startswith("["):
        serve(channel, settings, dist.FileStore(settings.store, settings.ranks))  # type: ignore[attr-defined]
    host, port = json.loads(settings.store)
    store = dist.TCPStore(host, port, wait_for_workers=False)  # type: ignore[attr-defined]
    serve(channel, settings, dist.PrefixStore("harness", store))  # type: ignore[attr-defined]


def serve(channel: Any, settings: RankSettings, store: Any) -> NoReturn:
    """Join the other ranks, answer every call that comes through a channel, and end this process.

    Args:
        channel: a harness.ranks.messages.Channel to the judging process.
        settings: which rank this is.
        store: a torch.distributed store that all ranks share.
    """
    from datetime import timedelta

    import torch
    import torch.distributed as dist

    from harness.ranks.messages import packed

    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(settings.local_rank % torch.cuda.device_count())  # ranks may share GPUs
    try:
        channel.send(packed({"begun": 0}))
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if cuda else "gloo",
            store=store, rank=settings.rank, world_size=settings.ranks, timeout=timedelta(seconds=JOIN_SECONDS),
        )  # fmt: skip
        rank = Rank(settings)
        channel.send(packed({"ready": True, "pid": os.getpid()}))
        for message in _messages(channel):
            channel.send(packed({"begun": message["call"]}))
            channel.send(packed({"call": message["call"], **rank.answer(message)}))
    except OSError:
        pass  # the judging process is gone
    except Exception as error:  # noqa: BLE001 - any reason why it does not start is the answer
        channel.send(packed({"failed": f"{type(error).__name__}: {error}"}))
    # Other ranks may have ended: a buffer or a process group that is destroyed now would wait for them, and hold the GIL.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def torch_threads() -> None:
    """Have torch compute with one thread: ranks share the processors, and threads that spin wait for each other."""
    import torch

    torch.set_num_threads(1)


def _messages(channel: Any) -> Any:
    """Yield what comes. A thread reads, so that the end is seen while a kernel waits for ever: this process ends then."""
    waiting: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()

    def read() -> None:
        while (found := channel.take()) is not None:
            for message in found:
                waiting.put(message)
        waiting.put(None)
        timer = threading.Timer(LEAVE_SECONDS, os._exit, (1,))
        timer.daemon = True
        timer.start()

    threading.Thread(target=read, daemon=True).start()
    while (message := waiting.get()) is not None:
        yield message


class Rank:
    """The calls of one rank.

    Args:
        settings: which rank this is, and by which library.
    """

    def __init__(self, settings: RankSettings) -> None:
        self._settings = settings
        self._collectives = _library(settings.library)

    def answer(self, message: dict[str, Any]) -> dict[str, Any]:
        """Return the result of a call, `{"result": ...}`, or what it raised, `{"error": ...}`, in words."""
        try:
            sizes = Sizes(**message["sizes"])
            self._agree(message["name"], message["call"], sizes)
            if sizes.style == LATE and self._settings.rank == sizes.topk % self._settings.ranks:
                time.sleep(LATE_SECONDS)
            function = getattr(self, f"_{message['name']}")
            return {"result": function(sizes, **message["arguments"])}
        except (RankError, ValueError) as error:
            return {"error": str(error)}
        except Exception as error:  # noqa: BLE001 - whatever the library raises is its answer
            place = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{place.filename.rsplit('/', 1)[-1]}:{place.lineno} in {place.name}"
            return {"error": f"{type(error).__name__}: {error} ({where})"}

    def _agree(self, name: str, number: int, sizes: Sizes) -> None:
        """Compare what the ranks were told, before any kernel waits for what another one does not send.

        Raises:
            RankError: which ranks were told what.
        """
        import torch.distributed as dist

        said: list[Any] = [None] * self._settings.ranks
        dist.all_gather_object(said, f"call {number} ({name}: {sizes})", group=None)
        if len(set(said)) > 1:
            words = "; ".join(f"rank {rank} is in {one}" for rank, one in enumerate(said))
            raise RankError(f"the ranks disagree: {words}")

    def _dispatch(
        self, sizes: Sizes, *, x: Any, topk_idx: Any, global_scale_enc: Any = None
    ) -> dict[str, Any]:
        _check_routes(x, topk_idx, sizes)
        from harness.ranks.messages import without_padding

        received = self._collectives.dispatch(x, topk_idx, sizes, global_scale_enc)
        return without_padding(received)

    def _combine(
        self, sizes: Sizes, *, y: Any, source: Any, topk_idx: Any, topk_weights: Any
    ) -> dict[str, Any]:
        from harness.ranks.messages import with_padding

        y = with_padding(y, source[..., 0] >= 0)
        return {"x": self._collectives.combine(y, source, topk_idx, topk_weights, sizes)}


def _check_routes(x: Any, topk_idx: Any, sizes: Sizes) -> None:
    """Refuse tokens and routes with which a kernel would write outside its buffers. Raises ValueError."""
    tokens = len(x)
    if tuple(x.shape) != (tokens, sizes.hidden) or tuple(topk_idx.shape) != (tokens, sizes.topk):
        raise ValueError(
            f"dispatch: expected {tokens} tokens of {sizes.hidden} and {tokens} routes of {sizes.topk} slots, got "
            f"{tuple(x.shape)} and {tuple(topk_idx.shape)}"
        )
    if tokens > sizes.max_tokens:
        raise ValueError(f"dispatch: {tokens} tokens, max_tokens is {sizes.max_tokens}")
    if tokens and not -1 <= int(topk_idx.min()) <= int(topk_idx.max()) < sizes.experts:
        raise ValueError(
            f"dispatch: topk_idx must lie in [-1, {sizes.experts}), got {int(topk_idx.min())} to {int(topk_idx.max())}"
        )


def _library(name: str) -> Collectives:
    """Return a library's collectives for this rank. Raises what its package raises where it cannot be used here."""
    if name == "gloo":
        from harness.ranks.gloo import GlooCollectives

        return GlooCollectives()
    if name == "deep_ep":
        from harness.ranks.deepep import DeepEpCollectives

        return DeepEpCollectives()
    if name == "deep_ep_elastic":
        from harness.ranks.elastic import ElasticCollectives

        return ElasticCollectives()
    if name == "nccl_ep":
        from harness.ranks.nccl_ep import NcclEpCollectives

        return NcclEpCollectives()
    raise ValueError(f"library must be gloo, deep_ep, deep_ep_elastic or nccl_ep, got {name!r}")


def as_argument(settings: RankSettings) -> str:
    """Return the settings as the argument that `main` takes."""
    return json.dumps(asdict(settings))


if __name__ == "__main__":
    main(sys.argv[1])
