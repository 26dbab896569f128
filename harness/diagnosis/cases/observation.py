"""What was seen: one call of a stage with its arguments and its output, recorded while a rule runs or read from a file."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from harness.candidates.protocol import ALL_STAGES, traits_of
from harness.candidates.traits import Traits
from harness.faults.mutant import CALLS
from reference.formats import FORMATS, NVFP4, Format

MASKED_GEMM, MASKED_MOE = "masked_grouped_gemm", "masked_moe"
QUANTIZERS = ("quantize_grouped", "silu_mul_quantize_grouped")
INNER = (*QUANTIZERS, MASKED_GEMM)  # the stages that a layer is composed of


@dataclass
class Observed:
    """One call of a stage.

    Attributes:
        stage: name of the stage.
        arguments: by the names of harness.candidates.protocol (gate_up is `x`), on the CPU, as they were before the call;
            the GEMM's `out` with what it held.
        output: what the stage returned, or the GEMM's `out` after the call; None where the call raised.
        changed: inputs that the call changed, as they were afterwards.
        name: for words: the stage, numbered where it was called more than once ("masked_grouped_gemm, call 2").
        pristine: a second copy of the arguments, from `keep`.
        forms: formats of activations and weights.
        gated: the candidate's activation with a gate.
        final_sum: how its routed layer adds.
    """

    stage: str
    arguments: dict[str, Any]
    output: Any
    name: str = ""
    changed: dict[str, Any] = field(default_factory=dict)
    pristine: dict[str, Any] = field(default_factory=dict)
    forms: tuple[Format, Format] = (NVFP4, NVFP4)
    gated: str = "silu"
    final_sum: str = "slots"

    @property
    def traits(self) -> Traits:
        """What is multiplied and applied, as the candidate declares it, and how this call combines."""
        activations, weights = self.forms
        back = self.arguments.get("transport", "bf16") if self.stage == "combine" else "bf16"
        return Traits(
            activation_format=activations.name,
            weight_format=weights.name,
            k_multiple=128,
            activations=(self.gated, "relu2"),
            final_sum=self.final_sum,
            combine_transports=tuple(dict.fromkeys(("bf16", back))),
        )

    @property
    def has_codes(self) -> bool:
        """Whether it returns blocks of NVFP4 codes and their scales; in other formats values are compared."""
        return self.stage in QUANTIZERS and self.forms[0] == NVFP4

    def keep(self) -> None:
        """Copy the arguments once, so that `restore` can undo what a planted fault writes into them."""
        if not self.pristine:
            self.pristine = copied(self.arguments)

    def restore(self, names: list[str]) -> None:
        """Put some arguments back as they were."""
        for name in names:
            self.arguments[name] = copied(self.pristine[name])


@dataclass
class Recorder:
    """A candidate whose stage calls are recorded. Everything else passes through.

    Attributes:
        candidate: the candidate.
        calls: what was recorded, in the order in which the calls ended.
    """

    candidate: Any
    calls: list[Observed] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.candidate, name)
        if name == "masked_moe_tapped":
            return self._tapped(value)
        if name == "routed_moe_tapped":
            return self._routed_tapped(value)
        return self._recording(name, value) if name in ALL_STAGES and callable(value) else value

    def _recording(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        names = CALLS[stage].names  # in the protocol's order
        traits = traits_of(self.candidate)
        forms = FORMATS[traits.activation_format], FORMATS[traits.weight_format]

        def call(*positional: Any, **named: Any) -> Any:
            given = dict(zip(names, positional, strict=False)) | named
            if stage == "silu_mul_quantize_grouped" and "gate_up" in given:
                given["x"] = given.pop("gate_up")
            observed = Observed(
                stage, copied(given), None, forms=forms, gated=traits.gated, final_sum=traits.final_sum
            )
            if stage == MASKED_GEMM:
                observed.arguments["out"] = with_memory(given["out"])
            self.begun(observed)
            result = function(*positional, **named)
            observed.output = with_memory(given["out"]) if stage == MASKED_GEMM else copied(result)
            observed.changed = changes(observed.arguments, given)
            self.calls.append(observed)
            return result

        return call

    def _routed_tapped(self, function: Callable[..., Any]) -> Callable[..., Any]:
        kept: list[Any] = []

        def layer(**named: Any) -> Any:
            out, taps = function(**named)
            kept.append(taps)
            return out

        recorded = self._recording("routed_moe", layer)
        return lambda **named: (recorded(**named), kept.pop())

    def begun(self, call: Observed) -> None:
        """A call begins: for those who must know it even if it never ends."""

    def _tapped(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(**named: Any) -> Any:
            out, calls = function(**named)
            self.calls += [_from_tap(tap) for tap in calls]
            return out, calls

        return call


def name_calls(calls: list[Observed]) -> list[Observed]:
    """Number the calls of stages that were called more than once, and return them."""
    for stage in {call.stage for call in calls}:
        same = [call for call in calls if call.stage == stage]
        for number, call in enumerate(same, start=1):
            call.name = stage if len(same) == 1 else f"{stage}, call {number}"
    return calls


def _from_tap(tap: Any) -> Observed:
    """Return a call that harness.candidates.taps recorded inside an engine."""
    arguments = copied(tap.inputs)
    if tap.stage == MASKED_GEMM:
        out = copied(tap.outputs["out"])
        before = torch.full_like(out, torch.nan)  # what it held before is not known
        return Observed(tap.stage, {"alpha": None, **arguments, "out": before}, out)
    if "gate_up" in arguments:
        arguments["x"] = arguments.pop("gate_up")
    return Observed(tap.stage, arguments, (copied(tap.outputs["packed"]), copied(tap.outputs["block_scale"])))


def with_memory(out: Tensor) -> Tensor:
    """Return a copy on the CPU that lies in a copy of all the memory around it."""
    memory = out.detach().untyped_storage().clone().cpu()  # type: ignore[no-untyped-call]
    return torch.empty(0, dtype=out.dtype).set_(memory, out.storage_offset(), out.shape, out.stride())


def changes(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments, other than `out`, whose bytes are not what they were."""
    flat_before, flat_after = (dict(tensors_in(arguments)) for arguments in (before, after))
    return {
        name: copied(tensor)
        for name, tensor in flat_after.items()
        if name != "out" and not torch.equal(bytes_of(flat_before[name]), bytes_of(tensor.cpu()))
    }


