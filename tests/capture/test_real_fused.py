"""FlashInfer's own fused layers, captured while only their launch is replaced, and judged as routed_moe."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.records.parts.replay import ReplayedCall
from harness.replay.reading import read_capture
from harness.replay.replay import replay
from tests.capture.test_real_marlin import alike, names_of

pytestmark = pytest.mark.flashinfer
ROOT = Path(__file__).parents[2]
KINDS = ["cutedsl", "cutedsl, w4a8", "cutedsl, w4a16", "trtllm", "cutlass"]
FAULTS = (
    "routed_ids_off_by_one", "routed_weights_dropped", "routed_weights_twice", "routed_weights_of_next_slot",
    "routed_slot_twice", "routed_scale_of_next_token", "routed_row_of_next_token", "routed_last_slot_left_out",
    "routed_last_token_dropped",
)  # fmt: skip
INSIDE = (
    "alpha_of_neighbour", "alpha_twice", "last_k_tile_missing", "weights_of_neighbour_expert", "weights_read_interleaved",
    "weight_scales_of_neighbour_expert", "weight_scales_read_linear", "weight_nibbles_swapped", "accumulator_fp16",
    "gate_and_up_read_interleaved", "gelu_instead_of_silu", "amax_of_half_block", "block_scale_too_low", "codes_truncated",
    "codes_clamped_at_4", "global_scale_inverted", "scales_linear",
)  # fmt: skip
"""Of the catalog's stages, planted inside a layer whose tokens and intermediates are NVFP4."""


@pytest.fixture(scope="module", name="served")
def served_fixture(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Capture a fused layer with faults below its launch."""

    def served(kind: str, *faults: str) -> Path:
        folder = tmp_path_factory.mktemp("fused")
        done = subprocess.run(
            [sys.executable, str(ROOT / "tests/capture/real/fused.py"), kind, str(folder), *faults],
            env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return folder

    return served


def line_of(folder: Path) -> ReplayedCall:
    (line,) = replay(read_capture(folder))
    return line


@pytest.mark.parametrize("kind", KINDS)
def test_a_fused_layer_passes(served: Callable[..., Path], kind: str) -> None:
    line = line_of(served(kind, "healthy") / "healthy")
    assert (line.stage, str(line.verdict), line.compared) == ("routed_moe", "PASS", 20 * 256), line.words


@pytest.mark.parametrize(
    "kind",
    [
        "trtllm",
        pytest.param("cutedsl", marks=pytest.mark.long),
        pytest.param("cutlass", marks=pytest.mark.long),
    ],
)
def test_a_fault_below_a_fused_layers_launch_is_named(served: Callable[..., Path], kind: str) -> None:
    folder = served(kind, *FAULTS)
    named = {name: {one["fault"] for one in line_of(folder / name).diagnosis} for name in FAULTS}
    assert {name for name in FAULTS if name in named[name]} == set(FAULTS)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["trtllm", "cutedsl", "cutlass"])
def test_what_a_stage_inside_a_fused_layer_does_wrong_is_named(
    served: Callable[..., Path], kind: str
) -> None:
    """None of its stages is seen; the launch that stands in quantizes as the reference does."""
    folder = served(kind, *INSIDE)
    told = {
        name: names_of(line)
        for name in INSIDE
        for line in replay(read_capture(folder / name), arithmetic="real")
    }
    assert {name for name in INSIDE if not told[name] & alike(name)} == set(), told
