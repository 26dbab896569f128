"""Why a problem is none for a candidate. Imports no torch."""

from __future__ import annotations

from harness.candidates.protocol import Traits
from harness.problems.problem import Problem
from harness.rules import Rule


def misfit(problem: Problem, rule: Rule, traits: Traits) -> str:
    """Return why the problem asks for something that the candidate does not claim to take, or ""."""
    step = traits.width_multiple
    for name in ("hidden", "inter"):
        if getattr(problem, name) % step:
            return f"{name} {getattr(problem, name)} is not a multiple of {step}"
    if problem.capacity % traits.m_multiple:
        return f"capacity {problem.capacity} is not a multiple of {traits.m_multiple}"
    if problem.experts < traits.min_experts:
        return f"{problem.experts} experts are fewer than {traits.min_experts}"
    options = rule.drawn.options  # what the rule draws it also asks of the candidate
    if "relu2" in options and problem.activation not in traits.activations:
        return f"activation {problem.activation} is none of {', '.join(traits.activations)}"
    if {"float32_out", "float16_out"} & set(options) and problem.out_dtype not in traits.out_dtypes:
        return f"output type {problem.out_dtype} is none of {', '.join(traits.out_dtypes)}"
    return ""
