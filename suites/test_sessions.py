"""Several calls in one process. The rules are in harness.rules."""

from __future__ import annotations

from collections.abc import Callable

CheckRule = Callable[[str], None]


def test_shapes_do_not_disturb_each_other(check_rule: CheckRule) -> None:
    """SHAPES: shapes that follow each other in one process do not disturb each other."""
    check_rule("SHAPES")


def test_a_replayed_graph_reads_new_data(check_rule: CheckRule) -> None:
    """GRAPH: a replayed CUDA graph reads the new data and the new masked_m."""
    check_rule("GRAPH")
