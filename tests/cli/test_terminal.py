"""What a terminal, a dumb one, a narrow one and a pipe are shown, through a pty; and how the time left is estimated."""

from __future__ import annotations

import os
import pty
import re
import threading
from collections.abc import Callable, Iterator

import pytest

from harness.cli import run
from harness.cli.remaining import CheckRemaining
from harness.judging.compared import Compared
from harness.running import check
from harness.running.outcome import Description, Outcome, Status
from harness.terminal import Remaining, colour, duration

ESCAPE = "\x1b"
CHECK = ["check", "--no-canary", "--candidate", "mine", "--candidate", "its"]
RULES = [word for rule in ("LAYOUT-OUT", "LAYOUT-IN", "REPEAT", "SHAPES") for word in ("--rule", rule)]


class ToldSession:
    """A candidate that answers at once."""

    def __init__(self) -> None:
        self.left_out: dict[str, str] = {}

    def describe(self) -> Description:
        from dataclasses import asdict

        from harness.candidates.protocol import STAGES, Traits

        return Description(asdict(Traits(device="cpu", k_multiple=16, n_multiple=1)), stages=list(STAGES))

    def judge(self, rule: str, problem: str, seconds: float) -> Outcome:
        return Outcome(Status.JUDGED, comparisons=[Compared("gemm", 10, judged={"by hand": 10})])

    def close(self) -> None:
        pass


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch, tmp_path) -> Iterator[Callable[..., str]]:
    """Run a check whose stderr is a terminal, and return what that was sent."""
    monkeypatch.setattr(check, "open_session", lambda *_, **__: ToldSession())
    monkeypatch.setattr("harness.terminal.REDRAW_SECONDS", 0.0)
    for name in ("NO_COLOR", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")

    def shown(*arguments: str, **environment: str) -> str:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        ours, theirs = pty.openpty()
        stream, found = os.fdopen(theirs, "w"), []
        reader = threading.Thread(target=_read, args=(ours, found))
        reader.start()
        with monkeypatch.context() as patched:
            patched.setattr("sys.stderr", stream)
            assert run([*CHECK, *RULES, *arguments, "--out", str(tmp_path)]) == 0
        stream.close()
        reader.join()
        os.close(ours)
        return b"".join(found).decode().replace("\r\n", "\n")

    return shown


def _read(descriptor: int, found: list[bytes]) -> None:
    try:
        while chunk := os.read(descriptor, 1 << 16):
            found.append(chunk)
    except OSError:  # the other end is closed
        return


def live_lines(text: str) -> list[str]:
    return [part for part in re.findall(r"\r\x1b\[K([^\r\n\x1b]*)", text) if "/" in part]


def test_a_terminal_is_shown_how_far_the_run_is_and_what_is_left_once_there_is_ground(terminal) -> None:
    text = terminal()
    lines = live_lines(text)
    assert lines[0] == "  LAYOUT-OUT 1/10, rule 1/4, candidate 1/2"
    assert [line for line in lines if "left" in line and "rule 4/4" not in line] == [], "three rules first"
    last = [line for line in lines if "SHAPES" in line]
    assert len(last) == 20
    assert all(
        re.fullmatch(r"  SHAPES \d+/10, rule 4/4, candidate [12]/2, about \d+ s left", e) for e in last
    )
    assert f"{ESCAPE}[32mPASS" in text
    kept = [re.sub(r".*\r\x1b\[K", "", line) for line in text.split("\n")]
    assert [line.split()[0] for line in kept if line] == [
        "mine:", "LAYOUT-OUT", "LAYOUT-IN", "REPEAT", "SHAPES", "its:", "LAYOUT-OUT", "LAYOUT-IN", "REPEAT", "SHAPES",
    ]  # fmt: skip


def test_candidates_that_may_not_run_here_make_it_an_upper_bound(terminal, monkeypatch) -> None:
    monkeypatch.setattr(check, "CANDIDATES", {"mine": "", "its": ""})
    monkeypatch.setattr("tests.cli.test_terminal.CHECK", ["check", "--no-canary"])
    assert re.search(r"candidate 1/2, at most about \d+ s left", terminal())


def test_the_time_that_was_allowed_bounds_the_estimate_and_the_canary_is_said_to_follow(
    terminal, monkeypatch
) -> None:
    monkeypatch.setattr(CheckRemaining, "seconds", lambda *_: 1e6)
    monkeypatch.setattr("harness.running.check._run_canary", lambda *_: None)
    lines = live_lines(terminal("--max-seconds", "1000", "--canary"))
    assert re.search(r"about 1[67] min left, then the canary", lines[0])


def test_no_colour_leaves_the_live_line_and_takes_every_colour(terminal, capsys) -> None:
    text = terminal(NO_COLOR="1")
    assert live_lines(text)
    assert set(re.findall(r"\x1b\[[0-9;]*[a-zA-Z]", text)) == {f"{ESCAPE}[K"}


def test_a_dumb_terminal_gets_lines_and_nothing_else(terminal) -> None:
    text = terminal(TERM="dumb")
    assert not {ESCAPE, "\r"} & set(text)
    assert "\n  SHAPES      PASS     10 problems, 100 elements" in text
    assert "SHAPES 1/10" not in text


@pytest.mark.parametrize("width", [12, 40])
def test_the_live_line_never_wraps(terminal, width: int) -> None:
    lines = live_lines(terminal(COLUMNS=str(width)))
    assert lines
    assert max(map(len, lines)) == width - 1


def test_a_pipe_gets_lines_without_colour(monkeypatch: pytest.MonkeyPatch, tmp_path, capsys) -> None:
    monkeypatch.setattr(check, "open_session", lambda *_, **__: ToldSession())
    assert run([*CHECK, *RULES, "--out", str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert not {ESCAPE, "\r"} & set(out + err)
    assert err.count("PASS     10 problems") == 6
    assert out.startswith("PASS: 8 results on mine, its")


def test_an_empty_no_color_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "")
    assert colour() is None
    monkeypatch.setenv("NO_COLOR", "0")
    assert colour() is False


def test_the_time_left_is_estimated_from_rules_and_candidates_that_are_through() -> None:
    now = 0.0
    left = CheckRemaining({"A": 10, "B": 10, "C": 20, "D": 40}, candidates=3, clock=lambda: now)
    left.candidate([])  # it does not run here
    left.candidate(["A", "B", "C", "D"])
    for rule, seconds in (("A", 1.0), ("B", 1.0), ("C", 2.0)):
        assert left.seconds(rule, 0.9) is None, "fewer than three rules are through"
        now += seconds
        left.finished(rule)
    assert left.seconds("D", 0.0) == pytest.approx(4 + 8)  # 0.1 s a problem, and one more candidate
    now += 5.0  # half of D took longer than what is left was estimated to be
    assert left.seconds("D", 0.5) == pytest.approx(9 / 60 * 20 + 12)
    now += 5.0
    left.finished("D")
    left.candidate(["A", "B", "C", "D"])  # ten times as fast: 0.1, 0.1, 0.2, 1.0
    for rule, seconds in (("A", 0.1), ("B", 0.1), ("C", 0.2)):
        now += seconds
        left.finished(rule)
    assert left.seconds("D", 0.0) == pytest.approx(1.0)


def test_of_a_single_rule_a_quarter_of_the_problems_is_ground() -> None:
    now = 0.0
    left = CheckRemaining({"A": 40}, candidates=1, clock=lambda: now)
    left.candidate(["A"])
    now = 2.0
    assert left.seconds("A", 0.2) is None
    assert left.seconds("A", 0.25) == pytest.approx(6.0)


def test_counted_work_is_estimated_after_ten_parts_and_a_tenth(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("harness.terminal.time.monotonic", lambda: now)
    remaining = Remaining()
    now = 20.0
    assert remaining.seconds(9, 20) is None
    assert remaining.seconds(10, 200) is None
    assert remaining.seconds(20, 200) == pytest.approx(180.0)
    assert [duration(s) for s in (40.4, 200, 9000)] == ["40 s", "3 min", "2.5 h"]
