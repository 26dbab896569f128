"""The interpreted candidate: what it says about known and unknown kernels, and FlashInfer's real kernel against exact arithmetic."""

from __future__ import annotations

import importlib.util
import random
from types import SimpleNamespace

import pytest
import torch

from harness.candidates import cutedsl_on_cpu, known_kernels, layouts
from harness.candidates.cutedsl_on_cpu import Smoke
from harness.candidates.flashinfer_cutedsl_cpu import HINTS, FlashInferCuteDslCpu
from harness.judging.gemm import judge_gemm
from reference.bounds import Accumulator
from reference.matrix_units import UNITS, Operand, matmul
from reference.nvfp4 import decode_blocks

SENTINEL = 13.0
ACCUMULATOR = Accumulator(24, 64, measured=True, window=27)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "cutlass" else True)
    assert "needs nvidia-cutlass-dsl, which is not installed" in FlashInferCuteDslCpu().support().reason


@pytest.fixture
def found(monkeypatch):
    """What the smoke problem and the fingerprints say, set by the test."""
    state = SimpleNamespace(problem="", gemm=next(iter(known_kernels.known()[known_kernels.GEMM])))
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: True)
    monkeypatch.setattr(cutedsl_on_cpu, "function_support", lambda _: True)
    monkeypatch.setattr(cutedsl_on_cpu, "smoke", lambda: Smoke(state.problem, ()))
    monkeypatch.setattr(cutedsl_on_cpu, "source_fingerprint", lambda _: state.gemm)
    monkeypatch.setattr(
        known_kernels, "installed_version", {"flashinfer-python": "9.9", "nvidia-cutlass-dsl": "9.8"}.get
    )
    return state


def test_known_kernels_run_whatever_the_version_and_say_nothing(found):
    candidate = FlashInferCuteDslCpu(quantizers="emulated")
    assert candidate.support()
    assert "not yet known" not in candidate.warning


def test_an_unknown_kernel_runs_after_its_smoke_problem_and_says_so(found):
    found.gemm = "0123456789abcdef"
    candidate = FlashInferCuteDslCpu(quantizers="emulated")
    assert candidate.support()
    assert candidate.warning.endswith(
        "; new version, not yet known: masked GEMM of flashinfer-python 9.9 (fingerprint 0123456789abcdef)"
    )


def test_a_failing_smoke_problem_is_the_reason_of_known_and_unknown_kernels(found):
    found.problem = "3 of 16384 elements differ from the exact result"
    reason = FlashInferCuteDslCpu().support().reason
    assert reason.endswith("its smoke problem failed: 3 of 16384 elements differ from the exact result")
    found.gemm = "0123456789abcdef"
    assert FlashInferCuteDslCpu().support().reason.startswith(f"{reason} (new version, not yet known: ")


def test_a_record_says_that_the_numbers_come_from_interpreted_ptx():
    assert FlashInferCuteDslCpu(quantizers="emulated").warning.startswith("interpreted PTX: ")
    assert "quantizers are emulated" in FlashInferCuteDslCpu(quantizers="emulated").warning
    assert "compiled by nvcc and interpreted" in FlashInferCuteDslCpu(quantizers="interpreted").warning


