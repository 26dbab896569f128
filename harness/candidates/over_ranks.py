"""Candidates whose dispatch and combine run over ranks that are processes; everything else of them is `eager`.

The candidate lives in the judging process, hands each rank its share and gathers what the ranks return, so that the rules
judge real ranks in the place where they judge simulated ones (docs/deepep.md).
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from harness.candidates.eager import Eager
from harness.candidates.protocol import Traits
from harness.candidates.support import Support, supported, unsupported
from harness.ranks.collectives import LATE
from harness.ranks.errors import RankError
from harness.verdict import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from harness.ranks.pool import Pool
    from harness.ranks.spreading import Spread
    from reference.routing import Dispatched

CALL_SECONDS = "HARNESS_CALL_SECONDS"
"""Environment variable: seconds after which a call of the ranks that has no answer hangs."""
SHARE_GPU = "HARNESS_SHARE_GPU"
"""Environment variable: 1 lets ranks share a GPU, where there are fewer GPUs than ranks and the library can."""
MOST_PROCESSES = 64


class OverRanks(Eager):
    """`eager` with dispatch and combine of a library, over ranks that are started before the first call.

    Args:
        library: as harness.ranks.worker takes it.
        processes: how many ranks.
        device: of the judging process's tensors.
        row_multiple: what ranks * max_tokens must be a multiple of.
        styles: ways to call the library that must not change a result; a call's sizes say which one it takes.
        compile_seconds: that a call may take longer, where the library compiles its kernels at their first call.
    """

    def __init__(
        self,
        library: str,
        processes: int,
        *,
        device: str = "cpu",
        row_multiple: int = 1,
        styles: tuple[str, ...] = ("plain",),
        compile_seconds: float = 0,
        **traits: Any,
    ) -> None:
        super().__init__(device)
        if not 1 <= processes <= MOST_PROCESSES:
            raise UsageError(f"{self.name}: ranks must lie in [1, {MOST_PROCESSES}], got {processes}")
        self.traits: Traits = replace(self.traits, ranks=processes, **traits)
        self._library, self._row_multiple, self._styles = library, row_multiple, styles
        self._compile_seconds = compile_seconds
        self._pool: Pool | None = None
        self._carried = self.traits.transports, self.traits.combine_transports
        self._asked_for: tuple[str, ...] = ()

    @property
    def any_device(self) -> bool:
        """Whether what the ranks return may be put on any device: their own kernels have none."""
        return True

    def keep_to(self, transports: tuple[str, ...]) -> None:
        """Be judged by these transports alone; the others can be called still.

        A stage of which none is named is judged by bf16, and combine by bf16 in any case.

        Args:
            transports: of harness.candidates.traits' TRANSPORTS and COMBINE_TRANSPORTS.
        """
        sent, back = self._carried
        self._asked_for = transports
        judged = tuple(name for name in sent if name in transports) or ("bf16",)
        brought = tuple(name for name in back if name == "bf16" or name in transports)
        left_out = [f"dispatch by {name}" for name in sent if name not in judged]
        left_out += [f"combine by {name}" for name in back if name not in brought]
        self.traits = replace(
            self.traits, transports=judged, combine_transports=brought, left_out=tuple(left_out)
        )

    def lacking(self) -> str:
        """Return which transports were asked for that it does not have, as a reason, or ""."""
        has = list(dict.fromkeys(self._carried[0] + self._carried[1]))
        missing = [name for name in self._asked_for if name not in has]
        return f"it has no transport {' and '.join(missing)}: it has {', '.join(has)}" if missing else ""

    def support(self) -> Support:
        """Return whether the ranks can run here."""
        import torch.distributed as dist

        if reason := self.lacking():
            return unsupported(reason)
        if dist.is_available() and dist.is_gloo_available():
            return supported()
        return unsupported("needs torch.distributed with gloo, which this torch was built without")

    def dispatch(
        self,
        x: list[Tensor],
        topk_idx: list[Tensor],
        experts: int,
        max_tokens: int,
        *,
        transport: str = "bf16",
        global_scale_enc: Tensor | None = None,
    ) -> list[Dispatched]:
        """Send every token to its experts, each rank its own."""
        from harness.ranks.spreading import distinct

        self._check(x, topk_idx, max_tokens, transport, global_scale_enc)
        spread = self._spread(len(x), experts, max_tokens)
        hidden, topk = x[0].shape[1], topk_idx[0].shape[1]
        sizes = spread.sizes(hidden, topk, transport, self._style(sum(map(len, x)) + topk))
        routes = spread.routes([distinct(ids) for ids in topk_idx])
        given = zip(spread.tokens(x, x[0][:0]), routes, strict=True)
        got = self._ranks().call(
            "dispatch",
            sizes,
            [{"x": mine, "topk_idx": ids, "global_scale_enc": global_scale_enc} for mine, ids in given],
        )
        return spread.received(got, self.traits.device)

    def combine(
        self,
        y: list[Tensor],
        dispatched: list[Dispatched],
        topk_idx: list[Tensor],
        topk_weights: list[Tensor],
        *,
        transport: str = "bf16",
    ) -> list[Tensor]:
        """Bring the rows back, each rank its own, and sum them with their weights."""
        self._check_back(transport, y[0].shape[2])
        local, capacity, hidden = y[0].shape
        spread = self._spread(len(y), local * len(y), capacity // len(y))
        topk = topk_idx[0].shape[1]
        sizes = spread.sizes(hidden, topk, transport, self._style(sum(map(len, topk_idx)) + topk))
        sources = spread.sources(dispatched)
        rows = zip(spread.rows(y, float("nan"), hidden), sources, strict=True)
        given = zip(
            [of_process[source[..., 0] >= 0] for of_process, source in rows],
            sources,
            spread.routes(topk_idx),
            spread.tokens(topk_weights, topk_weights[0][:0]),
            strict=True,
        )
        names = ("y", "source", "topk_idx", "topk_weights")
        got = self._ranks().call("combine", sizes, [dict(zip(names, parts, strict=True)) for parts in given])
        return [got[rank * spread.each]["x"].to(self.traits.device) for rank in range(len(y))]

    def start_ranks(self) -> None:
        """Start the ranks now. Raises RankLostError with the reason where one does not start."""
        self._ranks()

    def close(self) -> None:
        """End the ranks; the next call starts others."""
        if self._pool is not None:
            self._pool.close()
        self._pool = None

    def _ranks(self) -> Pool:
        from harness.ranks.pool import CALL_SECONDS as USUAL
        from harness.ranks.pool import Pool
        from harness.ranks.torchrun import joined_pool

        if self._pool is not None and self._pool.lost:
            self.close()
        if self._pool is None:
            seconds = float(os.environ.get(CALL_SECONDS) or USUAL) + self._compile_seconds
            self._pool = joined_pool(self.traits.ranks, self._library, seconds) or Pool(
                self.traits.ranks, self._library, call_seconds=seconds
            )
        return self._pool

    def _spread(self, ranks: int, experts: int, max_tokens: int) -> Spread:
        from harness.ranks.spreading import Spread

        return Spread(self.traits.ranks, ranks, experts, max_tokens, self._row_multiple)

    def _style(self, number: int) -> str:
        return self._styles[number % len(self._styles)]

    def _check(
        self,
        x: list[Tensor],
        topk_idx: list[Tensor],
        max_tokens: int,
        transport: str,
        global_scale_enc: Tensor | None,
    ) -> None:
        """Refuse what would leave the ranks with different calls. Raises ValueError and RankError."""
        from reference.routing import TRANSPORTS

        if transport not in TRANSPORTS:
            raise ValueError(f"dispatch: transport must be one of {', '.join(TRANSPORTS)}, got {transport!r}")
        if transport not in self._carried[0]:
            raise RankError(f"dispatch: {self.name} has no transport {transport!r}")
        if (transport == "nvfp4") != (global_scale_enc is not None):
            raise ValueError("dispatch: global_scale_enc belongs to transport 'nvfp4' and is needed there")
        for rank, (tokens, ids) in enumerate(zip(x, topk_idx, strict=True)):
            if len(tokens) > max_tokens or len(ids) != len(tokens):
                raise ValueError(
                    f"dispatch: rank {rank} has {len(tokens)} tokens and {len(ids)} routes, expected as many, and at most "
                    f"max_tokens, which is {max_tokens}"
                )

    def _check_back(self, transport: str, hidden: int) -> None:
        """Refuse what combine does not take. Raises ValueError and RankError."""
        from reference.logfmt import CHANNELS
        from reference.routing import COMBINE_TRANSPORTS

        if transport not in COMBINE_TRANSPORTS:
            raise ValueError(
                f"combine: transport must be one of {', '.join(COMBINE_TRANSPORTS)}, got {transport!r}"
            )
        if transport not in self._carried[1]:
            raise RankError(f"combine: {self.name} has no transport {transport!r}")
        if transport == "logfmt" and hidden % CHANNELS:
            raise ValueError(
                f"combine: logfmt needs a hidden size that is a multiple of {CHANNELS}, got {hidden}"
            )


class EagerGloo(OverRanks):
    """`eager-gloo`: eager, dispatched and combined over torch.distributed's gloo. The control of the ranks themselves."""

    name = "eager-gloo"

    def __init__(self, processes: int = 2) -> None:
        from reference.routing import COMBINE_TRANSPORTS, TRANSPORTS

        super().__init__(
            "gloo", processes, styles=("plain", LATE), transports=TRANSPORTS,
            combine_transports=COMBINE_TRANSPORTS, canary=False,
        )  # fmt: skip


