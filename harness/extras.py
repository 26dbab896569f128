"""Which packages each extra of this distribution brings, and the one message that says that some are missing.

Asks the import system without importing anything: a command that cannot run here says so before torch is loaded.
"""

from __future__ import annotations

import importlib.util
import warnings

DISTRIBUTION = "fp4-moe-harness"

_GSM8K = {"lm-eval": "lm_eval", "aiohttp": "aiohttp", "tenacity": "tenacity"}

EXTRAS = {
    "gsm8k": _GSM8K,
    "canary": {**_GSM8K, "safetensors": "safetensors", "tokenizers": "tokenizers"},
    "capture": {"safetensors": "safetensors"},
    "cluster": {"ray": "ray"},
    "cutedsl": {"flashinfer-python": "flashinfer", "nvidia-cutlass-dsl": "cutlass", "numpy": "numpy"},
    "hopper": {"humming-kernels": "humming"},
    "sglang": {"sglang": "sglang"},
    "vllm": {"vllm": "vllm"},
}
"""Extra of pyproject.toml -> distribution -> the module that is imported of it."""


class MissingExtraError(ModuleNotFoundError):
    """Something needs an extra that is not installed. The command line prints it in one line and exits 2, UNKNOWN.

    Args:
        who: what needs it, as the user knows it: "harness gsm8k".
        extra: its name, a key of EXTRAS.
    """

    def __init__(self, who: str, extra: str) -> None:
        super().__init__(missing(who, extra) or f"{who} needs its extra; run: {install_hint(extra)}")


def install_hint(extra: str) -> str:
    """Return the command that installs an extra, as a shell takes it."""
    return f"pip install '{DISTRIBUTION}[{extra}]'"


def missing(who: str, extra: str) -> str:
    """Return the sentence that says what of an extra is not installed and how to get it, "" where nothing is missing.

    Args:
        who: what needs it, as the user knows it: "harness gsm8k".
        extra: its name, a key of EXTRAS.
    """
    absent = [name for name, module in EXTRAS[extra].items() if importlib.util.find_spec(module) is None]
    if not absent:
        return ""
    verb = "is" if len(absent) == 1 else "are"
    return f"{who} needs {', '.join(absent)}, which {verb} not installed; run: {install_hint(extra)}"


def require(who: str, extra: str) -> None:
    """Check that an extra is installed.

    Raises:
        MissingExtraError: it is not; the message is that of `missing`.
    """
    if missing(who, extra):
        raise MissingExtraError(who, extra)


def accept_no_numpy() -> None:
    """Silence torch's warning that it found no numpy, from here on: no tensor of the harness's own becomes an array."""
    warnings.filterwarnings("ignore", "Failed to initialize NumPy", UserWarning)
