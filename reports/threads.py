"""Threads of real bugs, written `repository#number` in records, as links to where they were reported."""

from __future__ import annotations

import re

from markupsafe import Markup

from reports.text import clip, linked

OWNERS = {
    "DeepEP": "deepseek-ai/DeepEP",
    "TE": "NVIDIA/TransformerEngine",
    "NeMo-RL": "NVIDIA-NeMo/RL",
    "TRT-LLM": "NVIDIA/TensorRT-LLM",
    "aiter": "ROCm/aiter",
    "ao": "pytorch/ao",
    "compressed-tensors": "vllm-project/compressed-tensors",
    "cutlass": "NVIDIA/cutlass",
    "flashinfer": "flashinfer-ai/flashinfer",
    "sglang": "sgl-project/sglang",
    "vllm": "vllm-project/vllm",
}
"""Where the short names of harness/faults/bugs.toml live."""

_SHORT = re.compile(r"(?P<name>[A-Za-z][A-Za-z0-9-]{0,39})#(?P<number>[0-9]{1,7})")


def thread(value: object) -> Markup:
    """Return a thread as a link that loads nothing until it is followed; text that is no known thread stays text.

    GitHub leads `/issues/N` on to the pull request where N is one.
    """
    words = str(value)
    match = _SHORT.fullmatch(words)
    if match is None or match["name"] not in OWNERS:
        return linked(words) if isinstance(value, str) else clip(words, 200)
    address = f"https://github.com/{OWNERS[match['name']]}/issues/{match['number']}"
    return Markup('<a href="{}" rel="noreferrer noopener">{}</a>').format(address, words)
