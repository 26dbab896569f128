"""What a candidate's contract leaves out of the values that the path takes, in words."""

from __future__ import annotations

from harness.candidates.traits import Traits

TRANSPORTS = ("bf16", "fp8", "nvfp4")
"""That dispatch can send whoever it is; others only where they are declared."""


def out_of_contract(traits: Traits) -> list[str]:
    """Return what a candidate's contract leaves out of the values that the path takes, for a verdict: not tested."""
    said = {
        "NaN and infinities": traits.finite_only,
        "subnormal numbers": not traits.keeps_subnormals,
        "the sign of zero": not traits.keeps_sign_of_zero,
        "a GEMM without alpha": traits.alpha_required,
        "alphas and encode scales that are no powers of two": traits.power_scales,
        "checkpoints that lack a scale": traits.complete_only,
    }
    if traits.least_scale:
        said[f"tokens whose scales are below {traits.least_scale:g}"] = True
    if traits.most_alpha:
        said[f"alphas of {traits.most_alpha:g} and more"] = True
    lacking = [f"dispatch by {name}" for name in TRANSPORTS if name not in traits.transports]
    return [what for what, is_out in said.items() if is_out] + lacking
