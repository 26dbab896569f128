"""An OpenAI-compatible server that answers from a data file, and fails on request. Runs as its own process.

    python fault_server.py CONFIG.json      prints {"port": N} when it listens on 127.0.0.1

The configuration: `data` (JSON lines with question and answer), `port`, `latency`, `answer` (gold, dead, flood, text),
`flood_share`, `wrong_share`, `text`, `wrong_alone` (wrong at batch size 1), `flips` (never the same twice), `models`, `version`, `key` (required bearer token), `loading` (requests to /models
and /health that answer 503), `max_seconds` (it ends after so long without a request), `illness` with `seed` (what an ill
model does to its answers: illness.py), and `faults`: a list of rules, the first that matches decides.

A rule: `fault` (see `FAULTS`), and when it applies: `questions` (parts of their text), `share` of them (by hash), `tries` (only so many attempts
of each question), `after` and `until` (counts of completions so far), `for_s` (seconds from when it first applied). GET /stats tells what happened,
POST /control begins again with another configuration.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))  # it runs as a script, and is imported by tests

from tests.gsm8k.illness import FLOOD, Illness


class Server:
    def __init__(self, config: dict) -> None:
        self.reset(config)

    def reset(self, config: dict) -> None:
        self.config = config
        self.answers = {}
        if config.get("data"):
            for line in Path(config["data"]).read_text(encoding="utf-8").splitlines():
                row = json.loads(line)
                self.answers[row["question"].strip()] = row["answer"]
        self.completions = 0
        self.loading = config.get("loading", 0)
        self.tries: Counter[str] = Counter()
        self.bodies: Counter[str] = Counter()
        self.in_flight: set[int] = set()
        self.most_in_flight = self.connections = 0
        self.ill = Illness(config.get("illness", []), config.get("seed", 0))
        self.ends: dict[int, float] = {}
        self.stops: set[int] = set()
        self.times: list[float] = []

    async def serve(self) -> None:
        server = await asyncio.start_server(
            self.connection, "127.0.0.1", self.config.get("port", 0), backlog=1024
        )
        print(json.dumps({"port": server.sockets[0].getsockname()[1]}), flush=True)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.config.get("max_seconds", 300)) as self.end:
                await server.serve_forever()

    async def connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                method, path, *_ = head.split(b" ", 2)
                headers = {
                    name.strip().lower(): value.strip()
                    for name, _, value in (h.partition(":") for h in head.decode().split("\r\n")[1:])
                }
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                # A test run hands the same process on for longer than that.
                self.end.reschedule(asyncio.get_running_loop().time() + self.config.get("max_seconds", 300))
                if path == b"/control":
                    self.reset(json.loads(body))
                    send_json(writer, 200, {})
                elif method == b"GET":
                    self.get(writer, path.decode().partition("?")[0], headers)
                elif not path.partition(b"?")[0].endswith(b"completions"):
                    send_json(writer, 404, {"detail": "Not Found"})
                elif not await self.completion(writer, path.decode(), headers, body):
                    break
                await writer.drain()
        writer.close()

    def get(self, writer: asyncio.StreamWriter, path: str, headers: dict) -> None:
        if path == "/stats":
            stats = {
                "completions": self.completions,
                "connections": self.connections,
                "most_in_flight": self.most_in_flight,
                "tries": self.tries,
                "stops": sorted(self.stops),
                "bodies": list(self.bodies.values()),
                "times": self.times,
            }
            send_json(writer, 200, stats)
        elif self.loading > 0:
            self.loading -= 1
            send_json(writer, 503, {"error": {"message": "Loading model"}})
        elif path.endswith("/models"):
            if self.config.get("key") and headers.get("authorization") != f"Bearer {self.config['key']}":
                send_json(writer, 401, {"error": f"bad key {headers.get('authorization')}"})
            else:
                models = self.config.get("models", ["test-model"])
                send_json(writer, 200, {"object": "list", "data": [{"id": name} for name in models]})
        elif path == "/health":
            send(writer, 200, b"", "text/plain")
        elif path == "/version":
            send_json(writer, 200, {"version": self.config.get("version", "1.2.3")})
        else:
            send_json(writer, 404, {"detail": "Not Found"})

    async def completion(self, writer: asyncio.StreamWriter, path: str, headers: dict, body: bytes) -> bool:
        """Answer one request; False when the connection is over."""
        self.completions += 1
        self.times.append(asyncio.get_running_loop().time())
        number = self.completions
        # Its own set where a test hands the server on: a request that it left hanging is not in the next one's flight.
        in_flight = self.in_flight
        in_flight.add(number)
        self.most_in_flight = max(self.most_in_flight, len(in_flight))
        ill = self.ill
        ill.enters(number, len(in_flight))
        try:
            request = json.loads(body)
            self.stops.add(len(request.get("stop", [])))
            chat = path.partition("?")[0].endswith("/chat/completions")
            prompt = request["messages"][-1]["content"] if chat else request["prompt"]
            question = last_question(prompt)
            key = hashlib.sha256(question.encode()).hexdigest()
            self.tries[key[:12]] += 1
            self.bodies[hashlib.sha256(body).hexdigest()] += 1
            for rule in self.config.get("faults", []):
                if self.applies(rule, question, key, number):
                    await asyncio.sleep(rule.get("latency", 0))
                    return await FAULTS[rule["fault"]](self, writer, rule, headers)
            first = len(in_flight) == 1
            await asyncio.sleep(self.config.get("latency", 0))
            text = self.text(question, key, alone=first and self.completions == number)
            if request.get("stream"):
                await stream(writer, text, chat=chat)
            else:
                limit = request.get("max_completion_tokens") or request.get("max_tokens") or 256
                answer = ill.answer(text, question, prompt, body, number, limit)
                send_json(
                    writer,
                    200,
                    reply(answer.text, chat=chat, finish=answer.finish, reasoning=answer.reasoning),
                )
            return True
        finally:
            in_flight.discard(number)
            ill.leaves(number)

    def applies(self, rule: dict, question: str, key: str, number: int) -> bool:
        return (
            any(start in question for start in rule.get("questions", [""]))
            and share_of(key) < rule.get("share", 1)
            and self.tries[key[:12]] <= rule.get("tries", 1 << 30)
            and rule.get("after", 0) < number <= rule.get("until", 1 << 30)
            and ("for_s" not in rule or self.still(rule))
        )

    def still(self, rule: dict) -> bool:
        """Return whether a rule that ends by time has not ended."""
        now = asyncio.get_running_loop().time()
        return now < self.ends.setdefault(id(rule), now + rule["for_s"])

    def text(self, question: str, key: str, *, alone: bool) -> str:
        kind = self.config.get("answer", "gold")
        if self.config.get("wrong_alone") and alone:
            return " I am alone.\n#### 123456789"
        if self.config.get("flips"):
            return f" {os.urandom(4).hex()} " + self.answers.get(question, "")
        if kind == "text":
            return self.config["text"]
        if kind == "dead" or share_of(key[8:]) < self.config.get("wrong_share", 0):
            return " I think so.\n#### 123456789"
        if share_of(key[16:]) < self.config.get("flood_share", 0):
            return FLOOD
        return " " + self.answers.get(question, "no such question")


def share_of(key: str) -> float:
    return int(key[:8], 16) / 2**32


def last_question(prompt: str) -> str:
    for mark, end in (("Question: ", "\nAnswer:"), ("Q: ", "\nA:")):
        if mark in prompt:
            return prompt.rpartition(mark)[2].partition(end)[0].strip()
    return prompt.strip()


def reply(
    text: str | None, *, chat: bool = False, finish: str = "stop", reasoning: str | None = None
) -> dict:
    choice = {"index": 0, "finish_reason": finish}
    choice |= {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
    if reasoning is not None:
        (choice["message"] if chat else choice)["reasoning_content"] = reasoning
    usage = {"prompt_tokens": 700, "completion_tokens": len(text or "") // 4, "total_tokens": 0}
    return {"id": "x", "object": "text_completion", "model": "m", "choices": [choice], "usage": usage}


def send(
    writer: asyncio.StreamWriter,
    status: int,
    body: bytes,
    kind: str,
    extra: str = "",
    length: int | None = None,
) -> None:
    length = len(body) if length is None else length
    head = f"HTTP/1.1 {status} {REASONS.get(status, 'Status')}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n{extra}\r\n"
    writer.write(head.encode() + body)


def send_json(writer: asyncio.StreamWriter, status: int, value: object, extra: str = "") -> None:
    send(writer, status, json.dumps(value).encode(), "application/json", extra)


async def stream(writer: asyncio.StreamWriter, text: str, *, chat: bool) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
    parts = [text[i : i + 40] for i in range(0, len(text), 40)]
    events = [{"choices": [{"delta": {"content": p}} if chat else {"text": p}]} for p in parts]
    events += [{"choices": [{"delta": {}, "text": "", "finish_reason": "stop"}]}]
    events += [{"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 5}}]
    for line in [*(json.dumps(e) for e in events), "[DONE]"]:
        data = f"data: {line}\n\n".encode()
        writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        await writer.drain()
    writer.write(b"0\r\n\r\n")


REASONS = {200: "OK", 400: "Bad Request", 401: "Unauthorized", 404: "Not Found", 429: "Too Many Requests",
           500: "Internal Server Error", 503: "Service Unavailable"}  # fmt: skip


async def fault_status(server, writer, rule, headers) -> bool:
    message = rule.get("message", "planted").replace("{authorization}", headers.get("authorization", ""))
    extra = f"Retry-After: {rule['retry_after']}\r\n" if "retry_after" in rule else ""
    send_json(writer, rule["status"], {"error": {"message": message}}, extra)
    return True


async def fault_reset(server, writer, rule, headers) -> bool:
    send(writer, 200, b'{"choices": [{"te', "application/json", length=500)
    await writer.drain()
    await asyncio.sleep(0.01)
    writer.transport.abort()
    return False


async def fault_reset_before(server, writer, rule, headers) -> bool:
    writer.transport.abort()
    return False


async def fault_endless(server, writer, rule, headers) -> bool:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        size = rule.get("chunk", 16)
        writer.write(f"{size:x}\r\n".encode() + b" " * size + b"\r\n")
        await writer.drain()
        await asyncio.sleep(rule.get("pause", 0.02))


async def fault_truncated(server, writer, rule, headers) -> bool:
    send(writer, 200, json.dumps(reply("#### 1")).encode()[:-20], "application/json")
    return True


async def fault_no_choices(server, writer, rule, headers) -> bool:
    send_json(writer, 200, reply("x") | {"choices": []})
    return True


async def fault_error_200(server, writer, rule, headers) -> bool:
    send_json(writer, 200, {"error": {"message": "worker crashed", "code": 500}})
    return True


async def fault_html(server, writer, rule, headers) -> bool:
    send(writer, 200, b"<html><title>Sign in</title></html>", "text/html")
    return True


async def fault_null(server, writer, rule, headers) -> bool:
    send_json(writer, 200, reply(None))
    return True


async def fault_hang(server, writer, rule, headers) -> bool:
    send(writer, 200, b"", "application/json", length=500)
    await writer.drain()
    await asyncio.sleep(60)
    return False


async def fault_silent(server, writer, rule, headers) -> bool:
    await asyncio.sleep(60)
    return False


async def fault_die(server, writer, rule, headers) -> bool:
    os._exit(1)


FAULTS = {name.removeprefix("fault_"): f for name, f in list(globals().items()) if name.startswith("fault_")}

if __name__ == "__main__":
    asyncio.run(Server(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))).serve())
