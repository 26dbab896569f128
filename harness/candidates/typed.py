"""For mypy alone: the stages of the built-in candidates and controls against the contract. Nothing imports this."""

from __future__ import annotations

from typing import TypeAlias

from harness.candidates.controls.catalog import StrictPhysical
from harness.candidates.controls.layer_variants import LayerVariant
from harness.candidates.controls.routed_variants import RoutedControl
from harness.candidates.controls.variant import Variant
from harness.candidates.eager import Eager
from harness.candidates.flashinfer_cutedsl import FlashInferCuteDsl
from harness.candidates.flashinfer_cutedsl_cpu import FlashInferCuteDslCpu
from harness.candidates.flashinfer_routed import (
    FlashInferFusedCuteDsl,
    FlashInferFusedCutlass,
    FlashInferFusedTrtllm,
)
from harness.candidates.over_ranks import OverRanks
from harness.candidates.physical import Physical
from harness.candidates.protocol import (
    Combine,
    Dispatch,
    LoadExperts,
    MaskedGroupedGemm,
    MaskedMoe,
    QuantizeGrouped,
    RoutedMoe,
    RouteTopk,
    SiluMulQuantizeGrouped,
)
from harness.candidates.sglang_cutedsl import SglangCuteDsl
from harness.candidates.vllm_cutedsl import VllmCuteDsl

_Kernels: TypeAlias = (
    Eager | Physical | StrictPhysical | Variant | LayerVariant | FlashInferCuteDsl | FlashInferCuteDslCpu
)


def _inner(of: _Kernels) -> tuple[QuantizeGrouped, SiluMulQuantizeGrouped, MaskedGroupedGemm]:
    return of.quantize_grouped, of.silu_mul_quantize_grouped, of.masked_grouped_gemm


def _layer(of: _Kernels | SglangCuteDsl | VllmCuteDsl) -> MaskedMoe:
    return of.masked_moe


def _routed(
    of: Eager
    | Physical
    | RoutedControl
    | FlashInferFusedCuteDsl
    | FlashInferFusedTrtllm
    | FlashInferFusedCutlass,
) -> RoutedMoe:
    return of.routed_moe


def _around(
    of: Eager | OverRanks | Physical | LayerVariant,
) -> tuple[RouteTopk, Dispatch, Combine, LoadExperts]:
    return of.route_topk, of.dispatch, of.combine, of.load_experts
