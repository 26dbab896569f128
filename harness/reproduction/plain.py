"""The checks of a plain script: the stage calls of a failing problem, and which elements of what comes back are legal.

Everything below this text is copied into the script, so it needs torch and the standard library only.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

STAGES = ("quantize_grouped", "silu_mul_quantize_grouped", "masked_grouped_gemm", "masked_moe", "routed_moe")
MAGNITUDES = (0, 0.5, 1, 1.5, 2, 3, 4, 6)  # of E2M1 codes; codes 8 to 15 are negative
NAN_BYTE = 0x7F  # of a block scale
SHOWN = 20


def made(found: Any) -> Any:
    """Return the candidate: a class, or a function that returns a candidate, is called."""
    bare = callable(found) and not any(callable(getattr(found, stage, None)) for stage in STAGES)
    return found() if isinstance(found, type) or bare else found


def call_stage(candidate: Any, stage: str, a: dict[str, Any], hints: dict[str, Any]) -> Any:
    """Call a stage in FlashInfer's calling convention and return its result, or the output that it wrote into."""
    if stage == "quantize_grouped":
        return candidate.quantize_grouped(a["x"], a["masked_m"], a["global_scale_enc"])
    if stage == "silu_mul_quantize_grouped":
        return candidate.silu_mul_quantize_grouped(a["x"], a["masked_m"], a["global_scale_enc"])
    if stage == "masked_grouped_gemm":
        candidate.masked_grouped_gemm(
            a["a"], a["a_scale"], a["b"], a["b_scale"], a["out"], a["masked_m"], a["alpha"], **hints
        )
        return a["out"]
    return getattr(candidate, stage)(**a)


def on_device(value: Any, device: str) -> Any:
    """Return a copy of an argument on the device, strides kept; a dict is an output with the memory around it."""
    if isinstance(value, Tensor):
        return value.to(device, copy=True)
    if isinstance(value, tuple):
        return tuple(on_device(part, device) for part in value)
    if isinstance(value, dict):
        memory = value["memory"].to(device, copy=True)
        return memory.as_strided(value["size"], value["stride"], value["offset"])
    return value


def on_cpu(value: Any) -> Any:
    """Return what a stage returned on the CPU."""
    if isinstance(value, tuple):
        return tuple(on_cpu(part) for part in value)
    return value.detach().cpu() if isinstance(value, Tensor) else value


