"""transformers' own server with canary-256, judged by `harness gsm8k` in completions and chat. Needs transformers[serving]."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.canary.config import MODEL

MISSING = [
    name for name in ("accelerate", "fastapi", "openai", "uvicorn") if not importlib.util.find_spec(name)
]
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(
        bool(MISSING), reason=f"transformers serve needs {', '.join(MISSING)}: transformers[serving]"
    ),
]
QUESTIONS = 8
START_SECONDS = 180


@pytest.fixture(scope="module")
def url(tmp_path_factory) -> Iterator[str]:
    """The base URL of a server of its own; float32 as the canary's, so that the answers must be the same."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("serve") / "log"
    command = "from transformers.cli.transformers import main; main()"
    options = ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--dtype", "float32"]
    with log.open("wb") as out:
        server = subprocess.Popen(
            [sys.executable, "-c", command, "serve", str(MODEL), *options],
            stdout=out,
            stderr=subprocess.STDOUT,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
            start_new_session=True,
        )
    try:
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end and server.poll() is None:
            with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).close()
                break
            time.sleep(0.5)
        else:
            pytest.fail(f"transformers serve did not listen:\n{log.read_text(errors='replace')[-2000:]}")
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()


@pytest.mark.parametrize("interface", ["completions", "chat"])
def test_it_is_judged_right_with_the_answers_of_the_canary_itself(
    url, canary, tmp_path: Path, interface
) -> None:
    command = [sys.executable, "-m", "harness.cli", "gsm8k", "--base-url", url, "--task", "gsm_canary"]
    options = [
        "--questions",
        str(QUESTIONS),
        "--min-accuracy",
        "0.5",
        "--concurrency",
        "4",
        "--out",
        str(tmp_path),
    ]
    chat = ["--chat"] if interface == "chat" else []
    done = subprocess.run(
        [*command, *options, *chat], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    run = json.loads((tmp_path / "record.json").read_text())["gsm8k"]
    assert (run["verdict"], run["correct_strict"], run["answered"]) == ("PASS", QUESTIONS, QUESTIONS)
    prompts = [f"Question: {sample['question']}\nAnswer:" for sample in run["samples"]]
    own = canary.answer(prompts, stop=["\n\n", "Question:"])
    assert [sample["answer"].strip() for sample in run["samples"]] == [answer.strip() for answer in own]
