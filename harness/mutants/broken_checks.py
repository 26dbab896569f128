"""Broken checks, each as somebody wrote it once: rules that compare, and see nothing. `harness.mutants.self_test` must say so.

Each is a function of the same kind as the rules in harness/rules/ and stands for one of them. Adding one is one function
with `@broken`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.judging.comparison import Comparison, altered_copies, compare, compare_equal
from harness.judging.context import Context
from harness.judging.gemm import judge_gemm
from harness.problems.rows import Rows
from harness.rules import Rule, RuleFunction, find_rules
from reference.moe import masked_grouped_gemm, valid_rows
from reference.nvfp4 import decode_blocks, quantize_nvfp4


@dataclass(frozen=True)
class BrokenRule(Rule):
    """A rule whose code is given, not named.

    Attributes:
        check: its code.
        bugs: ids in facts about real tests that had this mistake, "" where it is ours.
    """

    check: RuleFunction | None = None
    bugs: str = ""

    def function(self) -> RuleFunction:
        """Return the check."""
        if self.check is None:
            raise TypeError("BrokenRule: check must be given")
        return self.check


BROKEN_CHECKS: dict[str, BrokenRule] = {}


def broken(rule: str, bugs: str = "") -> Callable[[RuleFunction], RuleFunction]:
    """Register a function as a broken version of a rule.

    Args:
        rule: id of the rule that it stands for: stages, power and traps are that one's.
        bugs: real threads with the mistake.
    """
    genuine = find_rules([rule])[0]

    def register(check: RuleFunction) -> RuleFunction:
        name = check.__name__
        title = (check.__doc__ or "").splitlines()[0].rstrip(".")
        fields = {f.name: getattr(genuine, f.name) for f in dataclasses.fields(Rule)}
        BROKEN_CHECKS[name] = BrokenRule(**(fields | {"title": title, "check": check, "bugs": bugs}))
        return check

    return register


def _gemm(ctx: Context) -> tuple[Tensor, Tensor]:
    """Return the valid rows of a GEMM and of its oracle, both float32."""
    t, rows = ctx.tensors, ctx.rows()
    got = rows.take(ctx.gemm(ctx.reference_operand(), t.w1, t.w1_alpha))
    values = ctx.reference_values()
    wanted = rows.take(masked_grouped_gemm(values, t.w1.values, t.masked_m, t.w1_alpha))
    return got.float(), wanted.bfloat16().float()


def _compare(ctx: Context, accepts: Callable[[Tensor, slice], Tensor], got: Tensor) -> list[Comparison]:
    return [
        compare(
            "gemm",
            accepts(got, slice(None)),
            ctx.rows(),
            judged={"by a criterion of its own": got.numel()},
            altered=altered_copies(got, accepts),
            show=lambda _r, _c: "is off",
        )
    ]


def _all_or_none(ok: Tensor, like: Tensor) -> Tensor:
    """Return one verdict about a whole output as a mask of its elements."""
    return torch.full_like(like, bool(ok), dtype=torch.bool)


@broken("QUANT", "flashinfer#1495")
def shared_quantizer(ctx: Context) -> list[Comparison]:
    """The expected codes come from the quantizer under test: the kernel is compared with itself."""
    t, rows = ctx.tensors, ctx.rows()
    got = ctx.quantize(t.x, t.input_scale).valid_bytes(rows)
    expected = ctx.quantize(t.x, t.input_scale).valid_bytes(rows)
    return [compare_equal("quantize", got, expected, rows, "the reference")]


@broken("QUANT", "flashinfer#4805")
def underflowing_data(ctx: Context) -> list[Comparison]:
    """The data is so small that both sides quantize it to zero."""
    t, rows = ctx.tensors, ctx.rows()
    x = torch.where(t.x.isfinite(), t.x, 0) * 2.0**-40
    got = ctx.quantize(x, t.input_scale)
    expected = quantize_nvfp4(x, t.input_scale)
    values, wanted = (decode_blocks(rows.take(q.codes), rows.take(q.block_scale)) for q in (got, expected))
    return [compare_equal("quantize", values, wanted, rows, "the reference")]


@broken("GEMM", "sglang test_cutedsl_moe")
def over_wide_bound(ctx: Context) -> list[Comparison]:
    """An element may differ by as much as it is large."""
    got, wanted = _gemm(ctx)
    return _compare(ctx, lambda out, rows: ~((out - wanted[rows]).abs() > wanted[rows].abs() * 1.01), got)


@broken("GEMM", "flashinfer#4105")
def cosine_in_bfloat16(ctx: Context) -> list[Comparison]:
    """One cosine of everything, computed in bfloat16, must reach 0.97."""
    got, wanted = _gemm(ctx)

    def accepts(out: Tensor, rows: slice) -> Tensor:
        x, y = out.bfloat16().flatten(), wanted[rows].bfloat16().flatten()
        if out.numel():  # squares of small outputs would be zero in bfloat16
            x, y = x / x.abs().amax(), y / y.abs().amax()
        cosine = (x * y).sum() / ((x * x).sum().sqrt() * (y * y).sum().sqrt())
        return _all_or_none(~(cosine < 0.97), out)

    return _compare(ctx, accepts, got)


@broken("GEMM", "flashinfer check_accuracy")
def share_of_elements(ctx: Context) -> list[Comparison]:
    """97 % of the elements must be close; what the others hold does not matter."""
    got, wanted = _gemm(ctx)

    def accepts(out: Tensor, rows: slice) -> Tensor:
        close = ~((out - wanted[rows]).abs() > wanted[rows].abs() * 2.0**-7)
        return _all_or_none(close.double().mean() >= 0.97, out)

    return _compare(ctx, accepts, got)


@broken("GEMM", "sglang#29933")
def only_finite(ctx: Context) -> list[Comparison]:
    """Every element must be finite where the right one is, and that is all."""
    got, wanted = _gemm(ctx)
    return _compare(ctx, lambda out, rows: ~out.isinf() | ~wanted[rows].isfinite(), got)


@broken("GEMM")
def oracle_compares_the_padding(ctx: Context) -> list[Comparison]:
    """The mask is inverted: rows past masked_m are compared, NaN with NaN, the valid ones are not."""
    t, p = ctx.tensors, ctx.problem
    out = ctx.gemm(ctx.reference_operand(), t.w1, t.w1_alpha)
    values = ctx.reference_values()
    wanted = masked_grouped_gemm(values, t.w1.values, t.masked_m, t.w1_alpha).to(out.dtype)
    expert, row = (~valid_rows(t.masked_m, p.capacity)).nonzero(as_tuple=True)
    rows = Rows(expert, row, p.experts, p.capacity)
    return [compare_equal("gemm", rows.take(out), rows.take(wanted), rows, "the reference")]


@broken("GEMM")
def oracle_forgets_the_mask(ctx: Context) -> list[Comparison]:
    """All rows are compared, those past masked_m with what the oracle makes of their garbage."""
    t, p = ctx.tensors, ctx.problem
    out = ctx.gemm(ctx.reference_operand(), t.w1, t.w1_alpha)
    values = ctx.reference_values(torch.float32)
    full = [p.capacity] * p.experts
    return [judge_gemm("gemm", out, values, t.w1.values, t.w1_alpha, full, ctx.known.accumulator)]


@broken("GEMM")
def compares_nothing(ctx: Context) -> list[Comparison]:
    """A filter leaves no element over: those with an error above a thousand, of which there are none."""
    got, wanted = _gemm(ctx)
    far = (got - wanted).abs().amax(-1) > 1e9
    return [compare_equal("gemm", got[far], wanted[far], ctx.rows().only(far), "the reference")]


@broken("GEMM", "TRT-LLM#9551")
def first_expert_only(ctx: Context) -> list[Comparison]:
    """Only the first expert's output is compared."""
    t, p = ctx.tensors, ctx.problem
    out = ctx.gemm(ctx.reference_operand(), t.w1, t.w1_alpha)
    values = ctx.reference_values(torch.float32)
    first = [p.masked_m[0], *[0] * (p.experts - 1)]
    return [judge_gemm("gemm", out, values, t.w1.values, t.w1_alpha, first, ctx.known.accumulator)]


