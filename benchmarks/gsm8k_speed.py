"""`harness gsm8k`, lm-eval's command line and a bare client, side by side against one server of fixed latency.

    python benchmarks/gsm8k_speed.py --data FOLDER [--concurrency 128 --concurrency 32 --concurrency 1] [--latency 0.05] [--rounds 1]

FOLDER holds GSM8K's `train.jsonl` and `test.jsonl`. Everything runs on this machine, in the same run; the server is a
process of its own. Wall clock is from the start of the process to its end.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
SERVER = ROOT / "tests" / "gsm8k" / "fault_server.py"
TASK = """include: {base}
task: gsm8k_local
dataset_path: json
dataset_name: null
dataset_kwargs:
  data_files: {{train: {data}/train.jsonl, test: {data}/test.jsonl}}
"""


@contextlib.contextmanager
def server(**config):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "config.json")
        path.write_text(json.dumps({"max_seconds": 900, **config}), encoding="utf-8")
        process = subprocess.Popen(  # noqa: S603
            [sys.executable, str(SERVER), str(path)], stdout=subprocess.PIPE, text=True
        )
        try:
            yield json.loads(process.stdout.readline())["port"]
        finally:
            process.kill()
            process.wait()


def measure(command: list[str], **environment: str) -> tuple[float, float, int, str]:
    """Return wall seconds, peak MiB, exit code and output of a process."""
    started = time.perf_counter()
    process = subprocess.Popen(  # noqa: S603
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )  # fmt: skip
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return time.perf_counter() - started, usage.ru_maxrss / 1024, process.returncode, output


def run_harness(port: int, data: Path, concurrency: int, out: Path) -> dict:
    files = ["--dataset", str(data / "test.jsonl"), "--fewshot", str(data / "train.jsonl"), "--out", str(out)]
    base = [sys.executable, "-m", "harness.cli", "gsm8k", "--base-url", f"http://127.0.0.1:{port}/v1"]
    more = ["--concurrency", str(concurrency), "--min-accuracy", "0.9"]
    # The sweep costs ten latencies and is counted apart.
    wall, peak, code, output = measure([*base, *files, *more, "--no-sweep"])
    assert code == 0, output
    stage = json.loads((out / "record.json").read_text(encoding="utf-8"))["gsm8k"]
    return {
        "wall": wall,
        "peak": peak,
        "requests": stage["seconds"]["requests"],
        "accuracy": stage["accuracy_strict"],
    }


def run_lm_eval(port: int, data: Path, concurrency: int, out: Path) -> dict:
    import lm_eval

    tasks = out / "tasks"
    tasks.mkdir(parents=True, exist_ok=True)
    base = Path(lm_eval.__file__).parent / "tasks" / "gsm8k" / "gsm8k.yaml"
    (tasks / "gsm8k_local.yaml").write_text(TASK.format(base=base, data=data), encoding="utf-8")
    url = f"http://127.0.0.1:{port}/v1/completions"
    arguments = f"model=test-model,base_url={url},num_concurrent={concurrency},tokenizer_backend=None,max_gen_toks=1024"
    command = [sys.executable, "-m", "lm_eval", "run", "--include_path", str(tasks), "--tasks", "gsm8k_local"]
    command += [
        "--model",
        "local-completions",
        "--model_args",
        arguments,
        "--log_samples",
        "--output_path",
        str(out),
    ]
    offline = {
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_HOME": str(out / "hub"),
        "OPENAI_API_KEY": "none",
    }
    wall, peak, code, output = measure(command, **offline)
    assert code == 0, output[-2000:]
    result = json.loads(next(out.rglob("results_*.json")).read_text(encoding="utf-8"))
    return {
        "wall": wall,
        "peak": peak,
        "accuracy": result["results"]["gsm8k_local"]["exact_match,strict-match"],
    }


async def run_bare(port: int, data: Path, concurrency: int) -> float:
    """Return the seconds that aiohttp alone needs for the same prompts: no task, no scores, no record."""
    import aiohttp

    from harness.gsm8k.task import load_task

    task = load_task("gsm8k", dataset=data / "test.jsonl", fewshot=data / "train.jsonl")
    waiting = [
        json.dumps({"model": "m", "prompt": q.prompt, "max_tokens": 1024, "temperature": 0})
        for q in task.questions
    ]
    headers = {"Content-Type": "application/json"}
    started = time.perf_counter()
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), headers=headers) as session:

        async def work() -> None:
            while waiting:
                async with session.post(
                    f"http://127.0.0.1:{port}/v1/completions", data=waiting.pop()
                ) as response:
                    json.loads(await response.read())

        await asyncio.gather(*(work() for _ in range(concurrency)))
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--concurrency", type=int, action="append")
    parser.add_argument("--latency", type=float, default=0.05)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--without-lm-eval", action="store_true")
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    print(
        f"{'concurrency':>11} {'driver':14} {'wall s':>8} {'requests s':>10} {'peak MiB':>8} {'accuracy':>8}"
    )
    for concurrency in options.concurrency or [128, 32, 1]:
        for _ in range(options.rounds):
            with (
                server(data=str(options.data / "test.jsonl"), latency=options.latency) as port,
                tempfile.TemporaryDirectory() as folder,
            ):
                bare = asyncio.run(run_bare(port, options.data, concurrency))
                print(f"{concurrency:>11} {'bare client':14} {'':>8} {bare:10.2f}")
                own = run_harness(port, options.data, concurrency, Path(folder, "harness"))
                print(
                    f"{concurrency:>11} {'harness gsm8k':14} {own['wall']:8.2f} {own['requests']:10.2f} {own['peak']:8.0f} {own['accuracy']:8.4f}"
                )
                if concurrency == 1:
                    print(f"{'':>11} allowed: 1.03 x bare + 3.5 s = {1.03 * bare + 3.5:.2f} s")
                if not options.without_lm_eval:
                    theirs = run_lm_eval(port, options.data, concurrency, Path(folder, "lm-eval"))
                    print(
                        f"{concurrency:>11} {'lm-eval':14} {theirs['wall']:8.2f} {'':>10} {theirs['peak']:8.0f} {theirs['accuracy']:8.4f}",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
