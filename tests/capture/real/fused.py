"""FlashInfer's own fused layers on a CPU, captured with faults planted where it launches its kernels.

`fused.py KIND FOLDER FAULT...` runs one layer for each fault ("healthy": none) and captures it into FOLDER/FAULT.
"""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.candidates.eager import EagerKernels
from harness.candidates.fused_layer import FusedLayer
from harness.candidates.routed import ComposedRoutedMoe
from harness.capture.hook import _tap_everywhere
from harness.capture.session import Session
from harness.capture.settings import CaptureSettings
from harness.faults.named import plant
from harness.judging.context import Context, Known
from harness.judging.routed import arguments
from harness.problems.problem import parse_problem
from tests.candidates import fused_launches
from tests.candidates.test_flashinfer_routed import KINDS

PROBLEM = "v2:3x20x256x128:20,0,7:normal:1"


class Planted:
    """A kernel with a fault of the catalog in it: of a routed layer, or of one of the stages inside."""

    def __init__(self, right: EagerKernels, fault: str) -> None:
        self._planted = plant(right, fault)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._planted, name)

    def routed_moe(self, **named: Any) -> torch.Tensor:
        """Return the layer's output, composed of the planted stages."""
        if "routed_moe" in self._planted.plantings[0].fault.stages:
            return self._planted.routed_moe(**named)
        return ComposedRoutedMoe.routed_moe(self._planted, **named)


def main(kind: str, folder: str, *faults: str) -> None:
    torch.set_num_threads(1)
    session = Session(CaptureSettings(folder))
    fused_launches.replace_launches(pytest.MonkeyPatch())
    for name, module in list(sys.modules.items()):
        if name.startswith("flashinfer.fused_moe"):
            _tap_everywhere(session, module)
    candidate: FusedLayer = KINDS[kind]("silu", device="cpu")
    context = Context(candidate, parse_problem(PROBLEM), Known.declared(candidate.traits))
    for fault in faults:

        def planted(fault: str = fault, **named: Any) -> Any:
            right = EagerKernels(unrounded=candidate.unrounded, **named)
            return right if fault == "healthy" else Planted(right, fault)

        fused_launches.EagerKernels = planted  # type: ignore[misc, assignment]
        session.settings, session.idle = CaptureSettings(str(Path(folder) / fault)), False
        session._begin_anew()
        candidate.routed_moe(**arguments(context))


if __name__ == "__main__":
    main(*sys.argv[1:])