@broken("GEMM")
def first_columns_only(ctx: Context) -> list[Comparison]:
    """Only the first eight columns are compared."""
    t = ctx.tensors
    out = ctx.gemm(ctx.reference_operand(), t.w1, t.w1_alpha)
    values = ctx.reference_values(torch.float32)
    return [
        judge_gemm(
            "gemm", out[..., :8], values, t.w1.values[:, :8], t.w1_alpha, ctx.masked_m, ctx.known.accumulator
        )
    ]


@broken("GEMM")
def expected_is_overwritten(ctx: Context) -> list[Comparison]:
    """The kernel writes into the buffer that holds the expected values: they are equal whatever it wrote."""
    t, rows = ctx.tensors, ctx.rows()
    values = ctx.reference_values()
    expected = masked_grouped_gemm(values, t.w1.values, t.masked_m, t.w1_alpha).bfloat16()
    ctx.gemm_into(expected.permute(1, 2, 0), ctx.reference_operand(), t.w1, t.w1_alpha)
    return [compare_equal("gemm", rows.take(expected), rows.take(expected), rows, "the reference")]


@broken("PIPELINE")
def previous_stages_are_believed(ctx: Context) -> list[Comparison]:
    """The GEMMs are judged on what the candidate's quantizers made, and the quantizers by nobody."""
    from harness.rules.layer import pipeline

    return [c for c in pipeline(ctx) if c.stage.startswith("gemm")]


@broken("GEMM")
def empty_problems(ctx: Context) -> list[Comparison]:
    """The seeds always draw problems without a valid row."""
    from harness.rules.numbers import gemm

    problem = dataclasses.replace(ctx.problem, masked_m=(0,) * ctx.problem.experts)
    return gemm(Context(ctx.candidate, problem, ctx.known))


@broken("GEMM")
def errors_are_caught(ctx: Context) -> list[Comparison]:
    """An exception of the kernel counts as "not supported here", and passes."""
    from harness.rules.numbers import gemm

    try:
        return gemm(ctx)
    except Exception:  # noqa: BLE001 - that is the mistake
        return [Comparison("gemm", compared=1, judged={"not supported": 1})]
