"""What a candidate computes, found once before it is judged: what to judge by, and the findings for its author."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from harness.candidates.errors import in_words
from harness.candidates.protocol import stages_of, traits_of
from harness.candidates.through_routed import as_masked
from harness.candidates.witness import asked_of, ran_of
from harness.candidates.witness import in_words as in_words_of_kernel
from harness.identification import activation
from harness.identification.activation import activation_findings
from harness.identification.fingerprint import fingerprint_of
from harness.identification.gemm import gemm_findings, judged_epilogue
from harness.identification.layer import find_layer, is_opaque
from harness.identification.quantizer import QuantizerFound, as_quantizer, find_quantizer, of_both
from harness.identification.quantizer_probe import Quantize
from harness.identification.reciprocal import find_reciprocal
from harness.judging.context import Known, device_is_lost
from harness.judging.known import narrow_accumulator
from harness.records.finding import Finding
from harness.verdict import UsageError
from reference.bounds import Accumulator
from reference.legal import Arithmetic

_PROBE_ENDED = "not measured: a probe ended or stopped the candidate's process"
_T = TypeVar("_T")


@dataclass(frozen=True)
class Measured:
    """What probing found.

    Attributes:
        known: what to judge by.
        notes: in words, for the record, by what was measured.
        findings: one a question, for `harness identify` and DECLARED.
        fingerprint: hash of the findings and of outputs on a fixed set of operands; "" where there is none.
    """

    known: Known
    notes: dict[str, str]
    findings: list[Finding] = field(default_factory=list)
    fingerprint: str = ""


_KEPT: WeakKeyDictionary[Any, Measured] = WeakKeyDictionary()


def measured(candidate: Any) -> Measured:
    """Return what was found about a candidate, found now where nothing was yet."""
    return _kept(candidate) or measure(candidate)


def _kept(candidate: Any) -> Measured | None:
    try:
        return _KEPT.get(candidate)
    except TypeError:  # it has no hash, or takes no weak reference
        return None


def measure(candidate: Any, *, probe: bool = True) -> Measured:
    """Probe a candidate.

    Args:
        candidate: an object of the candidate protocol that can run here.
        probe: False to call none of its stages, because that has ended the process before.

    Returns:
        What is known now. Whatever could not be measured stays as declared, and the notes say why.
    """
    found = _Probing(candidate, probe).measured()
    with suppress(TypeError):
        _KEPT[candidate] = found
    return found


class _Probing:
    """One candidate, asked one thing after the other."""

    def __init__(self, candidate: Any, probe: bool) -> None:
        self._candidate, self._probe = as_masked(candidate), probe
        self._traits, self._stages = traits_of(candidate), stages_of(self._candidate)
        self._notes: dict[str, str] = {}
        self._findings: list[Finding] = []

    def measured(self) -> Measured:
        known = Known.declared(self._traits)
        if "masked_grouped_gemm" in self._stages:
            known = self._gemm(known)
        else:
            self._notes["accumulator"] = (
                "not measured: the candidate has no masked_grouped_gemm; bit equality is not demanded"
            )
        known = replace(known, arithmetic=self._reciprocal(known.arithmetic))
        if self._traits.activation_format != "nvfp4":
            self._notes["quantizers"] = f"not asked: they are those of {self._traits.activation_format}"
        elif self._traits.power_scales:
            self._notes["quantizers"] = "not asked: encode scales of the probes are no powers of two"
        else:
            known = self._layer(known) if is_opaque(self._candidate) else self._quantizers(known)
        fingerprint = (
            self._answer("fingerprint", lambda: fingerprint_of(self._candidate, self._findings)) or ""
        )
        if fingerprint:
            self._notes["fingerprint"] = fingerprint
        if asked := asked_of(self._candidate):
            self._notes["asked of its package"] = in_words_of_kernel(asked)
        ran_of(self._candidate)  # those of the probes: the rules count their own
        if warning := getattr(self._candidate, "warning", ""):
            self._notes["warning"] = str(warning)
        return Measured(known, self._notes, self._findings, fingerprint)

    def _gemm(self, known: Known) -> Known:
        """Return what is known with what was found about masked_grouped_gemm."""
        if not self._probe:
            self._notes |= {"summation": _PROBE_ENDED, "accumulator": _PROBE_ENDED}
            return replace(known, summation=None)
        found = self._answer("gemm", lambda: gemm_findings(self._candidate))
        if found is None:
            return replace(known, summation=None)
        self._findings += found.findings
        self._notes |= found.notes
        probed = found.accumulator
        if probed.bits:
            accumulator = Accumulator(
                probed.bits, self._traits.accumulator_chunk, measured=True, window=probed.window
            )
        else:
            # As found: a unit that is only declared would excuse what it does not explain.
            wide = Accumulator(chunk=self._traits.accumulator_chunk)
            accumulator = narrow_accumulator(found.summation) or wide
        epilogue = judged_epilogue(found.epilogue, self._traits.deviations)
        return replace(known, accumulator=replace(accumulator, epilogue=epilogue), summation=found.summation)

    def _reciprocal(self, arithmetic: Arithmetic) -> Arithmetic:
        """Return how scales and codes are computed as declared, with the device's reciprocal where it is known."""
        if arithmetic.kind != "fast":
            return arithmetic
        reciprocal, self._notes["reciprocals"] = find_reciprocal(self._candidate)
        return replace(arithmetic, reciprocal=reciprocal)

    def _quantizers(self, known: Known) -> Known:
        """Return what is known with what was found about quantize_grouped and silu_mul_quantize_grouped."""
        found = [
            self._quantizer(stage, quantizer_of, known.arithmetic)
            for stage, quantizer_of in (
                ("quantize_grouped", as_quantizer),
                ("silu_mul_quantize_grouped", activation.as_quantizer),
            )
            if stage in self._stages and (stage == "quantize_grouped" or self._traits.gated == "silu")
        ]
        present = [each for each in found if each is not None]
        if present:
            known = replace(known, arithmetic=of_both(present[0], present[-1]))
        if "silu_mul_quantize_grouped" in self._stages and self._traits.gated == "silu":
            self._activation()
        return known

    def _quantizer(
        self, stage: str, quantizer_of: Callable[[Any], Quantize], arithmetic: Arithmetic
    ) -> QuantizerFound | None:
        found = self._answer(
            f"quantizer of {stage}",
            lambda: find_quantizer(stage, quantizer_of(self._candidate), self._traits, arithmetic),
        )
        if found is None:
            return None
        self._findings += found.findings
        self._notes[f"quantizer of {stage}"] = found.words
        if arithmetic.reciprocal is not None and found.arithmetic.reciprocal is None:
            self._notes["reciprocals"] += (
                f", but {stage} uses another: next to a rounding boundary two codes are legal"
            )
        return found

    def _activation(self) -> None:
        """Add what was found about the activation: of a stage, what it hands to the quantizer has the type that it declares."""
        fixed = "float32" if "hidden" in self._traits.unrounded else "bfloat16"
        for finding in self._answer("activation", lambda: activation_findings(self._candidate)) or []:
            self._findings.append(replace(finding, fixed=fixed) if finding.point == "hidden" else finding)

    def _layer(self, known: Known) -> Known:
        """Return what is known with what was found about the hidden stages of a layer, through masked_moe."""
        found = self._answer("layer", lambda: find_layer(self._candidate, known.arithmetic))
        if found is None:
            return known
        self._findings += found.findings
        self._notes["summation"] = (
            f"{found.summation}: gives every bit of the probes through masked_moe"
            if found.summation
            else "not known of both GEMMs of the layer; the bound judges"
        )
        if found.unrounded != known.unrounded:
            said = [", ".join(names) or "nothing" for names in (known.unrounded, found.unrounded)]
            self._notes["unrounded"] = f"declared {said[0]}, found {said[1]}: judged as found"
        return replace(
            known, arithmetic=found.arithmetic, summation=found.summation, unrounded=found.unrounded
        )

    def _answer(self, what: str, ask: Callable[[], _T]) -> _T | None:
        """Return an answer, or None with the reason in the notes where the candidate raises: the rules will say so of a problem."""
        if not self._probe:
            self._notes[what] = _PROBE_ENDED
            return None
        try:
            return ask()
        except UsageError:
            raise
        except (Exception, SystemExit) as error:
            if device_is_lost(error):
                raise
            self._notes[what] = f"not measured: the candidate raised {in_words(error)}"
            return None
