"""The stages around the masked MoE (routing, dispatch, combine, loading): outputs as elements, what is legal, right models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from harness.candidates.layer_stages import LayerStages, PhysicalLayerStages
from harness.diagnosis.cases.observation import Observed
from harness.diagnosis.cases.pieces import Pieces, joined, pieces_of
from harness.faults.layer_calls import LOADED
from reference.e8m0 import decode_e8m0
from reference.layout import unswizzle_128x4
from reference.loading import is_expert_tensor
from reference.routing import Dispatched

WEIGHT_FREEDOM = 2e-5  # relative: float32 softmax and its sums, see docs/bounds.md, "Routing"


def elements_around(stage: str, output: Any) -> tuple[Tensor, Tensor]:
    """Return an output of such a stage as `(groups, rows, 1, elements)` float64, and which rows count, `(groups, rows)` bool.

    Groups are experts (dispatch, load_experts) or ranks (combine); rows are tokens, received rows, or rows of weights.
    """
    if stage == "route_topk":
        found = torch.cat([part.double() for part in output], dim=-1).view(1, len(output[0]), 1, -1)
        return found, torch.ones(found.shape[:2], dtype=torch.bool)
    if stage == "dispatch":
        return _received(output)
    if stage == "combine":
        most = max((len(out) for out in output), default=0)
        found = torch.stack([pad(out.double(), (0, 0, 0, most - len(out))) for out in output])
        return found.unsqueeze(2), torch.stack([torch.arange(most) < len(out) for out in output])
    return _loaded(output)


def _received(output: list[Dispatched]) -> tuple[Tensor, Tensor]:
    groups, valid = [], []
    for got in output:
        x = got.x.view(torch.uint8) if got.x.element_size() == 1 else got.x.view(torch.int16)
        parts = [x.double(), got.source.double()]
        if got.scales is not None:
            scales = got.scales
            if scales.dtype == torch.uint8 and got.x.dtype == torch.float8_e4m3fn:
                scales = decode_e8m0(scales)  # 0xFF is NaN, as in float32
            parts.append((scales if scales.element_size() > 1 else scales.view(torch.uint8)).double())
        counts = got.masked_m.view(-1, 1, 1).expand(-1, x.shape[1], 1).double()
        row = torch.arange(x.shape[1])
        there = row < got.masked_m.unsqueeze(-1)
        received = torch.cat(parts, dim=-1).masked_fill(~there.unsqueeze(-1), 0)
        groups.append(torch.cat((received, counts), dim=-1))
        valid.append(there | (row == 0))  # the count of an expert without rows can be wrong too
    return torch.cat(groups).unsqueeze(2), torch.cat(valid)


def _loaded(output: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    parts = []
    for packed, swizzled in (("w1", "w1_blockscale"), ("w2", "w2_blockscale")):
        weight = output[packed]
        scale = unswizzle_128x4(output[swizzled].view(torch.uint8), weight.shape[1], weight.shape[2] // 8)
        parts.append(torch.cat((weight.double(), scale.double()), dim=-1))
    single = [output[n].reshape(-1, 1) for n in LOADED if output.get(n) is not None and output[n].ndim == 1]
    parts.append(torch.cat([value.double() for value in single], dim=-1).unsqueeze(1))
    found = joined(parts, _cut(output)[0])
    return found.unsqueeze(2), torch.ones(found.shape[:2], dtype=torch.bool)


def loaded_pieces(stage: str, output: Any) -> Pieces | None:
    """Return how the rows of loaded weights are cut in pieces, None where they are not, and for another stage."""
    return _cut(output)[1] if stage == "load_experts" else None


def _cut(output: dict[str, Tensor]) -> tuple[int, Pieces | None]:
    shapes = [
        (output[n].shape[1], output[n].shape[2] * 9 // 8) for n in ("w1", "w2")
    ]  # with the block scales
    shapes.append(
        (1, min(width for _, width in shapes))
    )  # the single values, which are fewer than a block has bytes
    return pieces_of(shapes, len(output["w1"]))


def legal_around(stage: str, arguments: dict[str, Any], seen: Tensor, right: Tensor) -> Tensor:
    """Return which elements are right: equal, within rounding, or another choice among equal logits."""
    if seen.shape != right.shape:
        return torch.zeros_like(seen, dtype=torch.bool)
    equal: Tensor = (seen == right) | (seen.isnan() & right.isnan())
    if stage in {"route_topk", "load_experts"}:
        equal |= (seen - right).abs() <= WEIGHT_FREEDOM * right.abs() * (right != right.round())
    if stage == "route_topk":
        equal |= _other_ties(arguments, seen).view(1, -1, 1, 1)
    return equal


def _other_ties(arguments: dict[str, Any], seen: Tensor) -> Tensor:
    """Return the tokens whose distinct experts have the largest logits, and the weights that belong to them."""
    logits, topk = arguments["logits"].double(), arguments["topk"]
    ids, weights = seen[0, :, 0, :topk], seen[0, :, 0, topk:]
    inside = ((ids >= 0) & (ids < logits.shape[1])).all(-1)
    safe = ids.long().clamp(0, logits.shape[1] - 1)
    distinct = safe.sort(-1).values.diff(dim=-1).ne(0).all(-1)
    largest = logits.gather(1, safe).sort(-1).values == logits.topk(topk, dim=-1).values.sort(-1).values
    wanted = torch.softmax(logits, -1).gather(1, safe)
    if arguments.get("normalize", True):
        wanted = wanted / wanted.sum(-1, keepdim=True)
    close = (weights - wanted).abs() <= WEIGHT_FREEDOM * wanted
    found: Tensor = inside & distinct & largest.all(-1) & close.all(-1)
    return found


class _Loading(LayerStages):
    """The reference's loading, of a checkpoint that may hold other tensors too."""

    def load_experts(self, checkpoint: Mapping[str, Tensor], experts: range) -> dict[str, Tensor]:
        """Return masked_moe's weight arguments; what is no tensor of an expert is passed over."""
        return super().load_experts({n: t for n, t in checkpoint.items() if is_expert_tensor(n)}, experts)


