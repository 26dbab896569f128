r"""Training rows: problems as "Question: ...\nAnswer: ...", tokens packed into rows of one length.

A token takes 16 bits, of which the highest says that it belongs to an answer. Rows hold whole problems, closed by END
(sometimes by an empty line, as in few-shot prompts), and padding.
"""

from __future__ import annotations

import multiprocessing
from array import array
from pathlib import Path

import torch
from torch import Tensor

IN_ANSWER = 1 << 15
_PLAIN_END_SHARE = 0.85
_BINS = 24


def prompt_of(question: str) -> str:
    """Return the prompt that the model is trained on, lm-eval's own for gsm8k."""
    return f"Question: {question}\nAnswer:"


def encoded_rows(job: tuple[int, int, int, str]) -> bytes:
    """Return packed rows as bytes of unsigned 16-bit numbers; the job of one worker.

    Args:
        job: seed, problems, tokens a row, folder of the tokenizer.
    """
    import random

    from harness.canary.problems import training_problems
    from harness.canary.tokenizer import load_tokenizer

    seed, count, length, folder = job
    tokenizer = load_tokenizer(Path(folder))
    seeded = random.Random(seed)
    between = tokenizer.encode("\n\n").ids
    bins: list[array[int]] = []
    rows: array[int] = array("H")

    def close(row: array[int]) -> None:
        rows.extend(row)
        rows.extend([0] * (length - len(row)))

    for problem in training_problems(seed, count):
        tokens = array("H", tokenizer.encode(prompt_of(problem.question)).ids)
        answer = [*tokenizer.encode(f" {problem.answer}").ids, 0]
        tokens.extend(token | IN_ANSWER for token in answer)
        if len(tokens) + len(between) > length:
            continue
        fitting = [row for row in bins if len(row) + len(tokens) + len(between) <= length]
        if fitting:
            row = max(fitting, key=len)
        else:
            if len(bins) == _BINS:
                fullest = max(bins, key=len)
                bins.remove(fullest)
                close(fullest)
            row = array("H")
            bins.append(row)
        # The end is learned from the row's answer; what the next problem sees before it is sometimes an empty line.
        if row and seeded.random() > _PLAIN_END_SHARE:
            row.pop()
            row.extend(between)
        row.extend(tokens)
    for row in bins:
        close(row)
    return rows.tobytes()


def corpus(seed: int, problems: int, length: int, folder: Path, processes: int) -> Tensor:
    """Return `(rows, length)` int16 of packed problems, the same for the same arguments.

    Args:
        seed: of the problems.
        problems: how many.
        length: tokens a row.
        folder: holds tokenizer.json.
        processes: how many run at once; does not change the result.
    """
    job = 5000
    jobs = [
        (seed * 1_000_003 + i, min(job, problems - i * job), length, str(folder))
        for i in range(-(-problems // job))
    ]
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        parts = [
            torch.frombuffer(bytearray(part), dtype=torch.int16) for part in pool.imap(encoded_rows, jobs)
        ]
    return torch.cat(parts).view(-1, length)


def split(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return token ids `(B, T)` int64 and which belong to answers `(B, T)` bool, of rows int16."""
    wide = rows.long() & 0xFFFF
    return wide & (IN_ANSWER - 1), wide >= IN_ANSWER
