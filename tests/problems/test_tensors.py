"""The numbers of a problem depend on its string alone, and its traps are really there."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from harness.problems.draws import Draws
from harness.problems.problem import DATA, SHAPE_TRAPS, parse_problem
from harness.problems.route_values import IN_LOGITS, IN_OUTPUTS, IN_TOPK_WEIGHTS
from harness.problems.tensors import ProblemTensors
from harness.problems.trap_writing import Places, draw_traps
from harness.problems.traps import IN_ROUTES, TRAPS
from harness.verdict import UsageError
from reference import e2m1, e4m3
from reference.moe import activate
from reference.nvfp4 import BLOCK, quantize_nvfp4


def tensors_of(t: ProblemTensors) -> dict[str, Tensor]:
    return {
        "masked_m": t.masked_m, "x": t.x, "input_scale": t.input_scale, "a2_scale": t.a2_scale,
        "w1": t.w1.codes, "w1 scale": t.w1.block_scale, "w2": t.w2.codes, "w2 scale": t.w2.block_scale,
        "w1_alpha": t.w1_alpha, "w2_alpha": t.w2_alpha, "gate_up": t.gate_up,
    }  # fmt: skip


ALL_TRAPS = "+".join(TRAPS)
BLOCK_TRAPS = [
    trap.name for trap in TRAPS.values() if (trap.where, trap.into) == ("blocks", "quantized") and trap.block
]


@pytest.mark.parametrize(
    "text", ["v2:3x9x64x48:0,9,4:normal:5", f"v2:3x9x256x64:0,9,4:grid:77:{ALL_TRAPS}+relu2"]
)
def test_numbers_depend_on_the_string_alone(text: str) -> None:
    """PROBLEM: the same bytes again, whatever the global random state, the order of asking and the weights' cache."""
    from harness.problems.weights import make_weights

    torch.manual_seed(1)
    first = tensors_of(ProblemTensors(parse_problem(text)))
    make_weights.cache_clear()
    torch.manual_seed(2)
    again = ProblemTensors(parse_problem(text))
    _ = again.w2_alpha, again.w2, again.w1_alpha  # in another order
    for name, tensor in tensors_of(again).items():
        assert torch.equal(
            tensor.contiguous().view(torch.uint8), first[name].contiguous().view(torch.uint8)
        ), name


def test_another_seed_gives_other_numbers() -> None:
    """PROBLEM: tokens, scales and weights."""
    a, b = (tensors_of(ProblemTensors(parse_problem(f"v2:3x9x64x48:0,9,4:normal:{seed}"))) for seed in (5, 6))
    for name in a.keys() - {"masked_m"}:
        assert not torch.equal(a[name], b[name]), name


@pytest.mark.parametrize("data", DATA)
def test_scales_and_alphas_are_distinct_and_not_one(data: str) -> None:
    """PROBLEM: a swapped, forgotten or inverted scale must change the result."""
    t = ProblemTensors(parse_problem(f"v2:6x20x64x64:20*6:{data}:3"))
    for name in ("input_scale", "a2_scale", "w1_alpha", "w2_alpha"):
        values = getattr(t, name)
        assert values.dtype == torch.float32
        assert (values != 1).all(), name
        assert len(values.unique()) == 6, name


def blocks_of(text: str, where: str) -> tuple[Tensor, Tensor, Tensor]:
    """Return what reaches a quantizer as blocks, its encode scale and the unrounded block scales, valid rows only."""
    t = ProblemTensors(parse_problem(text))
    values = t.x if where == "x" else activate(t.gate_up, "silu")
    scale = t.input_scale if where == "x" else t.a2_scale
    parts, scales = [], []
    for expert, rows in enumerate(parse_problem(text).masked_m):
        part = values[expert, :rows].double().reshape(-1, BLOCK)
        parts.append(part)
        scales.append(scale[expert].double().expand(len(part)))
    blocks, gs = torch.cat(parts), torch.cat(scales)
    unrounded = blocks.abs().nan_to_num(0.0, posinf=torch.inf).amax(-1) * gs / 6
    return blocks, gs, unrounded


