"""Time matmul of reference/matrix_units on a GPU: the Triton kernels, and the torch form on some of the rows.

    python benchmarks/matrix_units_speed.py [--rows 8448] [--columns 4096] [--k 7168]

Prints the milliseconds of a whole call, the conversion of the operands included, and asserts that the rows which were
added in torch too have the same bits.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from torch import Tensor

from reference.matrix_units import UNITS, KOrder, Operand, fused, matmul

COMPARED = 32  # rows
E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6])
CASES = [
    ("sm_100 mxf4nvf4", "e2m1", KOrder()),
    ("sm_90 f16", "bfloat16", KOrder()),
    ("sm_90 f16", "float16", KOrder()),
    ("sm_90 f8", "e4m3", KOrder()),
    ("sm_90 f8", "e4m3", KOrder(promote=128)),
    ("sm_100 f8f6f4", "e4m3", KOrder()),
    ("sm_100 mxf8f6f4", "e4m3", KOrder()),
]


def operand(name: str, number_format: str, rows: int, k: int, draw: torch.Generator) -> Operand:
    if number_format == "e2m1":
        values = E2M1.cuda()[torch.randint(0, 16, (rows, k), generator=draw, device="cuda")]
    else:
        types = {"bfloat16": torch.bfloat16, "float16": torch.float16, "e4m3": torch.float8_e4m3fn}
        values = torch.randn(rows, k, generator=draw, device="cuda").to(types[number_format])
    if "mx" not in name:
        return Operand.of(values, number_format)
    exponents = torch.randint(
        -3, 4, (rows, k // (16 if "nvf4" in name else 32)), generator=draw, device="cuda"
    )
    return Operand.of(
        values, number_format, torch.exp2(exponents.float()), "e4m3" if "nvf4" in name else "ue8m0"
    )


def milliseconds(call: Callable[[], Tensor], times: int = 3) -> tuple[float, Tensor]:
    """Return the least time of a call, after one that compiles."""
    out, found = call(), []
    for _ in range(times):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in "se")
        start.record()
        out = call()
        end.record()
        end.synchronize()
        found.append(start.elapsed_time(end))
    return min(found), out


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for option, number in (("rows", 8448), ("columns", 4096), ("k", 7168)):
        parser.add_argument(f"--{option}", type=int, default=number, help=f"({number})")
    options = parser.parse_args()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}: ", end="")
    print(f"{options.rows:,} rows x {options.columns:,} columns x k {options.k:,}\n")
    print("| unit | operands | promoted every | ms | in torch, rows as if all, ms |")
    print("|---|---|---|---|---|", flush=True)
    draw = torch.Generator(device="cuda").manual_seed(0)
    for name, number_format, order in CASES:
        a, b = (
            operand(name, number_format, rows, options.k, draw) for rows in (options.rows, options.columns)
        )
        assert fused.has_kernel(UNITS[name], a, b, [0]), "no kernel: needs triton"
        spent, out = milliseconds(lambda: matmul(UNITS[name], a, b, order))  # noqa: B023 - called at once
        some = a.at(slice(0, COMPARED))
        in_torch, wanted = milliseconds(lambda: matmul(UNITS[name], some, b, order, in_torch=True), 1)  # noqa: B023
        assert torch.equal(out[:COMPARED].view(torch.int32), wanted.view(torch.int32)), (
            "other bits than in torch"
        )
        all_rows = in_torch * options.rows / len(wanted)
        print(
            f"| {name} | {number_format} | {order.promote or 'never'} | {spent:.1f} | {all_rows:,.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
