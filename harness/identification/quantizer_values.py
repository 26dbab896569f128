"""What a quantizer does with NaN, infinities, zeros of either sign and block scales that are subnormal in E4M3."""

from __future__ import annotations

from dataclasses import replace

import torch

from harness.candidates.protocol import Traits
from harness.identification.quantizer_probe import Quantize, Questions, quantized, special_values
from harness.records.finding import Finding
from reference import e2m1, e4m3


def special_findings(stage: str, quantize: Quantize, traits: Traits) -> list[Finding]:
    """Return what is stored for NaN, infinities, zeros and subnormal block scales."""
    values = special_values()
    kinds = [
        kind for kind in values.kinds
        if not (traits.finite_only and ("NaN" in kind or "inf" in kind))
    ]  # fmt: skip
    x = values.x[[values.kinds.index(kind) for kind in kinds]]
    experts = traits.min_experts
    asked = Questions(x.expand(experts, -1, -1), torch.ones(experts))
    codes, block_scale = (t[0] for t in quantized(quantize, traits, asked))
    row = {kind: (x[i], codes[i], block_scale[i]) for i, kind in enumerate(kinds)}
    found = []
    if "NaN" in row:
        at, stored, scale = row["NaN"]
        answers = {
            "stored as code 7, not counted in amax": bool((stored[at.isnan()] == 7).all())
            and bool((scale == 0x38).all()),
            "counted in amax: block scale NaN": bool((scale == e4m3.NAN_BYTE).all()),
            "stored as zero": bool((stored[at.isnan()] & 7 == 0).all()) and bool((scale == 0x38).all()),
            "stored as code 15": bool((stored[at.isnan()] == 15).all()) and bool((scale == 0x38).all()),
        }
        found.append(_of_answers(stage, "NaN", answers))
    if "infinity" in row:
        (plus, of_plus, scale), (minus, of_minus, other) = row["infinity"], row["-infinity"]
        answers = {
            "saturates: block scale 448, code 7 or 15": bool((of_plus[plus.isinf()] == 7).all())
            and bool((of_minus[minus.isinf()] == 15).all())
            and bool((scale == e4m3.MAX_BYTE).all() & (other == e4m3.MAX_BYTE).all()),
            "block scale NaN": bool((scale == e4m3.NAN_BYTE).all()),
        }
        found.append(_of_answers(stage, "infinity", answers))
    at, stored, _ = row["zeros"]
    negative = stored[(at == 0) & at.signbit()]
    answers = {"kept": bool((negative == e2m1.SIGN_BIT).all()), "dropped": bool((negative == 0).all())}
    sign = _of_answers(stage, "sign of zero", answers)
    found.append(sign if traits.keeps_sign_of_zero else replace(sign, fixed=""))
    _, _, scale = row["subnormal"]
    answers = {"stored": bool((scale == 2).all()), "flushed to zero": bool((scale == 0).all())}
    flush = _of_answers(stage, "subnormal block scales", answers)
    found.append(flush if traits.keeps_subnormals else replace(flush, fixed=""))
    return found


def _of_answers(stage: str, point: str, answers: dict[str, bool]) -> Finding:
    """Return the answer that holds, the first being what the contract fixes."""
    evidence = "four blocks of the probe"
    return Finding(
        stage,
        point,
        next((a for a, holds in answers.items() if holds), ""),
        (),
        evidence,
        next(iter(answers)),
    )