class OnGpus(OverRanks):
    """A library whose kernels need a GPU for each rank.

    Attributes:
        warning: which build of the library was found, and what of it is called.
        can_share: its ranks can be made to share a GPU, by taking turns on it.
    """

    can_share = False

    def __init__(
        self, library: str, processes: int, reason: str, warning: str, *, styles: tuple[str, ...], **more: Any
    ) -> None:
        import torch

        self._reason, self.warning = reason, warning
        device = "cuda" if torch.cuda.is_available() else "cpu"
        # "fast": the sender's reciprocals are the GPU's
        more = {"device": device, "arithmetic": "fast", "canary": False, **more}
        super().__init__(library, processes, styles=styles, **more)

    @property
    def any_device(self) -> bool:
        """Whether what the ranks return may be put on any device."""
        return False

    def support(self) -> Support:
        """Return whether the library is there, and a GPU for every rank."""
        if self._reason:
            return unsupported(self._reason)
        gpus, ranks = self.gpus(), self.traits.ranks
        shared = bool(gpus) and self.can_share and os.environ.get(SHARE_GPU) == "1"
        if gpus < ranks and not shared:
            hint = f"; {SHARE_GPU}=1 has them take turns" if gpus and self.can_share else ""
            return unsupported(f"needs {ranks} GPUs, one for each rank, and torch sees {gpus}{hint}")
        return super().support()

    @staticmethod
    def gpus() -> int:
        """Return how many GPUs torch sees."""
        import torch

        return torch.cuda.device_count()


