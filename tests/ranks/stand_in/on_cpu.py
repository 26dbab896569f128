"""The candidates over GPUs where torch sees none: their ranks import the stand-ins."""

from __future__ import annotations

from harness.candidates.over_gpus import DeepEpElastic, NcclEp
from harness.candidates.over_ranks import DeepEp


class OnCpu(DeepEp):
    @staticmethod
    def gpus() -> int:
        return 64


class ElasticOnCpu(DeepEpElastic):
    @staticmethod
    def gpus() -> int:
        return 64


class NcclOnCpu(NcclEp):
    @staticmethod
    def gpus() -> int:
        return 64
