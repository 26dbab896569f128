"""The candidate `deepep` where torch sees no GPU: its ranks import the stand-in."""

from __future__ import annotations

from harness.candidates.over_ranks import DeepEp


class OnCpu(DeepEp):
    @staticmethod
    def gpus() -> int:
        return 64
