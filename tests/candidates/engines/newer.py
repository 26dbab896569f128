"""The engines as a later version might be: what prepares the weights has another name."""

from __future__ import annotations

from typing import Any

from harness.candidates.engines.sglang_loader import SglangLoader
from harness.candidates.engines.vllm_loader import VllmLoader

_NAME = "process_weights_after_loading"


class _Newer:
    """A loader whose engine's quantization method was changed."""

    def __init__(self) -> None:
        super().__init__()
        (target,) = (each for each in self.called if each.endswith(_NAME))
        with self.engine.running():
            method: Any = self.engine.get(target.removesuffix(f".{_NAME}"))
        method.prepare_weights = vars(method)[_NAME]
        delattr(method, _NAME)


class Sglang(_Newer, SglangLoader):
    """SGLang."""


class Vllm(_Newer, VllmLoader):
    """vLLM."""
