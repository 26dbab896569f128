"""Whether a problem is one that a candidate claims to take. Imports no torch."""

from __future__ import annotations

from dataclasses import replace

from harness.candidates.protocol import Traits
from harness.problems.problem import Problem
from harness.problems.traps import TRAPS
from harness.rules import Rule


def misfit(problem: Problem, rule: Rule, traits: Traits) -> str:
    """Return why the problem asks for something that the candidate does not claim to take, or ""."""
    return _of_extents(problem, traits) or _of_options(problem, rule, traits) or _of_values(problem, traits)


def _of_extents(problem: Problem, traits: Traits) -> str:
    step = traits.width_multiple
    for name in ("hidden", "inter"):
        if getattr(problem, name) % step:
            return f"{name} {getattr(problem, name)} is not a multiple of {step}"
    if problem.capacity % traits.m_multiple:
        return f"capacity {problem.capacity} is not a multiple of {traits.m_multiple}"
    if problem.experts < traits.min_experts:
        return f"{problem.experts} experts are fewer than {traits.min_experts}"
    if problem.experts > traits.at_most_experts(problem.experts):
        return f"{problem.experts} experts are more than {traits.max_experts}"
    return ""


def _of_options(problem: Problem, rule: Rule, traits: Traits) -> str:
    options = rule.drawn.options  # what the rule draws it also asks of the candidate
    wanted = "relu2" if problem.activation == "relu2" else traits.gated
    if "relu2" in options and wanted not in traits.activations:
        return f"activation {problem.activation} is none of {', '.join(traits.activations)}"
    if {"float32_out", "float16_out"} & set(options) and problem.out_dtype not in traits.out_dtypes:
        return f"output type {problem.out_dtype} is none of {', '.join(traits.out_dtypes)}"
    if "prequantized" in options and "prequantized" in problem.extras and traits.without_scales:
        return f"prequantized: {traits.activation_format} has no scales to come with it"
    if "no_alpha" in options and "no_alpha" in problem.extras and traits.alpha_required:
        return "no_alpha: the candidate declares alpha_required"
    return ""


def _of_values(problem: Problem, traits: Traits) -> str:
    for name in sorted(problem.extras & TRAPS.keys()):
        trap = TRAPS[name]
        if traits.finite_only and not trap.finite:
            return f"{name}: {trap.sentence}; the candidate declares finite_only"
        if not trap.in_contract(replace(traits, finite_only=False, keeps_subnormals=True)):
            formats = f"{traits.activation_format} with {traits.weight_format}"
            return f"{name}: {trap.sentence}; the candidate multiplies {formats}"
        if trap.subnormal and not traits.keeps_subnormals:
            return f"{name}: {trap.sentence}; the candidate declares keeps_subnormals=False"
    return ""
