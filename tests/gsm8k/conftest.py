"""Fixtures: the fault server and the command line as processes, runs inside this process, and tiny data for all."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import pytest
import tenacity

from harness.cli import run as run_command
from harness.gsm8k import retrying
from harness.gsm8k.credentials import parse_base_url
from harness.gsm8k.run import run
from harness.gsm8k.settings import Gsm8kSettings
from tests.gsm8k.samples import awkward_answers, make_run, make_sample, small_data  # noqa: F401  (fixtures)
from tests.gsm8k.small_server import SmallServer, Thread

ROOT = Path(__file__).parents[2]
SERVER = Path(__file__).with_name("fault_server.py")
QUESTIONS = 64


@pytest.fixture(scope="session")
def write_data(tmp_path_factory):
    """Write questions and few-shot examples in the GSM8K format; returns their two paths."""

    def rows(start: int, number: int) -> str:
        made = [
            {
                "question": f"Ada has {i} apples and buys {i + 3} more. How many apples does she have?",
                "answer": f"She has {i} + {i + 3} = <<{i}+{i + 3}={2 * i + 3}>>{2 * i + 3} apples.\n#### {2 * i + 3}",
            }
            for i in range(start, start + number)
        ]
        return "".join(json.dumps(row) + "\n" for row in made)

    def write(count: int) -> tuple[Path, Path]:
        folder = tmp_path_factory.mktemp("data")
        test, train = folder / "test.jsonl", folder / "train.jsonl"
        test.write_text(rows(10, count), encoding="utf-8")
        train.write_text(rows(100_000, 12), encoding="utf-8")
        return test, train

    return write


@pytest.fixture(scope="session")
def data(write_data):
    """Data of `QUESTIONS` questions."""
    return write_data(QUESTIONS)


@dataclass
class RunningServer:
    process: subprocess.Popen
    port: int
    data: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def stats(self) -> dict:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/stats", timeout=10) as response:
            return json.load(response)

    def control(self, **config) -> None:
        """Begin again with another configuration."""
        config = {"data": str(self.data), **config}
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/control", json.dumps(config).encode())
        with urllib.request.urlopen(request, timeout=10):  # noqa: S310
            pass

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


@pytest.fixture(scope="session")
def idle_servers():
    """Servers that earlier tests have left alive: starting a process takes longer than most tests."""
    idle: list[RunningServer] = []
    yield idle
    for server in idle:
        server.stop()


@pytest.fixture
def serve(data, tmp_path, idle_servers):
    """Start fault servers; see fault_server.py for their configuration. They are alone in the test's hands."""
    running = []

    def start(**config) -> RunningServer:
        config = {"data": str(data[0]), **config}
        while idle_servers and "port" not in config:
            running.append(idle_servers.pop())
            with contextlib.suppress(OSError):  # it has ended by itself, unasked for long
                running[-1].control(**config)
                return running[-1]
        path = tmp_path / f"server-{len(running)}.json"
        path.write_text(json.dumps(config), encoding="utf-8")
        process = subprocess.Popen(
            [sys.executable, str(SERVER), str(path)], stdout=subprocess.PIPE, text=True
        )
        running.append(RunningServer(process, json.loads(process.stdout.readline())["port"], data[0]))
        return running[-1]

    yield start
    for server in running:
        if server.process.poll() is None:
            idle_servers.append(server)
        else:
            server.stop()


@pytest.fixture
def small(data):
    """Start small servers whose illness is a function of the test; see small_server.py."""
    with contextlib.ExitStack() as running:

        def start(ill=None, **more) -> SmallServer:
            return running.enter_context(Thread(SmallServer(data[0], ill=ill, **more)))

        yield start


def _without_sweep(options) -> list[str]:
    """Tests count requests and plant faults at numbered ones: the sweep is left to those that ask for it."""
    return [] if "--sweep" in options else ["--no-sweep"]


@dataclass
class Finished:
    code: int
    out: str
    err: str
    folder: Path

    @property
    def record(self) -> dict:
        return json.loads((self.folder / "record.json").read_text(encoding="utf-8"))

    @property
    def stage(self) -> dict:
        return self.record["gsm8k"]


@pytest.fixture
def process(data, tmp_path):
    """Run `harness gsm8k` as a process: to its end, or until a signal a number of seconds after its start."""

    def call(
        url, *more, out=None, env=None, kill_after=None, kill_with=signal.SIGKILL, wait_for=None
    ) -> Finished:
        out = out or tmp_path / "out"
        kept = {k: v for k, v in os.environ.items() if k not in {"OPENAI_API_KEY", "GITHUB_STEP_SUMMARY"}}
        base = ["--base-url", url] if url else []
        files = [
            "--dataset",
            str(data[0]),
            "--fewshot",
            str(data[1]),
            "--out",
            str(out),
            *_without_sweep(more),
        ]
        process = subprocess.Popen(
            [sys.executable, "-m", "harness.cli", "gsm8k", *base, *files, *more],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
            env={**kept, "PYTHONPATH": str(ROOT), **(env or {})},
        )  # fmt: skip
        if kill_after is not None:
            until(wait_for or (lambda: True))
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(kill_after)
            process.send_signal(kill_with)
        stdout, stderr = process.communicate(timeout=60)
        return Finished(process.returncode, stdout, stderr, out)

    return call


@pytest.fixture
def _quick(monkeypatch):
    monkeypatch.setattr(retrying, "BACKOFF", tenacity.wait_random(0.01, 0.05))
    for name in ("GITHUB_STEP_SUMMARY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def cli(data, tmp_path, monkeypatch, capsys, _quick):
    """Run the command line inside this process, with short back-offs: a process takes ten times as long to start."""

    def call(url, *more, out=None, env=None, files=True) -> Finished:
        out = out or tmp_path / "out"
        rows = ["--dataset", str(data[0]), "--fewshot", str(data[1])] if files else []
        base = ["--base-url", url] if url else []
        arguments = ["gsm8k", *base, *rows, "--out", str(out), *_without_sweep(more), *more]
        monkeypatch.setattr(sys, "argv", ["harness", *arguments])
        for name, value in (env or {}).items():
            monkeypatch.setenv(name, value)
        code = run_command(arguments)
        printed = capsys.readouterr()
        return Finished(code, printed.out, printed.err, out)

    return call


@pytest.fixture
def run_here(data, tmp_path, _quick):
    """Run the stage inside this process, with short back-offs; returns `record.gsm8k`."""

    def call(url, **settings) -> dict:
        settings.setdefault("dataset", data[0])
        settings.setdefault("fewshot", data[1])
        settings.setdefault("out", tmp_path / "out")
        settings.setdefault("sweep", False)
        if isinstance(settings.get("against"), str):
            settings["against"] = parse_base_url(settings["against"])
        return run(Gsm8kSettings(endpoint=parse_base_url(url), **settings), ["harness", "gsm8k"]).gsm8k

    return call


def until(condition, seconds: float = 20.0) -> None:
    """Wait until a condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)
