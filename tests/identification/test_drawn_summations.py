"""Right kernels whose unit and order along k are drawn, and change with k, rows and tile: none of them is flagged."""

from __future__ import annotations

import random

import pytest

from tests.identification import modes, summing
from tests.identification.test_summation import judged

UNITS = ("sm_100 mxf4nvf4", "sm_90 f16", "sm_80 f16", "exact", "exact 16", "exact 64")
ORDERS = (
    "", "; parts 2", "; parts 3; tile 128", "; parts 4; pairwise", "; parts 7", "; length 256", "; length 512; pairwise",
    "; promote 128", "; promote 256", "; promote 128; parts 2",
)  # fmt: skip
SPLITS = (
    "; parts 2",
    "; parts 3; last first",
    "; parts 4",
    "; parts 5; pairwise",
    "; length 256",
    "; promote 128",
    "; lanes 2",
)
DATA = ("normal", "spread", "grid")
OUTPUTS = ("", ":float32_out", ":float16_out")


def drawn(seed: int) -> tuple[summing.Summing, str, str]:
    """Return a right kernel, its summation and a problem."""
    draw = random.Random(seed)
    unit = draw.choice(UNITS)
    text = unit + draw.choice(ORDERS)
    fine = 16 if unit in ("sm_90 f16", "sm_80 f16", "exact 16") else 64
    candidate = draw.choice(
        (
            lambda: summing.Summing(text),
            lambda: summing.SplitsLongRows(unit),
            lambda: modes.Known(f"{text}; from {draw.choice((128, 512, 1024))}{draw.choice(SPLITS)}"),
            lambda: modes.OfRows(text, unit + draw.choice(SPLITS), 64 * draw.randint(0, 1)),
            lambda: modes.OfRows(text, unit + draw.choice(SPLITS), draw.randint(1, 30), all_rows=True),
            lambda: modes.CutAnywhere(unit, draw.choice((fine, 64)), 64 * draw.randint(1, 2)),
        )
    )()
    known = unit if isinstance(candidate, summing.SplitsLongRows | modes.CutAnywhere) else text
    experts, capacity = draw.randint(1, 3), draw.choice((8, 24, 70))
    counts = ",".join(str(draw.randint(0, capacity)) for _ in range(experts))
    hidden, inter = draw.choice((64, 128, 256, 512, 1024, 2048)), draw.choice((16, 32, 64))
    if hidden * capacity > 1 << 15:
        capacity, counts = 8, ",".join(str(draw.randint(0, 8)) for _ in range(experts))
    problem = (
        f"{experts}x{capacity}x{hidden}x{inter}:{counts}:{draw.choice(DATA)}:{seed}{draw.choice(OUTPUTS)}"
    )
    return candidate, known, problem


def false_alarms(seeds: range) -> list[str]:
    """Return what was flagged, and was right."""
    found = []
    for seed in seeds:
        candidate, text, problem = drawn(seed)
        comparison = judged(candidate, problem, text)
        if comparison.illegal:
            found.append(f"{type(candidate).__name__} {text} {problem}: {comparison.message}")
    return found


def test_a_drawn_order_is_never_flagged() -> None:
    """A sample of what `make test-all` draws; one of the seeds before it takes as long as all of these."""
    assert false_alarms(range(4, 28)) == []


@pytest.mark.long
@pytest.mark.parametrize("thousand", range(10))
def test_ten_thousand_drawn_orders_are_never_flagged(thousand: int) -> None:
    """Other seeds; and the first four, one of which takes as long as all of the sample."""
    assert false_alarms(range(1000 * (thousand + 1), 1000 * (thousand + 2))) == []
    assert thousand or false_alarms(range(4)) == []
