"""The controls: candidates that differ from each other in everything a right kernel may differ in. No rule may fail one.

`control:NAME` on any command line, `CONTROLS[NAME]()` in Python. Adding one is one line in `_HABITS` below or in
layer_variants.LAYER_HABITS, or one class and a line in CONTROLS.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from harness.candidates.controls.in_formats import IN_FORMATS, StrictKernels
from harness.candidates.controls.layer_variants import LAYER_HABITS, LayerVariant
from harness.candidates.controls.routed_variants import ROUTED
from harness.candidates.controls.variant import Habit, Variant
from harness.candidates.eager import Eager
from harness.candidates.physical import Physical
from harness.candidates.protocol import Traits
from harness.candidates.support import Support, supported
from harness.emulation.orders import Order
from harness.emulation.quantize import correctly_rounded_rcp, reciprocal_table
from harness.verdict import unknown_name

_HABITS = {
    # order of accumulation
    "reversed_accumulation": Habit(Order("reversed")),
    "shuffled_accumulation": Habit(Order("shuffled", rounding="nearest")),
    "interleaved_accumulation": Habit(Order("interleaved", chunk=32)),
    "pairwise_tree": Habit(Order(tree=True, chunk=1, rounding="nearest")),
    "tree_of_instructions": Habit(Order("shuffled", tree=True, chunk=16)),
    "split_k_2": Habit(Order(splits=2)),
    "split_k_4": Habit(Order(splits=4, chunk=16)),
    "split_k_8": Habit(Order(splits=8, chunk=16, tree=True)),
    "split_k_3_reversed": Habit(Order("reversed", splits=3, chunk=32, rounding="nearest")),
    # instructions and accumulators
    "chunk_of_1": Habit(Order(chunk=1)),
    "chunk_of_1_rounded": Habit(Order("reversed", chunk=1, rounding="nearest")),
    "chunk_of_16": Habit(Order("shuffled", chunk=16)),
    "chunk_of_128": Habit(Order(chunk=128)),
    "chunk_of_256": Habit(Order(chunk=256)),
    "aligned_to_26_bits": Habit(Order(window=26)),
    "aligned_to_24_bits": Habit(Order("reversed", window=24)),
    "aligned_to_16_bits": Habit(Order(window=16, chunk=32)),
    "accumulator_of_22_bits": Habit(Order("shuffled", bits=22)),
    "accumulator_of_14_bits": Habit(Order(bits=14, window=14, chunk=32)),
    # reciprocals and products of the quantizers
    "rounded_reciprocals": Habit(reciprocal=correctly_rounded_rcp),
    "rounded_reciprocals_unknown": Habit(reciprocal=correctly_rounded_rcp, tells_reciprocal=False),
    "reciprocals_unknown": Habit(tells_reciprocal=False),
    "reciprocals_below": Habit(reciprocal=reciprocal_table(1, 1000, 0)),
    "reciprocals_below_unknown": Habit(reciprocal=reciprocal_table(1, 1000, 0), tells_reciprocal=False),
    "reciprocals_above": Habit(reciprocal=reciprocal_table(2, 0, 1000)),
    "reciprocals_above_unknown": Habit(reciprocal=reciprocal_table(2, 0, 1000), tells_reciprocal=False),
    "reciprocals_of_another_table": Habit(reciprocal=reciprocal_table(3, 300, 300)),
    "reciprocals_of_another_table_unknown": Habit(
        reciprocal=reciprocal_table(4, 300, 300), tells_reciprocal=False
    ),
    "codes_with_fma": Habit(
        quantizer="fused", reciprocal=correctly_rounded_rcp, tells_reciprocal=False
    ),
    "exact_arithmetic": Habit(arithmetic="exact"),
    "exact_arithmetic_reversed": Habit(Order("reversed", splits=2), arithmetic="exact", activation="sigmoid"),
    "real_arithmetic_with_fma": Habit(arithmetic="real", quantizer="real with fma", activation="fused"),
    "sign_of_zero_dropped": Habit(sign_of_zero=False),
    # activation
    "silu_by_sigmoid": Habit(activation="sigmoid"),
    "silu_by_exp2": Habit(activation="exp2"),
    "silu_by_reciprocal": Habit(activation="reciprocal"),
    "silu_with_fma": Habit(activation="fused"),
    # memory: padding, tiles, capacity
    "garbage_in_padding": Habit(garbage_in=True, fill=None),
    "garbage_quantized": Habit(garbage_in=True, fill=0x7E, quantizes_padding=True),
    "padding_zeroed": Habit(fill=0, tail="nothing"),
    "padding_random": Habit(fill=None, tail="random"),
    "padding_nan_scales": Habit(fill=0x7F, tail="nan"),
    "padding_448": Habit(fill=0x7E, tail="random", store_rows=64),
    "store_tiles_of_64": Habit(store_rows=64, tail="nan", tile=(64, 64)),
    "store_tiles_of_256": Habit(store_rows=256, tail="random", tile=(256, 128)),
    "tiles_reversed": Habit(tile=(16, 32), tile_order="reversed"),
    "tiles_shuffled": Habit(tile=(8, 8), tile_order="shuffled"),
    "larger_capacity_inside": Habit(inner_capacity=256, fill=None),
    "layouts_refused": Habit(refuses_layouts=True),
    # what may vary, and says so
    "stream_k": Habit(Order(chunk=16), tile=(64, 64), varies="place"),
    "atomic_additions": Habit(Order(splits=4, chunk=16), varies="call", tile_order="shuffled"),
    # alignments of real kernels, and hints
    "aligned_extents": Habit(
        traits={"k_multiple": 64, "n_multiple": 64, "m_multiple": 8, "min_experts": 2, "activations": ("silu",)}
    ),
    "hints_change_tiles": Habit(
        traits={"hints": ({"tile": (64, 16)}, {"tile": (128, 64)}), "out_dtypes": ("bfloat16", "float16")}
    ),
}  # fmt: skip


class OpaqueLayer:
    """A control of which only `masked_moe` is there: judged by the propagated interval.

    Args:
        name: of the control.
        inside: the candidate that it is made of.
    """

    def __init__(self, name: str, inside: Any) -> None:
        self.name, self._inside = name, inside
        self.traits: Traits = inside.traits
        self.reciprocal = getattr(inside, "reciprocal", None)

    def support(self) -> Support:
        """Return that it runs everywhere."""
        return supported()

    def masked_moe(self, *arguments: Any, **named: Any) -> Tensor:
        """Return the layer's output."""
        out: Tensor = self._inside.masked_moe(*arguments, **named)
        return out


