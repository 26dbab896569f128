"""The parts of a plain script that are asked alone."""

from __future__ import annotations

import torch

from harness.reproduction.plain import changed_inputs


def test_an_input_of_one_element_is_compared_whatever_its_stride() -> None:
    """alpha of a single expert with stride 0: torch calls it contiguous and refuses to view it as bytes."""
    alpha = torch.ones(()).expand(1)
    assert changed_inputs("masked_grouped_gemm", alpha, alpha.clone(), "alpha") == []
    changed = changed_inputs("masked_grouped_gemm", alpha, torch.zeros(1), "alpha")
    assert changed == ["masked_grouped_gemm changed its input alpha"]
