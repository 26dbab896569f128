"""Candidates over real ranks besides `deepep`: NCCL EP, and the other buffer of DeepEP 2.x. Neither has run on a GPU yet."""

from __future__ import annotations

from harness.candidates.over_ranks import OnGpus
from harness.ranks.collectives import LATE

COMPILE_SECONDS = 300.0
"""For the kernels of a call's sizes, which both libraries compile with nvcc when they are first called."""


class NcclEp(OnGpus):
    """`nccl-ep`: eager, dispatched and combined by the low-latency kernels of NCCL EP (nccl.ep), one GPU a rank."""

    name = "nccl-ep"

    def __init__(self, processes: int = 2) -> None:
        from harness.ranks.errors import NoBuildError
        from harness.ranks.nccl_ep_build import (
            HIDDEN_SIZES,
            MOST_TOKENS,
            STAGED,
            TRANSPORTS,
            find_version,
        )

        reason = warning = ""
        styles = ("plain", STAGED, LATE)
        try:
            warning = f"nccl.ep {find_version()}: {', '.join(TRANSPORTS)}; {', '.join(styles)}; rows are put in order"
        except NoBuildError as error:
            reason = str(error)
        super().__init__(
            "nccl_ep", processes, reason, warning, styles=styles, compile_seconds=COMPILE_SECONDS,
            transports=TRANSPORTS, most_tokens=MOST_TOKENS, hidden_sizes=HIDDEN_SIZES,
        )  # fmt: skip


class DeepEpElastic(OnGpus):
    """`deepep-elastic`: eager, dispatched and brought back by deep_ep.ElasticBuffer, one GPU a rank; summed here."""

    name = "deepep-elastic"

    def __init__(self, processes: int = 2) -> None:
        from harness.ranks.deepep_build import (
            ELASTIC_HIDDEN_SIZES,
            ELASTIC_TRANSPORTS,
            MOST_TOKENS,
            find_elastic,
        )
        from harness.ranks.errors import NoBuildError

        reason = warning = ""
        styles = ("plain", "asynchronous", LATE)
        try:
            warning = (
                f"deep_ep {find_elastic()}, ElasticBuffer: {', '.join(ELASTIC_TRANSPORTS)}; {', '.join(styles)}; FP8 is "
                "encoded and rows are added by the harness"
            )
        except NoBuildError as error:
            reason = str(error)
        super().__init__(
            "deep_ep_elastic", processes, reason, warning, styles=styles, compile_seconds=COMPILE_SECONDS,
            transports=ELASTIC_TRANSPORTS, most_tokens=MOST_TOKENS, hidden_sizes=ELASTIC_HIDDEN_SIZES,
        )  # fmt: skip
