"""Which DeepEP is installed and what it can do, read from its signatures. Imports neither torch nor deep_ep at its top."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import inspect
from dataclasses import dataclass
from typing import Any

from harness.ranks.errors import NoBuildError

PACKAGE = "deep_ep"
_DISTRIBUTIONS = ("deep_ep", "deep-ep", "sgl-deep-ep")
HIDDEN_SIZES = (2048, 2560, 4096, 5120, 6144, 7168, 8192)
"""Widths that every build of the low-latency kernels has (SWITCH_HIDDEN of its launch.cuh; newer ones have 3072 too)."""
MOST_TOPK = 11
MOST_TOKENS = 1024
"""Of a rank: more could end the wait of its send counters too early (FINISHED_SUM_TAG in internode_ll.cu)."""
ROW_MULTIPLE = 4
"""Of ranks * max_tokens."""
ELASTIC_HIDDEN_SIZES = (2048, 2560, 4096, 7168)
"""Any multiple of 256 would do for ElasticBuffer; each is compiled for itself, for every number of experts and top-k."""
ELASTIC_TRANSPORTS = ("bf16", "fp8", "fp8-rounded")
"""Its caller encodes FP8."""


@dataclass(frozen=True)
class Build:
    """What the installed package offers.

    Attributes:
        version: of the distribution or of the module, "" where neither says.
        dispatch: parameters of Buffer.low_latency_dispatch.
        combine: parameters of Buffer.low_latency_combine.
    """

    version: str
    dispatch: frozenset[str]
    combine: frozenset[str]

    @property
    def transports(self) -> tuple[str, ...]:
        """What dispatch can send."""
        found = ["bf16"]
        if "use_fp8" in self.dispatch:
            found.append("fp8")
        if {"use_nvfp4", "x_global_scale"} <= self.dispatch:
            found.append("nvfp4")
        if {"use_fp8", "round_scale"} <= self.dispatch:
            found.append("fp8-rounded")
        if {"use_fp8", "round_scale", "use_ue8m0"} <= self.dispatch:
            found.append("fp8-ue8m0")
        return tuple(found)

    @property
    def combine_transports(self) -> tuple[str, ...]:
        """How combine can bring rows back."""
        return ("bf16", "logfmt") if "use_logfmt" in self.combine else ("bf16",)

    @property
    def styles(self) -> tuple[str, ...]:
        """Ways to call it that must not change a result; a style that only combine has leaves dispatch plain."""
        found = ["plain"]
        if "return_recv_hook" in self.dispatch & self.combine:
            found.append("hook")
        if "async_finish" in self.dispatch & self.combine:
            found.append("asynchronous")
        if "zero_copy" in self.combine:
            found.append("zero copy")
        return tuple(found)


def find_build() -> Build:
    """Return what is installed.

    Raises:
        NoBuildError: nothing, something that cannot be imported, or another package of that name.
    """
    module = _imported()
    buffer = getattr(module, "Buffer", None)
    calls = [getattr(buffer, name, None) for name in ("low_latency_dispatch", "low_latency_combine")]
    if not all(map(callable, calls)):
        raise NoBuildError("this deep_ep has no Buffer with low_latency_dispatch and low_latency_combine")
    dispatch, combine = (frozenset(inspect.signature(call).parameters) for call in calls if call)
    return Build(_version(module), dispatch, combine)


def find_elastic() -> str:
    """Return the version of what is installed, which has the ElasticBuffer of 2.x.

    Raises:
        NoBuildError: as find_build, or a deep_ep without it.
    """
    module = _imported()
    dispatch = getattr(getattr(module, "ElasticBuffer", None), "dispatch", None)
    if dispatch is None or "do_expand" not in inspect.signature(dispatch).parameters:
        raise NoBuildError(
            "this deep_ep has no ElasticBuffer whose dispatch takes do_expand: it came with 2.x"
        )
    return _version(module) or "of no version"


def _imported() -> Any:
    if importlib.util.find_spec(PACKAGE) is None:
        raise NoBuildError("needs the package deep_ep, which is not installed (docs/deepep.md)")
    try:
        return importlib.import_module(PACKAGE)
    except Exception as error:
        words = str(error).splitlines()[0] if str(error) else ""
        built = (
            "; it was built for another torch or CUDA" if isinstance(error, (ImportError, OSError)) else ""
        )
        raise NoBuildError(f"deep_ep cannot be imported: {type(error).__name__}: {words}{built}") from error


def _version(module: Any) -> str:
    for name in _DISTRIBUTIONS:
        try:
            return f"{name} {importlib.metadata.version(name)}"
        except importlib.metadata.PackageNotFoundError:
            continue
    return str(getattr(module, "__version__", ""))
