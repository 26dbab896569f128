"""`--serve`: the server is started, waited for, logged and stopped with every process of its group, however the run ends."""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import sys
import time
from pathlib import Path

import pytest

from harness.gsm8k import preflight, serve
from harness.gsm8k.credentials import Redactor
from tests.gsm8k.conftest import until

ROOT = Path(__file__).parents[2]


@pytest.fixture
def command(data):
    """A command that serves the data, in a child of its shell; it dies at a request if told so."""

    def make(last=-1, before="") -> str:
        python = f"{sys.executable} -m tests.gsm8k.small_server {{port}} {data[0]} {last}"
        return f"cd {shlex.quote(str(ROOT))}; {before} {python}; exit $?"

    return make


@pytest.fixture(autouse=True)
def _quick_polls(monkeypatch):
    monkeypatch.setattr(preflight, "POLL_S", 0.05)


def port_in(folder: Path) -> int:
    return int(re.findall(r"listening on (\d+)", (folder / "server.log").read_text())[0])


def nobody_listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def test_a_server_lives_as_long_as_the_run_and_is_waited_for(command, cli, tmp_path):
    more = [
        "--serve",
        command(before="sleep 0.5; SMALL_TOKEN=pl4nted"),
        "--questions",
        "8",
        "--min-accuracy",
        "0.5",
    ]
    done = cli(None, *more)
    assert (done.code, done.stage["correct_strict"]) == (0, 8), done.err
    port = port_in(done.folder)
    assert done.stage["server"]["url"] == f"http://127.0.0.1:{port}/v1"
    assert nobody_listens(port)
    assert done.stage["settings"]["serve"] is True
    written = "".join(p.read_text() for p in done.folder.iterdir() if p.is_file()) + done.out + done.err
    assert "pl4nted" not in written
    assert f"listening on {port} with [hidden]" in (done.folder / "server.log").read_text()


@pytest.mark.long
def test_a_run_goes_on_though_its_server_has_another_port(command, cli):
    more = ["--serve", command(), "--questions", "8"]
    first = cli(None, *more).stage["server"]["url"]
    again = cli(None, *more, "--resume")
    assert again.stage["server"]["url"] != first
    assert again.stage["resumed"]["samples"] == 8
    other = cli(None, "--serve", command(before="true;"), "--questions", "8", "--resume")
    assert other.code == 64
    assert "belongs to another run (url was --serve" in other.err


@pytest.mark.parametrize(
    ("ends", "said"),
    [
        ("echo loading; echo 'ValueError: no such model' >&2; exit 3", "exit code 3"),
        ("kill -SEGV $$", "signal SIGSEGV"),
        ("echo started in the background", "exit code 0 after 0 s (--serve needs a command that stays"),
        ("no-such-command --port {port}", "exit code 127"),
    ],
)
def test_a_server_that_ends_early_is_infra_with_the_end_of_its_log(ends, said, cli):
    done = cli("http://127.0.0.1:1/v1", "--serve", ends)
    assert done.code == 2
    assert (done.stage["verdict"], done.stage["qualifier"]) == ("UNKNOWN", "infra")
    assert said in re.sub(r"after \d s", "after 0 s", done.stage["reason"])
    if "ValueError" in ends:
        assert done.stage["reason"].endswith("server.log ends: ValueError: no such model")
        assert "server.log: loading\nserver.log: ValueError: no such model\n" in done.err


def test_a_server_that_dies_in_mid_run_ends_it_at_once(command, cli):
    done = cli(None, "--serve", command(last=40), "--concurrency", "4")
    assert done.code == 2
    assert done.stage["qualifier"] == "infra"
    assert "ended with exit code 3" in done.stage["reason"]
    assert done.stage["reason"].endswith("server.log ends: RuntimeError: CUDA error")
    assert 30 <= done.stage["answered"] < 40


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_server_too(number, command, process, tmp_path):
    folder = tmp_path / "out"
    slow, asking = command(before="export SMALL_LATENCY=30;"), (folder / "journal.jsonl").exists
    done = process(None, "--serve", slow, out=folder, kill_after=0.1, kill_with=number, wait_for=asking)
    assert done.code == 128 + number
    assert nobody_listens(port_in(folder))
    assert done.record["interrupted"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_between_the_requests_stops_the_server_too(number, tmp_path, monkeypatch):
    from harness.gsm8k.credentials import parse_base_url
    from harness.gsm8k.settings import Gsm8kSettings

    monkeypatch.setattr(serve, "STOP_S", 0.3)
    # Neither the shell nor its child ends by SIGTERM.
    stubborn = "trap '' TERM; (trap '' TERM; sleep 60) & echo $! > pid; wait; sleep 60"
    endpoint = parse_base_url("http://127.0.0.1:1/v1")
    settings = Gsm8kSettings(endpoint=endpoint, out=tmp_path, serve=f"cd {tmp_path}; {stubborn}")
    before = signal.getsignal(number)

    def run() -> None:
        with serve.serving(settings, Redactor()):
            while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
                time.sleep(0.01)
            os.kill(os.getpid(), number)
            time.sleep(10)

    with pytest.raises(KeyboardInterrupt):
        run()
    assert signal.getsignal(number) == before
    child = int((tmp_path / "pid").read_text())
    until(lambda: not is_running(child))


def is_running(pid: int) -> bool:
    """Return whether a process is there and no zombie that nobody collects."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_server_that_is_there_already_is_not_judged_in_its_place(small, cli):
    server = small()
    done = cli(server.url, "--serve", "sleep 60")
    assert done.code == 64
    assert f"something answers at {server.url} already" in done.err
    assert server.bodies == []


def test_without_a_base_url_the_command_has_to_name_the_port(cli):
    done = cli(None, "--serve", "sleep 60")
    assert done.code == 64
    assert "--base-url URL is missing; with --serve, a {port} in the command makes one" in done.err
