"""The final sum of a routed layer as a value: in which order a token's rows are added, where their weights enter, how it is rounded.

    output[token] = sum over the token's slots of weight[slot] * row[slot]

As text, the order first, then what differs from one float32 sum that is rounded once:

* `slots`: in the order of the token's slots. `experts`: in rising order of the experts' numbers. `any`: in whichever order
  the rows are ready, as atomic additions have it.
* `; weight on rows`: the second GEMM's epilogue multiplies by the weight, and the weighted row is rounded to the output's
  type. `; weight on hidden`: the intermediate is multiplied before it is quantized again. `; weight on tokens`: the token is
  multiplied before the first GEMM, and the product is rounded to its type (for one expert a token).
* `; rounded each step`: the running sum is of the output's type. `; onto out`: the sum begins with what the output held.
* `; times 2.5`: the sum is multiplied by that in float32 before it is rounded.

What the sums are: reference.routed_sum.

Source: DeepEP low_latency_combine and FlashInfer finalizeMoeRoutingKernel (slots); FlashInfer cute_dsl_fused_moe with
use_fused_finalize (any; weight on rows; rounded each step); FlashInfer MegaMoE (weight on hidden); vLLM
apply_router_weight_on_input (weight on tokens), Marlin's mul_topk_weights and moe_sum (weight on rows); SGLang moe_sum_reduce
with a routed_scaling_factor (times).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

ORDERS = ("slots", "experts", "any")
WEIGHTS = ("sum", "rows", "hidden", "tokens")


@dataclass(frozen=True)
class FinalSum:
    """One way of adding a token's rows.

    Attributes:
        order: one of ORDERS.
        weight: one of WEIGHTS: where the routing weight enters.
        stepwise: whether the running sum is rounded to the output's type at each step.
        onto: whether the sum begins with what the output held, instead of nothing.
        times: what the sum is multiplied with before it is rounded, positive.
    """

    order: str = "slots"
    weight: str = "sum"
    stepwise: bool = False
    onto: bool = False
    times: float = 1.0

    @staticmethod
    def of(text: str) -> FinalSum:
        """Return the sum that a text stands for.

        Raises:
            ValueError: it stands for none: what was expected.
        """
        order, *options = (part.strip() for part in text.split(";"))
        if order not in ORDERS:
            raise ValueError(f"a final sum begins with {', '.join(ORDERS)}, got {order!r}")
        found = FinalSum(order)
        for option in options:
            if option == "rounded each step":
                found = replace(found, stepwise=True)
            elif option == "onto out":
                found = replace(found, onto=True)
            elif option.startswith("weight on ") and option[10:] in WEIGHTS[1:]:
                found = replace(found, weight=option[10:])
            elif (factor := _positive(option)) is not None:
                found = replace(found, times=factor)
            else:
                known = ", ".join(f"weight on {place}" for place in WEIGHTS[1:])
                raise ValueError(
                    f"options of a final sum are {known}, rounded each step, onto out and times NUMBER, got {option!r}"
                )
        return found

    @property
    def fixed(self) -> bool:
        """Whether two equal calls add in the same order."""
        return self.order != "any"


def _positive(option: str) -> float | None:
    """Return the number of "times NUMBER", where it is positive and finite."""
    name, _, number = option.partition(" ")
    try:
        found = float(number) if name == "times" else 0.0
    except ValueError:
        return None
    return found if 0 < found < float("inf") else None
