"""A newcomer runs `harness check` once on a kernel of their own: the first screen of the report names the mistake."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html import unescape
from pathlib import Path

import pytest

from tests.diagnosis.newcomers import MISTAKES, Mistake

ROOT = Path(__file__).parents[2]


def first_screen(mistake: Mistake, folder: Path, *options: str) -> str:
    """Run the one command on a kernel; return the words at the top of its report, which must be a FAIL."""
    candidate = mistake.write(folder)
    command = [sys.executable, "-m", "harness.cli", "check", "--no-canary", "--candidate", candidate]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(folder)])}
    out = folder / mistake.name
    done = subprocess.run(
        [*command, *options, "--out", str(out)], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )  # fmt: skip
    assert done.returncode == 1, done.stderr[-2000:]
    header = re.search(r"(?s)<header.*?</header>", (out / "report.html").read_text())
    assert header is not None
    return " ".join(unescape(re.sub("<[^>]*>", " ", header[0].replace("<wbr>", ""))).split())


def test_the_kernels_are_short_and_each_has_one_mistake_of_its_own(tmp_path: Path) -> None:
    right = (ROOT / "examples" / "my_kernel_test.py").read_text().splitlines()
    for mistake in MISTAKES:
        mistake.write(tmp_path)
        kernel = (tmp_path / f"{mistake.name}.py").read_text().splitlines()
        assert sum(a != b for a, b in zip(right, kernel, strict=True)) == 1
        assert len([line for line in kernel if line.strip()]) <= 35
    assert len({mistake.named for mistake in MISTAKES}) == len(MISTAKES) == 10


def test_a_mistake_is_named_on_the_first_screen(tmp_path: Path) -> None:
    mistake = next(m for m in MISTAKES if m.name == "no_alpha")
    said = first_screen(mistake, tmp_path, "--rule", "GEMM", "--problem", "v2:3x20x64x128:20,0,7:normal:1")
    assert any(words in said for words in mistake.named), said


@pytest.mark.long
def test_nine_of_ten_mistakes_are_named_on_the_first_screen(tmp_path: Path) -> None:
    said = {mistake.name: first_screen(mistake, tmp_path) for mistake in MISTAKES}
    missed = {
        m.name: said[m.name][:600] for m in MISTAKES if not any(words in said[m.name] for words in m.named)
    }
    print(f"{len(MISTAKES) - len(missed)} of {len(MISTAKES)} mistakes are named on the first screen")
    assert len(missed) <= 1, missed