BIG = "v2:3x20x256x256:20,0,7:{data}:{seed}:{trap}"
SEEDS = range(6)
both_inputs = pytest.mark.parametrize("where", ["x", "gate_up"])
all_data = pytest.mark.parametrize("data", DATA)


@all_data
@both_inputs
def test_e2m1_ties_are_exact_at_every_midpoint(where: str, data: str) -> None:
    """TRAP e2m1_ties: x * gs / scale is the midpoint itself, with both signs over a few problems."""
    seen = set()
    for seed in SEEDS:
        blocks, gs, unrounded = blocks_of(BIG.format(data=data, seed=seed, trap="e2m1_ties"), where)
        on_grid = unrounded.log2().frac() == 0  # the trap's blocks: amax is 6 times a power of two
        y = blocks[on_grid] * gs[on_grid].unsqueeze(-1) / unrounded[on_grid].unsqueeze(-1)
        found = {v for v in y.flatten().tolist() if abs(v) in e2m1.MIDPOINTS}
        assert {abs(v) for v in found} == set(e2m1.MIDPOINTS)
        seen |= found
    assert len(seen) == 14


@all_data
@both_inputs
def test_e4m3_ties_are_exact(where: str, data: str) -> None:
    """TRAP e4m3_ties: gs * amax / 6 is halfway between two neighbours, for several mantissas, even and odd."""
    values = e4m3.decode_e4m3(torch.arange(127, dtype=torch.uint8)).double()
    middle = (values[1:] + values[:-1]) / 2
    seen = set()
    for seed in SEEDS:
        _, _, unrounded = blocks_of(BIG.format(data=data, seed=seed, trap="e4m3_ties"), where)
        hits = torch.isin(unrounded, middle)
        assert hits.any()
        seen |= {int(i) % 2 for i in torch.bucketize(unrounded[hits], middle)}
    assert seen == {0, 1}


@all_data
@both_inputs
def test_scales_underflow_to_zero_and_just_do_not(where: str, data: str) -> None:
    """TRAP scale_underflow: amax that is not zero with scale byte 0, and others with the smallest scale."""
    for seed in SEEDS:
        blocks, _, unrounded = blocks_of(BIG.format(data=data, seed=seed, trap="scale_underflow"), where)
        byte = e4m3.round_to_byte(unrounded)
        assert ((byte == 0) & (blocks.abs().amax(-1) > 0)).any()
        assert (byte == 1).any()
        just = (unrounded > 2.0**-10 * 0.98) & (unrounded < 2.0**-10 * 1.02)
        assert just.any()


@all_data
@both_inputs
def test_scales_saturate_just_and_by_far(where: str, data: str) -> None:
    """TRAP scale_saturation: past 448 a little (rounding back to it) and past 464, where a cast would overflow."""
    for seed in SEEDS:
        _, _, unrounded = blocks_of(BIG.format(data=data, seed=seed, trap="scale_saturation"), where)
        finite = unrounded[unrounded.isfinite()]
        assert ((finite > 446) & (finite < 466)).any()
        assert (finite > 480).any()
        assert (finite > 4000).any()


