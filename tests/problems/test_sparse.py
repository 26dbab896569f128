"""A tensor of which nearly all is padding: its valid rows are those of the small problem, the rest is zero."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from harness.candidates.eager import Eager
from harness.problems import sparse
from harness.problems.problem import parse_problem
from harness.problems.reach import OFFSETS
from harness.problems.sparse import SPARSE, SparseTensors, tensors_of
from harness.problems.tensors import ProblemTensors
from harness.running.judge import Judge

PROBLEM = parse_problem("v2:5x900x64x48:2,0*3,3:normal:11:e2m1_ties")


def test_it_is_the_small_problem_with_zeros_behind_it() -> None:
    small = ProblemTensors(dataclasses.replace(PROBLEM, capacity=3))
    large = SparseTensors(PROBLEM)
    for name in ("input_scale", "a2_scale", "masked_m"):
        assert torch.equal(getattr(large, name), getattr(small, name))
    for name in ("x", "gate_up"):
        drawn, grown = getattr(small, name), getattr(large, name)
        assert grown.shape == (5, 900, drawn.shape[2])
        assert torch.equal(grown[:, :3], drawn)
        assert not grown[:, 3:].any()


def test_only_what_is_too_large_to_be_drawn_is_sparse() -> None:
    assert type(tensors_of(PROBLEM)) is ProblemTensors
    for offset in OFFSETS.values():
        p = offset.problem(offset.most, Eager().traits, 0)
        assert p.experts * p.capacity * max(p.hidden, 2 * p.inter) > SPARSE


@pytest.mark.parametrize("rule", ["QUANT", "ACT", "GEMM"])
def test_a_right_candidate_passes_on_it(monkeypatch: pytest.MonkeyPatch, rule: str) -> None:
    monkeypatch.setattr(sparse, "SPARSE", 1000)
    outcome = Judge(Eager(), threads=1, probe=False).judge(rule, str(PROBLEM))
    assert outcome.illegal == []
    assert sum(c.compared for c in outcome.comparisons) > 5 * 48
