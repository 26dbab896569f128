"""SGLang's and vLLM's own Marlin layers, captured while only their launches are replaced, and judged as routed_moe."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from harness.faults.fault import all_faults
from harness.records.parts.replay import ReplayedCall
from harness.replay import marlin
from harness.replay.judging import Judged, judge_in_its_way
from harness.replay.observing import observed
from harness.replay.reading import read_capture
from harness.replay.replay import replay

pytestmark = pytest.mark.flashinfer
ROOT = Path(__file__).parents[2]
NAMED = (
    "routed_ids_off_by_one", "routed_weights_dropped", "routed_weights_twice", "routed_weights_of_next_slot",
    "routed_slot_twice", "routed_row_of_next_token", "routed_last_slot_left_out", "routed_last_token_dropped",
    "routed_up_for_gate",
)  # fmt: skip
INSIDE = (
    "alpha_of_neighbour", "alpha_of_neighbour.1", "weight_nibbles_swapped.last", "alpha_of_expert_0", "alpha_dropped",
    "alpha_inverted", "alpha_twice", "output_scaled", "up_half_with_scale_of_gate.1", "last_k_tile_missing.1",
    "last_k_tile_missing.2", "k_tail_missing", "split_k_part_lost", "last_columns_missing", "weights_of_neighbour_expert",
    "weights_of_neighbour_expert.2", "weights_of_expert_0", "weight_scales_of_neighbour_expert", "weight_scales_all_one",
    "weight_scale_halves_swapped", "weights_read_interleaved", "weight_nibbles_swapped", "weight_scales_read_linear",
    "accumulator_bf16", "output_truncated", "rows_never_written", "gate_and_up_swapped", "gate_and_up_read_interleaved",
    "gelu_instead_of_silu", "sigmoid_instead_of_silu", "up_ignored", "swiglu_with_bias",
)  # fmt: skip
"""Of the catalog's stages, planted inside the layer: in both GEMMs, in the first or second alone, or for the last expert."""


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


def illegal_in(folder: Path) -> int:
    """Return how many elements of the only captured call are illegal."""
    ((call,),) = (process.calls for process in read_capture(folder))
    known = Judged.on(None, "fast").of(call)
    return sum(one.illegal for one in judge_in_its_way(observed(call), known))


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
    assert not illegal_in(folder)
    epilogue = getattr(marlin, own)
    monkeypatch.setattr(marlin, own, replace(epilogue, each=not epilogue.each))
    assert illegal_in(folder) > 100


@pytest.mark.parametrize("engine", ["sglang", "vllm"])
def test_what_a_marlin_layer_does_wrong_below_its_launch_is_named(
    served: Callable[..., Path], engine: str
) -> None:
    folder = served(engine, "nvfp4", "healthy", *NAMED)
    healthy = line_of(folder / "healthy")
    assert (str(healthy.verdict), healthy.compared) == ("PASS", 20 * 256), healthy.words
    told = {name: names_of(line_of(folder / name)) for name in NAMED}
    assert {name for name in NAMED if name in told[name]} == set(NAMED), told


@pytest.mark.long
@pytest.mark.parametrize("engine", ["sglang", "vllm"])
def test_what_a_stage_inside_a_marlin_layer_does_wrong_is_named(
    served: Callable[..., Path], engine: str
) -> None:
    """None of its stages is seen: each fault is planted in the layer as a whole, and its sums of experts compared."""
    folder = served(engine, "nvfp4", *INSIDE)
    lines = {name: line_of(folder / name) for name in INSIDE}
    assert {str(line.verdict) for line in lines.values()} == {"FAIL"}
    told = {name: names_of(line) for name, line in lines.items()}
    assert {name for name in INSIDE if not told[name] & alike(name.partition(".")[0])} == set(), told


def names_of(line: ReplayedCall) -> set[str]:
    """Return the names of what explains nine tenths of a call or more, with those that are not told apart from it."""
    full = [one for one in line.diagnosis if one["fault"] and one["explained"] >= 0.9]
    return {name for one in full for name in (one["fault"], *one.get("same_as", ()))}


def alike(name: str) -> set[str]:
    """Return the names of a fault and of those that are the same by definition."""
    return {
        name,
        *all_faults()[name].same_as,
        *({"routed_up_for_gate"} if name == "gate_and_up_swapped" else ()),
    }