@all_data
@both_inputs
def test_subnormal_scales_fill_a_row_of_tokens_and_rows_of_the_weights(where: str, data: str) -> None:
    """TRAP subnormal_scales: every scale of those rows is one of the bytes 1 to 7, and all seven occur."""
    seen = set()
    for seed in SEEDS:
        text = BIG.format(data=data, seed=seed, trap="subnormal_scales")
        blocks, gs, _ = blocks_of(text, where)
        stored = torch.cat(
            [
                quantize_nvfp4(blocks[gs == g].bfloat16(), g.float()).block_scale
                for g in gs.unique_consecutive()
            ]
        ).view(27, -1)
        small = (stored > 0) & (stored < 8)
        assert small.all(-1).sum() == 1
        assert small.sum() == small.shape[1]
        t = ProblemTensors(parse_problem(text))
        for weights in (t.w1, t.w2):
            tiny = weights.block_scale < 8
            assert tiny.all(-1).sum() == tiny.shape[0] * tiny.shape[1] // 8
            assert (weights.block_scale > 0).all()
            seen |= set(weights.block_scale[tiny].tolist())
        seen |= set(stored[small].tolist())
    assert seen == set(range(1, 8))


@all_data
@both_inputs
def test_zeros_are_written_as_block_row_and_expert(where: str, data: str) -> None:
    """TRAP zero_block, zero_row, zero_expert."""
    for seed in SEEDS:
        blocks, _, _ = blocks_of(BIG.format(data=data, seed=seed, trap="zero_block"), where)
        zero = (blocks == 0).all(-1)
        assert 0 < zero.sum() <= 4
        blocks, _, _ = blocks_of(BIG.format(data=data, seed=seed, trap="zero_row"), where)
        assert (blocks.view(27, -1) == 0).all(-1).sum() == 1
        blocks, _, _ = blocks_of(BIG.format(data=data, seed=seed, trap="zero_expert"), where)
        zero_rows = (blocks.view(27, -1) == 0).all(-1)
        assert int(zero_rows.sum()) in {20, 7}
        assert zero_rows[:20].all() or zero_rows[20:].all()


@all_data
@both_inputs
def test_subnormals_reach_the_quantizer(where: str, data: str) -> None:
    """TRAP subnormal: bfloat16 subnormals that are not zero, in blocks of nothing larger than the smallest normals."""
    for seed in SEEDS:
        blocks, _, _ = blocks_of(BIG.format(data=data, seed=seed, trap="subnormal"), where)
        subnormal = (blocks != 0) & (blocks.abs() < 2.0**-126)
        assert subnormal.any()
        tiny = blocks[subnormal.any(-1)].abs().amax(-1)
        assert (tiny < 2.0**-120).any()


@all_data
@both_inputs
def test_negative_zeros_stand_beside_numbers(where: str, data: str) -> None:
    """TRAP negative_zero: in blocks with a scale, where the code's sign can be seen."""
    for seed in SEEDS:
        blocks, _, unrounded = blocks_of(BIG.format(data=data, seed=seed, trap="negative_zero"), where)
        negative_zero = (blocks == 0) & blocks.signbit()
        assert (negative_zero.any(-1) & (e4m3.round_to_byte(unrounded) > 0)).any()


@all_data
@both_inputs
def test_nan_stands_alone_and_fills_a_block(where: str, data: str) -> None:
    """TRAP nan: one block of nothing else, several with a single one."""
    for seed in SEEDS:
        blocks, _, _ = blocks_of(BIG.format(data=data, seed=seed, trap="nan"), where)
        per_block = blocks.isnan().sum(-1)
        assert (per_block == BLOCK).sum() == 1
        assert (per_block == 1).any()


@all_data
@both_inputs
def test_infinities_of_both_signs_stand_among_numbers(where: str, data: str) -> None:
    """TRAP inf: blocks that hold an infinity and something finite."""
    signs = set()
    for seed in SEEDS:
        blocks, _, _ = blocks_of(BIG.format(data=data, seed=seed, trap="inf"), where)
        infinite = blocks.isinf()
        assert infinite.any()
        assert not blocks.isnan().any()
        assert (blocks[infinite.any(-1)].isfinite().any(-1)).all()
        signs |= set(blocks[infinite].sign().tolist())
    assert signs == {1.0, -1.0}


