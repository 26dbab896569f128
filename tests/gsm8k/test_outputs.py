"""JUnit, the step summary, the progress on a terminal and elsewhere, and that a run stays light."""

from __future__ import annotations

import io
import json
import sys
from xml.etree import ElementTree as ET

import pytest

from harness.ci.cases import GSM8K_CASES
from harness.ci.junit import write_junit
from harness.gsm8k.progress import Progress
from harness.records.record import load_record


def cases(path):
    (suite,) = ET.parse(path).getroot()  # noqa: S314 - our own file
    return suite, {c.get("name"): [child.tag for child in c] for c in suite}


def test_junit_of_a_pass(serve, cli):
    done = cli(serve().url, "--min-accuracy", "0.9")
    suite, found = cases(done.folder / "junit.xml")
    assert found == {name: [] for name in GSM8K_CASES}
    assert (suite.get("failures"), suite.get("errors")) == ("0", "0")


def test_infra_is_a_junit_failure_and_not_an_error(serve, cli, tmp_path):
    done = cli(serve(faults=[{"fault": "status", "status": 400}]).url, "--junit", str(tmp_path / "j.xml"))
    suite, found = cases(tmp_path / "j.xml")
    assert done.code == 2
    assert found == {
        "reachable": ["failure"],
        "alive": ["skipped"],
        "answers": ["skipped"],
        "accuracy": ["skipped"],
    }
    assert (suite.get("failures"), suite.get("errors")) == ("1", "0")
    assert suite.find("testcase/failure").get("type") == "UNKNOWN (infra)"


def test_a_dead_model_is_a_junit_failure_and_is_in_the_step_summary(serve, cli, tmp_path):
    summary = tmp_path / "summary.md"
    summary.write_text("before\n", encoding="utf-8")
    done = cli(serve(answer="text", text="<script>|`*").url, env={"GITHUB_STEP_SUMMARY": str(summary)})
    _, found = cases(done.folder / "junit.xml")
    assert found["alive"] == ["failure"]
    text = summary.read_text(encoding="utf-8")
    assert text.startswith("before\n### :x: GSM8K: FAIL (")
    assert "<script>" not in text


def test_junit_holds_no_character_that_xml_forbids(serve, cli, tmp_path):
    done = cli(serve(answer="text", text="\x00\x1b[31m\ufffe \ud800").url)
    record = load_record(done.folder)
    record.gsm8k["reason"] += "\x00\x1b\ud800\ufffe"
    write_junit(record, tmp_path / "odd.xml")
    _, found = cases(tmp_path / "odd.xml")  # parsed: a strict reader refuses such characters
    assert found.keys() == set(GSM8K_CASES)
    assert found["alive"] == ["failure"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def sample(right=True, error=None):
    return {"error": error, "strict": right and error is None}


@pytest.mark.parametrize(
    ("term", "kind", "redrawn"),
    [("xterm", Terminal, True), ("dumb", Terminal, False), ("xterm", io.StringIO, False)],
)
def test_progress_is_one_redrawn_line_on_a_terminal_and_whole_lines_elsewhere(
    term, kind, redrawn, monkeypatch
):
    monkeypatch.setenv("TERM", term)
    monkeypatch.setenv("COLUMNS", "30")
    stream = kind()
    progress = Progress(100, "strict", stream)
    for i in range(100):
        progress.add(sample(right=i % 10 != 0, error="gone" if i == 99 else None))
    progress.say("a word")
    progress.close()
    text = stream.getvalue()
    assert "100/100, accuracy 0.899 (0.824 to 0.944)" in text, (
        "the last state is whole on a narrow terminal too"
    )
    assert "1 unanswered" in text
    assert "a word\n" in text
    lines = text.splitlines()
    if redrawn:
        assert max(len(part) for part in text.split("\r\x1b[K")[1:-1]) <= 30
    else:
        assert not {"\r", "\x1b"} & set(text)
        assert len(lines) <= 4


def test_a_run_never_imports_torch_and_stays_under_300_mib(serve, data, tmp_path):
    import subprocess

    code = (
        "import json, sys\nfrom harness.cli import main\n"
        "try:\n    main()\nexcept SystemExit as ended:\n    code = ended.code\n"
        "heavy = [m for m in ('torch', 'transformers', 'datasets', 'pandas', 'pyarrow') if m in sys.modules]\n"
        "status = open('/proc/self/status', encoding='ascii').read()\n"  # ru_maxrss would count the parent before exec
        "peak = int(status.split('VmHWM:')[1].split()[0]) // 1024\n"
        "print(json.dumps({'code': code, 'heavy': heavy, 'peak': peak}))\n"
    )
    arguments = [
        "--base-url",
        serve().url,
        "--dataset",
        str(data[0]),
        "--fewshot",
        str(data[1]),
        "--out",
        str(tmp_path),
        "--min-accuracy",
        "0.9",
    ]
    done = subprocess.run(
        [sys.executable, "-c", code, "gsm8k", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    told = json.loads(done.stdout.splitlines()[-1])
    assert (told["code"], told["heavy"]) == (0, [])
    assert told["peak"] < 300
