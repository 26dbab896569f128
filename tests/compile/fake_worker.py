"""A worker without torch: answers at once, by the number of rows. `python fake_worker.py ARCH LOG`."""

import json
import os
import sys
import time
from pathlib import Path

ARCH, LOG = sys.argv[1:3]


def say(message):
    print(json.dumps(message), flush=True)


with Path(LOG).open("a") as log:
    log.write(f"start {ARCH} {os.getpid()}\n")
mode = os.environ.get("FAKE_START", "")
if mode == "dies":
    sys.exit("no space left on device")
say({"ready": not mode, "ours": mode == "ours", "reason": "cutlass has no cute.compile"})
for line in sys.stdin:
    case = json.loads(line)["case"]
    assert f"@{ARCH}," in case, "a case of another architecture"
    assert os.environ["CUTE_DSL_ARCH"] == ARCH
    assert "CUTE_DSL_LINEINFO" not in os.environ
    with Path(LOG).open("a") as log:
        log.write(f"case {case}\n")
    if "m=101," in case:
        print("LLVM ERROR", file=sys.stderr, flush=True)
        os.abort()
    if "m=102," in case:
        time.sleep(3600)
    if "m=104," in case:
        sys.exit(3)
    say(
        {
            "status": "compiled",
            "registers": 7,
            "effort": float(os.environ.get("FAKE_EFFORT", "300")),
            "cpu_seconds": 2.0,
            "measured": 1,
        }
    )
