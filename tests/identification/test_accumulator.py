"""Measuring a candidate: the bits of accumulators that are known here, and honest words where the probe says nothing."""

from __future__ import annotations

import pytest
import torch

from harness.candidates import layouts
from harness.candidates.eager import Eager
from harness.candidates.physical import Physical
from harness.candidates.protocol import Traits
from harness.emulation.accumulate import aligned_gemm, blocked_gemm
from harness.identification.accumulator import _ARRANGEMENTS, _GAPS, _read, probe_accumulator
from harness.identification.measure import measure
from harness.identification.reciprocal import find_reciprocal
from reference.bounds import Accumulator
from reference.nvfp4 import decode_blocks


class Adds(Eager):
    """A GEMM whose accumulator is given."""

    def __init__(self, add, traits: Traits | None = None) -> None:
        super().__init__()
        self.add = add
        self.traits = traits or self.traits

    def masked_grouped_gemm(self, a, a_scale, b, b_scale, out, masked_m, alpha) -> None:
        operands = []
        for packed, scale in ((a, a_scale), (b, b_scale)):
            codes = layouts.codes_of(packed)
            stored = layouts.block_scales_of(scale, codes.shape[1], codes.shape[2] // 16)
            operands.append(decode_blocks(codes, stored, torch.float32))
        for expert in range(a.shape[2]):
            out[:, :, expert] = self.add(operands[0][expert], operands[1][expert]).to(out.dtype)


class GemmAlone:
    """The GEMM of a candidate, which has no other stage that could be asked something."""

    def __init__(self, candidate) -> None:
        self.traits, self.masked_grouped_gemm = candidate.traits, candidate.masked_grouped_gemm


def blocked(**words):
    return lambda a, b: blocked_gemm(a, b, **words)


@pytest.mark.parametrize("chunk", [16, 64, 512])
@pytest.mark.parametrize("bits", [14, 20, 23])
def test_the_bits_of_a_truncating_accumulator_are_found(bits: int, chunk: int) -> None:
    """Whatever enters an instruction together is added exactly, so a chunk of all products hides the truncation."""
    found = probe_accumulator(Adds(blocked(bits=bits, chunk=chunk)))
    if chunk == 512:
        assert found.bits == 24
    else:
        assert found.bits == bits
        assert found.words.startswith(f"{bits} bits, measured")


def test_a_float32_accumulator_keeps_24_bits_however_it_adds() -> None:
    for add in (
        blocked(bits=24, chunk=64),
        blocked(bits=24, chunk=1),
        blocked(chunk=16, rounding="nearest"),
        lambda a, b: a @ b.T,
    ):
        found = probe_accumulator(Adds(add))
        assert found.bits == 24
        assert found.words.startswith("24 bits or more")


def test_an_accumulator_of_more_than_24_bits_counts_as_24() -> None:
    """Sums up to 24 bits are what bit equality needs; the float32 output cannot show more."""
    assert probe_accumulator(Adds(lambda a, b: (a.double() @ b.double().T).float())).bits == 24


@pytest.mark.parametrize("window", [pytest.param(24, marks=pytest.mark.long), 26])
def test_the_window_that_an_instruction_aligns_its_terms_to_is_found(window: int) -> None:
    def add(a, b):
        return aligned_gemm(a, b, window=window)

    found = probe_accumulator(Adds(add))
    assert (found.bits, found.window) == (24, window)
    assert f"terms of one instruction keep {window} bits" in found.words


def test_a_probe_that_ended_the_process_before_is_left_out() -> None:
    calls = []
    measured = measure(Adds(lambda a, b: calls.append(1)), probe=False)
    assert calls == []
    assert not measured.known.accumulator.measured
    assert "ended or stopped the candidate's process" in measured.notes["accumulator"]


def test_one_arrangement_that_loses_bits_is_enough() -> None:
    """Split k: the halves are added in float32, but each of them in 14 bits."""

    def split(a, b):
        half = a.shape[1] // 2
        return blocked_gemm(a[:, :half], b[:, :half]) + blocked_gemm(a[:, half:], b[:, half:], bits=14)

    assert probe_accumulator(Adds(split)).bits == 14


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("accumulator_bf16", "no known accumulator keeps under 13"),
        ("accumulator_bf16@weakest", "no accumulator does that"),
        ("accumulator_fp16@1", "did not return s at L/s = 2^6"),
        ("small_scales_lost_by_gemm", "lost before anything was added"),
        ("small_scales_lost_by_gemm@1", "lost before anything was added"),
        ("subnormal_scales_decoded_as_normal@2", "lost before anything was added"),
    ],
)
def test_a_fault_that_looks_like_a_narrow_accumulator_does_not_widen_its_own_bound(fault, words) -> None:
    """It is judged as a float32 accumulator without demanding bit equality."""
    from harness.faults.named import plant

    measured = measure(GemmAlone(plant("physical", fault)))
    accumulator = measured.known.accumulator
    assert (accumulator.bits, accumulator.measured) == (24, False), measured.notes
    assert words in measured.notes["accumulator"]