class ReferenceStages(_Loading):
    """The reference's stages."""

    name = "reference"


class SharedScaleStages(_Loading):
    """The reference's stages, with one intermediate scale for all experts (the rule LOAD allows both)."""

    name = "reference, one intermediate scale"

    def load_experts(self, checkpoint: Mapping[str, Tensor], experts: range) -> dict[str, Tensor]:
        """Return masked_moe's weight arguments; the scale is that of the largest input scale of the whole layer."""
        loaded = super().load_experts(checkpoint, experts)
        largest = max(t for n, t in checkpoint.items() if n.endswith(".down_proj.input_scale"))
        scale = (1 / largest).expand(len(experts)).contiguous()
        weight = loaded["w2_alpha"] * loaded["a2_global_scale"]
        return loaded | {"a2_global_scale": scale, "w2_alpha": weight * largest}


class ArrivalStages(PhysicalLayerStages):
    """`physical`'s stages, in which rows lie in the order of their arrival."""

    name = "physical"


def models_around(stage: str) -> list[Any]:
    """Return the right implementations of a stage around the layer that differ in it."""
    loading = [ReferenceStages(), SharedScaleStages()]
    return loading if stage == "load_experts" else [ArrivalStages(), ReferenceStages()]


def is_padded_load(call: Observed) -> bool:
    """Return whether a call loaded a layer without gates into whole tiles of rows, which no implementation here does."""
    if call.stage != "load_experts" or any(".gate_proj." in name for name in call.arguments["checkpoint"]):
        return False
    up = next(t for n, t in call.arguments["checkpoint"].items() if n.endswith(".up_proj.weight"))
    return bool(call.output["w1"].shape[1] != up.shape[0])
