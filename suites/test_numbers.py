"""Numbers: each stage alone, judged element by element. The rules are in harness.rules."""

from __future__ import annotations

from collections.abc import Callable

CheckRule = Callable[[str], None]


def test_the_arithmetic_is_what_the_contract_fixes(check_rule: CheckRule) -> None:
    """DECLARED: what the contract fixes about the arithmetic holds, or is declared otherwise."""
    check_rule("DECLARED")


def test_quantized_scales_and_codes_are_legal(check_rule: CheckRule) -> None:
    """QUANT: every stored block scale and code is legal for its input."""
    check_rule("QUANT")


def test_activated_scales_and_codes_are_legal(check_rule: CheckRule) -> None:
    """ACT: every stored scale and code of bf16(silu(gate) * up) is legal."""
    check_rule("ACT")


def test_gemm_is_exact_or_within_its_bound(check_rule: CheckRule) -> None:
    """GEMM: every output is the exact result, or within its derived bound."""
    check_rule("GEMM")