def tensors_in(arguments: dict[str, Any]) -> list[tuple[str, Tensor]]:
    """Return every tensor among the arguments, with a name; those of a tuple are numbered."""
    found = []
    for name, value in arguments.items():
        if isinstance(value, Tensor):
            found.append((name, value))
        elif isinstance(value, (tuple, list)):
            found += [(f"{name}[{i}]", v) for i, v in enumerate(value) if isinstance(v, Tensor)]
    return found


def bytes_of(tensor: Tensor) -> Tensor:
    """Return the bytes of a tensor in the order of its indices, `(bytes,)` uint8."""
    # A clone: a single element counts as contiguous whatever its stride, and has no bytes to be viewed if that is 0.
    return tensor.detach().clone(memory_format=torch.contiguous_format).reshape(-1).view(torch.uint8)


def copied(value: Any) -> Any:
    """Return a deep copy of tensors in any containers, on the CPU, strides kept."""
    if isinstance(value, Tensor):
        return value.detach().clone(memory_format=torch.preserve_format).cpu()
    if isinstance(value, (tuple, list)):
        return type(value)(copied(v) for v in value)
    if isinstance(value, dict):
        return {name: copied(v) for name, v in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        own = copy.copy(value)  # a package's own may have fields that nobody can give
        for each in fields(value):
            object.__setattr__(own, each.name, copied(getattr(value, each.name)))
        return own
    return value