class DeepEp(OnGpus):
    """`deepep`: eager, dispatched and combined by deep_ep's low-latency kernels, one GPU a rank."""

    name = "deepep"
    can_share = True

    def __init__(self, processes: int = 2) -> None:
        import torch

        from harness.ranks.deepep_build import HIDDEN_SIZES, MOST_TOKENS, ROW_MULTIPLE, find_build
        from harness.ranks.errors import NoBuildError

        reason = warning = ""
        transports: tuple[str, ...] = ("bf16",)
        combine_transports: tuple[str, ...] = ("bf16",)
        styles: tuple[str, ...] = ("plain",)
        try:
            build = find_build()
        except NoBuildError as error:
            reason = str(error)
        else:
            on_gpu = ("guarded", "graph") if torch.cuda.is_available() else ()
            transports, combine_transports = build.transports, build.combine_transports
            styles = (*build.styles, LATE, *on_gpu)
            warning = (
                f"deep_ep {build.version or 'of no version'}: {', '.join(transports)}, combine by "
                f"{' and '.join(combine_transports)}; {', '.join(styles)}"
            )
            if 0 < (gpus := self.gpus()) < processes:
                warning += f"; {processes} ranks take turns on {gpus} GPU{'s' * (gpus > 1)}"
        super().__init__(
            "deep_ep", processes, reason, warning, styles=styles, row_multiple=ROW_MULTIPLE,
            transports=transports, combine_transports=combine_transports, most_tokens=MOST_TOKENS,
            hidden_sizes=HIDDEN_SIZES,
        )  # fmt: skip
