"""How long `harness gsm8k` takes to say what is wrong with a server, on all of GSM8K.

    python benchmarks/gsm8k_verdicts.py --data FOLDER

FOLDER holds GSM8K's `train.jsonl` and `test.jsonl`. Wall clock is from the start of the process to its end.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from gsm8k_speed import measure, server

FAST = 0.05
SITUATIONS = {
    "down": (None, 2),
    "dead, 2 s an answer": ({"answer": "dead", "latency": 2}, 1),
    "dead above 16 in flight": (
        {"latency": FAST, "illness": [{"effect": "wrong", "in_flight": [17, None]}]},
        1,
    ),
    "dead above 64 in flight": (
        {"latency": FAST, "illness": [{"effect": "wrong", "in_flight": [65, None]}]},
        1,
    ),
    "half floods": ({"flood_share": 0.5, "latency": FAST}, 1),
    "400 to everything": ({"latency": FAST, "faults": [{"fault": "status", "status": 400}]}, 2),
    "500 to 0.5 % always": (
        {"latency": FAST, "faults": [{"fault": "status", "status": 500, "share": 0.005}]},
        0,
    ),
    "dies after 700": ({"latency": FAST, "faults": [{"fault": "die", "after": 700}]}, 2),
    "always right": ({"latency": FAST}, 0),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    data = parser.parse_args().data
    print(f"{'server':24} {'wall s':>7} {'exit':>4} {'answered':>8} {'unanswered':>10}  verdict")
    for name, (config, expected) in SITUATIONS.items():
        with tempfile.TemporaryDirectory() as folder:
            more = ["--concurrency", "32", "--retry-seconds", "5", "--min-accuracy", "0.9", "--out", folder]
            files = ["--dataset", str(data / "test.jsonl"), "--fewshot", str(data / "train.jsonl")]
            command = [sys.executable, "-m", "harness.cli", "gsm8k", *files, *more, "--base-url"]
            if config is None:
                wall, _, code, output = measure([*command, "http://127.0.0.1:9/v1"])
            else:
                with server(data=str(data / "test.jsonl"), **config) as port:
                    wall, _, code, output = measure([*command, f"http://127.0.0.1:{port}/v1"])
            assert code == expected, output
            stage = json.loads(Path(folder, "record.json").read_text(encoding="utf-8"))["gsm8k"]
            verdict = f"{stage['verdict']} ({stage['qualifier']}): {stage['reason']}"
            print(
                f"{name:24} {wall:7.2f} {code:>4} {stage['answered']:>8} {stage['unanswered']:>10}  {verdict:.150}",
                flush=True,
            )


if __name__ == "__main__":
    main()