class StrictPhysical(StrictKernels, Physical):
    """`physical`, refusing operands in another layout."""

    name = "physical_strict"


def _variant(name: str) -> Callable[[], Any]:
    return lambda: Variant(name, _HABITS[name])


def _layer_variant(name: str) -> Callable[[], Any]:
    return lambda: LayerVariant(name, LAYER_HABITS[name])


CONTROLS: dict[str, Callable[[], Any]] = {
    "eager": Eager,
    "physical": StrictPhysical,
    **{name: _variant(name) for name in _HABITS},
    **{name: _layer_variant(name) for name in LAYER_HABITS},
    "opaque_eager": lambda: OpaqueLayer("opaque_eager", Eager()),
    "opaque_shuffled": lambda: OpaqueLayer(
        "opaque_shuffled", Variant("shuffled_accumulation", _HABITS["shuffled_accumulation"])
    ),
    "opaque_unknown_reciprocals": lambda: OpaqueLayer(
        "opaque_unknown_reciprocals",
        Variant("reciprocals_above_unknown", _HABITS["reciprocals_above_unknown"]),
    ),
}


def load_control(name: str) -> Any:
    """Return the control of that name.

    Raises:
        UsageError: there is none; the message gives the nearest name.
    """
    known = CONTROLS | IN_FORMATS | ROUTED
    if name not in known:
        raise unknown_name("control", name, known)
    return known[name]()