class Case:
    """One GEMM: operands, their decoded values, and the interpreted output."""

    def __init__(
        self, experts, rows, n, k, masked_m, *, dtype="bfloat16", alpha=True, grid=False, seed=0, **options
    ):
        draw = torch.Generator().manual_seed(seed)
        if grid:  # few codes and one power-of-two scale: every sum is exact
            codes = [
                torch.randint(0, 3, (experts, r, k), dtype=torch.uint8, generator=draw) for r in (rows, n)
            ]
            scales = [torch.full((experts, r, k // 16), 0x38, dtype=torch.uint8) for r in (rows, n)]
        else:
            codes = [
                torch.randint(0, 16, (experts, r, k), dtype=torch.uint8, generator=draw) for r in (rows, n)
            ]
            scales = [
                torch.randint(0x28, 0x50, (experts, r, k // 16), dtype=torch.uint8, generator=draw)
                for r in (rows, n)
            ]
        self.masked_m = list(masked_m)
        self.a, self.b = (decode_blocks(c, s, torch.float32) for c, s in zip(codes, scales, strict=True))
        self.alpha = torch.rand(experts, generator=draw) + 0.5 if alpha else None
        out = layouts.empty_out(experts, rows, n, getattr(torch, dtype), "cpu", SENTINEL)
        a, b = ((layouts.operand(c), layouts.scales(s)) for c, s in zip(codes, scales, strict=True))
        FlashInferCuteDslCpu(quantizers="emulated").masked_grouped_gemm(
            *a, *b, out, torch.tensor(masked_m, dtype=torch.int32), self.alpha, **options
        )
        self.out = out.permute(2, 0, 1)

    def written(self):
        return [int((rows != SENTINEL).any(-1).sum()) for rows in self.out]

    def judged(self):
        return judge_gemm("gemm", self.out, self.a, self.b, self.alpha, self.masked_m, ACCUMULATOR)

    def worst(self):
        """Largest error over the valid rows, relative to the largest exact output."""
        exact = self.a.double() @ self.b.double().transpose(1, 2)
        exact = exact if self.alpha is None else exact * self.alpha.double()[:, None, None]
        errors = [
            (self.out[e, :r].double() - exact[e, :r]).abs().max() for e, r in enumerate(self.masked_m) if r
        ]
        return float(max(errors) / exact.abs().max())


@pytest.mark.flashinfer
def test_support_runs_the_smoke_problem():
    found = FlashInferCuteDslCpu().support()
    assert found, found.reason


@pytest.mark.flashinfer
@pytest.mark.parametrize("seed", range(60))
def test_random_problems_are_legal_and_bit_equal_where_certified(seed):
    draw = random.Random(seed)
    experts, rows = draw.randint(1, 3), draw.choice([8, 64, 127, 128, 129, 200, 300])
    n, k = draw.choice([64, 128, 192, 320]), draw.choice([64, 128, 192, 256, 320, 704])
    masked_m = [draw.choice([0, 1, rows, draw.randint(0, rows)]) for _ in range(experts)]
    masked_m[0] = masked_m[0] or rows
    dtype = draw.choice(["bfloat16", "float32", "float16"])
    case = Case(
        experts, rows, n, k, masked_m, dtype=dtype, alpha=draw.random() < 0.7, grid=seed % 2 == 0, seed=seed
    )
    found = case.judged()
    assert found.illegal == 0
    assert case.written() == [min(rows, -(-count // 128) * 128) for count in masked_m]
    if seed % 2 == 0:
        exact = sum(count for name, count in found.judged.items() if name.startswith("bit equality"))
        assert exact == found.compared, "the grid data must hold the certificate everywhere"
    if dtype == "float32":
        assert case.worst() <= 3e-7


CONFIGURATIONS = [
    {}, {"mma_tiler_mn": (128, 256)}, {"cluster_shape_mn": (1, 2)}, {"cluster_shape_mn": (2, 1)},
    {"cluster_shape_mn": (2, 2), "sm_count": 4}, {"mma_tiler_mn": (256, 128), "cluster_shape_mn": (2, 1)},
    {"mma_tiler_mn": (256, 256), "cluster_shape_mn": (2, 1)}, {"mma_tiler_mn": (256, 128), "cluster_shape_mn": (2, 2), "sm_count": 4},
    {"is_swap_ab": True}, {"is_swap_ab": True, "mma_tiler_mn": (128, 256)}, {"is_swap_ab": True, "cluster_shape_mn": (2, 1)}, {"is_swap_ab": True, "cluster_shape_mn": (1, 2)},
]  # fmt: skip


@pytest.mark.flashinfer
@pytest.mark.parametrize("options", CONFIGURATIONS, ids=str)
def test_tiles_clusters_and_swapped_operands_give_the_same_bits(options):
    """And the write contract: rows of whole tiles, counted in tiles of 128 and stepped in clusters."""
    shape = (3, 384, 320, 704)
    plain = Case(*shape, [384, 1, 192], dtype="float32")
    case = Case(*shape, [384, 1, 192], dtype="float32", **options)
    for expert, count in enumerate(case.masked_m):
        assert torch.equal(case.out[expert, :count], plain.out[expert, :count])
    tile, cluster = 128, options.get("cluster_shape_mn", (1, 1))[0]
    if options.get("is_swap_ab"):  # the masked rows are the kernel's N
        tile, cluster = options.get("mma_tiler_mn", (128, 128))[1], options.get("cluster_shape_mn", (1, 1))[1]
    assert case.written() == [min(384, -(-count // tile) * tile * cluster) for count in case.masked_m]


@pytest.mark.flashinfer
def test_every_hint_of_the_candidate_is_among_them():
    assert all(hint in CONFIGURATIONS or hint == {"sm_count": 4} for hint in HINTS)


@pytest.mark.flashinfer
@pytest.mark.parametrize("masked_m", [0, 1, 127, 128, 129, 300])
def test_rows_past_the_last_tile_are_never_written(masked_m):
    case = Case(2, 300, 64, 64, [masked_m, 0])
    assert case.written() == [min(300, -(-masked_m // 128) * 128), 0]


@pytest.mark.flashinfer
@pytest.mark.parametrize(
    ("ab", "block"), [("float8_e4m3fn", 32), ("float4_e2m1fn", 32), ("float4_e2m1fn", 16)]
)
def test_other_formats_of_the_same_kernel(ab, block):
    """MXFP8, MXFP4, and E8M0 scales of 16: the tensor core's other block-scaled kinds."""
    experts, rows, n, k = 1, 160, 128, 256
    draw = torch.Generator().manual_seed(1)
    scales = [
        torch.randint(122, 132, (experts, r, k // block), dtype=torch.uint8, generator=draw)
        for r in (rows, n)
    ]
    if ab == "float8_e4m3fn":
        raw = [torch.randint(0, 120, (experts, r, k), dtype=torch.uint8, generator=draw) for r in (rows, n)]
        values = [c.view(torch.float8_e4m3fn).double() for c in raw]
        operands = [c.permute(1, 2, 0) for c in raw]
    else:
        raw = [torch.randint(0, 16, (experts, r, k), dtype=torch.uint8, generator=draw) for r in (rows, n)]
        values = [
            decode_blocks(
                c, torch.full((experts, c.shape[1], k // 16), 0x38, dtype=torch.uint8), torch.float64
            )
            for c in raw
        ]
        operands = [layouts.operand(c) for c in raw]
    number_format, kind = ("e4m3", "mxf8f6f4") if ab == "float8_e4m3fn" else ("e2m1", "mxf4nvf4")
    a, b = (
        Operand.of(v[0], number_format, torch.exp2(s[0].double() - 127), "ue8m0")
        for v, s in zip(values, scales, strict=True)
    )
    placed = [layouts.scales(s) for s in scales]
    out = layouts.empty_out(experts, rows, n, torch.float32, "cpu", SENTINEL)
    options = {"ab_dtype": ab, "sf_dtype": "float8_e8m0fnu", "sf_vec_size": block}
    cutedsl_on_cpu.gemm(
        (operands[0], placed[0]),
        (operands[1], placed[1]),
        out,
        torch.tensor([rows], dtype=torch.int32),
        None,
        options,
    )
    assert torch.equal(out[:, :, 0], matmul(UNITS[f"sm_100 {kind}"], a, b))


@pytest.mark.flashinfer
def test_dst_signals_count_the_ctas_that_are_past_each_expert():
    """Every CTA adds one for every expert, with or without rows: a consumer waits for as many as there are SMs."""
    for sm_count in (1, 2, 3):
        signals = torch.zeros(4, dtype=torch.int32)
        Case(4, 256, 128, 64, [256, 129, 1, 0], dst_signals=signals, sm_count=sm_count)
        assert signals.tolist() == [sm_count] * 4


@pytest.mark.flashinfer
def test_a_kernel_that_leaves_its_buffers_is_a_fault_not_a_crash():
    """A's rows are one short: the tensor map, made by the package from the shapes of the others, reaches past them."""
    from harness.interpreter.errors import MemoryFaultError

    codes = torch.zeros(1, 128, 64, dtype=torch.uint8)
    scales = layouts.scales(torch.zeros(1, 128, 4, dtype=torch.uint8))
    out = layouts.empty_out(1, 128, 64, torch.bfloat16, "cpu", 0.0)
    masked_m = torch.tensor([128], dtype=torch.int32)
    short = layouts.scales(torch.zeros(1, 64, 4, dtype=torch.uint8))[..., :0]
    candidate = FlashInferCuteDslCpu(quantizers="emulated")
    with pytest.raises(MemoryFaultError, match="outside every known buffer"):
        candidate.masked_grouped_gemm(
            layouts.operand(codes), scales, layouts.operand(codes[:, :64]), short, out, masked_m, None
        )


@pytest.mark.flashinfer
@pytest.mark.parametrize("source", ["interpreted", "cutedsl"])
@pytest.mark.parametrize("silu", [False, True])
def test_the_quantizers_interpreted_are_the_emulation_bit_for_bit(silu, source):
    """Three of them, independent of each other: the CUDA template through nvcc, the CuTe DSL kernel, and this project's model."""
    from harness.candidates.cuda_quantizers import nvcc
    from harness.candidates.physical import Physical

    if source == "interpreted" and not nvcc():
        pytest.skip("no nvcc: FlashInfer's CUDA quantizers cannot be compiled")
    candidate = FlashInferCuteDslCpu(quantizers=source)

    class Emulated(Physical):
        reciprocal = staticmethod(FlashInferCuteDslCpu(quantizers="interpreted").reciprocal)

    draw = torch.Generator().manual_seed(3)
    for experts, rows, k, counts in (
        (1, 4, 64, [4]),
        (4, 33, 192, [33, 0, 1, 20]),
        (2, 130, 256, [130, 129]),
    ):
        x = (torch.randn(experts, rows, k, generator=draw) * 3).bfloat16()
        x[0, 0, :16], x[0, 1, 3], x[0, 2, 5], x[0, 3] = 0, torch.nan, torch.inf, 1e-30
        if silu:
            x = torch.cat([x, x.flip(1)], -1).contiguous()
        scale = torch.rand(experts, generator=draw) * 500
        masked_m = torch.tensor(counts, dtype=torch.int32)
        found, wanted = (
            (c.silu_mul_quantize_grouped if silu else c.quantize_grouped)(x, masked_m, scale)
            for c in (candidate, Emulated())
        )
        bytes_of = [layouts.block_scales_of(scales, rows, k // 16) for _, scales in (found, wanted)]
        for expert, count in enumerate(counts):
            scales = bytes_of[0][expert, :count]
            assert torch.equal(scales, bytes_of[1][expert, :count])
            ours, theirs = (pair[0][:count, :, expert].reshape(count, k // 16, 8) for pair in (wanted, found))
            assert torch.equal(ours[scales != 0], theirs[scales != 0])
            # A block whose scale rounds to zero decodes to zero. FlashInfer's CUDA kernel stored saturated codes, as the
            # emulation does, and since 0.7.4 zeros, as its CuTe DSL kernel always did.
            zeros = not (theirs[scales == 0] & 0x77).any()
            assert zeros or (source == "interpreted" and torch.equal(ours, theirs))


@pytest.mark.flashinfer
def test_a_race_hunt_is_quiet_on_the_kernel_and_catches_planted_mistakes():
    from harness.races.hunt import hunt
    from harness.races.problem import KERNELS

    quiet = hunt(KERNELS[0], 3, mutate=False)
    assert quiet.passed
    assert quiet.written == [256, 256, 0, 128]
    for only in ("no-fence", "no-commit-0", "alpha-index", "argument-masked-m", "expect-less"):
        found = hunt(KERNELS[0], 3, mutate=True, only=only)
        assert found.caught, f"{only}: planted nothing"
        assert not [c.name for c in found.caught if c.survived]
