"""FlashInfer's real Python layer of its fused layers on a CPU: only the launches and the device queries are replaced.

Each stand-in reads what arrives where the compiled code would be called, in the kernel's own order of rows and scales, and
computes the layer as `eager` does.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import inspect
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.candidates import layouts
from harness.candidates.cutedsl_support import import_quietly
from harness.candidates.eager import EagerKernels
from harness.candidates.engines.stubs import Stubs
from harness.candidates.fused_weights import Matrix
from reference.e2m1 import pack_e2m1
from reference.formats import FORMATS
from reference.layout import unswizzle_128x4
from reference.weight_rows import of_turns, unshuffled

CORE, CUTEDSL = "flashinfer.fused_moe.core", "flashinfer.fused_moe.cute_dsl.fused_moe"
TUNER = "flashinfer.fused_moe.cute_dsl.tuner"


@dataclass
class Launch:
    """One launch: what it was given, by the names of the compiled op, and the layer that it computes."""

    given: dict[str, Any]
    activation: str
    final_sum: str


@dataclass
class FusedLaunches:
    """What arrived at the compiled layers, in order."""

    launches: list[Launch] = field(default_factory=list)

    def compute(
        self,
        given: dict[str, Any],
        first: Matrix,
        second: Matrix,
        activation: str,
        final_sum: str,
        formats: tuple[str, str],
        **routed: Any,
    ) -> None:
        """Compute the layer into `out`; `routed` are the rest of routed_moe's arguments."""
        self.launches.append(Launch(given, activation, final_sum))
        gated = "silu" if activation == "relu2" else activation
        activations, weights = formats
        eager = EagerKernels(
            activation_format=activations, weight_format=weights, k_multiple=128, activations=(gated, "relu2"),
            final_sum=final_sum,
        )  # fmt: skip

        def scales(matrix: Matrix) -> Tensor:
            return layouts.weight_scales(FORMATS[weights], matrix.scale)

        local = len(first.codes)
        for name in ("w1_alpha", "w2_alpha"):
            assert routed[name].shape == (local,)
            assert routed[name].dtype == torch.float32
        eager.routed_moe(
            w1=first.codes, w1_blockscale=scales(first), w2=second.codes, w2_blockscale=scales(second), activation=activation,
            input_global_scale=None if routed["hidden_states"][1] is not None else torch.ones(1), **routed,
        )  # fmt: skip


def text_of(limit: float | None, alpha: float | None, beta: float | None) -> str:
    """Return the activation with a gate that a kernel's numbers stand for, gate first."""
    parts = ["silu"]
    parts += [f"alpha {alpha:g}"] if alpha is not None and alpha != 1 else []
    parts += [f"beta {beta:g}"] if beta else []
    parts += [f"limit {limit:g}"] if limit is not None and limit < 1e30 else []
    return "; ".join(parts)


