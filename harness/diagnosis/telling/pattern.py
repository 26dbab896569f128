"""What unexplained elements look like: experts, rows, columns, periods, gain, zeros, NaN, values from elsewhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from harness.diagnosis.cases.case import CallCase
from harness.diagnosis.cases.views import SCALE, same
from harness.diagnosis.telling.numbers import percent
from harness.diagnosis.telling.place import place

_PERIODS = (128, 64, 32, 16, 8, 4, 2)
_FEW = 8  # values that tell a factor
_OWN_FACTOR = 0.004  # bfloat16 rounding moves a median ratio by less
_MOST_ROWS = 16  # rows that are looked for elsewhere
_percent = partial(percent, least=0.01)


def describe_pattern(case: CallCase, mask: Tensor) -> list[str]:
    """Return sentences about the illegal elements of a mask `(groups, rows, cells, elements)`, most telling first."""
    count, of = int(mask.sum()), int(case.valid.sum()) * mask[0, 0].numel()
    there, valid = case.by_rows(mask), case.by_rows(case.valid)
    words = [f"{count:,} of {of:,} elements of {case.name} are illegal, {place(there, valid)['words']}"]
    if case.refused:
        return [f"a right implementation refuses {case.name}: {case.refused}"]
    if case.view != "output":
        return [f"{count:,} elements of {case.name} were changed"]
    words += _values(case, mask)
    if case.pieces is None:  # a piece says nothing of where its row is from
        words += _from_elsewhere(case, mask)
    words += _periods(there, valid)
    return words


def _values(case: CallCase, mask: Tensor) -> list[str]:
    o, h = case.seen[mask], case.healthy[mask]
    if not o.dtype.is_floating_point:
        return _bytes(case, mask)
    words = []
    for name, there in (("NaN", o.isnan()), ("infinite", o.isinf()), ("zero", o == 0)):
        if share := float(there.double().mean()):
            words.append(f"{_percent(share)} of them are {name}")
    usable = o.isfinite() & h.isfinite() & (h != 0) & (o != 0)
    if int(usable.sum()) >= 8:
        ratio = o[usable].double() / h[usable].double()
        middle = float(ratio.median())
        close = float(((ratio / middle - 1).abs() < 0.02).double().mean()) if middle else 0.0
        if of_experts := _factors(case, mask):
            words.append(of_experts)
        elif close > 0.5:
            words.append(f"{_percent(close)} of the values are {middle:.4g} times the right ones")
        flipped = float((ratio < 0).double().mean())
        words.append(
            f"{_percent(flipped)} have the wrong sign, the median magnitude is {float(ratio.abs().median()):.3g} times right"
        )
    constant = Counter(o.tolist()).most_common(1)[0]
    if constant[1] > 0.5 * len(o) and constant[0] != 0 and constant[0] == constant[0]:
        words.append(f"{_percent(constant[1] / len(o))} of them are {constant[0]:g}")
    return words


def _factors(case: CallCase, mask: Tensor) -> str:
    """Say whether each expert's values are off by a factor of its own, as alpha is one."""
    factors: dict[int, float] = {}
    for group in mask.flatten(1).any(-1).nonzero().flatten().tolist():
        there = mask[group] & case.seen[group].isfinite() & (case.healthy[group] != 0)
        ratio = case.seen[group][there].double() / case.healthy[group][there].double()
        if len(ratio) < _FEW:
            return ""
        factors[group] = float(ratio.median())
        if float((ratio / factors[group] - 1).abs().median()) > _OWN_FACTOR:
            return ""
    if len(factors) < 2 or max(factors.values()) - min(factors.values()) < _OWN_FACTOR:
        return ""
    shown = ", ".join(f"{value:.4g} (expert {group})" for group, value in list(factors.items())[:4])
    return f"each expert's values are off by a factor of their own, as alpha is one: {shown}"


