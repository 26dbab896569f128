"""The child process that a candidate runs in: reads problems, answers judgements, one JSON object a line.

Started by harness.running.session.Child; not for use by hand.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import signal
import sys
import traceback
from typing import Any

from harness.verdict import UsageError


class NotSupportedError(Exception):
    """The candidate says that it cannot run here."""


def main(argument: str) -> None:
    """Serve judgements until the parent closes the pipe.

    Args:
        argument: JSON with candidate, threads, memory_gib, and the pipe descriptors commands and answers.
    """
    settings = json.loads(argument)
    _end_with_the_parent()
    faulthandler.enable()
    answers = os.fdopen(settings["answers"], "w", encoding="utf-8")

    def answer(message: dict[str, Any]) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    try:
        candidate = _loaded(settings)
        answer({"status": "loaded"})
        judge = _ready(candidate, settings)
    except NotSupportedError as error:
        answer({"status": "failed", "error": str(error)})
        return
    except UsageError as error:
        answer({"status": "usage", "error": str(error)})
        return
    except Exception as error:  # noqa: BLE001 - any reason why a candidate does not start is the answer
        answer({"status": "failed", "error": f"{type(error).__name__}: {error}"})
        return
    answer({"status": "ready", "description": judge.describe()})
    with os.fdopen(settings["commands"], encoding="utf-8") as commands:
        for line in commands:
            command = json.loads(line)
            try:
                if "diagnose" in command:
                    found = judge.diagnose(command["rule"], command["problem"], command["diagnose"])
                    result = {"status": "diagnosed", "diagnosis": found}
                else:
                    result = judge.judge(command["rule"], command["problem"])
            except Exception:  # noqa: BLE001 - a defect of the harness: reported as such, with its trace
                result = {"status": "internal", "error": traceback.format_exc()}
            answer(result)
            if result["status"] == "crashed":
                return  # the CUDA context is lost: only a new process helps


def _end_with_the_parent() -> None:
    """Have the kernel kill this process when its parent dies, so that a hanging candidate never keeps a GPU (Linux)."""
    import ctypes

    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _loaded(settings: dict[str, Any]) -> Any:
    from harness.candidates import support_of
    from harness.faults.named import load_named

    candidate = load_named(settings["candidate"])
    support = support_of(candidate)
    if not support:
        raise NotSupportedError(support.reason)
    return candidate


def _ready(candidate: Any, settings: dict[str, Any]) -> Any:
    from harness.running.judge import Judge

    if settings["memory_gib"]:
        import resource

        limit = int(settings["memory_gib"] * 2**30)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    return Judge(candidate, threads=settings["threads"], probe=settings["probe"])


if __name__ == "__main__":
    main(sys.argv[1])