def test_outliers_and_spread_show_in_the_tokens() -> None:
    """TRAP outlier_block, magnitude_spread: a block far above its row, and experts 100-fold apart."""
    for seed in SEEDS:
        blocks, gs, _ = blocks_of(BIG.format(data="normal", seed=seed, trap="outlier_block"), "x")
        rows = blocks.abs().amax(-1).view(27, -1)
        assert ((rows.amax(-1) / rows.median(-1).values) > 30).sum() >= 2  # one in each expert with rows
        t = ProblemTensors(parse_problem(BIG.format(data="normal", seed=seed, trap="magnitude_spread")))
        deviation = t.x.double().square().mean((1, 2)).sqrt()
        assert deviation[2] / deviation[0] > 50
        assert gs.isfinite().all()


@pytest.mark.parametrize("trap", TRAPS)
def test_every_trap_of_the_table_is_written(trap: str) -> None:
    """TRAP: a name that changes no number would be counted as tested."""
    text = "v2:3x20x256x256:20,0,7:normal:1"
    into = TRAPS[trap].into
    if into in IN_ROUTES:
        change = {**IN_LOGITS, **IN_TOPK_WEIGHTS, **IN_OUTPUTS}[trap]
        values = Draws("values", "cpu").uniform(20, 4)
        plain, with_it = values.clone(), change(values, Draws("change", "cpu"))
        assert torch.equal(plain, values), "in place"
    else:
        where = {"quantized": "x", "quantizer": "x", "gate": "gate_up", "weights": "w1 scale"}.get(
            into, "w1_alpha"
        )
        plain, with_it = (
            tensors_of(ProblemTensors(parse_problem(t)))[where].view(torch.uint8)
            for t in (text, f"{text}:{trap}")
        )
    assert not torch.equal(plain, with_it)


def test_a_trap_that_does_not_exist_is_an_error() -> None:
    """TRAP: by name, with the nearest one; it is not taken for another trap."""
    places = Places.of([4], 32)
    with pytest.raises(UsageError, match="unknown trap 'zero_rows': did you mean 'zero_row'"):
        draw_traps(places, torch.ones(1), ["nan", "zero_rows"], Draws("traps", "cpu"))
    assert not places.blocks


@pytest.mark.parametrize("trap", BLOCK_TRAPS)
def test_traps_survive_one_another(trap: str) -> None:
    """TRAP: with all of them asked for, each is still there: the four blocks of one are not written over by the next."""
    small = "v2:1x8x256x256:8:normal:{seed}:" + "+".join(BLOCK_TRAPS)
    checks = {
        "nan": lambda b, u: (b.isnan().sum(-1) == BLOCK).any() and (b.isnan().sum(-1) == 1).any(),
        "inf": lambda b, u: b.isinf().any(),
        "some_nan": lambda b, u: set(range(2, 15)) <= set(b.isnan().sum(-1).tolist()),
        "infinities": lambda b, u: b.isinf().all(-1).any() and (b.isinf().any(-1) & b.isnan().any(-1)).any(),
        "zero_block": lambda b, u: (b == 0).all(-1).any(),
        "subnormal": lambda b, u: ((b != 0) & (b.abs() < 2.0**-126)).any(),
        "negative_zero": lambda b, u: ((b == 0) & b.signbit() & (u > 0.1).unsqueeze(-1)).any(),
        "scale_saturation": lambda b, u: ((u > 446) & (u < 466)).any() and (u[u.isfinite()] > 4000).any(),
        "scale_underflow": lambda b, u: (
            ((u > 2.0**-12) & (u <= 2.0**-10)).any() and ((u > 2.0**-10) & (u < 2.0**-9)).any()
        ),
        "e2m1_ties": lambda b, u: (u.log2().frac() == 0).any(),
        "e4m3_ties": lambda b, u: torch.isin(
            (u / torch.exp2(u.log2().floor())) * 16, torch.arange(17.0, 32, 2).double()
        ).any(),
    }
    for seed in SEEDS:
        for where in ("x", "gate_up"):
            blocks, _, unrounded = blocks_of(small.format(seed=seed), where)
            assert checks[trap](blocks, unrounded), (seed, where)


