"""FlashInfer's own layer that routes itself, captured while only its launch is replaced: judged where its choice is certain."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.records.parts.replay import ReplayedCall
from harness.replay.reading import read_capture
from harness.replay.replay import replay

pytestmark = pytest.mark.flashinfer
ROOT = Path(__file__).parents[2]
RIGHT = (
    "default", "renormalize", "renormalize_naive", "deepseek_v3", "topk", "sigmoid_renorm", "minimax2", "sigmoid",
    "topk_sigmoid",
)  # fmt: skip
MISTAKEN = {
    "renormalize as default": "Experts are routed by default instead of renormalize",
    "sigmoid as sigmoid_renorm": "Experts are routed by sigmoid_renorm instead of sigmoid",
    "deepseek_v3 as bias": "The routing bias is ignored",
    "deepseek_v3 as groups": "Groups of experts are ignored",
    "deepseek_v3 as factor": "The factor of the routing weights is not applied",
}


@pytest.fixture(scope="module", name="served")
def served_fixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Captures of the layer, by each method, and with each mistake."""
    folder = tmp_path_factory.mktemp("self_routed")
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests/capture/real/self_routed.py"), str(folder), *RIGHT, *MISTAKEN],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def line_of(folder: Path) -> ReplayedCall:
    (line,) = replay(read_capture(folder))
    return line


@pytest.mark.parametrize("method", RIGHT)
def test_a_layer_that_routes_itself_passes(served: Path, method: str) -> None:
    line = line_of(served / method)
    assert (line.stage, str(line.verdict)) == ("routed_moe", "PASS"), line.words
    assert line.compared >= 18 * 256


@pytest.mark.parametrize(("case", "title"), MISTAKEN.items())
def test_a_layer_that_routes_otherwise_is_seen_and_named(served: Path, case: str, title: str) -> None:
    line = line_of(served / case)
    assert str(line.verdict) == "FAIL"
    assert (line.diagnosis[0]["fault"], line.diagnosis[0]["title"]) == ("routing_method_mistaken", title)
