"""How a run is to be shared, as a command line asks for it."""

from __future__ import annotations

from dataclasses import dataclass, field

from harness.running.shared.plan import Shard


@dataclass(frozen=True)
class AskedSharing:
    """Who is to judge the problems of a run; by default one worker all of them.

    Attributes:
        workers: on this machine.
        gpus: that they use, one after the other, as CUDA_VISIBLE_DEVICES names them; empty for what each finds.
        ray: address of a Ray cluster whose nodes judge instead, "local" for one of this machine alone; "" for none.
        shard: which part of the run this is, None for all of it.
    """

    workers: int = 1
    gpus: list[str] = field(default_factory=list)
    ray: str = ""
    shard: Shard | None = None

    @property
    def several(self) -> bool:
        """Whether there is a crew and not one session."""
        return self.workers > 1 or bool(self.gpus) or bool(self.ray)

    @property
    def asks_the_canary(self) -> bool:
        """Whether this run asks the canary: of shards the last one does."""
        return self.shard is None or self.shard.number == self.shard.of