def broken_contract(call: dict[str, Any], result: Any) -> str:
    """Return how the result differs from what the stage must return in type, shape, dtype or memory order, or ""."""
    stage = call["stage"]
    if stage in {"masked_moe", "routed_moe"}:
        extents = call["shape"] if stage == "masked_moe" else call["shape"][1:]  # tokens belong to no expert
        return _differs("output", result, tuple(extents), torch.bfloat16)
    if stage == "masked_grouped_gemm":
        return ""
    experts, rows, k = call["shape"]
    if not isinstance(result, tuple) or len(result) != 2:
        return f"must return (packed, block_scale), got {type(result).__name__}"
    tiles = (32, 4, -(-rows // 128), 4, -(-k // 64), experts)
    found = _differs("packed", result[0], (rows, k // 2, experts), torch.uint8)
    found = found or _differs("block_scale", result[1], tiles, torch.float8_e4m3fn)
    if found:
        return found
    orders = ((2, 0, 1), (5, 2, 4, 0, 1, 3))
    names = ("packed", "block_scale")
    for name, part, order in zip(names, result, orders, strict=True):
        if not part.permute(order).is_contiguous():
            return f"{name} has strides {part.stride()}, experts must be outermost"
    return ""


def _differs(name: str, tensor: Any, shape: tuple[int, ...], dtype: torch.dtype) -> str:
    if not isinstance(tensor, Tensor):
        return f"{name} must be {shape} {dtype}, got {type(tensor).__name__}"
    one_byte = dtype.itemsize == tensor.element_size() == 1  # bytes of scales may come as uint8
    if tuple(tensor.shape) == shape and (tensor.dtype == dtype or (one_byte and name == "block_scale")):
        return ""
    return f"{name} must be {shape} {dtype}, got {tuple(tensor.shape)} {tensor.dtype}"


def valid_elements(call: dict[str, Any], result: Any) -> dict[str, Tensor]:
    """Return the valid rows of a result by the name of the output, `(rows, columns)`: codes and scale bytes, or values."""
    expert, row = call["rows"]
    if call["stage"] in {"masked_moe", "routed_moe"}:
        return {"output": (result[row] if result.ndim == 2 else result[expert, row]).double()}
    if call["stage"] == "masked_grouped_gemm":
        return {"output": result.permute(2, 0, 1)[expert, row].double()}
    packed = result[0].permute(2, 0, 1)  # (experts, rows, k / 2), the even element in the low nibble
    codes = torch.stack((packed & 15, packed >> 4), -1).flatten(-2)
    tiles = (
        result[1].view(torch.uint8).permute(5, 2, 1, 0, 4, 3)
    )  # expert, row / 128, row / 32 % 4, row % 32, ...
    experts, rows, k = call["shape"]
    scales = tiles.reshape(experts, tiles.shape[1] * 128, -1)[:, :rows, : k // 16]
    return {"scale": scales[expert, row], "codes": codes[expert, row]}


def wrong_elements(call: dict[str, Any], result: Any) -> list[str]:
    """Return one line for each valid element that is not legal."""
    stage, legal = call["stage"], call["legal"]
    got = valid_elements(call, result)
    if "output" in got:
        values, low, high = got["output"], legal["low"].double(), legal["high"].double()
        nan = low.isnan() | high.isnan()
        bad = ~torch.where(nan, values.isnan(), (values >= low) & (values <= high))
        if "undecided" in legal:  # an infinite alpha times a sum that may be zero
            bad = torch.where(legal["undecided"], values.isfinite(), bad)
        exact = legal.get("exact")

        def value(r: int, c: int) -> str:
            known = "" if exact is None else f", exact result {float(exact[r, c]):.8g}"
            return (
                f"= {float(values[r, c]):.8g}{known}, legal {float(low[r, c]):.8g} to {float(high[r, c]):.8g}"
            )

        return [f"{stage}{_place(call, r, c, 'col')} {value(r, c)}" for r, c in bad.nonzero().tolist()]
    scale, codes = got["scale"], got["codes"]
    low, high = legal["scale_low"], legal["scale_high"]
    found = []
    outside = (scale < low) | (scale > high)
    if "half_nan" in legal:  # all even or all odd elements of the block are NaN
        outside &= ~(legal["half_nan"] & (scale == NAN_BYTE))
    for r, c in outside.nonzero().tolist():
        words = f"= 0x{int(scale[r, c]):02X}, legal 0x{int(low[r, c]):02X} to 0x{int(high[r, c]):02X}"
        found.append(f"{stage}.scale{_place(call, r, c, 'block')} {words}")
    # Which codes are legal depends on the scale that was stored: bit n of a mask stands for code n.
    bad = torch.ones(codes.shape, dtype=torch.bool)
    known = torch.zeros(scale.shape, dtype=torch.bool)
    for each, masks in zip(legal["scales"], legal["codes"], strict=True):
        here = each == scale
        known |= here
        bad &= ~(here.repeat_interleave(16, -1) & (((masks >> codes.int()) & 1) == 1))
    bad &= known.repeat_interleave(
        16, -1
    )  # of a scale that nobody foresaw, which is wrong anyway, nothing is said
    for r, c in bad.nonzero().tolist():
        code = int(codes[r, c])
        sign = "-" if code & 8 else "+"
        words = f"= code {code} ({sign}{MAGNITUDES[code & 7]:g}), not legal under the stored scale"
        found.append(f"{stage}.codes{_place(call, r, c, 'col')} {words}")
    return found


def differing_elements(call: dict[str, Any], result: Any, other: Any) -> list[str]:
    """Return one line for each valid element in which two calls differ that must give the same bits."""
    found = []
    before = valid_elements(call, other)
    for name, now in valid_elements(call, result).items():
        then = before[name]
        same = (now == then) | (now.isnan() & then.isnan())
        for r, c in (~same).nonzero().tolist():
            words = f"= {now[r, c].item()!r}, but {then[r, c].item()!r} in the other call"
            found.append(f"{call['stage']} {name}{_place(call, r, c, 'col')} {words}")
    return found


def _place(call: dict[str, Any], row: int, column: int, name: str) -> str:
    expert, of_expert = (int(part[row]) for part in call["rows"])
    if call["stage"] == "routed_moe":
        return f"[token {of_expert}, {name} {column}]"
    return f"[expert {expert}, row {of_expert}, {name} {column}]"


def changed_inputs(stage: str, before: Any, after: Any, name: str = "") -> list[str]:
    """Return one line for each input that the call changed."""
    if name == "out":
        return []
    if isinstance(before, (tuple, dict)):
        items = before.items() if isinstance(before, dict) else enumerate(before)
        return [line for key, value in items for line in changed_inputs(stage, value, after[key], str(key))]
    if not isinstance(before, Tensor):
        return []
    was, is_now = (
        t.clone(memory_format=torch.contiguous_format).view(torch.uint8) for t in (before, on_cpu(after))
    )
    same = torch.equal(was, is_now)
    return [] if same else [f"{stage} changed its input {name}"]


def written_outside(call: dict[str, Any], out: Tensor) -> list[str]:
    """Return one line for each element outside whole tiles of valid rows that a GEMM wrote to."""
    given = call["arguments"]["out"]["memory"]
    now = out.detach().as_strided(given.shape, (1,), 0).cpu()
    same = (now == given) | (now.isnan() & given.isnan())
    places = (call["keep"] & ~same).nonzero().flatten().tolist()
    return [
        f"{call['stage']} wrote {float(now[p]):.8g} to element {p} of out's memory, outside tiles"
        for p in places
    ]


def run_call(candidate: Any, call: dict[str, Any], device: str, others: list[Any]) -> list[str]:
    """Make one call and return what is wrong with it, one line an element; its result is added to `others`."""
    arguments = {name: on_device(value, device) for name, value in call["arguments"].items()}
    output = call_stage(candidate, call["stage"], arguments, call["hints"])
    if device == "cuda":
        torch.cuda.synchronize()
    result = on_cpu(output)
    others.append(result)
    checks = call["checks"]
    if not checks:
        return []
    if words := broken_contract(call, result):
        return [f"{call['stage']}: {words}"]
    found = wrong_elements(call, result)
    if "inputs" in checks:
        found += changed_inputs(call["stage"], call["arguments"], arguments)
    if "memory" in checks:
        found += written_outside(call, output)
    if "same" in checks:
        found += differing_elements(call, result, others[call["same_as"]])
    return found


def main(candidate: Any, file: Path, *, warm: bool) -> int:
    """Make the calls of a file, print what is wrong, and return 1 if anything is.

    Args:
        candidate: the object whose stages are called.
        file: what `harness reproduce` kept, a file of torch.save.
        warm: make the calls before it too, because the failure does not show without them.
    """
    data = torch.load(file, weights_only=True)
    wrong: list[str] = []
    results: list[Any] = []
    for call in data["calls"]:
        if warm or call["needed"]:
            wrong += run_call(candidate, call, data["device"], results)
        else:
            results.append(None)
    for line in wrong[:SHOWN]:
        print(line)
    if len(wrong) > SHOWN:
        print(f"... and {len(wrong) - SHOWN:,} more")
    print(f"{len(wrong):,} wrong" if wrong else "nothing is wrong")
    return 1 if wrong else 0
