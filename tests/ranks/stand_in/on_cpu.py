"""The candidates `deepep` and `nccl-ep` where torch sees no GPU: their ranks import the stand-ins."""

from __future__ import annotations

from harness.candidates.over_ranks import DeepEp, NcclEp


class OnCpu(DeepEp):
    @staticmethod
    def gpus() -> int:
        return 64


class NcclOnCpu(NcclEp):
    @staticmethod
    def gpus() -> int:
        return 64
