"""How the two GEMMs of a layer add along k, and where the second one is cast, found through masked_moe alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import torch

from harness.candidates.traits import VARIES
from harness.identification.activation import ALPHA
from harness.identification.layer_call import Layer
from harness.identification.layer_probe import COLUMNS, ROWS, Sums, exact_sums, first_sums, second_sums
from harness.judging.context import declared_summation
from harness.judging.predicted import orders_of
from harness.records.finding import Finding
from reference.matrix_units import Summation

FIRST, SECOND = "masked_moe, gemm1", "masked_moe, gemm2"
_FIRST_WIDTHS, _SECOND_WIDTHS = (320, 7168), (320, 1088)  # of which parts of whole tiles are of odd sizes
_NEAR = (320, 576)  # of candidates that are too slow for large ones
_UNITS = (
    "sm_100 mxf4nvf4", "sm_90 f16", "exact", "exact 64", "exact 32", "exact 16", "sm_80 f16", "fma",
)  # fmt: skip
_PLAIN = ("exact", "exact 64", "exact 32", "exact 16", "fma")  # in orders that need no register, nor a tree


@dataclass(frozen=True)
class LayerSums:
    """What was found.

    Attributes:
        summation: of both GEMMs, or None where they add in different ways or in none that is known.
        findings: an answer a point.
    """

    summation: Summation | None
    findings: list[Finding]


def find_sums(layer: Layer, rounded: torch.dtype | None) -> LayerSums:
    """Return how both GEMMs add.

    Args:
        layer: which is asked.
        rounded: type that a sum of the first GEMM has when it is quantized; None: not known, so that it is not asked.
    """
    traits = layer.traits
    if traits.summation == VARIES or not traits.deterministic or not traits.place_invariant:
        return LayerSums(None, [])
    declared = declared_summation(traits)
    outputs = {k: second_sums(layer, k) for k in _padded(layer, _SECOND_WIDTHS)}
    known = models(_FIRST_WIDTHS[-1])
    if declared:
        confirmed = all(sums.fits(declared) for sums in outputs.values())
        known = [declared, *(model for model in known if not confirmed or model.name == declared.name)]
    second = _fitting(outputs, known)
    if rounded is None:
        alone = _by_width(outputs, second, known)
        return LayerSums(None, [*_findings(SECOND, outputs, second, alone), cast_finding(layer)])
    hidden = {k: first_sums(layer, k, rounded) for k in _padded(layer, _FIRST_WIDTHS)}
    both = _fitting(hidden, second)
    if second:  # the same unit: a layer has one
        known = [model for model in known if model.name in {each.name for each in second}]
    first = both or _fitting(hidden, known)
    of_second, of_first = _by_width(outputs, second, known), _by_width(hidden, first, known)
    return LayerSums(
        both[0] if both else _modes(_in_both(of_second, of_first)),
        [
            *_findings(FIRST, hidden, first, of_first),
            *_findings(SECOND, outputs, second, of_second),
            cast_finding(layer),
        ],
    )


@cache
def models(k: int) -> list[Summation]:
    """Return all models that are tried, the simplest first, those with partial sums in bfloat16 last."""
    one_pass = [Summation(unit) for unit in _UNITS]
    orders = [order for plain in one_pass if plain.name != "exact" for order in orders_of(plain, k)[1:]]
    kept = [order for order in orders if order.name not in _PLAIN or not (order.promote or order.pairwise)]
    halves = [replace(order, partial="bfloat16") for order in kept if order.parts > 1 and not order.pairwise]
    return [*one_pass, *kept, *halves]


def _fitting(seen: dict[int, Sums], known: list[Summation]) -> list[Summation]:
    """Return the models that explain every output at every width; of partial sums in bfloat16 if no other does."""
    for kind in (False, True):
        left = [model for model in dict.fromkeys(known) if (model.partial != "float32") == kind]
        for k, sums in seen.items():
            orders = {model: (model.name, model.partial, model.order(k)) for model in left}
            single = {what: model for model, what in orders.items()}  # many orders are one at a small k
            fitting = {orders[model] for model in sums.fitting(list(single.values()))}
            left = [model for model in left if orders[model] in fitting]
        if left:
            return left
    return []


def _padded(layer: Layer, widths: Sequence[int]) -> list[int]:
    return sorted({layer.padded(k) for k in (widths if layer.traits.far else _NEAR)})


def _findings(
    stage: str, seen: dict[int, Sums], left: list[Summation], by_width: dict[int, list[Summation]]
) -> list[Finding]:
    """Return the answers about an order along k and about the type of partial sums."""
    where = ", ".join(f"{k:,}" for k in seen)
    evidence = f"{ROWS * COLUMNS} sums that cancel, at each k of {where}"
    changing = left[0] if left else _modes(by_width)
    if changing is None:
        return [Finding(stage, "order along k", "", (), evidence)]
    base, alike = replace(changing, later=()), tuple(map(str, left[1:]))
    later = [(k, mode) for k, mode in changing.later if mode]
    modes = tuple(f"{mode} at k {k:,}" for k, mode in later)
    partial = next((mode.partial for _, mode in later if mode.partial != "float32"), base.partial)
    return [
        Finding(stage, "order along k", str(base), alike, evidence, modes=modes),
        Finding(stage, "partial sums", partial, (), evidence, "float32"),
    ]


def _by_width(
    seen: dict[int, Sums], left: list[Summation], known: list[Summation]
) -> dict[int, list[Summation]]:
    """Return the models of each k: those that hold at every k, or else what explains this one, all of one unit."""
    if left:
        return dict.fromkeys(seen, left)
    found: dict[int, list[Summation]] = {}
    for k, sums in seen.items():
        found[k] = _fitting({k: sums}, known)
        known = [model for model in known if model.name in {each.name for each in found[k]}]
    return found


def _in_both(
    one: dict[int, list[Summation]], other: dict[int, list[Summation]]
) -> dict[int, list[Summation]]:
    """Return the models of the k of either; of a k of both those that are in both."""
    found = {**one, **other}
    for k in one.keys() & other.keys():
        found[k] = [model for model in one[k] if model in other[k]]
    return dict(sorted(found.items()))


def _modes(by_width: dict[int, list[Summation]]) -> Summation | None:
    """Return one summation that is as found at every k, and not known between two that differ; None where one is not known."""
    if not all(by_width.values()):
        return None
    (last, models), *others = by_width.items()
    later: list[tuple[int, Summation | None]] = []
    mode = base = models[0]
    for k, models in others:
        if mode not in models:
            mode = models[0]
            later += [(last + 1, None), (k, mode)]
        last = k
    return replace(base, later=tuple(later))


def cast_finding(layer: Layer) -> Finding:
    """Return whether the layer's output is rounded after it is multiplied by alpha."""
    sums, stored = exact_sums(layer, ALPHA)
    answers = {
        "after alpha": (sums * ALPHA).bfloat16(),
        "before alpha": (sums.bfloat16().float() * ALPHA).bfloat16(),
    }
    fitting = [name for name, value in answers.items() if torch.equal(value, stored)]
    evidence = f"all {sums.numel():,} outputs of sums that every order adds exactly"
    return Finding(SECOND, "cast", fitting[0] if fitting else "", (), evidence, "after alpha")
