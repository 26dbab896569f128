"""SGLang's and vLLM's own Marlin layers, captured while only their launches are replaced, and judged as routed_moe."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from harness.records.parts.replay import ReplayedCall
from harness.replay import marlin
from harness.replay.reading import read_capture
from harness.replay.replay import replay

pytestmark = pytest.mark.flashinfer
ROOT = Path(__file__).parents[2]
NAMED = (
    "routed_ids_off_by_one", "routed_weights_dropped", "routed_weights_twice", "routed_weights_of_next_slot",
    "routed_slot_twice", "routed_row_of_next_token", "routed_last_slot_left_out", "routed_last_token_dropped",
    "routed_up_for_gate",
)  # fmt: skip
SEEN = (
    "alpha_of_neighbour", "alpha_dropped", "k_tail_missing", "weight_nibbles_swapped", "weights_of_neighbour_expert"
)  # fmt: skip


@pytest.fixture(scope="module", name="served")
def served_fixture(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Capture a layer of an engine with faults below its launches."""

    def served(engine: str, kind: str, *faults: str) -> Path:
        folder = tmp_path_factory.mktemp("marlin")
        script = str(ROOT / "tests/capture/real/marlin.py")
        done = subprocess.run(
            [sys.executable, script, engine, kind, str(folder), *faults],
            env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return folder

    return served


def line_of(folder: Path) -> ReplayedCall:
    (line,) = replay(read_capture(folder))
    return line


@pytest.mark.parametrize(
    ("engine", "kind", "rows"),
    [
        ("sglang", "mxfp4", 20),
        ("vllm", "mxfp4", 20),
        ("vllm", "nvfp4 batched", 38),
    ],
)
def test_a_marlin_layer_passes(served: Callable[..., Path], engine: str, kind: str, rows: int) -> None:
    line = line_of(served(engine, kind, "healthy") / "healthy")
    assert (line.stage, str(line.verdict), line.compared) == ("routed_moe", "PASS", rows * 256), line.words


@pytest.mark.parametrize(("engine", "own"), [("sglang", "_OF_SGLANG"), ("vllm", "_OF_VLLM")])
def test_the_other_engines_rounding_of_factors_is_illegal(
    served: Callable[..., Path], engine: str, own: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = served(engine, "nvfp4", "healthy") / "healthy"
    assert str(line_of(folder).verdict) == "PASS"
    epilogue = getattr(marlin, own)
    monkeypatch.setattr(marlin, own, replace(epilogue, each=not epilogue.each))
    assert str(line_of(folder).verdict) == "FAIL"


@pytest.mark.parametrize("engine", ["sglang", "vllm"])
def test_a_fault_below_a_marlin_layers_launch_is_seen_and_named(
    served: Callable[..., Path], engine: str
) -> None:
    """Those of its GEMMs are located in the layer; what a routed layer does wrong is named."""
    folder = served(engine, "nvfp4", "healthy", *NAMED, *SEEN)
    healthy = line_of(folder / "healthy")
    assert (str(healthy.verdict), healthy.compared) == ("PASS", 20 * 256), healthy.words
    lines = {name: line_of(folder / name) for name in (*NAMED, *SEEN)}
    assert {str(line.verdict) for line in lines.values()} == {"FAIL"}
    told = {name: {one["fault"] for one in lines[name].diagnosis} for name in NAMED}
    assert {name for name in NAMED if name in told[name]} == set(NAMED), told
