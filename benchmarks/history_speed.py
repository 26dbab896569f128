"""Time of `harness report --history` over many records, and the size of the page.

    python benchmarks/history_speed.py                       # 1,000 records: 70 % rules, 25 % GSM8K, 5 % canary
    python benchmarks/history_speed.py --gsm8k 100           # nothing but full GSM8K runs of 1,319 questions
    python benchmarks/history_speed.py --keep FOLDER         # leave records and page there, to be looked at

The records are made up, in the sizes of real ones: 26 rules on two candidates with histograms and some failures; GSM8K
records hold 1,319 questions with answers of some 300 characters (1.8 MB each).
"""

from __future__ import annotations

import argparse
import datetime as dt
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from harness.gsm8k.outcome import counted
from harness.gsm8k.statistics import wilson
from harness.records.parts.canary import CanaryPart, CanaryRun
from harness.records.parts.gsm8k import Gsm8kSample
from harness.records.record import CandidateRun, Environment, Failure, Histogram, RuleResult, RunRecord
from harness.rules import RULES
from harness.verdict import Verdict

QUESTIONS = 1_319
EDGES = [float(e) for e in range(-20, 5)]
START = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
GPUS = (["NVIDIA B200 (sm_100)"], ["NVIDIA GB300 (sm_103)"])
WORDS = [
    "a",
    "farmer",
    "sells",
    "eggs",
    "every",
    "day",
    "and",
    "buys",
    "two",
    "bags",
    "of",
    "feed",
    "for",
    "each",
    "of",
    "her",
    "ducks",
    "how",
    "many",
    "dollars",
]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument("--records", type=int, default=1_000)
    options.add_argument("--gsm8k", type=int, default=25, help="per cent of GSM8K records")
    options.add_argument("--keep", type=Path, help="folder to leave everything in")
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = chosen.keep or Path(temporary)
        write_records(folder, chosen.records, chosen.gsm8k)
        size = sum(path.stat().st_size for path in folder.rglob("record.json"))
        command = [sys.executable, "-m", "harness.cli", "report", "--history", str(folder)]
        for _ in range(3):
            started = time.monotonic()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)  # noqa: S603
            seconds = time.monotonic() - started
            page = (folder / "history.html").stat().st_size
            print(
                f"{chosen.records} records, {size / 1e6:,.0f} MB: {seconds:.1f} s, page {page / 1e6:.2f} MB",
                flush=True,
            )


def write_records(folder: Path, number: int, gsm8k: int) -> None:
    """Write the records, each in a folder of its own, as runs leave them."""
    rng = random.Random(0)
    for i in range(number):
        record = base(i)
        place = rng.random() * 100
        if place < gsm8k:
            add_gsm8k(record, rng, broken=600 < i < 640)
        elif place > 95:
            record.canary_part = CanaryPart(64, runs=[canary(rng)])
        else:
            add_rules(record, rng, broken=i > 0.97 * number)
        here = folder / f"{i:05}"
        here.mkdir(parents=True, exist_ok=True)
        record.write(here / "record.json")


def base(i: int) -> RunRecord:
    """An empty record of the i-th run, one every six hours, with versions that change now and then."""
    packages = {
        "torch": f"2.{8 + i // 400}.0",
        "flashinfer-python": f"0.7.{i // 150}",
        "hypothesis": "6.130.1",
    }
    where = Environment(
        python="3.12.4", platform="Linux", cpu_count=16, device="cuda", gpus=GPUS[i % 2], cuda="13.0",
        driver=f"58{i // 500}.10", packages=packages, git_commit=f"{i * 7919:040x}", git_dirty=False,
    )  # fmt: skip
    created = (START + dt.timedelta(hours=6 * i)).isoformat(timespec="seconds")
    return RunRecord(
        run_id=f"run-{i}", created=created, command=["harness", "check"], verdict=Verdict.PASS, reason="all legal",
        harness_version="0.1.0", profile="quick", environment=where,
    )  # fmt: skip


def add_rules(record: RunRecord, rng: random.Random, *, broken: bool) -> None:
    """Add 26 rules on two candidates; where `broken`, one of them fails with ten problems."""
    record.candidates = [CandidateRun(name, True, True) for name in ("eager", "flashinfer-cutedsl")]
    for candidate in record.candidates:
        for rule in RULES:
            result = RuleResult(
                rule.id, rule.title, candidate.name, Verdict.PASS, examples=40, compared=rng.randrange(10**6),
                judged={"bit equality": 4_000}, seconds=rng.uniform(0.5, 4), worst_ratio=rng.betavariate(2, 3),
                worst_problem="4x160x256x128:64,0,3,160:normal:20394:e2m1_ties",
                histograms={stage: Histogram(EDGES, [rng.randrange(1000) for _ in range(26)]) for stage in rule.stages},
            )  # fmt: skip
            if broken and rule.id == "GEMM" and candidate.name != "eager":
                result.verdict, result.worst_ratio, result.reason = (
                    Verdict.FAIL,
                    773.0,
                    "755 elements are illegal",
                )
                result.failures = [
                    Failure(
                        "GEMM", candidate.name, "problem", "gemm", "illegal", "x" * 2_000, "harness check"
                    )
                ] * 10
                record.verdict, record.reason = Verdict.FAIL, "1 of 52 rules failed"
            record.rules.append(result)
    record.seconds = sum(rule.seconds for rule in record.rules)


def add_gsm8k(record: RunRecord, rng: random.Random, *, broken: bool) -> None:
    """Add a GSM8K run with every question."""
    share = 0.05 if broken else 0.95
    samples = [sample(i, rng, right=rng.random() < share) for i in range(QUESTIONS)]
    word = "FAIL" if broken else "PASS"
    record.command, record.profile = ["harness", "gsm8k"], ""
    record.gsm8k_run = replace(
        counted(samples, QUESTIONS, "strict"), verdict=word, qualifier="accuracy" if broken else "", reason="as measured",
        seconds={"total": 400.0, "requests": rng.uniform(300, 500)}, task={"name": "gsm8k"},
        server={"model": "deepseek-v3-nvfp4", "version": "0.5.23"},
    )  # fmt: skip
    record.verdict, record.reason = Verdict(word), f"gsm8k: {word}"


def sample(index: int, rng: random.Random, *, right: bool) -> Gsm8kSample:
    """One question with an answer."""
    text = [" ".join(rng.choices(WORDS, k=n)) for n in (45, 60)]
    return {
        "index": index, "repeat": 0, "wave": index < 32, "question": text[0], "expected": text[1] + "\n#### 18",
        "answer": text[1] + "\n#### 18", "reasoning": None, "class": "right" if right else "wrong number",
        "strict": right, "flexible": right, "numeric": right, "extracted_strict": "18", "extracted_flexible": "18",
        "extracted_numeric": "18", "finish_reason": "stop", "latency_s": rng.random(), "ttft_s": None, "attempts": 1,
        "usage": {"prompt_tokens": 900, "completion_tokens": 100}, "error": None,
    }  # fmt: skip


def canary(rng: random.Random) -> CanaryRun:
    """A canary run without its questions."""
    right = rng.randrange(60, 65)
    found = wilson(right, 64)
    return CanaryRun(
        "PASS", answered=64, correct_strict=right, accuracy_strict=right / 64, interval=[found.low, found.high],
        seconds={"requests": 20 * rng.random()}, candidate="flashinfer-cutedsl", ready_seconds=2.0,
    )  # fmt: skip


if __name__ == "__main__":
    main()