def test_a_problem_counts_only_traps_that_it_can_hold() -> None:
    """TRAP: too few valid blocks for what was asked are not counted as drawn; shape traps follow from the shape."""
    assert parse_problem("v2:2x4x64x64:0,0:normal:1:nan+zero_row").traps() == [
        "empty_expert",
        "ragged_capacity",
    ]
    assert "nan" not in parse_problem("v2:1x1x16x16:1:normal:1:nan+inf").traps()
    assert "nan" in parse_problem("v2:1x4x64x64:4:normal:1:nan").traps()
    assert "magnitude_spread" not in parse_problem("v2:1x4x64x64:4:normal:1:magnitude_spread").traps()
    assert "outlier_block" not in parse_problem("v2:2x4x64x64:4,4:grid:1:outlier_block").traps()
    assert parse_problem("v2:1x2x64x64:2:normal:1:nan+inf+zero_row").traps()[-2:] == ["zero_row", "nan"]
    assert parse_problem("v2:2x2x64x64:2,1:normal:1:nan+zero_expert").traps()[-2:] == ["zero_expert", "nan"]
    assert parse_problem("v2:1x2x64x64:2:normal:1:nan+zero_expert").traps()[-1] == "zero_expert"
    everything = parse_problem(f"v2:4x128x64x64:0,1,128,100:normal:1:{ALL_TRAPS}").traps()
    assert set(everything) == {"empty_expert", "one_row_expert", "full_expert", *TRAPS}
    assert set(parse_problem("v2:1x100x48x16:5:normal:1").traps()) == {
        "one_expert",
        "ragged_capacity",
        "ragged_blocks",
    }
    assert set(SHAPE_TRAPS) >= {"one_expert", "ragged_capacity", "ragged_blocks", "empty_expert"}


def test_padding_rows_hold_ordinary_numbers() -> None:
    """TRAP: traps lie in valid rows, where they are judged; rules poison the padding themselves."""
    t = ProblemTensors(parse_problem("v2:2x10x64x64:3,0:normal:4:nan+inf+zero_row"))
    assert t.x[0, 3:].isfinite().all()
    assert t.x[1].isfinite().all()
    assert t.gate_up[0, 3:].isfinite().all()


@all_data
def test_outputs_have_ordinary_magnitudes(data: str) -> None:
    """PROBLEM: alphas bring the layer's stages to about 1, where bfloat16 rounds as it does in use."""
    from reference.moe import masked_moe

    t = ProblemTensors(parse_problem(f"v2:3x20x256x128:20,0,7:{data}:1"))
    out = masked_moe(t.x, t.input_scale, t.w1.codes, t.w1.block_scale, t.w1_alpha, t.w2.codes, t.a2_scale,
                     t.w2.block_scale, t.w2_alpha, t.masked_m)  # fmt: skip
    for expert, rows in ((0, 20), (2, 7)):
        assert 0.1 < float(out[expert, :rows].double().std()) < 10


def test_grid_tokens_quantize_to_the_intended_codes() -> None:
    """PROBLEM grid: block scales are powers of two and nothing is rounded, so that dot products stay exact."""
    t = ProblemTensors(parse_problem("v2:3x20x256x128:20,0,7:grid:1"))
    got = quantize_nvfp4(t.x, t.input_scale)
    assert (got.block_scale % 8 == 0).all()
    decoded = e2m1.decode_e2m1(got.codes).double() * e4m3.decode_e4m3(
        got.block_scale
    ).double().repeat_interleave(16, -1)
    relative = (t.x.double() * t.input_scale.double().view(-1, 1, 1) - decoded).abs() / decoded.abs().clamp(
        min=0.5
    )
    assert relative.max() < 2.0**-8
    assert len(t.x[0].double().abs().unique()) > 10
