"""Command lines composed of mistakes from a seed. Each has at least one for which no run may start."""

from __future__ import annotations

import random
from pathlib import Path

from harness.cli import COMMANDS

PROBLEM = "1x4x32x32:2:normal:1"
# Words that are wrong wherever a name, a number or a problem is due.
NOISE = [
    "", " ", "-", "--", "\n", "\t", "\x1b[31m", "\u0662", "\u00b2", "1e309", "nan", "-inf", "0x10", "1_0\u0660", "\udcff",
    "a\nb", "\U0001f4a5", "..", "/", "x" * 3000, "9" * 26, "9" * 5000, "-1", "1.5", "None", "[]", "$(false)", "%s", "{}",
    "\u202e", "+", ":", "a:", ":b", "a:b:c", "a+", "+b", "@7", "NaN", "true", "'", '"', "*", "\\",
]  # fmt: skip
PROBLEMS = [
    "", "x", "1x4x32", "1x4x32x32:2:normal", "1x4x32x32:5:normal:1", "1x4x32x32:1,1:normal:1", "1x4x30x32:1:normal:1",
    "1x4x16000000000x32:1:normal:1", "99999999999999999999x4x32x32:1:normal:1", "1x4x32x32:1:normal:" + "1" * 26,
    "1x4x32x32:1:normal:" + "1" * 5000, "\u0661x4x32x32:1:normal:1", "1x4x32x32:\u0661:normal:1",
    "1x4x32x32:1*99999999999999999999:normal:1", "1x4x32x32:1:normal:1:float32_out+float16_out", "1x4x32x32:1:norm:1",
    "1x4x32x32:1:normal:1:nann", "1x4x32x32:1:normal:1:", "1x4x32x32:1:normal:1:relu2:", "-1x4x32x32:1:normal:1",
    "1x4x32x32::normal:1", "1x4x32x32:1,:normal:1", "0x4x32x32:0:normal:1", "1x0x32x32:0:normal:1",
]  # fmt: skip
CANDIDATES = [
    "eagre", "builtins:exit", "os:abort", "sys:exit", "./eager.py", "harness/candidates/eager.py:Eager", "/x/y.py:K",
    "eager+", "eager+nonsense", "physical+alpha_of_neighbour@x", "physical+alpha_of_neighbour@-1", "control:", "control:x",
    "torch:zeros", "json:dumps", "harness.verdict:Verdict", ".relative:X", "a..b:C", "no_such_module:X", "faulty:Missing",
    "faulty:NOT_A_CANDIDATE", "faulty", "eager:", "eager+a+b", "random:random",
]  # fmt: skip
FILES = [
    "nowhere",
    "empty.json",
    "half.json",
    "list.json",
    "other.json",
    "newer.json",
    "deep.json",
    "bytes.json",
    ".",
]
_OUT, _SMALL = ["--out", "out"], ["--rule", "QUANT", "--problem", PROBLEM]