def test_fewer_bits_than_any_known_unit_keeps_are_a_fault() -> None:
    found = probe_accumulator(Adds(blocked(bits=11, chunk=16)))
    assert found.bits == 0
    assert "no known accumulator keeps under 13" in found.words


def test_a_unit_that_aligns_terms_by_their_scales_is_measured_whatever_it_keeps() -> None:
    """Zeros under a large scale cost it bits in one arrangement; that is how it adds, and no fault."""
    kept = [27, 27, 9, *[27] * (len(_ARRANGEMENTS) - 3)]
    out, alone = (torch.zeros(len(kept) * len(_GAPS), 64, dtype=torch.float64) for _ in range(2))
    for column, (at, bits) in enumerate(zip(_ARRANGEMENTS, kept, strict=True)):
        for step, gap in enumerate(_GAPS):
            alone[column * len(_GAPS) + step, column] = 2.0 ** (at.exponent - gap)
            out[column * len(_GAPS) + step, column] = 2.0 ** (at.exponent - gap) * (gap < bits)
    assert _read(out, alone).bits == 9


@pytest.mark.parametrize(
    "broken",
    [
        lambda a, b: torch.zeros(a.shape[0], b.shape[0]),
        lambda a, b: 2 * (a @ b.T),
        lambda a, b: torch.full((a.shape[0], b.shape[0]), torch.nan),
        lambda a, b: (a @ b.T).roll(1, 0),
    ],
)
def test_a_broken_gemm_is_not_measured_and_bit_equality_is_not_demanded_of_it(broken) -> None:
    candidate = Adds(broken)
    found = probe_accumulator(candidate)
    assert found.bits == 0
    assert found.words.startswith("not measured: the probe L + s - L did not return s")
    assert measure(GemmAlone(candidate)).known.accumulator == Accumulator(24, 1, measured=False)


def test_a_gemm_that_raises_is_not_measured_and_still_judged(faulty) -> None:
    """The rules call it again and blame it with a problem; a start that fails would only say "cannot run here"."""
    measured = measure(faulty.Raises())
    assert not measured.known.accumulator.measured
    assert "not measured: masked_grouped_gemm raised KeyError" in measured.notes["accumulator"]


def test_a_candidate_without_a_gemm_is_not_measured(faulty) -> None:
    measured = measure(faulty.QuantizesOnly())
    assert not measured.known.accumulator.measured
    assert "no masked_grouped_gemm" in measured.notes["accumulator"]


def test_the_probe_keeps_to_the_declared_alignments_and_types() -> None:
    shapes = []

    def note(a, b):
        shapes.append((a.shape[0], b.shape[0], a.shape[1]))
        return a @ b.T

    traits = Traits(
        device="cpu", m_multiple=96, n_multiple=80, k_multiple=96, min_experts=3, out_dtypes=("bfloat16",)
    )
    assert probe_accumulator(Adds(note, traits)).bits == 24
    assert len(shapes) == 3
    assert all(m % 96 == n % 80 == k % 96 == 0 for m, n, k in shapes)


def test_physical_and_eager_are_measured_as_what_they_are() -> None:
    for candidate, chunk in ((Physical(), 64), (Eager(), 1)):
        found = measure(candidate).known.accumulator
        assert (found.bits, found.chunk, found.measured) == (24, chunk, True)


def test_a_candidate_that_gives_its_reciprocal_is_taken_at_its_word_and_others_keep_a_unit_of_freedom() -> (
    None
):
    own, words = find_reciprocal(Physical())
    assert own(torch.tensor([2.0])).item() == 0.5
    assert words.startswith("known")
    none, words = find_reciprocal(Adds(None, Traits(device="cpu")))
    assert none is None
    assert "not probed: no CUDA device" in words