def parameters_of(module: str, name: str) -> list[str]:
    """Return the parameters of a function that is defined inside another one, read from the module's source."""
    source = Path(inspect.getsourcefile(importlib.import_module(module)) or "").read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef) and node.name == name and node.col_offset:
            return [each.arg for each in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
    raise AssertionError(f"{module} has no {name}")


class _Trtllm:
    """The compiled module of TRT-LLM-gen's layer."""

    def __init__(self, kept: FusedLaunches) -> None:
        self._kept = kept

    def trtllm_fp4_block_scale_moe(self, *positional: Any, **named: Any) -> list[Tensor]:
        names = parameters_of(CORE, "trtllm_fp4_block_scale_moe_op")
        given = dict(zip(names, positional, strict=False)) | named
        ids, weights = given["topk_ids"], given["topk_weights"]
        relu2 = given["activation_type"] == 6
        alpha, joint = given["output1_scale_gate_scalar"], given["output1_scale_scalar"]

        def matrix(number: int) -> Matrix:
            codes, scale = given[f"gemm{number}_weights"], given[f"gemm{number}_weights_scale"]
            assert scale.dtype == torch.float8_e4m3fn
            assert scale.shape == (*codes.shape[:2], codes.shape[2] // 8)
            linear = unswizzle_128x4(scale.view(torch.uint8), *scale.shape[1:])
            return Matrix(unshuffled(codes), unshuffled(linear))

        first = matrix(1)
        limit, factor, beta = given["gemm1_clamp_limit"], given["gemm1_alpha"], given["gemm1_beta"]
        folded = [None if part is None else float((part * alpha)[0]) for part in (limit, beta)]
        text = text_of(folded[0], None if factor is None else float(factor[0]), folded[1])
        assert given["hidden_states_scale"].dtype == torch.float8_e4m3fn
        assert given["num_local_experts"] == len(first.codes)
        assert given["intermediate_size"] == given["gemm2_weights"].shape[2] * 2
        assert given["top_k"] == ids.shape[1]
        assert (ids.dtype, weights.dtype) == (torch.int32, torch.float32)
        self._kept.compute(
            given, first if relu2 else _gate_and_up(first, 1), matrix(2), "relu2" if relu2 else text, "slots",
            ("nvfp4", "nvfp4"), hidden_states=(given["hidden_states"], given["hidden_states_scale"]), topk_idx=ids,
            topk_weights=weights, w1_alpha=alpha, a2_global_scale=joint if relu2 else joint / alpha,
            w2_alpha=given["output2_scale_scalar"], num_experts=given["num_experts"],
            local_expert_offset=given["local_expert_offset"], out=given["output"],
        )  # fmt: skip
        return [given["output"]]


class _Cutlass:
    """The compiled module of CUTLASS's layer."""

    def __init__(self, kept: FusedLaunches) -> None:
        self._kept = kept

    def cutlass_fused_moe(self, *positional: Any, **named: Any) -> Tensor:
        names = parameters_of(CORE, "cutlass_fused_moe")[: len(positional)]
        given = dict(zip(names, positional, strict=True)) | named
        a1, w1_sf, w1_alpha, a2, w2_sf, w2_alpha = given["quant_scales"]
        assert a1.shape == a2.shape == (1,)

        def matrix(name: str, scale: Tensor) -> Matrix:
            weights = given[name]
            assert (weights.dtype, scale.dtype) == (torch.int64, torch.int32)
            codes = weights.view(torch.uint8)
            return Matrix(
                codes, unswizzle_128x4(scale.view(torch.uint8), codes.shape[1], codes.shape[2] // 8)
            )

        first, second = matrix("fc1_expert_weights", w1_sf), matrix("fc2_expert_weights", w2_sf)
        relu2 = int(given["activation_type"]) == 6
        numbers = [given[f"swiglu_{name}"] for name in ("limit", "alpha", "beta")]
        text = text_of(*(None if number is None else float(number[0]) for number in numbers))
        assert given["swizzled_input_sf"] is False
        local = len(first.codes)
        self._kept.compute(
            given, first if relu2 else _gate_and_up(first, 0), second, "relu2" if relu2 else text,
            _final_sum(use_fused=given["use_fused_finalize"]), ("nvfp4", "nvfp4"),
            hidden_states=(given["input"], given["input_sf"]), topk_idx=given["token_selected_experts"],
            topk_weights=given["token_final_scales"], w1_alpha=w1_alpha, a2_global_scale=a2.expand(local).contiguous(),
            w2_alpha=w2_alpha, num_experts=given["ep_size"] * local, local_expert_offset=given["ep_rank"] * local,
            out=given["output"],
        )  # fmt: skip
        return given["output"]


def cutedsl(kept: FusedLaunches, given: dict[str, Any], formats: tuple[str, str]) -> Tensor:
    """Stand in for the launches of CuTe DSL's layer, whose arguments are known by name."""
    block = FORMATS[formats[1]].block

    def matrix(name: str) -> Matrix:
        codes, scale = given[name], given[f"{name}_sf"]
        rows, columns = codes.shape[1], codes.shape[2] * 2 // block
        tiles = -(-rows // 128), -(-columns // 4)
        assert scale.shape == (32, 4, tiles[0], 4, tiles[1], len(codes))
        return Matrix(codes, layouts.block_scales_of(scale, rows, columns))

    first = matrix("w1_weight")
    relu2 = int(given["activation_type"]) == 6
    scale = given.get("x_sf")
    a2 = given.get("fc2_input_scale")
    local = len(first.codes)
    kept.compute(
        given, first if relu2 else _gate_and_up(first, 64), matrix("w2_weight"),
        "relu2" if relu2 else text_of(given["swiglu_limit"], given["swiglu_alpha"], given["swiglu_beta"]),
        _final_sum(use_fused=given["use_fused_finalize"]), formats, hidden_states=(given["x"], scale),
        topk_idx=given["token_selected_experts"], topk_weights=given["token_final_scales"], w1_alpha=given["w1_alpha"],
        a2_global_scale=torch.ones(local) if a2 is None else a2.expand(local).contiguous(), w2_alpha=given["w2_alpha"],
        num_experts=given["num_experts"], local_expert_offset=given["local_expert_offset"], out=given["moe_output"],
    )  # fmt: skip
    return given["moe_output"]


def _gate_and_up(first: Matrix, turn: int) -> Matrix:
    """Return rows of gate first, of those in which up comes first, in turns of so many or, for 0, as halves."""
    parts = []
    for rows in (first.codes, first.scale):
        up, gate = of_turns(rows, turn or rows.shape[1] // 2)
        parts.append(torch.cat((gate, up), 1).contiguous())
    return Matrix(*parts)


def _final_sum(*, use_fused: bool) -> str:
    return "any; weight on rows; rounded each step" if use_fused else "slots"


class _Quantizers:
    """The compiled quantizers."""

    def fp4_quantize_sm100(
        self,
        x: Tensor,
        scale: Tensor,
        block: int,
        ue8m0: bool,
        swizzled: bool,
        in_8x4: bool,
        inverse: bool,
        *_: Any,
    ) -> tuple[Tensor, Tensor]:
        assert (block, ue8m0, swizzled, in_8x4, inverse) == (16, False, False, False, False)
        coded = FORMATS["nvfp4"].quantize(x.unsqueeze(0), scale)
        return pack_e2m1(coded.codes)[0], coded.block_scale.flatten()

    def mxfp8_quantize_sm100(self, x: Tensor, layout: Any, *_: Any) -> tuple[Tensor, Tensor]:
        assert layout.name == "layout_linear"
        coded = FORMATS["mxfp8_up"].quantize(x, None)
        return coded.codes.view(torch.float8_e4m3fn), coded.block_scale.flatten()


def replace_launches(monkeypatch: pytest.MonkeyPatch) -> FusedLaunches:
    """Put the stand-ins in the place of the launches, on a device that seems to be a B200."""
    kept = FusedLaunches()
    core = import_quietly(CORE)
    with Stubs(
        "flashinfer"
    ).installed():  # a kernel of another architecture needs triton, which has no build without CUDA
        fused, tuner = map(import_quietly, (CUTEDSL, TUNER))
    fp4, fp8 = (import_quietly(f"flashinfer.quantization.{name}_quantization") for name in ("fp4", "fp8"))
    for module in (core, fp4, fp8, tuner):
        if hasattr(module, "get_compute_capability"):
            monkeypatch.setattr(module, "get_compute_capability", lambda _: (10, 0))
        if hasattr(module, "device_support_pdl"):
            monkeypatch.setattr(module, "device_support_pdl", lambda _: False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (10, 0))
    monkeypatch.setattr(torch.cuda, "device", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(core, "get_trtllm_moe_sm100_module", lambda: _Trtllm(kept))
    monkeypatch.setattr(core, "get_cutlass_fused_moe_module", lambda *_: _Cutlass(kept))
    monkeypatch.setattr(fp4, "get_fp4_quantization_module", lambda *_: _Quantizers())
    monkeypatch.setattr(fp8, "get_mxfp8_quantization_sm100_module", _Quantizers)

    def launch(real: Any, formats: Any) -> Any:
        signature = inspect.signature(
            real
        )  # an argument that the package does not know raises TypeError here

        def call(*positional: Any, **named: Any) -> Tensor:
            bound = signature.bind(*positional, **named)
            bound.apply_defaults()
            given = dict(bound.arguments)
            return cutedsl(kept, given, formats(given))

        return call

    block_scaled = launch(
        fused._moe_core_impl,
        lambda given: ("nvfp4", "nvfp4") if given["x"].dtype == torch.uint8 else ("mxfp8_up", "mxfp4"),
    )
    monkeypatch.setattr(fused, "_moe_core_impl", block_scaled)
    monkeypatch.setattr(
        tuner, "launch_w4a16_moe", launch(tuner.launch_w4a16_moe, lambda _: ("bf16", "nvfp4"))
    )
    return kept