# Command, what makes it short where it runs after all, and options with words that are surely wrong for them.
LINES: list[tuple[list[str], list[str], dict[str, list[str]]]] = [
    (
        ["check"],
        [*_SMALL, *_OUT],
        {
            "--candidate": CANDIDATES, "--rule": ["GEM", "", "\u0662"], "--profile": ["quik", ""], "--problem": PROBLEMS,
            "--shapes": ["", "deepseek", "nowhere/config.json", "other.json", "qwen3-30b"], "--ep": ["2", "0", "\u0662"],
            "--seed": ["-1", "9" * 26, "\u0662", "1.5"], "--max-seconds": ["-1", "nan", "x", "\u0662"],
            "--max-memory": ["-1", "nan", "1e300", "inf"], "--threads": ["-1", "99999999999", "1025", "x"],
            "--canary-questions": ["0", "501", "x"], "--known-failures": FILES, "--out": ["list.json", "list.json/x", "/proc/x"],
            "--fail-on": ["never", "regression"], "--against": [*FILES, "http://x"], "--surplus": ["1"],
        },
    ),
    (["deepep"], [*_SMALL, *_OUT], {
        "--candidate": ["eager", "eager-gloo:0", "eager-gloo:x", "eager-gloo+nonsense", "deepep:", "eagre", "os:abort", "eager-gloo:2:bf16:x", "deepep:experts="],
        "--transports": ["fp9", "bf16,", ",", "bf16 fp8"], "--experts": ["nonsense", "os:abort", "eagre"],
        "--ranks": ["0", "-1", "65", "9" * 20, "\u0662", "x"], "--rule": ["GEM", ""], "--profile": ["quik"],
        "--problem": PROBLEMS, "--seed": ["-1", "x"], "--max-seconds": ["-1", "nan"],
        "--call-seconds": ["0", "-1", "nan", "inf", "x"], "--out": ["list.json"], "--fail-on": ["never", "regression"],
    }),
    (["gsm8k"], _OUT, {
        "--base-url": ["", "localhost", "ftp://x", "http://", "http://h:99999999/v1", "http://[::1"],
        "--concurrency": ["0", "-1", "9" * 20, "\u0662"], "--timeout": ["nan", "inf", "-1"], "--limit": ["x", "empty=", "a=b"],
        "--min-accuracy": ["2", "nan", "-1"], "--extra-body": ["{", "[]", "\udcff"], "--mode": ["half"], "--questions": ["0"],
        "--preset": ["nonsense"], "--repeat": ["0"], "--max-tokens": ["0", "-5"],
    }),
    (["mutants"], _OUT, {
        "--candidate": ["eagre", "x.py", ""], "--fault": ["nonsense", ""], "--category": ["nonsense", ""],
        "--seeds": ["-1", "x"], "--profile": ["quik"], "--seed": ["-1"], "--max-seconds": ["nan", "-1"],
        "--jobs": ["0", "-1", "9" * 19], "--examples": ["x"],
    }),
    (["canary", "serve"], [], {
        "--port": ["-1", "65536", "99999999", "\u0662", "x"], "--ranks": ["0", "-1"], "--candidate": CANDIDATES,
        "--transport": ["fp4"], "--shard": ["rows"], "--threads": ["-1", "9999999"], "--fault": ["nonsense"], "--model": ["nowhere"],
    }),
    (["canary", "run"], _OUT, {"--questions": ["0", "-1", "x"], "--candidate": CANDIDATES, "--ranks": ["0"]}),
    (["canary", "table"], _OUT, {"--questions": ["0"], "--jobs": ["0", "-2"], "--fault": ["nonsense"], "--candidate": ["eagre"]}),
    (["canary", "export"], [], {"list.json/x": [""], "--model": ["nowhere"]}),
    (["reproduce"], ["other.json"], {"--failure": ["-1", "9", "\u0662"], "--rule": ["GEM"], "--script": ["x.txt", "no/x.py"]}),
    (["reproduce"], [], {name: [""] for name in FILES}),
    (["identify"], [], {"--candidate": CANDIDATES}),
    (["diagnose"], [], {name: ["--failure"] for name in FILES}),
    (["replay"], [], {name: ["--json"] for name in FILES}),
    (["replay"], ["nowhere"], {"--arithmetic": ["slow", ""], "--candidate": CANDIDATES, "--baseline": FILES, "--device": ["nonsense", ""]}),
    (["diagnose"], ["--candidate", "eager", "--rule", "QUANT"], {"--problem": PROBLEMS, "--rule": ["GEM"]}),
    (["compile"], _OUT, {
        "--arch": ["sm_90a", ""], "--kernel": ["nonsense"], "--origin": ["nonsense"], "--case": ["x", ""], "--jobs": ["-1", "x"],
        "--timeout": ["0", "nan", "-1"], "--baseline": FILES,
    }),
    (["races"], _OUT, {"--schedules": ["0", "-1", "x"], "--surplus": ["1"]}),
    (["list"], [], {"nonsense": [], "--surplus": ["1"]}),
    (["bench"], [], {"--device": ["gpu", "", "cuda"], "--part": ["", "reference"], "nonsense": [], "--surplus": ["1"]}),
    (["doctor"], [], {"nonsense": [], "--surplus": ["1"]}),
    (["report"], [], {name: [] for name in FILES} | {"--history": ["nowhere", "list.json"]}),
    ([], [], {name: [] for name in ("chek", "canari", "--surplus", "Check", "\u0662", "")}),
]  # fmt: skip


def line(seed: int) -> list[str]:
    """Return the words of a command line, without `harness`."""
    draw = random.Random(f"line {seed}")
    command, short, wrong = draw.choice(LINES)
    words = list(short)
    for option in draw.sample(sorted(wrong), min(len(wrong), draw.choice([1, 1, 2]))):
        words += [option, draw.choice(wrong[option])] if wrong[option] else [option]
    how = draw.random()
    if how < 0.15:  # noise where nothing is due
        words.insert(draw.randrange(len(words) + 1), draw.choice(NOISE))
    elif how < 0.25 and words:
        words[-1] = draw.choice(NOISE)
    elif how < 0.3:
        command = [_misspelt(word, draw) for word in command]
    return [*command, *words]


def _misspelt(word: str, draw: random.Random) -> str:
    place = draw.randrange(len(word))
    return draw.choice(
        [word[:place] + word[place + 1 :], word[:place] + "x" + word[place:], word.upper(), f"{word} "]
    )


def make_files(folder: Path) -> None:
    """Write what the lines name: files that look like records and are none."""
    texts = {
        "empty.json": "", "half.json": '{"schema": 1, "run_id": "x", "comm', "list.json": "[]", "other.json": '{"a": 1}',
        "newer.json": '{"schema": 99}', "deep.json": "[" * 100_000,
    }  # fmt: skip
    for name, text in texts.items():
        (folder / name).write_text(text)
    (folder / "bytes.json").write_bytes(b"\xff\xfe\x00" * 99)


assert {command[0] for command, _, _ in LINES if command} == set(COMMANDS), "every command has lines"
