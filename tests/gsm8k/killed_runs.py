"""Start runs of one folder and kill each with SIGKILL at a random moment; a process of its own, so that forking is safe.

    python killed_runs.py '{"url", "dataset", "fewshot", "out", "kills", "seed", "longest", "concurrency"}'

Prints what the journal held after each kill, then finishes the run with --resume and prints its exit code.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from harness.gsm8k.credentials import parse_base_url
from harness.gsm8k.run import run
from harness.gsm8k.settings import Gsm8kSettings


def start(options: dict) -> int:
    """Fork a child that makes a run; return its id."""
    pid = os.fork()
    if pid:
        return pid
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    settings = Gsm8kSettings(
        endpoint=parse_base_url(options["url"]),
        dataset=Path(options["dataset"]),
        fewshot=Path(options["fewshot"]),
        out=Path(options["out"]),
        concurrency=options["concurrency"],
        resume=True,
        sweep=False,
    )
    try:
        run(settings, ["harness", "gsm8k"])
    except BaseException:  # noqa: BLE001 - a forked child must not run its parent's code
        os._exit(70)
    os._exit(0)


def journaled(out: Path) -> list[str]:
    """Return the questions in the whole lines of the journal."""
    path = out / "journal.jsonl"
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    entries = [json.loads(line) for line in lines]
    return [e["sample"]["question"] for e in entries if "sample" in e]


def main() -> None:
    options = json.loads(sys.argv[1])
    moments = random.Random(options["seed"])
    held, killed = [], 0
    for _ in range(options["kills"]):
        pid = start(options)
        time.sleep(moments.uniform(0, options["longest"]))
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        killed += os.WIFSIGNALED(status)
        held.append(journaled(Path(options["out"])))
    _, status = os.waitpid(start(options), 0)
    print(json.dumps({"held": held, "killed": killed, "code": os.waitstatus_to_exitcode(status)}))


if __name__ == "__main__":
    main()
