"""Packages that are imported when they are used: nobody who imports them sees a difference."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def in_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return done.stdout.strip()


def test_a_task_is_loaded_without_what_lm_eval_imports_in_vain():
    loaded = in_python(
        "import sys; from harness.gsm8k.task import load_task\n"
        "task = load_task('gsm_canary'); task.score(task.questions[0], '#### 1')\n"
        "print([name for name in ('requests.api', 'sacrebleu.metrics', 'chardet') if name in sys.modules])"
    )
    assert loaded == "[]"


def test_a_later_import_gets_the_real_package():
    printed = in_python(
        "import importlib.util, sys; from harness.gsm8k.lazy import import_when_used\n"
        "import_when_used('email', 'wave', 'no_such_package')\n"
        "assert importlib.util.find_spec('wave') is not None and 'no_such_package' not in sys.modules\n"
        "import email.message, wave as later\n"
        "from wave import open as direct\n"
        "print(email.message.Message.__name__, later.open is direct, sys.modules['wave'].open is direct)"
    )
    assert printed == "Message True True"