def _bytes(case: CallCase, mask: Tensor) -> list[str]:
    scale, codes = mask[..., SCALE], mask[..., :SCALE]
    words = []
    o, h = case.seen.int(), case.healthy.int()
    if bool(scale.any()):
        step = (o - h)[..., SCALE][scale]
        common, times = Counter(step.tolist()).most_common(1)[0]
        words.append(
            f"{int(scale.sum()):,} block scales, {_percent(times / len(step))} of them off by {common:+d} E4M3 codes"
        )
    if bool(codes.any()):
        got, right = o[..., :SCALE][codes], h[..., :SCALE][codes]
        changes = {
            "have the wrong sign": ((got ^ right) == 8),
            "are zero": (got & 7) == 0,
            "are one code too small": (got & 7) - (right & 7) == -1,
            "are one code too large": (got & 7) - (right & 7) == 1,
        }
        words += [
            f"{_percent(float(c.double().mean()))} of {len(got):,} codes {w}"
            for w, c in changes.items()
            if float(c.double().mean()) > 0.2
        ]
    return words


def _from_elsewhere(case: CallCase, mask: Tensor) -> list[str]:
    """Say whether illegal rows are right for another row, another expert, or another place of the row."""
    rows = mask.any(-1).any(-1).nonzero().tolist()[:_MOST_ROWS]
    flat_seen, right = case.seen.flatten(2), case.healthy.flatten(2)
    found: Counter[str] = Counter()
    for group, row in rows:
        one = flat_seen[group, row]
        if not bool((one != one[0]).any()):
            continue  # a constant row comes from nowhere
        elsewhere = same(one.expand_as(right), right).double().mean(-1) > 0.95
        elsewhere &= case.valid
        elsewhere[group, row] = False
        for other_group, other_row in elsewhere.nonzero().tolist()[:1]:
            if other_group == group:
                found[
                    f"are the right ones of row {'+' if other_row > row else '-'}{abs(other_row - row)} of the same expert"
                ] += 1
            else:
                found[
                    f"are the right ones of expert {'+' if other_group > group else '-'}{abs(other_group - group)}"
                ] += 1
        for shift in (1, 8, 16, 32, 64, -1, -8, -16, -32, -64):
            if (
                abs(shift) < len(one)
                and float(same(one, right[group, row].roll(shift)).double().mean()) > 0.95
            ):
                found[f"are the right ones shifted by {shift} elements"] += 1
                break
    return [
        f"the values of {times} of {len(rows)} rows looked at {what}" for what, times in found.most_common(2)
    ]


def _periods(mask: Tensor, valid: Tensor) -> list[str]:
    words = []
    rows = mask.any(-1).any(-1)
    row_numbers = rows.any(0).nonzero().flatten().tolist()
    words += _residues("rows", row_numbers, valid.any(0).nonzero().flatten().tolist())
    if mask.shape[2] > 1:
        blocks = mask.any(-1).any(0).any(0).nonzero().flatten().tolist()
        words += _residues("blocks along k", blocks, range(mask.shape[2]))
        within = mask[..., :SCALE].any(0).any(0).any(0).nonzero().flatten().tolist()
        words += _residues("elements of a block", within, range(SCALE))
    else:
        columns = mask.any(0).any(0).any(0).nonzero().flatten().tolist()
        words += _residues("columns", columns, range(mask.shape[3]))
    return words


def _residues(what: str, there: Sequence[int], of: Sequence[int]) -> list[str]:
    """Say in which residues of a period the numbers lie, where that tells them from the rest."""
    if not there or len(there) == len(of) or len(there) < 3:
        return []
    for period in _PERIODS:
        if period * 2 > len(of):
            continue
        residues = sorted({n % period for n in there})
        expected = sum(1 for n in of if n % period in residues)
        if len(residues) <= period // 2 and len(there) >= 0.9 * expected:
            shown = ", ".join(map(str, residues[:8])) + (", ..." if len(residues) > 8 else "")
            return [f"only {what} that are {shown} modulo {period}"]
    return []


def total(masks: Sequence[Tensor]) -> int:
    """Return how many elements the masks hold together."""
    return int(sum(torch.count_nonzero(mask) for mask in masks))
