"""How matrix units add: bit-accurate models of one instruction, and of a sum over k in a declared order.

Read first: `unit.py` (what is known of each unit), `step.py` (one instruction), `order.py` (the sum over k),
`summation.py` (both together, as a candidate declares them). `segments.py`: the sums of every
stretch of k, to find where it was cut. `fused.py` and `fused_kernels.py` are the same sums on a
GPU, sooner.
Sources and on which device each model was confirmed: docs/numerics.md.
"""

from reference.matrix_units.order import ONE_PASS, KOrder, chosen, dot, even_cuts, matmul
from reference.matrix_units.segments import segments
from reference.matrix_units.step import Numbers, Operand, add_products, add_terms, all_pairs
from reference.matrix_units.summation import Summation
from reference.matrix_units.unit import EXACT, FMA, FORMATS, UNITS, MatrixUnit

__all__ = [
    "EXACT",
    "FMA",
    "FORMATS",
    "ONE_PASS",
    "UNITS",
    "KOrder",
    "MatrixUnit",
    "Numbers",
    "Operand",
    "Summation",
    "add_products",
    "add_terms",
    "all_pairs",
    "chosen",
    "dot",
    "even_cuts",
    "matmul",
    "segments",
]
