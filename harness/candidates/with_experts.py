"""Ranks that are processes, with the experts of another candidate between dispatch and combine.

Experts run in the judging process, rank by rank, on what each rank received. They set the device, and with it where what
the ranks return is put.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from harness.candidates.protocol import stages_of, traits_of
from harness.candidates.support import Support, supported, unsupported

if TYPE_CHECKING:
    from harness.candidates.over_ranks import OverRanks

_OF_RANKS = ("dispatch", "combine", "start_ranks", "close", "warning")
_OF_EITHER = ("route_topk", "load_experts")


class WithExperts:
    """A candidate over ranks whose masked_moe, and the stages in it, are another candidate's.

    Args:
        over: dispatches and combines; it routes and loads where the experts' candidate does not.
        experts: has masked_moe.
    """

    def __init__(self, over: OverRanks, experts: Any) -> None:
        self.over, self.experts = over, experts
        self.name = f"{over.name} with experts of {getattr(experts, 'name', type(experts).__name__)}"
        ranks, own = over.traits, traits_of(experts)
        self._elsewhere = ranks.device != own.device and not over.any_device
        if over.any_device:
            over.traits = ranks = replace(ranks, device=own.device)
        sizes = tuple(size for size in ranks.hidden_sizes if size % own.width_multiple == 0)
        self._no_size = bool(ranks.hidden_sizes) and not sizes
        self.traits = replace(
            own, canary=False, ranks=ranks.ranks, transports=ranks.transports,
            combine_transports=ranks.combine_transports, left_out=ranks.left_out, most_tokens=ranks.most_tokens,
            hidden_sizes=sizes, sender_arithmetic=ranks.arithmetic,
        )  # fmt: skip

    def support(self) -> Support:
        """Return whether ranks and experts can run here, and fit each other."""
        here = self.over.support()
        own_support: Support = getattr(self.experts, "support", supported)()
        if not (here and own_support):
            return own_support if here else here
        own = traits_of(self.experts)
        if "masked_moe" not in stages_of(self.experts):
            return unsupported("the candidate of the experts has no masked_moe")
        if own.weight_format != "nvfp4":
            return unsupported(f"the checkpoints are NVFP4, and the experts take {own.weight_format} weights")
        if self._elsewhere:
            return unsupported(
                f"the experts run on {own.device}, and what the ranks receive lies on {self.over.traits.device}"
            )
        if self._no_size:
            sizes = ", ".join(map(str, self.over.traits.hidden_sizes))
            return unsupported(
                f"the ranks carry tokens of {sizes} channels, and the experts take multiples of {own.width_multiple}"
            )
        return here

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in ("over", "experts"):  # while it is being made, or copied
            raise AttributeError(name)
        if name in _OF_RANKS or (name in _OF_EITHER and not hasattr(self.experts, name)):
            return getattr(self.over, name)
        return getattr(self.experts, name)
