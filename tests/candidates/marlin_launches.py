"""SGLang's real Python around its Marlin kernels on a CPU: only the two modules that it compiles are replaced.

What arrives at the kernel is read in the kernel's own order of scales and factors, and computed with its own roundings.
"""

from __future__ import annotations

import importlib.util
import sys
import types
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.candidates.marlin_package import GEMM, REPACK, engine
from reference.e2m1 import decode_e2m1, unpack_e2m1

_SCALES = [i + 8 * j for i in range(8) for j in range(8)]
"""marlin_permute_scales: the place that each of 64 columns comes from."""


@dataclass
class MarlinLaunches:
    """What arrived at the kernel, in order, by name."""

    launches: list[dict[str, Any]] = field(default_factory=list)


class _Repack:
    """The compiled module of gptq_marlin_repack: an order of its own, columns from the last one on."""

    def gptq_marlin_repack(
        self, b: Tensor, perm: Tensor, out: Tensor, size_k: int, size_n: int, bits: int
    ) -> None:
        assert (b.dtype, b.shape, bits, perm.numel()) == (torch.int32, (size_k // 8, size_n), 4, 0)
        assert out.shape == (size_k // 16, 2 * size_n)
        out.view(-1).copy_(b.flip(1).reshape(-1))


_NAMES = (
    "a", "c", "b_q_weight", "b_bias", "b_scales", "global_scale", "b_zeros", "g_idx", "perm", "workspace", "sorted_ids",
    "expert_ids", "used", "topk_weights", "a_tmp", "c_tmp", "block", "top_k", "weighted", "is_ep", "type_id", "m", "n",
    "k", "has_act_order", "has_bias", "is_k_full", "has_zp", "num_groups", "group_size", "atomic", "fp32_reduce",
    "is_zp_float",
)  # fmt: skip


class _Gemm:
    """The compiled module of the MoE GEMM."""

    def __init__(self, kept: MarlinLaunches) -> None:
        self._kept = kept

    def moe_wna16_marlin_gemm(self, *positional: Any) -> None:
        given = dict(zip(_NAMES, positional, strict=True))
        self._kept.launches.append(given)
        assert not any(
            given[name] for name in ("is_ep", "has_act_order", "has_bias", "has_zp", "is_zp_float")
        )
        assert given["is_k_full"]
        n, k, a, c = given["n"], given["k"], given["a"], given["c"]
        assert c.shape == (given["m"] * given["top_k"], n)
        assert a.shape == (given["m"], k)
        assert given["topk_weights"].numel() == len(c)
        assert int(given["workspace"].abs().sum()) == 0
        used, inactive = given["used"].tolist()
        assert (inactive, used % given["block"]) == (0, 0)
        blocks = given["sorted_ids"][:used].view(-1, given["block"]).long()
        experts = given["expert_ids"][: len(blocks)]
        assert bool((experts.diff() >= 0).all())  # sorted, as is certified
        for rows, expert in zip(blocks, experts.tolist(), strict=True):
            slots = rows[rows < len(c)]
            weights = self._weights(given, expert, n, k)
            sums = (a[slots // given["top_k"]].double() @ weights.T).float()
            factor = torch.ones((), dtype=torch.bfloat16)
            if given["global_scale"].numel():  # which is held times 2^119, and the weights times 2^-119
                factor = given["global_scale"][expert] * 2.0**-119
                sums = (sums * 2.0**-119).bfloat16().float() * 2.0**119
            sums = sums.bfloat16()
            if given["weighted"]:
                factor = given["topk_weights"].view(-1)[slots, None].bfloat16() * factor
            c[slots] = sums * factor

    def _weights(self, given: dict[str, Any], expert: int, n: int, k: int) -> Tensor:
        """Return weights `(n, k)` float64, out of the kernel's order."""
        packed = given["b_q_weight"][expert].reshape(k // 8, n).flip(1).T.contiguous()
        values = decode_e2m1(unpack_e2m1(packed.view(torch.uint8))).double()
        scales = _linear_scales(given["b_scales"][expert], n)
        assert given["group_size"] == k // scales.shape[1]
        return values * scales.double().repeat_interleave(given["group_size"], 1)


def _linear_scales(stored: Tensor, n: int) -> Tensor:
    """Return block scales `(n, k/block)` out of the order of the kernel's threads."""
    if stored.dtype == torch.float8_e4m3fn:  # S0E5M3: the upper bits of a float16 without a sign
        bits = stored.view(torch.uint8).to(torch.int32) << 7
        values = bits.to(torch.int16).view(torch.float16).float() * 2.0**-7
    else:
        values = stored.float()
    values = values.view(-1, 4)[:, [0, 2, 1, 3]].reshape(-1, 64)
    found = torch.empty_like(values)
    found[:, _SCALES] = values
    return found.view(-1, n).T


def replace_launches(monkeypatch: pytest.MonkeyPatch) -> MarlinLaunches:
    """Replace what needs a GPU, and give SGLang the number of a type that its kernel package has."""
    kept = MarlinLaunches()
    scalar_types = types.ModuleType("sgl_kernel.scalar_type")
    vars(scalar_types)["scalar_types"] = _scalar_types()
    monkeypatch.setitem(sys.modules, "sgl_kernel", types.ModuleType("sgl_kernel"))
    monkeypatch.setitem(sys.modules, "sgl_kernel.scalar_type", scalar_types)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda *_: types.SimpleNamespace(multi_processor_count=132)
    )
    sglang = engine(on_gpu=False)
    with sglang.running():
        for target, builder, made in (
            (GEMM, "_jit_moe_wna16_marlin_module", lambda *_: _Gemm(kept)),
            (REPACK, "_jit_gptq_marlin_repack_module", _Repack),
        ):
            sglang.get(target)
            monkeypatch.setattr(sys.modules[target.partition(":")[0]], builder, made)
    return kept


def _scalar_types() -> Any:
    """Return vLLM's types, which sglang-kernel's are a copy of, without the rest of vLLM."""
    spec = importlib.util.find_spec("vllm")
    assert spec is not None
    assert spec.origin is not None
    of_file = importlib.util.spec_from_file_location(
        "scalar_type_of_vllm", Path(spec.origin).parent / "scalar_type.py"
    )
    assert of_file is not None
    assert of_file.loader is not None
    module = importlib.util.module_from_spec(of_file)
    sys.modules[of_file.name] = module
    of_file.loader.exec_module(module)
    return module.scalar_types
