"""What is compiled: shapes of real models, the kernels' tiles, clusters and types, drawn shapes, and what must be refused.

The matrix is the same everywhere, so that runs can be compared with a stored baseline. Imports nothing heavy.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from harness.compile.case import ARCHITECTURES, CompileCase, make_case
from harness.problems.shapes import MODELS

# Ranks of expert parallelism that leave 8 to 32 experts on a rank, as deployments do.
_EP = {"deepseek-r1": 32, "deepseek-v3": 8, "kimi-k2": 48, "qwen3-235b": 8, "qwen3-30b": 4,
       "qwen3-coder-480b": 16, "qwen3-next-80b": 32, "gpt-oss-120b": 8, "gpt-oss-20b": 2}  # fmt: skip
_CAPACITY = 1024  # DeepEP's largest number of tokens a rank sends; the rows are masked, so the code hardly depends on it
_TILES = (("128x128", "1x1"), ("128x256", "1x1"), ("256x128", "2x1"), ("256x256", "2x1"))
_CLUSTERS = (
    ("128x128", "1x2"), ("128x128", "2x1"), ("128x128", "2x2"), ("128x128", "4x1"), ("128x128", "1x4"),
    ("128x128", "4x4"), ("128x256", "1x2"), ("128x256", "2x2"), ("256x128", "2x2"), ("256x128", "4x1"),
    ("256x256", "2x2"), ("256x256", "4x4"),
)  # fmt: skip
_MASKED = {"l": 8, "m": 256, "n": 1024, "k": 2048}
# Options of the masked GEMM around its default, NVFP4 to bfloat16 with alpha.
_VARIANTS: tuple[dict[str, int | str], ...] = (
    {},
    {"out": "float16"},
    {"out": "float32"},
    {"out": "float8_e4m3fn"},
    {"alpha": 0},
    {"swap": 1},
    {"swap": 1, "tile": "128x256"},
    {"swap": 1, "cluster": "2x1"},
    {"signals": 1},
    {"swap": 1, "ranks": 4},
    {"sf": "float8_e8m0fnu"},
    {"sf": "float8_e8m0fnu", "vec": 32},
    {"sf": "float8_e8m0fnu", "vec": 32, "tile": "256x128", "cluster": "2x1"},
    {"ab": "float8_e4m3fn", "sf": "float8_e8m0fnu", "vec": 32},
    {"ab": "float8_e5m2", "sf": "float8_e8m0fnu", "vec": 32},
    {"ab": "float8_e4m3fn", "sf": "float8_e8m0fnu", "vec": 32, "tile": "256x256", "cluster": "2x1"},
    {"out": "float32", "tile": "256x256", "cluster": "2x1"},
)
# Rows around a tile, reductions that end inside a tile of 256, few and many experts.
_EDGES: tuple[dict[str, int | str], ...] = (
    {"m": 1},
    {"m": 7},
    {"m": 127},
    {"m": 129},
    {"m": 384},
    {"k": 64},
    {"k": 96},
    {"k": 288},
    {"n": 8},
    {"n": 136},
    {"l": 1},
    {"l": 128},
    {"k": 288, "tile": "256x128", "cluster": "2x1", "m": 129},
)
# What the contract rules out: 16-byte rows of TMA, an even cluster for pairs of CTAs, at most 4 CTAs a side, block sizes
# of the instruction. A kernel that compiles one of these would misread memory or hang, so compiling one is a failure.
_GUARDS: tuple[tuple[str, dict[str, int | str]], ...] = (
    ("masked_gemm", {**_MASKED, "k": 2064}),
    ("masked_gemm", {**_MASKED, "n": 1020}),
    ("masked_gemm", {**_MASKED, "n": 1020, "out": "float32", "swap": 1, "m": 254}),
    ("masked_gemm", {**_MASKED, "tile": "64x128"}),
    ("masked_gemm", {**_MASKED, "tile": "128x64"}),
    ("masked_gemm", {**_MASKED, "tile": "256x128", "cluster": "1x1"}),
    ("masked_gemm", {**_MASKED, "tile": "256x256", "cluster": "1x2"}),
    ("masked_gemm", {**_MASKED, "cluster": "3x1"}),
    ("masked_gemm", {**_MASKED, "cluster": "8x1"}),
    ("masked_gemm", {**_MASKED, "cluster": "8x2"}),
    ("masked_gemm", {**_MASKED, "vec": 32}),
    ("masked_gemm", {**_MASKED, "ab": "float8_e4m3fn", "sf": "float8_e8m0fnu"}),
    ("masked_gemm", {**_MASKED, "ab": "float8_e4m3fn", "sf": "float8_e8m0fnu", "vec": 32, "k": 2056}),
    ("masked_gemm", {**_MASKED, "swap": 1, "ranks": 4, "tile": "128x256"}),
    ("masked_gemm", {**_MASKED, "ranks": 4}),
    ("nvfp4_quantize", {"k": 2056}),
    ("silu_mul_quantize", {"k": 2056}),
    ("silu_mul_quantize", {"k": 2048, "dtype": "float8_e4m3fn"}),
    ("mxfp4_quantize", {"k": 2064}),
    ("mxfp8_quantize", {"k": 2064}),
    ("moe_gemm1", {"n": 4160}),
    ("moe_gemm1", {"tile": "256x128", "cluster": "1x1"}),
    ("moe_gemm2", {"k": 2064}),
    ("moe_gemm2", {"tile": "64x128"}),
)


@dataclass(frozen=True)
class Entry:
    """A case with where it comes from, and whether it is there to be refused."""

    case: CompileCase
    origin: str
    guard: bool = False


def matrix(architectures: Iterable[str] = ARCHITECTURES) -> list[Entry]:
    """Return every case of these architectures; two origins of one case are joined."""
    found: dict[CompileCase, Entry] = {}
    for arch in architectures:
        for kernel, options, origin, guard in _all():
            case = make_case(kernel, arch, **options)
            first = found.get(case)
            if first is None:
                found[case] = Entry(case, origin, guard)
            elif origin not in first.origin.split(", "):
                found[case] = Entry(case, f"{first.origin}, {origin}", guard or first.guard)
    return list(found.values())


def drawn_shapes() -> list[dict[str, int]]:
    """Return the l, m, n, k that were drawn once from the property strategies (`draw.py`) and then kept."""
    kept = json.loads(Path(__file__).with_name("drawn.json").read_text(encoding="utf-8"))
    return [{name: int(value) for name, value in shape.items()} for shape in kept["shapes"]]


def _all() -> Iterator[tuple[str, dict[str, int | str], str, bool]]:
    yield from ((*item, False) for item in _masked())
    yield from ((*item, False) for item in _quantizers())
    yield from ((*item, False) for item in _fused())
    yield from ((kernel, options, "guard", True) for kernel, options in _GUARDS)


def _masked() -> Iterator[tuple[str, dict[str, int | str], str]]:
    for name, model in MODELS.items():
        experts = model.experts // _EP.get(name, 1)
        rows = {"l": experts, "m": _CAPACITY}
        for tile, cluster in _TILES:
            options: dict[str, int | str] = {"tile": tile, "cluster": cluster, **rows}
            yield "masked_gemm", {**options, "n": 2 * model.inter, "k": model.hidden}, f"{name} gate_up"
            yield "masked_gemm", {**options, "n": model.hidden, "k": model.inter}, f"{name} down"
    for tile, cluster in _CLUSTERS:
        yield "masked_gemm", {**_MASKED, "tile": tile, "cluster": cluster}, "cluster"
    for change in _VARIANTS:
        yield "masked_gemm", {**_MASKED, **change}, "variant"
    for change in _EDGES:
        yield "masked_gemm", {**_MASKED, **change}, "edge"
    for shape in drawn_shapes():
        yield "masked_gemm", dict(shape), "drawn"


def _quantizers() -> Iterator[tuple[str, dict[str, int | str], str]]:
    for name, model in MODELS.items():
        yield "nvfp4_quantize", {"k": model.hidden}, f"{name} tokens"
        yield "silu_mul_quantize", {"k": model.inter}, f"{name} intermediate"
    for layout in ("128x4", "8x4", "linear"):
        yield "nvfp4_quantize", {"k": 2048, "layout": layout}, "variant"
        yield "nvfp4_quantize", {"k": 2048, "layout": layout, "dtype": "float16"}, "variant"
        yield "nvfp4_quantize", {"k": 2048, "layout": layout, "per_token": 1}, "variant"
        yield "silu_mul_quantize", {"k": 2048, "layout": layout}, "variant"
        yield "mxfp4_quantize", {"k": 2880, "layout": layout}, "variant"
        yield "mxfp8_quantize", {"k": 2880, "layout": layout}, "variant"
    for change in ({"dtype": "float8_e4m3fn"}, {"fast": 0}, {"k": 16}, {"k": 48}):
        yield "nvfp4_quantize", {"k": 2048, **change}, "variant"
    for change in ({"dtype": "float16"}, {"fast": 0}, {"k": 16}):
        yield "silu_mul_quantize", {"k": 2048, **change}, "variant"


def _fused() -> Iterator[tuple[str, dict[str, int | str], str]]:
    # The tactics of FlashInfer's own tuner. Extents are run-time arguments of these kernels: one shape stands for all.
    for rows in (128, 256):
        pairs = f"{rows // 128}x1"
        for columns in (128, 256):
            tile = f"{rows}x{columns}"
            for quant in ("w4a4", "w4a8"):
                yield "moe_gemm1", {"tile": tile, "cluster": pairs, "quant": quant}, "tactic"
            for cluster in (pairs, f"{rows // 128}x2"):
                yield "moe_gemm2", {"tile": tile, "cluster": cluster}, "tactic"
        for columns in (64, 128, 192, 256):
            yield "moe_gemm2", {"tile": f"{rows}x{columns}", "cluster": pairs, "quant": "w4a8"}, "tactic"
    for topk in sorted({model.topk for model in MODELS.values()}):
        yield "moe_gemm1", {"topk": topk}, "topk"
    yield "moe_gemm1", {"activation": "relu2"}, "variant"
    yield "moe_gemm2", {"fused": 0}, "variant"
    yield "moe_gemm2", {"out": "float16"}, "variant"
